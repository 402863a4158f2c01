"""What the runs of the regimes show: how much of their updates is about correctness, beside what it did to pass@1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from amir_grpo.study.gains import gain
from amir_grpo.study.plan import Plan
from amir_grpo.study.results import Studies, StudyResults, about, shared_runs
from amir_grpo.study.theory import cosine_table

PASS_RATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_BIN = 0.1  # of pass rates
_PREDICTIONS = ["study", "regime", "arm", "about", "pass_rate", "cosine", "grpo_cosine", "measured", "grpo_measured"]
_PREDICTIONS += ["gain", "gain_low", "gain_high", "detectable", "runs"]


def arms_of_regimes(plan: Plan) -> list[str]:
    """The arms of the plan that one theory covers, as `regime/arm`: those with rewards of their own group alone."""
    left_out = ("two-step-grpo", "mixture-0.6-permuted", "published")
    return [f"{regime.name}/{arm}" for regime in plan.regimes for arm in regime.arms if arm not in left_out]


def measured_cosines(studies: Studies, arms: Sequence[str]) -> pd.DataFrame:
    """Cosine of the updates with centred correctness, by the share of right completions in the rollout.

    Columns regime, about, pass_rate (mean of the bin), cosine, rollouts; means over rollouts and runs.
    """
    frames = []
    for arm in arms:
        rows = _beside(studies, arms, arm).part("rollouts", arm).dropna(subset=["cosine_update"])
        if len(rows):
            found = rows.groupby((rows["right"] / _BIN).astype(int)).agg(
                pass_rate=("right", "mean"), cosine=("cosine_update", "mean"), rollouts=("right", "size")
            )
            frames.append(found.assign(regime=arm.partition("/")[0], about=about(arm)))
    columns = ["regime", "about", "pass_rate", "cosine", "rollouts"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _beside(studies: Studies, arms: Sequence[str], arm: str) -> StudyResults:
    """The study from which the arms of one regime are shown beside one another."""
    regime = arm.partition("/")[0]
    return studies.with_most(*(path for path in arms if path.partition("/")[0] == regime))


def prediction_table(studies: Studies, plan: Plan) -> pd.DataFrame:
    """Theory beside measurement: one row per regime and arm that is compared with GRPO of its regime.

    Columns study, regime, arm, about, pass_rate (mean over GRPO's rollouts in the runs that both have), cosine and
    grpo_cosine (predicted at that pass rate), measured and grpo_measured (the same, mean over rollouts), gain, gain_low,
    gain_high (pass@1, points), detectable (the smallest gain found at the plan's power), runs.
    """
    rows = []
    for arm in arms_of_regimes(plan):
        regime, _, name = arm.partition("/")
        grpo = f"{regime}/grpo"
        if name == "grpo" or (study := studies.first(arm, grpo)) is None:
            continue
        tables = [study.by_run("rollouts", path) for path in (arm, grpo)]
        runs = shared_runs(*tables)
        cosines = [pd.concat([table[run] for run in runs])["cosine_update"].mean() for table in tables]
        rate = float(pd.concat([tables[1][run] for run in runs])["right"].mean())
        predicted = cosine_table([arm, grpo], [rate])["cosine"]
        found = gain(study, arm, grpo)
        low, high = found.interval(1 - plan.alpha)
        row = {"study": study.name, "regime": regime, "arm": name, "about": about(arm), "pass_rate": rate}
        row |= {
            "cosine": predicted[0],
            "grpo_cosine": predicted[1],
            "measured": cosines[0],
            "grpo_measured": cosines[1],
        }
        row |= {"gain": found.estimate, "gain_low": low, "gain_high": high}
        rows.append(row | {"detectable": found.detectable(plan.alpha, plan.power), "runs": found.runs})
    return pd.DataFrame(rows, columns=_PREDICTIONS)


def uniform_table(studies: Studies, arms: Sequence[str]) -> pd.DataFrame:
    """How much of the update goes into groups that are all right or all wrong: columns regime, about, mixed (share of
    groups), uniform_share (of the update); means over rollouts and runs, percent."""
    rows = []
    for arm in arms:
        part = _beside(studies, arms, arm).part("rollouts", arm)
        if len(part):
            row = {"regime": arm.partition("/")[0], "about": about(arm)}
            rows.append(row | {name: 100 * float(np.nanmean(part[name])) for name in ("mixed", "uniform_share")})
    return pd.DataFrame(rows)
