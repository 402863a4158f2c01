"""Jobs of a cluster that end before their work does, or outlive the command: by submitit's local executor, and by a Slurm
that is made of processes of this machine."""

import os
import signal
import sys
import time
from concurrent.futures import wait
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from amir_grpo.system import cluster
from amir_grpo.system.cluster import Cluster, ClusterExecutor
from amir_grpo.system.executors import executor_of, run_jobs
from amir_grpo.system.locks import Busy

ROOT = Path(__file__).parents[2]

GUARD = 600  # seconds until what should end in a few is taken to hang


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


@pytest.fixture
def local(tmp_path):
    return Cluster(tmp_path / "jobs", kind="local")


def test_a_job_that_is_killed_is_submitted_again_and_an_error_comes_back_as_it_was(local, tmp_path):
    """By submitit's local executor: one works, one is killed by SIGKILL twice, one meets an error."""
    good, killed = Piece(tmp_path, "good"), Piece(tmp_path, "killed", deaths=2)
    wrong = Piece(tmp_path, "wrong", error=ValueError)
    with executor_of(local) as executor:
        futures = [executor.submit(note, piece) for piece in (good, killed, wrong)]
        wait(futures, timeout=GUARD)
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
            ChildProcessError, match=r"note-mortal has ended 2 times without a result.\nIts last log: .*_log.err"
        ),
        executor_of(local) as executor,
    ):
        run_jobs("dying", note, [piece], executor)
    assert piece.begun() == 2


def test_a_preempted_job_goes_on(local, tmp_path):
    """submitit tells a job by a signal that it will end; the job is put into the queue again."""
    with executor_of(local) as executor:
        future = executor.submit(_wait_for_the_second_time, Piece(tmp_path, "preempted"))
        deadline = time.monotonic() + GUARD
        while not list(tmp_path.glob("preempted *")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        executor._waiting[0].job._interrupt()
        assert future.result(timeout=GUARD) == "the second time"


def _wait_for_the_second_time(piece):
    (piece.folder / f"{piece.label} {os.getpid()} {time.monotonic_ns()}").touch()
    while piece.begun() < 2:
        time.sleep(0.05)
    return "the second time"


def test_what_is_busy_is_tried_again(local, tmp_path):
    """The lock of a machine that died may outlive it for a while."""
    with executor_of(local) as executor:
        assert executor.submit(_busy_at_first, Piece(tmp_path, "busy")).result(timeout=GUARD) == "free"


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


# --- Slurm ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Puts fake_slurm.py's commands into the PATH; the folder of its queue."""
    commands, queue = tmp_path / "bin", tmp_path / "queue"
    for folder in (commands, queue):
        folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "srun"):
        fake = Path(__file__).with_name("fake_slurm.py")
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} -S {fake} {name} "$@"\n')
        (commands / name).chmod(0o755)
    (queue / "next").write_text("7")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(queue))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setitem(cluster._POLL_SECONDS, "slurm", 0.2)
    return queue


@pytest.fixture
def jobs(tmp_path):
    return Cluster(tmp_path / "jobs")


def wait_for_the_word(piece):
    """Work that ends when it is told to, with the number of its job."""
    (piece.folder / f"{piece.label} {os.getpid()} {time.monotonic_ns()}").touch()
    while not (piece.folder / f"{piece.label}.ends").exists():
        time.sleep(0.05)
    return os.environ["SLURM_JOB_ID"]


def logs(jobs):
    """What all jobs have written, for the message of a failure."""
    return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(jobs.folder.glob("*_log.*")))


def until(condition):
    deadline = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def begun(piece, times=1):
    until(lambda: piece.begun() >= times)
    return piece


@pytest.fixture
def left(slurm, jobs, tmp_path):
    """A piece of work whose job an earlier process has left in the queue, as number 7."""
    first, piece = ClusterExecutor(jobs), Piece(tmp_path, "left")
    first.submit(wait_for_the_word, piece)
    begun(piece)
    first._waiting.clear()
    first.shutdown()
    yield piece
    (tmp_path / "left.ends").touch()


def test_a_job_that_an_earlier_process_has_left_is_waited_for(left, jobs, tmp_path):
    with executor_of(jobs) as executor:
        future = executor.submit(wait_for_the_word, left)
        (tmp_path / "left.ends").touch()
        assert future.result(timeout=GUARD) == "7"
    assert left.begun() == 1


@pytest.mark.parametrize(
    "name", ["another", "wait-for-the-word-left-01234567"], ids=["of another job", "of another folder"]
)
def test_a_number_that_slurm_has_given_to_another_job_is_not_waited_for(left, jobs, slurm, tmp_path, name):
    (slurm / "7").write_text(name)
    (tmp_path / "left.ends").touch()
    with executor_of(jobs) as executor:
        assert executor.submit(wait_for_the_word, left).result(timeout=GUARD) == "8"


def test_a_job_that_is_left_with_other_settings_is_refused_by_its_number(left, jobs, slurm):
    executor = ClusterExecutor(jobs)
    with pytest.raises(Busy, match=r"The job 7 .* does wait-for-the-word-left with other settings.\n.*scancel 7"):
        executor.submit(wait_for_the_word, replace(left, deaths=1))
    executor.shutdown()
    assert sorted(path.name for path in slurm.glob("[0-9]*")) == ["7", "7.pid"], "nothing was submitted or cancelled"


def test_a_queue_that_does_not_answer_at_the_start_is_asked_again(left, jobs, slurm, tmp_path, monkeypatch):
    (slurm / "silent").touch()
    with monkeypatch.context() as impatient:
        impatient.setattr(cluster, "_PATIENCE", 0.5)
        executor = ClusterExecutor(jobs)
        with pytest.raises(TimeoutError, match=r"squeue does not answer, and jobs of an earlier command"):
            executor.submit(wait_for_the_word, left)
        executor.shutdown()
    plain = time.sleep
    monkeypatch.setattr(cluster.time, "sleep", lambda s: ((slurm / "silent").unlink(missing_ok=True), plain(s)))
    (tmp_path / "left.ends").touch()
    with executor_of(jobs) as executor:
        assert executor.submit(wait_for_the_word, left).result(timeout=GUARD) == "7"


@pytest.mark.parametrize("how", ["it fails", "it is gone"])
def test_a_queue_that_does_not_answer_for_a_while_ends_nothing(slurm, jobs, tmp_path, capsys, monkeypatch, how):
    piece, path = Piece(tmp_path, "patient"), os.environ["PATH"]
    with executor_of(jobs) as executor:
        future = executor.submit(wait_for_the_word, piece)
        begun(piece)
        # a machine may have a squeue of its own
        (slurm / "silent").touch() if how == "it fails" else monkeypatch.setenv("PATH", str(tmp_path))
        said = ""
        while "squeue does not answer" not in said:
            said += capsys.readouterr().err
            time.sleep(0.1)
        (slurm / "silent").unlink() if how == "it fails" else monkeypatch.setenv("PATH", path)
        while "squeue answers again" not in said:
            said += capsys.readouterr().err
            time.sleep(0.1)
        (tmp_path / "patient.ends").touch()
        wait([future], timeout=GUARD)
        ended = future.done() and (future.exception() or future.result())
        assert ended == "7", said + capsys.readouterr().err + logs(jobs)
    assert said.count("squeue") == 2, "once each"


def test_a_job_that_is_cancelled_goes_on_in_another_and_it_is_said(slurm, jobs, tmp_path, capsys):
    piece = Piece(tmp_path, "cancelled")
    with executor_of(jobs) as executor:
        future = executor.submit(wait_for_the_word, piece)
        begun(piece)
        os.system("scancel 7")
        begun(piece, 2)
        (tmp_path / "cancelled.ends").touch()
        ended = future.result(timeout=GUARD)
    said = capsys.readouterr().err
    assert ended == "8", said + logs(jobs)
    assert "job 7 has ended without a result (killed, cancelled" in said
    assert "goes on as job 8, 2 of at most 10; Ctrl-C ends" in said


def test_jobs_end_with_the_command(slurm, jobs, tmp_path):
    pieces = [Piece(tmp_path, name) for name in "ab"]
    executor = ClusterExecutor(jobs)
    futures = [executor.submit(wait_for_the_word, piece) for piece in pieces]
    for piece in pieces:
        begun(piece)
    executor.shutdown(cancel_futures=True)
    assert all(future.exception() for future in futures)
    assert not [job for job in slurm.glob("[0-9]*") if job.suffix != ".pid"]
    assert not list(jobs.folder.glob("wait*.json"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_jobs_end_with_a_block_that_does_not_wait_for_them(slurm, jobs, tmp_path, error):
    piece, futures = Piece(tmp_path, "interrupted"), []

    def interrupted():
        with executor_of(jobs) as executor:
            futures.append(executor.submit(wait_for_the_word, piece))
            begun(piece)
            raise error

    with pytest.raises(error):
        interrupted()
    assert str(futures[0].exception()) == "cancelled"
    assert not [job for job in slurm.glob("[0-9]*") if job.suffix != ".pid"]


def test_what_slurm_refuses_is_said_in_its_words(slurm, jobs):
    executor = ClusterExecutor(replace(jobs, partition="none"))
    with pytest.raises(
        ValueError, match=r"refuses the job .*: sbatch: error: invalid partition .*\n.*options --slurm_"
    ):
        executor.submit(int, "3")
    executor.shutdown()


@pytest.mark.long
def test_evidence_by_slurm_is_that_of_this_machine(slurm, tmp_path):
    """A study of one training: its base policy's job and its own, whose results are those of this process."""
    from amir_grpo.study.experiment import make_runs
    from amir_grpo.study.kept_runs import read_run
    from amir_grpo.study.plan import read_plan
    from amir_grpo.study.schedule import runs_in_order

    changes = {"max_steps": 2, "dataset_limit": 40, "eval_limit": 4, "num_samples": 4, "ks": [1, 2]}
    changes |= {"num_generations": 4, "per_device_train_batch_size": 16}
    kept = []
    for place, workers in ((tmp_path / "here", 1), (tmp_path / "slurm", Cluster(tmp_path / "slurm" / ".jobs"))):
        runs = runs_in_order(read_plan(), "pilot", place, ["clean/grpo"], [1], changes)
        make_runs(runs, place / "results", workers)
        kept.append({path.name: read_run(path).record["digests"] for path in (place / "results").glob("*.zip")})
    assert len(kept[0]) == 2
    assert kept[0] == kept[1]
    assert (slurm / "next").read_text() == "9", "a job for each"
