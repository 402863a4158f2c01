"""Several worker processes draw the completions of a run, each those of one policy on one benchmark at a time.

A completion depends on its policy, its problem and its own random stream alone, and each worker draws the batches that one
process would: the results are those of one process.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from amir_grpo.choices import SANDBOX
from amir_grpo.policies.source import PolicySource
from amir_grpo.runs.evaluation import Evaluation
from amir_grpo.settings import RunSettings
from amir_grpo.system.cluster import run_jobs, submitting, visible_gpus


@dataclass(frozen=True)
class _Drawing:
    """The completions of one policy on one benchmark, as a value that travels to a worker process."""

    evaluation: Evaluation
    name: str
    benchmark: str
    source: PolicySource

    @property
    def label(self) -> str:
        """Name for people."""
        return f"{self.name} on {self.benchmark}"


def workers_for(evaluation: Evaluation, names: Iterable[str], benchmarks: Iterable[str], workers: int = 0) -> int:
    """How many processes are to draw what is not complete.

    Args:
        evaluation: Of the run.
        names, benchmarks: As in `Evaluation.completions`.
        workers: As asked for; 0: one per visible GPU, or one where policies run on the CPU.
    """
    missing = len(_missing(evaluation, names, benchmarks))
    if missing < 2:
        return 1
    return min(missing, workers or len(visible_gpus(evaluation.settings.policy.device)) or 1)


def draw_side_by_side(
    evaluation: Evaluation, sources: Mapping[str, PolicySource], benchmarks: Iterable[str], workers: int = 0
) -> None:
    """Draw what is not complete by worker processes; where one is enough, this process is left to draw when it is asked.

    Args:
        evaluation, benchmarks, workers: As in `workers_for`.
        sources: What to load, by the policies' names.

    Raises:
        Exception: As `Evaluation.completions` raises it, from the first worker that fails.
    """
    benchmarks = list(benchmarks)
    number = workers_for(evaluation, sources, benchmarks, workers)
    if number > 1:
        work = [_Drawing(evaluation, *named, sources[named[0]]) for named in _missing(evaluation, sources, benchmarks)]
        with submitting(number, visible_gpus(evaluation.settings.policy.device)) as submit:
            run_jobs("evaluating", _draw, work, submit)


def _missing(evaluation: Evaluation, names: Iterable[str], benchmarks: Iterable[str]) -> list[tuple[str, str]]:
    pairs = itertools.product(names, benchmarks)
    return [(name, benchmark) for name, benchmark in pairs if not evaluation.is_complete(name, benchmark)]


def _draw(drawing: _Drawing) -> None:
    use_one_thread(drawing.evaluation.settings)
    drawing.evaluation.completions(drawing.name, drawing.benchmark, drawing.source)


def use_one_thread(settings: RunSettings) -> None:
    """Keep the sandbox's tiny matrices on one thread: no slower, and results do not depend on the number of cores."""
    if settings.policy.model_name == SANDBOX:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        else:  # who only reads results need not wait for torch
            os.environ.setdefault("OMP_NUM_THREADS", "1")
