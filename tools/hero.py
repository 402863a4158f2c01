"""The figure at the top of the README: how much is added, how long it changes nothing, and where the two trainings end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from amir_grpo.choices import POLICY_NAMES
from amir_grpo.results.style import COLOURS, MARKS, add_footnote, new_figure, styled, with_interval
from amir_grpo.study.claims import GRPO, gain
from amir_grpo.study.kept import StudyResults, shared_runs

PUBLISHED = "clean/published"
STORIES = "plain-stories"  # the regime of the language model's runs
NOTE = (
    "The share in panel 1 follows from λ, β and the mean |A| alone, at any size of model. Panels 2 (title: the median) and "
    "3, chains: 6 pairs of trainings of a policy of 0.1M parameters on arithmetic, at the paper's λ, β and δ with this "
    "package's rewards, from 6 base policies, the weakest of nine warm-up seeds; intervals are for new base policies, seeds "
    "and problems."
)
STORIES_NOTE = (
    " Stories: {pairs} pairs of trainings of a language model of 135M parameters, at the paper's λ and β; intervals are for "
    "new seeds."
)
_SAME = ["reward", "right", "tokens_right", "tokens_wrong"]  # of a rollout: equal where its completions are
_STRIP = {"same completions": "#d4d4d4", "different": "#4d4d4d"}
_LOOK = {"fontsize": 8.2, "loc": "left", "pad": 22}
_LEGEND = {"loc": "lower left", "bbox_to_anchor": (-0.03, 0.97), "borderaxespad": 0}


def measured_share(study: StudyResults, path: str = PUBLISHED) -> tuple[float, float]:
    """Part of the update that the term is (0 to 1) and mean |A|, medians over the rollouts with a pair of an arm."""
    rollouts = study.part("rollouts", path)
    rollouts = rollouts[rollouts["share"] > 0]
    return float(rollouts["share"].median()), float(rollouts["size"].median())


def same_completions(study: StudyResults) -> np.ndarray:
    """(pairs, steps): whether both trainings of a pair drew the same completions up to that step.

    Equal rewards and lengths stand for equal completions; once parted, two rollouts are alike by chance alone.
    """
    tables = [study.by_run("rollouts", path) for path in (GRPO, PUBLISHED)]
    equal = [
        np.isclose(*(table[run][_SAME].to_numpy(float) for table in tables), rtol=1e-9, equal_nan=True).all(axis=1)
        for run in shared_runs(*tables)
    ]
    return np.minimum.accumulate(np.array(equal), axis=1)


def end_levels(study: StudyResults, regime: str = "clean") -> pd.DataFrame:
    """pass@1 of the base policy and both methods (percent) and the gain with its interval (points), by benchmark."""
    paths = [f"{regime}/{arm}" for arm in ("base", "grpo", "published")]
    benchmarks = [name for names in study.benchmarks.values() for name in names]
    alone, rows = replace(study, benchmarks={name: [name] for name in benchmarks}), []
    for name in benchmarks:
        found = gain(alone, paths[2], paths[1], name)
        solved = [alone.solved(path, name) for path in paths]
        pairs = shared_runs(*solved[1:])
        means = [
            100 * np.mean([rates.mean() for run, rates in part.items() if part is solved[0] or run in pairs])
            for part in solved
        ]
        low, high = found.interval()
        row = dict(zip(("benchmark", "base", "grpo", "amir_grpo"), (name, *means), strict=True))
        rows.append(row | {"gain": found.estimate, "gain_low": low, "gain_high": high})
    return pd.DataFrame(rows)


@styled
def hero_figure(study: StudyResults, language: StudyResults | None = None) -> Figure:
    """Three panels, from two arms of a study: GRPO and the published one, paired by base policy and seed.

    `language`: The language model's runs, shown beside them in panels 1 and 3.
    """
    (share, size), same, levels = measured_share(study), same_completions(study), end_levels(study)
    widest = levels[["gain", "gain_low", "gain_high"]].round(1).abs().to_numpy().max()
    note, ends_title = NOTE, f"3  They end within {widest:.1f} points"
    chains = len(levels)
    if language is not None:
        levels = pd.concat([levels, end_levels(language, STORIES)], ignore_index=True)
        note += STORIES_NOTE.format(pairs=len(language.solved(f"{STORIES}/published")))
        ends_title = "3  Where they end"
    figure = new_figure(7.4, 2.8)
    added, strip, ends = figure.subplots(1, 3, width_ratios=(1.1, 1.3, 1.5))
    blue = COLOURS["amir_grpo"]
    added.barh(0, 100, height=0.5, color="#f6d79a")
    added.barh(0, 100 * share, height=0.5, color=blue)
    added.text(52, 0, "GRPO's advantages", ha="center", va="center")
    added.annotate(f"preference term: {100 * share:.2g} %", (50 * share, -0.26), xytext=(0, -0.62), va="bottom", ha="left",
                   color=blue, fontweight="bold", arrowprops={"arrowstyle": "-", "color": blue})  # fmt: skip
    added.set(xlim=(0, 100), ylim=(0.45, -0.75), yticks=[])
    below = f"λβ / (λβ + mean |A|) = {100 * 0.002 / (0.002 + size):.2g} %"
    if language is not None:
        below += f"\n(language model: {100 * measured_share(language, f'{STORIES}/published')[0]:.2g} %)"
    added.set_xlabel(f"share of the update (%)\n{below}", fontsize=7)
    added.spines["left"].set_visible(False)
    added.set_title("1  The added term is tiny", **_LOOK)

    order = np.argsort(same.sum(axis=1), kind="stable")
    pairs, steps = same.shape
    strip.imshow(same[order].astype(float), aspect="auto", cmap=ListedColormap([*_STRIP.values()][::-1]), vmin=0, vmax=1,
                 interpolation="nearest", extent=(0.5, steps + 0.5, pairs - 0.5, -0.5))  # fmt: skip
    for y in range(1, pairs):
        strip.axhline(y - 0.5, color="white", linewidth=1)
    strip.legend(handles=[Patch(color=colour, label=label) for label, colour in _STRIP.items()], ncols=2, handlelength=1,
                 handleheight=1, columnspacing=1, handletextpad=0.4, **_LEGEND)  # fmt: skip
    strip.set(xlabel="training step", yticks=[], ylabel=f"{pairs} pairs, same seed")
    strip.spines[["left", "bottom"]].set_visible(False)
    strip.set_title(f"2  Equal for {np.median(same.sum(axis=1)):g} of {steps} steps", **_LOOK)

    for y, row in enumerate(levels.to_dict("records")):
        ends.plot([row["base"], max(row["grpo"], row["amir_grpo"])], [y, y], color="#cccccc", linewidth=2, zorder=1)
        for policy, mark in MARKS.items():
            ends.plot(row[policy], y, **mark, linestyle="", zorder=3)
        ends.annotate(with_interval(row, 1), (1.03, y), xycoords=("axes fraction", "data"), va="center", color="#444444",
                      annotation_clip=False)  # fmt: skip
    if language is not None:
        ends.axhline(chains - 0.5, color="#999999", linewidth=0.6, linestyle=":")
    ends.set_yticks(range(len(levels)), levels["benchmark"])
    ends.set(xlim=(0, 100), ylim=(len(levels) - 0.5, -0.5), xlabel="pass@1 (%)")
    ends.tick_params(axis="y", length=0)
    ends.grid(axis="x")
    marks = [Line2D([], [], **mark, linestyle="", label=POLICY_NAMES[policy]) for policy, mark in MARKS.items()]
    ends.legend(handles=marks, ncols=3, handletextpad=0.1, columnspacing=0.5, handlelength=1.6, **_LEGEND)
    ends.annotate("gain [95 % interval]", (1.03, 1.03), xycoords="axes fraction", va="bottom", annotation_clip=False,
                  fontsize=7.5)  # fmt: skip
    ends.set_title(ends_title, **_LOOK)
    add_footnote(figure, note)
    return figure
