"""Figures of the study, one function each: tables of `amir_grpo.study.claims` in, matplotlib Figure out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from amir_grpo.choices import POLICY_NAMES
from amir_grpo.results.style import (
    COLOURS,
    NEUTRAL,
    add_footnote,
    add_title,
    arm_colours,
    new_figure,
    styled,
)

# What an update consists of: what the preference term adds, what of it the advantages hold already, and the advantages.
_TERM_NEW, _TERM_KNOWN, _ADVANTAGES = COLOURS["amir_grpo"], "#9db7d8", "#f6d79a"
_POOLED = {"unweighted": "equal weights", "precision": "by precision"}
_REACH = 1.96  # standard errors


@styled
def noise_figure(noise: pd.DataFrame, pooled: pd.DataFrame, title: str = "") -> Figure:
    """Published gains with the noise of their evaluation: one panel per model, one row per benchmark and k, two pooled.

    Around each gain the dark bar reaches 1.96 standard errors at the noise that the published pass@2 - pass@1 imply, the
    light one if all problems were equally hard; without noise the gain is its point. A point is grey where its dark bar
    holds 0, and has the colour of the method that is ahead elsewhere.

    Args:
        noise: From `published_noise.noise_table`.
        pooled: From `published_noise.pooled_table`; its rows of k = 1 over all benchmarks are drawn below.
    """
    models = list(noise["model"].unique())
    cells = noise[["benchmark", "k", "problems"]].drop_duplicates()
    labels = [
        f"{row.benchmark} ({row.problems}), k = {row.k}" if row.k == 1 else f"k = {row.k}"
        for row in cells.itertuples()
    ]
    labels += [f"all, k = 1, {_POOLED[weights]}" for weights in _POOLED]
    places = [*range(len(cells)), *(len(cells) + 0.6 + np.arange(len(_POOLED)))]
    figure = new_figure(2.3 + 1.75 * len(models), 1.0 + 0.19 * len(labels))
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        rows = noise.loc[noise["model"] == model, ["gain", "implied", "largest"]].to_dict("records")
        rows += [_pooled_gain(pooled, model, weights) for weights in _POOLED]
        for y, row in zip(places, rows, strict=True):
            for width, colour in ((row["largest"], "#ededed"), (row["implied"], "#cfcfcf")):
                panel.barh(y, 2 * _REACH * width, left=row["gain"] - _REACH * width, height=0.7, color=colour)
            colour = COLOURS["amir_grpo"] if row["gain"] > 0 else COLOURS["grpo"]
            beyond = abs(row["gain"]) > _REACH * row["implied"]
            panel.plot(row["gain"], y, "o", markersize=4.5, color=colour if beyond else NEUTRAL)
        panel.axvline(0, color="#333333", linewidth=0.6)
        panel.axhline(len(cells) - 0.2, color="#777777", linewidth=0.6)
        panel.set_title(model, fontsize=8)
        panel.set_xlabel("gain (points)")
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)
    ends = [end for panel in panels for end in panel.get_xlim()]
    for panel in panels:
        panel.set_xlim(min(ends), max(ends))
    panels[0].set_yticks(places, labels)
    panels[0].set_ylim(places[-1] + 0.6, -0.6)
    add_footnote(
        figure,
        "Bars: ±1.96 standard errors of an evaluation with n = 8 samples on the same problems. Dark: as pass@2 − pass@1 "
        "imply; light: if all problems were equally hard. Grey points: the dark bar holds 0; blue: AMIR-GRPO is ahead, "
        "orange: GRPO. In brackets: problems. The noise of training seeds is in none of them. Pooled: every benchmark "
        "counts the same, or by 1 / standard error².",
    )
    add_title(figure, title)
    return figure


def _pooled_gain(pooled: pd.DataFrame, model: str, weights: str) -> dict[str, float]:
    """The pooled gain of a model at k = 1, with the weights of the implied noise, and its two standard errors."""
    part = pooled[(pooled["model"] == model) & (pooled["k"] == 1) & (pooled["benchmarks"] == "all")]
    part = part[part["weights"] == weights].set_index("noise")
    errors = part["standard_error"]
    return {"gain": part.loc["implied", "gain"], "implied": errors["implied"], "largest": errors["largest"]}


@styled
def share_bars_figure(shares: pd.DataFrame, least: float, title: str = "") -> Figure:
    """What an update consists of: one bar from 0 to 100 % per arm, the preference term's part of it in two shades.

    Args:
        shares: Columns about, share (of the preference term) and residual_share (of what the advantages do not explain of
            it), both of the update, 0 to 1, in the order shown.
        least: How much has to be new for the claim, in percent of the update.
        title: The finding.
    """
    figure = new_figure(6.4, 1.3 + 0.42 * len(shares))
    axes = figure.subplots()
    for y, row in enumerate(shares.to_dict("records")):
        share, new = 100 * row["share"], 100 * row["residual_share"]
        for left, right, colour in ((0, new, _TERM_NEW), (new, share, _TERM_KNOWN), (share, 100, _ADVANTAGES)):
            axes.barh(y, right - left, left=left, height=0.62, color=colour)
        axes.annotate(f"{share:.2g} %, new {new:.2g} %", (1.01, y), xycoords=("axes fraction", "data"),
                      va="center", annotation_clip=False)  # fmt: skip
    line = axes.axvline(least, color="#1a1a1a", linewidth=1, linestyle=(0, (2, 1.5)))
    axes.set_yticks(range(len(shares)), shares["about"])
    axes.set(xlim=(0, 100), ylim=(len(shares) - 0.5, -0.5), xlabel="of the update (%), mean over the training")
    axes.tick_params(axis="y", length=0)
    named = {
        _TERM_NEW: "preference term: new",
        _TERM_KNOWN: "what the advantages have, too",
        _ADVANTAGES: "advantages",
    }
    handles = [*(Rectangle((0, 0), 1, 1, color=colour) for colour in named), line]
    labels = [*named.values(), f"supported: more than {least:g} % new"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=6.5)
    add_title(figure, title)
    return figure


@styled
def identity_figure(weights: pd.DataFrame, title: str = "") -> Figure:
    """Preference weights against wins minus losses, one panel per β; on the line the term is wins minus losses.

    `weights`: columns beta, wins_minus_losses and weight, one row per completion; a panel is scaled to its largest weight.
    """
    betas = sorted(weights["beta"].unique())
    figure = new_figure(0.6 + 2.0 * len(betas), 2.5)
    panels = figure.subplots(1, len(betas), sharex=True, sharey=True, squeeze=False)[0]
    for panel, beta in zip(panels, betas, strict=True):
        part = weights[weights["beta"] == beta]
        x, y = part["wins_minus_losses"].to_numpy(dtype=float), part["weight"].to_numpy(dtype=float)
        slope = (x @ y) / (x @ x)
        y, slope = y / np.abs(y).max(), slope / np.abs(y).max()
        line = np.array([x.min(), x.max()])
        panel.plot(line, slope * line, color=NEUTRAL, linewidth=1)
        panel.plot(x, y, "o", markersize=3, alpha=0.35, markeredgewidth=0, color=COLOURS["amir_grpo"])
        panel.set_title(f"β = {beta:g}: r = {np.corrcoef(x, y)[0, 1]:.4f}", fontsize=8, fontweight="normal")
        panel.set_xlabel("wins − losses")
    panels[0].set_ylabel("preference weight\n(largest: 1)")
    add_title(figure, title)
    return figure


@styled
def length_weight_figure(table: pd.DataFrame, title: str = "", note: str = "") -> Figure:
    """How hard the update pushes on a token, by the length of its completion; a line per arm, named at its end.

    `table`: columns about, length (tokens), relative (to the shortest completions) and, optionally, relative_low and
    relative_high. 1: no length bias. `note`: in small print below.
    """
    figure = new_figure(6.2, 3.2)
    axes = figure.subplots()
    axes.axhline(1, color="#777777", linewidth=0.8, linestyle=":")
    ends = []
    for about, colour in arm_colours(table["about"]).items():
        part = table[table["about"] == about].sort_values("length")
        if not len(part):
            continue
        if "relative_low" in part:
            axes.fill_between(part["length"], part["relative_low"], part["relative_high"], color=colour, alpha=0.15,
                              linewidth=0)  # fmt: skip
        width = 3.0 if about == POLICY_NAMES["grpo"] else 1.4  # seen below a line that coincides
        axes.plot(
            part["length"], part["relative"], color=colour, marker="o", markersize=2 + width / 2, linewidth=width
        )
        ends.append((part["relative"].iloc[-1], part["length"].iloc[-1], about, colour))
    axes.set(xlabel="tokens of a completion", ylabel="push per token\n(the shortest: 1)", ylim=(0, None))
    lowest = -np.inf
    for height, length, about, colour in sorted(ends):
        lowest = max(height, lowest + 0.065 * axes.get_ylim()[1])  # names do not cover one another
        axes.annotate(about, (length, lowest), xytext=(6, 0), textcoords="offset points", va="center", color=colour,
                      annotation_clip=False)  # fmt: skip
    add_footnote(figure, note)
    add_title(figure, title)
    return figure
