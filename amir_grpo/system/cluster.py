"""Work side by side: in this process, in processes of this machine, one for each GPU if there are any, or as jobs of Slurm.

Jobs are submitit's, on a file system that all machines share. One that is preempted, runs out of time or loses its machine
goes into the queue again and is done again, so what it does must read back what is complete.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from amir_grpo.system.files import install_command
from amir_grpo.system.processes import interrupts_held, work_for_parent
from amir_grpo.system.progress import stage

if TYPE_CHECKING:
    import submitit


@dataclass
class ClusterOptions:
    """The place of a command's jobs, and what Slurm gives each of them.

    Args:
        executor: local, or slurm: a job of Slurm for each run or stage.
        slurm_partition: Slurm's partition; None: the cluster's default.
        slurm_account: Slurm's account; None: the user's default.
        slurm_gpus: GPUs of each job.
        slurm_cpus: CPU cores of each job.
        slurm_memory_gb: Memory of each job; None: the partition's default.
        slurm_hours: Hours of each job; one that needs more goes on in another.
    """

    executor: Literal["local", "slurm"] = "local"
    slurm_partition: str | None = None
    slurm_account: str | None = None
    slurm_gpus: Annotated[int, Field(ge=0)] = 0
    slurm_cpus: Annotated[int, Field(ge=1)] = 2
    slurm_memory_gb: Annotated[int, Field(ge=1)] | None = None
    slurm_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0


@dataclass(frozen=True)
class _Resumable:
    """A function for a job: put into the queue again, it is called again. Its error comes back as a value."""

    do: Callable[[Any], Any]

    def __call__(self, work: Any) -> tuple[Any, Exception | None]:
        try:
            return self.do(work), None
        except Exception as error:
            return None, error

    def checkpoint(self, work: Any) -> submitit.helpers.DelayedSubmission:
        """Return what submitit submits when it is told that the job will end."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, work)


@dataclass(frozen=True)
class Cluster:
    """A place to submit jobs to: an executor of submitit, whose settings are those of every job."""

    executor: submitit.Executor

    def submit(self, do: Callable[[Any], Any], work: Any) -> SimpleNamespace:
        """Submit `do(work)` as a job under the work's label; returns its methods done, result and cancel.

        Raises:
            ValueError: If Slurm refuses the job.
        """
        from submitit.core.utils import FailedJobError, UncompletedJobError

        self.executor.update_parameters(name=re.sub(r"[^A-Za-z0-9.]+", "-", work.label)[:50])
        try:
            job = self.executor.submit(_Resumable(do), work)
        except FailedJobError as error:
            said = [line.strip() for line in str(error).splitlines() if "error:" in line] or [str(error).strip()]
            raise ValueError(f"Slurm refuses the job {work.label}: {said[0]}\nSee the options --slurm_….") from error

        def result() -> Any:
            try:
                value, error = job.result()
            except (FailedJobError, UncompletedJobError) as ended:  # killed, cancelled, or lost with its machine
                raise ChildProcessError(
                    f"Job {job.job_id} has ended without a result.\nIts log: {job.paths.stderr}\n"
                    "What is complete stays: start the same again."
                ) from ended
            if error:
                raise error
            return value

        return SimpleNamespace(job=job, done=job.done, result=result, cancel=partial(job.cancel, check=False))


def cluster_of(options: ClusterOptions, folder: Path) -> Cluster | None:
    """Return the cluster that is asked for, with its jobs in a folder that all machines share; None for this machine.

    Raises:
        ValueError: If submitit is not installed, or this machine submits no jobs.
    """
    if options.executor == "local":
        return None
    try:
        import submitit

        # timeouts: submitit's own limit is three
        executor = submitit.AutoExecutor(folder / ".jobs", cluster="slurm", slurm_max_num_timeout=1000)
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"executor=slurm needs submitit ({install_command('cluster')}) and sbatch: {error}.\n"
            "Start on a login node of the cluster, or set executor to local."
        ) from error
    asked = {
        "timeout_min": max(1, round(60 * options.slurm_hours)),
        "cpus_per_task": options.slurm_cpus,
        "gpus_per_node": options.slurm_gpus,
        "mem_gb": options.slurm_memory_gb,
        "slurm_partition": options.slurm_partition,
        "slurm_account": options.slurm_account,
        "slurm_additional_parameters": {"requeue": True},  # where the cluster's default is not to
    }
    executor.update_parameters(**{name: value for name, value in asked.items() if value})
    return Cluster(executor)


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs that work may use, as CUDA_VISIBLE_DEVICES names them; none where `device` is cpu."""
    if device == "cpu":
        return []
    import torch

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    # CUDA ignores what follows a name that it does not know
    return named.split(",")[:number] if named else [str(gpu) for gpu in range(number)]


@contextmanager
def submitting(workers: int | Cluster, gpus: Sequence[str] = (), apart: bool = False) -> Iterator[Callable]:
    """Yield a function that has `do(job)` made: in this process when its result is asked for, or side by side elsewhere.

    What it returns has the methods done, result and cancel of a concurrent.futures.Future.

    Args:
        workers: Number of processes of this machine, which end with this one and show no progress; 0: one per GPU given, or
            else per core; 1: this process, unless `apart`. Or a cluster.
        gpus: From `visible_gpus`: each worker sees one of them, in turn. Empty: all see what this process sees.
        apart: Never in this process.
    """
    if isinstance(workers, Cluster):
        yield workers.submit
    elif workers == 1 and not apart:
        yield lambda do, job: SimpleNamespace(done=lambda: True, result=partial(do, job), cancel=lambda: None)
    else:
        number, context = workers or len(gpus) or os.cpu_count() or 1, get_context("spawn")
        seen = context.SimpleQueue()
        for worker in range(number):
            seen.put(gpus[worker % len(gpus)] if gpus else None)
        with _Workers(number, context, _begin, (seen,)) as pool:
            yield pool.submit


class _Workers(ProcessPoolExecutor):
    """Processes that inherit a blocked SIGINT, so that a terminal's Ctrl-C cannot end one that is still starting."""

    def submit(self, *args: Any, **kwargs: Any) -> Future:
        with interrupts_held():
            return super().submit(*args, **kwargs)  # which starts a process where one is wanted


def _begin(seen: SimpleQueue) -> None:
    """Begin a worker: before it asks for CUDA, it is given the GPU that it sees."""
    work_for_parent()
    gpu = seen.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def results_of(do: Callable, jobs: Sequence, submit: Callable) -> Iterator[tuple[Any, Any]]:
    """Do every job, side by side, and yield each with its result as they are complete.

    A failure is raised, and cancels what has not begun; on a cluster it ends what runs, too, as an interrupt does anywhere.
    `do` and the jobs travel to other processes; each job has a `label` for people.

    Raises:
        ChildProcessError: If a worker process has been killed, or a job has ended without a result.
    """
    waiting = []
    try:
        for job in jobs:
            waiting.append((submit(do, job), job))
        while waiting:
            for call, job in [pair for pair in waiting if pair[0].done()]:
                waiting.remove((call, job))
                yield job, call.result()
            time.sleep(min(2.0, 0.05 * len(waiting)))
    except BaseException as error:
        for call, _ in waiting:
            call.cancel()
        if not isinstance(error, Exception):  # an interrupt waits for no worker
            for worker in active_children():
                worker.kill()
        if isinstance(error, BrokenExecutor):
            raise ChildProcessError(
                "A worker process has been killed, perhaps for lack of memory.\n"
                "What is complete stays: start the same again, with fewer workers if memory was short."
            ) from error
        raise


def run_jobs(what: str, do: Callable, jobs: Sequence, submit: Callable) -> None:
    """Do every job, and show how many are complete; `what` names the work, the rest is as in `results_of`."""
    if jobs:
        with stage(what, len(jobs), unit="run") as tick:
            for job, _ in results_of(do, jobs, submit):
                tick(last=job.label)
