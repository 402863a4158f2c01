"""Killed at random moments and started again, a stage ends with what an undisturbed one ends with."""

import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amir_grpo.verify import first_difference

# (stage, what it does); each asks for the ones before it, which are complete in its starting folder
STAGES = ("train", "evaluate", "report")
ROUNDS, KILLS = 4, 5  # of each stage: 20 random moments
PARTS = ("*.part", "*/*.part", "*/*/*.part")


def work(stage, folder, settings):
    """One stage of a run, in a process of its own."""
    import torch

    from amir_grpo import report
    from amir_grpo.experiment import open_run

    torch.set_num_threads(1)
    run = open_run("sandbox", folder, settings)
    if stage == "train":
        run.logs()
    elif stage == "evaluate":
        run.samples()
    else:
        report.policies_result(run)
        report.draw(run)


@pytest.fixture(scope="module")
def server():
    """Forks processes that have imported everything, so that a kill hits work and not imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["amir_grpo.training", "amir_grpo.report", "amir_grpo.engines"])
    return context


@pytest.fixture(scope="module")
def settings(tiny_settings):
    changes = {
        "benchmarks": ["chain3"],
        "save_steps": 1,
        "max_steps": 3,
        "eval_token_budget": 400,
        "report_to": "none",
    }
    return tiny_settings | changes


def do(server, stage, folder, settings, seconds=None):
    """Run a stage to its end, or kill it after some seconds; returns how long it took."""
    begin = time.perf_counter()
    process = server.Process(target=work, args=(stage, folder, settings))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    elif seconds is None:
        assert process.exitcode == 0
    return time.perf_counter() - begin


@pytest.fixture(scope="module")
def undisturbed(server, settings, runs, base):
    """For each stage the folder before it, the folder after it, and how long it took."""
    found, before = {}, runs / "undisturbed 0"
    do(server, "train", runs / "warm", settings)  # the first fork pays for the server's imports
    before.mkdir()
    for number, stage in enumerate(STAGES, start=1):
        after = runs / f"undisturbed {number}"
        shutil.copytree(before, after)
        found[stage] = before, after, do(server, stage, after, settings)
        before = after
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments_and_started_again_it_ends_with_the_same(server, settings, undisturbed, runs, stage):
    before, after, seconds = undisturbed[stage]
    moments = random.Random(stage)
    for number in range(ROUNDS):
        folder = runs / f"killed {stage} {number}"
        shutil.copytree(before, folder)
        for _ in range(KILLS):
            do(server, stage, folder, settings, seconds * moments.random())
        do(server, stage, folder, settings)
        assert first_difference(after, folder) is None
        shutil.rmtree(folder)


def test_a_checkpoint_that_was_cut_off_is_not_taken_for_whole(server, settings, undisturbed, runs):
    _, after, _ = undisturbed["train"]
    folder = runs / "cut off"
    shutil.copytree(after, folder)
    for method in ("grpo", "amir_grpo"):
        (folder / method / "stage.json").unlink()
        last = folder / method / "checkpoints" / "checkpoint-3"
        (last / "rollouts.parquet").unlink()
        (last / "optimizer.pt").write_bytes(b"half")
    do(server, "train", folder, settings)
    assert first_difference(undisturbed["train"][1], folder) is None


@pytest.mark.long
def test_reproduce_killed_twice_at_random_moments_ends_with_the_same(tmp_path):
    """The whole command at the smoke profile, many times; minutes."""
    command = [sys.executable, "-m", "amir_grpo", "reproduce", "--profile", "smoke", "--run_dir"]
    begin = time.perf_counter()
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    seconds, moments = time.perf_counter() - begin, random.Random(0)
    for number in range(5):
        folder = tmp_path / f"killed {number}"
        for _ in range(2):
            process = subprocess.Popen([*command, folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(seconds * moments.random())
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        subprocess.run([*command, folder], check=True, capture_output=True)
        assert first_difference(tmp_path / "whole", folder) is None


def test_nothing_half_written_is_left_under_a_name_that_is_read(undisturbed):
    _, after, _ = undisturbed["report"]
    assert not [path for pattern in PARTS for path in after.glob(pattern)]
    for path in Path(after).rglob("*.json"):
        json.loads(path.read_text())
