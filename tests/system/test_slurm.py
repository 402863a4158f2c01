"""Jobs on a real Slurm: `.ci/slurm` starts one on this machine and runs these tests."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from amir_grpo.runs.run import open_run
from amir_grpo.system.cluster import ClusterOptions, cluster_of

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
TINY = {"max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 16, "dataset_limit": 40}
COMMAND = ["--max_steps", "2", "--eval_limit", "8", "--per_device_train_batch_size", "16", "--num_samples", "4"]


@dataclass(frozen=True)
class Training:
    folder: Path
    label: str = "training"


def train(work):
    work.folder.mkdir(exist_ok=True)
    (work.folder / f"begun {os.environ['SLURM_JOB_ID']} {time.time_ns()}").touch()
    open_run("smoke", work.folder / "run", TINY).train("grpo")


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.2)


def test_a_training_that_is_preempted_ends_with_the_same_results(tmp_path):
    plain = open_run("smoke", tmp_path / "plain", TINY)
    plain.train("grpo")
    work = Training(tmp_path / "work")
    call = cluster_of(ClusterOptions("slurm", slurm_hours=0.5), tmp_path).submit(train, work)
    until(lambda: list(work.folder.glob("run/grpo/checkpoints/checkpoint-1/trainer_state.json")))
    subprocess.run(["scancel", "--signal=USR2", call.job.job_id], check=True)  # as submitit has Slurm announce an end
    call.result()
    assert len(list(work.folder.glob("begun *"))) == 2
    ours, theirs = (load_file(f / "grpo" / "adapter_model.safetensors") for f in (work.folder / "run", plain.folder))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def run(*words):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "amir_grpo", *words], env=environment)


def test_reproduce_by_slurm_ends_with_the_results_of_this_machine(tmp_path):
    for name, options in (("here", []), ("slurm", ["--executor", "slurm", "--slurm_cpus", "1"])):
        assert (
            run("reproduce", "--profile", "smoke", "--run_dir", str(tmp_path / name), *COMMAND, *options).wait() == 0
        )
    assert run("verify", str(tmp_path / "here"), str(tmp_path / "slurm")).wait() == 0


def test_an_interrupted_command_leaves_no_job(tmp_path):
    process = run(
        "reproduce", "--profile", "smoke", "--run_dir", str(tmp_path / "run"), *COMMAND, "--executor", "slurm"
    )
    until(lambda: list(tmp_path.glob("run/.jobs/*_log.out")))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    until(lambda: not subprocess.check_output(["squeue", "--noheader"]), 60)
