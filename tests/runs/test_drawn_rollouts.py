"""Rollouts and adapters that depend on the seed alone: against a plain loop, one completion at a time."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import GRPOTrainer

from amir_grpo.runs.drawn_rollouts import DrawnRollouts, draw_adapter
from amir_grpo.trainer import AmirGRPOTrainer
from tests.test_trainer import TOKENIZER, G, make_trainer, policy  # noqa: F401

LENGTH = 12


class _Kept(DrawnRollouts):
    """Keeps every rollout as it was drawn, with the policy that drew it."""

    draws_rollouts = True

    def _generate_single_turn(self, prompt_ids, *arguments):
        drawn = super()._generate_single_turn(prompt_ids, *arguments)
        self.__dict__.setdefault("kept", []).append(
            (prompt_ids, drawn[0], self.sampled_logps, copy.deepcopy(self.model), self.model.training)
        )
        return drawn


class _GRPO(_Kept, GRPOTrainer):
    pass


class _AmirGRPO(_Kept, AmirGRPOTrainer):
    pass


@torch.no_grad()
def plain_sample(model, prompt, name):
    """One completion and its log-probabilities: the inverse of the cumulated distribution at the stream's numbers."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    ids, logps = [], []
    for number in np.random.Generator(np.random.PCG64(seed)).random(LENGTH):
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].double()
        cumulated = np.cumsum(torch.softmax(logits, -1).numpy())
        ids.append(int(np.searchsorted(cumulated, number * cumulated[-1], side="right")))
        logps.append(torch.log_softmax(logits, -1)[ids[-1]].item())
        if ids[-1] == TOKENIZER.eos_token_id:
            break
    return ids, logps


@pytest.mark.parametrize("trainer_class", [_GRPO, _AmirGRPO], ids=["grpo", "amir_grpo"])
def test_rollouts_are_those_of_a_plain_loop(policy, tmp_path, trainer_class):  # noqa: F811
    trainer = make_trainer(copy.deepcopy(policy).double(), tmp_path, trainer_class, max_steps=2, learning_rate=1e-3)
    torch.manual_seed(99)  # and nothing else decides what is drawn
    trainer.train()
    assert len(trainer.kept) == 2
    for step, (prompts, completions, logps, model, training) in enumerate(trainer.kept):
        assert training, "the policy is back in training mode"
        for row, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
            expected = plain_sample(model.eval(), prompt, f"3/rollout/{step}/0/{row // G}/{row % G}")
            assert ids == expected[0]
            assert logps[row, : len(ids)].tolist() == pytest.approx(expected[1], abs=1e-12)


def test_both_methods_draw_the_same_first_rollout(policy, tmp_path):  # noqa: F811
    first = [make_trainer(policy, tmp_path, trainer_class, max_steps=1) for trainer_class in (_GRPO, _AmirGRPO)]
    for trainer in first:
        trainer.train()
    assert first[0].kept[0][:2] == first[1].kept[0][:2]


def test_rollouts_within_one_optimizer_step_differ(policy, tmp_path):  # noqa: F811
    shape = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 1}
    trainer = make_trainer(policy, tmp_path, _AmirGRPO, max_steps=2, learning_rate=0.0, **shape)
    trainer.train()
    assert len(trainer.kept) == 3  # the epoch ends after the third
    for number, (prompts, completions, _, model, _) in enumerate(trainer.kept):
        step, within = divmod(number, 2)
        expected, _ = plain_sample(model.eval(), prompts[0], f"3/rollout/{step}/{within}/0/0")
        assert completions[0] == expected


def test_a_prompt_of_a_rollout_goes_through_the_policy_once(policy, tmp_path):  # noqa: F811
    trainer = make_trainer(policy, tmp_path, _GRPO, max_steps=1)
    shapes = []
    trainer.model.register_forward_pre_hook(
        lambda module, inputs, keywords: shapes.append(tuple(keywords["input_ids"].shape)), with_kwargs=True
    )
    trainer.train()
    assert shapes[0][0] == 16 // G
    assert shapes[1] == (16, 1)


def adapter(policy, dtype, seed):  # noqa: F811
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    adapted = get_peft_model(copy.deepcopy(policy).to(dtype), config)
    draw_adapter(adapted, seed)
    return {name: p.detach() for name, p in adapted.named_parameters() if p.requires_grad}


def test_an_adapter_is_drawn_from_the_seed_alone(policy):  # noqa: F811
    torch.manual_seed(1)
    one = adapter(policy, torch.float32, 5)
    torch.manual_seed(2)
    same, other = adapter(policy, torch.float64, 5), adapter(policy, torch.float32, 6)
    assert one.keys() == same.keys()
    for name, weight in one.items():
        assert torch.equal(weight.double(), same[name]), "the same in either precision"
        if "lora_A" not in name:
            assert not weight.any()
            continue
        assert not torch.equal(weight, other[name])
        bound = weight.shape[1] ** -0.5  # PEFT's: kaiming_uniform_ with a = √5
        assert 0.9 * bound < weight.abs().max() < bound
        assert abs(weight.mean()) < 0.2 * bound
