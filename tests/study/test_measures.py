"""The measurements of a run: against what is counted by hand, SciPy's regression, and where theory says how much it is."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from amir_grpo.preference import mine_pairs, preference_weights
from amir_grpo.study.measures import (
    WINDOWS,
    boundary_scores,
    digest_of,
    mixed_completions,
    problem_counts,
    richness,
    richness_by_window,
    rollout_summary,
    tempered_scores,
)


def rollouts(steps=4, bonus=0.0, seed=0):
    """Two groups of four per step: the first mixed, the second all wrong; weights that fall as 1 / length."""
    generator, rows = np.random.default_rng(seed), []
    for step in range(1, steps + 1):
        for group, correct in ((0, (1, 0, 0, 1)), (1, (0, 0, 0, 0))):
            advantage = np.array(correct) - np.mean(correct) if group == 0 else np.array([0.1, -0.1, 0.1, -0.1])
            for c, a in zip(correct, advantage, strict=True):
                tokens = int(generator.integers(20, 60))
                row = {"step": step, "group": 2 * step + group, "tokens": tokens, "reward": 2.0 * c, "correct": c}
                rows.append(row | {"advantage": a, "bonus": bonus * a, "token_weight": a * (1 + bonus) / tokens})
    return pd.DataFrame(rows)


def test_problems_are_counted():
    samples = pd.DataFrame(
        {
            "benchmark": "chain6",
            "problem_id": ["chain6-0"] * 3 + ["chain6-12"] * 3,
            "correct": [True, False, True, False, False, False],
            "tokens": [10, 20, 30, 1, 2, 3],
        }
    )
    greedy = pd.DataFrame({"benchmark": "chain6", "problem_id": ["chain6-0", "chain6-12"], "correct": [True, False]})
    table = problem_counts(samples, greedy).set_index("problem")
    assert table.loc[0, ["correct", "greedy", "tokens_right", "tokens_wrong"]].to_list() == [2, 1, 40, 20]
    assert table.loc[12, ["correct", "greedy", "tokens_right", "tokens_wrong"]].to_list() == [0, 0, 0, 6]


def test_a_rollout_says_how_much_of_its_update_is_about_correctness():
    log = pd.DataFrame({"step": [1, 2, 3, 4], "grad_norm": [1.0, 2.0, 3.0, 4.0]})
    table = rollout_summary(rollouts(), log)
    assert table["mixed"].to_list() == [0.5] * 4
    assert table["right"].to_list() == [0.25] * 4
    # the mixed group's advantages are the wish itself, of squared norm 1; the other group adds 4 · 0.01
    assert table["cosine_advantage"].to_numpy() == pytest.approx(1 / np.sqrt(1.04))
    assert table["uniform_share"].to_numpy() == pytest.approx(0.4 / 2.4)
    assert table["grad_norm"].to_list() == [1.0, 2.0, 3.0, 4.0]
    # two optimizer steps of one rollout together
    table = rollout_summary(rollouts(), log, steps_per_rollout=2)
    assert table["grad_norm"].to_list() == [1.5, 3.5]
    assert table["cosine_advantage"].to_numpy() == pytest.approx(1 / np.sqrt(1.04))


def test_richness_has_rows_only_where_there_is_a_preference_term():
    assert len(richness_by_window(rollouts(steps=20))) == 0
    table = richness_by_window(rollouts(steps=20, bonus=0.5))
    assert table["window"].to_list() == list(range(1, WINDOWS + 1))
    assert table["explained"].to_numpy() == pytest.approx(1.0)  # a multiple of the advantages
    assert table["share"].to_numpy() == pytest.approx(1 / 3)


def test_the_digest_changes_with_any_token():
    samples = pd.DataFrame({"benchmark": "b", "problem_id": "b-0", "sample": [0, 1], "completion_ids": [[1, 2], [3]]})
    other = samples.assign(completion_ids=[[1, 2], [4]])
    assert digest_of(samples) == digest_of(samples.copy())
    assert digest_of(samples) != digest_of(other)


# --- richness

G = 8


def term(rewards, beta=0.2, margin=0.0, spread=0.3, seed=0):
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
    found = richness(*term(binary(), spread=0.0))
    assert found["explained"] == pytest.approx(1)
    assert found["residual_share"] == pytest.approx(0, abs=1e-12)
    assert found["explained_at_one_slope"] < 0.999  # GRPO divides by the group's standard deviation, pairs do not


def test_the_published_pairs_add_next_to_nothing_and_stronger_ones_more():
    unexplained = [1 - richness(*term(binary(), beta=beta))["explained"] for beta in (0.2, 1.0, 10.0)]
    assert unexplained[0] < 1e-3
    assert unexplained[0] < unexplained[1] < unexplained[2]
    assert unexplained[2] > 0.05


def test_pairs_that_ignore_a_nuisance_are_not_what_the_advantages_say():
    noisy = binary() + np.random.default_rng(2).uniform(-0.45, 0.45, (40, G))
    clean, ignored, counted = (richness(*term(r, margin=m)) for r, m in ((binary(), 1), (noisy, 1), (noisy, 0)))
    assert ignored["explained"] < 0.98 < clean["explained"]
    assert counted["groups"] == 40  # without a margin the noise makes pairs in groups that are all right or all wrong
    assert ignored["groups"] == clean["groups"] < 40


def test_each_group_is_regressed_by_itself_as_by_scipy():
    advantages, weights, group = term(np.random.default_rng(3).normal(0, 1, (5, G)), beta=5.0)
    left = total = 0.0
    for g in range(5):
        a, w = advantages[group == g], weights[group == g]
        fit = stats.linregress(a, w)
        left += np.abs(w - fit.intercept - fit.slope * a).sum()
        total += ((w - w.mean()) ** 2).sum() * (1 - fit.rvalue**2)
    found = richness(advantages, weights, group)
    assert found["groups"] == 5
    assert found["residual_share"] == pytest.approx(left / (np.abs(advantages).sum() + np.abs(weights).sum()))
    assert found["explained"] == pytest.approx(1 - total / (weights**2).sum())  # weights sum to 0 in each group


def test_one_slope_for_all_groups_is_the_correlation_of_what_is_centred():
    advantages, weights, group = term(binary(), beta=10.0)
    mixed = np.isin(group, group[weights != 0])
    correlation = np.corrcoef(advantages[mixed], weights[mixed])[0, 1]
    assert richness(advantages, weights, group)["explained_at_one_slope"] == pytest.approx(correlation**2)


def test_the_order_and_the_unit_of_completions_do_not_matter():
    advantages, weights, group = term(binary(), beta=10.0)
    shuffled = np.random.default_rng(4).permutation(len(group))
    found = richness(advantages, weights, group)
    again = richness(advantages[shuffled], weights[shuffled], group[shuffled])
    assert again["explained"] == pytest.approx(found["explained"])
    assert again["residual_share"] == pytest.approx(found["residual_share"])
    assert richness(advantages, 7 * weights, group)["explained"] == pytest.approx(found["explained"])


def test_groups_without_a_pair_have_nothing_to_explain():
    found = richness(np.zeros(G), np.zeros(G), np.zeros(G))
    assert (found["groups"], found["share"], found["residual_share"]) == (0, 0.0, 0.0)
    assert np.isnan(found["explained"])


def test_weights_that_the_advantages_know_nothing_of_are_all_residual():
    found = richness([1.0, 1, -1, -1], [1.0, -1, 1, -1], [0, 0, 0, 0])
    assert (found["explained"], found["share"], found["residual_share"]) == (0.0, 0.5, 0.5)


# --- the boundary


def test_tempered_scores_are_those_of_the_softmax_at_a_temperature(tiny_policy):
    prompts, completions = [[1, 2, 3], [4, 5]], [[6, 7], [8, 9, 10, 11]]
    logps, entropies = tempered_scores(tiny_policy, prompts, completions)
    with torch.no_grad():
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            logits = tiny_policy(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            for place, temperature in ((0, 0.5), (3, 1.0)):
                spread = torch.distributions.Categorical(logits=logits / temperature)
                assert logps[place, row] == pytest.approx(
                    float(spread.log_prob(torch.tensor(completion)).mean()), abs=1e-5
                )
                assert entropies[place, row] == pytest.approx(float(spread.entropy().mean()), abs=1e-5)


def test_margins_and_accuracy_are_means_over_problems_with_right_and_wrong_completions():
    samples = pd.DataFrame({"benchmark": "b", "problem_id": ["p"] * 3 + ["q"] * 2, "correct": [1, 0, 0, 1, 1]})
    mixed = mixed_completions(samples)
    assert mixed["problem_id"].tolist() == ["p"] * 3, "q has no wrong one"
    table = boundary_scores(mixed, np.tile([-0.2, -0.1, -0.6], (7, 1)), np.ones((7, 3)))
    assert table["margin"].to_numpy() == pytest.approx(-0.2 + 0.35)
    assert table["accuracy"].to_numpy() == pytest.approx(0.5)
