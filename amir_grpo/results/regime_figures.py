"""Figures of what happens inside a training: margins against entropy, and how much of an update is about correctness."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amir_grpo.choices import POLICY_NAMES
from amir_grpo.results.style import NEUTRAL, add_footnote, add_title, arm_colours, new_figure, styled


@styled
def empty_figure(title: str) -> Figure:
    """In place of a figure whose runs have not been made."""
    figure = new_figure(6.0, 0.9)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.annotate("no runs yet", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color=NEUTRAL)
    add_title(figure, title)
    return figure


@styled
def entropy_figure(curves: pd.DataFrame, title: str = "", note: str = "") -> Figure:
    """Margin and pair accuracy against the entropy of the policy, over sampling temperatures; a line per policy.

    Where two lines lie on each other, the policies differ as two temperatures do.

    Args:
        curves: Columns about, temperature, entropy, margin (nats per token) and accuracy (0 to 1); means over runs.
        title: The finding.
        note: What else is to be seen, in small print below.
    """
    figure = new_figure(6.6, 2.8)
    panels = figure.subplots(1, 2)
    colours = arm_colours(curves["about"])
    for panel, column, scale, label in zip(
        panels, ("margin", "accuracy"), (1, 100), ("margin (nats per token)", "pair accuracy (%)"), strict=True
    ):
        for about, part in curves.groupby("about", sort=False):
            part = part.sort_values("temperature")
            width, size = (3.0, 8) if about == POLICY_NAMES["grpo"] else (1.2, 4)  # seen below a line that coincides
            panel.plot(part["entropy"], scale * part[column], color=colours[about], linewidth=width, label=about)
            own = part[part["temperature"] == 1]
            panel.plot(own["entropy"], scale * own[column], "o", color=colours[about], markersize=size)
        panel.set(xlabel="entropy (nats per token)", ylabel=label)
    panels[1].legend(loc="best", fontsize=6.5)
    lines = "Lines: the same policy at temperatures from 0.5 to 2; points: at 1. Completions of the base policy."
    add_footnote(figure, f"{lines} {note}".strip())
    add_title(figure, title)
    return figure


@styled
def cosine_figure(measured: pd.DataFrame, predicted: pd.DataFrame, title: str = "") -> Figure:
    """How much of an update is about correctness, against the pass rate: theory as lines, rollouts as points; by regime.

    Args:
        measured: Columns regime, about, pass_rate, cosine; one row per arm and bin of pass rates.
        predicted: The same columns, from simulation.
        title: The finding.
    """
    regimes = list(predicted["regime"].unique())
    figure = new_figure(0.8 + 1.75 * len(regimes), 3.2)
    panels = figure.subplots(1, len(regimes), sharex=True, sharey=True, squeeze=False)[0]
    colours = arm_colours(predicted["about"])
    for panel, regime in zip(panels, regimes, strict=True):
        _cosines(panel, predicted[predicted["regime"] == regime], colours, "-")
        _cosines(panel, measured[measured["regime"] == regime], colours, "o")
        panel.set_title(regime, fontsize=8)
        panel.set(xlabel="pass rate (%)", xlim=(0, 100), ylim=(0, 1.02))
        panel.grid(axis="y")
    panels[0].set_ylabel("cosine of the update with\ncorrectness")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=6.5)
    add_title(figure, title)
    return figure


def _cosines(axes: Axes, rows: pd.DataFrame, colours: dict[str, str], look: str) -> None:
    for about, part in rows.groupby("about", sort=False):
        part = part.sort_values("pass_rate")
        label = about if look == "-" else None
        axes.plot(
            100 * part["pass_rate"],
            np.asarray(part["cosine"]),
            look,
            color=colours[about],
            markersize=3.5,
            label=label,
        )
