"""Several worker processes draw the completions of a run, each those of one policy on one benchmark at a time.

A completion depends on its policy, its problem and its own random stream alone, and each worker draws the batches that one
process would: the results are those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amir_grpo.policies.source import PolicySource
from amir_grpo.runs.evaluation import Evaluation
from amir_grpo.settings import Settings
from amir_grpo.system.executors import executor_of, run_jobs, visible_gpus


@dataclass(frozen=True)
class Drawing:
    """The completions of one policy on one benchmark, as a value that travels to a worker process.

    Attributes:
        evaluation: Draws and keeps them.
        name, source, benchmark: As of `Evaluation.completions`.
    """

    evaluation: Evaluation
    name: str
    source: PolicySource
    benchmark: str

    @property
    def label(self) -> str:
        """Name for people."""
        return f"{self.name} on {self.benchmark}"


def workers_for(drawings: Sequence[Drawing], workers: int = 0) -> int:
    """How many processes are to draw what is not complete.

    Args:
        drawings: Of one run.
        workers: As asked for; 0: one per visible GPU, or one where policies run on the CPU.
    """
    missing = [d for d in drawings if not d.evaluation.is_complete(d.name, d.benchmark)]
    if len(missing) < 2:
        return 1
    return min(len(missing), workers or len(_gpus(missing[0].evaluation.settings)) or 1)


def draw_side_by_side(drawings: Sequence[Drawing], workers: int) -> None:
    """Draw what is not complete, by some worker processes; one worker is this process, and is left to draw when it is asked.

    Raises:
        Exception: As `Evaluation.completions` raises it, from the first worker that fails.
    """
    if workers > 1:
        missing = [d for d in drawings if not d.evaluation.is_complete(d.name, d.benchmark)]
        with executor_of(workers, _gpus(missing[0].evaluation.settings)) as executor:
            run_jobs("evaluating", _draw, missing, executor)


def _draw(drawing: Drawing) -> None:
    use_one_thread(drawing.evaluation.settings)
    drawing.evaluation.completions(drawing.name, drawing.benchmark, drawing.source)


def _gpus(settings: Settings) -> list[str]:
    return visible_gpus() if settings.device == "auto" else []


def use_one_thread(settings: Settings) -> None:
    """Keep the sandbox's tiny matrices on one thread: no slower, and results do not depend on the number of cores."""
    if settings.model_name == "sandbox":
        import torch

        torch.set_num_threads(1)
