"""The tables of the study that data/results keeps, derived from the results of its runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from amir_grpo.results.style import signed
from amir_grpo.study.arms import ARMS, REGIMES, TITLES, about
from amir_grpo.study.claims import CLAIMS, claims_table, plan_table
from amir_grpo.study.inference import Hypothesis, detectable_gain, estimated_over_true
from amir_grpo.study.kept import LONGER, TRAINED, Studies, StudyResults, shared_runs
from amir_grpo.study.plan import Plan
from amir_grpo.system.files import shipped


def study_tables(studies: Studies, plan: Plan) -> dict[str, pd.DataFrame]:
    """The tables by name: type_one_error (of the test in use, from inference_error), levels, power, tests, verdicts."""
    errors = pd.read_csv(shipped("data/results") / "inference_error.csv")
    usual = (errors["test"] == "in use") & (errors["shape"] == "normal") & (errors["problems"] == "as measured")
    return {
        "type_one_error": errors[usual],
        "levels": level_table(studies),
        "power": power_table(studies.ordered[-1], plan),
        "tests": plan_table(studies.main, plan),
        "verdicts": claims_shown(claims_table(studies, plan)),
    }


def level_table(studies: Studies) -> pd.DataFrame:
    """pass@1 of every arm: columns study, regime, arm, about, runs, trained, longer, spread (standard deviation over the
    runs, of the trained lengths), seed_spread (the same over the seeds of a base policy, NaN with one each), rewards;
    percent."""
    found, rows = {path for study in studies.ordered for path in study.runs["path"]}, []
    for path in (path for regime in REGIMES for path, arm in ARMS.items() if path in found and arm.regime == regime):
        study = studies.first(path)
        trained, longer = (
            pd.Series({run: 100 * rates.mean() for run, rates in study.solved(path, group).items()}, dtype=float)
            for group in (TRAINED, LONGER)
        )
        regime, _, arm = path.partition("/")
        row = {"study": study.name, "regime": regime, "arm": arm, "about": about(path), "runs": len(trained)}
        row |= {"trained": trained.mean(), "longer": longer.mean(), "spread": trained.std(ddof=1)}
        within = trained.groupby(level=0).var(ddof=1).mean()  # of base policies with one seed there is none
        rows.append(row | {"seed_spread": np.sqrt(within), "rewards": TITLES[regime]})
    return pd.DataFrame(rows)


def power_table(study: StudyResults, plan: Plan) -> pd.DataFrame:
    """The power of the plan's confirmation at the spread of gains over the runs of this study.

    With one run per base policy, base policies and seeds cannot be told apart. So both ends are given: all of the spread
    from seeds, which more seeds average out, and all of it from base policies, which they do not.

    Returns:
        One row per test that has runs: number (from 1), test, about, runs, spread (standard deviation of a run's gain,
        points), planned (runs of the confirmation), and for either end (_seeds, _bases) detectable (the smallest gain found
        at the plan's power, points) and shown_if_equal (the chance to show the hypothesis where the arms are equal; NaN
        for "greater").
    """
    bases, rows = plan.runs.base_policies, []
    for number, test in enumerate(plan.tests, 1):
        if not study.has(*test.pair):
            continue
        new, old = (study.solved(path) for path in test.pair)
        gains = pd.Series([new[run].mean() - old[run].mean() for run in shared_runs(new, old)]) * 100
        row = {"number": number, "test": test.name, "about": test.about, "runs": len(gains)}
        row |= {"spread": gains.std(ddof=1), "planned": min(plan.planned[path] for path in test.pair)}
        for end, spreads in (("seeds", (row["spread"], 0.0)), ("bases", (0.0, row["spread"]))):
            error = design_error(bases, row["planned"] // bases, *spreads)
            row[f"detectable_{end}"] = detectable_gain(error, bases - 1, plan.alpha, plan.power)
            chance = power_if_equal(test.hypothesis, error, bases - 1, plan.margin, plan.alpha)
            row[f"shown_if_equal_{end}"] = chance
        rows.append(row)
    return pd.DataFrame(rows)


def design_error(bases: int, seeds: int, seed_sd: float, base_sd: float = 0.0) -> float:
    """Return the standard error to expect of `compare` with `bases` x `seeds` runs.

    `seed_sd`: standard deviation of a run's mean gain over seeds; `base_sd`: of the gain over base policies.
    """
    return float(np.sqrt(base_sd**2 / bases + seed_sd**2 / (bases * seeds)))


def power_if_equal(hypothesis: Hypothesis, standard_error: float, freedom: int, margin: float, alpha: float) -> float:
    """Return the chance that two equal arms are shown to be EQUIVALENT, or one of them NOT_GREATER; NaN for GREATER."""
    if hypothesis is Hypothesis.GREATER:
        return np.nan
    if standard_error == 0:
        return 1.0
    room = margin / standard_error - stats.t.ppf(1 - alpha, freedom) * estimated_over_true(freedom)
    below = stats.norm.cdf(room)
    return float(np.mean(np.maximum(2 * below - 1, 0) if hypothesis is Hypothesis.EQUIVALENT else below))


def claims_shown(table: pd.DataFrame) -> pd.DataFrame:
    """`claims_table` as text: columns claim, test, result, detectable, verdict, study; one row per test."""
    rows = []
    for row in table.to_dict("records"):
        estimate, low, high = (signed(row[name], 2) for name in ("gain", "gain_low", "gain_high"))
        shown = {
            "claim": f"{CLAIMS.index(row['claim']) + 1}. {row['claim']}",
            "test": f"{row['test']} ({row['strength']})",
        }
        shown |= {"result": f"{estimate} {row['unit']} [{low}, {high}]"}
        shown |= {"detectable": signed(row["detectable"], 2).removeprefix("+")}
        rows.append(shown | {name: row[name] for name in ("verdict", "study")})
    return pd.DataFrame(rows)
