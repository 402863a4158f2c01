"""Tables of an evaluation, from its completions: each policy's results, each pair compared; and the paper's tables.

A table of samples has one row per completion, with columns policy, benchmark, problem_id, sample (0 to n-1), tokens,
finish_reason (stop, length), correct and, if known, formatted and confidence. Shares and pass rates are in percent,
gains in percentage points.
"""

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd

from amir_grpo import metrics
from amir_grpo.choices import POLICY_NAMES, check_names
from amir_grpo.results.style import p_text
from amir_grpo.system.files import shipped

UNSCALED = ("tokens", "brier", "ece")  # quantities that are not shares


def per_problem(
    samples: pd.DataFrame, ks: Sequence[int] = (1, 2, 4), greedy: pd.DataFrame | None = None
) -> dict[str, pd.DataFrame]:
    """Tabulate results by problem, a table per quantity: rows (benchmark, problem_id), a column per policy.

    Quantities: pass@k for each k; greedy (1 if the greedy completion is right), if given; means over the problem's
    completions of tokens, truncated (ended for length), formatted, stated (states a confidence) and brier (squared
    difference of stated confidence and success, NaN without one). Quantities without a column are left out.

    Raises:
        ValueError: If a completion appears twice, or the policies were not sampled alike.
    """
    samples = samples.assign(correct=samples["correct"].astype(float), truncated=samples["finish_reason"] == "length")
    if (twice := samples.duplicated(["policy", "benchmark", "problem_id", "sample"])).any():
        raise ValueError(
            f"{twice.sum()} completions appear twice.\nOne table holds one run: select one training seed."
        )
    right, drawn = _pivot(samples, "correct", "sum"), _pivot(samples, "correct", "count").fillna(0)
    n = int(drawn.max(axis=None))
    if drawn.min(axis=None) != n:
        raise ValueError(
            f"{int((drawn != n).sum(axis=None))} problems have fewer than {n} completions of a policy.\n"
            "Gains are paired by problem: sample every policy on every problem, the same number of times."
        )
    found = {f"pass@{k}": right.assign(**dict(zip(right, metrics.pass_at_k(right, n, k).T, strict=True))) for k in ks}
    if greedy is not None:
        found["greedy"] = _pivot(greedy.assign(correct=greedy["correct"].astype(float)), "correct")
    if "confidence" in samples:
        error = (samples["confidence"] - samples["correct"]) ** 2
        samples = samples.assign(stated=samples["confidence"].notna(), brier=error)
    names = ("tokens", "truncated", "formatted", "stated", "brier")
    return found | {name: _pivot(samples, name) for name in names if name in samples}


def _pivot(completions: pd.DataFrame, value: str, by: str = "mean") -> pd.DataFrame:
    groups = completions.astype({value: float}).groupby(["benchmark", "problem_id", "policy"], sort=False)
    return groups[value].agg(by).unstack("policy")[list(completions["policy"].unique())]


def policy_summary(
    samples: pd.DataFrame, ks: Sequence[int] = (1, 2, 4), greedy: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the mean of each quantity of `per_problem` by policy and benchmark, with its 95 % interval over problems.

    Columns policy, benchmark, quantity, estimate, estimate_low, estimate_high, problems and samples (per problem). If
    confidence is stated, ece is added, the expected calibration error (`metrics.calibration_error`).
    """
    found, rows = per_problem(samples, ks, greedy), []
    n = int(samples["sample"].max()) + 1
    for policy, benchmark in product(samples["policy"].unique(), samples["benchmark"].unique()):
        level = {}
        for quantity, table in found.items():
            values = table.loc[benchmark, policy].dropna()
            level[quantity] = metrics.mean_interval(values, bounds=None if quantity == "tokens" else (0, 1))
        if "confidence" in samples:
            own = samples[(samples["policy"] == policy) & (samples["benchmark"] == benchmark)].dropna(
                subset="confidence"
            )
            level["ece"] = metrics.calibration_error(own["problem_id"], own["confidence"], own["correct"])
        problems = len(found[f"pass@{ks[0]}"].loc[benchmark])
        for quantity, interval in level.items():
            row = {"policy": policy, "benchmark": benchmark, "quantity": quantity}
            row |= interval.columns("estimate", 1 if quantity in UNSCALED else 100)
            rows.append(row | {"problems": problems, "samples": 1 if quantity == "greedy" else n})
    return pd.DataFrame(rows)


COMPARISON_COLUMNS = (
    "benchmark quantity new old new_percent old_percent gain gain_low gain_high p_value p_holm problems samples"
).split()


def comparison_table(
    samples: pd.DataFrame, ks: Sequence[int] = (1, 2, 4), greedy: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Compare each pair of policies by problem, in pass@k and greedy: columns `COMPARISON_COLUMNS`.

    The later policy of the samples is `new`. The gain and its interval are in percentage points (`metrics.paired_gain`);
    p_holm is corrected over all rows.
    """
    found = per_problem(samples, ks, greedy)
    quantities = [name for name in found if name.startswith("pass@") or name == "greedy"]
    n, policies = int(samples["sample"].max()) + 1, samples["policy"].unique()
    rows = []
    for benchmark, (old, new), quantity in product(
        samples["benchmark"].unique(), combinations(policies, 2), quantities
    ):
        solved = found[quantity].loc[benchmark]
        row = {"benchmark": benchmark, "quantity": quantity, "new": new, "old": old}
        row |= {"new_percent": 100 * solved[new].mean(), "old_percent": 100 * solved[old].mean()}
        row |= metrics.paired_gain(solved[new], solved[old]).columns(scale=100)
        rows.append(row | {"problems": len(solved), "samples": 1 if quantity == "greedy" else n})
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
    return table.assign(p_holm=metrics.holm(table["p_value"].astype(float)))


def reliability_table(samples: pd.DataFrame) -> pd.DataFrame:
    """Return success by stated confidence, a row per policy and bin (of ten), without completions that state none.

    Columns policy, low and high (ends of the bin), confidence (mean of those stated), right (share that is right, by
    problem), right_low and right_high (its 95 % interval over problems), completions.
    """
    stated = samples[samples["confidence"].notna()]
    stated = stated.assign(bin=metrics.confidence_bins(stated["confidence"]))
    rows = []
    for policy, own in stated.groupby("policy", sort=False):
        for place, part in own.groupby("bin"):
            right = metrics.mean_interval(part.groupby(["benchmark", "problem_id"])["correct"].mean())
            row = {"policy": policy, "low": place / metrics.BINS, "high": (place + 1) / metrics.BINS}
            row |= {"confidence": part["confidence"].mean(), **right.columns("right")}
            rows.append(row | {"completions": len(part)})
    return pd.DataFrame(rows)


def published_table(name: str) -> pd.DataFrame:
    """Return a table of the paper (arXiv 2601.03661), "table1", "coverage" or "margin", or its benchmarks' "sizes".

    data/published/README.md explains the columns. Raises ValueError for another name.
    """
    check_names("published table", [name], ("table1", "coverage", "margin", "sizes"))
    return pd.read_csv(shipped("data/published") / f"{name}.csv")


# --- as people read them ------------------------------------------------------------------------------------------


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the policies' display names, in its headings and in the columns that name a policy."""
    columns = [column for column in ("policy", "method", "new", "old") if column in table]
    names = {column: table[column].map(lambda name: POLICY_NAMES.get(name, name)) for column in columns}
    return table.assign(**names).rename(columns=POLICY_NAMES)


def rounded(table: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """Return a table with rounded numbers, without −0.0, and p-values as text."""
    numbers = table.select_dtypes("float")
    return table.assign(
        **{c: numbers[c].map(p_text) if c.startswith("p_") else numbers[c].round(digits) + 0.0 for c in numbers}
    )


def wide_summary(summary: pd.DataFrame) -> pd.DataFrame:
    """Return a policy summary with one row per benchmark and policy, its estimates and intervals as text."""

    def text(row: pd.Series) -> str:
        digits = 3 if row["quantity"] in ("brier", "ece") else 1
        estimate, *ends = (f"{row[end]:.{digits}f}" for end in ("estimate", "estimate_low", "estimate_high"))
        known = np.isfinite(row["estimate_low"])
        return f"{estimate} [{ends[0]},\u00a0{ends[1]}]" if known else estimate.replace("nan", "–")

    summary = named(summary).assign(text=summary.apply(text, axis=1))
    wide = summary.pivot_table("text", ["benchmark", "policy"], "quantity", "first", sort=False)
    return wide.reindex(summary["benchmark"].unique(), level="benchmark")


def reward_ends(log: pd.DataFrame) -> tuple[float, float, int]:
    """Return the mean reward of the first and of the last tenth of a training's steps, and their number, at least one.

    Args:
        log: A row per step; a step that reuses a rollout has no reward of its own (NaN) and is left out.
    """
    reward = log["reward"].dropna()
    steps = max(1, len(reward) // 10)
    return float(reward.head(steps).mean()), float(reward.tail(steps).mean()), steps
