"""Figures of the study, one function each: tables of `amir_grpo.study.claims` in, matplotlib Figure out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amir_grpo.choices import POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results.style import (
    COLOURS,
    NEUTRAL,
    OTHER_COLOURS,
    SMALL_PRINT,
    add_footnote,
    add_note,
    add_title,
    new_figure,
    styled,
)

_ARM_COLOURS = {
    "grpo": COLOURS["grpo"],
    "amir_grpo": COLOURS["amir_grpo"],
    "share-0.3": OTHER_COLOURS[0],
    "two-step-dr_grpo": OTHER_COLOURS[1],
    "two-step-dr_grpo-amir": OTHER_COLOURS[3],
}
_ARM_LABELS = {
    **POLICY_NAMES,
    "amir_grpo": "AMIR-GRPO, published λ",
    "share-0.1": "share 0.1",
    "share-0.3": "share 0.3",
    "share-0.6": "share 0.6",
    "schedule-published": "published λ schedule",
    "linear": "wins − losses",
    "two-step-dr_grpo": "Dr. GRPO",
    "two-step-dr_grpo-amir": "Dr. GRPO + preference",
}
ABOUT_COLOURS = {name: COLOURS[policy] for policy, name in POLICY_NAMES.items()}
_ARM_LINES = {"grpo": "--", "amir_grpo": "-", "share-0.3": "-.", "two-step-dr_grpo": ":", "two-step-dr_grpo-amir": "-"}

_POOLED = {"unweighted": "equal weights", "precision": "by precision"}
_REACH = 1.96  # standard errors


def _look(arm: str, index: int = 0) -> dict:
    colour = _ARM_COLOURS.get(arm, OTHER_COLOURS[index % len(OTHER_COLOURS)])
    return {"color": colour, "linestyle": _ARM_LINES.get(arm, "-"), "label": _ARM_LABELS.get(arm, arm)}


@styled
def noise_figure(noise: pd.DataFrame, pooled: pd.DataFrame, title: str = "") -> Figure:
    """Published gains with the noise of their evaluation: one panel per model, one row per benchmark and k, two pooled.

    Around each gain the dark bar reaches 1.96 standard errors at the noise that the published pass@2 - pass@1 imply, the
    light one if all problems were equally hard; without noise the gain is its point. A point is grey where its dark bar
    holds 0, and has the colour of the method that is ahead elsewhere.

    Args:
        noise: As of `published_noise.noise_table`.
        pooled: As of `published_noise.pooled_table`; its rows of k = 1 over all benchmarks are drawn below.
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
def supervision_figure(training: pd.DataFrame, arms: Sequence[str], title: str = "") -> Figure:
    """Pairs a rollout group holds, and the share of the update that they make, over training; mean and range of seeds.

    `training`: as of `study.tables.collect`; `arms`: which of it, with the preference term.
    """
    figure = new_figure(6.6, 2.7)
    left, right = figure.subplots(1, 2)
    training = training[training["arm"].isin(arms)].assign(
        groups=lambda t: t["completions"] / t["group_size"], per_group=lambda t: t["pairs"] / t["groups"]
    )
    for index, arm in enumerate(arms):
        part = training[training["arm"] == arm]
        for axes, column, scale in ((left, "per_group", 1), (right, "share", 100)):
            by_step = part.groupby("step")[column].agg(["mean", "min", "max"]).rolling(5, min_periods=1).mean() * scale
            look = _look(arm, index)
            axes.fill_between(
                by_step.index, by_step["min"], by_step["max"], color=look["color"], alpha=0.15, linewidth=0
            )
            axes.plot(by_step.index, by_step["mean"], linewidth=1.4, **look)
    size = int(training["group_size"].iloc[0])
    left.axhline(size, color="#777777", linewidth=0.8, linestyle=":")
    left.annotate(
        f"{size} rewards per group", (0.02, size - 0.15), xycoords=("axes fraction", "data"), va="top", fontsize=7
    )
    left.set(xlabel="training step", ylabel="pairs per group", ylim=(0, None))
    right.set(xlabel="training step", ylabel="share of the update (%)", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    right.legend(loc="center right", bbox_to_anchor=(1, 0.42), fontsize=7)  # between the published λ and the shares
    add_note(right, "mean of 5 steps and range of the seeds")
    add_title(figure, title)
    return figure


@styled
def boundary_figure(boundary: pd.DataFrame, title: str = "") -> Figure:
    """Margin and pair accuracy on the base policy's completions over training, and the difference to GRPO.

    `boundary`: as of `boundary.boundary_table`. Above the means, below the difference with its 95 % interval.
    """
    figure = new_figure(6.6, 4.2)
    panels = figure.subplots(2, 2, sharex=True)
    units = {"margin": "margin (nats per token)", "accuracy": "pair accuracy (%)"}
    for column, (quantity, label) in enumerate(units.items()):
        part = boundary[boundary["quantity"] == quantity]
        for index, arm in enumerate(part["arm"].unique()):
            one, look = part[part["arm"] == arm], _look(arm, index)
            panels[0, column].plot(one["step"], one["mean"], marker="o", markersize=3, linewidth=1.4, **look)
            if arm != "grpo":
                moved = one[one["step"] > 0]
                at = moved["step"] + (1.2 if arm == "share-0.3" else -1.2)
                panels[1, column].errorbar(
                    at, moved["gain"], [moved["gain"] - moved["gain_low"], moved["gain_high"] - moved["gain"]],
                    fmt="o", markersize=3, linewidth=1, color=look["color"],
                )  # fmt: skip
        panels[0, column].set_ylabel(label)
        panels[1, column].set_ylabel("difference to GRPO")
        panels[1, column].axhline(0, color="#777777", linewidth=0.6)
        panels[1, column].set_xlabel("training step")
    panels[0, 0].legend(loc="best")
    row = boundary.iloc[0]
    add_note(panels[0, 1], f"{row['problems']} problems; bars: 95 %, new seeds and problems")
    add_title(figure, title)
    return figure


@styled
def length_figure(pressure: pd.DataFrame, training: pd.DataFrame, title: str = "") -> Figure:
    """Left: weight of a token of a wrong completion in the update, by length. Right: lengths over training, by method.

    `pressure`: as of `length_bias.pressure_table`; its arms are those that the other panels show, two and two. `training`:
    as of `study.tables.collect`.
    """
    arms = list(pressure["arm"].unique())
    pairs = [arms[start : start + 2] for start in range(0, len(arms), 2)]
    figure = new_figure(2.9 + 2.2 * len(pairs), 2.9)
    left, *panels = figure.subplots(1, 1 + len(pairs), width_ratios=[1.3, *[1] * len(pairs)])
    for index, arm in enumerate(arms):
        part, look = pressure[pressure["arm"] == arm], _look(arm, index)
        left.fill_between(
            part["length"], part["relative_low"], part["relative_high"], color=look["color"], alpha=0.15, linewidth=0
        )
        left.plot(part["length"], part["relative"], marker="o", markersize=3, linewidth=1.4, **look)
    left.axhline(1, color="#777777", linewidth=0.6, linestyle=":")
    left.axhline(0, color="#777777", linewidth=0.6)
    left.set(xlabel="tokens of a wrong completion", ylabel="push on each token,\nrelative to short ones")
    left.legend(loc="best", fontsize=6.5)
    for panel, pair in zip(panels, pairs, strict=True):
        for index, arm in enumerate(pair):
            part, look = training[training["arm"] == arm], _look(arm, index)
            for column, marker in (("tokens_right", ""), ("tokens_wrong", "x")):
                by_step = part.groupby("step")[column].mean()
                done = 100 * by_step.index / by_step.index.max()
                panel.plot(
                    done,
                    by_step.rolling(5, min_periods=1).mean(),
                    color=look["color"],
                    linestyle=look["linestyle"],
                    linewidth=1.2,
                    marker=marker,
                    markevery=len(by_step) // 8 or 1,
                    markersize=4,
                    label=f"{look['label'].removesuffix(', published λ')}, {column.removeprefix('tokens_')}",
                )
        low, high = panel.get_ylim()
        panel.set(xlabel="training (%)", ylim=(low, high + 0.55 * (high - low)))
        panel.legend(loc="upper right", fontsize=6.5)
    panels[0].set_ylabel("tokens per completion")
    add_note(panels[-1], "mean of 5 steps and all seeds")
    add_title(figure, title)
    return figure


_PATTERN_NAMES = {
    (1, 1, 1): "all three",
    (1, 1, 0): "base and GRPO",
    (1, 0, 1): "base and AMIR-GRPO",
    (1, 0, 0): "base only",
    (0, 1, 1): "GRPO and AMIR-GRPO",
    (0, 1, 0): "GRPO only",
    (0, 0, 1): "AMIR-GRPO only",
    (0, 0, 0): "none",
}


@styled
def patterns_figure(coverage: pd.DataFrame, title: str = "") -> Figure:
    """Share of the problems solved by each set of policies with k samples, with 95 % intervals.

    `coverage`: as of `coverage.coverage_table`.
    """
    ks = list(coverage["k"].unique())
    figure = new_figure(1.6 + 1.7 * len(ks), 2.8)
    panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
    names = list(_PATTERN_NAMES.values())
    for panel, k in zip(panels, ks, strict=True):
        part = coverage[coverage["k"] == k].reset_index(drop=True)
        marked = [COLOURS["amir_grpo"] if name == "AMIR-GRPO only" else "#8a8a8a" for name in names]
        panel.barh(range(8), part["percent"], height=0.7, color=marked)
        panel.hlines(range(8), part["percent_low"], part["percent_high"], color="black", linewidth=1)
        for place, row in part.iterrows():
            panel.text(row["percent_high"] + 1.5, place, f"{row['percent']:.1f}", va="center", fontsize=6.5)
        panel.set_title(f"k = {k}", fontsize=8)
        panel.set(xlabel="% of all problems", xlim=(0, 1.25 * coverage["percent_high"].max()))
        panel.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_yticks(range(8), names)
    panels[0].invert_yaxis()
    figure.supxlabel(
        "Expected over the choice of k of the samples. Bars: 95 % intervals for new seeds and problems.",
        **SMALL_PRINT,
    )
    add_title(figure, title)
    return figure


@styled
def gains_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Gains with 95 % intervals: a row per arm, a panel for each group of benchmarks and quantity.

    `table`: as of `comparisons.gain_table`. A filled point has a Holm-corrected p-value below the significance level.
    """
    arms = table.drop_duplicates("arm")
    shown = table[["benchmarks", "quantity"]].drop_duplicates().itertuples(index=False, name=None)
    shown = list(shown)
    figure = new_figure(2.6 + 1.5 * len(shown), 1.25 + 0.24 * len(arms))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (group, quantity) in zip(panels, shown, strict=True):
        part = table[(table["benchmarks"] == group) & (table["quantity"] == quantity)].reset_index(drop=True)
        panel.axvline(0, color="#777777", linewidth=0.6)
        for row in part.itertuples():
            colour = "#c75000" if row.gain < 0 else COLOURS["amir_grpo"]
            panel.hlines(row.Index, row.gain_low, row.gain_high, color=colour, linewidth=1.2)
            face = colour if row.p_holm < SIGNIFICANCE else "white"
            panel.plot(row.gain, row.Index, "o", markersize=4, color=colour, markerfacecolor=face)
        panel.set_title(f"{quantity}\n{group}", fontsize=7.5)
        panel.set_xlabel("gain (points)")
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x")
    labels = [f"{row.about} vs {row.against_about} ({row.seeds} seeds)" for row in arms.itertuples()]
    panels[0].set_yticks(range(len(arms)), labels)
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    figure.supxlabel(
        "Bars: 95 % intervals for new training seeds and problems, n = 8 samples per problem. "
        f"Filled: p < {SIGNIFICANCE} (Holm).",
        **SMALL_PRINT,
    )
    add_title(figure, title)
    return figure


@styled
def weights_figure(weights: pd.DataFrame, title: str = "") -> Figure:
    """How near preference weights come to wins minus losses, for each β, before and after training.

    `weights`: as of `study.tables.collect`.
    """
    figure = new_figure(3.6, 2.7)
    axes = figure.subplots()
    looks = {"before": ("o", "#7a7a7a", -0.08), "after": ("s", COLOURS["amir_grpo"], 0.08)}
    betas = sorted(weights["beta"].unique())
    for policy, (marker, colour, shift) in looks.items():
        part = weights[weights["policy"] == policy]
        x = np.array([betas.index(beta) for beta in part["beta"]]) + shift
        axes.plot(
            x, 1 - part["wins_minus_losses"], marker, color=colour, markersize=4, alpha=0.7, label=f"{policy} training"
        )
    axes.set(yscale="log", xlabel="β", ylabel="1 − correlation with\nwins − losses")
    axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_xlim(-0.5, len(betas) - 0.5)
    axes.grid(axis="y")
    axes.legend(loc="best")
    add_note(axes, "each point a rollout of one seed")
    add_title(figure, title)
    return figure


@styled
def share_bars_figure(shares: pd.DataFrame, title: str = "") -> Figure:
    """How much of the update the preference term is: one bar from 0 to 100 % per arm.

    `shares`: columns about, share (0 to 1), in the order shown.
    """
    figure = new_figure(6.0, 0.9 + 0.34 * len(shares))
    axes = figure.subplots()
    for y, row in enumerate(shares.to_dict("records")):
        share = 100 * row["share"]
        axes.barh(y, share, height=0.62, color=COLOURS["amir_grpo"])
        axes.barh(y, 100 - share, left=share, height=0.62, color="#f6d79a")
        inside = share > 20
        axes.annotate(f"{share:.2g} %", (share, y), xytext=(-4 if inside else 4, 0), textcoords="offset points",
                      ha="right" if inside else "left", va="center", fontweight="bold",
                      color="white" if inside else "black")  # fmt: skip
    axes.set_yticks(range(len(shares)), shares["about"])
    axes.set(xlim=(0, 100), ylim=(len(shares) - 0.5, -0.5), xlabel="share of the update (%)")
    axes.tick_params(axis="y", length=0)
    add_footnote(figure, "Dark: the preference term; light: GRPO's own advantages. Mean over the training steps.")
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
    panels[0].set_ylabel("preference weight,\nof the largest")
    add_title(figure, title)
    return figure


@styled
def length_weight_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """How hard the update pushes on a token of a wrong completion, by its length; a line per arm, named at its end.

    `table`: columns about, length (tokens), relative (to the shortest completions) and, optionally, relative_low and
    relative_high. 1: no length bias.
    """
    figure = new_figure(5.4, 2.9)
    axes = figure.subplots()
    axes.axhline(1, color="#777777", linewidth=0.8, linestyle=":")
    ends = []
    for index, about in enumerate(table["about"].unique()):
        part = table[table["about"] == about].sort_values("length")
        colour = ABOUT_COLOURS.get(about, OTHER_COLOURS[index % len(OTHER_COLOURS)])
        if "relative_low" in part:
            axes.fill_between(part["length"], part["relative_low"], part["relative_high"], color=colour, alpha=0.15,
                              linewidth=0)  # fmt: skip
        axes.plot(part["length"], part["relative"], color=colour, marker="o", markersize=3, linewidth=1.4)
        ends.append((part["relative"].iloc[-1], part["length"].iloc[-1], about, colour))
    axes.set(xlabel="tokens of a wrong completion", ylabel="push per token, relative to short ones", ylim=(0, None))
    lowest = -np.inf
    for height, length, about, colour in sorted(ends):
        lowest = max(height, lowest + 0.065 * axes.get_ylim()[1])  # names do not cover one another
        axes.annotate(about, (length, lowest), xytext=(6, 0), textcoords="offset points", va="center", color=colour,
                      annotation_clip=False)  # fmt: skip
    add_title(figure, title)
    return figure
