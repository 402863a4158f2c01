"""Signals, in processes of their own: exit code, one line, and no longer than it takes."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    "destroying, then working": "type('Last', (), {'__del__': lambda _: time.sleep(600)})(); time.sleep(600)",
}


def test_a_signal_ends_any_work_with_one_line():
    """All at once: three of the six take the three seconds."""
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
