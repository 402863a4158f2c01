"""Claim 1, richer supervision: what the pairs add to the update that the group's advantages do not have."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from amir_grpo.study.inference import Comparison
from amir_grpo.study.results import Studies, StudyResults, about, level

# Percent of the update from which on the supervision is called richer, and the smallest difference from it of interest.
RICHER, MARGIN = 5.0, 1.0
QUANTITIES = ("share", "residual_share", "explained", "explained_at_one_slope")


def supervision_table(studies: Studies, arms: Sequence[str]) -> pd.DataFrame:
    """What the preference term is of the update, and what of it the advantages do not explain; means over a training.

    Returns:
        One row per arm that has runs: about, arm, runs, and in percent, each with its interval (`_low`, `_high`): share
        (of the update), residual_share (of the update, unexplained by the advantages), explained and
        explained_at_one_slope (of the preference weights' variance).
    """
    rows = []
    for arm in arms:
        study = studies.first(arm)
        if study is None or len(study.part("richness", arm)) == 0:
            continue
        row = {"about": about(arm), "arm": arm}
        for quantity in QUANTITIES:
            found = level(_by_run(study, arm, quantity))
            low, high = found.interval()
            row |= {"runs": found.runs, quantity: found.estimate, f"{quantity}_low": low, f"{quantity}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def residual_beyond(study: StudyResults, arm: str) -> Comparison:
    """The unexplained part of the update, in percent, minus `RICHER`."""
    return level({run: value - RICHER for run, value in _by_run(study, arm, "residual_share").items()})


def _by_run(study: StudyResults, arm: str, quantity: str) -> dict[tuple[int, int], float]:
    return {run: 100 * float(rows[quantity].mean()) for run, rows in study.by_run("richness", arm).items()}
