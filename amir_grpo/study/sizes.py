"""Does a finding depend on the size of the policy? The main comparisons at every size that has runs; exploratory."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from amir_grpo.choices import PARAMETERS
from amir_grpo.results.verdicts import Verdict, verdict_from
from amir_grpo.study.exploration import corrected
from amir_grpo.study.gains import uncorrected_gains
from amir_grpo.study.plan import Plan
from amir_grpo.study.results import TRAINED, Studies, shared_runs

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
        `parameters`, the columns of `uncorrected_gains`, p_holm (`corrected`), `old_range` (the lowest and highest pass@1
        of the old arm's runs), and `verdict` on the new arm being the better one.
    """
    tables = []
    for studies in sizes:
        table = uncorrected_gains(studies, PAIRS, plan, ks=(1,))
        table = corrected(table[table["benchmarks"] == TRAINED], studies, plan)
        table.insert(0, "parameters", PARAMETERS[studies.main.model_name])
        arms = zip(table["regime"] + "/" + table["new"], table["regime"] + "/" + table["old"], strict=True)
        table["old_range"] = [_range(studies, new, old) for new, old in arms]
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


def _range(studies: Studies, new: str, old: str) -> str:
    """The lowest and the highest pass@1 of the old arm's runs, in percent, as text."""
    study = studies.first(new, old)
    solved = study.solved(old)
    levels = [100 * solved[run].mean() for run in shared_runs(study.solved(new), solved)]
    return f"{min(levels):.1f} to {max(levels):.1f}"


def size_title(table: pd.DataFrame) -> str:
    """At which size of a `size_table` the positive control is not shown; else how many verdicts are the same everywhere."""
    control = table[(table["regime"] + "/" + table["new"]) == PAIRS[0][0]]
    sizes = list(table["parameters"].unique())
    blind = [
        size for size in sizes if Verdict.SUPPORTED not in set(control.loc[control["parameters"] == size, "verdict"])
    ]
    if blind:
        return f"The positive control is not shown at {' and '.join(blind)} parameters: no null counts there"
    found = table.groupby("about", sort=False)["verdict"].agg(["size", "nunique"])
    shared = found[found["size"] > 1]
    if not len(shared):
        return "No comparison has runs at two sizes yet"
    same = int((shared["nunique"] == 1).sum())
    return f"{same} of {len(shared)} comparisons have the same verdict at {' and '.join(sizes)} parameters"
