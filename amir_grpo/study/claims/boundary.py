"""Claim 2, a sharper decision boundary: how far right and wrong completions are apart."""

from __future__ import annotations

import pandas as pd

from amir_grpo import metrics
from amir_grpo.study.claims.comparisons import Study, paired


def boundary_table(study: Study) -> pd.DataFrame:
    """Margin and pair accuracy on the base policy's completions over training, and how far each arm is from GRPO.

    One row for each quantity, arm and step: columns quantity (margin in nats per token, accuracy in percent), arm, step,
    mean, grpo_mean (of the same seeds), gain, gain_low, gain_high, p_value (against GRPO at the same step), seeds, problems.
    Problems are those with right and wrong completions of the base policy in every seed, the same for every arm.
    """
    margins = study["margins"]
    rows = []
    for quantity, scale in (("margin", 1.0), ("accuracy", 100.0)):
        wide = margins.pivot(index=["arm", "step", "seed"], columns=["benchmark", "problem"], values=quantity) * scale
        wide = wide.loc[:, wide.notna().all()]
        for arm in margins["arm"].unique():
            for step in sorted(margins["step"].unique()):
                new, old = paired(wide.loc[(arm, step)], wide.loc[("grpo", step)])
                gain = metrics.seeds_gain(new, old)
                row = {"quantity": quantity, "arm": arm, "step": int(step)}
                row |= {"mean": new.mean(), "grpo_mean": old.mean(), **gain.columns()}
                rows.append(row | {"seeds": new.shape[0], "problems": new.shape[1]})
    return pd.DataFrame(rows)
