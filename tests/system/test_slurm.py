"""Jobs on a real Slurm: `.ci/slurm` starts one on this machine and runs these tests."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from safetensors.numpy import load_file

from amir_grpo.runs.run import open_run
from amir_grpo.system.cluster import Cluster, ClusterExecutor
from amir_grpo.system.executors import executor_of

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
TINY = {"max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 16, "dataset_limit": 40}
COMMAND = ["--max_steps", "2", "--eval_limit", "8", "--per_device_train_batch_size", "16", "--num_samples", "4"]


@dataclass(frozen=True)
class Piece:
    """Work that notes each beginning: the folder holds a file with the process's id for each."""

    folder: Path
    label: str

    def begin(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.label}.{time.time_ns()}").write_text(f"{os.getpid()} {os.environ['SLURM_JOB_ID']}")

    def beginnings(self):
        """(process id, job number) of each beginning."""
        notes = sorted(self.folder.glob(f"{self.label}.*")) if self.folder.exists() else []
        return [tuple(map(int, text.split())) for note in notes if (text := note.read_text())]


def wait_for_another(piece):
    """Work that ends when it has been begun twice."""
    piece.begin()
    while len(piece.beginnings()) < 2:
        time.sleep(0.2)
    return len(piece.beginnings())


def train(piece):
    piece.begin()
    open_run("smoke", piece.folder / "run", TINY).train("grpo")


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.2)
    return found


def by_scancel(process, job):
    subprocess.run(["scancel", str(job)], check=True)


def by_sigkill(process, job):
    os.kill(process, signal.SIGKILL)


def by_preemption(process, job):
    subprocess.run(["scancel", "--signal=USR2", str(job)], check=True)  # as submitit asks Slurm to announce an end


@pytest.fixture
def slurm(tmp_path):
    return Cluster(tmp_path / "jobs", hours=0.5)


@pytest.mark.parametrize("end", [by_scancel, by_sigkill, by_preemption])
def test_a_job_that_is_ended_is_put_into_the_queue_again(slurm, tmp_path, end):
    piece = Piece(tmp_path / "work", end.__name__)
    with executor_of(slurm) as executor:
        future = executor.submit(wait_for_another, piece)
        end(*until(piece.beginnings)[0])
        assert future.result(timeout=600) == 2


@pytest.mark.parametrize("end", [by_scancel, by_sigkill])
def test_a_training_that_is_ended_ends_with_the_same_results(slurm, tmp_path, end):
    plain = open_run("smoke", tmp_path / "plain", TINY)
    plain.train("grpo")
    piece = Piece(tmp_path / "work", "training")
    checkpoints = piece.folder / "run" / "grpo" / "checkpoints"
    with executor_of(slurm) as executor:
        future = executor.submit(train, piece)
        until(lambda: list(checkpoints.glob("checkpoint-1/trainer_state.json")))
        end(*piece.beginnings()[0])
        future.result(timeout=900)
    assert len(piece.beginnings()) == 2
    ours, theirs = (load_file(f / "grpo" / "adapter_model.safetensors") for f in (piece.folder / "run", plain.folder))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    logs = [pd.read_csv(folder / "grpo" / "log.csv")["reward"] for folder in (piece.folder / "run", plain.folder)]
    pd.testing.assert_series_equal(*logs)


def test_who_starts_again_waits_for_the_jobs_that_are_still_there(slurm, tmp_path):
    piece = Piece(tmp_path / "work", "long")
    first = ClusterExecutor(slurm)
    first.submit(wait_for_another, piece)
    until(piece.beginnings)
    (record,) = slurm.folder.glob("*.json")
    with executor_of(slurm) as second:
        future = second.submit(wait_for_another, piece)
        assert second._waiting[0].job.job_id == json.loads(record.read_text())["job"]
        (tmp_path / "work" / "long.second").write_text("0 0")
        assert future.result(timeout=600) == 2
    first._waiting.clear()
    first.shutdown()


def test_an_error_comes_back_as_it_was(slurm):
    with executor_of(slurm) as executor, pytest.raises(ValueError, match="invalid literal"):
        executor.submit(int, "three").result(timeout=600)


def test_reproduce_by_slurm_ends_with_the_results_of_this_machine(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name, options in (("here", []), ("slurm", ["--executor", "slurm", "--slurm_cpus", "1"])):
        words = ["reproduce", "--profile", "smoke", "--run_dir", str(tmp_path / name), *COMMAND, *options]
        done = subprocess.run(
            [sys.executable, "-m", "amir_grpo", *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    words = ["verify", str(tmp_path / "here"), str(tmp_path / "slurm")]
    done = subprocess.run([sys.executable, "-m", "amir_grpo", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
