"""Work side by side: in this process, in processes of this machine, one for each GPU if there are any, or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.queues import SimpleQueue
from typing import Protocol, TypeVar

from tqdm import tqdm

from amir_grpo.system.cluster import Cluster, ClusterExecutor
from amir_grpo.system.processes import work_for_parent


class Labelled(Protocol):
    """A piece of work, as a value that travels to a worker process."""

    @property
    def label(self) -> str:
        """Its name for people."""


Work = TypeVar("Work", bound=Labelled)


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


class InlineExecutor(Executor):
    """An executor that runs each job at once, in this process."""

    def submit(self, do, /, *arguments, **keywords):
        """Run the job and return it as a completed future."""
        done: Future = Future()
        done.set_result(do(*arguments, **keywords))
        return done


@contextmanager
def executor_of(workers: int | Cluster, gpus: Sequence[str] = ()) -> Iterator[Executor]:
    """What runs jobs: one after the other in this process, or side by side elsewhere.

    Workers elsewhere show no progress bars of their own, since one bar shows the whole.

    Args:
        workers: Number of processes of this machine; 0: one per GPU given, or else per core; 1: this process. Or a cluster.
        gpus: From `visible_gpus`: each worker sees one of them, in turn. Empty: all see what this process sees.
    """
    if workers == 1:
        yield InlineExecutor()
        return
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported
    try:
        with ClusterExecutor(workers) if isinstance(workers, Cluster) else _processes(workers, gpus) as executor:
            yield executor
    finally:
        os.environ.pop("TQDM_DISABLE")
        if before is not None:
            os.environ["TQDM_DISABLE"] = before


def _processes(workers: int, gpus: Sequence[str]) -> Executor:
    number = workers or len(gpus) or os.cpu_count() or 1
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


def run_jobs(what: str, do: Callable[[Work], None], jobs: Sequence[Work], executor: Executor) -> None:
    """Do every job, side by side, behind one progress bar.

    A failure is raised, and cancels what has not begun. An interrupt ends what runs, too, and so does a failure on a
    cluster: it resumes when the same is started again.

    Raises:
        ChildProcessError: If a worker process has been killed.

    Args:
        what: What is done, for the progress bar.
        do: Does one job; it travels to a worker process, too.
        jobs: The jobs, in the order in which they begin.
        executor: Of `executor_of`.
    """
    if not jobs:
        return
    with tqdm(total=len(jobs), desc=what, unit="run", smoothing=0) as progress:

        def note(job: Work) -> None:
            progress.set_postfix_str(job.label, refresh=False)
            progress.update()

        try:
            waiting = []
            for job in jobs:
                waiting.append(executor.submit(do, job))
                waiting[-1].add_done_callback(lambda _, job=job: note(job))
            for done in as_completed(waiting):
                done.result()
        except BrokenExecutor as error:
            raise ChildProcessError(
                "A worker process has been killed, perhaps for lack of memory.\n"
                "What is complete stays: start the same again, with fewer workers if memory was short."
            ) from error
        except BaseException as error:
            if not isinstance(error, Exception):  # who is interrupted waits for no worker
                for worker in active_children():
                    worker.kill()
            executor.shutdown(cancel_futures=True)
            raise
