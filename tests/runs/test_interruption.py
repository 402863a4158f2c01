"""Killed at random moments and started again, a stage ends with what an undisturbed one ends with."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from amir_grpo.runs.run import open_run
from amir_grpo.runs.training import last_whole_checkpoint
from amir_grpo.runs.verify import first_difference
from amir_grpo.study.kept import load_study

pytestmark = pytest.mark.xdist_group("server")

ROOT = Path(__file__).parents[2]
# each asks for the ones before it, which are complete in its starting folder
STAGES = ("train", "evaluate", "report")


def work(stage, folder, settings):
    """One stage of a run, in a process of its own; none: nothing."""
    if not stage:
        return
    import torch

    from amir_grpo.results import figures, tables
    from amir_grpo.runs.run import open_run

    torch.set_num_threads(1)
    run = open_run("sandbox", folder, settings)
    if stage == "train":
        run.logs()
    elif stage == "evaluate":
        run.samples()
    else:
        run.scores()
        comparisons = tables.comparison_table(run.samples(), greedy=run.samples(greedy=True))
        run.save_table(comparisons, "comparisons")
        run.save_figure(figures.pairwise_figure(comparisons), "comparisons")


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
    do(server, None, runs, settings)  # the first fork pays for the server's imports
    before.mkdir()
    for number, stage in enumerate(STAGES, start=1):
        after = runs / f"undisturbed {number}"
        shutil.copytree(before, after)
        found[stage] = before, after, do(server, stage, after, settings)
        before = after
    return found


@pytest.mark.parametrize(("times", "kills"), [(1, 3), pytest.param(4, 5, marks=pytest.mark.long)])
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments_and_started_again_it_ends_with_the_same(
    server, settings, undisturbed, runs, stage, times, kills
):
    (before, after, seconds), moments = undisturbed[stage], random.Random(stage)
    for number in range(times):
        folder = runs / f"killed {stage} {times} {number}"
        shutil.copytree(before, folder)
        for _ in range(kills):
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


def test_a_training_killed_after_its_last_step_is_not_given_another(server, settings, undisturbed, runs):
    _, after, _ = undisturbed["train"]
    folder = runs / "after the last step"
    shutil.copytree(after, folder)
    files = {path.name for path in (after / "grpo").iterdir()}
    for method in ("grpo", "amir_grpo"):
        for path in (folder / method).iterdir():
            if path.is_file():
                path.unlink()
    do(server, "train", folder, settings)
    assert first_difference(after, folder) is None
    assert {path.name for path in (folder / "grpo").iterdir()} == files
    shutil.rmtree(folder)


def flip(path, where=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors", "rollouts.parquet", "checksums.json"])
def test_a_checkpoint_with_a_flipped_byte_is_named_and_the_one_before_it_taken(name, undisturbed, tmp_path, capsys):
    _, after, _ = undisturbed["train"]
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(after / "grpo" / "checkpoints", checkpoints)
    assert last_whole_checkpoint(checkpoints) == checkpoints / "checkpoint-3"
    flip(checkpoints / "checkpoint-3" / name, 0.0 if name == "checksums.json" else 0.5)
    assert last_whole_checkpoint(checkpoints) == checkpoints / "checkpoint-2"
    assert f"{checkpoints / 'checkpoint-3' / name} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "log.csv"])
def test_a_trained_file_with_a_flipped_byte_is_named_and_may_be_made_again(name, settings, undisturbed, runs):
    _, after, _ = undisturbed["train"]
    folder = runs / f"flipped {name}"
    shutil.copytree(after, folder)
    flip(folder / "grpo" / name)
    run = open_run("sandbox", folder, settings)
    with pytest.raises(ValueError, match=rf"{name} is damaged or missing[^\n]*\nRestore it, or delete .*stage\.json"):
        run.train("grpo")
    (folder / "grpo" / "stage.json").unlink()
    run.train("grpo")
    assert first_difference(after, folder) is None
    shutil.rmtree(folder)


CHANGES = "--max_steps 2 --dataset_limit 40 --eval_limit 4 --eval_max_new_tokens 24 --per_device_train_batch_size 32"
EVIDENCE = f"evidence {CHANGES} --workers 2 --arms clean/grpo clean/mixture-0.6 --seeds 0 1 --results kept --folder"


@pytest.mark.endurance
@pytest.mark.parametrize(
    ("words", "times", "kills"), [(EVIDENCE, 4, 5), ("reproduce --profile smoke --run_dir", 10, 2)]
)
def test_a_whole_command_killed_at_twenty_moments_ends_with_the_same(tmp_path, words, times, kills):
    """Minutes each."""

    def start(name):
        (tmp_path / name).mkdir(exist_ok=True)
        command = [sys.executable, "-m", "amir_grpo", *words.split(), "run"]
        place = {"cwd": tmp_path / name, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **place)

    def finish(name):
        process = start(name)
        said = process.communicate()[0].decode()
        assert process.returncode == 0, said[-2000:]

    begin = time.perf_counter()
    finish("whole")
    seconds, moments = time.perf_counter() - begin, random.Random(words)
    for number in range(times):
        for _ in range(kills):
            process = start(f"killed {number}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=seconds * moments.random())
            process.kill()
            process.communicate()
        finish(f"killed {number}")
        whole, killed = tmp_path / "whole", tmp_path / f"killed {number}"
        if "evidence" not in words:
            assert first_difference(whole / "run", killed / "run") is None
            continue
        whole, killed = load_study(whole / "kept"), load_study(killed / "kept")
        assert set(whole.runs["path"]) == {"clean/base", "clean/grpo", "clean/mixture-0.6"}
        for name, table in whole.tables.items():
            pd.testing.assert_frame_equal(table, killed.tables[name])
