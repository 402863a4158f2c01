"""Jobs run in this process, in other processes of this machine (one per GPU, if there are any), or by Slurm.

Slurm's jobs are submitted with submitit, on a file system that all machines share. A job that is preempted, runs out
of time or loses its machine is queued and started again, so it must read back what is complete.
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
    """Where the jobs of a command run, and what Slurm gives each of them.

    Args:
        executor: local, or slurm for one Slurm job per run or stage.
        slurm_partition: Slurm partition; None for the cluster's default.
        slurm_account: Slurm account; None for the user's default.
        slurm_gpus: GPUs per job.
        slurm_cpus: CPU cores per job.
        slurm_memory_gb: Memory per job; None for the partition's default.
        slurm_hours: Hours per job; a job that needs more continues in another one.
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
    """The function of a job, which is called again if the job is queued again; its error is returned as a value."""

    do: Callable[[Any], Any]

    def __call__(self, work: Any) -> tuple[Any, Exception | None]:
        try:
            return self.do(work), None
        except Exception as error:
            return None, error

    def checkpoint(self, work: Any) -> submitit.helpers.DelayedSubmission:
        """Return what submitit is to submit when the job is about to be ended."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, work)


@dataclass(frozen=True)
class Cluster:
    """A cluster to submit jobs to: an executor of submitit, whose settings apply to every job."""

    executor: submitit.Executor

    def submit(self, do: Callable[[Any], Any], work: Any) -> SimpleNamespace:
        """Submit `do(work)` as a job named by `work.label`; return its methods done, result and cancel.

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
                    "Completed work is kept: run the same command again."
                ) from ended
            if error:
                raise error
            return value

        return SimpleNamespace(job=job, done=job.done, result=result, cancel=partial(job.cancel, check=False))


def cluster_of(options: ClusterOptions, folder: Path) -> Cluster | None:
    """Return the requested cluster, whose job files lie in a folder that all machines share; None for this machine.

    Raises:
        ValueError: If submitit is not installed, or this machine cannot submit jobs.
    """
    if options.executor == "local":
        return None
    try:
        import submitit

        # by default, submitit gives up after three timeouts
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
        "slurm_additional_parameters": {"requeue": True},  # in case the cluster does not by default
    }
    executor.update_parameters(**{name: value for name, value in asked.items() if value})
    return Cluster(executor)


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them; none if `device` is cpu."""
    if device == "cpu":
        return []
    import torch

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    # CUDA ignores everything after a name that it does not know
    return named.split(",")[:number] if named else [str(gpu) for gpu in range(number)]


@contextmanager
def submitting(workers: int | Cluster, gpus: Sequence[str] = (), apart: bool = False) -> Iterator[Callable]:
    """Yield a function that submits `do(job)`, which runs in this process once its result is requested, or elsewhere.

    It returns an object with the methods done, result and cancel of a concurrent.futures.Future.

    Args:
        workers: Number of processes of this machine, which end with this one and show no progress; 0: one per GPU in
            `gpus`, or else per core; 1: this process, unless `apart`. Or a cluster.
        gpus: From `visible_gpus`: each worker sees one of them, in turn. Empty: all see what this process sees.
        apart: Whether to avoid running jobs in this process.
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
    """A pool of processes that inherit a blocked SIGINT: a terminal's Ctrl-C cannot end one that is still starting."""

    def submit(self, *args: Any, **kwargs: Any) -> Future:
        with interrupts_held():
            return super().submit(*args, **kwargs)  # which may start a process


def _begin(seen: SimpleQueue) -> None:
    """Set up a worker; it gets its GPU before it uses CUDA."""
    work_for_parent()
    gpu = seen.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def results_of(do: Callable, jobs: Sequence, submit: Callable) -> Iterator[tuple[Any, Any]]:
    """Run all jobs side by side, and yield each with its result when it is complete.

    A failure is raised and cancels jobs that have not begun; on a cluster it also ends running ones, as an interrupt
    always does. `do` and the jobs are sent to other processes; each job has a `label` for messages.

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
        if not isinstance(error, Exception):  # an interrupt does not wait for workers
            for worker in active_children():
                worker.kill()
        if isinstance(error, BrokenExecutor):
            raise ChildProcessError(
                "A worker process has been killed, perhaps for lack of memory.\n"
                "Completed work is kept: run the same command again, with fewer workers if memory was short."
            ) from error
        raise


def run_jobs(what: str, do: Callable, jobs: Sequence, submit: Callable) -> None:
    """Run all jobs and show how many are complete; `what` names the work, the rest is as in `results_of`."""
    if jobs:
        with stage(what, len(jobs), unit="run") as tick:
            for job, _ in results_of(do, jobs, submit):
                tick(last=job.label)
