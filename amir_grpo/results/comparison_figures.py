"""Figures of comparisons over several trainings: gains on one axis, and what only one side solves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from amir_grpo.choices import SIGNIFICANCE
from amir_grpo.results.formatting import signed
from amir_grpo.results.style import (
    NEUTRAL,
    SMALL_PRINT,
    add_footnote,
    add_title,
    arm_colours,
    new_figure,
    styled,
)

SIGNIFICANT = "#1a1a1a"
_OFF_AXIS = 6.0  # a gain this many times as far out as the middle one is an arrow at the edge


@styled
def comparison_figure(
    table: pd.DataFrame,
    title: str = "",
    margin: float | None = None,
    over: str = "new base policies and seeds",
) -> Figure:
    """Gains with 95 % intervals, one row per comparison on one axis; black where significant, grey elsewhere.

    Args:
        table: Columns about (the label of a row), gain, gain_low, gain_high (points), p; in the order shown. Optional:
            regime, which heads the rows that share it; verdict, in words at the right; detectable, the smallest gain that
            the comparison could have shown, drawn as a pair of ticks. A gain far beyond the others (GRPO over the base
            policy) becomes an arrow with its number.
        title: The finding.
        margin: Half the width of the band within which two arms count as equivalent, in points.
        over: What the intervals are for.
    """
    rows = table.to_dict("records")
    places, heads = _places(rows)
    ends = [max(abs(row["gain_low"]), abs(row["gain_high"])) for row in rows if np.isfinite(row["gain_low"])]
    ends = [end for end in ends if end < _OFF_AXIS * np.median(ends)]
    reach = 1.1 * max([*ends, 1.5 * (margin or 0), 0.1])
    lines = len(rows) + len(heads)
    figure = new_figure(6.6, 1.0 + 0.23 * max(lines, 1))
    axes = figure.subplots()
    if margin:
        axes.axvspan(-margin, margin, color="#ececec", linewidth=0)
    axes.axvline(0, color="#333333", linewidth=0.8)
    for y, row in zip(places, rows, strict=True):
        _comparison(axes, y, row, reach)
    for y, head in heads.items():
        axes.annotate(str(head), (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0),
                      textcoords="offset points", ha="right", va="center", fontweight="bold")  # fmt: skip
    axes.set_yticks(places, table["about"])
    axes.set(xlim=(-reach, reach), ylim=(lines - 0.4, -0.6), xlabel="gain in pass@1 (points)")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    note = f"Bars: 95 % intervals for {over}. Black: p < {SIGNIFICANCE}; grey: not."
    note += f" Shaded: within ±{margin:g} points, equivalent." if margin else ""
    if "detectable" in table:
        note += " Ticks: the smallest gain that could have been detected."
    add_footnote(figure, note)
    add_title(figure, title)
    return figure


def _places(rows: Sequence[Mapping]) -> tuple[list[float], dict[float, str]]:
    """Where each row stands, and above the first of each regime its head."""
    places, heads, place = [], {}, 0.0
    for index, row in enumerate(rows):
        if "regime" in row and (index == 0 or row["regime"] != rows[index - 1]["regime"]):
            heads[place] = row["regime"]
            place += 1
        places.append(place)
        place += 1
    return places, heads


def _comparison(axes, y: float, row: Mapping, reach: float) -> None:
    text = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
    if not np.isfinite(row["gain"]):
        axes.annotate("no runs yet", (0.99, y), ha="right", color=NEUTRAL, **text)
        return
    colour = SIGNIFICANT if row.get("p", np.nan) < SIGNIFICANCE else NEUTRAL
    if abs(row["gain"]) > reach:
        side = np.sign(row["gain"])
        axes.annotate("", (side * reach, y), (side * 0.86 * reach, y), annotation_clip=False,
                      arrowprops={"arrowstyle": "-|>", "color": colour})  # fmt: skip
    else:
        axes.hlines(y, row["gain_low"], row["gain_high"], color=colour, linewidth=1.6)
        axes.plot(row["gain"], y, "o", markersize=5, color=colour)
    detectable = row.get("detectable", np.nan)
    if np.isfinite(detectable) and detectable < reach:
        axes.plot([-detectable, detectable], [y, y], "|", markersize=7, color="#b0b0b0", zorder=1)
    verdict = f"  {row['verdict']}" if isinstance(row.get("verdict"), str) else ""
    axes.annotate(f"{signed(row['gain'], 2)}{verdict}", (1.02, y), ha="left", color=colour, **text)


@styled
def facing_bars_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Problems that only one of two policies solves, as facing bars: one row per pair, the older policy to the left.

    Args:
        table: Columns old, new (names of policies), only_old, only_new (percent of the problems). Below a pair of interest
            what chance gives: GRPO and GRPO of another seed.
        title: The finding.
    """
    figure = new_figure(6.0, 0.95 + 0.55 * len(table))
    axes = figure.subplots()
    colours = arm_colours(table["new"])
    for y, row in enumerate(table.to_dict("records")):
        for side, end in ((-1, "old"), (1, "new")):
            value = row[f"only_{end}"]
            axes.barh(y + 0.12, side * value, height=0.5, color=colours.get(row[end], "#bdbdbd"))
            place = {"ha": "right" if side < 0 else "left", "textcoords": "offset points"}
            axes.annotate(f"{value:.2f} %", (side * value, y + 0.12), xytext=(4 * side, 0),
                          va="center", fontweight="bold", **place)  # fmt: skip
            axes.annotate(f"only {row[end]}", (0, y - 0.14), xytext=(5 * side, 0), va="bottom",
                          **SMALL_PRINT, **place)  # fmt: skip
    axes.axvline(0, color="#333333", linewidth=0.8)
    most = 1.35 * table.select_dtypes("number").to_numpy(dtype=float).max() if len(table) else 1.0
    axes.set(xlim=(-most, most), ylim=(len(table) - 0.5, -0.5), xlabel="% of the problems")
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    add_title(figure, title)
    return figure
