"""The paper's claims, each as a test on the evidence: tables in, tables with intervals, p-values and verdicts out.

Evidence is what `amir_grpo.study.running.collect` returns: the results of several seeds an arm, on the same problems.
Every interval here is for new seeds and new problems (`metrics.seeds_gain`), shares and pass rates are in percent, gains
in percentage points. A verdict is computed from its interval: "supported" where the interval of what the claim says is
above 0 lies above 0, "not supported" where it lies below, "not distinguishable" where it holds 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from amir_grpo import metrics

Evidence = Mapping[str, pd.DataFrame]

SUPPORTED, REFUTED, OPEN = "supported", "not supported", "not distinguishable"
GAIN_COLUMNS = (
    "arm about against against_about benchmarks quantity estimate against_estimate gain low high p_value p_holm "
    "seeds problems"
).split()


def verdict(low: float, high: float) -> str:
    """What an interval says of a claim that the quantity is above 0."""
    return SUPPORTED if low > 0 else REFUTED if high < 0 else OPEN


def groups(evidence: Evidence) -> dict[str, list[str]]:
    """Benchmarks by group: problems of the lengths that training had, and longer ones."""
    table = evidence["benchmarks"]
    return {group: list(part["benchmark"]) for group, part in table.groupby("group", sort=False)}


def solved(correct: pd.DataFrame, arm: str, benchmarks: Sequence[str], k: int) -> pd.DataFrame:
    """pass@k of one arm (k = 0: its greedy completion): one row a seed, one column a (benchmark, problem); fractions."""
    part = correct[(correct["arm"] == arm) & correct["benchmark"].isin(benchmarks)]
    if part.empty:
        raise ValueError(f"The evidence has no completions of arm {arm!r} on {', '.join(benchmarks)}.")
    values = part["greedy"] if k == 0 else metrics.pass_at_k(part["correct"], part["samples"], k)
    return part.assign(value=values).pivot(index="seed", columns=["benchmark", "problem"], values="value")


def paired(new: pd.DataFrame, old: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Two seeds × problems tables cut to the seeds and problems that both have."""
    seeds, columns = new.index.intersection(old.index), new.columns.intersection(old.columns)
    return new.loc[seeds, columns].to_numpy(float), old.loc[seeds, columns].to_numpy(float)


def arm_table(evidence: Evidence) -> pd.DataFrame:
    """The arms as people read them: columns arm, about, against, seeds, and the settings that each arm changes."""
    settings = evidence["settings"]
    changes = [", ".join(f"{k} = {v}" for k, v in json.loads(text).items()) for text in settings["changes"]]
    return settings[["arm", "about", "against", "seeds"]].fillna({"against": ""}).assign(changes=changes)


def gain_table(
    evidence: Evidence, arms: Sequence[str], ks: Sequence[int] = (1, 4), against: str | None = None
) -> pd.DataFrame:
    """How far each arm is from the arm it is compared with, paired by seed and problem: columns `GAIN_COLUMNS`.

    One row for each arm, group of benchmarks and k (0: greedy). p_holm is corrected over all rows.

    Args:
        against: Compare with this arm in place of the one that the settings name.
    """
    settings, correct = evidence["settings"].set_index("arm"), evidence["correct"]
    rows = []
    for arm in arms:
        other = against or settings.loc[arm, "against"]
        for group, benchmarks in groups(evidence).items():
            for k in ks:
                new, old = paired(solved(correct, arm, benchmarks, k), solved(correct, other, benchmarks, k))
                gain = metrics.seeds_gain(new, old)
                row = {"arm": arm, "about": settings.loc[arm, "about"], "against": other}
                row |= {"against_about": settings.loc[other, "about"], "benchmarks": group}
                row |= {"quantity": f"pass@{k}" if k else "greedy"}
                row |= {"estimate": 100 * new.mean(), "against_estimate": 100 * old.mean()}
                row |= {"gain": 100 * gain.estimate, "low": 100 * gain.low, "high": 100 * gain.high}
                rows.append(row | {"p_value": gain.p_value, "seeds": new.shape[0], "problems": new.shape[1]})
    table = pd.DataFrame(rows, columns=GAIN_COLUMNS)
    table["p_holm"] = metrics.holm(table["p_value"])
    return table


def readable_gains(gains: pd.DataFrame) -> pd.DataFrame:
    """A gain table as people read it: comparison, benchmarks, quantity, percent, gain with its interval, p (Holm), seeds."""
    cells = [f"{r.gain:+.2f}\u00a0[{r.low:+.2f},\u00a0{r.high:+.2f}]".replace("-", "−") for r in gains.itertuples()]
    return pd.DataFrame(
        {
            "comparison": gains["about"] + " vs " + gains["against_about"],
            "benchmarks": gains["benchmarks"],
            "quantity": gains["quantity"],
            "percent": gains["estimate"],
            "gain (points)": cells,
            "p (Holm)": gains["p_holm"],
            "seeds": gains["seeds"],
        }
    )


def main_table(evidence: Evidence, ks: Sequence[int] = (1, 2, 4)) -> pd.DataFrame:
    """The main table over seeds: as `tables.main_table`, with intervals for new seeds and new problems.

    Columns benchmark, k, model, base, grpo, amir_grpo, gain, gain_low, gain_high, p_value, p_holm, improvement,
    improvement_low, improvement_high (chance in percent that an AMIR-GRPO run beats a GRPO run on a problem), problems,
    samples, seeds.
    """
    correct = evidence["correct"]
    rows = []
    for benchmark in correct["benchmark"].unique():
        for k in ks:
            by_arm = {arm: solved(correct, arm, [benchmark], k) for arm in ("base", "grpo", "amir_grpo")}
            new, old = paired(by_arm["amir_grpo"], by_arm["grpo"])
            gain, improvement = metrics.seeds_gain(new, old), metrics.probability_of_improvement(new, old)
            row = {"benchmark": benchmark, "k": k, "model": evidence["benchmarks"]["model"].iloc[0]}
            row |= {arm: 100 * float(values.to_numpy().mean()) for arm, values in by_arm.items()}
            row |= {"gain": 100 * gain.estimate, "gain_low": 100 * gain.low, "gain_high": 100 * gain.high}
            row |= {"p_value": gain.p_value, "p_holm": np.nan, "improvement": 100 * improvement.estimate}
            row |= {"improvement_low": 100 * improvement.low, "improvement_high": 100 * improvement.high}
            rows.append(row | {"problems": new.shape[1], "samples": int(correct["samples"].max()), "seeds": len(new)})
    table = pd.DataFrame(rows)
    table["p_holm"] = metrics.holm(table["p_value"])
    return table


# --- 1: richer supervision ----------------------------------------------------------------------------------------


def supervision_table(evidence: Evidence) -> pd.DataFrame:
    """Per arm with a preference term: pairs a group and share of the update, means over the steps of a run.

    Columns arm, about, group_size, pairs, pairs_low, pairs_high (a group), share, share_low, share_high (percent of the
    update) and seeds; 95 % t-intervals over seeds.
    """
    training = evidence["training"].dropna(subset=["pairs"])
    about = evidence["settings"].set_index("arm")["about"]
    rows = []
    for arm, part in training.groupby("arm", sort=False, observed=True):
        part = part.assign(pairs=part["pairs"] / (part["completions"] / part["group_size"]))
        by_seed = part.groupby("seed")[["pairs", "share"]].mean()
        pairs, share = (metrics.mean_interval(by_seed[c], bounds=None) for c in ("pairs", "share"))
        row = {"arm": arm, "about": about[arm], "group_size": int(part["group_size"].iloc[0])}
        row |= {"pairs": pairs.estimate, "pairs_low": pairs.low, "pairs_high": pairs.high}
        row |= {"share": 100 * share.estimate, "share_low": 100 * share.low, "share_high": 100 * share.high}
        rows.append(row | {"seeds": len(by_seed)})
    return pd.DataFrame(rows)


# --- 2: sharper decision boundary ---------------------------------------------------------------------------------


def boundary_table(evidence: Evidence) -> pd.DataFrame:
    """Margin and pair accuracy on the base policy's completions over training, and how far each arm is from GRPO.

    One row for each quantity, arm and step: columns quantity (margin in nats a token, accuracy in percent), arm, step,
    mean, grpo_mean (of the same seeds), gain, low, high, p_value (against GRPO at the same step), seeds, problems. Problems
    are those with right and wrong completions of the base policy in every seed, the same for every arm.
    """
    margins = evidence["margins"]
    rows = []
    for quantity, scale in (("margin", 1.0), ("accuracy", 100.0)):
        wide = margins.pivot(index=["arm", "step", "seed"], columns=["benchmark", "problem"], values=quantity) * scale
        wide = wide.loc[:, wide.notna().all()]
        for arm in margins["arm"].unique():
            for step in sorted(margins["step"].unique()):
                new, old = paired(wide.loc[(arm, step)], wide.loc[("grpo", step)])
                gain = metrics.seeds_gain(new, old)
                row = {"quantity": quantity, "arm": arm, "step": int(step)}
                row |= {"mean": new.mean(), "grpo_mean": old.mean(), "gain": gain.estimate, "low": gain.low}
                row |= {"high": gain.high, "p_value": gain.p_value, "seeds": new.shape[0], "problems": new.shape[1]}
                rows.append(row)
    return pd.DataFrame(rows)


# --- 3: length bias -----------------------------------------------------------------------------------------------

SHORT, LONG = 24, 40  # tokens: wrong completions below the first and from the second on


def pressure_table(evidence: Evidence, arms: Sequence[str]) -> pd.DataFrame:
    """Weight of each token of a wrong completion in the update, by the completion's length, relative to short ones.

    Columns arm, tokens (lower end of the bin), length (mean), relative, low, high (weight relative to that of wrong
    completions under `SHORT` tokens; mean over seeds and t-interval), completions. Negative weights push down; a relative
    weight of 1 means no dilution with length.
    """
    pressure = evidence["pressure"]
    rows = []
    for arm in arms:
        part = pressure[(pressure["arm"] == arm) & (pressure["correct"] == 0)]
        short = part[part["tokens"] < SHORT].groupby("seed").apply(_weight, include_groups=False)
        relative = part.assign(relative=part["token_weight"] / part["seed"].map(short))
        for tokens, group in relative.groupby("tokens"):
            level = metrics.mean_interval(group["relative"], bounds=None)
            row = {"arm": arm, "tokens": tokens, "length": np.average(group["length"], weights=group["completions"])}
            row |= {"relative": level.estimate, "low": level.low, "high": level.high}
            rows.append(row | {"completions": int(group["completions"].sum())})
    return pd.DataFrame(rows)


def _weight(part: pd.DataFrame) -> float:
    return float(np.average(part["token_weight"], weights=part["completions"]))


def dilution_table(evidence: Evidence, pairs: Mapping[str, str]) -> pd.DataFrame:
    """Push on a token of a long wrong completion over that of a short one, and what the preference term changes of it.

    Args:
        pairs: Arm with the preference term -> arm without.

    Returns:
        Columns arm, against, dilution, against_dilution (weight from `LONG` tokens on over that below `SHORT`; 1: no
        bias), gain, low, high, p_value (paired t over seeds: above 0 is less bias), wrong_tokens, against_wrong_tokens
        (mean length of wrong completions in the last fifth of training), wrong_gain, wrong_low, wrong_high, seeds.
    """
    pressure, training = evidence["pressure"], evidence["training"]
    rows = []
    for arm, other in pairs.items():
        ratio = pd.DataFrame({name: _dilution(pressure[pressure["arm"] == name]) for name in (arm, other)}).dropna()
        length = pd.DataFrame({name: _last_wrong(training[training["arm"] == name]) for name in (arm, other)}).dropna()
        change, longer = ratio[arm] - ratio[other], length[arm] - length[other]
        gain, wrong = (metrics.mean_interval(values, bounds=None) for values in (change, longer))
        row = {"arm": arm, "against": other}
        row |= {"dilution": ratio[arm].mean(), "against_dilution": ratio[other].mean()}
        row |= {"gain": gain.estimate, "low": gain.low, "high": gain.high, "p_value": _t_test(change)}
        row |= {"wrong_tokens": length[arm].mean(), "against_wrong_tokens": length[other].mean()}
        row |= {"wrong_gain": wrong.estimate, "wrong_low": wrong.low, "wrong_high": wrong.high}
        rows.append(row | {"seeds": len(ratio)})
    return pd.DataFrame(rows)


def _dilution(pressure: pd.DataFrame) -> pd.Series:
    wrong = pressure[pressure["correct"] == 0]
    short = wrong[wrong["tokens"] < SHORT].groupby("seed").apply(_weight, include_groups=False)
    long = wrong[wrong["tokens"] >= LONG].groupby("seed").apply(_weight, include_groups=False)
    return long / short


def _last_wrong(training: pd.DataFrame) -> pd.Series:
    last = training[training["step"] > 0.8 * training["step"].max()]
    return last.groupby("seed")["tokens_wrong"].mean()


def _t_test(values: pd.Series) -> float:
    if len(values) < 2 or np.ptp(values) == 0:
        return 1.0 if np.allclose(values, 0) else np.nan
    return float(stats.ttest_1samp(values, 0).pvalue)


# --- 4: broader coverage ------------------------------------------------------------------------------------------


def coverage_table(evidence: Evidence, ks: Sequence[int] = (1, 4, 8)) -> pd.DataFrame:
    """Who solves a problem with k samples: share of problems of each pattern, in percent of all problems.

    Expected over the choice of k of the n samples, exactly: a policy solves a problem with probability pass@k, and the
    policies draw independently. Columns k, base, grpo, amir_grpo (1 = solves), percent, low, high.
    """
    correct = evidence["correct"]
    benchmarks = list(correct["benchmark"].unique())
    rows = []
    for k in ks:
        chance = {arm: solved(correct, arm, benchmarks, k) for arm in ("base", "grpo", "amir_grpo")}
        arrays = {arm: table.to_numpy(float) for arm, table in chance.items()}
        for pattern in metrics.PATTERNS:
            share = np.ones_like(arrays["base"])
            for solves, values in zip(pattern, arrays.values(), strict=True):
                share = share * (values if solves else 1 - values)
            level = metrics.seeds_gain(share, np.zeros_like(share))
            row = {"k": k} | dict(zip(arrays, pattern, strict=True))
            row |= {"percent": 100 * level.estimate, "low": 100 * max(level.low, 0.0), "high": 100 * level.high}
            rows.append(row)
    return pd.DataFrame(rows)


def coverage_gain_table(evidence: Evidence, ks: Sequence[int] = (1, 4, 8)) -> pd.DataFrame:
    """Problems that AMIR-GRPO solves and GRPO does not, minus the other way round: percent of all problems.

    Columns k, only_amir_grpo, only_grpo, gain, low, high, p_value, p_holm, seeds, problems.
    """
    correct = evidence["correct"]
    benchmarks = list(correct["benchmark"].unique())
    rows = []
    for k in ks:
        new, old = paired(*(solved(correct, arm, benchmarks, k) for arm in ("amir_grpo", "grpo")))
        gain = metrics.seeds_gain(new, old)
        row = {"k": k, "only_amir_grpo": 100 * (new * (1 - old)).mean(), "only_grpo": 100 * (old * (1 - new)).mean()}
        row |= {"gain": 100 * gain.estimate, "low": 100 * gain.low, "high": 100 * gain.high, "p_value": gain.p_value}
        rows.append(row | {"seeds": new.shape[0], "problems": new.shape[1]})
    table = pd.DataFrame(rows)
    table.insert(7, "p_holm", metrics.holm(table["p_value"]))
    return table


# --- 5: cross-variant ---------------------------------------------------------------------------------------------

VARIANTS = ("two-step-grpo", "two-step-dr_grpo", "two-step-dapo", "two-step-gspo")


def variants_table(evidence: Evidence, ks: Sequence[int] = (1, 4)) -> pd.DataFrame:
    """Each variant of GRPO with the preference term against itself without: as `gain_table`."""
    return gain_table(evidence, [f"{name}-amir" for name in VARIANTS], ks)


# --- ablations ----------------------------------------------------------------------------------------------------


def ablation_arms(evidence: Evidence) -> list[str]:
    """Every arm that is compared with another and is no variant of the cross-variant comparison."""
    settings = evidence["settings"]
    compared = settings[settings["against"].fillna("") != ""]["arm"]
    return [arm for arm in compared if not arm.startswith("two-step-")]


def told_apart(evidence: Evidence) -> list[str]:
    """In plain words: can AMIR-GRPO be told from GRPO, and from plain wins − losses, at the published settings and where the
    preference is 30 % of the update? One sentence each, by pass@1 on the trained lengths and on longer problems."""
    names = {
        "grpo": "GRPO",
        "amir_grpo": "AMIR-GRPO at the published λ and β",
        "linear": "plain wins − losses at the same λ and β",
        "share-0.3": "AMIR-GRPO with 30 % of the update",
        "share-0.3-linear": "plain wins − losses with 30 % of the update",
    }
    sentences = []
    for new, old in (
        ("amir_grpo", "grpo"),
        ("amir_grpo", "linear"),
        ("share-0.3", "grpo"),
        ("share-0.3", "share-0.3-linear"),
    ):
        table = gain_table(evidence, [new], ks=(1,), against=old)
        clear = table[table["p_holm"] < 0.05]
        can = "can be told" if len(clear) else "cannot be told"
        gains = "; ".join(
            f"{row.gain:+.2f} points [{row.low:+.2f}, {row.high:+.2f}] on {row.benchmarks}"
            for row in table.itertuples()
        )
        seeds = int(table["seeds"].iloc[0])
        sentences.append(
            f"{names[new]} {can} from {names[old]} ({seeds} seeds): {gains}.".replace("-", "−").replace(
                "AMIR−", "AMIR-"
            )
        )
    return sentences


# --- verdicts -----------------------------------------------------------------------------------------------------

_PREFERENCE_PAIRS = {"amir_grpo": "grpo", "two-step-dr_grpo-amir": "two-step-dr_grpo"}


def verdicts(evidence: Evidence) -> pd.DataFrame:
    """Every claim with its test and verdict: columns claim, test, result, verdict. Computed from the evidence.

    Where a claim has several rows, their p-values are Holm-corrected together, and a verdict other than "not
    distinguishable" needs the corrected p-value below 0.05.
    """
    rows = []
    supervision = supervision_table(evidence).set_index("arm").loc["amir_grpo"]
    size = supervision["group_size"]
    rows.append(
        {
            "claim": "1. Richer supervision",
            "test": f"pairs a group, against the {size} rewards of the group",
            "result": f"{supervision['pairs']:.1f} [{supervision['pairs_low']:.1f}, {supervision['pairs_high']:.1f}]",
            "verdict": verdict(supervision["pairs_low"] - size, supervision["pairs_high"] - size),
        }
    )
    rows.append(
        {
            "claim": "1. Richer supervision",
            "test": "share of the update at published λ, β; at least 5 %",
            "result": f"{supervision['share']:.2f} % [{supervision['share_low']:.2f}, {supervision['share_high']:.2f}]",
            "verdict": verdict(supervision["share_low"] - 5, supervision["share_high"] - 5),
        }
    )
    boundary = boundary_table(evidence)
    last = boundary[(boundary["arm"] == "amir_grpo") & (boundary["step"] == boundary["step"].max())]
    units = {"margin": "nats a token", "accuracy": "points"}
    digits = {"margin": 4, "accuracy": 2}
    for row, p in zip(last.to_dict("records"), metrics.holm(last["p_value"]), strict=True):
        rows.append(
            _row(
                "2. Sharper decision boundary",
                f"{row['quantity']} on shared completions, AMIR-GRPO − GRPO",
                row,
                p,
                units[row["quantity"]],
                digits[row["quantity"]],
            )
        )
    dilution = dilution_table(evidence, _PREFERENCE_PAIRS)
    for row, p in zip(dilution.to_dict("records"), metrics.holm(dilution["p_value"]), strict=True):
        name = "GRPO" if row["against"] == "grpo" else "Dr. GRPO"
        test = f"push on long over short wrong completions, {name} with − without preference"
        rows.append(_row("3. Less length bias", test, row, p, "", 4))
    coverage = coverage_gain_table(evidence)
    for row in coverage.to_dict("records"):
        test = f"problems solved by AMIR-GRPO alone − by GRPO alone, k = {row['k']}"
        rows.append(_row("4. Broader coverage", test, row, row["p_holm"], "points", 2))
    variants = variants_table(evidence, ks=(1,))
    for row in variants.to_dict("records"):
        test = f"{row['about']} − {row['about'].split(' + ')[0]}, pass@1, {row['benchmarks']}"
        rows.append(_row("5. Gains for every variant", test, row, row["p_holm"], "points", 2))
    return pd.DataFrame(rows)


def _row(claim: str, test: str, row: Mapping, p_value: float, unit: str, digits: int) -> dict[str, str]:
    decided = verdict(row["low"], row["high"])
    if not p_value < 0.05:
        decided = OPEN
    number = f"{{:+.{digits}f}}".format
    ends = f"[{number(row['low'])}, {number(row['high'])}]"
    result = f"{number(row['gain'])} {unit}".strip() + f" {ends}, p = {p_value:.2g} (Holm)"
    return {"claim": claim, "test": test, "result": result.replace("-", "−"), "verdict": decided}


# --- the published table ------------------------------------------------------------------------------------------


def noise_table(published: pd.DataFrame, sizes: Mapping[str, int], samples: int = 8) -> pd.DataFrame:
    """For each cell of the published table, how large a gain noise alone makes in 5 % of the comparisons.

    `published`: columns benchmark, k, model, grpo, amir_grpo (percent). `sizes`: problems of each benchmark.

    Nothing is published but two means, and their noise depends on how much the problems differ. The band has an end for
    each extreme: `least`, all problems equally hard, so that only the draws of the n samples count; `most`, each problem
    always or never solved, so that the draw of the problems is everything. Ends are 1.96 standard errors of the
    difference of two independent means, in percentage points; the standard error of one is sqrt(v / problems), with v
    the exact variance of the pass@k estimate of a problem of that difficulty for the first, m (1 - m) for the second.
    Neither holds what another training seed would change. A comparison paired by problem, for which the results of
    single problems would have to be published, could tell smaller gains than either end where problems differ much.

    Returns:
        The published columns, gain, problems, least, most and reading: "exceeds" the band, "within" it, "below" it.
    """
    rows = []
    for row in published.itertuples(index=False):
        means = np.array([row.grpo, row.amir_grpo]) / 100
        problems = sizes[row.benchmark]
        least = np.sqrt(sum(_estimate_variance(m, samples, row.k) for m in means) / problems)
        most = np.sqrt(np.sum(means * (1 - means)) / problems)
        gain = row.amir_grpo - row.grpo
        low, high = 196 * least, 196 * most
        reading = "exceeds" if abs(gain) > high else "below" if abs(gain) <= low else "within"
        rows.append(
            row._asdict() | {"gain": gain, "problems": problems, "least": low, "most": high, "reading": reading}
        )
    return pd.DataFrame(rows)


def _estimate_variance(mean: float, n: int, k: int) -> float:
    """Variance of the unbiased pass@k estimate from n samples of a problem whose pass@k is `mean`."""
    p = 1 - (1 - mean) ** (1 / k)
    counts = np.arange(n + 1)
    chances, estimates = stats.binom.pmf(counts, n, p), metrics.pass_at_k(counts, n, k)
    return float(np.sum(chances * estimates**2) - np.sum(chances * estimates) ** 2)
