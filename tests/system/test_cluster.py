"""Jobs of a cluster, by submitit's local executor, and by a Slurm that is made of processes of this machine."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import submitit

from amir_grpo import cli
from amir_grpo.options import parse
from amir_grpo.system.cluster import Cluster, ClusterOptions, cluster_of, results_of, run_jobs, submitting

ROOT = Path(__file__).parents[2]
GUARD = 600  # seconds until what should end in a few is taken to hang
pytestmark = pytest.mark.timeout(GUARD)


@dataclass(frozen=True)
class Piece:
    """Work that notes in its folder how often it was begun."""

    folder: Path
    label: str

    def begin(self):
        (self.folder / f"{self.label} {os.getpid()} {time.monotonic_ns()}").touch()

    def begun(self, times=1):
        while len(list(self.folder.glob(f"{self.label} *"))) < times:
            time.sleep(0.05)
        return self


def note(piece):
    piece.begin()
    return f"{piece.label} is done"


def die(piece):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(piece):
    raise ValueError(f"{piece.label} is wrong.\nMend it.")


def wait_for_the_second_time(piece):
    piece.begin()
    piece.begun(2)
    return "the second time"


@pytest.fixture
def local(tmp_path):
    return Cluster(submitit.AutoExecutor(tmp_path / "jobs", cluster="local"))


def test_results_and_errors_come_back_as_they_were(local, tmp_path):
    pieces = [Piece(tmp_path, name) for name in "ab"]
    with submitting(local) as submit:
        assert dict(results_of(note, pieces, submit)) == {piece: f"{piece.label} is done" for piece in pieces}
        with pytest.raises(ValueError, match=r"[ab] is wrong\.\nMend it\."):
            run_jobs("failing", fail, pieces, submit)


def test_a_job_that_is_killed_is_told_with_its_log(local, tmp_path, monkeypatch):
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)
    with (
        submitting(local) as submit,
        pytest.raises(ChildProcessError, match=r"without a result.*\nIts log: .*_log.err\nCompleted work is kept"),
    ):
        run_jobs("dying", die, [Piece(tmp_path, "mortal")], submit)


def test_a_preempted_job_is_called_again(local, tmp_path):
    """By what submitit submits anew when Slurm says that the job will end; `.ci/slurm` has a real one do it."""
    piece = Piece(tmp_path, "preempted")
    call = local.submit(note, piece)
    call.result()
    submitted = call.job.submission()
    again = submitted.function.checkpoint(*submitted.args, **submitted.kwargs)
    assert again.result() == ("preempted is done", None)
    piece.begun(2)


# --- Slurm ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Puts fake_slurm.py's commands into the PATH; the folder of its queue."""
    commands, queue = tmp_path / "bin", tmp_path / "queue"
    for folder in (commands, queue):
        folder.mkdir()
    for name in ("sbatch", "sacct", "scancel", "srun"):
        fake = Path(__file__).with_name("fake_slurm.py")
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} -S {fake} {name} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(queue))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return queue


def test_slurm_gets_what_is_asked_for(slurm, tmp_path):
    options = ClusterOptions("slurm", "a100", "me", slurm_gpus=2, slurm_cpus=8, slurm_memory_gb=64, slurm_hours=1.5)
    assert cluster_of(options, tmp_path).submit(note, Piece(tmp_path, "a piece")).result() == "a piece is done"
    asked = (slurm / "7.job").read_text()
    wanted = "job-name=a-piece partition=a100 account=me gpus-per-node=2 cpus-per-task=8 mem=64GB time=90 requeue"
    assert all(f"#SBATCH --{option}\n" in asked for option in wanted.split())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_jobs_end_with_the_command(slurm, tmp_path, error):
    cluster, pieces = cluster_of(ClusterOptions("slurm"), tmp_path), [Piece(tmp_path, name) for name in "abc"]
    cluster.submit(note, Piece(tmp_path, "first")).result()

    def submit(do, piece):
        call = cluster.submit(do, piece)
        piece.begun()
        if piece.label == "c":
            call.cancel()
            raise error
        return call

    with pytest.raises(error):
        list(results_of(wait_for_the_second_time, pieces, submit))
    assert [(slurm / f"{number}.ended").read_text() for number in (8, 9, 10)] == ["CANCELLED"] * 3


def test_what_slurm_refuses_is_said_in_its_words(slurm, tmp_path):
    cluster = cluster_of(ClusterOptions("slurm", slurm_partition="none"), tmp_path)
    with pytest.raises(
        ValueError, match=r"refuses the job a: sbatch: error: invalid partition .*\n.*options --slurm_"
    ):
        cluster.submit(note, Piece(tmp_path, "a"))


@pytest.mark.parametrize(
    "word", ["--slurm_cpus=0", "--slurm_gpus=-1", "--slurm_memory_gb=0", "--slurm_hours=nan", "--slurm_hours=0"]
)
def test_what_no_job_can_have_is_refused(word):
    with pytest.raises(ValueError, match=word.partition("=")[0].lstrip("-")):
        parse("reproduce", cli.reproduce, [word])


def test_without_sbatch_it_says_where_to_start(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs submitit .* and sbatch: .*\nStart on a login node"):
        cluster_of(ClusterOptions("slurm"), tmp_path)
