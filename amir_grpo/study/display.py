"""The tables of the study as a notebook shows them: names that people write instead of those of the code."""

from __future__ import annotations

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from amir_grpo.results.formatting import p_text, signed
from amir_grpo.study.regimes import TITLES

# Column -> its head, where that is not the name of the column.
HEADS = {
    "number": "test",
    "about": "what",
    "regime": "rewards",
    "benchmarks": "problems",
    "old_percent": "of the older, %",
    "old_range": "of its runs, %",
    "old_level": "of the older",
    "training": "training done, %",
    "p_value": "p",
    "p_holm": "p (Holm)",
    "trained": "trained lengths, %",
    "longer": "longer problems, %",
    "seed_spread": "spread of seeds",
    "share": "share, %",
    "residual_share": "new, %",
    "explained": "explained, %",
    "explained_at_one_slope": "explained at one slope, %",
    "only_new": "only this arm, %",
    "only_old": "only the other GRPO, %",
    "null": "only GRPO, %",
    "beta": "β",
    "mixed": "mixed groups, %",
    "uniform_share": "update in uniform groups, %",
    "pass_rate": "pass rate",
    "cosine": "predicted",
    "grpo_cosine": "GRPO's, predicted",
    "grpo_measured": "GRPO's, measured",
    "detectable_seeds": "detectable, if it is seeds",
    "detectable_bases": "detectable, if it is base policies",
    "shown_if_equal_seeds": "shown if equal, if it is seeds",
    "shown_if_equal_bases": "shown if equal, if it is base policies",
}
_WHOLE = ("number", "training", "bases", "runs", "planned", "problems", "k")  # numbers without decimals
_CODE = ("arm", "test")  # names of the code, beside a column about that says the same


def study_table(table: pd.DataFrame, digits: int = 2) -> Styler:
    """A table of the study for a notebook: heads and regimes by the names that people write, a number and the 95 % interval
    around it (columns x, x_low, x_high) in one cell, p-values as everywhere, missing values as a dash.

    Names of arms and tests in the code are left out where a column about says the same.

    Args:
        table: Of `amir_grpo.study`.
        digits: Decimals of numbers.
    """
    shown = {}
    for name in table.columns:
        if (name in _CODE and "about" in table) or name.endswith(("_low", "_high")):
            continue
        interval = " [95 % interval]" if f"{name}_low" in table else ""
        shown[HEADS.get(name, name) + interval] = [_cell(row, name, digits) for row in table.to_dict("records")]
    style = pd.DataFrame(shown, columns=list(shown)).style
    return style.hide(axis="index").format(escape="html").set_properties(**{"text-align": "left"})


def _cell(row: dict, name: str, digits: int) -> str:
    value = row[name]
    if name == "regime":
        return TITLES.get(value, value)
    if not isinstance(value, float | int | np.number):
        return "–" if value is None else str(value)
    if name.startswith("p_"):
        return p_text(value)
    if name == "beta":
        return f"{value:g}"
    digits = 0 if name in _WHOLE else digits
    text = _number(value, name, digits)
    ends = [row.get(f"{name}_{end}", np.nan) for end in ("low", "high")]
    return f"{text} [{', '.join(_number(end, name, digits) for end in ends)}]" if np.isfinite(ends).all() else text


def _number(value: float, name: str, digits: int) -> str:
    """With a sign if it is a gain; – where there is none."""
    text = signed(value, digits)
    return text if name == "gain" else text.removeprefix("+")
