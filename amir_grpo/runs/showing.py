"""Stand-in, until the command `evaluate` saves its tables itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amir_grpo.results.run_results import EvaluationResults

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run


def save_results(run: Run, results: EvaluationResults) -> None:
    """Write the tables of an evaluation into the run folder."""
    run.save_table(results.policies, "policies")
    run.save_table(results.comparisons, "comparisons")
