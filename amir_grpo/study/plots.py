"""The figures of the study: each function turns tables of `amir_grpo.study.claims` into a matplotlib Figure.

Titles come from the caller: they are written by hand, beside the finding that they state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from amir_grpo.choices import POLICY_NAMES
from amir_grpo.results.style import (
    COLOURS,
    NEUTRAL,
    add_footnote,
    add_title,
    arm_colours,
    new_figure,
    styled,
    with_interval,
)
from amir_grpo.study.arms import TITLES, about

# The colours of verdicts; all others are grey.
VERDICTS = {
    "supported": "#0a4f8f",
    "higher": "#0a4f8f",
    "refuted": "#c75000",
    "lower": "#c75000",
    "equivalent": "#00795a",
}
_UNDECIDED = "#6b6b6b"
_NEAR = 3.0  # in margins: half the width of the panel that shows small gains if others are far out
_FAR = 4 * _NEAR  # in margins: beyond this there are two panels
_BAND = "#ececec"
# The parts of an update: the part of the term that is new, the part that the advantages contain, and the advantages.
_TERM_NEW, _TERM_KNOWN, _ADVANTAGES = COLOURS["amir_grpo"], "#9db7d8", "#f6d79a"


@styled
def gains_figure(
    table: pd.DataFrame, title: str = "", margin: float = 0.5, note: str = "", unit: str = "points"
) -> Figure:
    """Draw gains with their intervals, one row per comparison, coloured by verdict.

    The thin bar is the 95 % interval, the thick one the 90 % interval, on which a verdict about the margin rests. If
    a gain is far beyond the margin, a second panel enlarges the neighbourhood of 0.

    Args:
        table: Columns about (the label of a row), gain, gain_low, gain_high, gain_inner_low, gain_inner_high, verdict;
            in the order shown. Optional: heading, above the rows that share it; detectable, drawn as a pair of ticks.
        title, note: The finding, and further small print.
        margin: Half the width of the shaded band within which two arms count as equivalent.
        unit: Of the gains.
    """
    rows = table.to_dict("records")
    places, heads = _places(rows)
    ends = table[["gain_low", "gain_high"]].abs().to_numpy(dtype=float)
    reach = 1.08 * max([*ends[np.isfinite(ends)], 1.5 * margin])
    reaches = [reach, _NEAR * margin] if reach > _FAR * margin else [reach]
    lines = len(rows) + len(heads)
    figure = new_figure(8.0, 1.0 + 0.23 * max(lines, 1))
    panels = figure.subplots(1, len(reaches), sharey=True, squeeze=False)[0]
    for panel, end in zip(panels, reaches, strict=True):
        panel.axvspan(-margin, margin, color=_BAND, linewidth=0)
        panel.axvline(0, color="#333333", linewidth=0.8)
        for y, row in zip(places, rows, strict=True):
            _gain(panel, y, row, end)
        panel.set(xlim=(-end, end), ylim=(lines - 0.4, -0.6), xlabel=f"gain ({unit})")
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        panel.grid(axis="x")
    for y, row in zip(places, rows, strict=True):
        text = f"{with_interval(row)}  {row['verdict']}" if np.isfinite(row["gain"]) else "no runs yet"
        panels[-1].annotate(text, (1.05, y), xycoords=("axes fraction", "data"), va="center", annotation_clip=False,
                            color=VERDICTS.get(row["verdict"], _UNDECIDED))  # fmt: skip
    for y, head in heads.items():
        panels[0].annotate(str(head), (0, y), xycoords=("axes fraction", "data"), xytext=(-6, 0),
                           textcoords="offset points", ha="right", va="center", fontweight="bold")  # fmt: skip
    panels[0].set_yticks(places, table["about"])
    read = f"Thin bars: 95 % intervals; thick: 90 %. Shaded: within ±{margin:g} {unit}."
    read += " Colours: the verdict; grey: none." + (" At the right: around 0, enlarged." if len(reaches) > 1 else "")
    read += " Ticks: what would have been detected with a chance of 80 %." if "detectable" in table else ""
    add_footnote(figure, f"{note} {read}".strip())
    add_title(figure, title)
    return figure


def _places(rows: list[dict]) -> tuple[list[float], dict[float, str]]:
    """Return the height of each row, and the headings by height, each above its first row."""
    places, heads, place = [], {}, 0.0
    for index, row in enumerate(rows):
        if "heading" in row and (index == 0 or row["heading"] != rows[index - 1]["heading"]):
            heads[place] = row["heading"]
            place += 1
        places.append(place)
        place += 1
    return places, heads


def _gain(panel: Axes, y: float, row: Mapping, reach: float) -> None:
    """Draw one gain with its bars, or an arrow at the edge of the panel if it lies outside."""
    if not np.isfinite(row["gain"]):
        return
    colour = VERDICTS.get(row["verdict"], NEUTRAL)
    panel.hlines(y, row["gain_low"], row["gain_high"], color=colour, linewidth=1.2)
    panel.hlines(y, row["gain_inner_low"], row["gain_inner_high"], color=colour, linewidth=2.8)
    if abs(row["gain"]) < reach:
        panel.plot(row["gain"], y, "o", markersize=4.5, color=colour)
    else:
        edge = 0.96 * reach * np.sign(row["gain"])
        panel.plot(edge, y, ">" if edge > 0 else "<", markersize=4.5, color=colour)
    if row.get("detectable", np.nan) < reach:
        panel.plot([-row["detectable"], row["detectable"]], [y, y], "|", markersize=7, color="#b0b0b0", zorder=1)


@styled
def shares_figure(shares: pd.DataFrame, least: float, title: str = "") -> Figure:
    """Draw the parts of an update: one bar from 0 to 100 % per arm, the preference term's part of it in two shades.

    `shares`: columns about, share (of the preference term) and residual_share (the part of it that the advantages do
    not explain), both in percent of the update; `least`: percent of the update that must be new for the claim.
    """
    figure = new_figure(6.4, 1.3 + 0.42 * len(shares))
    axes = figure.subplots()
    for y, row in enumerate(shares.to_dict("records")):
        share, new = row["share"], row["residual_share"]
        for left, right, colour in ((0, new, _TERM_NEW), (new, share, _TERM_KNOWN), (share, 100, _ADVANTAGES)):
            axes.barh(y, right - left, left=left, height=0.62, color=colour)
        axes.annotate(f"{share:.2g} %, new {new:.2g} %", (1.01, y), xycoords=("axes fraction", "data"),
                      va="center", annotation_clip=False)  # fmt: skip
    line = axes.axvline(least, color="#1a1a1a", linewidth=1, linestyle=(0, (2, 1.5)))
    axes.set_yticks(range(len(shares)), shares["about"])
    axes.set(xlim=(0, 100), ylim=(len(shares) - 0.5, -0.5), xlabel="of the update (%), mean over the training")
    axes.tick_params(axis="y", length=0)
    named = {"preference term: new": _TERM_NEW, "in the advantages, too": _TERM_KNOWN, "advantages": _ADVANTAGES}
    handles = [*(Patch(color=colour) for colour in named.values()), line]
    figure.legend(handles, [*named, f"this study's threshold: {least:g} % new"], loc="outside lower center", ncols=4,
                  fontsize=6.5)  # fmt: skip
    add_title(figure, title)
    return figure


@styled
def entropy_figure(curves: pd.DataFrame, title: str = "", note: str = "") -> Figure:
    """Draw margin and pair accuracy against the entropy of the policy, over sampling temperatures; a line per policy.

    Where two lines coincide, the policies differ as two temperatures do. `curves`: columns about, temperature,
    entropy, margin (nats per token) and accuracy (0 to 1); means over runs.
    """
    figure = new_figure(6.6, 2.8)
    panels = figure.subplots(1, 2)
    colours = arm_colours(curves["about"])
    quantities = (("margin", 1, "margin (nats per token)"), ("accuracy", 100, "pair accuracy (%)"))
    for panel, (column, scale, unit) in zip(panels, quantities, strict=True):
        for label, part in curves.groupby("about", sort=False):
            part = part.sort_values("temperature")
            width, size = (3.0, 8) if label == POLICY_NAMES["grpo"] else (1.2, 4)  # visible below a coinciding line
            panel.plot(part["entropy"], scale * part[column], color=colours[label], linewidth=width, label=label)
            own = part[part["temperature"] == 1]
            panel.plot(own["entropy"], scale * own[column], "o", color=colours[label], markersize=size)
        panel.set(xlabel="entropy (nats per token)", ylabel=unit)
    panels[1].set_ylim(85, 95)  # fixed, since these pairs do not resolve tenths of a point
    panels[1].legend(loc="best", fontsize=6.5)
    lines = "Lines: the same policy at temperatures from 0.5 to 2; points: at 1. Completions of the base policy."
    add_footnote(figure, f"{lines} {note}".strip())
    add_title(figure, title)
    return figure


@styled
def cosines_figure(measured: pd.DataFrame, predicted: pd.DataFrame, title: str = "") -> Figure:
    """Draw how much of an update is about correctness by pass rate and regime: theory as lines, rollouts as points.

    `measured`, `predicted`: columns regime, arm (of `arms.ARMS`), pass_rate, cosine; those of `predicted` are shown.
    """
    regimes = list(predicted["regime"].unique())
    figure = new_figure(0.8 + 1.75 * len(regimes), 3.2)
    panels = figure.subplots(1, len(regimes), sharex=True, sharey=True, squeeze=False)[0]
    arms = [tuple(pair) for pair in predicted[["regime", "arm"]].drop_duplicates().to_numpy()]
    colours, handles = arm_colours(about("/".join(arm)) for arm in arms), {}
    for regime, arm in arms:
        panel, label = panels[regimes.index(regime)], about(f"{regime}/{arm}")
        for table, look in ((predicted, "-"), (measured, "o")):
            part = table[(table["regime"] == regime) & (table["arm"] == arm)].sort_values("pass_rate")
            (line,) = panel.plot(100 * part["pass_rate"], part["cosine"], look, color=colours[label], markersize=3.5)
            handles.setdefault(label, line)
    for panel, regime in zip(panels, regimes, strict=True):
        panel.set_title(TITLES[regime], fontsize=8)
        panel.set(xlabel="pass rate (%)", xlim=(0, 100), ylim=(0, 1.02))
        panel.grid(axis="y")
    panels[0].set_ylabel("cosine of the update with\ncorrectness")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=6.5)
    add_title(figure, title)
    return figure


@styled
def identity_figure(weights: pd.DataFrame, title: str = "") -> Figure:
    """Draw preference weights against wins minus losses, one panel per β; the line is exact proportionality.

    `weights`: columns beta, wins_minus_losses, weight; a row per completion. A panel is scaled to its largest weight.
    """
    betas = sorted(weights["beta"].unique())
    figure = new_figure(0.6 + 2.0 * len(betas), 2.5)
    panels = figure.subplots(1, len(betas), sharex=True, sharey=True, squeeze=False)[0]
    for panel, beta in zip(panels, betas, strict=True):
        part = weights[weights["beta"] == beta]
        x, y = part["wins_minus_losses"].to_numpy(dtype=float), part["weight"].to_numpy(dtype=float)
        slope, largest, line = (x @ y) / (x @ x), np.abs(y).max(), np.array([x.min(), x.max()])
        panel.plot(line, slope / largest * line, color=NEUTRAL, linewidth=1)
        panel.plot(x, y / largest, "o", markersize=3, alpha=0.35, markeredgewidth=0, color=COLOURS["amir_grpo"])
        panel.set_title(f"β = {beta:g}: r = {np.corrcoef(x, y)[0, 1]:.4f}", fontsize=8, fontweight="normal")
        panel.set_xlabel("wins − losses")
    panels[0].set_ylabel("preference weight\n(largest: 1)")
    add_title(figure, title)
    return figure
