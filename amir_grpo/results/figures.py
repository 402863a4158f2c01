"""Figures of an evaluation, one function each: tables in, matplotlib Figure out."""

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from amir_grpo.choices import POLICY_NAMES
from amir_grpo.results.formatting import gain_colour, signed
from amir_grpo.results.style import COLOURS, SMALL_PRINT, add_title, new_figure, policy_colour, styled
from amir_grpo.results.tables import with_gain

READINGS = {"own": "each policy on its own completions", "shared": "both policies on the same completions"}


@styled
def main_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Benchmark x k by model, each cell `GRPO → AMIR-GRPO (gain)` in percent, gains blue above 0 and orange below.

    `table`: columns benchmark, k, model, grpo, amir_grpo; with gain_low and gain_high each cell has the gain's 95 %
    interval (percentage points) below. Draws the published table and that of a run.
    """
    table = with_gain(table)
    benchmarks, models = list(table["benchmark"].unique()), list(table["model"].unique())
    ks = sorted(table["k"].unique())
    interval = "gain_low" in table.columns
    cells = {(row.benchmark, row.k, row.model): row for row in table.itertuples(index=False)}
    row_height, cell_width, head = (0.40 if interval else 0.235), 2.05, 0.34
    # the name column is as wide as the longest benchmark needs; 0.075 in a character at 8 pt bold
    name_width = 0.25 + 0.075 * max((len(str(name)) for name in benchmarks), default=4)
    name_width, k_width = max(name_width, 0.9), 0.35
    width = name_width + k_width + cell_width * len(models)
    rows = len(benchmarks) * len(ks)
    top = 0.32 if title else 0.08
    foot = 0.56 if interval else 0.28
    height = top + head + rows * row_height + foot
    figure = Figure(figsize=(max(width, 4.2), height))
    FigureCanvasAgg(figure)
    width = max(width, 4.2)
    cell_width = (width - name_width - k_width) / max(len(models), 1)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)  # inches from the top left corner

    if title:
        axes.text(width / 2, 0.2, title, ha="center", va="center", fontsize=9, fontweight="bold")
    rule = {"color": "black", "linewidth": 0.8}
    axes.plot([0.06, width - 0.06], [top, top], **rule)
    middle = top + head / 2
    axes.text(0.1, middle, "Benchmark", va="center", fontweight="bold")
    axes.text(name_width + k_width / 2 - 0.05, middle, "k", ha="center", va="center", fontstyle="italic")
    for column, model in enumerate(models):
        x = name_width + k_width + (column + 0.5) * cell_width
        axes.text(x, middle, str(model), ha="center", va="center", fontweight="bold")
    y = top + head
    axes.plot([0.06, width - 0.06], [y, y], color="black", linewidth=0.5)
    for number, benchmark in enumerate(benchmarks):
        if number % 2 == 0:
            axes.axhspan(y, y + row_height * len(ks), color="#f4f4f4", linewidth=0)
        axes.text(0.1, y + row_height * len(ks) / 2, str(benchmark), va="center", fontweight="bold")
        for k in ks:
            axes.text(name_width + k_width / 2 - 0.05, y + row_height / 2, str(k), ha="center", va="center")
            for column, model in enumerate(models):
                row = cells.get((benchmark, k, model))
                x = name_width + k_width + (column + 0.5) * cell_width
                _main_cell(axes, x, y, row_height, row, interval)
            y += row_height
    axes.plot([0.06, width - 0.06], [y, y], **rule)
    note = "pass@k (%): GRPO → AMIR-GRPO (gain); blue: above GRPO, orange: below."
    if interval:
        note += "\nIn brackets: 95 % interval of the gain over problems,\npercentage points"
        if {"problems", "samples"} <= set(table.columns) and len(table):
            least, most = table["problems"].min(), table["problems"].max()
            problems = f"{least}" if least == most else f"{least} to {most}"
            note += f"; {problems} problems, n = {table['samples'].iloc[0]}"
        note += "."
    axes.text(0.1, y + 0.08, note, va="top", **SMALL_PRINT, linespacing=1.35)
    return figure


def _main_cell(axes, x: float, y: float, height: float, row, interval: bool) -> None:
    """One cell: the two pass rates to the left of x + 0.2 in, the gain to the right of it, the interval below."""
    if row is None or np.isnan(row.grpo) or np.isnan(row.amir_grpo):
        axes.text(x, y + height / 2, "–", ha="center", va="center", color="#555555")
        return
    line = y + (0.14 if interval else height / 2)
    axes.text(x + 0.16, line, f"{row.grpo:.1f} → {row.amir_grpo:.1f}", ha="right", va="center")
    axes.text(
        x + 0.24,
        line,
        f"({signed(row.gain)})",
        ha="left",
        va="center",
        fontweight="bold",
        color=gain_colour(row.gain),
    )
    if interval and not np.isnan(row.gain_low):
        text = f"[{signed(row.gain_low)}, {signed(row.gain_high)}]"
        axes.text(x, y + 0.29, text, ha="center", va="center", **SMALL_PRINT)


@styled
def coverage_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Of the problems that at least one of base, GRPO and AMIR-GRPO solves, the share for each solved-by pattern.

    `table`: columns base, grpo, amir_grpo (0/1), percent, problems, eight rows. Bars with percent and count, beside a
    dot matrix of who solves; one row per pattern, in the table's order.
    """
    policies = ["base", "grpo", "amir_grpo"]
    table = table.reset_index(drop=True)
    solved = int(table.loc[table[policies].any(axis=1), "problems"].sum())
    figure = new_figure(5.4, 1.25 + 0.25 * len(table))
    dots, bars = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2.9))
    for index, row in table.iterrows():
        marks = [bool(row[policy]) for policy in policies]
        for x, (policy, mark) in enumerate(zip(policies, marks, strict=True)):
            colour = COLOURS[policy] if mark else "white"
            edge = COLOURS[policy] if mark else "#bbbbbb"
            dots.plot(x, index, "o", markersize=7, markerfacecolor=colour, markeredgecolor=edge, markeredgewidth=0.8)
        held = [x for x, mark in enumerate(marks) if mark]
        if len(held) > 1:
            dots.plot([held[0], held[-1]], [index, index], color="#999999", linewidth=1.2, zorder=0)
    dots.set_xlim(-0.6, 2.6)
    dots.set_xticks(
        range(3), [POLICY_NAMES[policy] for policy in policies], rotation=35, ha="left", rotation_mode="anchor"
    )
    dots.xaxis.tick_top()
    dots.set_yticks([])
    dots.tick_params(length=0)
    for spine in dots.spines.values():
        spine.set_visible(False)
    # what only the trained policies reach is what the figure is about: told apart by colour and by hatching
    kinds = [_coverage_kind(row, policies) for _, row in table.iterrows()]
    for kind, (colour, hatch, label) in COVERAGE_KINDS.items():
        chosen = [index for index, own in enumerate(kinds) if own == kind]
        if chosen:
            bars.barh(
                chosen,
                table["percent"].iloc[chosen],
                height=0.66,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0,
                label=label,
            )
    for index, row in table.iterrows():
        text = f"{row['percent']:.1f} %  ({int(row['problems'])})"
        bars.annotate(
            text, (row["percent"], index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    bars.set_ylim(len(table) - 0.5, -0.6)
    # room for the longest bar's own text
    longest = float(table["percent"].max())
    bars.set_xlim(0, 1.32 * longest if longest > 0 else 100.0)
    bars.set_yticks([])
    bars.spines["left"].set_position(("data", 0))
    bars.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    bars.xaxis.set_major_locator(MaxNLocator(6))
    total = table.attrs.get("problems")
    of = f"{solved}" if total is None else f"{solved} of {total}"
    bars.set_xlabel(f"share (count) of the problems that at least\none policy solves: {of}")
    if solved:
        figure.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=1.2)
    else:
        bars.text(0.5, 0.5, "no policy solves any problem", transform=bars.transAxes, ha="center", va="center")
    add_title(figure, title)
    return figure


COVERAGE_KINDS = {
    "all": ("#8c8c8c", "", "solved by all three"),
    "amir": (COLOURS["amir_grpo"], "", "by AMIR-GRPO, not by all"),
    "not_amir": (COLOURS["grpo"], "////", "not by AMIR-GRPO"),
}


def _coverage_kind(row: pd.Series, policies: list[str]) -> str:
    if all(row[policy] for policy in policies):
        return "all"
    return "amir" if row["amir_grpo"] else "not_amir"


@styled
def margin_figure(margins: pd.DataFrame, summary: pd.DataFrame | None = None, title: str = "") -> Figure:
    """Length-normalised log-probability margins of AMIR-GRPO and GRPO: violins, means marked and labelled, zero line.

    `margins`: columns method, margin and, if there are two readings, reading (one panel each); `summary` (columns
    reading, method, mean_low, mean_high, as `tables.margin_summary` makes it) adds the 95 % interval of the mean as a
    bar. Fewer than three margins, or equal ones, are drawn as points. A table with method, mean, low and high (as the
    published one) has no distribution in it: a bar from low to high with the mean is drawn.
    """
    ranges = "margin" not in margins.columns
    readings = list(margins["reading"].unique()) if "reading" in margins.columns else [None]
    if not readings:
        readings = [None]
    methods = ["amir_grpo", "grpo"]
    methods += [method for method in margins["method"].unique() if method not in [*methods, "base"]]
    figure = new_figure(max(3.5, 3.1 * len(readings)), 3.2)
    panels = figure.subplots(1, len(readings), sharey=True, squeeze=False)[0]
    for panel, reading in zip(panels, readings, strict=True):
        part = margins if reading is None else margins[margins["reading"] == reading]
        panel.axhline(0, color="#444444", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        names = []
        for x, method in enumerate(methods):
            rows = part[part["method"] == method]
            colour = policy_colour(method, x)
            if ranges:
                _margin_range(panel, x, rows, colour)
                names.append(POLICY_NAMES.get(method, method))
            else:
                values = rows["margin"].to_numpy(dtype=float)
                ends = None
                if summary is not None:
                    match = summary[summary["method"] == method]
                    match = match if reading is None else match[match["reading"] == reading]
                    ends = match[["mean_low", "mean_high"]].to_numpy(dtype=float)[0] if len(match) else None
                _margin_violin(panel, x, values, colour, ends)
                names.append(f"{POLICY_NAMES.get(method, method)}\n{len(values)} problem{'s' * (len(values) != 1)}")
        panel.set_xticks(range(len(methods)), names)
        panel.set_xlim(-0.5, len(methods) - 0.3)
        panel.tick_params(axis="x", length=0)
        panel.grid(axis="y")
        if reading is not None:
            panel.set_title(READINGS.get(reading, reading), fontweight="normal", fontsize=8)
        if not ranges and part[part["method"].isin(methods)].empty:
            panel.set_yticks([])
    note = "bar: lowest to highest margin; diamond: mean"
    if not ranges:
        note = "diamond: mean" + ", with its 95 % interval over problems" * (summary is not None)
        note += "; thick bar: middle half of the problems"
    figure.supxlabel(note, **SMALL_PRINT)
    panels[0].set_ylabel("margin: correct − incorrect (nats per token)")
    add_title(figure, title)
    return figure


def _margin_violin(panel, x: float, values: np.ndarray, colour: str, ends: np.ndarray | None) -> None:
    if values.size == 0:
        text = "no problem has\nboth right and\nwrong completions"
        panel.annotate(text, (x, 0.5), xycoords=("data", "axes fraction"), ha="center", va="center", fontsize=7)
        return
    if values.size > 2 and np.ptp(values) > 0:
        body = panel.violinplot([values], positions=[x], widths=0.56, showextrema=False, points=200)["bodies"][0]
        body.set(facecolor=colour, edgecolor=colour, alpha=0.35, linewidth=0.8)
        low, quartile, upper, high = np.quantile(values, (0, 0.25, 0.75, 1))
        panel.plot([x, x], [low, high], color=colour, linewidth=0.7, zorder=3)
        panel.plot([x, x], [quartile, upper], color=colour, linewidth=4, alpha=0.55, zorder=3, solid_capstyle="butt")
    else:
        panel.plot(np.full(values.size, x), values, "o", color=colour, markersize=4, alpha=0.6)
    mean = float(values.mean())
    if ends is not None and np.isfinite(ends).all():
        panel.errorbar(
            [x], [mean], [[mean - ends[0]], [ends[1] - mean]], color="black", linewidth=1.1, capsize=3, zorder=4
        )
    _margin_mean(panel, x, mean)


def _margin_range(panel, x: float, rows: pd.DataFrame, colour: str) -> None:
    for row in rows.itertuples(index=False):
        panel.use_sticky_edges = False
        panel.margins(y=0.09)
        panel.bar(x, row.high - row.low, bottom=row.low, width=0.34, color=colour, alpha=0.35, edgecolor=colour)
        for value, above in ((row.low, False), (row.high, True)):
            offset, side = ((0, 3), "bottom") if above else ((0, -3), "top")
            panel.annotate(
                f"{value:+.3f}".replace("-", "−"),
                (x, value),
                xytext=offset,
                textcoords="offset points",
                ha="center",
                va=side,
                **SMALL_PRINT,
            )
        _margin_mean(panel, x, row.mean, beside_bar=True)


def _margin_mean(panel, x: float, mean: float, beside_bar: bool = False) -> None:
    panel.plot([x], [mean], "D", color="white", markeredgecolor="black", markersize=5, zorder=5)
    text = f"{mean:+.3f}".replace("-", "−")
    place = (x + (0.22 if beside_bar else 0.31), mean)
    panel.annotate(text, place, va="center", ha="left", fontsize=7.5, fontweight="bold", zorder=6)


@styled
def reliability_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Reliability diagram: how often completions that state a confidence are right, one panel per policy.

    `table`: as of `tables.reliability_table`. Below each panel's diagonal a policy is overconfident. Bars are 95 %
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
