"""What is kept of a run, against what is counted by hand."""

import numpy as np
import pandas as pd
import pytest

from amir_grpo.study.summaries import (
    LENGTH_EDGES,
    WINDOWS,
    digest_of,
    length_table,
    problem_table,
    richness_table,
    rollout_table,
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
    table = problem_table(samples, greedy).set_index("problem")
    assert table.loc[0, ["correct", "greedy", "tokens_right", "tokens_wrong"]].to_list() == [2, 1, 40, 20]
    assert table.loc[12, ["correct", "greedy", "tokens_right", "tokens_wrong"]].to_list() == [0, 0, 0, 6]


def test_a_rollout_says_how_much_of_its_update_is_about_correctness():
    log = pd.DataFrame({"step": [1, 2, 3, 4], "grad_norm": [1.0, 2.0, 3.0, 4.0]})
    table = rollout_table(rollouts(), log)
    assert table["mixed"].to_list() == [0.5] * 4
    assert table["right"].to_list() == [0.25] * 4
    # the mixed group's advantages are the wish itself, of squared norm 1; the other group adds 4 · 0.01
    assert table["cosine_advantage"].to_numpy() == pytest.approx(1 / np.sqrt(1.04))
    assert table["uniform_share"].to_numpy() == pytest.approx(0.4 / 2.4)
    assert table["grad_norm"].to_list() == [1.0, 2.0, 3.0, 4.0]
    # two optimizer steps of one rollout together
    table = rollout_table(rollouts(), log, steps_per_rollout=2)
    assert table["grad_norm"].to_list() == [1.5, 3.5]
    assert table["cosine_advantage"].to_numpy() == pytest.approx(1 / np.sqrt(1.04))


def test_richness_has_rows_only_where_there_is_a_preference_term():
    assert len(richness_table(rollouts(steps=20))) == 0
    table = richness_table(rollouts(steps=20, bonus=0.5))
    assert table["window"].to_list() == list(range(1, WINDOWS + 1))
    assert table["explained"].to_numpy() == pytest.approx(1.0)  # a multiple of the advantages
    assert table["share"].to_numpy() == pytest.approx(1 / 3)


def test_weights_by_length_fall_as_one_over_length():
    table = length_table(rollouts(steps=200))
    assert table["slope"].iloc[0] == pytest.approx(-1.0)
    told = table.dropna(subset="relative")
    middles = np.array([*LENGTH_EDGES[1:], 70])[told.index] - 2
    assert told["relative"].iloc[0] == 1
    assert told["relative"].to_numpy() == pytest.approx(middles[0] / middles, rel=0.15)
    assert table["completions"].sum() == 1600


def test_the_digest_changes_with_any_token():
    samples = pd.DataFrame({"benchmark": "b", "problem_id": "b-0", "sample": [0, 1], "completion_ids": [[1, 2], [3]]})
    other = samples.assign(completion_ids=[[1, 2], [4]])
    assert digest_of(samples) == digest_of(samples.copy())
    assert digest_of(samples) != digest_of(other)
