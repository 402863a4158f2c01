"""AmirGRPOTrainer over whole runs: rollouts used more than once, several processes, what is logged, and resumption."""

import json
import math
import os
import shutil
import time
from itertools import permutations

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from trl import TrlParser

from amir_grpo import speed
from amir_grpo.system.processes import leave_process_group
from amir_grpo.trainer import AmirGRPOConfig, AmirGRPOTrainer
from tests.launching import exit_code, forked
from tests.test_speed import _Spy
from tests.test_trainer import PROMPTS, TOKENIZER, make_trainer, off_by, parameters, policy, sgd_gradient  # noqa: F401


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if "preference/lambda" in row]


@pytest.mark.parametrize("parts", [1, 4])
def test_the_log_is_counted_from_the_pairs_of_the_rollout(policy, tmp_path, parts):  # noqa: F811
    """One by one, at rewards so small that no sum of the update reaches 1."""
    margin, beta, lambda_reg = 0.0002, 1.3, 1e-4

    def small(completions, completion_ids, **columns):
        return [0.0005 * (sum(ids) % 4) for ids in completion_ids]

    changes = {"reward_margin": margin, "beta_dpo": beta, "lambda_reg": lambda_reg, "scale_rewards": "none"}
    changes |= {"per_device_train_batch_size": 16 // parts, "gradient_accumulation_steps": parts}
    trainer = make_trainer(policy, tmp_path, _Spy, reward=small, max_steps=1, **changes)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "preference/pairs" in row]
    logps = [values[mask].mean().item() for values, mask in zip(trainer.known, trainer.mask, strict=True)]
    rewards = trainer._rewards.tolist()
    pairs = [(i, j) for i, j in permutations(range(16), 2) if i // 4 == j // 4 and rewards[i] - rewards[j] > margin]
    gaps = [logps[i] - logps[j] for i, j in pairs]
    assert row["preference/lambda"] == lambda_reg
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
    trainer = make_trainer(policy, tmp_path)
    monkeypatch.setattr(trainer, "_score_preferences", lambda output: pytest.fail("scored"))
    trainer.evaluate(PROMPTS)
    assert any("eval_reward" in row for row in trainer.state.log_history)


class _LearningRateZero(AmirGRPOTrainer):
    """Adds up the gradients of all optimizer steps of one rollout, from parameters that stay as they are."""

    total = 0

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        self.total = self.total + gradient * self.current_gradient_accumulation_steps
        self.model.zero_grad()
        return loss


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_optimizer_steps_that_share_a_rollout_add_up_to_one_big_step(policy, tmp_path, loss_type):  # noqa: F811
    def total(**shape):
        trainer = make_trainer(policy, tmp_path, _LearningRateZero, learning_rate=0.0, loss_type=loss_type, **shape)
        trainer.train()
        return trainer.total

    one = {"max_steps": 1}
    # the same 16 completions, as four optimizer steps of one micro-batch each
    four = {"max_steps": 4, "per_device_train_batch_size": 4, "steps_per_generation": 4}
    whole, parts = total(**one), total(**four) / 4
    if loss_type == "bnpo":  # normalises each micro-batch by its own tokens, GRPO's part too: compare the bonus alone
        whole, parts = whole - total(**one, lambda_reg=0.0), parts - total(**four, lambda_reg=0.0) / 4
    assert off_by(parts, whole) < 1e-5


def test_rollouts_used_twice_are_trained_on_twice(policy, tmp_path):  # noqa: F811
    trainer = make_trainer(policy, tmp_path, num_iterations=2, max_steps=2, learning_rate=1e-3)
    trainer.train()
    assert trainer.sampled_logps is not None
    share = logged(trainer, "preference/share")
    assert share[0] == pytest.approx(share[1])  # same rows, same weights, same λ
    for name in ("loss", "pairs", "accuracy", "margin", "lambda"):  # logged with a rollout of its own or not
        first, second = logged(trainer, f"preference/{name}")
        assert first == second


# --- resumption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        {},  # 4 prompts a rollout of 6: an epoch ends after every step
        {"num_generations": 8},  # 2 prompts a rollout: after every third
        {"num_generations": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
        {"num_generations": 8, "lambda_reg": 0.0},
        {"num_generations": 8, "num_iterations": 2, "max_steps": 14},
        {"num_generations": 8, "per_device_train_batch_size": 8, "steps_per_generation": 4},
        {"num_generations": 8, "shuffle_dataset": False},
    ],
    ids=str,
)
def test_resumed_anywhere_it_ends_as_uninterrupted(policy, tmp_path, shape):  # noqa: F811
    """Over several epochs, and in the midst of a rollout that is used further."""
    run = {"max_steps": 8, "learning_rate": 0.1, "optim": "adamw_torch", **shape}
    whole = make_trainer(policy, tmp_path, **run, save_strategy="steps", save_steps=1)
    whole.train()
    assert whole.state.epoch >= 2
    for step in (3, 4):
        resumed = make_trainer(policy, tmp_path / "again", **run)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert torch.equal(parameters(resumed), parameters(whole)), step
        for name in ("loss", "reward", *(["preference/pairs"] if "lambda_reg" not in shape else [])):
            rows = [[row[name] for row in trainer.state.log_history if name in row] for trainer in (resumed, whole)]
            assert rows[0] == rows[1], name


SCRIPT = """
import sys
import torch
from transformers.trainer_utils import get_last_checkpoint
from tests.test_trainer import make_trainer, random_policy

torch.set_num_threads(1)
folder = sys.argv[1]
often = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
trainer = make_trainer(random_policy(), folder, max_steps=12, learning_rate=0.05, num_generations=8, **often)
last = get_last_checkpoint(folder)
print("from", last, flush=True)
trainer.train(resume_from_checkpoint=last)
trainer.save_model(folder + "/end")
"""


@pytest.mark.xdist_group("server")
def test_a_users_own_script_killed_at_random_moments_ends_as_undisturbed(server, tmp_path):
    """As a user writes it, in a process of its own; checkpoints that the kill has cut off are deleted by hand."""
    script, said = tmp_path / "train.py", tmp_path / "said"
    script.write_text(SCRIPT)

    def start(folder):
        folder.mkdir(exist_ok=True)
        for checkpoint in folder.glob("checkpoint-*"):
            if not (checkpoint / "trainer_state.json").is_file():  # written last
                shutil.rmtree(checkpoint)
        return forked(server, script, [str(folder)], 1, {}, said)

    assert exit_code(start(tmp_path / "undisturbed")) == 0
    folder = tmp_path / "killed"
    for steps in (3, 7):
        process = start(folder)
        while not (folder / f"checkpoint-{steps}").exists():
            assert process.is_alive(), said.read_text()[-3000:]
            time.sleep(0.001)
        process.kill()
        process.join()
    assert exit_code(start(folder)) == 0, said.read_text()[-3000:]
    assert "from None" not in said.read_text(), "it went on, and did not begin again"
    ends = [load_file(tmp_path / name / "end" / "model.safetensors") for name in ("undisturbed", "killed")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


# --- several processes ---------------------------------------------------------------------------------------------


class _Given(AmirGRPOTrainer):
    """Trains on completions that are given: 16 rows, whatever number of processes they are spread over."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.model.generate = self._given
        self.record_logps = False

    def _given(self, input_ids, attention_mask, generation_config):
        torch.manual_seed(5)
        mine = slice(self.accelerator.process_index * len(input_ids), None)
        ids, lengths = torch.randint(4, 20, (16, 12))[mine], torch.randint(3, 12, (16,))[mine]
        ids, lengths = ids[: len(input_ids)], lengths[: len(input_ids)]
        ids[torch.arange(12)[None] >= lengths[:, None]] = TOKENIZER.eos_token_id
        return torch.cat([input_ids, ids], dim=1)


def updates(policy, folder, processes):  # noqa: F811
    """By loss type the gradient of one step and what was logged of the preference."""
    found = {}
    for loss_type in ("grpo", "dapo"):
        trainer = make_trainer(
            policy,
            folder,
            _Given,
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
    speed._SLICE_ROWS = 4
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
    words = "--output_dir out --use_cpu --bf16 false --lambda_reg 0.5 --pair_mining topk --max_pairs_per_group 3"
    (config,) = parser.parse_args_and_config(words.split())
    assert (config.lambda_reg, config.pair_mining, config.max_pairs_per_group) == (0.5, "topk", 3)
    with pytest.raises(SystemExit):
        parser.parse_args_and_config(["--help"])
    text = capsys.readouterr().out
    for name in ("lambda_reg", "reward_margin", "beta_dpo", "pair_mining", "max_pairs_per_group", "ref_free"):
        assert f"--{name}" in text
    assert json.dumps(config.to_dict())
