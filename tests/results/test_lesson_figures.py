"""The lesson's pictures: what their titles count and where their marks stand."""

import numpy as np
import pytest

from amir_grpo.results import evaluation_figures, lesson_figures, tables
from tests.results.test_figures import inside
from tests.results.test_tables import samples_from

RIGHT = [False, True, True, False]
REWARDS = np.array([0.5, 3.0, 2.5, 0.8])
ADVANTAGES = (REWARDS - REWARDS.mean()) / REWARDS.std(ddof=1)
WINS = np.zeros((4, 4), dtype=bool)
WINS[1:3, [0, 3]] = True


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def heights(axes):
    return [patch.get_height() for patch in axes.patches]


def test_the_advantage_is_drawn_beside_the_reward():
    figure = lesson_figures.advantage_figure(REWARDS, ADVANTAGES, RIGHT)
    rewards, advantages = figure.axes
    np.testing.assert_allclose(heights(rewards), REWARDS)
    np.testing.assert_allclose(heights(advantages), ADVANTAGES)
    assert title(figure) == "GRPO pushes 2 of the 4 completions up and 2 down"
    assert [label.get_text() for label in rewards.get_xticklabels()] == ["1", "2✓", "3✓", "4"]
    assert inside(figure)


def test_pairs_are_squares_and_wins_minus_losses_stand_beside_them():
    figure = lesson_figures.pairs_figure(WINS, RIGHT, 1.5)
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), WINS)
    assert [text.get_text() for text in axes.texts[:4]] == ["−2", "+2", "+2", "−2"]
    assert title(figure) == "4 of 6 pairs differ by more than δ = 1.5"
    assert inside(figure)


def test_weights_lie_on_the_line_of_wins_minus_losses():
    balance = np.array([-2, 2, 2, -2])
    figure = lesson_figures.weights_figure(balance, 0.025 * balance, 0.025)
    (axes,) = figure.axes
    line, dots = axes.lines[:2]
    np.testing.assert_allclose(line.get_ydata(), 0.025 * np.asarray(line.get_xdata()))
    np.testing.assert_allclose(dots.get_xydata(), np.column_stack([balance, 0.025 * balance]))
    assert title(figure) == "w is wins minus losses: correlation 1.0000"
    assert {"1, 4", "2, 3"} <= {text.get_text() for text in axes.texts}


def test_a_group_without_a_pair_is_drawn_too():
    none = np.zeros(4)
    assert title(lesson_figures.weights_figure(none, none, 0.1)) == "No pair"
    assert "0 of 6 pairs" in title(lesson_figures.pairs_figure(np.zeros((4, 4), dtype=bool), RIGHT, 5))
    assert lesson_figures.share_text(none, none) == "0 %"


def test_the_preference_is_stacked_on_the_advantage_or_stands_on_its_own_side():
    bonus = np.array([-0.3, 0.2, -0.1, 0.0])
    figure = lesson_figures.update_figure(ADVANTAGES, {1.0: bonus, 2.0: 2 * bonus}, RIGHT)
    first, second = figure.axes
    np.testing.assert_allclose(heights(first)[4:], bonus)
    bottoms = [patch.get_y() for patch in first.patches][4:]
    # the third bonus opposes its advantage and starts at 0; the others start where the advantage ends
    np.testing.assert_allclose(bottoms, [ADVANTAGES[0], ADVANTAGES[1], 0, 0], atol=1e-12)
    share = 0.6 / (0.6 + np.abs(ADVANTAGES).sum())
    assert first.get_title() == f"λ = 1: {100 * share:.2g} %"
    assert lesson_figures.share_of(ADVANTAGES, bonus) == pytest.approx(share)
    assert second.get_title() != first.get_title()
    assert title(figure) == f"The preference term is {100 * share:.2g} % of the update at λ = 1"
    assert inside(figure)


def test_the_explorer_shows_pairs_and_update_side_by_side():
    figure = lesson_figures.explorer_figure(WINS, ADVANTAGES, 0.01 * ADVANTAGES, RIGHT, 1.5)
    pairs, update = figure.axes
    assert "4 of 6 pairs" in pairs.get_title()
    assert update.get_title() == "preference term: 0.99 % of the update"
    assert inside(figure)


def test_moves_are_two_dots_for_each_completion():
    moves = {"grpo": np.array([0.01, -0.02, 0.0, 0.005]), "amir_grpo": np.array([0.01, -0.021, 0.0, 0.005])}
    figure = lesson_figures.moves_figure(moves, RIGHT)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose([line.get_ydata() for line in dots], list(moves.values()))
    assert title(figure) == "One update, with and without the term: 4.8 % apart at most"


def test_two_policies_that_differ_are_black_and_others_grey():
    counts = {"a": {"base": [0] * 12, "grpo": [4] * 12, "amir_grpo": [4] * 11 + [3]}}
    comparisons = tables.comparison_table(samples_from(counts), ks=(1, 2))
    figure = evaluation_figures.comparisons_figure(comparisons)
    assert [axes.get_title() for axes in figure.axes] == [
        "GRPO − Base\n2 of 2 clear",
        "AMIR-GRPO − Base\n2 of 2 clear",
        "AMIR-GRPO − GRPO\n0 of 2 clear",
    ]
    colours = [{line.get_color() for line in axes.lines if line.get_marker() == "o"} for axes in figure.axes]
    assert colours[0] == colours[1] == {"black"}
    assert len(colours[2]) == 1
    assert colours[2] != {"black"}
    assert inside(figure)
