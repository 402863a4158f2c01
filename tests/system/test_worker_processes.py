"""Work side by side in processes of this machine: what each worker sees."""

import os
import time

import pytest

from amir_grpo.system import cluster
from amir_grpo.system.cluster import run_jobs, submitting
from tests.system.test_cluster import GUARD, Piece


def what_it_sees(piece):
    (piece.folder / piece.label).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    while len(list(piece.folder.iterdir())) < 2:  # until the other worker has taken the other
        time.sleep(0.05)


@pytest.mark.timeout(GUARD)
def test_each_worker_sees_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    pieces = [Piece(tmp_path, name) for name in "ab"]
    with submitting(0, ["2", "5"]) as submit:
        run_jobs("looking", what_it_sees, pieces, submit)
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
    assert cluster.visible_gpus("auto") == wanted
    assert cluster.visible_gpus("cpu") == []


def is_killed(piece):
    os._exit(9)


@pytest.mark.timeout(GUARD)
def test_a_worker_that_is_killed_is_told_in_words(tmp_path):
    pieces = [Piece(tmp_path, name) for name in "ab"]
    with (
        pytest.raises(ChildProcessError, match=r"worker process has been killed.*\n.*fewer workers"),
        submitting(2) as submit,
    ):
        run_jobs("dying", is_killed, pieces, submit)
