"""Reward regimes against what they are declared to be."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from amir_grpo.runs import training
from amir_grpo.runs.regimes import UniformGroupsDropped, rewards_of
from amir_grpo.settings import settings_of

RIGHT = r"<think>1+2=3</think><answer>\boxed{3}</answer>"
WRONG = r"<think>1+2=5</think><answer>\boxed{5}</answer>"
COLUMNS = {"answer": [["3"]] * 4, "id": ["a", "a", "b", "b"], "trainer_state": SimpleNamespace(global_step=7)}
TEXTS = [RIGHT, WRONG, "no answer", WRONG]


def total(overrides, texts=TEXTS, columns=COLUMNS):
    functions, weights = rewards_of(settings_of("sandbox", overrides))
    scores = np.array([function(completions=texts, **columns) for function in functions])
    return np.array(weights) @ scores, {f.__name__: s for f, s in zip(functions, scores, strict=True)}


def test_without_a_regime_the_reward_is_the_published_one():
    _, columns = total({})
    assert list(columns) == ["correctness", "integer_answer", "strict_format", "xml_tags", "arithmetic_claims"]


def test_noise_is_uniform_within_its_size_and_the_same_for_every_arm_of_a_seed():
    many = {"answer": [["3"]] * 4000, "id": ["a"] * 4000, "trainer_state": SimpleNamespace(global_step=1)}
    noise = total({"nuisance": "noise", "nuisance_size": 0.45}, [WRONG] * 4000, many)[1]["nuisance"]
    assert np.abs(noise).max() <= 0.45
    assert abs(noise.mean()) < 4 * 0.45 / np.sqrt(3 * 4000)
    assert noise.std() == pytest.approx(0.45 / np.sqrt(3), rel=0.05)
    again = total({"nuisance": "noise", "nuisance_size": 0.45, "loss_type": "dr_grpo"}, [RIGHT] * 4000, many)
    assert np.array_equal(again[1]["nuisance"], noise)
    other = total({"nuisance": "noise", "nuisance_size": 0.45, "seed": 1}, [RIGHT] * 4000, many)[1]["nuisance"]
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.1


def test_outliers_come_at_their_rate():
    many = {"answer": [["3"]] * 4000, "id": ["a"] * 4000, "trainer_state": SimpleNamespace(global_step=1)}
    hit = total({"nuisance": "outliers", "nuisance_size": 10.0}, [WRONG] * 4000, many)[1]["nuisance"]
    assert set(np.unique(hit)) == {0.0, 10.0}
    assert (hit > 0).mean() == pytest.approx(1 / 16, abs=4 * np.sqrt(15 / 16**2 / 4000))


def test_a_clipped_reward_is_the_smaller_of_itself_and_the_bound():
    plain, _ = total({"nuisance": "outliers", "nuisance_size": 10.0, "nuisance_rate": 0.5})
    clipped, columns = total({"nuisance": "outliers", "nuisance_size": 10.0, "nuisance_rate": 0.5, "reward_clip": 2.0})
    assert plain.max() > 2.0
    assert clipped == pytest.approx(np.minimum(plain, 2.0))
    assert (columns["clip"] <= 0).all()


def test_correctness_alone_counts_nothing_else_and_logs_all():
    reward, columns = total({"nuisance": "noise", "reward_terms": "correctness"})
    assert reward.tolist() == [2.0, 0.0, 0.0, 0.0]
    assert columns["strict_format"].tolist() == [0.5, 0.5, 0.0, 0.5]


def test_format_and_partial_credit():
    assert total({"nuisance": "format", "nuisance_size": 3.0})[1]["nuisance"].tolist() == [3.0, 3.0, 0.0, 3.0]
    partial = total({"nuisance": "partial", "nuisance_size": 1.0})[1]["nuisance"]
    assert partial == pytest.approx([1.0, 0.8, 0.0, 0.8])  # 5 is two of ten off


def test_uniform_groups_get_no_advantage():
    class Trainer:
        model, num_generations = SimpleNamespace(training=True), 2
        accelerator, reward_func_names = SimpleNamespace(process_index=0), ["correctness"]
        _scores = torch.tensor([[2.0], [0.0], [2.0], [2.0], [0.0], [0.0]])

        def _generate_and_score_completions(self, inputs):
            return {"advantages": torch.arange(1.0, 7.0)}

    class Dropping(UniformGroupsDropped, Trainer):
        drop_uniform_groups = True

    assert Dropping()._generate_and_score_completions(None)["advantages"].tolist() == [1, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"nuisance": "noise", "lambda_schedule": "mixture", "preference_share": 0.6},
        {"pair_mining": "permuted", "lambda_schedule": "share"},
        {"nuisance": "outliers", "reward_clip": 2.0, "drop_uniform_groups": True},
    ],
)
def test_a_training_under_a_regime_logs_it(runs, tiny_settings, tmp_path, changes):
    from amir_grpo import open_run

    run = open_run("sandbox", runs / ("regime-" + "-".join(map(str, changes.values()))), tiny_settings | changes)
    log = run.train("amir_grpo")
    assert ("rewards/nuisance/mean" in log) == ("nuisance" in changes)
    rollouts = training.pd.read_parquet(run.folder / "amir_grpo" / "rollouts.parquet")
    shares = rollouts.groupby("step").apply(
        lambda rows: rows["bonus"].abs().sum() / (rows["bonus"].abs().sum() + rows["advantage"].abs().sum())
    )
    if changes.get("lambda_schedule"):
        wanted = changes.get("preference_share", 0.3)
        assert all(share == pytest.approx(wanted, rel=1e-4) or share == 0 for share in shares)
        assert (shares > 0).any()
