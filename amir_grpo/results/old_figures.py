"""Figures of an evaluation, one function each: tables in, matplotlib Figure out."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from amir_grpo.choices import METHODS, POLICIES, POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results.formatting import signed, unchanged_note
from amir_grpo.results.old_tables import with_gain
from amir_grpo.results.style import (
    COLOURS,
    NEUTRAL,
    add_footnote,
    add_title,
    gain_marker,
    new_figure,
    policy_colour,
    styled,
)

READINGS = {"own": "own completions", "shared": "same completions"}  # that a method scores
# A ring and a dot: both are seen where they coincide, and without colour.
MARKS = {
    "base": {"marker": "|", "markersize": 8, "markeredgewidth": 1.6, "color": COLOURS["base"]},
    "grpo": {
        "marker": "o",
        "markersize": 8,
        "markeredgewidth": 1.8,
        "color": COLOURS["grpo"],
        "markerfacecolor": "white",
    },
    "amir_grpo": {"marker": "o", "markersize": 4, "color": COLOURS["amir_grpo"]},
}


@styled
def main_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """pass@k of the policies as dumbbells, and the gain of AMIR-GRPO over GRPO on an axis of its own; pass@1 first.

    A gain is grey unless its corrected p-value is below the significance level; then it has the colour of the method that
    is ahead.

    Args:
        table: Columns benchmark, k, model, grpo, amir_grpo (percent), and where they are known base, gain, gain_low,
            gain_high (points), p_holm, problems and samples. Cells without a value stay empty.
    """
    table = with_gain(table).sort_values("k", kind="stable").reset_index(drop=True)
    places, heads, place = [], {}, 0.0
    for index, row in table.iterrows():
        if index == 0 or row["k"] != table.loc[index - 1, "k"]:
            heads[place] = f"pass@{row['k']}"
            place += 0.9
        places.append(place)
        place += 1
    figure = new_figure(6.6, 1.25 + 0.19 * place)
    levels, gains = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
    policies = [policy for policy in POLICY_NAMES if policy in table]
    for y, row in zip(places, table.to_dict("records"), strict=True):
        shown = [row[policy] for policy in policies]
        if not np.isfinite([row["grpo"], row["amir_grpo"]]).all():
            levels.text(50, y, "–", ha="center", va="center", color=NEUTRAL)
            continue
        levels.plot([min(shown), max(shown)], [y, y], color="#cccccc", linewidth=2, zorder=1)
        for policy in policies:
            levels.plot(row[policy], y, **MARKS[policy], linestyle="", zorder=3)
        _gain_with_interval(gains, y, row)
    for y, head in heads.items():
        levels.annotate(head, (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0), textcoords="offset points",
                        ha="right", va="center", fontweight="bold")  # fmt: skip
    several = len(table["model"].unique()) > 1
    names = [f"{row.benchmark}, {row.model}" if several else str(row.benchmark) for row in table.itertuples()]
    levels.set_yticks(places, names)
    levels.set(xlim=(-2, 102), ylim=(place - 0.4, -0.6), xlabel="problems solved (%)")
    gains.axvline(0, color="#333333", linewidth=0.8)
    reach = max(np.abs(gains.get_xlim()))
    gains.set(xlim=(-reach, reach), xlabel="gain: AMIR-GRPO − GRPO (points)")
    for axes in (levels, gains):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    marks = [Line2D([], [], **MARKS[policy], linestyle="", label=POLICY_NAMES[policy]) for policy in policies]
    levels.legend(handles=marks, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, handletextpad=0.2)
    if "gain_low" in table:
        add_footnote(figure, _main_note(table))
    add_title(figure, title)
    return figure


def _gain_with_interval(axes: Axes, y: float, row: dict) -> None:
    """A gain as a point, with its 95 % interval and its number at the right where they are known."""
    colour = gain_marker(row["gain"], row.get("p_holm", np.nan))
    if np.isfinite(row.get("gain_low", np.nan)):
        axes.hlines(y, row["gain_low"], row["gain_high"], color=colour, linewidth=1.6)
    axes.plot(row["gain"], y, "o", markersize=4.5, color=colour)
    axes.annotate(signed(row["gain"]), (1.02, y), xycoords=("axes fraction", "data"), ha="left", va="center",
                  color=colour if colour != NEUTRAL else "#555555", annotation_clip=False)  # fmt: skip


def _main_note(table: pd.DataFrame) -> str:
    note = f"Bars: 95 % intervals over problems; not those of another training seed. Grey: p ≥ {SIGNIFICANCE} (Holm)"
    if {"problems", "samples"} <= set(table.columns) and len(table):
        least, most = table["problems"].min(), table["problems"].max()
        problems = f"{least}" if least == most else f"{least} to {most}"
        note += f". {problems} problems per benchmark, n = {table['samples'].iloc[0]} completions each"
        return f"{note}.{unchanged_note(table)}"
    return f"{note}."


@styled
def coverage_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Problems that only one of the two methods solves, as facing bars: GRPO to the left, AMIR-GRPO to the right.

    What the base policy solves as well is hatched: only the rest is new. All else is counted in words below.

    Args:
        table: Columns base, grpo, amir_grpo (0/1), problems; eight rows. `attrs["problems"]`, where it is there, is the
            number of all problems.
    """
    patterns = {tuple(map(int, key)): int(n) for *key, n in table[[*POLICIES, "problems"]].to_numpy()}
    figure = new_figure(6.0, 1.75)
    axes = figure.subplots()
    sides = {"grpo": (-1, [(0, 1, 0), (1, 1, 0)]), "amir_grpo": (1, [(0, 0, 1), (1, 0, 1)])}
    for method, (side, (new, known)) in sides.items():
        colour, total = COLOURS[method], patterns[new] + patterns[known]
        axes.barh(0, side * patterns[new], height=0.6, color=colour)
        axes.barh(0, side * patterns[known], left=side * patterns[new], height=0.6, color=colour, hatch="////",
                  edgecolor="white", linewidth=0)  # fmt: skip
        place = {"ha": "right" if side < 0 else "left", "textcoords": "offset points"}
        axes.annotate(str(total), (side * total, 0), xytext=(5 * side, 0), va="center", fontsize=12,
                      fontweight="bold", **place)  # fmt: skip
        axes.annotate(f"only {POLICY_NAMES[method]}", (0, 0.36), xytext=(6 * side, 0), va="bottom", color="#222222",
                      fontweight="bold", **place)  # fmt: skip
    most = max(sum(patterns[key] for key in keys) for _, keys in sides.values())
    reach = 1.3 * max(most, 10)  # one problem looks like one problem
    axes.set(xlim=(-reach, reach), ylim=(-0.4, 0.75), xlabel="problems")
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    add_footnote(figure, _coverage_note(patterns, table.attrs.get("problems")))
    add_title(figure, title)
    return figure


def _coverage_note(patterns: dict[tuple[int, ...], int], problems: int | None) -> str:
    solved = sum(n for pattern, n in patterns.items() if any(pattern))
    if not solved:
        return f"No policy solves any problem (0 of {problems or 0})."
    both = patterns[1, 1, 1] + patterns[0, 1, 1]
    of = f"{solved}" if problems is None else f"{solved} of {problems}"
    return (
        f"Hatched: the base policy solves them as well. At least one policy solves {of} problems: both methods {both} "
        f"({patterns[1, 1, 1]} with the base policy), the base policy alone {patterns[1, 0, 0]}. Solved: at least one of "
        "the completions is right."
    )


@styled
def margin_figure(margins: pd.DataFrame, summary: pd.DataFrame | None = None, title: str = "") -> Figure:
    """Mean length-normalised log-probability margins of GRPO and AMIR-GRPO, on one axis, and where the problems lie.

    Thin bars hold the middle half of the problems, thick ones the 95 % interval of the mean. A table of means and ranges,
    as the published one, has no distribution in it: its thin bars go from low to high.

    Args:
        margins: Columns method, margin and, where there are two readings, reading; or method, mean, low and high.
        summary: From `tables.margin_summary`, for the intervals.
    """
    ranges = "margin" not in margins.columns
    readings = list(margins["reading"].unique()) if "reading" in margins.columns else []
    rows = [(reading, method) for reading in readings or [None] for method in METHODS]
    figure = new_figure(6.0, 1.15 + 0.34 * len(rows))
    axes = figure.subplots()
    axes.axvline(0, color="#333333", linewidth=0.8)
    places, names = [], []
    for index, (reading, method) in enumerate(rows):
        y = index + 0.9 * (index // 2)
        part = _read_by(margins, method, reading)
        places.append(y)
        if ranges:
            names.append(POLICY_NAMES[method])
            row = part.iloc[0]
            axes.hlines(y, row["low"], row["high"], color=COLOURS[method], linewidth=1.2)
            _margin_mean(axes, y, row["mean"], method)
            continue
        names.append(f"{POLICY_NAMES[method]} ({len(part)} problem{'s' * (len(part) != 1)})")
        if len(part):
            _margins(axes, y, part, None if summary is None else _read_by(summary, method, reading), method)
        else:
            axes.annotate("no problem has both right and wrong completions", (0.03, y), fontsize=7, va="center",
                          xycoords=("axes fraction", "data"))  # fmt: skip
    for index, reading in enumerate(readings):
        axes.annotate(READINGS.get(reading, reading), (0, places[2 * index] - 0.8), ha="right", va="center",
                      xycoords=("axes fraction", "data"), xytext=(-6, 0), textcoords="offset points",
                      fontweight="bold")  # fmt: skip
    axes.set_yticks(places, names)
    axes.set_ylim(places[-1] + 0.5, -1.2 if readings else -0.8)
    axes.set_xlabel("margin: right − wrong completions of a problem (nats per token)")
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    note = "Thin bars: the middle half of the problems"
    note += (
        "; thick bars: 95 % interval of the mean, over problems and not over seeds." if summary is not None else "."
    )
    add_footnote(figure, "Bars: lowest to highest margin; point: mean." if ranges else note)
    add_title(figure, title)
    return figure


def _read_by(table: pd.DataFrame, method: str, reading: str | None) -> pd.DataFrame:
    """The rows of a method, and of a reading where there are two."""
    return table[(table["method"] == method) & (True if reading is None else table["reading"] == reading)]


def _margins(axes: Axes, y: float, margins: pd.DataFrame, summary: pd.DataFrame | None, method: str) -> None:
    """The middle half of the margins, the interval of their mean where it is known, and the mean."""
    values = margins["margin"].to_numpy(dtype=float)
    axes.hlines(y, *np.quantile(values, (0.25, 0.75)), color=COLOURS[method], linewidth=1.2)
    if summary is not None:
        ends = summary[["mean_low", "mean_high"]].to_numpy(dtype=float)
        if len(ends) and np.isfinite(ends).all():
            axes.hlines(y, *ends[0], color=COLOURS[method], linewidth=5, alpha=0.45)
    _margin_mean(axes, y, values.mean(), method)


def _margin_mean(axes: Axes, y: float, mean: float, method: str) -> None:
    axes.plot(mean, y, "o", markersize=5, color=COLOURS[method], markeredgecolor="white", zorder=4)
    axes.annotate(signed(mean, 3), (mean, y), xytext=(0, 5), textcoords="offset points", ha="center", va="bottom",
                  fontsize=7.5, fontweight="bold")  # fmt: skip


@styled
def reliability_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Reliability diagram: how often completions that state a confidence are right, one panel per policy.

    `table`: from `tables.reliability_table`. Below each panel's diagonal a policy is overconfident. Bars are 95 %
    intervals over problems, the area of a point stands for the number of completions.
    """
    names = list(dict.fromkeys(table["policy"]))
    figure = new_figure(0.7 + 2.1 * max(len(names), 1), 3.0)
    panels = figure.subplots(1, max(len(names), 1), squeeze=False, sharey=True)[0]
    for index, panel in enumerate(panels):
        panel.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="stated confidence", aspect="equal")
        if index >= len(names):
            panel.text(0.5, 0.5, "no completion states\na confidence", ha="center", va="center")
            continue
        part = table[table["policy"] == names[index]]
        colour = policy_colour(names[index], index)
        panel.vlines(part["confidence"], part["right_low"], part["right_high"], color=colour, linewidth=1)
        area = 6 + 60 * part["completions"] / part["completions"].max()
        panel.scatter(
            part["confidence"], part["right"], s=area, color=colour, edgecolor="white", linewidth=0.5, zorder=3
        )
        label = POLICY_NAMES.get(names[index], names[index])
        panel.set_title(f"{label} ({part['completions'].sum():,} completions)", fontsize=8, fontweight="normal")
    panels[0].set_ylabel("share right")
    add_title(figure, title)
    return figure
