"""Work side by side: what each worker sees, and what becomes of jobs that end before their work does."""

import os
import signal
import time
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path

import pytest

from amir_grpo.system import cluster, executors
from amir_grpo.system.cluster import Cluster, ClusterExecutor
from amir_grpo.system.executors import executor_of, run_jobs
from amir_grpo.system.locks import Busy


@dataclass(frozen=True)
class Piece:
    """Work that notes in its folder how often it was begun, and dies the first few times."""

    folder: Path
    label: str
    deaths: int = 0
    error: type[Exception] | None = None

    def begun(self):
        return len(list(self.folder.glob(f"{self.label} *")))


def note(piece):
    (piece.folder / f"{piece.label} {os.getpid()} {time.monotonic_ns()}").touch()
    if piece.begun() <= piece.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    if piece.error:
        raise piece.error(f"{piece.label} is wrong.\nMend it.")


def what_it_sees(piece):
    time.sleep(1)  # long enough for the other worker to take the other
    (piece.folder / piece.label).write_text(os.environ["CUDA_VISIBLE_DEVICES"])


def test_each_worker_sees_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    pieces = [Piece(tmp_path, name) for name in "ab"]
    with executor_of(0, ["2", "5"]) as executor:
        run_jobs("looking", what_it_sees, pieces, executor)
    assert {(tmp_path / name).read_text() for name in "ab"} == {"2", "5"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5"


@pytest.mark.parametrize(
    ("named", "seen", "wanted"),
    [
        (None, 3, ["0", "1", "2"]),
        ("4,7", 2, ["4", "7"]),
        ("GPU-1a", 1, ["GPU-1a"]),
        ("4,-1,7", 1, ["4"]),  # CUDA reads no further than the first that there is not
    ],
)
def test_gpus_are_named_as_cuda_names_them(monkeypatch, named, seen, wanted):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert executors.visible_gpus("auto") == wanted
    assert executors.visible_gpus("cpu") == []


@pytest.fixture
def local(tmp_path):
    return Cluster(tmp_path / "jobs", kind="local")


def test_a_job_that_is_killed_is_submitted_again_and_an_error_comes_back_as_it_was(local, tmp_path):
    """By submitit's local executor: one works, one is killed by SIGKILL twice, one meets an error."""
    good, killed = Piece(tmp_path, "good"), Piece(tmp_path, "killed", deaths=2)
    wrong = Piece(tmp_path, "wrong", error=ValueError)
    with executor_of(local) as executor:
        futures = [executor.submit(note, piece) for piece in (good, killed, wrong)]
        wait(futures, timeout=120)
    assert [piece.begun() for piece in (good, killed, wrong)] == [1, 3, 1]
    assert futures[0].result() is futures[1].result() is None
    with pytest.raises(ValueError, match=r"wrong is wrong.\nMend it."):
        futures[2].result()
    assert not list(local.folder.glob("note-*.json")), "nothing is waited for any more"


def test_a_job_that_always_dies_is_given_up_with_its_log(local, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_ATTEMPTS", 2)
    piece = Piece(tmp_path, "mortal", deaths=99)
    with (
        pytest.raises(
            RuntimeError, match=r"note-mortal has ended 2 times without a result.\nIts last log: .*_log.err"
        ),
        executor_of(local) as executor,
    ):
        run_jobs("dying", note, [piece], executor)
    assert piece.begun() == 2


def test_a_preempted_job_goes_on(local, tmp_path):
    """submitit tells a job by a signal that it will end; the job is put into the queue again."""
    with executor_of(local) as executor:
        future = executor.submit(_wait_for_the_second_time, Piece(tmp_path, "preempted"))
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("preempted *")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        executor._waiting[0].job._interrupt()
        assert future.result(timeout=90) == "the second time"


def _wait_for_the_second_time(piece):
    (piece.folder / f"{piece.label} {os.getpid()} {time.monotonic_ns()}").touch()
    while piece.begun() < 2:
        time.sleep(0.05)
    return "the second time"


def test_what_is_busy_is_tried_again(local, tmp_path):
    """The lock of a machine that died may outlive it for a while."""
    with executor_of(local) as executor:
        assert executor.submit(_busy_at_first, Piece(tmp_path, "busy")).result(timeout=90) == "free"


def _busy_at_first(piece):
    (piece.folder / f"{piece.label} {os.getpid()}").touch()
    if piece.begun() < 2:
        raise Busy("another process")
    return "free"


def test_what_slurm_is_asked_for(tmp_path):
    asked = cluster._parameters(Cluster(tmp_path, partition="a100", gpus=2, cpus=8, memory_gb=64, hours=1.5))
    assert asked == {
        "timeout_min": 90,
        "cpus_per_task": 8,
        "gpus_per_node": 2,
        "mem_gb": 64,
        "slurm_partition": "a100",
        "slurm_additional_parameters": {"requeue": True},
    }


def test_without_sbatch_it_says_where_to_start(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"this machine has none: start on a login node"):
        ClusterExecutor(Cluster(tmp_path))
