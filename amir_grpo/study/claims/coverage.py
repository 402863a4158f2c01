"""Claim 4, broader coverage: which policies solve a problem with k samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from amir_grpo import metrics
from amir_grpo.choices import POLICIES
from amir_grpo.study.claims.comparisons import Study, paired, solved


def coverage_table(study: Study, ks: Sequence[int] = (1, 4, 8)) -> pd.DataFrame:
    """Who solves a problem with k samples: share of problems of each pattern, in percent of all problems.

    Expected over the choice of k of the n samples, exactly: a policy solves a problem with probability pass@k, and the
    policies draw independently. Columns k, base, grpo, amir_grpo (1 = solves), percent, percent_low, percent_high.
    """
    correct = study["correct"]
    benchmarks = list(correct["benchmark"].unique())
    rows = []
    for k in ks:
        chance = {arm: solved(correct, arm, benchmarks, k) for arm in POLICIES}
        arrays = {arm: table.to_numpy(float) for arm, table in chance.items()}
        for pattern in metrics.PATTERNS:
            share = np.ones_like(arrays["base"])
            for solves, values in zip(pattern, arrays.values(), strict=True):
                share = share * (values if solves else 1 - values)
            level = metrics.seeds_gain(share, np.zeros_like(share))
            row = {"k": k} | dict(zip(arrays, pattern, strict=True))
            row |= replace(level, low=max(level.low, 0.0)).columns("percent", 100)
            row.pop("p_value")  # of a share being 0
            rows.append(row)
    return pd.DataFrame(rows)


def coverage_gain_table(study: Study, ks: Sequence[int] = (1, 4, 8)) -> pd.DataFrame:
    """Problems that AMIR-GRPO solves and GRPO does not, minus the other way round: percent of all problems.

    Columns k, only_amir_grpo, only_grpo, gain, gain_low, gain_high, p_value, p_holm, seeds, problems.
    """
    correct = study["correct"]
    benchmarks = list(correct["benchmark"].unique())
    rows = []
    for k in ks:
        new, old = paired(*(solved(correct, arm, benchmarks, k) for arm in ("amir_grpo", "grpo")))
        gain = metrics.seeds_gain(new, old)
        row = {"k": k, "only_amir_grpo": 100 * (new * (1 - old)).mean(), "only_grpo": 100 * (old * (1 - new)).mean()}
        rows.append(row | gain.columns(scale=100) | {"seeds": new.shape[0], "problems": new.shape[1]})
    table = pd.DataFrame(rows)
    table.insert(7, "p_holm", metrics.holm(table["p_value"]))
    return table
