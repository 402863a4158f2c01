"""Trainings of two processes, one of which or whose launcher is killed: nothing is left behind, and they go on."""

import random
import time
from functools import partial

import psutil
import pytest

from amir_grpo.runs.verify import first_difference
from tests.launching import exit_code, forked, started
from tests.system.test_processes import FSDP

pytestmark = pytest.mark.xdist_group("server")
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


def train(start, folder, environment, **changes):
    """Start two processes by one of the ways of `tests.launching`; returns their launcher, and where it says what."""
    words = [f"--{name}={value}" for name, value in (SETTINGS | changes).items()]
    said = folder.with_suffix(".said")
    return start("amir_grpo", ["train", "--run_dir", str(folder), *words], 2, environment, said), said


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
    """Kill the launcher or one of the two; returns the seconds until no process is left."""
    ranks, everyone = family(launcher)
    begin = time.perf_counter()
    (launcher if whom == "launcher" else ranks[whom]).kill()
    while not all(ended(process) for process in everyone):
        assert time.perf_counter() - begin < GUARD, [p.cmdline() for p in everyone if not ended(p)]
        time.sleep(0.05)
    assert exit_code(launcher) != 0
    return time.perf_counter() - begin


def wait_for_checkpoints(launcher, said, folder, number):
    while checkpoints(folder) < number:
        assert not ended(psutil.Process(launcher.pid)), said.read_text()[-3000:]
        time.sleep(0.02)


@pytest.fixture(params=["forked", pytest.param("started", marks=pytest.mark.long)])
def start(request):
    """How the processes are started: as a user does, imports and all, in `make test-long`."""
    return partial(forked, request.getfixturevalue("server")) if request.param == "forked" else started


def test_a_killed_launcher_or_process_leaves_nobody_behind_and_the_training_goes_on(start, runs, request):
    folder = runs / f"several, {request.node.callspec.id}"
    launcher, said = train(start, folder, {}, **WITHOUT_END)
    wait_for_checkpoints(launcher, said, folder, 1)
    kill(launcher, "launcher")
    made = {path: path.stat().st_mtime_ns for path in folder.glob("amir_grpo/checkpoints/*/rollouts.parquet")}
    launcher, said = train(start, folder, {}, **WITHOUT_END)
    wait_for_checkpoints(launcher, said, folder, len(made) + 1)
    kill(launcher, 1)
    assert said.read_text().count("amir_grpo train: ") == 1, said.read_text()[-3000:]
    assert {path: path.stat().st_mtime_ns for path in made} == made, "it went on, and did not begin again"


@pytest.mark.endurance
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_killed_at_twenty_moments_it_ends_with_the_same(kind, runs):
    environment = {"ddp": {}, "fsdp": FSDP}[kind]
    whole = runs / f"{kind} undisturbed"
    begin = time.perf_counter()
    assert exit_code(train(started, whole, environment)[0]) == 0
    seconds, moments, slowest = time.perf_counter() - begin, random.Random(kind), 0.0
    for number in range(5):
        folder = runs / f"{kind} killed {number}"
        for whom in (0, 1, "launcher", "launcher"):
            launcher, _ = train(started, folder, environment)
            time.sleep(seconds * moments.random())
            if launcher.poll() is None and len(family(launcher)[0]) == 2:
                slowest = max(slowest, kill(launcher, whom))
            else:
                launcher.kill()
                launcher.wait()
        launcher, said = train(started, folder, environment)
        assert exit_code(launcher) == 0, said.read_text()[-3000:]
        assert first_difference(whole, folder) is None
    print(f"{kind}: at most {slowest:.1f} seconds until nobody was left")
