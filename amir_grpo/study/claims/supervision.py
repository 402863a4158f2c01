"""Claim 1, richer supervision: how many pairs a group holds, and what they make of the update."""

from __future__ import annotations

import pandas as pd

from amir_grpo import metrics
from amir_grpo.study.claims.comparisons import Study


def supervision_table(study: Study) -> pd.DataFrame:
    """Per arm with a preference term: pairs per group and share of the update, means over the steps of a run.

    Columns arm, about, group_size, pairs, pairs_low, pairs_high (a group), share, share_low, share_high (percent of the
    update) and seeds; 95 % t-intervals over seeds.
    """
    training = study["training"].dropna(subset=["pairs"])
    about = study["settings"].set_index("arm")["about"]
    rows = []
    for arm, part in training.groupby("arm", sort=False, observed=True):
        part = part.assign(pairs=part["pairs"] / (part["completions"] / part["group_size"]))
        by_seed = part.groupby("seed")[["pairs", "share"]].mean()
        pairs, share = (metrics.mean_interval(by_seed[c], bounds=None) for c in ("pairs", "share"))
        row = {"arm": arm, "about": about[arm], "group_size": int(part["group_size"].iloc[0])}
        rows.append(row | pairs.columns("pairs") | share.columns("share", 100) | {"seeds": len(by_seed)})
    return pd.DataFrame(rows)
