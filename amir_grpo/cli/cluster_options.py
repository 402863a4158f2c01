"""The options by which a command takes a cluster instead of this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from amir_grpo.system.cluster import Cluster


@dataclass
class ClusterOptions:
    """Where the command's jobs run, and what Slurm is to give each."""

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


def cluster_of(options: ClusterOptions, folder: Path) -> Cluster | None:
    """The cluster that is asked for; None for this machine.

    Args:
        options: As given.
        folder: The command's folder, on a file system that all machines share.

    Raises:
        ValueError: If a number is not possible.
    """
    for name, least in (("slurm_gpus", 0), ("slurm_cpus", 1), ("slurm_memory_gb", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")
    if not (math.isfinite(options.slurm_hours) and options.slurm_hours > 0):
        raise ValueError(f"slurm_hours is {options.slurm_hours}; it must be above 0.")
    if options.executor == "local":
        return None
    return Cluster(
        folder / ".jobs",
        partition=options.slurm_partition,
        account=options.slurm_account,
        gpus=options.slurm_gpus,
        cpus=options.slurm_cpus,
        memory_gb=options.slurm_memory_gb,
        hours=options.slurm_hours,
    )


def check_workers(workers: int) -> None:
    """Refuse a number of worker processes that there cannot be.

    Raises:
        ValueError: If it is negative.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}; it must be at least 0 (0: one per GPU or core).")
