"""Arms compared with each other: gains in pass@k, paired by seed and by problem."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from amir_grpo import metrics
from amir_grpo.choices import POLICIES, SIGNIFICANCE

Study = Mapping[str, pd.DataFrame]

GAIN_COLUMNS = (
    "arm about against against_about benchmarks quantity estimate against_estimate gain gain_low gain_high p_value p_holm "
    "seeds problems"
).split()


def groups(study: Study) -> dict[str, list[str]]:
    """Benchmarks by group: problems of the lengths that training had, and longer ones."""
    table = study["benchmarks"]
    return {group: list(part["benchmark"]) for group, part in table.groupby("group", sort=False)}


def solved(correct: pd.DataFrame, arm: str, benchmarks: Sequence[str], k: int) -> pd.DataFrame:
    """pass@k of one arm (k = 0: greedy), as fractions: one row per seed, one column per (benchmark, problem)."""
    part = correct[(correct["arm"] == arm) & correct["benchmark"].isin(benchmarks)]
    if part.empty:
        raise ValueError(f"The study has no completions of arm {arm!r} on {', '.join(benchmarks)}.")
    values = part["greedy"] if k == 0 else metrics.pass_at_k(part["correct"], part["samples"], k)
    return part.assign(value=values).pivot(index="seed", columns=["benchmark", "problem"], values="value")


def paired(new: pd.DataFrame, old: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Two seeds × problems tables cut to the seeds and problems that both have."""
    seeds, columns = new.index.intersection(old.index), new.columns.intersection(old.columns)
    return new.loc[seeds, columns].to_numpy(float), old.loc[seeds, columns].to_numpy(float)


def arm_table(study: Study) -> pd.DataFrame:
    """The arms as people read them: columns arm, about, against, seeds, and the settings that each arm changes."""
    settings = study["settings"]
    changes = [", ".join(f"{k} = {v}" for k, v in json.loads(text).items()) for text in settings["changes"]]
    return settings[["arm", "about", "against", "seeds"]].fillna({"against": ""}).assign(changes=changes)


def gain_table(
    study: Study, arms: Sequence[str], ks: Sequence[int] = (1, 4), against: str | None = None
) -> pd.DataFrame:
    """How far each arm is from the arm it is compared with, paired by seed and problem: columns `GAIN_COLUMNS`.

    One row for each arm, group of benchmarks and k (0: greedy). p_holm is corrected over all rows.

    Args:
        against: Compare with this arm in place of the one that the settings name.
    """
    settings, correct = study["settings"].set_index("arm"), study["correct"]
    rows = []
    for arm in arms:
        other = against or settings.loc[arm, "against"]
        for group, benchmarks in groups(study).items():
            for k in ks:
                new, old = paired(solved(correct, arm, benchmarks, k), solved(correct, other, benchmarks, k))
                gain = metrics.seeds_gain(new, old)
                row = {"arm": arm, "about": settings.loc[arm, "about"], "against": other}
                row |= {"against_about": settings.loc[other, "about"], "benchmarks": group}
                row |= {"quantity": f"pass@{k}" if k else "greedy"}
                row |= {"estimate": 100 * new.mean(), "against_estimate": 100 * old.mean()}
                rows.append(row | gain.columns(scale=100) | {"seeds": new.shape[0], "problems": new.shape[1]})
    table = pd.DataFrame(rows, columns=GAIN_COLUMNS)
    table["p_holm"] = metrics.holm(table["p_value"])
    return table


def readable_gains(gains: pd.DataFrame) -> pd.DataFrame:
    """A gain table as people read it: comparison, benchmarks, quantity, percent, gain with its interval, p (Holm), seeds."""
    cells = [
        f"{r.gain:+.2f}\u00a0[{r.gain_low:+.2f},\u00a0{r.gain_high:+.2f}]".replace("-", "−")
        for r in gains.itertuples()
    ]
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


def main_table(study: Study, ks: Sequence[int] = (1, 2, 4)) -> pd.DataFrame:
    """The main table over seeds: as `tables.main_table`, with intervals for new seeds and new problems.

    Columns benchmark, k, model, base, grpo, amir_grpo, gain, gain_low, gain_high, p_value, p_holm, improvement,
    improvement_low, improvement_high (chance in percent that an AMIR-GRPO run beats a GRPO run on a problem), problems,
    samples, seeds.
    """
    correct = study["correct"]
    rows = []
    for benchmark in correct["benchmark"].unique():
        for k in ks:
            by_arm = {arm: solved(correct, arm, [benchmark], k) for arm in POLICIES}
            new, old = paired(by_arm["amir_grpo"], by_arm["grpo"])
            gain, improvement = metrics.seeds_gain(new, old), metrics.probability_of_improvement(new, old)
            row = {"benchmark": benchmark, "k": k, "model": study["benchmarks"]["model"].iloc[0]}
            row |= {arm: 100 * float(values.to_numpy().mean()) for arm, values in by_arm.items()}
            row |= gain.columns(scale=100) | {"p_holm": np.nan} | improvement.columns("improvement", 100)
            rows.append(row | {"problems": new.shape[1], "samples": int(correct["samples"].max()), "seeds": len(new)})
    table = pd.DataFrame(rows)
    table["p_holm"] = metrics.holm(table["p_value"])
    return table


def ablation_arms(study: Study) -> list[str]:
    """Every arm that is compared with another and is no variant of the cross-variant comparison."""
    settings = study["settings"]
    compared = settings[settings["against"].fillna("") != ""]["arm"]
    return [arm for arm in compared if not arm.startswith("two-step-")]


def told_apart(study: Study) -> list[str]:
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
        table = gain_table(study, [new], ks=(1,), against=old)
        clear = table[table["p_holm"] < SIGNIFICANCE]
        can = "can be told" if len(clear) else "cannot be told"
        gains = "; ".join(
            f"{row.gain:+.2f} points [{row.gain_low:+.2f}, {row.gain_high:+.2f}] on {row.benchmarks}"
            for row in table.itertuples()
        )
        seeds = int(table["seeds"].iloc[0])
        sentences.append(
            f"{names[new]} {can} from {names[old]} ({seeds} seeds): {gains}.".replace("-", "−").replace(
                "AMIR−", "AMIR-"
            )
        )
    return sentences
