"""Claim 5, gains for every variant of GRPO."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from amir_grpo.study.claims.comparisons import Study, gain_table

VARIANTS = ("two-step-grpo", "two-step-dr_grpo", "two-step-dapo", "two-step-gspo")


def variants_table(study: Study, ks: Sequence[int] = (1, 4)) -> pd.DataFrame:
    """Each variant of GRPO with the preference term against itself without: as `gain_table`."""
    return gain_table(study, [f"{name}-amir" for name in VARIANTS], ks)
