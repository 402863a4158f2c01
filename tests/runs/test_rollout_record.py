"""The record of rollouts: what it says of each completion against the gradient of the loss that TRL really computes."""

import pandas as pd
import pytest
import torch
from trl import GRPOTrainer

from amir_grpo.runs.rollout_record import RolloutRecord
from amir_grpo.trainer import AmirGRPOTrainer
from tests.test_trainer import LAMBDA, make_trainer, policy  # noqa: F401


def correctness(completions, completion_ids, **columns):
    """2.0 for every third completion, by its tokens."""
    return [2.0 * (sum(ids) % 3 == 0) for ids in completion_ids]


class _Watching(RolloutRecord):
    """Keeps the loss's derivative by each token's log-probability, rows in the order of the loss."""

    def _get_per_token_logps_and_entropies(self, *arguments, **keywords):
        logps, *rest = super()._get_per_token_logps_and_entropies(*arguments, **keywords)
        if logps.requires_grad:
            logps.retain_grad()
            self.__dict__.setdefault("watched", []).append(logps)
        return logps, *rest

    def compute_loss(self, model, inputs, *arguments, **keywords):
        self.__dict__.setdefault("masks", []).append(inputs["completion_mask"])
        return super().compute_loss(model, inputs, *arguments, **keywords)


class _GRPO(_Watching, GRPOTrainer):
    pass


class _AmirGRPO(_Watching, AmirGRPOTrainer):
    pass


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "bnpo", "dapo", "luspo"])
@pytest.mark.parametrize("trainer_class", [_GRPO, _AmirGRPO], ids=["grpo", "amir_grpo"])
def test_the_recorded_weight_is_the_gradient_of_every_token(policy, tmp_path, trainer_class, loss_type):  # noqa: F811
    trainer = make_trainer(
        policy, tmp_path, trainer_class, reward=correctness, max_steps=2, loss_type=loss_type, learning_rate=1e-3
    )
    trainer.train()
    rows = trainer.rollouts()
    assert rows["step"].tolist() == [1] * 16 + [2] * 16
    assert rows["token_weight"].abs().max() > 1e-4
    gradients = torch.cat([logps.grad.sum(dim=1) for logps in trainer.watched])
    tokens = torch.cat([mask.sum(dim=1) for mask in trainer.masks])
    assert rows["tokens"].tolist() == tokens.tolist()
    expected = -torch.tensor(rows["token_weight"].to_numpy()) * tokens
    torch.testing.assert_close(gradients.double(), expected, rtol=1e-4, atol=1e-7)
    assert set(rows["correct"]) == {0, 1}
    assert (rows["reward"] == 2.0 * rows["correct"]).all()
    if trainer_class is _GRPO:
        assert (rows["bonus"] == 0).all()
    else:
        share = rows["bonus"].abs().sum() / (rows["bonus"].abs().sum() + rows["advantage"].abs().sum())
        logged = [row["preference/share"] for row in trainer.state.log_history if "preference/share" in row]
        assert min(logged) - 1e-6 <= share <= max(logged) + 1e-6
        assert LAMBDA > 0


OPTIONS = [{}, {"steps_per_generation": 2, "per_device_train_batch_size": 8}, {"num_iterations": 2}]


@pytest.mark.parametrize("options", OPTIONS, ids=["on-policy", "two steps a rollout", "reused"])
def test_a_group_is_the_completions_of_one_prompt(policy, tmp_path, options):  # noqa: F811
    trainer = make_trainer(policy, tmp_path, _GRPO, reward=correctness, max_steps=4, learning_rate=1e-3, **options)
    trainer.train()
    rows = trainer.rollouts()
    times = options.get("num_iterations", 1)
    groups = rows.groupby("group")
    assert (groups.size() == times * trainer.num_generations).all()
    assert len(groups) * times * trainer.num_generations == len(rows) > 0
    assert len(groups) > 2
    # what the mean of its own group was taken from sums to 0 in that group, and in hardly another grouping
    assert groups["advantage"].sum().abs().max() < 1e-4
    assert rows["advantage"].abs().max() > 0.5


def test_a_resumed_training_has_the_rows_of_the_whole(policy, tmp_path):  # noqa: F811
    options = {"reward": correctness, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    whole = make_trainer(policy, tmp_path / "whole", _AmirGRPO, **options)
    whole.train()
    resumed = make_trainer(policy, tmp_path / "resumed", _AmirGRPO, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.rollouts()["step"].tolist() == whole.rollouts()["step"].tolist()
    pd.testing.assert_frame_equal(resumed.rollouts()[:32], whole.rollouts()[:32])
