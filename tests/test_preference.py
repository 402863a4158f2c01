"""Pairs against brute force, the loss against its formula, the weights against automatic differentiation."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amir_grpo.preference import mine_pairs, preference_loss, preference_weights

# few distinct values, so that ties and equal gaps are common; NaN is an unscorable completion
REWARDS = st.sampled_from([0.0, 0.5, 0.8, 2.0, 2.8, math.nan])


@st.composite
def batches(draw):
    group_size = draw(st.integers(1, 6))
    groups = draw(st.integers(1, 4))
    rewards = draw(st.lists(REWARDS, min_size=groups * group_size, max_size=groups * group_size))
    return torch.tensor(rewards), group_size


def brute_force(rewards, group_size, margin, strategy, cap):
    """The definition, one pair at a time."""
    found = []
    for start in range(0, len(rewards), group_size):
        rows = range(start, start + group_size)
        scored = [i for i in rows if not math.isnan(rewards[i])]
        best = max(scored, key=lambda i: (rewards[i].item(), -i), default=None)
        pairs = [
            (i, j)
            for i, j in itertools.permutations(rows, 2)
            if rewards[i] - rewards[j] > margin and (strategy == "all" or i == best)
        ]
        if cap is not None:
            pairs = sorted(pairs, key=lambda p: (-(rewards[p[0]] - rewards[p[1]]).item(), p))[:cap]
        found += pairs
    return found


@given(
    batches(),
    st.sampled_from([0.0, 0.3, 0.5, 2.0]),
    st.sampled_from(["all", "topk"]),
    st.sampled_from([None, 1, 2, 5]),
)
def test_pairs_are_those_of_the_definition(batch, margin, strategy, cap):
    rewards, group_size = batch
    pairs = mine_pairs(rewards, group_size, margin, strategy, cap)
    expected = brute_force(rewards, group_size, margin, strategy, cap)
    mined = list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))
    assert sorted(mined) == sorted(expected)


@given(batches(), st.floats(0.05, 3.0), st.booleans(), st.integers(0, 10_000))
def test_weights_are_minus_the_gradient_of_the_loss_and_sum_to_zero(batch, beta, with_reference, seed):
    rewards, group_size = batch
    generator = torch.Generator().manual_seed(seed)
    logps = torch.randn(len(rewards), generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(len(rewards), generator=generator, dtype=torch.float64) if with_reference else None
    pairs = mine_pairs(rewards, group_size)
    # the loss of the paper, pair by pair
    score = logps if reference is None else logps - reference
    terms = [
        -torch.log(torch.sigmoid(beta * (score[i] - score[j])))
        for i, j in zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    ]
    explicit = torch.stack(terms).mean() if terms else logps.sum() * 0
    (gradient,) = torch.autograd.grad(explicit, logps)

    torch.testing.assert_close(preference_loss(logps, pairs, beta, reference), explicit)
    weights = preference_weights(logps, pairs, beta, reference)
    torch.testing.assert_close(weights, -gradient, rtol=1e-9, atol=1e-12)
    assert weights.view(-1, group_size).sum(dim=1).abs().max() < 1e-12
    assert not weights.requires_grad


@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0, 1.0], [math.nan] * 4, [2.0]], ids=["equal", "unscorable", "one"])
def test_no_pair_gives_no_loss_and_no_weight(rewards):
    logps = torch.randn(len(rewards), requires_grad=True)
    pairs = mine_pairs(torch.tensor(rewards), group_size=len(rewards))
    assert pairs.chosen.numel() == 0
    loss = preference_loss(logps, pairs, beta=0.2)
    loss.backward()
    assert loss.item() == 0
    assert logps.grad.abs().sum() == 0
    assert preference_weights(logps, pairs, beta=0.2).abs().sum() == 0


def test_pairs_do_not_cross_groups_and_the_margin_is_strict():
    rewards = torch.tensor([2.0, 0.0, 4.0, 4.0])
    assert mine_pairs(rewards, group_size=2, reward_margin=2.0).chosen.numel() == 0
    assert mine_pairs(rewards, group_size=2, reward_margin=1.99) == (torch.tensor([0]), torch.tensor([1]))
    # without a margin any higher reward makes a pair
    assert mine_pairs(torch.tensor([0.5, 0.4, 0.5, 0.5]), 2) == (torch.tensor([0]), torch.tensor([1]))


def test_with_small_beta_the_weights_are_wins_minus_losses():
    rewards = torch.tensor([2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    pairs = mine_pairs(rewards, group_size=8)
    weights = preference_weights(torch.randn(8), pairs, beta=1e-4)
    wins = torch.bincount(pairs.chosen, minlength=8) - torch.bincount(pairs.rejected, minlength=8)
    torch.testing.assert_close(weights, 1e-4 / 2 / pairs.chosen.numel() * wins, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 3}, "4 rewards do not divide into groups of 3"),
        ({"group_size": 0}, "groups of 0"),
        ({"group_size": 4, "strategy": "best"}, "pair mining strategy 'best'.\nValid: all, topk"),
        ({"group_size": 4, "reward_margin": -1.0}, "reward_margin is -1.0"),
        ({"group_size": 4, "reward_margin": math.nan}, "reward_margin is nan"),
        ({"group_size": 4, "max_pairs_per_group": 0}, "max_pairs_per_group is 0"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mine_pairs(torch.zeros(4), **arguments)


@pytest.mark.parametrize("others", [[torch.nan, 2.0, 0.0, -torch.inf], [torch.nan, -1.0, -3.0, -2.0]])
def test_the_best_completion_is_one_with_a_reward(others):
    """Neither a reward that is missing nor one of minus infinity is the best of its group, and others are kept."""
    pairs = mine_pairs(torch.tensor(others), 4, 0.5, strategy="topk")
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([1, 1], [2, 3])
