"""The figures of an evaluation. Each function takes a table and a title, the finding, and returns a Figure."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from amir_grpo.choices import METHODS, POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results.style import (
    COLOURS,
    MARKS,
    NEUTRAL,
    add_footnote,
    add_title,
    gain_colour,
    new_figure,
    signed,
    styled,
)

READINGS = {"own": "own completions", "shared": "same completions"}  # what a method scores
_GREY_TEXT = "#555555"  # the lightest readable grey
_GREY = f"A gain is grey unless p < {SIGNIFICANCE} after Holm's correction."


@styled
def main_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw pass@k of the three policies as dumbbells, and AMIR-GRPO's gain over GRPO on its own axis; pass@1 first.

    Args:
        table: Columns benchmark, k, base, grpo, amir_grpo (percent), gain, gain_low, gain_high (points), p_holm, problems.
    """
    rows = table.sort_values("k", kind="stable").to_dict("records")
    figure = new_figure(6.6, 1.3 + 0.19 * (len(rows) + table["k"].nunique()))
    levels, gains = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
    places = _places([f"pass@{row['k']}" for row in rows], levels)
    for y, row in zip(places, rows, strict=True):
        shown = [row[policy] for policy in POLICY_NAMES]
        levels.plot([min(shown), max(shown)], [y, y], color="#cccccc", linewidth=2, zorder=1)
        for policy, level in zip(POLICY_NAMES, shown, strict=True):
            levels.plot(level, y, **MARKS[policy], linestyle="", zorder=3)
        colour = gain_colour(row["gain"], row["p_holm"])
        _interval(gains, y, row["gain"], row["gain_low"], row["gain_high"], colour)
        gains.annotate(signed(row["gain"]), (1.02, y), xycoords=("axes fraction", "data"), va="center",
                       color=_GREY_TEXT if colour == NEUTRAL else colour, annotation_clip=False)  # fmt: skip
    levels.set(xlim=(-2, 102), xlabel="problems solved (%)")
    gains.axvline(0, color="#333333", linewidth=0.8)
    reach = max(np.abs(gains.get_xlim()))
    gains.set(xlim=(-reach, reach), xlabel="gain: AMIR-GRPO − GRPO (points)")
    marks = [Line2D([], [], **MARKS[policy], linestyle="", label=name) for policy, name in POLICY_NAMES.items()]
    levels.legend(handles=marks, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, handletextpad=0.2)
    note = f"Bars: 95 % intervals over {table['problems'].max()} problems, not over training seeds. {_GREY}"
    return _finished(figure, (levels, gains), places, [row["benchmark"] for row in rows], title, note)


@styled
def pairwise_figure(comparisons: pd.DataFrame, title: str = "") -> Figure:
    """Draw the gain of each policy over each other one, a panel per pair, black if p_holm < 0.05, else grey.

    Args:
        comparisons: Columns benchmark, quantity, new, old, gain, gain_low, gain_high (points) and p_holm.
    """
    two = list(dict.fromkeys(zip(comparisons["new"], comparisons["old"], strict=True)))
    labels = comparisons[["benchmark", "quantity"]].drop_duplicates()
    names = [" − ".join(POLICY_NAMES.get(policy, policy) for policy in pair) for pair in two]
    height = 0.9 + 0.17 * (len(labels) + labels["benchmark"].nunique())
    figure, panels = _panels(names, 1.2 + 2.0 * len(two), height, "points")
    places = _places(list(labels["benchmark"]), panels[0])
    for panel, (new, old) in zip(panels, two, strict=True):
        part = comparisons[(comparisons["new"] == new) & (comparisons["old"] == old)]
        for y, row in zip(places, part.to_dict("records"), strict=True):
            colour = "black" if row["p_holm"] < SIGNIFICANCE else NEUTRAL
            _interval(panel, y, row["gain"], row["gain_low"], row["gain_high"], colour)
    note = f"Bars: 95 % intervals over problems. Black: p < {SIGNIFICANCE} after Holm's correction."
    return _finished(figure, panels, places, labels["quantity"], title, note)


@styled
def published_figure(cells: pd.DataFrame, title: str = "") -> Figure:
    """Draw published gains in pass@1 with the noise of their own evaluation: a panel per model, a row per benchmark.

    Args:
        cells: Columns model, benchmark, problems, gain, standard_error (points) and p_holm; every model has the same rows.
    """
    models = list(cells["model"].unique())
    labels = cells[["benchmark", "problems"]].drop_duplicates()
    figure, panels = _panels(models, 1.6 + 1.75 * len(models), 1.1 + 0.21 * len(labels), "gain in pass@1 (points)")
    for panel, model in zip(panels, models, strict=True):
        for y, row in enumerate(cells[cells["model"] == model].to_dict("records")):
            reach = 1.96 * row["standard_error"]
            colour = gain_colour(row["gain"], row["p_holm"])
            _interval(panel, y, row["gain"], row["gain"] - reach, row["gain"] + reach, colour)
    note = "Bars: ±1.96 standard errors of drawing 8 completions per problem, the same problems; training seeds are in none"
    names = [f"{row.benchmark} ({row.problems})" for row in labels.itertuples()]
    return _finished(figure, panels, range(len(labels)), names, title, f"{note}. {_GREY} In brackets: problems.")


@styled
def coverage_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw the problems that only one of the two methods solves, as facing bars, hatched if the base policy does too.

    Args:
        table: Columns base, grpo, amir_grpo (0 or 1) and problems: a row for each of the eight patterns.
    """
    patterns = table.set_index(["base", "grpo", "amir_grpo"])["problems"]
    figure = new_figure(6.0, 1.75)
    axes = figure.subplots()
    sides = {"grpo": (-1, (0, 1, 0), (1, 1, 0)), "amir_grpo": (1, (0, 0, 1), (1, 0, 1))}
    most = 10  # so that a bar of one problem stays small
    for method, (side, new, known) in sides.items():
        colour, total = COLOURS[method], patterns[new] + patterns[known]
        most = max(most, total)
        axes.barh(0, side * patterns[new], height=0.6, color=colour)
        axes.barh(0, side * patterns[known], left=side * patterns[new], height=0.6, color=colour, hatch="////",
                  edgecolor="white", linewidth=0)  # fmt: skip
        place = {"ha": "right" if side < 0 else "left", "textcoords": "offset points", "fontweight": "bold"}
        axes.annotate(str(total), (side * total, 0), xytext=(5 * side, 0), va="center", fontsize=12, **place)
        axes.annotate(f"only {POLICY_NAMES[method]}", (0, 0.36), xytext=(6 * side, 0), va="bottom", **place)
    axes.set(xlim=(-1.3 * most, 1.3 * most), ylim=(-0.4, 0.75), xlabel="problems", yticks=[])
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    both = patterns[1, 1, 1] + patterns[0, 1, 1]
    note = f"Hatched: the base policy solves them as well. Both methods solve {both} problems; the base policy alone solves"
    add_footnote(figure, f"{note} {patterns[1, 0, 0]}. Solved: at least one completion is right.")
    add_title(figure, title)
    return figure


@styled
def margin_figure(margins: pd.DataFrame, summary: pd.DataFrame, title: str = "") -> Figure:
    """Draw the margins of both methods in each reading on one axis: means, intervals and the middle half of problems.

    Args:
        margins: Columns reading, method and margin (nats per token), one row per problem.
        summary: Columns reading, method, mean, mean_low and mean_high.
    """
    readings = list(margins["reading"].unique())
    rows = [(reading, method) for reading in readings for method in METHODS]
    figure = new_figure(6.0, 1.15 + 0.34 * max(len(rows), 1))
    axes = figure.subplots()
    axes.axvline(0, color="#333333", linewidth=0.8)
    places, names = _places([READINGS[reading] for reading, _ in rows], axes), []
    for y, (reading, method) in zip(places, rows, strict=True):
        own = margins.loc[(margins["reading"] == reading) & (margins["method"] == method), "margin"].astype(float)
        names.append(f"{POLICY_NAMES[method]} ({len(own)})")
        if len(own):
            axes.hlines(y, *own.quantile([0.25, 0.75]), color=COLOURS[method], linewidth=1.2)
            mean = summary[(summary["reading"] == reading) & (summary["method"] == method)].iloc[0]
            axes.hlines(y, mean["mean_low"], mean["mean_high"], color=COLOURS[method], linewidth=5, alpha=0.45)
            axes.plot(mean["mean"], y, "o", markersize=5, color=COLOURS[method], markeredgecolor="white", zorder=4)
            axes.annotate(signed(mean["mean"], 3), (mean["mean"], y), xytext=(0, 5), textcoords="offset points",
                          ha="center", va="bottom", fontsize=7.5, fontweight="bold")  # fmt: skip
    if not rows:
        axes.text(0.5, 0.5, "no problem has both right and wrong completions", transform=axes.transAxes, ha="center")
    axes.set_xlabel("margin: right − wrong completions of a problem (nats per token)")
    axes.margins(x=0.12)
    note = "Thin bars: the middle half of the problems (their number in brackets); thick bars: 95 % interval of the mean, "
    return _finished(figure, [axes], places, names, title, f"{note}over problems and not over training seeds.", 0.5)


# --- parts --------------------------------------------------------------------------------------------------------


def _places(heads: list[str], axes: Axes) -> list[float]:
    """Return the height of each row, after writing each head left of `axes`, above its rows."""
    places, place = [], 0.0
    for index, head in enumerate(heads):
        if index == 0 or head != heads[index - 1]:
            axes.annotate(head, (0, place), xycoords=("axes fraction", "data"), xytext=(-6, 0),
                          textcoords="offset points", ha="right", va="center", fontweight="bold")  # fmt: skip
            place += 0.9
        places.append(place)
        place += 1
    return places


def _interval(axes: Axes, y: float, estimate: float, low: float, high: float, colour: str) -> None:
    axes.hlines(y, low, high, color=colour, linewidth=1.6)
    axes.plot(estimate, y, "o", markersize=4.5, color=colour)


def _panels(titles: Sequence[str], width: float, height: float, xlabel: str) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure with a panel per title, side by side with shared axes, and with a line at 0."""
    figure = new_figure(width, height)
    panels = figure.subplots(1, len(titles), sharex=True, sharey=True, squeeze=False)[0]
    for panel, title in zip(panels, titles, strict=True):
        panel.axvline(0, color="#333333", linewidth=0.8)
        panel.set_title(title, fontsize=8, fontweight="normal")
        panel.set_xlabel(xlabel)
    return figure, panels


def _finished(
    figure: Figure,
    panels: Sequence[Axes],
    rows: Sequence[float],
    labels: Iterable[str],
    title: str,
    note: str,
    below: float = 0.6,
) -> Figure:
    """Label the rows, remove the vertical axes, draw grid lines at horizontal ticks, and add title and footnote."""
    panels[0].set_yticks(rows, list(labels))
    panels[0].set_ylim(max(rows, default=0) + below, -0.6)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    add_footnote(figure, note)
    add_title(figure, title)
    return figure
