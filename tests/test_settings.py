"""Profiles: the published settings typed again from the paper's table, and what is refused."""

from dataclasses import fields

import pytest

from amir_grpo.settings import PROFILES, differences, settings_of

PUBLISHED = {
    "lora_rank": 16,
    "lora_alpha": 16,
    "load_in_4bit": False,
    "learning_rate": 5e-6,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.1,
    "max_grad_norm": 0.1,
    "optim": "adamw_8bit",
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "num_generations": 8,
    "max_prompt_length": 1024,
    "max_completion_length": 1024,
    "epsilon": 0.2,
    "epsilon_high": None,
    "max_steps": 1000,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "seed": 0,
    "loss_type": "grpo",
    "lambda_reg": 0.01,
    "reward_margin": 2.0,
    "beta_dpo": 0.2,
    "pair_mining": "all",
    "max_pairs_per_group": None,
    "ref_free": True,
    "num_samples": 8,
    "eval_temperature": 0.6,
    "eval_top_p": 1.0,
    "eval_max_new_tokens": 1024,
    "ks": [1, 2, 4],
}
PAPER_POLICIES = {
    "paper-qwen3b": "Qwen/Qwen2.5-3B-Instruct",
    "paper-qwen7b": "Qwen/Qwen2.5-7B-Instruct",
    "paper-gemma4b": "google/gemma-3-4b-it",
}


def refusal(profile="paper-qwen3b", **overrides):
    with pytest.raises(ValueError) as caught:
        settings_of(profile, overrides)
    return str(caught.value)


# --- what the profiles say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "model_name"), PAPER_POLICIES.items())
def test_paper_profile_is_as_published(profile, model_name):
    settings = settings_of(profile)
    assert settings.policy.model_name == model_name
    assert {name: settings.flat()[name] for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_rollouts_by_vllm_reach_trl(tmp_path, mode):
    from amir_grpo.runs import training

    changes = {"use_vllm": True, "vllm_mode": mode, "vllm_server_base_url": "http://node1:8000"}
    changes |= {"vllm_gpu_memory_utilization": 0.4, "report_to": "tensorboard"}
    on_gpu = {"dtype": "auto", "device": "auto"}
    config = training.trainer_config("amir_grpo", settings_of("sandbox", changes | on_gpu), tmp_path)
    assert {name: getattr(config, name) for name in changes if name != "report_to"} == {
        name: value for name, value in changes.items() if name != "report_to"
    }
    assert config.report_to == ["tensorboard"]
    grpo = training.trainer_config("grpo", settings_of("sandbox", changes | on_gpu), tmp_path)
    for each in (config, grpo):  # else whole completions, and their preferences, would be dropped
        assert each.vllm_importance_sampling_correction
        assert each.vllm_importance_sampling_mode == "token_truncate"


def test_paper_settings_reach_trl(tmp_path):
    from amir_grpo.runs import training

    config = training.trainer_config("amir_grpo", settings_of("paper-qwen3b"), tmp_path)
    for name in set(PUBLISHED) & {field.name for field in fields(type(config))}:
        if name not in ("per_device_train_batch_size", "epsilon_high"):
            assert getattr(config, name) == PUBLISHED[name], name
    assert config.get_warmup_steps(1000) == 100
    assert config.temperature == 1.0
    assert config.beta == 0.0
    # a batch of 1 cannot hold a group of 8: what Unsloth made of it, 8 × 4 accumulation steps
    assert (config.per_device_train_batch_size, config.generation_batch_size) == (8, 32)


def test_methods_differ_in_the_preference_alone(tmp_path):
    from amir_grpo.runs import training

    grpo, amir = (
        training.trainer_config(method, settings_of("sandbox"), tmp_path).to_dict() for method in ("grpo", "amir_grpo")
    )
    assert {name for name in grpo if grpo[name] != amir[name]} - {"logging_dir"} == {"lambda_reg"}
    assert grpo["lambda_reg"] == 0


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid(profile):
    assert settings_of(profile).policy.is_sandbox == (profile.startswith("sandbox") or profile == "smoke")


# --- overriding -----------------------------------------------------------------------------------------------------


def test_overriding_changes_just_that():
    changed = settings_of("sandbox", {"learning_rate": 1e-4, "epsilon_high": 0.28, "ks": [1, 8], "eval_limit": None})
    assert differences(settings_of("sandbox"), changed) == {
        "learning_rate": (1e-3, 1e-4),
        "epsilon_high": (None, 0.28),
        "ks": ([1, 2, 4], [1, 8]),
        "eval_limit": (200, None),
    }
    assert settings_of("sandbox", {}) == settings_of("sandbox", None) == settings_of("sandbox")


def test_profiles_do_not_share_their_lists():
    settings_of("paper-qwen3b").evaluation.ks.append(8)
    assert settings_of("paper-qwen3b").evaluation.ks == [1, 2, 4]


def test_a_setting_that_one_side_lacks_counts_as_its_default():
    assert differences({"seed": 0}, {"epsilon": 0.3}) == {"epsilon": (0.2, 0.3)}
    assert differences({"gone": 3}, {"epsilon": 0.2}) == {"gone": (3, None)}


# --- refusals -------------------------------------------------------------------------------------------------------


NAN, INF = float("nan"), float("inf")
WRONG_TYPES = {
    "max_steps": ["10", 10.0, None, True],
    "learning_rate": ["5e-6", None],
    "load_in_4bit": ["false", 0],
    "model_name": [None],
    "epsilon_high": ["0.28"],
    "benchmarks": [3, [1], None],
    "ks": [1.0, ["1"], [True, 2]],
}
IMPOSSIBLE = {  # one for each kind of bound, and every setting of the preference
    "learning_rate": [0.0, NAN, INF],
    "lora_rank": [0],
    "seed": [-1],
    "warmup_ratio": [1.0],
    "adam_beta2": [1.01],
    "epsilon_high": [0.0, INF],
    "lambda_reg": [-0.01, NAN],
    "reward_margin": [-1.0, INF],
    "beta_dpo": [0.0, NAN],
    "num_generations": [1],
    "max_pairs_per_group": [0],
    "dataset_limit": [0],
    "max_seq_length": [2047],
    "num_samples": [3],
    "ks": [[], [0], [9], [1, 1]],
    "benchmarks": [["gsm8k", "gsm8k"]],
    "eval_top_p": [1.01],
    "pair_mining": ["hard", ""],
    "preference_share": [1.1],
    "scale_rewards": ["None"],
    "loss_type": ["GRPO"],
}


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in WRONG_TYPES.items() for v in values])
def test_a_wrong_type_is_refused(name, value):
    message = refusal(**{name: value})
    assert message.startswith(f"{name} is {value!r}; it must be a valid ")


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in IMPOSSIBLE.items() for v in values])
def test_an_impossible_value_is_refused_by_name(name, value):
    message = refusal(**{name: value})
    assert name in message
    assert repr(value) in message
