"""The runs of the study: trained, evaluated and measured side by side; what is complete is not repeated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from amir_grpo.study.arms import ARMS, PROFILE, Arm
from amir_grpo.study.jobs import Job, jobs_of
from amir_grpo.study.measurements import MARGINS, WEIGHTS, measure_margins, measure_weights
from amir_grpo.study.tables import collect
from amir_grpo.system.locks import locked
from amir_grpo.system.processes import work_for_parent


def run_study(
    folder: Path,
    arms: Iterable[Arm] = tuple(ARMS.values()),
    overrides: Mapping[str, Any] | None = None,
    workers: int = 0,
    profile: str = PROFILE,
) -> dict[str, pd.DataFrame]:
    """Train, evaluate and measure every run of the arms that is not complete, side by side, with progress and time left.

    Args:
        folder, overrides, profile: As of `Job`.
        arms: Among them "grpo", whose runs hold the base policy's completions.
        workers: Number of processes; 0: one per core, 1: this one.

    Returns:
        The tables of `amir_grpo.study.tables.collect`.
    """
    jobs = jobs_of(folder, arms, overrides, profile)
    with locked(folder, "evidence"):
        _complete(jobs, workers)
    return collect(jobs)


def _complete(jobs: list[Job], workers: int) -> None:
    jobs[0].open().base()  # made once, before every worker would make it
    tracked = [job for job in jobs if job.arm.changes.get("save_total_limit", 0) is None]
    weighed = [job for job in jobs if job.arm.name in ("grpo", "amir_grpo")]
    with executor_of(workers) as executor:
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


class InlineExecutor(Executor):
    """An executor that runs each job at once, in this process."""

    def submit(self, do, /, *arguments, **keywords):
        """Run the job and return it as a completed future."""
        done: Future = Future()
        done.set_result(do(*arguments, **keywords))
        return done


@contextmanager
def executor_of(workers: int) -> Iterator[Executor]:
    """Processes without progress bars of their own, since one bar shows the whole; a single worker is this process."""
    if workers == 1:
        yield InlineExecutor()
        return
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported
    try:
        with ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn"), work_for_parent) as executor:
            yield executor
    finally:
        os.environ.pop("TQDM_DISABLE")
        if before is not None:
            os.environ["TQDM_DISABLE"] = before


def run_jobs(what: str, do: Callable[[Job], None], jobs: list[Job], executor: Executor) -> None:
    """Do every job, side by side, behind one progress bar; a failure cancels what has not begun, and is raised."""
    if not jobs:
        return
    with tqdm(total=len(jobs), desc=what, unit="run", smoothing=0) as progress:

        def note(job: Job) -> None:
            progress.set_postfix_str(job.label, refresh=False)
            progress.update()

        try:
            waiting = []
            for job in jobs:
                waiting.append(executor.submit(do, job))
                waiting[-1].add_done_callback(lambda _, job=job: note(job))
            for done in as_completed(waiting):
                done.result()
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
