"""The sentence that a notebook ends with, computed from what it has shown."""

from __future__ import annotations

import pandas as pd

from amir_grpo.choices import SIGNIFICANCE
from amir_grpo.results.style import signed


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
