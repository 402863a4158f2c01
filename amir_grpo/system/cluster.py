"""Work as jobs of Slurm, by submitit, on a file system that all machines share.

A job that is preempted, runs out of time or loses its machine goes into the queue again and is done again, so what it does
must read back what is complete.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amir_grpo.system.files import install_command

if TYPE_CHECKING:
    import submitit


@dataclass
class ClusterOptions:
    """Where a command's jobs run, and what Slurm is to give each; `metadata` holds the help of the command line."""

    executor: str = field(
        default="local",
        metadata={"help": "local, or slurm: a job of Slurm for each run or stage.", "choices": ["local", "slurm"]},
    )
    slurm_partition: str | None = field(default=None, metadata={"help": "Slurm's partition. Default: the cluster's."})
    slurm_account: str | None = field(default=None, metadata={"help": "Slurm's account. Default: the user's."})
    slurm_gpus: int = field(default=0, metadata={"help": "GPUs of each job."})
    slurm_cpus: int = field(default=2, metadata={"help": "CPU cores of each job."})
    slurm_memory_gb: int | None = field(
        default=None, metadata={"help": "Memory of each job. Default: the partition's."}
    )
    slurm_hours: float = field(
        default=4.0, metadata={"help": "Hours of each job; one that needs more goes on in another."}
    )


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
    """What submits jobs: an executor of submitit, whose settings are those of every job."""

    executor: submitit.Executor

    def submit(self, do: Callable[[Any], Any], work: Any) -> Job:
        """Submit `do(work)` as a job under the work's label.

        Raises:
            ValueError: If Slurm refuses the job.
        """
        from submitit.core.utils import FailedJobError

        self.executor.update_parameters(name=re.sub(r"[^A-Za-z0-9.]+", "-", work.label)[:50])
        try:
            return Job(self.executor.submit(_Resumable(do), work))
        except FailedJobError as error:
            said = [line.strip() for line in str(error).splitlines() if "error:" in line] or [str(error).strip()]
            raise ValueError(f"Slurm refuses the job {work.label}: {said[0]}\nSee the options --slurm_….") from error


@dataclass(frozen=True)
class Job:
    """A submitted job, to be waited for as a concurrent.futures.Future is."""

    job: submitit.Job

    def done(self) -> bool:
        """Whether its result is there, or Slurm says that it has ended."""
        return self.job.done()

    def cancel(self) -> None:
        """End it, or take it from the queue."""
        self.job.cancel(check=False)

    def result(self) -> Any:
        """The call's result, or its error.

        Raises:
            ChildProcessError: If the job has ended without a result: killed, cancelled, or lost with its machine.
        """
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            value, error = self.job.result()
        except (FailedJobError, UncompletedJobError) as error:
            raise ChildProcessError(
                f"Job {self.job.job_id} has ended without a result.\nIts log: {self.job.paths.stderr}\n"
                "What is complete stays: start the same again."
            ) from error
        if error:
            raise error
        return value


def cluster_of(options: ClusterOptions, folder: Path) -> Cluster | None:
    """The cluster that is asked for; None for this machine.

    Args:
        options: As given.
        folder: The command's folder, on a file system that all machines share.

    Raises:
        ValueError: If a number is not possible, submitit is not installed, or this machine submits no jobs.
    """
    least = min(
        options.slurm_gpus + 1, options.slurm_cpus, 1 if options.slurm_memory_gb is None else options.slurm_memory_gb
    )
    if least < 1 or not 0 < options.slurm_hours < math.inf:
        raise ValueError(
            "slurm_gpus must be at least 0, slurm_cpus and slurm_memory_gb at least 1, and slurm_hours above 0."
        )
    if options.executor == "local":
        return None
    try:
        import submitit

        # timeouts: submitit's own limit is three
        executor = submitit.AutoExecutor(folder / ".jobs", cluster="slurm", slurm_max_num_timeout=1000)
    except ImportError as error:
        raise ValueError(
            f"executor=slurm needs submitit: {install_command('cluster')}. Or set executor to local."
        ) from error
    except RuntimeError as error:
        raise ValueError(
            "executor=slurm submits jobs with sbatch, and this machine has none: start on a login node of the cluster,\n"
            "or set executor to local."
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
