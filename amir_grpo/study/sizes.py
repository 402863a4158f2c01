"""Does a finding depend on the size of the policy? The main comparisons at every size that has runs; exploratory."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from amir_grpo.choices import PARAMETERS
from amir_grpo.results.verdicts import verdict_from
from amir_grpo.study.exploration import corrected
from amir_grpo.study.gains import uncorrected_gains
from amir_grpo.study.plan import Plan
from amir_grpo.study.results import TRAINED, Studies

# The positive control, without which a null means nothing at a size, and both strengths of the preference term.
PAIRS = [
    ("clean/two-step-grpo", "clean/grpo"),
    ("clean/published", "clean/grpo"),
    ("clean/mixture-0.6", "clean/grpo"),
]


def size_table(sizes: Sequence[Studies], plan: Plan) -> pd.DataFrame:
    """The main comparisons in pass@1 on the trained lengths, size by size, with one correction for all of a size.

    Args:
        sizes: The studies of each size.

    Returns:
        `parameters`, the columns of `uncorrected_gains`, p_holm (`corrected`), and `verdict` on the new arm being the
        better one.
    """
    tables = []
    for studies in sizes:
        table = uncorrected_gains(studies, PAIRS, plan, ks=(1,))
        table = corrected(table[table["benchmarks"] == TRAINED], studies, plan)
        table.insert(0, "parameters", PARAMETERS[studies.main.model_name])
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    table["verdict"] = [
        verdict_from(
            row.p_holm,
            (row.gain_low, row.gain_high),
            (row.gain_inner_low, row.gain_inner_high),
            plan.margin,
            significance=plan.alpha,
        )
        for row in table.itertuples()
    ]
    return table


def size_title(table: pd.DataFrame) -> str:
    """How many comparisons of a `size_table` have the same verdict at every size."""
    found = table.groupby("about", sort=False)["verdict"].agg(["size", "nunique"])
    shared = found[found["size"] > 1]
    if not len(shared):
        return "No comparison has runs at two sizes yet"
    same = int((shared["nunique"] == 1).sum())
    sizes = " and ".join(table["parameters"].unique())
    return f"{same} of {len(shared)} comparisons have the same verdict at {sizes} parameters"
