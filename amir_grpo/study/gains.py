"""Gains of arms over others: the tests of the plan in their order, and exploratory tables of any arms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from amir_grpo.metrics import holm
from amir_grpo.study.inference import (
    COLUMNS,
    Comparison,
    Hypothesis,
    design_error,
    detectable_gain,
    equivalence_power,
    not_greater_power,
)
from amir_grpo.study.plan import Outcome, Plan, Test, judge_alone, run_sequence
from amir_grpo.study.results import LONGER, TRAINED, Studies, StudyResults, about, compared, gains_by_run, shared_runs

_POINTS = 100.0
_POWER_IF_EQUAL = {Hypothesis.EQUIVALENT: equivalence_power, Hypothesis.NOT_GREATER: not_greater_power}
_GAINS = ["study", "regime", "new", "old", "about", "benchmarks", "quantity", "new_percent", "old_percent", *COLUMNS]


def test_arms(test: Test) -> tuple[str, str]:
    """The two arms of a test, new and old, as `regime/arm`."""
    return f"{test.regime}/{test.new}", f"{test.regime}/{test.old}"


test_arms.__test__ = False  # no test case of pytest


def gain(study: StudyResults, new: str, old: str, group: str = TRAINED, k: int = 1) -> Comparison:
    """The gain of one arm over another in pass@k over a group of benchmarks, in points."""
    return compared(study.solved(new, group, k), study.solved(old, group, k)).scaled(_POINTS)


def plan_comparisons(study: StudyResults, plan: Plan) -> dict[str, Comparison]:
    """The comparison of each test of the plan for which there are runs, by the test's name."""
    arms = {test.name: test_arms(test) for test in plan.tests}
    return {name: gain(study, *pair) for name, pair in arms.items() if study.has(*pair)}


def outcomes(study: StudyResults, plan: Plan) -> list[Outcome]:
    """The tests of the plan: in their fixed sequence for the confirmation, each by itself for the pilot."""
    found = plan_comparisons(study, plan)
    return run_sequence(plan, found) if study.name == "confirmation" else judge_alone(plan, found)


def gain_table(
    studies: Studies, pairs: Sequence[tuple[str, str]], plan: Plan, ks: Sequence[int] = (1, 4)
) -> pd.DataFrame:
    """Exploratory: `uncorrected_gains`, and p_holm, corrected over all rows."""
    table = uncorrected_gains(studies, pairs, plan, ks)
    return table.assign(p_holm=holm(table["p_value"]))


def uncorrected_gains(
    studies: Studies, pairs: Sequence[tuple[str, str]], plan: Plan, ks: Sequence[int] = (1, 4)
) -> pd.DataFrame:
    """Each arm against another, on the trained lengths and on longer problems.

    Args:
        pairs: (new, old) as `regime/arm`; those without runs are left out.
        ks: Values of k in pass@k.

    Returns:
        Columns study, regime, new, old, about, benchmarks, quantity, new_percent, old_percent, and those of
        `inference.Comparison.columns`.
    """
    rows = []
    for new, old in pairs:
        if (study := studies.first(new, old)) is None:
            continue
        for group in (TRAINED, LONGER):
            for k in ks if study.benchmarks[group] else ():
                solved = {arm: study.solved(arm, group, k) for arm in (new, old)}
                shared = shared_runs(*solved.values())
                row = {
                    "study": study.name,
                    "regime": new.partition("/")[0],
                    "new": new.partition("/")[2],
                    "old": old.partition("/")[2],
                }
                row |= {"about": f"{about(new)} − {about(old)}", "benchmarks": group, "quantity": f"pass@{k}"}
                for name, arm in (("new_percent", new), ("old_percent", old)):
                    row[name] = _POINTS * float(np.mean([solved[arm][key].mean() for key in shared]))
                found = compared(solved[new], solved[old]).scaled(_POINTS)
                rows.append(row | found.columns(plan.margin, plan.alpha, plan.power))
    return pd.DataFrame(rows, columns=_GAINS)


def level_table(studies: Studies) -> pd.DataFrame:
    """pass@1 of every arm: columns study, regime, arm, about, runs, trained, longer, spread (standard deviation over the
    runs, of the trained lengths) and seed_spread (the same over the seeds of a base policy, NaN with one each); percent."""
    rows = []
    for path in studies.paths:
        study = studies.first(path)
        levels = {
            group: [values.mean() for values in study.solved(path, group).values()] for group in (TRAINED, LONGER)
        }
        regime, _, arm = path.partition("/")
        row = {"study": study.name, "regime": regime, "arm": arm, "about": about(path), "runs": len(levels[TRAINED])}
        row |= {"trained": _POINTS * np.mean(levels[TRAINED])}
        row |= {"longer": _POINTS * np.mean(levels[LONGER]) if levels[LONGER] else np.nan}
        spread = np.std(levels[TRAINED], ddof=1) if len(levels[TRAINED]) > 1 else np.nan
        by_base = pd.DataFrame([(base, values.mean()) for (base, _), values in study.solved(path).items()])
        within = by_base.groupby(0)[1].var(ddof=1).mean()  # of base policies with one seed there is none
        rows.append(row | {"spread": _POINTS * spread, "seed_spread": _POINTS * np.sqrt(within)})
    return pd.DataFrame(rows)


def power_table(study: StudyResults, plan: Plan) -> pd.DataFrame:
    """What the plan's confirmation could tell, at the spread of gains over the runs of this study.

    With one run per base policy, base policies and seeds cannot be told apart. So both ends are given: all of the spread
    from seeds, which more seeds average out, and all of it from base policies, which they do not.

    Returns:
        One row per test that has runs: number (from 1), test, about, runs, spread (standard deviation of a run's gain,
        points), planned (runs of the confirmation), and for either end (_seeds, _bases) detectable (the smallest gain found
        at the plan's power, points) and shown_if_equal (the chance to show what the test says where the arms are equal; NaN
        for "greater").
    """
    bases = plan.base_policies
    rows = []
    for number, test in enumerate(plan.tests, 1):
        arms = test_arms(test)
        if not study.has(*arms):
            continue
        gains = gains_by_run(*(study.solved(arm) for arm in arms))["gain"] * _POINTS
        row = {
            "number": number,
            "test": test.name,
            "about": test.about,
            "runs": len(gains),
            "spread": gains.std(ddof=1),
        }
        row["planned"] = min(len(plan.run_grid("confirmation", arm)) for arm in arms)
        seeds = row["planned"] // bases
        for end, spreads in (("seeds", (row["spread"], 0.0)), ("bases", (0.0, row["spread"]))):
            error = design_error(bases, seeds, *spreads)
            row[f"detectable_{end}"] = detectable_gain(error, bases - 1, plan.alpha, plan.power)
            chance = _POWER_IF_EQUAL.get(test.hypothesis)
            row[f"shown_if_equal_{end}"] = chance(error, bases - 1, plan.margin, plan.alpha) if chance else np.nan
        rows.append(row)
    return pd.DataFrame(rows)
