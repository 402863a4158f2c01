"""AmirGRPOTrainer over whole runs: rollouts used more than once, several processes, λ schedules, resuming."""

import json
import math
import os
from itertools import permutations

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM
from trl import GRPOTrainer, TrlParser

from amir_grpo import microbatches
from amir_grpo.system.processes import leave_process_group
from amir_grpo.trainer import AmirGRPOConfig, AmirGRPOTrainer
from tests.test_trainer import PROMPTS, TOKENIZER, make_trainer, off_by, parameters, policy, sgd_gradient  # noqa: F401


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if "preference/lambda" in row]


class _Spy(AmirGRPOTrainer):
    """Counts the forward passes that score tokens, and keeps what sampling and scoring each say."""

    scored = 0

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.scored += 1
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        scored = self.scored
        self.sampled, self.forward = self._known_logps(output), self._logps(self.model, output)
        self.scored = scored
        self.mask = output["completion_mask"].bool()
        return output


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampling_knows_the_log_probabilities_that_a_forward_pass_computes(policy, tmp_path, temperature):  # noqa: F811
    trainer = make_trainer(policy, tmp_path, _Spy, temperature=temperature, max_steps=1)
    trainer.train()
    assert trainer.sampled_logps is not None
    torch.testing.assert_close(trainer.sampled[trainer.mask], trainer.forward[trainer.mask], atol=2e-5, rtol=0)
    assert trainer.scored == 1  # GRPO's own forward pass and no other


def test_generation_is_left_as_it_was(policy, tmp_path):  # noqa: F811
    trainer = make_trainer(policy, tmp_path, max_steps=1)
    trainer.train()
    assert "generate" not in vars(trainer.model)


def test_a_penalty_on_repetition_costs_a_forward_pass_and_keeps_the_gradient_exact(policy, tmp_path):  # noqa: F811
    trainer = make_trainer(policy, tmp_path, _Spy, repetition_penalty=1.2, max_steps=1)
    trainer.train()
    assert trainer.sampled_logps is None
    assert trainer.scored == 2
    assert torch.equal(trainer.sampled, trainer.forward)


NOT_PLAIN = {
    "tools": [max],
    "environment_factories": [object],
    "rollout_func": print,
    "use_vllm": True,
    "use_transformers_continuous_batching": True,
}


def test_only_a_plain_rollout_of_a_training_tells_its_log_probabilities(policy, tmp_path, monkeypatch):  # noqa: F811
    trainer = make_trainer(policy, tmp_path)
    trainer.model.train()
    owners = dict.fromkeys(NOT_PLAIN, trainer) | {"generation_kwargs": trainer.args, "lambda_reg": trainer.args}
    for name, value in (NOT_PLAIN | {"generation_kwargs": {"top_k": 5}, "lambda_reg": 0.0}).items():
        assert trainer._sampling_tells_logps()
        with monkeypatch.context() as patch:
            patch.setattr(owners[name], name, value)
            assert not trainer._sampling_tells_logps(), name
    trainer.model.eval()
    assert not trainer._sampling_tells_logps()


def test_the_log_is_counted_from_the_pairs_of_the_rollout(policy, tmp_path):  # noqa: F811
    """One by one, at rewards so small that no sum of the update reaches 1."""
    margin, beta, lambda_reg = 0.0002, 1.3, 1e-4

    def small(completions, completion_ids, **columns):
        return [0.0005 * (sum(ids) % 4) for ids in completion_ids]

    changes = {"reward_margin": margin, "beta_dpo": beta, "lambda_reg": lambda_reg, "scale_rewards": "none"}
    trainer = make_trainer(policy, tmp_path, _Spy, reward=small, max_steps=1, **changes)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "preference/pairs" in row]
    logps = [values[mask].mean().item() for values, mask in zip(trainer.sampled, trainer.mask, strict=True)]
    rewards = trainer._rewards.tolist()
    pairs = [(i, j) for i, j in permutations(range(16), 2) if i // 4 == j // 4 and rewards[i] - rewards[j] > margin]
    gaps = [logps[i] - logps[j] for i, j in pairs]
    assert row["preference/pairs"] == len(pairs) > 3
    assert 0 < row["preference/accuracy"] == pytest.approx(sum(gap > 0 for gap in gaps) / len(gaps))
    assert row["preference/margin"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    losses = [math.log1p(math.exp(-beta * gap)) for gap in gaps]
    assert row["preference/loss"] == pytest.approx(sum(losses) / len(gaps), abs=1e-5)
    weights = [0.0] * 16
    for (i, j), gap in zip(pairs, gaps, strict=True):
        pull = beta / len(pairs) / (1 + math.exp(beta * gap))
        weights[i], weights[j] = weights[i] + pull, weights[j] - pull
    preference = sum(abs(lambda_reg * 16 * weight) for weight in weights)
    means = [sum(rewards[4 * group :][:4]) / 4 for group in range(4)]
    update = preference + sum(abs(reward - means[i // 4]) for i, reward in enumerate(rewards))
    assert update < 1
    assert row["preference/share"] == pytest.approx(preference / update, rel=1e-3)


def test_an_evaluation_looks_at_no_preference(policy, tmp_path, monkeypatch):  # noqa: F811
    def never(output):
        raise AssertionError("scored")

    trainer = make_trainer(policy, tmp_path)
    monkeypatch.setattr(trainer, "_score_preferences", never)
    trainer.evaluate(PROMPTS)
    assert any("eval_reward" in row for row in trainer.state.log_history)


class _LearningRateZero(_Spy):
    """Adds up the gradients of all optimizer steps of one rollout, from parameters that stay as they are."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        self.total = getattr(self, "total", 0) + gradient * self.current_gradient_accumulation_steps
        self.model.zero_grad()
        return loss


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_optimizer_steps_that_share_a_rollout_add_up_to_one_big_step(policy, tmp_path, loss_type):  # noqa: F811
    shape = {"learning_rate": 0.0, "loss_type": loss_type, "max_steps": 1}
    whole = make_trainer(policy, tmp_path, _LearningRateZero, **shape)
    whole.train()
    # the same 16 completions, as four optimizer steps of one micro-batch each
    parts = make_trainer(
        policy,
        tmp_path,
        _LearningRateZero,
        **{**shape, "max_steps": 4, "per_device_train_batch_size": 4, "steps_per_generation": 4},
    )
    parts.train()
    if loss_type == "bnpo":  # normalises each micro-batch by its own tokens, GRPO's part too: compare the bonus alone
        for trainer, arguments in ((whole, shape), (parts, {**shape, "max_steps": 4})):
            plain = make_trainer(
                policy,
                tmp_path,
                _LearningRateZero,
                **{
                    **arguments,
                    "lambda_reg": 0.0,
                    "per_device_train_batch_size": trainer.args.per_device_train_batch_size,
                    "steps_per_generation": trainer.args.steps_per_generation,
                },
            )
            plain.train()
            trainer.total = trainer.total - plain.total
    assert off_by(parts.total / 4, whole.total) < 1e-5


def test_rollouts_used_twice_are_trained_on_twice(policy, tmp_path):  # noqa: F811
    trainer = make_trainer(policy, tmp_path, _Spy, num_iterations=2, max_steps=2, learning_rate=1e-3)
    trainer.train()
    assert trainer.sampled_logps is not None
    share = logged(trainer, "preference/share")
    assert share[0] == pytest.approx(share[1])  # same rows, same weights, same λ
    for name in (
        "loss",
        "pairs",
        "accuracy",
        "margin",
        "lambda",
    ):  # every step logs them, with a rollout of its own or not
        first, second = logged(trainer, f"preference/{name}")
        assert first == second


def test_share_schedule_keeps_the_share(policy, tmp_path):  # noqa: F811
    trainer = make_trainer(policy, tmp_path, lambda_schedule="share", preference_share=0.3, loss_type="dapo")
    trainer.train()
    assert logged(trainer, "preference/share") == pytest.approx([0.3] * 3, rel=1e-4)
    assert len(set(logged(trainer, "preference/lambda"))) == 3


def test_a_mixture_is_the_update_at_that_share_at_grpos_size(policy, tmp_path):  # noqa: F811
    of_share, of_mixture = (
        sgd_gradient(make_trainer(policy, tmp_path, lambda_schedule=schedule, preference_share=0.4, max_steps=1))
        for schedule in ("share", "mixture")
    )
    assert off_by(of_mixture, 0.6 * of_share) < 1e-5


def test_published_schedule_falls_to_its_floor_in_four_steps(policy, tmp_path):  # noqa: F811
    trainer = make_trainer(
        policy, tmp_path, lambda_schedule="published", lambda_reg=0.01, max_steps=6, learning_rate=0.01
    )
    trainer.train()
    # the value of GRPO's loss is a rounding error of either sign, far below λ L_pref
    assert logged(trainer, "preference/lambda") == pytest.approx([0.01, 0.008, 0.0064, 0.00512, 0.005, 0.005])


def test_published_schedule_sees_grpos_own_loss_value(policy, tmp_path):  # noqa: F811
    class Seen(AmirGRPOTrainer):
        def _follow_published_rule(self, loss, weights):
            super()._follow_published_rule(loss, weights)
            self.values = [*getattr(self, "values", []), self._grpo_loss]

    shape = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "learning_rate": 0.0, "max_steps": 2}

    class Plain(GRPOTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.values = [*getattr(self, "values", []), loss.item() * self.current_gradient_accumulation_steps]
            return loss

    seen = make_trainer(policy, tmp_path, Seen, lambda_schedule="published", **shape)
    # as among two processes that hold the same rows
    seen.accelerator.reduce = lambda value, reduction="sum": value * {"sum": 2, "mean": 1}[reduction]
    seen.train()
    plain = make_trainer(policy, tmp_path, Plain, **shape)
    plain.train()
    first = plain.values[0], plain.values[4]  # micro-batches of the two steps
    assert min(map(abs, first)) > 1e-3  # a micro-batch that cuts groups has a loss that is not 0
    assert first[0] != pytest.approx(first[1], abs=1e-3)
    assert seen.values == pytest.approx([first[0]] * 4 + [first[1]] * 4, abs=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "published", "share"])
def test_resumed_equals_uninterrupted(policy, tmp_path, schedule):  # noqa: F811
    # all within one epoch: transformers' Trainer does not restore the order in which a later epoch is shuffled
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": str(n)}]} for n in range(40)])
    run = {"max_steps": 4, "learning_rate": 0.1, "lambda_schedule": schedule, "prompts": prompts}
    whole = make_trainer(policy, tmp_path / "whole", **run)
    whole.train()
    stopped = make_trainer(policy, tmp_path / "parts", **run, save_strategy="steps", save_steps=2)
    stopped.train()
    checkpoint = tmp_path / "parts" / "checkpoint-2"
    resumed = make_trainer(policy, tmp_path / "parts", **run)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(parameters(resumed), parameters(whole))
    assert logged(resumed, "preference/lambda") == logged(whole, "preference/lambda")


def test_a_checkpoint_of_stock_grpo_goes_on_with_the_lambda_that_was_set(policy, tmp_path):  # noqa: F811
    stopped = make_trainer(policy, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    stopped.train()
    (tmp_path / "checkpoint-1" / "preference_state.json").unlink()
    resumed = make_trainer(policy, tmp_path, max_steps=2, lambda_reg=0.02)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert logged(resumed, "preference/lambda")[-1] == 0.02


class _Given(AmirGRPOTrainer):
    """Trains on completions that are given: 16 rows, whatever number of processes they are spread over."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.model.generate = self._given

    def _sampling_tells_logps(self):
        return False

    def _given(self, input_ids, attention_mask, generation_config):
        torch.manual_seed(5)
        mine = slice(self.accelerator.process_index * len(input_ids), None)
        ids, lengths = torch.randint(4, 20, (16, 12))[mine], torch.randint(3, 12, (16,))[mine]
        ids, lengths = ids[: len(input_ids)], lengths[: len(input_ids)]
        ids[torch.arange(12)[None] >= lengths[:, None]] = TOKENIZER.eos_token_id
        return torch.cat([input_ids, ids], dim=1)


def sum_of_ids(completions, completion_ids, **columns):
    return [0.5 * (sum(ids) % 4) for ids in completion_ids]


def updates(policy, folder, processes):  # noqa: F811
    """By loss type the gradient of one step and what was logged of the preference."""
    found = {}
    for loss_type in ("grpo", "dapo"):
        trainer = make_trainer(
            policy,
            folder,
            _Given,
            reward=sum_of_ids,
            max_steps=1,
            num_generations=16,
            loss_type=loss_type,
            per_device_train_batch_size=16 // processes,
            trim_micro_batches=processes == 2,
        )
        gradient = sgd_gradient(trainer)
        rows = [row for row in trainer.state.log_history if "reward" in row]
        logged = {key: value for row in rows[:1] for key, value in row.items() if key.startswith("preference/")}
        found[loss_type] = gradient, logged
    return found


def one_of_two(rank, folder):
    """What a launcher starts twice."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'meet'}", rank=rank, world_size=2)
    microbatches._SLICE_ROWS = 4
    found = updates(LlamaForCausalLM.from_pretrained(folder / "policy"), folder / "out", 2)
    if rank == 0:
        torch.save(found, folder / "two.pt")
    leave_process_group()


@pytest.mark.xdist_group("server")
def test_two_processes_make_the_update_of_one(policy, server, tmp_path):  # noqa: F811
    """16 completions on one process against 8 on each of two (gloo), trimmed, with the groups of 16 spread over both."""
    policy.save_pretrained(tmp_path / "policy")
    processes = [server.Process(target=one_of_two, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    one = updates(policy, tmp_path / "out", 1)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    two = torch.load(tmp_path / "two.pt")
    for loss_type, (gradient, logged) in one.items():
        assert logged["preference/pairs"] > 10
        assert two[loss_type][1] == pytest.approx(logged, rel=1e-4)
        assert off_by(two[loss_type][0], gradient) < 1e-5


def test_command_line_shows_and_reads_the_options(capsys):
    parser = TrlParser(AmirGRPOConfig)
    (config,) = parser.parse_args_and_config(
        [
            "--output_dir",
            "out",
            "--use_cpu",
            "--bf16",
            "false",
            "--lambda_schedule",
            "share",
            "--preference_share",
            "0.6",
        ]
    )
    assert (config.lambda_schedule, config.preference_share) == ("share", 0.6)
    with pytest.raises(SystemExit):
        parser.parse_args_and_config(["--help"])
    text = capsys.readouterr().out
    for name in ("lambda_reg", "reward_margin", "beta_dpo", "pair_mining", "max_pairs_per_group", "ref_free"):
        assert f"--{name}" in text
    assert json.dumps(config.to_dict())
