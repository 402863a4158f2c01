"""Figures of comparisons over several trainings: gains on one axis, and what only one of two policies solves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amir_grpo.choices import SIGNIFICANCE
from amir_grpo.results.formatting import with_interval
from amir_grpo.results.style import (
    COLOURS,
    NEUTRAL,
    add_footnote,
    add_title,
    arm_colours,
    new_figure,
    styled,
)

SIGNIFICANT = "#1a1a1a"
_GREY_TEXT = "#555555"  # as grey as can be read
_LINEAR = 8.0  # margins: gains further out are drawn on a logarithmic scale, so that the small intervals can be seen
_TICKS = (2, 10, 50)  # of that scale, in points
_PITCH = 0.36  # from one bar to the next of the same row


@styled
def comparison_figure(
    table: pd.DataFrame,
    title: str = "",
    margin: float | None = None,
    over: str = "new base policies and seeds",
    note: str = "",
) -> Figure:
    """Gains with 95 % intervals, one row per comparison on one axis; black where significant, grey elsewhere.

    Args:
        table: Columns about (the label of a row), gain, gain_low, gain_high (points), p; in the order shown. Optional:
            regime, which heads the rows that share it; verdict, in words at the right; detectable, the smallest gain that
            the comparison could have shown, drawn as a pair of ticks.
        title: The finding.
        margin: Half the width of the band within which two arms count as equivalent, in points. Where a gain lies far
            beyond it, the axis is linear within the band and logarithmic outside.
        over: What the intervals are for.
        note: What else there is to know of the rows, in small print below.
    """
    rows = table.to_dict("records")
    places, heads = _places(rows)
    reach = _reach(table, 1.5 * (margin or 0))
    lines = len(rows) + len(heads)
    figure = new_figure(7.4, 1.0 + 0.23 * max(lines, 1))
    axes = figure.subplots()
    logarithmic = bool(margin) and reach > _LINEAR * margin
    if logarithmic:
        _scale_beyond(axes, margin, reach)
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
    read = f"Bars: 95 % intervals for {over}. {_marks(table, margin, logarithmic)}"
    add_footnote(figure, f"{note} {read}".strip())
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


def _marks(table: pd.DataFrame, margin: float | None, logarithmic: bool = False) -> str:
    """What colours, shading and ticks mean."""
    read = f"Black: p\u00a0<\u00a0{SIGNIFICANCE}; grey: not."  # no line ends within
    read += f" Shaded: within ±{margin:g} points, equivalent." if margin else ""
    read += " The axis is linear there and logarithmic beyond." if logarithmic else ""
    read += " Ticks: the smallest gain that could have been detected." if "detectable" in table else ""
    return read


def _reach(table: pd.DataFrame, least: float) -> float:
    """How far from 0 an axis goes that holds every interval, in points."""
    ends = table[["gain_low", "gain_high"]].abs().to_numpy(dtype=float)
    return 1.1 * max([*ends[np.isfinite(ends)], least, 0.1])


def _scale_beyond(axes: Axes, margin: float, reach: float) -> None:
    """An axis that is linear within ± margin and logarithmic beyond."""
    axes.set_xscale("symlog", linthresh=margin, linscale=0.8)
    ticks = [margin, *(tick for tick in _TICKS if margin < tick < reach)]
    axes.set_xticks([*(-tick for tick in reversed(ticks)), 0, *ticks])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))


def _comparison(axes: Axes, y: float, row: Mapping, reach: float) -> None:
    text = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
    if not np.isfinite(row["gain"]):
        axes.annotate("no runs yet", (0.99, y), ha="right", color=NEUTRAL, **text)
        return
    colour = SIGNIFICANT if row.get("p", np.nan) < SIGNIFICANCE else NEUTRAL
    axes.hlines(y, row["gain_low"], row["gain_high"], color=colour, linewidth=1.6)
    axes.plot(row["gain"], y, "o", markersize=4.5, color=colour)
    detectable = row.get("detectable", np.nan)
    if np.isfinite(detectable) and detectable < reach:
        axes.plot([-detectable, detectable], [y, y], "|", markersize=7, color="#b0b0b0", zorder=1)
    verdict = f"  {row['verdict']}" if isinstance(row.get("verdict"), str) else ""
    axes.annotate(f"{with_interval(row)}{verdict}", (1.02, y), ha="left",
                  color=colour if colour == SIGNIFICANT else _GREY_TEXT, **text)  # fmt: skip


@styled
def alone_figure(table: pd.DataFrame, title: str, margin: float, note: str) -> Figure:
    """Problems that a policy solves and another GRPO does not: a bar per arm above GRPO's own, and the difference between
    the two with its interval beside them.

    Args:
        table: Columns about (an arm), only_new and null (percent of the problems: of the arm, and of GRPO in the same runs),
            gain (only_new − null), gain_low, gain_high (points), p; one row per arm. Optional: detectable.
        title: The finding.
        margin: Half the width of the band within which two arms count as equivalent, in points.
        note: What the bars are, in small print below.
    """
    figure = new_figure(7.4, 1.2 + 0.45 * len(table))
    bars, gains = figure.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
    colours = arm_colours(table["about"])
    reach = _reach(table, 1.1 * margin)
    gains.axvspan(-margin, margin, color="#ececec", linewidth=0)
    gains.axvline(0, color="#333333", linewidth=0.8)
    places, names = [], []
    for y, row in enumerate(table.to_dict("records")):
        of_both = (
            (row["about"], row["only_new"], colours[row["about"]]),
            ("GRPO, same runs", row["null"], COLOURS["grpo"]),
        )
        for place, (name, value, colour) in zip((y - _PITCH / 2, y + _PITCH / 2), of_both, strict=True):
            bars.barh(place, value, height=0.9 * _PITCH, color=colour)
            bars.annotate(f"{value:.2f} %", (value, place), xytext=(4, 0), textcoords="offset points", va="center")
            places.append(place)
            names.append(name)
        _comparison(gains, y, row, reach)
    bars.set_yticks(places, names)
    bars.set(xlim=(0, 1.25 * table[["only_new", "null"]].to_numpy(dtype=float).max()), xlabel="% of the problems")
    gains.set(xlim=(-reach, reach), ylim=(len(table) - 0.4, -0.6), xlabel="difference (points)")
    for axes in (bars, gains):
        axes.tick_params(axis="y", length=0)
    gains.spines["left"].set_visible(False)
    read = f"At the right: the upper bar minus the lower, with its 95 % interval. {_marks(table, margin)}"
    add_footnote(figure, f"{note} {read}")
    add_title(figure, title)
    return figure
