"""Claim 2, a sharper decision boundary: how far right and wrong completions of the base policy are apart.

No trained policy wrote these completions. A policy of lower entropy has larger differences of log-probabilities, as a
colder temperature would give it: the new policy is compared at the temperature at which its entropy is that of the old one,
beside the plain difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from amir_grpo.results.verdicts import MARGIN_SHARE
from amir_grpo.study.inference import Comparison
from amir_grpo.study.results import Studies, StudyResults, about, compared, shared_runs

# What is compared -> (column, at equal entropy, scale, unit).
QUANTITIES = {
    "margin": ("margin", False, 1000.0, "10⁻³ nats per token"),
    "margin at equal entropy": ("margin", True, 1000.0, "10⁻³ nats per token"),
    "pair accuracy": ("accuracy", False, 100.0, "points"),
    "pair accuracy at equal entropy": ("accuracy", True, 100.0, "points"),
}
TESTED = ("margin at equal entropy", "pair accuracy at equal entropy")  # of these, what the claim is judged by
ACCURACY_MARGIN = 0.5  # smallest difference of interest, in points


def boundary_gain(
    study: StudyResults, new: str, old: str, quantity: str, done: float = 1.0
) -> tuple[Comparison, float, float]:
    """The difference of two arms, with the old arm's mean and the smallest difference of interest.

    Args:
        new, old: Arms as `regime/arm`.
        quantity: One of `QUANTITIES`.
        done: Which checkpoint, as a share of the training: 0.5 or 1. The numbers of updates are equal where both arms
            make the same number of steps.
    """
    column, equal_entropy, scale, _ = QUANTITIES[quantity]
    tables = study.by_run("boundary", new), study.by_run("boundary", old)
    ours, theirs = {}, {}
    for run in shared_runs(*tables):
        values = _by_benchmark(*(_at_step(table[run], done) for table in tables), column, equal_entropy)
        ours[run], theirs[run] = scale * np.mean(values, axis=0)
    level = float(np.mean(list(theirs.values())))
    smallest = MARGIN_SHARE * abs(level) if column == "margin" else ACCURACY_MARGIN
    return compared(ours, theirs), level, smallest


def _by_benchmark(new: pd.DataFrame, old: pd.DataFrame, column: str, equal_entropy: bool) -> list[tuple[float, float]]:
    """A column of both policies on each benchmark: the old one's own, the new one's own or at the old one's entropy."""
    values = []
    for benchmark in old["benchmark"].unique():
        ours, theirs = (rows[rows["benchmark"] == benchmark].sort_values("temperature") for rows in (new, old))
        own = [rows[rows["temperature"] == 1].iloc[0] for rows in (ours, theirs)]
        entropy = own[1 if equal_entropy else 0]["entropy"]
        values.append((at_entropy(ours, entropy, column), own[1][column]))
    return values


def at_entropy(rows: pd.DataFrame, entropy: float, column: str) -> float:
    """What a column is at the temperature at which the policy has this mean entropy, interpolated between temperatures.

    `rows`: of one policy and benchmark, by rising temperature. Beyond the temperatures measured: the value at the nearest.
    """
    return float(np.interp(entropy, rows["entropy"], rows[column]))


def boundary_table(studies: Studies, pairs: Sequence[tuple[str, str]], alpha: float) -> pd.DataFrame:
    """Every quantity half way and at the end of the training, for each pair (new, old) that has runs.

    Columns about, training (percent done), quantity, unit, old_level, and those of `inference.Comparison.columns`.
    """
    rows = []
    for new, old in pairs:
        if (study := studies.first(new, old)) is None:
            continue
        for done in (0.5, 1.0):
            for quantity, (_, _, _, unit) in QUANTITIES.items():
                found, old_level, smallest = boundary_gain(study, new, old, quantity, done)
                row = {"about": f"{about(new)} − {about(old)}", "training": 100 * done, "quantity": quantity}
                rows.append(row | {"unit": unit, "old_level": old_level} | found.columns(smallest, alpha))
    return pd.DataFrame(rows)


def base_sentence(curves: pd.DataFrame) -> str:
    """That no training has raised the mean pair accuracy, where that of the base policy is the highest; else nothing.

    Args:
        curves: Columns about, temperature and accuracy (0 to 1), one row per policy and temperature.
    """
    own = curves[curves["temperature"] == 1].set_index("about")["accuracy"]
    base = about("clean/base")
    if base not in own or len(own) < 2 or own.drop(base).max() >= own[base]:
        return ""
    others = "; ".join(f"{name}: {100 * value:.1f} %" for name, value in own.drop(base).items())
    return (
        f"At temperature 1 the base policy itself has the highest pair accuracy, {100 * own[base]:.1f} % ({others})."
    )


def _at_step(rows: pd.DataFrame, done: float) -> pd.DataFrame:
    """The rows of the checkpoint nearest to that share of the training."""
    steps = rows["step"].unique()
    return rows[rows["step"] == steps[np.argmin(np.abs(steps - done * steps.max()))]]
