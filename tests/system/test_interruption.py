"""Signals, in processes of their own: exit code, one line, and no longer than it takes."""

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

ROOT = Path(__file__).parents[2]
BEGIN = "from amir_grpo.system.interruption import ends_with_one_line; import signal, sys, time\n"
GUARD = 300  # seconds: three are promised; a busy machine may take longer, and the work takes 600
WORK = {
    "sleeping": "time.sleep(600)",
    "computing": "while True: pass",
    "swallowing": "while True:\n        try: time.sleep(600)\n        except KeyboardInterrupt: pass",
    "tidying up": "try: time.sleep(600)\n    finally: time.sleep(600)",
    "destroying": "type('Last', (), {'__del__': lambda _: time.sleep(600)})()",
    "failing on the way out": "try: time.sleep(600)\n    finally: raise OSError('a consequence')",
    "naming": "type('A', (), {'b': type('B', (), {'__set_name__': lambda *_: time.sleep(600)})()})",
    "destroying, then working": "type('Last', (), {'__del__': lambda _: time.sleep(600)})(); time.sleep(600)",
}


def test_a_signal_ends_any_work_with_one_line():
    """All at once: three of the eight take the three seconds."""
    started = {}
    for number, (work, line) in itertools.product((signal.SIGINT, signal.SIGTERM), WORK.items()):
        script = f"{BEGIN}with ends_with_one_line('interrupted'):\n    print('begun', flush=True)\n    {line}"
        started[work, number] = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    for process in started.values():
        assert process.stdout.readline() == "begun\n"
    for (_, number), process in started.items():
        process.send_signal(number)
    for (work, number), process in started.items():
        _, errors = process.communicate(timeout=GUARD)
        assert process.returncode == 128 + number, work
        assert errors.split() == ["interrupted"], work


def test_further_signals_on_the_way_out_change_nothing():
    script = BEGIN + (
        "import atexit\n"
        "atexit.register(lambda: (print('ending', flush=True), time.sleep(600)))\n"
        "with ends_with_one_line('interrupted'): print('begun', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    for line in ("begun\n", "ending\n"):
        assert process.stdout.readline() == line
        for number in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
    _, errors = process.communicate(timeout=GUARD)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM), "whichever came first"
    assert errors.split() == ["interrupted"]


def test_what_was_set_before_is_set_again():
    script = BEGIN + (
        "before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)\n"
        "with ends_with_one_line('interrupted'): pass\n"
        "assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
        "assert sys.unraisablehook is sys.__unraisablehook__\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


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
    assert [line for line in errors.splitlines() if line.strip()][-1].startswith("amir_grpo train: interrupted. What")


SMALL = "--sandbox_warmup_steps 120 --max_steps 5000 --dataset_limit 40 --max_completion_length 24"
MANY = "--sandbox_warmup_steps 120 --max_steps 1 --dataset_limit 40 --num_samples 64 --benchmarks chain3 chain6"
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
        f"amir_grpo {name}: interrupted. What"
    )
