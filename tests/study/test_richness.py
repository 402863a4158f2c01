"""What pairs add to the advantages: against SciPy's regression, and where theory says how much it is."""

import numpy as np
import pytest
import torch
from scipy import stats

from amir_grpo.preference import mine_pairs, preference_weights
from amir_grpo.study.richness import richness

G = 8


def rollout(rewards, beta=0.2, margin=0.0, spread=0.3, seed=0):
    """GRPO's advantages, preference weights and groups of rewards (groups, G); without a spread pairs are linear."""
    rewards = torch.tensor(np.asarray(rewards), dtype=torch.float64)
    deviation = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = deviation / (rewards.std(dim=1, keepdim=True) + 1e-4)
    logps = torch.tensor(np.random.default_rng(seed).normal(-0.4, spread, rewards.numel()))
    weights = preference_weights(logps, mine_pairs(rewards.ravel(), G, margin), beta)
    return advantages.ravel().numpy(), weights.numpy(), np.repeat(np.arange(len(rewards)), G)


def binary(groups=40, seed=1):
    generator = np.random.default_rng(seed)
    return generator.binomial(1, generator.uniform(0.1, 0.9, (groups, 1)), (groups, G)) * 2.0


def test_linear_pairs_of_binary_rewards_add_size_only():
    found = richness(*rollout(binary(), spread=0.0))
    assert found.explained == pytest.approx(1)
    assert found.residual_share == pytest.approx(0, abs=1e-12)
    assert found.explained_at_one_slope < 0.999  # GRPO divides by the group's standard deviation, pairs do not


def test_the_published_pairs_add_next_to_nothing_and_stronger_ones_more():
    unexplained = [1 - richness(*rollout(binary(), beta=beta)).explained for beta in (0.2, 1.0, 10.0)]
    assert unexplained[0] < 1e-3
    assert unexplained[0] < unexplained[1] < unexplained[2]
    assert unexplained[2] > 0.05


def test_pairs_that_ignore_a_nuisance_are_not_what_the_advantages_say():
    noisy = binary() + np.random.default_rng(2).uniform(-0.45, 0.45, (40, G))
    clean, ignored, counted = (richness(*rollout(r, margin=m)) for r, m in ((binary(), 1), (noisy, 1), (noisy, 0)))
    assert ignored.explained < 0.98 < clean.explained
    assert counted.groups == 40  # without a margin the noise makes pairs in groups that are all right or all wrong
    assert ignored.groups == clean.groups < 40


def test_each_group_is_regressed_by_itself_as_by_scipy():
    advantages, weights, group = rollout(np.random.default_rng(3).normal(0, 1, (5, G)), beta=5.0)
    left = total = 0.0
    for g in range(5):
        a, w = advantages[group == g], weights[group == g]
        fit = stats.linregress(a, w)
        left += np.abs(w - fit.intercept - fit.slope * a).sum()
        total += ((w - w.mean()) ** 2).sum() * (1 - fit.rvalue**2)
    found = richness(advantages, weights, group)
    assert found.groups == 5
    assert found.residual_share == pytest.approx(left / (np.abs(advantages).sum() + np.abs(weights).sum()))
    assert found.explained == pytest.approx(1 - total / (weights**2).sum())  # weights sum to 0 in each group


def test_one_slope_for_all_groups_is_the_correlation_of_what_is_centred():
    advantages, weights, group = rollout(binary(), beta=10.0)
    mixed = np.isin(group, group[weights != 0])
    correlation = np.corrcoef(advantages[mixed], weights[mixed])[0, 1]
    assert richness(advantages, weights, group).explained_at_one_slope == pytest.approx(correlation**2)


def test_the_order_and_the_unit_of_completions_do_not_matter():
    advantages, weights, group = rollout(binary(), beta=10.0)
    shuffled = np.random.default_rng(4).permutation(len(group))
    found, again = (
        richness(advantages, weights, group),
        richness(advantages[shuffled], weights[shuffled], group[shuffled]),
    )
    assert again.explained == pytest.approx(found.explained)
    assert again.residual_share == pytest.approx(found.residual_share)
    assert richness(advantages, 7 * weights, group).explained == pytest.approx(found.explained)


def test_groups_without_a_pair_have_nothing_to_explain():
    found = richness(np.zeros(G), np.zeros(G), np.zeros(G))
    assert (found.groups, found.share, found.residual_share) == (0, 0.0, 0.0)
    assert np.isnan(found.explained)


def test_weights_that_the_advantages_know_nothing_of_are_all_residual():
    found = richness([1.0, 1, -1, -1], [1.0, -1, 1, -1], [0, 0, 0, 0])
    assert (found.explained, found.share, found.residual_share) == (0.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [(([1.0], [1.0, 2.0], [0]), "one entry per completion"), (([np.nan], [1.0], [0]), "must be finite")],
)
def test_what_cannot_be_regressed_is_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        richness(*arrays)
