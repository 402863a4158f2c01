"""The figure at the top of the README: how much is added, how long it changes nothing, and where the two runs end."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from amir_grpo.choices import POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results.formatting import with_interval
from amir_grpo.results.style import COLOURS, MARKS, add_footnote, gain_marker, new_figure, styled

_STRIP = {"same completions": "#d4d4d4", "different": "#4d4d4d"}
_DIGITS = 1  # of gains, in points
_TITLE = {"fontsize": 8.2, "loc": "left", "pad": 22}


def same_batches(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Where two trainings from the same policy, with the same seed, drew the same completions.

    Equal rewards and lengths stand for equal completions: after the first difference a step may look the same by chance.

    Args:
        old, new: One row per step, in order, with the same columns; all of them are compared.

    Returns:
        Columns step (from 1) and same.
    """
    if list(old.columns) != list(new.columns) or len(old) != len(new):
        raise ValueError(
            f"logs of {len(old)} and {len(new)} steps with the columns {', '.join(old)} and {', '.join(new)}:\n"
            "only logs of the same steps and columns can be compared."
        )
    equal = np.isclose(old.to_numpy(float), new.to_numpy(float), rtol=1e-9, equal_nan=True).all(axis=1)
    return pd.DataFrame({"step": np.arange(1, len(equal) + 1), "same": equal})


@styled
def hero_figure(share: float, twins: pd.DataFrame, levels: pd.DataFrame, scope: str) -> Figure:
    """Three panels on one line; their titles are computed.

    Args:
        share: Of the update that the preference term is, 0 to 1.
        twins: Columns run (a seed), step, same: from `same_batches`, for each pair of runs.
        levels: Columns benchmark, base, grpo, amir_grpo (pass@1, percent), gain, gain_low, gain_high (points), p.
        scope: What this is evidence of, and of what not.
    """
    figure = new_figure(7.4, 2.2 + 0.1 * max(len(levels) - 3, 0))
    added, strip, ends = figure.subplots(1, 3, width_ratios=(1.1, 1.3, 1.5))
    _added(added, 100 * share)
    _strip(strip, twins)
    _ends(ends, levels)
    add_footnote(figure, scope)
    return figure


def _added(axes: Axes, share: float) -> None:
    axes.barh(0, 100, height=0.5, color="#f6d79a")
    axes.barh(0, share, height=0.5, color=COLOURS["amir_grpo"])
    axes.text(52, 0, "GRPO's advantages", ha="center", va="center")
    blue = COLOURS["amir_grpo"]
    axes.annotate(f"preference term: {share:.2g} %", (share / 2, -0.26), xytext=(0, -0.62), va="bottom", ha="left",
                  color=blue, fontweight="bold", arrowprops={"arrowstyle": "-", "color": blue})  # fmt: skip
    axes.set(xlim=(0, 100), ylim=(0.45, -0.75), xlabel="share of the update (%)")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title("1  The added term is tiny" if share < 5 else f"1  The added term is {share:.0f} %", **_TITLE)


def _strip(axes: Axes, twins: pd.DataFrame) -> None:
    grid = twins.pivot(index="run", columns="step", values="same").to_numpy(dtype=float)
    grid = np.minimum.accumulate(grid, axis=1)  # once parted, two rollouts are alike by chance alone
    grid = grid[np.argsort([np.argmin(run) if not run.all() else len(run) for run in grid], kind="stable")]
    colours = ListedColormap([_STRIP["different"], _STRIP["same completions"]])
    axes.imshow(grid, aspect="auto", cmap=colours, vmin=0, vmax=1, interpolation="nearest",
                extent=(0.5, grid.shape[1] + 0.5, len(grid) - 0.5, -0.5))  # fmt: skip
    for y in range(1, len(grid)):
        axes.axhline(y - 0.5, color="white", linewidth=1)
    runs, equal = len(grid), int(np.median(first_differences(twins))) - 1
    title = f"Equal for {equal} step{'s' * (equal != 1)}" if equal else "They differ from the start"
    title += " (median)" if equal and runs > 1 else ""
    axes.set_title(f"2  {title}", **_TITLE)
    patches = [Patch(color=colour, label=label) for label, colour in _STRIP.items()]
    axes.legend(handles=patches, loc="lower left", bbox_to_anchor=(-0.03, 0.97), ncols=2, handlelength=1,
                handleheight=1, columnspacing=1, handletextpad=0.4, borderaxespad=0)  # fmt: skip
    axes.set(xlabel="training step", yticks=[], ylabel=f"{runs} pair{'s' * (runs != 1)}, same seed")
    axes.spines[["left", "bottom"]].set_visible(False)


def first_differences(twins: pd.DataFrame) -> np.ndarray:
    """The first step at which the runs of each pair differ; one past the last where they never do."""
    return np.array(
        [run.loc[~run["same"], "step"].min() if not run["same"].all() else run["step"].max() + 1
         for _, run in twins.groupby("run", sort=False)]
    )  # fmt: skip


def _ends(axes: Axes, levels: pd.DataFrame) -> None:
    ends = ["gain", "gain_low", "gain_high"]
    levels = levels.assign(**{end: levels[end].round(_DIGITS) for end in ends})  # the title is about what is printed
    for y, row in enumerate(levels.to_dict("records")):
        axes.plot([row["base"], max(row["grpo"], row["amir_grpo"])], [y, y], color="#cccccc", linewidth=2, zorder=1)
        for policy, mark in MARKS.items():
            axes.plot(row[policy], y, **mark, linestyle="", zorder=3)
        colour = gain_marker(row["gain"], row["p"])
        axes.annotate(with_interval(row, _DIGITS), (1.03, y), xycoords=("axes fraction", "data"), va="center",
                      color="#444444" if row["p"] >= SIGNIFICANCE else colour, annotation_clip=False)  # fmt: skip
    clear = levels.loc[levels["p"] < SIGNIFICANCE, "gain"]
    title = f"3  They end within {levels[ends].abs().to_numpy().max():.{_DIGITS}f} points"
    if len(clear):
        title = f"3  AMIR-GRPO ends {'higher' if clear.mean() > 0 else 'lower'} in {len(clear)} of {len(levels)}"
    axes.set_title(title, **_TITLE)
    axes.set_yticks(range(len(levels)), levels["benchmark"])
    axes.set(xlim=(0, 100), ylim=(len(levels) - 0.5, -0.5), xlabel="pass@1 (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    marks = [Line2D([], [], **mark, linestyle="", label=POLICY_NAMES[policy]) for policy, mark in MARKS.items()]
    axes.legend(handles=marks, loc="lower left", bbox_to_anchor=(-0.03, 0.97), ncols=3, handletextpad=0.1,
                columnspacing=0.5, handlelength=1.6, borderaxespad=0)  # fmt: skip
    axes.annotate(
        "gain [95 % interval]",
        (1.03, 1.03),
        xycoords="axes fraction",
        va="bottom",
        annotation_clip=False,
        fontsize=7.5,
    )
