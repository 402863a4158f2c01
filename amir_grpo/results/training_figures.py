"""Figures of a training: its reward, and the share of the preference term in its updates."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy import stats

from amir_grpo import metrics
from amir_grpo.choices import POLICY_NAMES
from amir_grpo.results.style import COLOURS, LINES, SMALL_PRINT, add_title, new_figure, policy_colour, styled


@styled
def reward_figure(logs: pd.DataFrame, title: str = "", blocks: int = 20) -> Figure:
    """Reward over training steps, one colour per method.

    `logs`: columns method, step, reward (mean over the completions of the step), reward_std (over those completions),
    completions (their number). Each step is a faint point. The line is the mean of blocks of neighbouring steps (about
    `blocks` of them), the band its 95 % t-interval from the scatter of the steps in the block. The band covers the
    noise of drawing prompts and completions within this one run; it says nothing about another seed, and in a block
    where the reward still rises it is a little too wide. Where there is one block, a point and a bar stand for them.
    """
    figure = new_figure(4.6, 2.9)
    axes = figure.subplots()
    sizes, many = set(), False
    for index, (method, run) in enumerate(logs.groupby("method", sort=False)):
        run = run.sort_values("step")
        steps, reward = run["step"].to_numpy(dtype=float), run["reward"].to_numpy(dtype=float)
        colour = policy_colour(method, index)
        dot = 2.5 if len(steps) > 20 else 6  # a few points are to be seen, too
        axes.plot(steps, reward, ".", color=colour, alpha=0.25, markersize=dot, markeredgewidth=0, zorder=1)
        middle, mean, half, size = _block_means(steps, reward, blocks)
        sizes.add(size)
        many = many or len(middle) > 1
        label = POLICY_NAMES.get(method, method)
        if len(middle) > 1:
            axes.fill_between(middle, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0, zorder=2)
            look = LINES.get(method, {"linewidth": 1.6})
            axes.plot(middle, mean, color=colour, label=label, zorder=3, **look)
        else:
            axes.errorbar(middle, mean, np.nan_to_num(half), color=colour, fmt="o", capsize=3, label=label, zorder=3)
    axes.set_xlabel("training step")
    axes.set_ylabel("mean reward of a step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.grid(axis="y")
    if len(logs):
        axes.legend(loc="best", handlelength=2.6)
    else:
        axes.text(0.5, 0.5, "no steps logged", transform=axes.transAxes, ha="center", va="center")
    if sizes:
        least, most = min(sizes), max(sizes)
        of = f"{least}" if least == most else f"{least} to {most}"
        axes.annotate(
            f"{'line' if many else 'point'}: mean of {of} steps; {'band' if many else 'bar'}: its 95 % t-interval "
            "within one run"
            if most > 1
            else "each point one step of one run",
            (1, 1.01),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            **SMALL_PRINT,
        )
    add_title(figure, title)
    return figure


def _block_means(steps: np.ndarray, values: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Middle step, mean and 95 % t-half-width (NaN for one value) of blocks of neighbouring steps, and their size."""
    size = max(len(values) // blocks, min(len(values), 4), 1)
    edges = list(range(0, len(values) - size + 1, size)) or [0]
    cuts = [*edges[1:], len(values)]  # the last block takes the steps that are left over
    middle, mean, half = [], [], []
    for start, stop in zip(edges, cuts, strict=True):
        block = values[start:stop]
        block = block[np.isfinite(block)]
        middle.append(steps[start:stop].mean())
        mean.append(block.mean() if block.size else np.nan)
        errors = stats.t.ppf(metrics.INTERVAL_ENDS[1], block.size - 1) if block.size > 1 else np.nan
        half.append(errors * block.std(ddof=1) / np.sqrt(block.size) if block.size > 1 else np.nan)
    return np.array(middle), np.array(mean), np.array(half), size


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
