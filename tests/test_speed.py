"""Trimmed micro-batches make the update of untrimmed ones, and recorded log-probabilities are those of a forward pass."""

import copy
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset

from amir_grpo import speed
from amir_grpo.policies.float64 import compute_in_float64
from amir_grpo.speed import FasterSteps, sorted_by_length
from amir_grpo.trainer import LOSS_TYPES, AmirGRPOTrainer
from tests.test_trainer import TOKENIZER, make_trainer, off_by, parameters, policy  # noqa: F401

# of lengths that differ, so that prompts are padded, too
PROMPTS = Dataset.from_list(
    [{"prompt": [{"role": "user", "content": "+".join("1234567"[:n])}]} for n in (1, 2, 3, 4, 6, 7)]
)
# 16 completions as two micro-batches of two slices each
SHAPE = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "prompts": PROMPTS}


@pytest.fixture
def exact(policy, monkeypatch):  # noqa: F811
    """A policy in float64 that often ends early, and slices of 4 rows."""
    monkeypatch.setattr(speed, "_SLICE_ROWS", 4)
    exact = copy.deepcopy(policy).double()
    compute_in_float64(exact)
    with torch.no_grad():
        exact.lm_head.weight[TOKENIZER.eos_token_id] *= 5
    return exact


class _Counting(AmirGRPOTrainer):
    """Adds up the positions that the policy computes with a gradient, and keeps the rows of each micro-batch."""

    positions = 0

    def train(self, *args, **kwargs):
        self.micro_batches = []

        def count(model, args, kwargs):
            if torch.is_grad_enabled():
                self.positions += kwargs["input_ids"].numel()

        hook = self.model.register_forward_pre_hook(count, with_kwargs=True)
        super().train(*args, **kwargs)
        hook.remove()

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.micro_batches.append([tuple(row) for row in inputs["completion_ids"].tolist()])
        return super().compute_loss(model, inputs, *args, **kwargs)


def trained(policy, folder, trim, **changes):  # noqa: F811
    torch.manual_seed(11)  # the same random adapter, where there is one
    trainer = make_trainer(policy, folder, _Counting, trim_micro_batches=trim, **{"max_steps": 1, **SHAPE, **changes})
    before = parameters(trainer)
    trainer.train()
    return trainer, parameters(trainer) - before


def check_update(policy, folder, **changes):  # noqa: F811
    plain, wanted = trained(policy, folder, False, **changes)
    trimmed, update = trained(policy, folder, True, **changes)
    assert wanted.norm() > 1e-6
    assert off_by(update, wanted) < 1e-10
    assert trimmed.positions < 0.95 * plain.positions
    return plain, trimmed


def losses():
    """Every loss at one of the levels, in turns; at each in `make test-long`."""
    for number, loss_type in enumerate(LOSS_TYPES):
        for place, level in enumerate(("token", "sequence")):
            yield pytest.param(loss_type, level, marks=() if (number + place) % 2 == 0 else pytest.mark.long)


@pytest.mark.parametrize(("loss_type", "level"), losses())
def test_the_update_is_that_of_untrimmed_micro_batches(exact, tmp_path, loss_type, level):
    plain, trimmed = check_update(exact, tmp_path, loss_type=loss_type, importance_sampling_level=level)
    assert (plain.micro_batches == trimmed.micro_batches) == (loss_type == "bnpo"), (
        "which depends on a micro-batch's rows"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"ref_free": False, "peft": True},
        {"beta": 0.1, "peft": True},
        {"num_iterations": 2, "max_steps": 4, "learning_rate": 0.1},
        {"mask_truncated_completions": True},
        {"gradient_checkpointing": True},
        {"temperature": 0.7, "peft": True},
        {"top_entropy_quantile": 0.5, "lambda_reg": 0.0},
        {"lambda_reg": 0.0, "entropy_coef": 0.1},
        {"lambda_reg": 0.0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_the_update_is_the_same_with(exact, tmp_path, changes):
    check_update(exact, tmp_path, **changes)


def test_the_log_is_the_same(exact, tmp_path):
    shape = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "beta": 0.1, "peft": True}
    logs = [trained(exact, tmp_path, trim, **shape)[0].state.log_history[0] for trim in (False, True)]
    names = [name for name in logs[0] if not name.startswith(("step_time", "epoch"))]
    assert {"entropy", "kl", "loss", "preference/share"} <= set(names)
    assert [logs[1][name] for name in names] == pytest.approx([logs[0][name] for name in names], nan_ok=True, abs=1e-9)


def test_rows_stay_in_their_optimizer_step(exact, tmp_path):
    shape = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    plain, trimmed = check_update(exact, tmp_path, **shape, learning_rate=0.1, max_steps=2)
    for step in (0, 1):
        both = [sorted(chain(*trainer.micro_batches[2 * step :][:2])) for trainer in (plain, trimmed)]
        assert both[0] == both[1]
    assert plain.micro_batches != trimmed.micro_batches


def test_a_batch_without_a_completion_token_is_scored(exact, tmp_path):
    trainer = make_trainer(exact, tmp_path)
    ids = torch.full((4, 9), 5)
    mask = torch.zeros(4, 9, dtype=torch.long)
    mask[:, 2:4] = 1  # prompts alone
    logps, entropies, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 5, compute_entropy=True)
    assert logps.shape == entropies.shape == (4, 5)


class _Spy(AmirGRPOTrainer):
    """Counts the forward passes that score tokens, and keeps what sampling and scoring each say."""

    scored = 0

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.scored += 1
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        scored = self.scored
        self.known, self.forward = self._known_logps(output), self._logps(self.model, output)
        self.scored = scored
        self.mask = output["completion_mask"].bool()
        return output


def check_known(policy, folder, recorded, of_the_policy=None, **changes):  # noqa: F811
    """The log-probabilities that weights are made of are a forward pass's, whether they were recorded or not."""
    own = copy.deepcopy(policy)
    own.generation_config.update(**(of_the_policy or {}))
    trainer = make_trainer(own, folder, _Spy, max_steps=1, **changes)
    trainer.train()
    assert (trainer.sampled_logps is not None) == recorded
    assert trainer.scored == (1 if recorded else 2), "GRPO's own forward pass, and another where nothing is recorded"
    torch.testing.assert_close(trainer.known[trainer.mask], trainer.forward[trainer.mask], atol=2e-5, rtol=0)
    assert "generate" not in vars(trainer.model), "generation is left as it was"


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 1.7, "peft": True},
        # what is left out of the draw has a probability in the policy all the same
        {"top_p": 0.6, "temperature": 0.8},
        {"min_p": 0.05},
        {"generation_kwargs": {"top_k": 5, "eta_cutoff": 0.01}},
    ],
    ids=str,
)
def test_sampling_knows_the_log_probabilities_that_a_forward_pass_computes(policy, tmp_path, changes):  # noqa: F811
    check_known(policy, tmp_path, True, **changes)


@pytest.mark.parametrize(
    ("setting", "recorded"),
    [
        ({"eta_cutoff": 0.02, "typical_p": 0.9, "top_k": 7}, True),
        ({"num_beams": 1, "no_repeat_ngram_size": 0, "repetition_penalty": 1.3}, True),  # TRL sets the latter to 1
        ({"no_repeat_ngram_size": 1}, False),
        ({"suppress_tokens": [5, 6, 7]}, False),
        ({"min_new_tokens": 6}, False),
        ({"num_beams": 2}, False),
        ({"encoder_repetition_penalty": 1.5}, False),
        ({"remove_invalid_values": True}, False),
    ],
    ids=str,
)
def test_settings_of_the_policy_itself_do_not_falsify_them(policy, tmp_path, setting, recorded):  # noqa: F811
    check_known(policy, tmp_path, recorded, setting)


@pytest.mark.parametrize("changes", [{"repetition_penalty": 1.2}, {"generation_kwargs": {"no_repeat_ngram_size": 2}}])
def test_what_changes_the_draw_costs_a_forward_pass(policy, tmp_path, changes):  # noqa: F811
    check_known(policy, tmp_path, False, **changes)


def test_only_whole_rollouts_of_a_training_are_recorded(policy, tmp_path, monkeypatch):  # noqa: F811
    trainer = make_trainer(policy, tmp_path)
    trainer.model.train()
    assert trainer.record_logps
    assert not make_trainer(policy, tmp_path, lambda_reg=0.0).record_logps
    not_whole = {"tools": [max], "environment_factories": [object], "rollout_func": print, "use_vllm": True}
    for name, value in (not_whole | {"use_transformers_continuous_batching": True}).items():
        assert trainer._draws_whole_rollouts()
        with monkeypatch.context() as patch:
            patch.setattr(trainer, name, value)
            assert not trainer._draws_whole_rollouts(), name
    trainer.model.eval()
    assert not trainer._draws_whole_rollouts()


class _Scorer:
    """Stands in for TRL's trainer: every position scores its token plus 100 times its type, and notes what it was given."""

    accelerator = SimpleNamespace(distributed_type=DistributedType.NO)

    def __init__(self):
        self.given = []

    def _get_per_token_logps_and_entropies(self, model, ids, mask, keep, token_type_ids=None, images=None, **rest):
        self.given.append(mask)
        score = ((ids + 100 * token_type_ids) * mask)[:, -keep:].double()
        return score, score + 0.5 * mask[:, -keep:], None


class _TrimmedScorer(FasterSteps, _Scorer):
    pass


@pytest.mark.parametrize("images", [None, "an image"])
def test_every_row_and_position_keeps_its_score(monkeypatch, images):
    monkeypatch.setattr(speed, "_SLICE_ROWS", 3)
    stream = np.random.default_rng(0)
    prompts, completions = stream.integers(1, 7, 11), stream.integers(0, 9, 11)
    mask = torch.zeros(11, 6 + 8, dtype=torch.long)
    for row, prompt, completion in zip(mask, prompts, completions, strict=True):
        row[6 - prompt : 6 + completion] = 1
    ids, types = torch.from_numpy(stream.integers(1, 100, (2, *mask.shape)))
    arguments = {"compute_entropy": True, "token_type_ids": types, "images": images}
    plain, trimmed = _Scorer(), _TrimmedScorer()
    wanted = plain._get_per_token_logps_and_entropies(None, ids, mask, 8, **arguments)
    got = trimmed._get_per_token_logps_and_entropies(None, ids, mask, 8, **arguments)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])
    if images:
        assert len(trimmed.given) == 1  # not cut
    else:
        assert [given.any(dim=0).all() for given in trimmed.given] == [True] * 3  # no column of padding alone


def test_completions_of_one_prompt_share_its_pass_and_its_gradient(tiny_policy, tokenizer):
    prompts, completions = ["7+8-5", "1+2+3-4-5"], ["<think>7+8=15", "<think>", "<answer>", "<think>1+2=3\n3+3=6", "1"]
    posed = tokenizer.pad({"input_ids": [tokenizer.encode(prompts[n]) for n in (0, 1, 0, 0, 1)]}, return_tensors="pt")
    answers = {"input_ids": [tokenizer.encode(completion) for completion in completions]}
    drawn = tokenizer.pad(answers, return_tensors="pt", padding_side="right")
    ids, mask = (torch.cat([posed[key], drawn[key]], dim=1) for key in ("input_ids", "attention_mask"))
    keep = drawn["input_ids"].size(1) + 1
    weights = torch.randn(5, keep, len(tokenizer)) * mask[:, -keep:, None]
    found = []
    for scored in (tiny_policy, speed._SharedPrompts(tiny_policy, "past_key_values")):
        logits = scored(input_ids=ids, attention_mask=mask, logits_to_keep=keep, use_cache=False).logits
        (logits * weights).sum().backward()
        found.append([logits * (weights != 0), *(weight.grad for weight in tiny_policy.parameters())])
        tiny_policy.zero_grad()
    for apart, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, apart, rtol=1e-4, atol=1e-4 * apart.abs().max().item())


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "grpo"},
        {"loss_type": "dapo", "importance_sampling_level": "sequence"},
        *(pytest.param({"loss_type": name}, marks=pytest.mark.long) for name in LOSS_TYPES[1:]),
        {"beta": 0.1, "peft": True},
        {"num_iterations": 2, "max_steps": 2, "learning_rate": 0.1},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_completions_that_share_their_prompts_pass_make_the_same_update(policy, tmp_path, changes):  # noqa: F811
    changes = {"gradient_checkpointing": False, **changes}
    plain, wanted = trained(policy, tmp_path, False, **changes)
    shared, update = trained(policy, tmp_path, True, **changes)
    assert shared._shares_prompts()
    assert wanted.norm() > 1e-6
    assert off_by(update, wanted) < 1e-3  # float32
    assert shared.positions < 0.9 * plain.positions


def test_prompts_are_not_shared_where_a_cache_would_not_hold_them(policy, exact, tmp_path):  # noqa: F811
    trainer = make_trainer(policy, tmp_path, **SHAPE)
    assert trainer._shares_prompts()
    trainer.model.gradient_checkpointing_enable()  # by a user, without the setting
    assert not trainer._shares_prompts()
    random, dropping = copy.deepcopy(policy), copy.deepcopy(policy)
    random.model.layers[0].self_attn.attention_dropout = 0.1
    dropping.model.dropout = torch.nn.Dropout(0.1)
    for other in (exact, random, dropping):
        assert not make_trainer(other, tmp_path, **SHAPE)._shares_prompts()


def test_sorting_keeps_rows_together():
    def batch(lengths):
        mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
        rows = torch.tensor(lengths, dtype=torch.float)
        return {"completion_mask": mask.long(), "advantages": rows, "num_items_in_batch": torch.tensor(9), "old": None}

    first, second = sorted_by_length([batch([2, 5, 1]), batch([6, 3, 4])])
    assert first["advantages"].tolist() == [6, 5, 4]
    assert second["advantages"].tolist() == [3, 2, 1]
    assert second["completion_mask"].sum(1).tolist() == [3, 2, 1]
    assert (first["num_items_in_batch"], first["old"]) == (9, None)
    prompts = torch.tensor([[0, 7], [7, 8], [0, 7]])
    batches = [batch([2, 5, 1]) | {"prompt_ids": prompts}, batch([6, 3, 4]) | {"prompt_ids": prompts.roll(1, 0)}]
    first, second = sorted_by_length(batches, by_prompt=True)
    assert [first["advantages"].tolist(), second["advantages"].tolist()] == [[6, 3, 2], [1, 5, 4]]
