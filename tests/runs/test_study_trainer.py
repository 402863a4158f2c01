"""StudyTrainer: rollouts against a plain loop, their record against the gradient, λ, pairs and rewards of the study."""

import copy
import hashlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from amir_grpo.family import FAMILY
from amir_grpo.preference import mine_pairs
from amir_grpo.rewards import reward_functions
from amir_grpo.runs import study_trainer
from amir_grpo.runs.study_trainer import (
    StudyConfig,
    StudyTrainer,
    linear_pair_loss,
    permuted_within_groups,
    published_lambda,
    with_regime,
)
from amir_grpo.runs.training import draw_adapter, trainer_config
from amir_grpo.settings import settings_of
from tests.test_preference import batches
from tests.test_trainer import LAMBDA, TOKENIZER, G, make_trainer, off_by, parameters, policy, sgd_gradient  # noqa: F401

LENGTH = 12
METHODS = pytest.mark.parametrize("lambda_reg", [0.0, LAMBDA], ids=["grpo", "amir_grpo"])


def correctness(completions, completion_ids, **columns):
    """Several values, of which 0 is wrong; read off the tokens alone."""
    return [0.5 * (sum(ids) % 4) for ids in completion_ids]


def study_trainer_of(policy, folder, trainer_class=StudyTrainer, **changes):  # noqa: F811
    return make_trainer(policy, folder, trainer_class, **{"reward": [correctness], **changes})


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


# --- rollouts ------------------------------------------------------------------------------------------------------


class _Kept(StudyTrainer):
    """Keeps every rollout as it was drawn, with the policy that drew it, and the scores that forward passes gave."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.kept, self.scored = [], 0

    def _generate_single_turn(self, prompt_ids, *arguments):
        drawn = super()._generate_single_turn(prompt_ids, *arguments)
        self.kept.append((prompt_ids, drawn[0], self.sampled_logps, copy.deepcopy(self.model), self.model.training))
        return drawn

    def _get_per_token_logps_and_entropies(self, *arguments, **keywords):
        self.scored += 1
        return super()._get_per_token_logps_and_entropies(*arguments, **keywords)


@torch.no_grad()
def plain_sample(model, prompt, name, temperature=1.0):
    """One completion and its log-probabilities: the inverse of the cumulated distribution at the stream's numbers."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    ids, logps = [], []
    for number in np.random.Generator(np.random.PCG64(seed)).random(LENGTH):
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].double() / temperature
        cumulated = np.cumsum(torch.softmax(logits, -1).numpy())
        ids.append(int(np.searchsorted(cumulated, number * cumulated[-1], side="right")))
        logps.append(torch.log_softmax(logits, -1)[ids[-1]].item())
        if ids[-1] == TOKENIZER.eos_token_id:
            break
    return ids, logps


@pytest.mark.parametrize(("temperature", "lambda_reg"), [(1.0, 0.0), (0.7, LAMBDA)])
def test_rollouts_are_those_of_a_plain_loop(policy, tmp_path, lambda_reg, temperature):  # noqa: F811
    options = {"lambda_reg": lambda_reg, "temperature": temperature, "max_steps": 2, "learning_rate": 1e-3}
    trainer = study_trainer_of(copy.deepcopy(policy).double(), tmp_path, _Kept, **options)
    torch.manual_seed(99)  # and nothing else decides what is drawn
    trainer.train()
    assert len(trainer.kept) == 2
    for step, (prompts, completions, logps, model, training) in enumerate(trainer.kept):
        assert training, "the policy is back in training mode"
        for row, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
            name = f"3/rollout/{step}/0/{row // G}/{row % G}"
            expected = plain_sample(model.eval(), prompt, name, temperature)
            assert ids == expected[0]
            if temperature == 1:
                assert logps[row, : len(ids)].tolist() == pytest.approx(expected[1], abs=1e-12)
    if temperature != 1:  # the engine tells log-probabilities at temperature 1, which are not the ones to weigh
        assert logps is None
        assert trainer.scored == (4 if lambda_reg else 2)


@pytest.mark.parametrize("changes", [{"own_engine": False}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}])
def test_what_the_engine_cannot_do_trl_draws(policy, tmp_path, changes):  # noqa: F811
    trainer = study_trainer_of(policy, tmp_path, **changes)
    trainer.model.train()
    assert not trainer._draws()


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


# --- the record ----------------------------------------------------------------------------------------------------


class _Watching(StudyTrainer):
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


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "cispo", "luspo"])
@METHODS
def test_the_recorded_weight_is_the_gradient_of_every_token(policy, tmp_path, lambda_reg, loss_type):  # noqa: F811
    options = {"lambda_reg": lambda_reg, "loss_type": loss_type, "temperature": 0.8, "learning_rate": 1e-3}
    trainer = study_trainer_of(policy, tmp_path, _Watching, max_steps=2, **options)
    trainer.train()
    rows = trainer.rollouts()
    assert rows["step"].tolist() == [1] * 16 + [2] * 16
    assert rows["token_weight"].abs().max() > 1e-4
    gradients = torch.cat([logps.grad.sum(dim=1) for logps in trainer.watched])
    tokens = torch.cat([mask.sum(dim=1) for mask in trainer.masks])
    assert rows["tokens"].tolist() == tokens.tolist()
    expected = -torch.tensor(rows["token_weight"].to_numpy()) * tokens
    torch.testing.assert_close(gradients.double(), expected, rtol=1e-4, atol=1e-7)
    assert ((rows["reward"] > 0) == rows["correct"]).all()
    if not lambda_reg:
        assert (rows["bonus"] == 0).all()
        return
    share = rows["bonus"].abs().sum() / (rows["bonus"].abs().sum() + rows["advantage"].abs().sum())
    shares = logged(trainer, "preference/share")
    assert min(shares) - 1e-6 <= share <= max(shares) + 1e-6


OPTIONS = [{"steps_per_generation": 2, "per_device_train_batch_size": 8}, {"num_iterations": 2}]


@pytest.mark.parametrize("options", OPTIONS, ids=["two steps a rollout", "reused"])
def test_a_group_is_the_completions_of_one_prompt(policy, tmp_path, options):  # noqa: F811
    trainer = study_trainer_of(policy, tmp_path, max_steps=4, learning_rate=1e-3, lambda_reg=0.0, **options)
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


# --- λ and pairs ---------------------------------------------------------------------------------------------------


def test_a_mixture_is_the_update_at_that_share_at_grpos_size(policy, tmp_path):  # noqa: F811
    options = {"preference_share": 0.4, "max_steps": 1}
    of_share, of_mixture = (
        sgd_gradient(study_trainer_of(policy, tmp_path, lambda_schedule=schedule, **options))
        for schedule in ("share", "mixture")
    )
    assert off_by(of_mixture, 0.6 * of_share) < 1e-5


def test_another_loss_takes_the_place_of_the_advantages(policy, tmp_path):  # noqa: F811
    """GRPO's own weights, at a share of 1, make GRPO's update; so do Dr. GRPO's of that method, up to its size."""
    alone = {"lambda_schedule": "mixture", "preference_share": 1.0, "reward_margin": 0.0, "max_steps": 1}
    plain = sgd_gradient(study_trainer_of(policy, tmp_path, lambda_reg=0.0, max_steps=1))
    grpo = sgd_gradient(study_trainer_of(policy, tmp_path, pair_loss="grpo", **alone))
    assert off_by(grpo, plain) < 1e-4
    unscaled = sgd_gradient(study_trainer_of(policy, tmp_path, lambda_reg=0.0, max_steps=1, scale_rewards="none"))
    centred = sgd_gradient(study_trainer_of(policy, tmp_path, pair_loss="dr_grpo", **alone))
    assert off_by(centred / centred.norm(), unscaled / unscaled.norm()) < 1e-4


@pytest.mark.parametrize("pair_loss", sorted(set(FAMILY) - {"amir", "grpo", "dr_grpo"}))
def test_a_loss_of_the_family_adds_its_share(policy, tmp_path, pair_loss):  # noqa: F811
    options = {"lambda_schedule": "share", "preference_share": 0.3, "reward_margin": 0.0, "beta_dpo": 1.0}
    trainer = study_trainer_of(policy, tmp_path, pair_loss=pair_loss, max_steps=1, **options)
    trainer.train()
    assert logged(trainer, "preference/share") == pytest.approx([0.3], rel=1e-4)


def test_published_schedule_falls_to_its_floor_in_four_steps(policy, tmp_path):  # noqa: F811
    options = {"lambda_schedule": "published", "lambda_reg": 0.01, "max_steps": 6, "learning_rate": 0.01}
    trainer = study_trainer_of(policy, tmp_path, **options)
    trainer.train()
    # the value of GRPO's loss is a rounding error of either sign, far below λ L_pref
    assert logged(trainer, "preference/lambda") == pytest.approx([0.01, 0.008, 0.0064, 0.00512, 0.005, 0.005])


@pytest.mark.parametrize("schedule", ["constant", "published", "share"])
def test_resumed_equals_uninterrupted(policy, tmp_path, schedule):  # noqa: F811
    run = {"max_steps": 4, "learning_rate": 0.1, "lambda_schedule": schedule}
    whole = study_trainer_of(policy, tmp_path, **run, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = study_trainer_of(policy, tmp_path, **run)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(parameters(resumed), parameters(whole))
    assert logged(resumed, "preference/lambda") == logged(whole, "preference/lambda")
    pd.testing.assert_frame_equal(resumed.rollouts(), whole.rollouts())


def test_published_rule():
    assert published_lambda(0.01, 0.69, 0.0) == pytest.approx(0.008)  # a loss of 0 makes the ratio enormous
    assert published_lambda(0.01, 0.69, -1.0) == pytest.approx(0.008)
    assert published_lambda(0.01, 0.69, 1.0) == pytest.approx(0.0125)
    assert published_lambda(0.01, 0.69, 0.0138) == 0.01  # ratio 0.5
    assert published_lambda(0.01, 0.69, 0.0069) == pytest.approx(0.008)  # ratio 1
    assert published_lambda(0.049, 0.69, 1.0) == 0.05
    assert published_lambda(0.005, 0.69, 0.0) == 0.005
    # at the bounds, which are exact in these numbers, it stays
    assert published_lambda(0.3, 1.0, 1.0) == 0.3
    assert published_lambda(0.7, 1.0, 1.0) == 0.7


@given(batches(), st.floats(0.05, 3.0), st.integers(0, 10_000))
def test_the_linear_pair_loss_has_plain_wins_minus_losses_for_weights(batch, beta, seed):
    rewards, group_size = batch
    generator = torch.Generator().manual_seed(seed)
    logps = torch.randn(len(rewards), generator=generator, dtype=torch.float64, requires_grad=True)
    pairs = mine_pairs(rewards, group_size)
    wins = [0] * len(rewards)
    for i, j in zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True):
        wins[i] += 1
        wins[j] -= 1
    expected = beta / 2 / max(len(pairs.chosen), 1) * torch.tensor(wins, dtype=torch.float64)
    weights, loss = linear_pair_loss(logps, pairs, beta)
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss, logps)
    torch.testing.assert_close(-gradient, expected, rtol=1e-9, atol=1e-12)


def test_permuted_rewards_are_those_of_the_group():
    rewards = torch.arange(32.0)
    mixed = permuted_within_groups(rewards, 8, np.random.default_rng(0))
    assert not torch.equal(mixed, rewards)
    assert torch.equal(mixed.view(4, 8).sort(dim=1).values, rewards.view(4, 8))
    permutations = (mixed.view(4, 8) - rewards.view(4, 8)[:, :1]).unique(dim=0)
    assert len(permutations) == 4, "each group is permuted in its own way"


@pytest.mark.parametrize(("setting", "value"), [("pair_mining", "permuted"), ("pair_loss", "linear")])
def test_a_rival_of_the_pairs_or_their_loss_is_what_the_trainer_weighs(policy, tmp_path, setting, value):  # noqa: F811
    trainer = study_trainer_of(policy, tmp_path, max_steps=1, **{setting: value})
    drawn, weigh = [], trainer._weigh

    def watched(seq_logps, pairs, *reference):
        drawn.append((pairs, *weigh(seq_logps, pairs, *reference), trainer._rewards))
        return drawn[-1][1:3]

    trainer._weigh = watched
    trainer.train()
    ((pairs, weights, _, rewards),) = drawn
    plain = mine_pairs(rewards, G, trainer.args.reward_margin)
    assert len(pairs.chosen) == len(plain.chosen) > 3, "permuted rewards make as many pairs"
    assert torch.equal(pairs.chosen, plain.chosen) == (setting == "pair_loss")
    shares = (weights * 2 * len(pairs.chosen) / trainer.args.beta_dpo).round(decimals=4)
    assert torch.equal(shares, shares.round()) == (setting == "pair_loss"), "wins minus losses are whole numbers"


# --- rewards -------------------------------------------------------------------------------------------------------

RIGHT = r"<think>1+2=3</think><answer>\boxed{3}</answer>"
WRONG = r"<think>1+2=5</think><answer>\boxed{5}</answer>"
COLUMNS = {"answer": [["3"]] * 4, "id": ["a", "a", "b", "b"], "trainer_state": SimpleNamespace(global_step=7)}
TEXTS = [RIGHT, WRONG, "no answer", WRONG]
MANY = {"answer": [["3"]] * 4000, "id": ["a"] * 4000, "trainer_state": SimpleNamespace(global_step=1)}


def scores(texts=TEXTS, columns=COLUMNS, **changes):
    """Rewards by the name of their function, in order."""
    config = trainer_config("grpo", settings_of("sandbox", changes), "out")
    functions = with_regime(reward_functions(), config)
    return {f.__name__: np.array(f(completions=texts, **columns)) for f in functions}


def total(**changes):
    return sum(scores(**changes).values())


def test_without_a_regime_the_reward_is_the_published_one():
    assert list(scores()) == ["correctness", "integer_answer", "strict_format", "xml_tags", "arithmetic_claims"]


def test_noise_is_uniform_within_its_size_and_the_same_for_every_arm_of_a_seed():
    regime = {"nuisance": "noise", "nuisance_size": 0.45}
    noise = scores([WRONG] * 4000, MANY, **regime)["nuisance"]
    assert np.abs(noise).max() <= 0.45
    assert abs(noise.mean()) < 4 * 0.45 / np.sqrt(3 * 4000)
    assert noise.std() == pytest.approx(0.45 / np.sqrt(3), rel=0.05)
    again, other = (
        scores([RIGHT] * 4000, MANY, **regime, **more)["nuisance"] for more in ({"beta_dpo": 1.0}, {"seed": 1})
    )
    assert np.array_equal(again, noise)
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.1


def test_outliers_come_at_their_rate():
    hit = scores([WRONG] * 4000, MANY, nuisance="outliers", nuisance_size=10.0)["nuisance"]
    assert set(np.unique(hit)) == {0.0, 10.0}
    assert (hit > 0).mean() == pytest.approx(1 / 16, abs=4 * np.sqrt(15 / 16**2 / 4000))


def test_a_clipped_reward_is_the_smaller_of_itself_and_the_bound():
    outliers = {"nuisance": "outliers", "nuisance_size": 10.0, "nuisance_rate": 0.5}
    plain = total(**outliers)
    assert plain.max() > 2.0
    assert total(**outliers, reward_clip=2.0) == pytest.approx(np.minimum(plain, 2.0))
    assert (scores(**outliers, reward_clip=2.0)["clip"] <= 0).all()


def test_format_and_partial_credit():
    assert scores(nuisance="format", nuisance_size=3.0)["nuisance"].tolist() == [3.0, 3.0, 0.0, 3.0]
    assert scores(nuisance="partial", nuisance_size=1.0)["nuisance"] == pytest.approx([1.0, 0.8, 0.0, 0.8])


def test_correctness_alone_counts_nothing_else_and_logs_all(policy, tmp_path):  # noqa: F811
    def other(completions, **columns):
        return [7.0 * (i % 2) for i in range(len(completions))]

    options = {"reward_terms": "correctness", "reward": [correctness, other], "lambda_reg": 0.0, "max_steps": 1}
    trainer = study_trainer_of(policy, tmp_path, **options)
    trainer.train()
    assert trainer.reward_weights.tolist() == [1.0, 0.0]
    assert logged(trainer, "rewards/other/mean") == [3.5]
    assert trainer.rollouts()["reward"].max() <= 1.5


def test_uniform_groups_get_no_advantage(policy, tmp_path):  # noqa: F811
    shape = {
        "max_steps": 4,
        "per_device_train_batch_size": 12,
        "num_generations": 2,
        "lambda_reg": 0.0,
        "learning_rate": 0.0,
    }
    kept, dropped = (study_trainer_of(policy, tmp_path, **shape, drop_uniform_groups=drop) for drop in (False, True))
    rows = []
    for trainer in (kept, dropped):
        trainer.train()
        rows.append(trainer.rollouts().sort_values(["group", "reward"], ignore_index=True))
    mixed = rows[0].groupby("group")["correct"].transform("nunique") == 2
    assert 0 < mixed.sum() < len(mixed)
    assert (rows[1]["advantage"] == rows[0]["advantage"].where(mixed, 0.0)).all()
    assert rows[0]["advantage"][~mixed].any(), "of several rewards that are all right"


@pytest.mark.parametrize(
    "changes",
    [
        {"nuisance": "noise", "lambda_schedule": "mixture", "preference_share": 0.6},
        {"pair_mining": "permuted", "lambda_schedule": "share"},
    ],
    ids=str,
)
def test_a_run_under_a_regime_logs_it(open_tiny, changes):
    run = open_tiny(**changes)
    log = run.train("amir_grpo")
    assert ("rewards/nuisance/mean" in log) == ("nuisance" in changes)
    rollouts = pd.read_parquet(run.folder / "amir_grpo" / study_trainer.ROLLOUTS_FILE)
    for _, rows in rollouts.groupby("step"):
        bonus, advantage = (rows[name].abs().sum() for name in ("bonus", "advantage"))
        assert bonus == 0 or bonus / (bonus + advantage) == pytest.approx(
            changes.get("preference_share", 0.3), rel=1e-4
        )
    assert rollouts["bonus"].any()


def test_the_settings_of_a_run_have_the_defaults_of_the_trainers_configuration():
    config, settings = StudyConfig("folder", use_cpu=True, bf16=False), settings_of("paper-qwen3b").flat()
    ours = StudyConfig.__annotations__.keys() - {"own_engine", "_pair_minings"}
    ours |= {"lambda_reg", "reward_margin", "beta_dpo", "pair_mining", "max_pairs_per_group", "ref_free"}
    assert {name: getattr(config, name) for name in ours} == {name: settings[name] for name in ours}
