"""Trainings of two processes, one of which or whose launcher is killed: nothing is left behind, and they go on."""

import os
import random
import subprocess
import sys
import time

import psutil
import pytest

from amir_grpo.runs.verify import first_difference
from tests.system.test_processes import FSDP, ROOT, TORCHRUN

pytestmark = pytest.mark.xdist_group("several processes")
STEPS = 5
SETTINGS = {
    "per_device_train_batch_size": 8,
    "sandbox_warmup_steps": 120,
    "max_steps": STEPS,
    "save_steps": 1,
    "save_total_limit": 2,
    "dataset_limit": 40,
    "max_completion_length": 24,
    "reward_margin": 0.1,
}
# An ordinary end takes seconds. Whoever is left by then trains on: a training without end is in the midst of its steps.
GUARD = 120
WITHOUT_END = {"max_steps": 5000, "save_total_limit": 20}


def start(folder, environment, **changes):
    words = [f"--{name}={value}" for name, value in (SETTINGS | changes).items()]
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, "-m", "amir_grpo", "train", "--run_dir", str(folder), *words],
        env=os.environ | environment | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def family(launcher):
    """The launcher's processes: the two that train, and all."""
    everyone = psutil.Process(launcher.pid).children(recursive=True)
    return [process for process in everyone if process.ppid() == launcher.pid], everyone


def checkpoints(folder):
    return len(list(folder.glob("amir_grpo/checkpoints/*/rollouts.parquet")))


def ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(launcher, whom):
    """Kill the launcher or one of the two; returns the seconds until no process is left, and what was said."""
    ranks, everyone = family(launcher)
    begin = time.perf_counter()
    (launcher if whom == "launcher" else ranks[whom]).kill()
    said = []
    while not all(ended(process) for process in everyone):
        assert time.perf_counter() - begin < GUARD, [p.cmdline() for p in everyone if not ended(p)]
        time.sleep(0.05)
    said, _ = launcher.communicate(timeout=60)
    return time.perf_counter() - begin, said


def wait_for_checkpoints(launcher, folder, number):
    while checkpoints(folder) < number:
        assert launcher.poll() is None, launcher.stdout.read()[-3000:]
        time.sleep(0.02)


def test_a_killed_launcher_or_process_leaves_nobody_behind_and_the_training_goes_on(runs):
    folder = runs / "killed in several processes"
    launcher = start(folder, {}, **WITHOUT_END)
    wait_for_checkpoints(launcher, folder, 1)
    kill(launcher, "launcher")
    made = {path: path.stat().st_mtime_ns for path in folder.glob("amir_grpo/checkpoints/*/rollouts.parquet")}
    launcher = start(folder, {}, **WITHOUT_END)
    wait_for_checkpoints(launcher, folder, len(made) + 1)
    _, said = kill(launcher, 1)
    assert said.count("amir_grpo train: ") == 1, said[-3000:]
    assert {path: path.stat().st_mtime_ns for path in made} == made, "it went on, and did not begin again"


@pytest.mark.endurance
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_killed_at_twenty_moments_it_ends_with_the_same(kind, runs):
    environment = {"ddp": {}, "fsdp": FSDP}[kind]
    whole = runs / f"{kind} undisturbed"
    begin = time.perf_counter()
    assert start(whole, environment).wait() == 0
    seconds, moments, slowest = time.perf_counter() - begin, random.Random(kind), 0.0
    for number in range(5):
        folder = runs / f"{kind} killed {number}"
        for whom in (0, 1, "launcher", "launcher"):
            launcher = start(folder, environment)
            time.sleep(seconds * moments.random())
            if launcher.poll() is None and len(family(launcher)[0]) == 2:
                slowest = max(slowest, kill(launcher, whom)[0])
            else:
                launcher.kill()
                launcher.communicate()
        launcher = start(folder, environment)
        said, _ = launcher.communicate()
        assert launcher.returncode == 0, said[-3000:]
        assert first_difference(whole, folder) is None
    print(f"{kind}: at most {slowest:.1f} seconds until nobody was left")
