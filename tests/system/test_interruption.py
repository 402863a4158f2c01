"""Signals, in processes of their own: exit code, one line, and no longer than it takes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BEGIN = "from amir_grpo.system.interruption import ends_with_one_line; import signal, sys, time\n"
WORK = {
    "sleeping": "time.sleep(600)",
    "computing": "while True: pass",
    "swallowing": "while True:\n        try: time.sleep(600)\n        except KeyboardInterrupt: pass",
    "tidying up": "try: time.sleep(600)\n    finally: time.sleep(600)",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("work", WORK)
def test_a_signal_ends_any_work_with_one_line(work, number):
    script = f"{BEGIN}with ends_with_one_line('interrupted'):\n    print('begun', flush=True)\n    {WORK[work]}"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)  # of the three seconds that it may take; the machine may be busy
    assert process.returncode == 128 + number
    assert errors.split() == ["interrupted"]


def test_what_was_set_before_is_set_again():
    script = BEGIN + (
        "before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)\n"
        "with ends_with_one_line('interrupted'): pass\n"
        "assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_with_one_line(number, runs, tiny_settings):
    settings = tiny_settings | {"max_steps": 500}
    words = [f"--{name}={value}" for name, value in settings.items() if isinstance(value, int | float)]
    command = [sys.executable, "-m", "amir_grpo", "train", "--run_dir", str(runs / f"signal {number}"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    said = ""
    while "amir_grpo:" not in said:  # its progress bar: it trains
        said += process.stderr.read(1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.strip()][-1].startswith("amir_grpo train: interrupted. What")
