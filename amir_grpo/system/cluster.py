"""Work as jobs of Slurm, by submitit, on a file system that all machines share.

A job that is preempted, runs out of time, is killed or is cancelled goes into the queue again and resumes where it stood, so
what it does must read back what is complete. The process that waits for the jobs may be killed as well: started again, it
waits for those that are still in the queue and submits the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from amir_grpo.system.files import write_text
from amir_grpo.system.locks import Busy, unseen_by_others
from amir_grpo.system.shipped import install_command

if TYPE_CHECKING:
    import submitit

_ATTEMPTS = 10  # of a job that ends without a result
_TIMEOUTS = 1000  # of a job whose hours are over; submitit's own limit is 3
_POLL_SECONDS = {"slurm": 5.0, "local": 0.2}
_PATIENCE = 300.0  # seconds for squeue to answer when a command starts; later on, as long as it takes


@dataclass(frozen=True)
class Cluster:
    """Where jobs run, and what each of them gets.

    Attributes:
        folder: On a file system that all machines share; gets what is submitted, and the logs.
        kind: slurm; local is submitit's executor of processes of this machine, by which the rest can be tested.
        partition, account: Slurm's; None for the user's defaults.
        gpus, cpus: Of each job.
        memory_gb: Of each job; None for the partition's default.
        hours: After these a job is put into the queue again.
    """

    folder: Path
    kind: str = "slurm"
    partition: str | None = None
    account: str | None = None
    gpus: int = 0
    cpus: int = 1
    memory_gb: int | None = None
    hours: float = 4.0


@dataclass(frozen=True)
class _Resumable:
    """A function for a job: put into the queue again, it is called again. Its error comes back as a value."""

    do: Callable

    def __call__(self, *arguments: Any) -> tuple[Any, Exception | None]:
        try:
            return self.do(*arguments), None
        except Exception as error:
            return None, error

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit submits when it is told that the job will end."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


@dataclass(eq=False)
class _Waiting:
    """A call whose result is waited for.

    Attributes:
        future: Gets the result.
        call: The function and its arguments.
        record: Names the call's job while it is waited for.
        job: Its latest job.
        attempts: Number of its jobs so far.
        missed: How many times in a row the queue has not held the job.
    """

    future: Future
    call: tuple
    record: Path
    job: submitit.Job
    attempts: int = 1
    missed: int = 0


class ClusterExecutor(Executor):
    """Submits each call as a job of a cluster, and submits it again where the job ends without a result.

    A future raises what its call raises, and ChildProcessError where the jobs of the call end without a result.

    Raises:
        ValueError: If submitit is not installed, or this machine submits no jobs.
    """

    def __init__(self, cluster: Cluster) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ValueError(
                f"executor=slurm needs submitit: {install_command('cluster')}. Or set executor to local."
            ) from error
        self._cluster = cluster
        try:
            self._submitit = submitit.AutoExecutor(
                cluster.folder, cluster=cluster.kind, **{f"{cluster.kind}_max_num_timeout": _TIMEOUTS}
            )
        except RuntimeError as error:
            raise ValueError(
                "executor=slurm submits jobs with sbatch, and this machine has none: start on a login node of the cluster,\n"
                "or set executor to local."
            ) from error
        self._submitit.update_parameters(**_parameters(cluster))
        mounts = Path("/proc/mounts")
        if mounts.exists() and (trouble := unseen_by_others(cluster.folder.resolve(), mounts.read_text())):
            warnings.warn(f"{trouble}. Run one command at a time in {cluster.folder.parent}.", stacklevel=2)
        self._waiting: list[_Waiting] = []
        self._change = threading.Lock()
        self._submitting = threading.Lock()
        self._closing = False
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, do: Callable, /, *arguments: Any) -> Future:
        """Submit a call as a job; where an earlier process has left the same call in the queue, wait for that job.

        It is the same if Slurm's queue holds a job of this user with the recorded number and the name that stands for the
        record's place, and what was submitted is equal to the call.

        Raises:
            Busy: If the queue holds a job that an earlier process has left of the same label, but with other arguments.
            TimeoutError: If an earlier process has left a job, and Slurm does not say whether its queue still holds it.
            ValueError: If Slurm refuses the job.
        """
        name = getattr(do, "__name__", type(do).__name__).strip("_")
        label = getattr(arguments[0], "label", str(arguments[0])) if arguments else ""
        record = self._cluster.folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', f'{name} {label}')}.json"
        call = (_Resumable(do), *arguments)
        future: Future = Future()
        future.set_running_or_notify_cancel()
        job = self._in_queue(call, record) or self._submit(call, record)
        with self._change:
            self._waiting.append(_Waiting(future, call, record, job))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for all jobs, or cancel them."""
        if cancel_futures:
            with self._change:
                waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.job.cancel(check=False)
                each.record.unlink(missing_ok=True)
                each.future.set_exception(RuntimeError("cancelled"))
        self._closing = True
        if wait and threading.current_thread() is not self._watcher:
            self._watcher.join()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all jobs, or cancel them where the block has failed or was interrupted."""
        self.shutdown(cancel_futures=kind is not None)

    def _submit(self, call: tuple, record: Path) -> submitit.Job:
        from submitit.core.utils import FailedJobError

        with self._submitting:  # the name is the executor's until the job is there
            self._submitit.update_parameters(name=_name_of(record))
            try:
                job = self._submitit.submit(*call)
            except FailedJobError as error:
                said = [line.strip() for line in str(error).splitlines() if "error:" in line] or [str(error).strip()]
                raise ValueError(
                    f"Slurm refuses the job {record.stem}: {said[0]}\nSee the options --slurm_…."
                ) from error
            write_text(record, json.dumps({"job": job.job_id}) + "\n")
        return job

    def _in_queue(self, call: tuple, record: Path) -> submitit.Job | None:
        """The job of a record that an earlier process has left, where the queue still holds it."""
        if self._cluster.kind != "slurm" or not record.exists():
            return None
        from submitit import SlurmJob

        number = json.loads(record.read_text(encoding="utf-8"))["job"]
        if self._left.get(number) != _name_of(record):  # Slurm gives its numbers out again
            return None
        job = SlurmJob(self._cluster.folder, number)
        if _submitted(job) != call:
            raise Busy(
                f"The job {number} of an earlier command is still in the queue; it does {record.stem} with other settings.\n"
                f"Wait for it, end it (scancel {number}), or give another folder."
            )
        return job

    @cached_property
    def _left(self) -> dict[str, str]:
        """This user's jobs in the queue at the start: names by numbers."""
        end = time.monotonic() + _PATIENCE
        while (queue := _queue()) is None:
            if time.monotonic() > end:
                folder = self._cluster.folder.parent
                raise TimeoutError(
                    f"squeue does not answer, and jobs of an earlier command in {folder} may still be in its queue.\n"
                    "Start again when it does."
                )
            time.sleep(_POLL_SECONDS["slurm"])
        return queue

    def _watch(self) -> None:
        answered = True
        while self._waiting or not self._closing:
            time.sleep(_POLL_SECONDS[self._cluster.kind])
            with self._change:
                waiting = list(self._waiting)
            queue = None
            if waiting and self._cluster.kind == "slurm":
                queue = _queue()
                if (queue is not None) != answered:
                    answered = not answered
                    _say(
                        "squeue answers again." if answered else "squeue does not answer; it is asked again and again."
                    )
            for each in waiting:
                try:
                    self._look(each, queue)
                except Exception as error:  # such as a submission that Slurm refuses
                    self._end(each, None, error)

    def _look(self, each: _Waiting, queue: dict[str, str] | None) -> None:
        """Take the result of a job where there is one; submit the job again where it is gone without one.

        Args:
            each: What is waited for.
            queue: From `_queue`.
        """
        path = each.job.paths.result_pickle
        if path.exists():
            from submitit.core.utils import pickle_load

            how, outcome = pickle_load(path)
            if how != "success":
                log = each.job.paths.stderr
                self._end(each, None, ChildProcessError(f"{str(outcome).strip().splitlines()[-1]}\nIts log: {log}"))
            elif isinstance(outcome[1], Busy) and each.attempts < _ATTEMPTS:
                # a dead machine's lock outlives it a while
                self._again(each, "found the work in progress elsewhere")
            else:
                self._end(each, *outcome)
            return
        each.missed = 0 if self._is_alive(each.job, queue) else each.missed + 1
        if each.missed < 2:  # a result may be seen later than the job's end
            return
        if each.attempts < _ATTEMPTS:
            self._again(each, "has ended without a result (killed, cancelled, or lost with its machine)")
            return
        gone = f"The job {each.record.stem} has ended {_ATTEMPTS} times without a result."
        self._end(each, None, ChildProcessError(f"{gone}\nIts last log: {each.job.paths.stderr}"))

    def _is_alive(self, job: submitit.Job, queue: dict[str, str] | None) -> bool:
        if self._cluster.kind == "slurm":
            return queue is None or job.job_id in queue
        return job.state == "RUNNING"

    def _again(self, each: _Waiting, why: str) -> None:
        job = self._submit(each.call, each.record)
        _say(
            f"{each.record.stem}: job {each.job.job_id} {why}. It goes on as job {job.job_id}, {each.attempts + 1} of at "
            f"most {_ATTEMPTS}; Ctrl-C ends the command and its jobs."
        )
        with self._change:
            each.job, each.attempts, each.missed = job, each.attempts + 1, 0
            cancelled = each not in self._waiting
        if cancelled:  # while it was submitted
            job.cancel(check=False)
            each.record.unlink(missing_ok=True)

    def _end(self, each: _Waiting, value: Any, error: Exception | None) -> None:
        with self._change:
            if each not in self._waiting:  # cancelled meanwhile
                return
            self._waiting.remove(each)
        each.record.unlink(missing_ok=True)
        if error is None:
            each.future.set_result(value)
        else:
            each.future.set_exception(error)


def _parameters(cluster: Cluster) -> dict[str, Any]:
    """What submitit is to ask for."""
    asked: dict[str, Any] = {"timeout_min": max(1, round(60 * cluster.hours)), "cpus_per_task": cluster.cpus}
    if cluster.gpus:
        asked["gpus_per_node"] = cluster.gpus
    if cluster.memory_gb:
        asked["mem_gb"] = cluster.memory_gb
    if cluster.kind == "slurm":
        named = {"slurm_partition": cluster.partition, "slurm_account": cluster.account}
        asked |= {name: value for name, value in named.items() if value}
        asked["slurm_additional_parameters"] = {"requeue": True}  # where the cluster's default is not to
    return asked


def _submitted(job: submitit.Job) -> tuple | None:
    """The function and the arguments of a job; None where they cannot be read, as by another version of the package."""
    try:
        submission = job.submission()
    except Exception:  # unpickling can fail in many ways
        return None
    return submission.function, *submission.args


def _name_of(record: Path) -> str:
    """The name of a record's jobs: what they do, and a hash of where, which tells them from those of other folders."""
    return f"{record.stem[:50]}-{hashlib.sha256(os.fsencode(record.resolve())).hexdigest()[:8]}"


def _queue() -> dict[str, str] | None:
    """This user's jobs in Slurm's queue, waiting or running: names by numbers; None where it does not answer."""
    asked = ["squeue", "--noheader", "--format=%i %j", f"--user={os.getuid()}"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return {number: name for number, _, name in (line.strip().partition(" ") for line in done.stdout.splitlines())}


def _say(line: str) -> None:
    """Print a line to the error stream, above the progress bar."""
    tqdm.write(line, file=sys.stderr)
