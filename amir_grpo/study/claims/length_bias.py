"""Claim 3, less length bias: how hard the update pushes on each token of short and long wrong completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from amir_grpo import metrics
from amir_grpo.study.claims.comparisons import Study

SHORT, LONG = 24, 40  # tokens: wrong completions below the first and from the second on


def pressure_table(study: Study, arms: Sequence[str]) -> pd.DataFrame:
    """Weight of each token of a wrong completion in the update, by the completion's length, relative to short ones.

    Columns arm, tokens (lower end of the bin), length (mean), relative, relative_low, relative_high (weight relative to
    that of wrong completions under `SHORT` tokens; mean over seeds and t-interval), completions. Negative weights push
    down; a relative weight of 1 means no dilution with length.
    """
    pressure = study["pressure"]
    rows = []
    for arm in arms:
        part = pressure[(pressure["arm"] == arm) & (pressure["correct"] == 0)]
        short = part[part["tokens"] < SHORT].groupby("seed").apply(_weight, include_groups=False)
        relative = part.assign(relative=part["token_weight"] / part["seed"].map(short))
        for tokens, group in relative.groupby("tokens"):
            level = metrics.mean_interval(group["relative"], bounds=None)
            row = {"arm": arm, "tokens": tokens, "length": np.average(group["length"], weights=group["completions"])}
            rows.append(row | level.columns("relative") | {"completions": int(group["completions"].sum())})
    return pd.DataFrame(rows)


def _weight(part: pd.DataFrame) -> float:
    return float(np.average(part["token_weight"], weights=part["completions"]))


def dilution_table(study: Study, pairs: Mapping[str, str]) -> pd.DataFrame:
    """Push on a token of a long wrong completion over that of a short one, and what the preference term changes of it.

    Args:
        pairs: Arm with the preference term -> arm without.

    Returns:
        Columns arm, against, dilution, against_dilution (weight from `LONG` tokens on over that below `SHORT`; 1: no
        bias), gain, gain_low, gain_high, p_value (paired t over seeds: above 0 is less bias), wrong_tokens,
        against_wrong_tokens (mean length of wrong completions in the last fifth of training), wrong_gain,
        wrong_gain_low, wrong_gain_high, seeds.
    """
    pressure, training = study["pressure"], study["training"]
    rows = []
    for arm, other in pairs.items():
        ratio = pd.DataFrame({name: _dilution(pressure[pressure["arm"] == name]) for name in (arm, other)}).dropna()
        length = pd.DataFrame({name: _last_wrong(training[training["arm"] == name]) for name in (arm, other)}).dropna()
        change, longer = ratio[arm] - ratio[other], length[arm] - length[other]
        gain, wrong = (metrics.mean_interval(values, bounds=None) for values in (change, longer))
        row = {"arm": arm, "against": other}
        row |= {"dilution": ratio[arm].mean(), "against_dilution": ratio[other].mean()}
        row |= gain.columns("gain") | {"p_value": _t_test(change)}
        row |= {"wrong_tokens": length[arm].mean(), "against_wrong_tokens": length[other].mean()}
        rows.append(row | wrong.columns("wrong_gain") | {"seeds": len(ratio)})
    return pd.DataFrame(rows)


def _dilution(pressure: pd.DataFrame) -> pd.Series:
    wrong = pressure[pressure["correct"] == 0]
    short = wrong[wrong["tokens"] < SHORT].groupby("seed").apply(_weight, include_groups=False)
    long = wrong[wrong["tokens"] >= LONG].groupby("seed").apply(_weight, include_groups=False)
    return long / short


def _last_wrong(training: pd.DataFrame) -> pd.Series:
    last = training[training["step"] > 0.8 * training["step"].max()]
    return last.groupby("seed")["tokens_wrong"].mean()


def _t_test(values: pd.Series) -> float:
    if len(values) < 2 or np.ptp(values) == 0:
        return 1.0 if np.allclose(values, 0) else np.nan
    return float(stats.ttest_1samp(values, 0).pvalue)
