"""The pictures of the lesson in notebook 01: one group of completions, from its rewards to the update.

Completions are numbered from 1, and those that are right carry a tick. N completions of one group throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from amir_grpo.choices import POLICY_NAMES
from amir_grpo.results.formatting import signed
from amir_grpo.results.style import COLOURS, SMALL_PRINT, add_note, add_title, new_figure, styled

_GREY = "#b8b8b8"
_PARTS = {"grpo": "advantage A", "amir_grpo": "preference λκw"}


@styled
def advantage_figure(rewards: NDArray, advantages: NDArray, right: Sequence[bool]) -> Figure:
    """The reward of each completion, with the group's mean, beside the advantage that GRPO makes of it; arrays (N,)."""
    figure = new_figure(6.6, 2.3)
    left, middle = figure.subplots(1, 2)
    left.bar(_places(right), rewards, color=_GREY, width=0.7)
    left.axhline(rewards.mean(), color="black", linewidth=0.8, linestyle=(0, (4, 3)))
    left.set_ylabel("reward r")
    add_note(left, f"dashed: the group's mean, {rewards.mean():.2f}")
    middle.bar(_places(right), advantages, color=COLOURS["grpo"], width=0.7)
    middle.axhline(0, color="black", linewidth=0.6)
    middle.set_ylabel("advantage A")
    add_note(middle, "in standard deviations from the mean")
    for panel in (left, middle):
        _name_completions(panel, right)
    above = int((advantages > 0).sum())
    add_title(figure, f"GRPO pushes {above} of the {len(rewards)} completions up and {len(rewards) - above} down")
    return figure


@styled
def pairs_figure(wins: NDArray, right: Sequence[bool], reward_margin: float) -> Figure:
    """Who beats whom by more than δ: `wins` (N, N), True where the row beats the column; wins minus losses beside it."""
    figure = new_figure(3.6, 3.1)
    _pairs(figure.subplots(), wins, right)
    add_title(figure, _pairs_title(wins, reward_margin))
    return figure


@styled
def weights_figure(balance: NDArray, weights: NDArray, slope: float) -> Figure:
    """The weight w of each completion against its wins minus losses, both (N,).

    The line has `slope` β / (2 |S|): what w would be if the policy could not tell the completions of a pair apart.
    """
    figure = new_figure(4.2, 2.6)
    axes = figure.subplots()
    ends = np.array([min(balance.min(), -1), max(balance.max(), 1)]) * 1.1
    axes.plot(ends, slope * ends, color="#444444", linewidth=0.8, label="β / (2 |S|) × (wins − losses)")
    axes.plot(balance, weights, "o", color=COLOURS["amir_grpo"], markersize=5, label="w of a completion")
    for place in np.unique(balance):
        these = np.flatnonzero(balance == place)
        text = ", ".join(str(number + 1) for number in these)
        axes.annotate(
            text, (place, weights[these].mean()), (6, -4), textcoords="offset points", va="top", **SMALL_PRINT
        )
    axes.axhline(0, color="#cccccc", linewidth=0.6, zorder=0)
    axes.set_xlabel("wins − losses")
    axes.set_ylabel("weight w")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left")
    known = np.ptp(balance) > 0
    title = f"w is wins minus losses: correlation {np.corrcoef(balance, weights)[0, 1]:.4f}" if known else "No pair"
    add_title(figure, title)
    return figure


@styled
def update_figure(advantages: NDArray, bonuses: Mapping[float, NDArray], right: Sequence[bool]) -> Figure:
    """What pushes each completion, one panel for each λ: A (N,) and, stacked on it, λκw (N,) of `bonuses`."""
    figure = new_figure(2.35 * len(bonuses), 2.5)
    panels = figure.subplots(1, len(bonuses), sharey=True, squeeze=False)[0]
    for panel, (strength, bonus) in zip(panels, bonuses.items(), strict=True):
        _stacked(panel, advantages, bonus, right)
        panel.set_title(f"λ = {strength:g}: {share_text(advantages, bonus)}", fontweight="normal", fontsize=8.5)
    panels[0].set_ylabel("what multiplies ∇ℓ")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=1.2)
    strength, bonus = next(iter(bonuses.items()))
    add_title(figure, f"The preference term is {share_text(advantages, bonus)} of the update at λ = {strength:g}")
    return figure


@styled
def explorer_figure(
    wins: NDArray, advantages: NDArray, bonus: NDArray, right: Sequence[bool], reward_margin: float
) -> Figure:
    """Pairs and update of one setting side by side: what the sliders redraw."""
    figure = new_figure(7.2, 3.1)
    left, panel = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _pairs(left, wins, right)
    left.set_title(_pairs_title(wins, reward_margin), fontweight="normal", fontsize=8.5)
    _stacked(panel, advantages, bonus, right)
    panel.set_title(
        f"preference term: {share_text(advantages, bonus)} of the update", fontweight="normal", fontsize=8.5
    )
    panel.set_ylabel("what multiplies ∇ℓ")
    panel.legend(loc="upper right", bbox_to_anchor=(1, -0.12), ncols=2, handlelength=1.2)
    return figure


@styled
def moves_figure(moves: Mapping[str, NDArray], right: Sequence[bool]) -> Figure:
    """The change of ℓ of each completion by one update, nats per token: one dot for each method of `moves`, (N,) each."""
    figure = new_figure(4.8, 2.6)
    axes = figure.subplots()
    axes.axhline(0, color="black", linewidth=0.6)
    marks = {"grpo": {"marker": "o", "markersize": 9, "fillstyle": "none", "markeredgewidth": 1.4}}
    for method, change in moves.items():
        mark = marks.get(method, {"marker": "o", "markersize": 3.5})
        axes.plot(_places(right), change, linestyle="none", color=COLOURS[method], label=POLICY_NAMES[method], **mark)
    axes.set_ylabel("change of ℓ (nats per token)")
    axes.legend(loc="best", handlelength=1)
    _name_completions(axes, right)
    values = list(moves.values())
    apart = max(np.abs(values[0] - other).max() for other in values)
    furthest = max(np.abs(change).max() for change in values)
    add_title(figure, f"One update, with and without the term: {100 * apart / furthest:.2g} % apart at most")
    return figure


def share_of(advantages: NDArray, bonus: NDArray) -> float:
    """The share of the preference term in the update, Σ|λκw| / (Σ|A| + Σ|λκw|); 0 where both are."""
    parts = np.abs(bonus).sum(), np.abs(advantages).sum()
    return float(parts[0] / max(sum(parts), 1e-300))


def share_text(advantages: NDArray, bonus: NDArray) -> str:
    """That share in percent, with two digits that count."""
    return f"{100 * share_of(advantages, bonus):.2g} %"


# --- parts ----------------------------------------------------------------------------------------------------------


def _places(right: Sequence[bool]) -> NDArray:
    return np.arange(1, len(right) + 1)


def _name_completions(axes: Axes, right: Sequence[bool]) -> None:
    axes.set_xticks(_places(right), _names(right))
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("completion (✓ right)", **SMALL_PRINT)


def _names(right: Sequence[bool]) -> list[str]:
    return [f"{number}{'✓' if mark else ''}" for number, mark in enumerate(right, 1)]


def _pairs_title(wins: NDArray, reward_margin: float) -> str:
    number = len(wins)
    return f"{int(wins.sum())} of {number * (number - 1) // 2} pairs differ by more than δ = {reward_margin:g}"


def _pairs(axes: Axes, wins: NDArray, right: Sequence[bool]) -> None:
    number = len(wins)
    axes.imshow(wins, cmap=ListedColormap(["#f1f1f1", "#5a5a5a"]), vmin=0, vmax=1, aspect="equal")
    axes.set_xticks(range(number), _names(right))
    axes.set_yticks(range(number), _names(right))
    axes.set_xticks(np.arange(-0.5, number), minor=True)
    axes.set_yticks(np.arange(-0.5, number), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("… beats this one (dark)")
    axes.set_ylabel("this completion …")
    for row, balance in enumerate(wins.sum(axis=1).astype(int) - wins.sum(axis=0).astype(int)):
        axes.annotate(signed(balance, 0), (number - 0.2, row), va="center", fontsize=7.5, annotation_clip=False)
    axes.annotate("wins −\nlosses", (number - 0.4, number - 0.4), va="top", annotation_clip=False, **SMALL_PRINT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _stacked(axes: Axes, advantages: NDArray, bonus: NDArray, right: Sequence[bool]) -> None:
    places = _places(right)
    on_top = np.where(np.sign(bonus) == np.sign(advantages), advantages, 0.0)
    axes.bar(places, advantages, color=COLOURS["grpo"], width=0.7, label=_PARTS["grpo"])
    axes.bar(places, bonus, bottom=on_top, color=COLOURS["amir_grpo"], width=0.7, label=_PARTS["amir_grpo"])
    axes.axhline(0, color="black", linewidth=0.6)
    _name_completions(axes, right)
