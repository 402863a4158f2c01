"""Commands that end early, in processes of their own: by signals, or because their output goes nowhere."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from amir_grpo import cli
from amir_grpo.system.processes import ending

ROOT = Path(__file__).parents[2]
BEGIN = "from amir_grpo.system.processes import ending; import atexit, signal, sys, time\n"
GUARD = 300  # seconds: three are promised; a busy machine may take longer, and the work takes 600
LINE = "amir_grpo plan: interrupted. Completed work is kept: run the same command again to continue."
WORK = {
    "sleeping": "time.sleep(600)",
    "computing": "while True: pass",
    "swallowing": "while True:\n        try: time.sleep(600)\n        except KeyboardInterrupt: pass",
    "destroying": "type('Last', (), {'__del__': lambda _: time.sleep(600)})(); time.sleep(600)",
    "failing on the way out": "try: time.sleep(600)\n    finally: raise OSError('a consequence')",
    "exiting": "atexit.register(time.sleep, 600); time.sleep(600)",
}


def begun(script):
    """A process that has said that it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_signal_ends_any_work_with_one_line():
    """All at once: half of them take the three seconds; a second signal changes nothing."""
    started = {
        (work, number): begun(f"with ending('plan'):\n    print('begun', flush=True)\n    {line}")
        for number, (work, line) in itertools.product((signal.SIGINT, signal.SIGTERM), WORK.items())
    }
    for (_, number), process in started.items():
        process.send_signal(number)
    time.sleep(0.5)
    for process in started.values():
        process.send_signal(signal.SIGTERM)
    for (work, number), process in started.items():
        _, errors = process.communicate(timeout=GUARD)
        assert process.returncode == 128 + number, work
        assert errors.strip() == LINE, work


def test_what_was_set_before_is_set_again():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.unraisablehook
    with ending("plan"):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.unraisablehook) == before


def command(words, said):
    """The command line in a process of its own, with its error stream in a file."""
    with said.open("w") as errors:
        os.dup2(errors.fileno(), 2)
    cli.main(words)


@pytest.mark.xdist_group("server")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_with_one_line(number, server, runs, tiny_settings, tmp_path):
    settings = tiny_settings | {"max_steps": 5000}
    words = [f"--{name}={value}" for name, value in settings.items() if isinstance(value, int | float)]
    said = tmp_path / "said"
    said.touch()
    process = server.Process(
        target=command, args=(["train", "--run_dir", str(runs / f"signal {number}"), *words], said)
    )
    process.start()
    while "amir_grpo:" not in said.read_text():  # its progress bar: it trains
        assert process.is_alive(), said.read_text()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(GUARD)
    assert process.exitcode == 128 + number
    errors = said.read_text()
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.strip()][-1].startswith(
        "amir_grpo train: interrupted. Completed"
    )


SMALL = "--sandbox_warmup_steps 120 --max_steps 5000 --dataset_limit 40 --max_completion_length 24"
MANY = "--sandbox_warmup_steps 120 --max_steps 2 --dataset_limit 40 --num_samples 64 --benchmarks chain3 chain6"
# by command: options, and a file that is there as soon as its processes work
COMMANDS = {
    "reproduce": (f"--run_dir {{folder}} {SMALL}", "notebooks/*"),
    "evaluate": (f"--run_dir {{folder}} {MANY} --workers 2", "samples/base"),
    "evidence": (
        f"--folder {{folder}} --results {{folder}}/kept --arms clean/grpo --seeds 0 1 {SMALL} --workers 2",
        "*",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_of_several_processes_end_with_one_line_and_leave_nobody(name, number, tmp_path):
    """A terminal sends Ctrl-C to all of them, a scheduler SIGTERM to the first."""
    options, sign = COMMANDS[name]
    folder, said = tmp_path / "run", tmp_path / "said"
    with said.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "amir_grpo", name, *options.format(folder=folder).split()],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=ROOT,
            start_new_session=True,
        )
    children = []
    while not (len(children) > 1 and list(folder.glob(sign))):
        assert process.poll() is None, said.read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.wait(GUARD) == 128 + number, said.read_text()
    _, alive = psutil.wait_procs(children, timeout=GUARD)
    assert not alive
    errors = said.read_text()
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.strip()][-1].startswith(
        f"amir_grpo {name}: interrupted. Completed"
    )


# a worker is only starting when the terminal's Ctrl-C comes
STARTING = """
import os, signal
from amir_grpo.system.cluster import submitting
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    with submitting(2) as submit:
        calls = [submit(abs, -1), submit(abs, -2)]
        try:
            os.killpg(0, signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            print(sum(call.result() for call in calls))
"""


def test_an_interrupt_ends_no_worker_that_is_starting(tmp_path):
    script = tmp_path / "starting.py"
    script.write_text(STARTING)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=environment,
        start_new_session=True,
        timeout=GUARD,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("3\n", "")


# --- output -----------------------------------------------------------------------------------------------------------


PRINT = BEGIN + "with ending('plan'): print('λ = −1')"


def ended(stdout=subprocess.PIPE, work=PRINT, **environment):
    return subprocess.run(
        [sys.executable, "-c", work], stdout=stdout, stderr=subprocess.PIPE, env=os.environ | environment, cwd=ROOT
    )


def test_an_output_without_the_letters_gets_others():
    done = ended(PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() == rb"\u03bb = \u22121"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_nobody_reads_ends_it_quietly(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = ended(writer, PYTHONUNBUFFERED=unbuffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_on_a_full_disk_is_said():
    with open("/dev/full", "wb") as full:
        done = ended(full)
    assert done.returncode == 2
    assert done.stderr.startswith(b"amir_grpo plan: ")
    assert b"No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE"])
def test_a_place_among_processes_that_is_no_number_is_named(variable):
    work = PRINT.replace("print", "from amir_grpo.system.processes import world_size; world_size(); print")
    done = ended(work=work, **{variable: "first"})
    assert done.returncode == 2
    assert f"The environment's {variable} is 'first'; torchrun".encode() in done.stderr
