"""The runs of the study: trained, evaluated and measured side by side; what is complete is not repeated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from amir_grpo.study.arms import ARMS, PROFILE, Arm
from amir_grpo.study.jobs import Job, jobs_of
from amir_grpo.study.measurements import MARGINS, WEIGHTS, measure_margins, measure_weights
from amir_grpo.study.tables import collect
from amir_grpo.system.cluster import Cluster
from amir_grpo.system.executors import executor_of, run_jobs, visible_gpus
from amir_grpo.system.locks import locked


def run_study(
    folder: Path,
    arms: Iterable[Arm] = tuple(ARMS.values()),
    overrides: Mapping[str, Any] | None = None,
    workers: int | Cluster = 0,
    profile: str = PROFILE,
) -> dict[str, pd.DataFrame]:
    """Train, evaluate and measure every run of the arms that is not complete, side by side, with progress and time left.

    Args:
        folder, overrides, profile: As of `Job`.
        arms: Among them "grpo", whose runs hold the base policy's completions.
        workers: Number of processes; 0: one per GPU, or else per core, 1: this one. Or a cluster: each run is a job.

    Returns:
        The tables of `amir_grpo.study.tables.collect`.
    """
    jobs = jobs_of(folder, arms, overrides, profile)
    with locked(folder, "evidence"):
        _complete(jobs, workers)
    return collect(jobs)


def _complete(jobs: list[Job], workers: int | Cluster) -> None:
    jobs[0].open().base()  # made once, before every worker would make it
    tracked = [job for job in jobs if job.arm.changes.get("save_total_limit", 0) is None]
    weighed = [job for job in jobs if job.arm.name in ("grpo", "amir_grpo")]
    with executor_of(workers, visible_gpus()) as executor:
        run_jobs("training", _train, [job for job in jobs if not job.open().is_trained(job.arm.method)], executor)
        run_jobs("evaluating", _evaluate, [job for job in jobs if not _is_evaluated(job)], executor)
        run_jobs("scoring", measure_margins, [job for job in tracked if not _has(job, MARGINS)], executor)
        run_jobs("weighing", measure_weights, [job for job in weighed if not _has(job, WEIGHTS)], executor)


def _train(job: Job) -> None:
    job.open().train(job.arm.method)


def _evaluate(job: Job) -> None:
    job.open().samples(job.policies)


def _is_evaluated(job: Job) -> bool:
    run = job.open()
    wanted = [f"{b}{greedy}.parquet" for b in run.settings.benchmarks for greedy in ("", ".greedy")]
    return all((run.folder / "samples" / policy / name).exists() for policy in job.policies for name in wanted)


def _has(job: Job, result: str) -> bool:
    return (job.open().folder / result).exists()
