"""GRPO from each of the base policies that come with the package: a table for the docs, from the runs of the pilot."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from amir_grpo.study.kept import read_run

ARMS = {"before": "clean.base", "after": "clean.grpo"}


def base_policy_table(pilot: Path) -> pd.DataFrame:
    """pass@1 in percent before and after GRPO: columns base_policy and, for each benchmark, `<name>_before` and `_after`.

    One row per base policy, the mean of its runs, then the mean and the standard deviation of these rows.

    Args:
        pilot: Holds the kept runs of the study's pilot.
    """
    rows = []
    for when, arm in ARMS.items():
        for path in sorted(pilot.glob(f"{arm}.seed*.zip")):
            kept = read_run(path)
            rates = (
                100
                * kept.tables["problems"].groupby("benchmark")["correct"].mean()
                / kept.record["settings"]["num_samples"]
            )
            rows += [{"base_policy": str(kept.record["base"]), "column": f"{name}_{when}", "rate": rate}
                     for name, rate in rates.items()]  # fmt: skip
    wide = pd.DataFrame(rows).pivot_table(index="base_policy", columns="column", values="rate", aggfunc="mean")
    names = sorted({column.rpartition("_")[0] for column in wide})
    wide = wide[[f"{name}_{when}" for name in names for when in ARMS]]
    spread = pd.DataFrame({"mean": wide.mean(), "standard deviation": wide.std(ddof=1)}).T
    return pd.concat([wide, spread]).rename_axis("base_policy").reset_index()
