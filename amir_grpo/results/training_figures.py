"""Figures of a training: its reward, and the share of the preference term in its updates."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy import stats

from amir_grpo import metrics
from amir_grpo.choices import POLICY_NAMES
from amir_grpo.results.old_tables import reward_window
from amir_grpo.results.style import (
    COLOURS,
    LINES,
    SMALL_PRINT,
    add_footnote,
    add_title,
    new_figure,
    policy_colour,
    styled,
)

_BANDED = 4  # steps of a block from which on their scatter is shown: of fewer it says next to nothing


@styled
def reward_figure(logs: pd.DataFrame, title: str = "") -> Figure:
    """Reward over training steps, one colour per method.

    `logs`: columns method, step, reward (mean over the completions of the step; a step that reuses a rollout has none, and
    is left out). Each step is a faint point. The line is the mean of blocks of neighbouring steps, each of as many as
    `tables.reward_ends` takes, so that it begins and ends with the numbers of `findings.reward_title`; the band is its 95 %
    t-interval from the scatter of the steps in the block. The band covers the noise of drawing prompts and completions
    within this one run; it says nothing about another seed, and in a block where the reward still rises it is a little too
    wide.
    """
    logs = logs.dropna(subset=["reward"])
    figure = new_figure(4.6, 2.9)
    axes = figure.subplots()
    sizes = set()
    for index, (method, run) in enumerate(logs.groupby("method", sort=False)):
        run = run.sort_values("step")
        steps, reward = run["step"].to_numpy(dtype=float), run["reward"].to_numpy(dtype=float)
        colour = policy_colour(method, index)
        dot = 2.5 if len(steps) > 20 else 6  # a few points are to be seen, too
        axes.plot(steps, reward, ".", color=colour, alpha=0.25, markersize=dot, markeredgewidth=0, zorder=1)
        size = reward_window(len(steps))
        sizes.add(size)
        middle, mean, half = _block_means(steps, reward, size)
        label = POLICY_NAMES.get(method, method)
        axes.fill_between(middle, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0, zorder=2)
        look = LINES.get(method, {"linewidth": 1.6}) | ({} if len(middle) > 1 else {"marker": "o"})
        axes.plot(middle, mean, color=colour, label=label, zorder=3, **look)
    axes.set_xlabel("training step")
    axes.set_ylabel("mean reward of a step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.grid(axis="y")
    if len(logs):
        axes.legend(loc="best", handlelength=2.6)
    else:
        axes.text(0.5, 0.5, "no steps logged", transform=axes.transAxes, ha="center", va="center")
    if sizes:
        add_footnote(figure, _reward_note(min(sizes), max(sizes)))
    add_title(figure, title)
    return figure


def _reward_note(least: int, most: int) -> str:
    if most == 1:
        return "Line and title: single steps of one run."
    of = f"{least}" if least == most else f"{least} to {most}"
    band = " Band: its 95 % interval from their scatter, within one run." if most >= _BANDED else ""
    return f"Line: means of {of} steps; title: the first and the last of them.{band}"


def _block_means(steps: np.ndarray, values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle step, mean and 95 % t-half-width (NaN for fewer than `_BANDED` values) of blocks of `size` neighbouring steps.

    The last block but one takes the steps that are left over, so that the first and the last have just `size`.
    """
    starts = [*range(0, len(values) - 2 * size + 1, size), len(values) - size]
    middle, mean, half = [], [], []
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        block = values[start:stop]
        middle.append(steps[start:stop].mean())
        mean.append(block.mean())
        known = block.size >= _BANDED
        errors = stats.t.ppf(metrics.INTERVAL_ENDS[1], block.size - 1) if known else np.nan
        half.append(errors * block.std(ddof=1) / np.sqrt(block.size) if known else np.nan)
    return np.array(middle), np.array(mean), np.array(half)


@styled
def share_figure(log: pd.DataFrame, title: str = "") -> Figure:
    """Share of the update that the preference term makes, at every training step, on a logarithmic axis.

    `log`: columns step and preference/share (0 to 1) of an AMIR-GRPO run. Steps whose share is 0 (no group had a right
    and a wrong completion) have no place on a logarithmic axis: they are counted in the figure. The dashed line is the
    median over all steps.
    """
    figure = new_figure(4.6, 2.6)
    axes = figure.subplots()
    share = log["preference/share"].to_numpy(dtype=float)
    step = log["step"].to_numpy(dtype=float)
    known = np.isfinite(share)
    positive = known & (share > 0)
    axes.set_xlabel("training step")
    axes.set_ylabel("preference share of the update")
    if positive.any():
        axes.set_yscale("log")
        colour = COLOURS["amir_grpo"]
        axes.plot(step[positive], share[positive], color=colour, linewidth=0.9, marker=".", markersize=3)
        median = float(np.median(share[known]))
        if median > 0:
            axes.axhline(median, color="black", linestyle="--", linewidth=0.8)
            text = f"dashed: median {100 * median:.2g} %"
            axes.annotate(text, (1, 1.01), xycoords="axes fraction", ha="right", va="bottom", **SMALL_PRINT)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        low, high = share[positive].min(), share[positive].max()
        # at least a factor of four, so that a steady share looks steady
        margin = max(1.3, 2.0 / np.sqrt(high / low))
        axes.set_ylim(low / margin, high * margin)
        axes.grid(axis="y")
        zeros = int(np.count_nonzero(known & (share <= 0)))
        if zeros:
            text = f"{zeros} of {int(known.sum())} steps: share 0 (no pairs)"
            axes.annotate(text, (0.01, 0.02), xycoords="axes fraction", **SMALL_PRINT)
    else:
        axes.text(0.5, 0.5, "no step had a preference pair", transform=axes.transAxes, ha="center", va="center")
    add_title(figure, title)
    return figure
