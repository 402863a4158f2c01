"""Weight per token against length: what a loss does with length is found where difficulty would hide it."""

import numpy as np
import pytest
from scipy import stats

from amir_grpo.study.length_weight import length_slope, relative_weight, theoretical_weight


def rollout(weight_of, groups=60, size=8, seed=0):
    """Hard groups are long and, with few right, have large advantages: (token_weight, length, group, reward)."""
    generator = np.random.default_rng(seed)
    chance = np.repeat(generator.uniform(0.1, 0.9, groups), size)
    group = np.repeat(np.arange(groups), size)
    reward = 2.0 * generator.binomial(1, chance)
    length = np.maximum(generator.normal(60 - 40 * chance, 8), 8).round()
    by_group = reward.reshape(groups, size)
    advantage = (
        (by_group - by_group.mean(1, keepdims=True)) / (by_group.std(1, ddof=1, keepdims=True) + 1e-4)
    ).ravel()
    return weight_of(advantage, length), length, group, reward


def diluted(advantage, length):
    return advantage / length


def constant(advantage, length):
    return advantage / 512


@pytest.mark.parametrize(("weight_of", "slope"), [(diluted, -1.0), (constant, 0.0)])
def test_the_slope_of_a_loss_is_found_in_spite_of_difficulty(weight_of, slope):
    arrays = rollout(weight_of)
    assert length_slope(*arrays).slope == pytest.approx(slope, abs=1e-9)
    wrong = arrays[0] < 0  # across groups difficulty hides it
    naive = stats.linregress(np.log(arrays[1][wrong]), np.log(-arrays[0][wrong])).slope
    assert abs(naive - slope) > 0.2


def test_the_slope_is_the_regression_with_an_intercept_for_each_cell():
    weight, length, group, reward = rollout(diluted, groups=12)
    weight = weight * np.exp(np.random.default_rng(1).normal(0, 0.3, len(weight)))
    cells = np.unique([f"{g} {r}" for g, r in zip(group, reward, strict=True)], return_inverse=True)[1]
    kept = weight != 0
    design = np.column_stack([np.log(length[kept]), np.eye(cells.max() + 1)[cells[kept]]])
    oracle = np.linalg.lstsq(design, np.log(np.abs(weight[kept])), rcond=None)[0][0]
    assert length_slope(weight, length, group, reward).slope == pytest.approx(oracle)


def test_cells_that_say_nothing_are_not_counted():
    found = length_slope([1.0, 0.5, -1, -1, 0, 0], [10, 20, 30, 30, 5, 7], [0, 0, 0, 0, 1, 1], [2, 2, 0, 0, 0, 0])
    assert (found.slope, found.cells, found.completions) == (pytest.approx(-1), 1, 2)
    nothing = length_slope([0.0, 1.0], [10, 20], [0, 0], [0, 2])
    assert np.isnan(nothing.slope)
    assert (nothing.cells, nothing.completions) == (0, 0)


EDGES = (0, 24, 40)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_bins_follow_the_curve_of_their_loss(share):
    lengths = np.array([20.0, 30.0, 50.0])
    expected = theoretical_weight("dr_grpo", lengths, reference=20, share=share)

    def weight_of(advantage, length):
        return advantage * theoretical_weight("dr_grpo", lengths[np.digitize(length, EDGES) - 1], 20, share)

    assert relative_weight(*rollout(weight_of), EDGES) == pytest.approx(expected)


def test_bins_are_compared_through_the_cells_that_they_share():
    # the long bin meets the short one only by way of the middle one; the cells' own levels are 1 and 10
    weight, length, group = [1.0, 0.5, 10.0, 6.0], [10, 30, 30, 50], [0, 0, 1, 1]
    assert relative_weight(weight, length, group, np.zeros(4), EDGES) == pytest.approx([1, 0.5, 0.3])


def test_a_bin_that_nothing_ties_to_the_first_is_nan():
    found = relative_weight([1.0, 2.0, 3.0], [10, 10, 50], [0, 0, 1], np.zeros(3), EDGES)
    assert found[0] == 1
    assert np.isnan(found[1:]).all()
    assert np.isnan(relative_weight([1.0], [50], [0], [0.0], EDGES)).all()


def test_completions_below_the_first_bin_are_refused():
    with pytest.raises(ValueError, match="5 tokens lies below the first bin, which begins at 10"):
        relative_weight([1.0], [5], [0], [0.0], (10, 20))


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one entry per completion"):
        length_slope([1.0, 2.0], [5, 6], [0], [0.0, 0.0])


@pytest.mark.parametrize(
    ("loss_type", "share", "expected"),
    [("grpo", 0.0, 0.5), ("sapo", 0.4, 0.5), ("dr_grpo", 0.0, 1.0), ("dapo", 0.0, 1.0), ("dr_grpo", 0.4, 0.8)],
)
def test_weight_at_twice_the_length(loss_type, share, expected):
    assert theoretical_weight(loss_type, [20.0, 40.0], 20, share) == pytest.approx([1.0, expected])
