"""Work side by side: in this process, in processes of this machine, one for each GPU if there are any, or on a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from multiprocessing.queues import SimpleQueue
from types import SimpleNamespace
from typing import Any

from amir_grpo.system.cluster import Cluster
from amir_grpo.system.processes import work_for_parent
from amir_grpo.system.progress import stage


def visible_gpus(device: str) -> list[str]:
    """The GPUs that work may use, as CUDA_VISIBLE_DEVICES names them; none where it stays on the CPU.

    Args:
        device: The setting of that name: auto or cpu.
    """
    if device == "cpu":
        return []
    import torch

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    # CUDA ignores what follows a name that it does not know
    return named.split(",")[:number] if named else [str(gpu) for gpu in range(number)]


def check_workers(workers: int) -> None:
    """Refuse a number of worker processes that there cannot be.

    Raises:
        ValueError: If it is negative.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}; it must be at least 0 (0: one per GPU or core).")


@contextmanager
def submitting(workers: int | Cluster, gpus: Sequence[str] = ()) -> Iterator[Callable]:
    """Yield a function that has `do(job)` made: in this process when its result is asked for, or side by side elsewhere.

    What it returns has the methods done, result and cancel of a concurrent.futures.Future.

    Args:
        workers: Number of processes of this machine; 0: one per GPU given, or else per core; 1: this process. Or a cluster.
        gpus: From `visible_gpus`: each worker sees one of them, in turn. Empty: all see what this process sees.
    """
    if isinstance(workers, Cluster):
        yield workers.submit
    elif workers == 1:
        yield lambda do, job: SimpleNamespace(done=lambda: True, result=partial(do, job), cancel=lambda: None)
    else:
        with worker_processes(workers, gpus) as pool:
            yield pool.submit


def worker_processes(number: int, gpus: Sequence[str] = ()) -> ProcessPoolExecutor:
    """Processes that end with this one and show no progress; `number` and `gpus` as in `submitting`."""
    number = number or len(gpus) or os.cpu_count() or 1
    context = get_context("spawn")
    seen = context.SimpleQueue()
    for worker in range(number):
        seen.put(gpus[worker % len(gpus)] if gpus else None)
    return ProcessPoolExecutor(number, context, _begin, (seen,))


def _begin(seen: SimpleQueue) -> None:
    """Begin a worker: before it asks for CUDA, it is given the GPU that it sees."""
    work_for_parent()
    gpu = seen.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def results_of(do: Callable, jobs: Sequence, submit: Callable) -> Iterator[tuple[Any, Any]]:
    """Do every job, side by side; yield each with its result as they are complete.

    A failure is raised, and cancels what has not begun. An interrupt ends what runs, too, and so does a failure on a
    cluster: it resumes when the same is started again.

    Args:
        do: Does one job; it travels to another process, too.
        jobs: Values that travel, too, each with a `label` for people, in the order in which they begin.
        submit: From `submitting`.

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
        if not isinstance(error, Exception):  # who is interrupted waits for no worker
            for worker in active_children():
                worker.kill()
        if isinstance(error, BrokenExecutor):
            raise ChildProcessError(
                "A worker process has been killed, perhaps for lack of memory.\n"
                "What is complete stays: start the same again, with fewer workers if memory was short."
            ) from error
        raise


def run_jobs(what: str, do: Callable, jobs: Sequence, submit: Callable) -> None:
    """Do every job, side by side, and show how many are complete; `what` names the work, all else as in `results_of`."""
    if jobs:
        with stage(what, len(jobs), unit="run") as tick:
            for job, _ in results_of(do, jobs, submit):
                tick(last=job.label)
