"""A run's tables, computed from its completions.

The samples table has one row per completion, with columns policy (base, grpo, amir_grpo), benchmark, problem_id, sample
(0 to n-1), text, tokens, finish_reason (stop, length), correct, logprob and seed. Shares and pass rates are in
percent, gains in percentage points, margins in nats per token.
"""

from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from amir_grpo import metrics
from amir_grpo.choices import METHODS, POLICIES, check_names


def correct_counts(samples: pd.DataFrame) -> pd.DataFrame:
    """Per policy, benchmark and problem: columns policy, benchmark, problem_id, correct and samples (both counts).

    Order as first met. Raises ValueError where a completion is there twice, as when two runs were put together.
    """
    key = ["policy", "benchmark", "problem_id", "sample"]
    missing = [column for column in [*key, "correct"] if column not in samples.columns]
    if missing:
        raise ValueError(f"the samples table has no column {', '.join(missing)}.\nIt needs {', '.join(key)}, correct.")
    twice = samples.duplicated(key)
    if twice.any():
        raise ValueError(
            f"{twice.sum()} completions appear twice, the first being {tuple(samples.loc[twice, key].iloc[0])}.\n"
            "One table holds one run: select one training seed."
        )
    return (
        samples.assign(correct=samples["correct"].astype(bool))
        .groupby(key[:-1], sort=False, observed=True)["correct"]
        .agg(correct="sum", samples="size")
        .reset_index()
    )


def _paired_counts(
    counts: pd.DataFrame, benchmark: str, policies: Sequence[str] = POLICIES
) -> tuple[dict[str, np.ndarray], int]:
    """Correct counts of each policy on the same problems in the same order, and the samples per problem."""
    part = counts[(counts["benchmark"] == benchmark) & counts["policy"].isin(policies)]
    wide = part.pivot_table(index="problem_id", columns="policy", values="correct", sort=False, observed=True)
    wide = wide.reindex(columns=list(policies))
    absent = wide.isna().sum()
    if absent.any():
        raise ValueError(
            f"{benchmark}: of {len(wide)} problems, these are without completions: "
            + ", ".join(f"{policy} {number}" for policy, number in absent.items() if number)
            + ".\nA gain is paired by problem: sample every policy on every problem."
        )
    if part["samples"].min() != part["samples"].max():
        raise ValueError(
            f"{benchmark}: {part['samples'].min()} to {part['samples'].max()} samples per problem.\n"
            "Every policy needs the same number for every problem: finish the sampling."
        )
    return {policy: wide[policy].to_numpy(dtype=int) for policy in policies}, int(part["samples"].iloc[0])


MAIN_COLUMNS = (
    "benchmark k model grpo amir_grpo gain gain_low gain_high p_value p_holm base problems samples "
    "grpo_low grpo_high amir_grpo_low amir_grpo_high base_low base_high"
).split()


def main_table(samples: pd.DataFrame, ks: Sequence[int] = (1, 2, 4), model: str = "sandbox") -> pd.DataFrame:
    """The main table: one row for each benchmark and k, in percent; benchmarks in the order first met.

    Columns `MAIN_COLUMNS`. The gain is AMIR-GRPO minus GRPO, paired
    by problem (`metrics.paired_gain`); p_holm is corrected over all rows. `samples` is n, for each problem.
    Raises ValueError where the policies were not all sampled alike.
    """
    counts = correct_counts(samples)
    rows = []
    for benchmark in counts["benchmark"].unique():
        correct, n = _paired_counts(counts, benchmark)
        for k in ks:
            solved = {policy: metrics.pass_at_k(correct[policy], n, k) for policy in POLICIES}
            gain = metrics.paired_gain(solved["amir_grpo"], solved["grpo"])
            level = {policy: metrics.mean_interval(solved[policy]) for policy in POLICIES}
            row = {"benchmark": benchmark, "k": k, "model": model}
            row |= gain.columns(scale=100) | {"problems": len(correct["base"]), "samples": n}
            for policy in (*METHODS, "base"):
                row |= level[policy].columns(policy, 100)
            rows.append(row)
    table = pd.DataFrame(rows, columns=MAIN_COLUMNS)
    table["p_holm"] = metrics.holm(table["p_value"])
    return table


def coverage_table(samples: pd.DataFrame, benchmark: str | None = None) -> pd.DataFrame:
    """Who solves the problems that at least one policy solves; a problem is solved if one of its n samples is correct.

    Columns base, grpo, amir_grpo (1 = solves), percent and problems, as in the published coverage table: of the
    problems of one benchmark, or of all, that at least one policy solves. The last row, no policy, is 0 so.
    `attrs["problems"]` is the number of all problems, the unsolved ones too.
    """
    counts = correct_counts(samples)
    names = list(counts["benchmark"].unique())
    check_names("benchmark", [] if benchmark is None else [benchmark], names)
    parts = [_paired_counts(counts, name)[0] for name in (names if benchmark is None else [benchmark])]
    solved = {policy: np.concatenate([part[policy] > 0 for part in parts]) for policy in POLICIES}
    coverage = metrics.coverage_patterns(solved["base"], solved["grpo"], solved["amir_grpo"])
    table = pd.DataFrame(coverage.patterns, columns=list(POLICIES))
    problems = np.where(table.any(axis=1), coverage.counts, 0)
    table["percent"] = 100.0 * problems / max(coverage.solved, 1)
    table["problems"] = problems
    table.attrs["problems"] = len(solved["base"])
    return table


def mixed_problem(samples: pd.DataFrame) -> str:
    """The problem to look at: the one whose share of right completions is nearest to a half.

    Of equals the one with the most different completions, then the first.

    Args:
        samples: Columns problem_id, text and correct, one row per completion.
    """
    problems = samples.groupby("problem_id", sort=False).agg(right=("correct", "mean"), texts=("text", "nunique"))
    distance = (problems["right"] - 0.5).abs().round(9)
    return str(
        problems.assign(distance=distance, texts=-problems["texts"])
        .sort_values(["distance", "texts"], kind="stable")
        .index[0]
    )


UNSCALED = ("tokens", "brier", "ece")  # quantities of a policy summary that are no percentages
SUMMARY_COLUMNS = ["policy", "benchmark", "quantity", "estimate", "estimate_low", "estimate_high"]
SUMMARY_COLUMNS += ["problems", "samples"]


def policy_summary(
    samples: pd.DataFrame, ks: Sequence[int] = (1, 2, 4), greedy: pd.DataFrame | None = None
) -> pd.DataFrame:
    """What each policy does on each benchmark, one row per quantity: columns `SUMMARY_COLUMNS`, ends of 95 % intervals
    over problems.

    Quantities: pass@k for each k; greedy (percent right of one greedy completion per problem) where those are given;
    tokens (mean number per completion); truncated (percent that ended for length); formatted (percent in the strict
    format). Where the samples have a column confidence also stated (percent that state one) and, of those that do,
    brier (mean of (confidence - right)², 0 is best) and ece (expected calibration error, `metrics.calibration_error`).
    Shares have the interval of `metrics.mean_interval` within 0 and 100, tokens its t-interval.
    """
    counts = correct_counts(samples)
    samples = samples.assign(truncated=samples["finish_reason"] == "length")
    greedy_counts = None if greedy is None else correct_counts(greedy)
    rows = []
    for (policy, benchmark), part in counts.groupby(["policy", "benchmark"], sort=False, observed=True):
        ours = samples[(samples["policy"] == policy) & (samples["benchmark"] == benchmark)]
        by_problem = ours.groupby("problem_id", sort=False)
        n = part["samples"].to_numpy()
        found = {f"pass@{k}": metrics.pass_at_k(part["correct"].to_numpy(), n, k) for k in ks}
        if greedy_counts is not None:
            one = greedy_counts[(greedy_counts["policy"] == policy) & (greedy_counts["benchmark"] == benchmark)]
            found["greedy"] = one["correct"].to_numpy(dtype=float)
        intervals = {name: metrics.mean_interval(values) for name, values in found.items()}
        intervals["tokens"] = metrics.mean_interval(by_problem["tokens"].mean(), bounds=None)
        for name in ("truncated", "formatted"):
            if name in ours:
                intervals[name] = metrics.mean_interval(by_problem[name].mean())
        if "confidence" in ours:
            intervals |= _calibration(ours)
        for quantity, level in intervals.items():
            row = {"policy": policy, "benchmark": benchmark, "quantity": quantity}
            row |= level.columns("estimate", 1 if quantity in UNSCALED else 100)
            rows.append(row | {"problems": len(part), "samples": 1 if quantity == "greedy" else int(n.min())})
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def _calibration(samples: pd.DataFrame) -> dict[str, metrics.Interval]:
    states = samples["confidence"].notna()
    stated = samples[states]
    error = (stated["confidence"] - stated["correct"]) ** 2
    return {
        "stated": metrics.mean_interval(states.groupby(samples["problem_id"]).mean()),
        "brier": metrics.mean_interval(error.groupby(stated["problem_id"]).mean()),
        "ece": metrics.calibration_error(stated["problem_id"], stated["confidence"], stated["correct"]),
    }


def reliability_table(samples: pd.DataFrame) -> pd.DataFrame:
    """How often completions of a stated confidence are right: one row for each policy and bin of ten.

    Columns policy, low, high (of the bin), confidence (mean stated), right (share that is right, by problem), right_low,
    right_high (95 % interval over problems) and completions. Completions that state no confidence are left out.
    """
    stated = samples[samples["confidence"].notna()]
    stated = stated.assign(bin=metrics.confidence_bins(stated["confidence"]))
    rows = []
    for (policy, place), part in stated.groupby(["policy", "bin"], sort=False, observed=True):
        right = metrics.mean_interval(part.groupby(["benchmark", "problem_id"])["correct"].mean())
        row = {"policy": policy, "low": place / metrics.BINS, "high": (place + 1) / metrics.BINS}
        row |= {"confidence": part["confidence"].mean(), **right.columns("right")}
        rows.append(row | {"completions": len(part)})
    columns = ["policy", "low", "high", "confidence", "right", "right_low", "right_high", "completions"]
    order = list(samples["policy"].unique())
    rows.sort(key=lambda row: (order.index(row["policy"]), row["low"]))
    return pd.DataFrame(rows, columns=columns)


COMPARISON_COLUMNS = (
    "benchmark quantity new old new_percent old_percent gain gain_low gain_high p_value p_holm problems samples"
).split()


def comparison_table(
    samples: pd.DataFrame, ks: Sequence[int] = (1, 2, 4), greedy: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Every two policies of a samples table, paired by problem: columns `COMPARISON_COLUMNS`.

    One row for each pair of policies (the later in the table is `new`), benchmark and quantity: pass@k for each k,
    and greedy where greedy completions are given. Gain and its interval in percentage points (`metrics.paired_gain`);
    p_holm is corrected over all rows. Raises ValueError where the policies were not all sampled alike.
    """
    counts = correct_counts(samples)
    greedy_counts = None if greedy is None else correct_counts(greedy)
    names = list(counts["policy"].unique())
    rows = []
    for benchmark in counts["benchmark"].unique():
        correct, n = _paired_counts(counts, benchmark, names)
        solved = {f"pass@{k}": {name: metrics.pass_at_k(correct[name], n, k) for name in names} for k in ks}
        if greedy_counts is not None:
            solved["greedy"] = _paired_counts(greedy_counts, benchmark, names)[0]
        for (old, new), (quantity, values) in product(combinations(names, 2), solved.items()):
            gain = metrics.paired_gain(values[new], values[old])
            row = {"benchmark": benchmark, "quantity": quantity, "new": new, "old": old}
            row |= {"new_percent": 100 * np.mean(values[new]), "old_percent": 100 * np.mean(values[old])}
            drawn = {"problems": len(values[new]), "samples": 1 if quantity == "greedy" else n}
            rows.append(row | gain.columns(scale=100) | drawn)
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
    table["p_holm"] = metrics.holm(table["p_value"])
    return table


MARGIN_COLUMNS = ["reading", "method", "benchmark", "problem_id", "margin"]


def margin_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Log-probability margins of every problem with right and wrong completions, in both readings.

    `scores`: one row per completion and scorer, columns scorer (whose log-probability it is), sampler (who wrote the
    completion), benchmark, problem_id, tokens, correct, logprob. Columns of the result: reading, method, benchmark,
    problem_id, margin (nats per token). Reading "own": each method scores what it sampled itself. Reading "shared":
    every method scores the same completions, pooled over the samplers that all scorers scored; absent where there is
    no such sampler or only one scorer. A completion without tokens has no log-probability per token and is left out.
    Raises ValueError where the scorers of a sampler's completions did not score the same ones.
    """
    scores = scores[scores["tokens"] > 0]
    scores = scores.assign(correct=scores["correct"].astype(bool), per_token=scores["logprob"] / scores["tokens"])
    scorers = list(scores["scorer"].unique())
    by_sampler = scores.groupby("sampler", sort=False, observed=True)["scorer"].nunique()
    common = by_sampler.index[by_sampler == len(scorers)] if len(scorers) > 1 else []
    shared = scores[scores["sampler"].isin(common)]
    _check_scored_alike(shared, scorers)
    frames = []
    for reading, part in (("own", scores[scores["scorer"] == scores["sampler"]]), ("shared", shared)):
        for (method, benchmark), group in part.groupby(["scorer", "benchmark"], sort=False, observed=True):
            problems, values = metrics.margins(group["problem_id"], group["per_token"], group["correct"])
            frames.append(
                pd.DataFrame(
                    {
                        "reading": reading,
                        "method": method,
                        "benchmark": benchmark,
                        "problem_id": problems,
                        "margin": values,
                    }
                )
            )
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True)[MARGIN_COLUMNS] if frames else pd.DataFrame(columns=MARGIN_COLUMNS)


def _check_scored_alike(shared: pd.DataFrame, scorers: Sequence[str]) -> None:
    """Raise ValueError where scorers have another number of completions of a problem, or of right ones."""
    problem = ["sampler", "benchmark", "problem_id"]
    counts = shared.groupby([*problem, "scorer"], observed=True)["correct"].agg(["size", "sum"]).reset_index()
    by_problem = counts.groupby(problem, observed=True)
    least, most = by_problem[["size", "sum"]].min(), by_problem[["size", "sum"]].max()
    same = (by_problem["scorer"].size() == len(scorers)) & (least == most).all(axis=1)
    if not same.all():
        raise ValueError(
            f"the completions of {tuple(same.index[~same][0])} differ between the scorers "
            f"{', '.join(scorers)}.\nScore the same completions with every policy."
        )


def margin_summary(margins: pd.DataFrame) -> pd.DataFrame:
    """Per reading and method: columns reading, method, mean, mean_low, mean_high (95 % t-interval over problems; NaN
    for fewer than two), positive (percent of the margins above 0) and problems."""
    rows = []
    for (reading, method), part in margins.groupby(["reading", "method"], sort=False, observed=True):
        values = part["margin"].to_numpy(dtype=float)
        mean = metrics.mean_interval(values, bounds=None)
        row = {"reading": reading, "method": method, **mean.columns("mean")}
        rows.append(row | {"positive": 100 * np.mean(values > 0), "problems": len(values)})
    columns = ["reading", "method", "mean", "mean_low", "mean_high", "positive", "problems"]
    return pd.DataFrame(rows, columns=columns)


def coverage_test(coverage: pd.DataFrame) -> dict[str, float]:
    """Do more problems fall to AMIR-GRPO alone than to GRPO alone? McNemar's exact test on a coverage table.

    Returns only_amir_grpo and only_grpo (problems that the one solves and the other does not, whatever the base does)
    and p_value (two-sided binomial test of equal odds; 1 where there is no such problem).
    """
    counts = {
        "only_amir_grpo": int(coverage.loc[coverage["amir_grpo"] > coverage["grpo"], "problems"].sum()),
        "only_grpo": int(coverage.loc[coverage["amir_grpo"] < coverage["grpo"], "problems"].sum()),
    }
    either = sum(counts.values())
    p_value = stats.binomtest(counts["only_amir_grpo"], either).pvalue if either else 1.0
    return counts | {"p_value": float(p_value)}


def shared_margin_gain(margins: pd.DataFrame) -> dict[str, float]:
    """AMIR-GRPO's margin minus GRPO's, paired by problem, in the reading "shared" of a margin table.

    Returns problems, level (GRPO's mean margin), gain, gain_low, gain_high (nats per token, 95 % interval over problems)
    and p_value; all but problems are NaN where no problem has right and wrong completions.
    """
    shared = margins[margins["reading"] == "shared"]
    wide = shared.pivot(index=["benchmark", "problem_id"], columns="method", values="margin")
    wide = wide.reindex(columns=list(METHODS)).astype(float)
    gain = metrics.paired_gain(wide["amir_grpo"].to_numpy(), wide["grpo"].to_numpy(), bounds=None)
    return {"problems": len(wide), "level": wide["grpo"].mean(), **gain.columns()}


class RewardEnds(NamedTuple):
    """Mean reward of the first and of the last `steps` steps of a training; NaN where no step has a reward."""

    first: float
    last: float
    steps: int


def reward_ends(log: pd.DataFrame) -> RewardEnds:
    """Where a training began and ended: means over the first and the last tenth of its steps, at least one step each.

    Args:
        log: A training log, one row per step; a step that reuses a rollout has no reward of its own and is left out.
    """
    reward = log["reward"].dropna()
    steps = reward_window(len(reward))
    return RewardEnds(float(reward.head(steps).mean()), float(reward.tail(steps).mean()), steps)


def reward_window(steps: int) -> int:
    """How many steps one mean of rewards is taken over, in figures and sentences alike: a tenth of `steps`, at least 1."""
    return max(1, steps // 10)


def preference_share(log: pd.DataFrame) -> float:
    """Share of the update that the preference term makes, 0 to 1: the median over the steps; NaN where none has it."""
    return float(log["preference/share"].median()) if "preference/share" in log else np.nan


def with_gain(table: pd.DataFrame) -> pd.DataFrame:
    """The main table with its gain column, computed where the table (as the published one) has none."""
    return table if "gain" in table.columns else table.assign(gain=table["amir_grpo"] - table["grpo"])
