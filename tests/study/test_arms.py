"""The arms, and what theory predicts of their updates, against what can be computed by hand."""

import numpy as np
import pytest
import torch

from amir_grpo.preference import mine_pairs, preference_weights
from amir_grpo.settings import settings_of
from amir_grpo.study import arms
from amir_grpo.study.arms import ARMS, PROFILE, predicted_cosine


@pytest.mark.parametrize("path", [path for path, arm in ARMS.items() if "stories" not in arm.regime])
def test_every_arm_has_valid_settings_and_the_prompts_of_all_others(path):
    train = settings_of(PROFILE, ARMS[path].changes).train
    assert train.prompts_per_rollout == 16
    steps_of_a_rollout = train.micro_batches // train.gradient_accumulation_steps
    longer = 4 if ARMS[path].name == "steps-x4" else 1
    assert train.max_steps == longer * settings_of(PROFILE).train.max_steps * steps_of_a_rollout


def test_the_published_arm_has_the_published_settings_of_the_term():
    settings, published = (
        settings_of(*which).flat() for which in ((PROFILE, ARMS["clean/published"].changes), ("paper-qwen3b",))
    )
    for name in ("lambda_reg", "beta_dpo", "reward_margin", "lambda_schedule", "pair_mining", "ref_free", "pair_loss"):
        assert settings[name] == published[name], name


def settings_of_arm(path):
    return settings_of(PROFILE, ARMS[path].changes).flat()


def test_wins_minus_losses_are_the_weights_of_the_linear_loss():
    reward = np.random.default_rng(0).normal(0, 2, (5, 16, 8))
    flat = torch.from_numpy(reward.reshape(-1))
    pairs = mine_pairs(flat, 8, 1.5)
    weights = preference_weights(torch.zeros_like(flat), pairs, 0.2)
    expected = (weights * 2 * len(pairs.chosen) / 0.2).numpy().reshape(reward.shape)
    assert arms.wins_minus_losses(reward, 1.5) == pytest.approx(expected)


def test_with_separated_classes_the_linear_term_is_a_multiple_of_dr_grpos_advantage_for_correctness():
    generator = np.random.default_rng(1)
    correct = (generator.random((20, 16, 8)) < 0.4).astype(float)
    reward = 2 * correct + 0.4 * generator.random(correct.shape)  # right and wrong are 1.6 apart at least
    assert arms.wins_minus_losses(reward, 1.5) == pytest.approx(8 * arms.group_advantages(correct, scaled=False))


def test_a_mixture_keeps_the_size_of_the_advantages_but_for_what_cancels():
    settings = settings_of_arm("clean/mixture-0.6")
    _, reward = arms.simulated_rewards(settings, 0.4, 50, np.random.default_rng(0))
    updates = [arms.simulated_update(settings, reward, preference) for preference in (False, True)]
    sizes = [np.abs(values).sum(axis=(1, 2)) for values in updates]
    assert (sizes[1] <= sizes[0] * (1 + 1e-12)).all()
    assert (sizes[1] > 0.9 * sizes[0]).all()


@pytest.mark.parametrize(
    ("path", "highest"),
    [("outliers/dr_grpo", 13.3), ("outliers/dr_grpo-clipped", 3.3), ("nuisance/correctness-only", 2.0)],
)
def test_a_simulated_regime_has_its_rewards(path, highest):
    correct, reward = arms.simulated_rewards(settings_of_arm(path), 0.5, 50, np.random.default_rng(0))
    assert reward.max() == pytest.approx(highest)
    assert correct.mean() == pytest.approx(0.5, abs=0.05)


def test_correctness_alone_without_division_is_about_nothing_else():
    assert predicted_cosine("nuisance/correctness-only", 0.4) > 0.98
    assert predicted_cosine("clean/grpo", 0.1) < predicted_cosine("clean/grpo", 0.4)
    assert predicted_cosine("nuisance/mixture-0.6", 0.1) > predicted_cosine("nuisance/grpo", 0.1) + 0.2
