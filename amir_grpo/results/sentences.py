"""The sentence that a notebook ends with, computed from what it has shown."""

from __future__ import annotations

import numpy as np
import pandas as pd

from amir_grpo.choices import POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results.findings import margins_are_equal, relative_margin
from amir_grpo.results.formatting import p_equals, signed, so_many_are
from amir_grpo.results.tables import preference_share, reward_ends
from amir_grpo.results.verdicts import MARGIN_SHARE


def base_sentence(policies: pd.DataFrame) -> str:
    """What the base policy solves before any training.

    Args:
        policies: A policy summary (`amir_grpo.results.tables.policy_summary`) that holds the base policy.
    """
    base = policies[(policies["policy"] == "base") & policies["quantity"].str.startswith("pass@")]
    tries = list(base["quantity"].unique())
    means = [base.loc[base["quantity"] == quantity, "estimate"].mean() for quantity in (tries[0], tries[-1])]
    least, most = (quantity.removeprefix("pass@") for quantity in (tries[0], tries[-1]))
    text = f"Before any training the base policy solves {means[0]:.0f} % of the problems with {_tries(least)}"
    if most != least:
        text += f" and {means[1]:.0f} % with {_tries(most)}: where samples differ, a group has something to learn from"
    return f"{text} (mean of the benchmarks)."


def training_sentence(log: pd.DataFrame, parting: int | None) -> str:
    """What the training of one method did.

    Args:
        log: Its training log.
        parting: The first step at which its completions differ from the other method's, one past the last where none does;
            None where the other method is not trained.
    """
    ends, share = reward_ends(log), preference_share(log)
    text = f"The reward went from {ends.first:.2f} to {ends.last:.2f}"
    text += f" (means of the first and last {ends.steps} steps)" if ends.steps > 1 else " (first and last step)"
    if not np.isnan(share):
        text += f"; the preference term was {100 * share:.2g} % of the update (median)"
    if parting == 1:
        text += "; the two methods drew different completions from the first step on"
    elif parting is not None and parting > log["step"].max():
        text += "; both methods drew the same completions to the end"
    elif parting is not None:
        text += f"; up to step {parting - 1} both methods drew the same completions"
    return f"{text}."


def evaluation_sentence(comparisons: pd.DataFrame) -> str:
    """What the comparisons of the three policies say of pass@1 (or of the smallest k).

    Args:
        comparisons: A comparison table (`amir_grpo.results.tables.comparison_table`).
    """
    first = comparisons[comparisons["quantity"] == comparisons["quantity"].iloc[0]]
    learnt = [
        f"{POLICY_NAMES[method]} {signed(rows['gain'].mean())} points"
        for method, rows in first[first["old"] == "base"].groupby("new", sort=False)
    ]
    between = comparisons[(comparisons["new"] == "amir_grpo") & (comparisons["old"] == "grpo")]
    clear = int((between["p_holm"] < SIGNIFICANCE).sum())
    return (
        f"Over the base policy, {' and '.join(learnt)} of {first['quantity'].iloc[0]} (mean of the benchmarks); of the "
        f"{len(between)} differences between the two methods, {so_many_are(clear)} "
        f"distinguishable from 0 "
        f"(Holm-corrected p < {SIGNIFICANCE})."
    )


def coverage_sentence(test: dict[str, float]) -> str:
    """What the two methods solve alone, from `amir_grpo.results.tables.coverage_test`."""
    found = "more than chance would give" if test["p_value"] < SIGNIFICANCE else "a difference is not shown"
    return (
        f"AMIR-GRPO alone solves {test['only_amir_grpo']} problems and GRPO alone {test['only_grpo']}: {found} "
        f"(p {p_equals(test['p_value'])}), for these two policies."
    )


def margin_sentence(gain: dict[str, float]) -> str:
    """What the shared completions say of the margins, from `amir_grpo.results.tables.shared_margin_gain`."""
    if gain["gain"] != gain["gain"]:
        return (
            "No problem has right and wrong completions that both methods have scored: nothing can be said of margins."
        )
    mean, low, high = (signed(gain[name], 5) for name in ("gain", "gain_low", "gain_high"))
    text = (
        f"On the same completions of {gain['problems']} problems, AMIR-GRPO's margin minus GRPO's is {mean} nats per token "
        f"(95 % interval {low} to {high}, p {p_equals(gain['p_value'])}), for these two policies"
    )
    if margins_are_equal(gain):
        within = f"within the ±{100 * MARGIN_SHARE:g} % that count as equal"
        text += f": {relative_margin(gain)} of GRPO's margin, {within}"
    return f"{text}."


def knobs_sentence(gains: pd.DataFrame) -> str:
    """How many settings and rivals differ clearly from what they change, and which differs most.

    Args:
        gains: A table of gains (`amir_grpo.study.gains.gain_table`) on one group of benchmarks.
    """
    clear = gains[gains["p_holm"] < SIGNIFICANCE]
    text = f"{len(clear)} of {len(gains)} comparisons are clear (p < {SIGNIFICANCE}, Holm)"
    if len(clear):
        most = clear.loc[clear["gain"].abs().idxmax()]
        text += f"; the largest difference is {most['about']} ({most['regime']}), {signed(most['gain'])} points"
    return f"{text}."


def alignment_sentence(predictions: pd.DataFrame, gains: pd.DataFrame) -> str:
    """Whether theory predicts how much of an update is about correctness, and whether more of it makes a better policy.

    Args:
        predictions: Arms against GRPO with the same rewards (`amir_grpo.study.regime_tables.prediction_table`).
        gains: Of the same arms (`amir_grpo.study.gains.gain_table`), on one group of benchmarks.
    """
    off = max((predictions[f"{of}measured"] - predictions[f"{of}cosine"]).abs().max() for of in ("", "grpo_"))
    better = predictions[predictions["measured"] - predictions["grpo_measured"] > off]
    found = gains.merge(better[["regime", "arm"]], left_on=["regime", "new"], right_on=["regime", "arm"])
    clear = found["p_holm"] < SIGNIFICANCE
    up, down = (found[clear & (sign * found["gain"] > 0)] for sign in (1, -1))
    above = f" ({', '.join(f'{arm}, {signed(gain)}' for arm, gain in zip(up['about'], up['gain'], strict=True))})"
    return (
        f"How much of an update is about correctness differs from the theory by at most {off:.2f}. In {len(found)} of "
        f"{len(predictions)} arms it is more than in GRPO's by more than that; of these, clearly above GRPO in pass@1: "
        f"{len(up)}{above if len(up) else ''}, clearly below: {len(down)}."
    )


def _tries(k: str) -> str:
    return "one try" if k == "1" else f"{k} tries"
