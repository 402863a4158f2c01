"""What a run shows: computed from its folder, and saved beside."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from amir_grpo.choices import PARAMETERS, SANDBOX
from amir_grpo.results.report import render_report
from amir_grpo.results.run_results import EvaluationResults, RunResults
from amir_grpo.runs.locations import kept_results
from amir_grpo.system.files import write_text
from amir_grpo.system.provenance import record_of

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run

_STUDY_SCOPE = (
    f"It is about the sandbox's policies of {PARAMETERS[SANDBOX]} parameters; docs/results.md says from how many base "
    "policies and seeds, and whether it is a pilot, which confirms nothing."
)


def results_of(run: Run) -> RunResults:
    """What a run shows; whatever is not trained, drawn or scored yet is made now."""
    return RunResults(
        samples=run.samples(),
        greedy=run.samples(greedy=True),
        scores=run.scores(),
        logs=run.logs(),
        questions=run.questions(),
        profile=run.profile,
        model=run.settings.policy.model_name,
        ks=run.settings.evaluation.ks,
    )


def policy_summary_of(run: Run, method: str) -> pd.DataFrame | None:
    """What the base policy and a trained one do on the run's benchmarks; None where one of them is not evaluated yet."""
    policies = ["base", method]
    if not all(run.evaluation.is_complete(*pair) for pair in product(policies, run.settings.evaluation.benchmarks)):
        return None
    return EvaluationResults(
        run.samples(policies), run.samples(policies, greedy=True), run.settings.evaluation.ks
    ).policies


def save_results(run: Run, results: EvaluationResults, only: Iterable[str] | None = None) -> dict[str, Path]:
    """Write tables and figures into the run folder.

    Args:
        run: Where to.
        results: What it shows.
        only: Names of tables and figures; None for all.

    Returns:
        The PNG of each figure, by its name.
    """
    figures = results.figures()
    wanted = {*results.table_names(), *figures} if only is None else set(only)
    for name in results.table_names():
        if name in wanted:
            run.save_table(getattr(results, name), name)
    return {name: run.save_figure(draw(), name)[0] for name, draw in figures.items() if name in wanted}


def write_report(run: Run, results: RunResults) -> Path:
    """Write report.html, one self-contained page, into the run folder; returns its path."""
    record = record_of(run.folder)
    packages = record["provenance"].pop("packages")
    everything = record["provenance"] | packages
    page = render_report(results, record["settings"], everything, record["problems"], _kept_verdicts(), _STUDY_SCOPE)
    return write_text(run.folder / "report.html", page)


def _kept_verdicts() -> pd.DataFrame | None:
    """The verdicts of the study over several seeds that comes with the package; None where its tables hold none."""
    path = kept_results("verdicts.csv")
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    return table if len(table) else None
