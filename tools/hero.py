"""What the figure at the top of the README is drawn from."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from amir_grpo.results.hero import hero_figure, same_batches

_LIMITS = (
    "Evidence about this small policy (0.1M parameters, arithmetic chains); none about the paper's 3B to 7B models."
)


def hero(kept: dict[str, pd.DataFrame]) -> Figure:
    """The figure, from the kept results of one run of each method: tables main and log."""
    log = kept["log"]
    share = log.loc[log["method"] == "amir_grpo", "preference/share"].median()
    levels = kept["main"].query("k == 1").rename(columns={"p_holm": "p"})
    scope = f"One training of each method at the published λ and β, seed 0; intervals over problems. {_LIMITS}"
    return hero_figure(share, twins_of(log), levels, scope)


def twins_of(log: pd.DataFrame) -> pd.DataFrame:
    """Where the two trainings of a run drew the same completions: columns run (0), step, same."""
    drawn = {method: rows[["reward", "reward_std"]] for method, rows in log.groupby("method")}
    return same_batches(drawn["grpo"], drawn["amir_grpo"]).assign(run=0)
