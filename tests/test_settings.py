"""Profiles: the published settings typed again from the paper's table, and what is refused."""

from dataclasses import fields

import pytest

from amir_grpo.settings import FIELDS, PROFILES, differences, help_of, settings_of

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


def test_profiles_are_those_wanted_and_valid():
    assert list(PROFILES) == [
        "smoke",
        "sandbox",
        "sandbox-medium",
        "sandbox-large",
        "smollm2",
        "colab-t4",
        *PAPER_POLICIES,
    ]
    for profile in PROFILES:
        settings_of(profile)
    assert settings_of("sandbox").train.lambda_reg == 0.01
    assert settings_of("sandbox").policy.is_sandbox
    assert not settings_of("colab-t4").policy.is_sandbox


def test_every_setting_says_what_it_is():
    for name in FIELDS:
        assert help_of(name).endswith("."), name


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


def test_unknown_profile_is_refused():
    message = refusal("sandbx")
    assert "'sandbx'" in message
    assert "Did you mean 'sandbox'?" in message
    for name in PROFILES:
        assert name in message


def test_unknown_setting_is_refused():
    message = refusal(lamda_reg=0.1)
    assert "Did you mean 'lambda_reg'?" in message
    assert message.endswith("All of them: python -m amir_grpo train --help")
    assert len(message) < 300


def test_rollouts_by_vllm_from_4_bits_are_refused():
    assert "set one of them to False" in refusal(use_vllm=True, load_in_4bit=True)


def test_unknown_method_is_refused(tmp_path):
    from amir_grpo.runs import training

    with pytest.raises(ValueError, match=r"Did you mean 'amir_grpo'\?\nValid: grpo, amir_grpo\."):
        training.trainer_config("amirgrpo", settings_of("sandbox"), tmp_path)


def test_unknown_benchmark_is_refused(tmp_path):
    from amir_grpo.runs.run import open_run

    with pytest.raises(ValueError, match=r"Unknown benchmark 'aime52'. Did you mean 'aime25'\?\nValid: chain3.*gsm8k"):
        open_run("paper-qwen3b", tmp_path, {"benchmarks": ["gsm8k", "aime52"]})
    with pytest.raises(ValueError, match=r"Unknown training set 'gsm9k'. Did you mean 'gsm8k'\?"):
        open_run("paper-qwen3b", tmp_path, {"dataset_name": "gsm9k"})
    assert not list(tmp_path.iterdir())


NAN, INF = float("nan"), float("inf")
WRONG_TYPES = {
    "max_steps": ["10", 10.0, None, True],
    "learning_rate": ["5e-6", None, False, [1e-3]],
    "load_in_4bit": ["false", 0, 1, None],
    "ref_free": ["yes", 1],
    "model_name": [None, 3],
    "dataset_limit": ["all", 2.5, True],
    "epsilon_high": ["0.28", True],
    "benchmarks": [3, [1], ("gsm8k",), None],
    "ks": [1.0, ["1"], [1.0], [True, 2], (1, 2)],
}
IMPOSSIBLE = {
    "learning_rate": [0.0, -1e-3, NAN, INF],
    "weight_decay": [-0.1, NAN, INF],
    "max_grad_norm": [0.0, -1.0],
    "lora_rank": [0, -16],
    "max_steps": [0, -1],
    "seed": [-1],
    "save_steps": [-1],
    "logging_steps": [0],
    "warmup_ratio": [-0.1, 1.0, 1.5, NAN],
    "adam_beta1": [-0.1, 1.0],
    "adam_beta2": [1.0, 1.01],
    "epsilon": [0.0, -0.2, NAN],
    "epsilon_high": [0.0, -0.2, NAN, INF],
    "lambda_reg": [-0.01, NAN, INF],
    "reward_margin": [-1.0, NAN, INF],
    "beta_dpo": [0.0, -0.2, NAN, INF],
    "num_generations": [0, 1, -8],
    "per_device_train_batch_size": [0, -1],
    "gradient_accumulation_steps": [0],
    "steps_per_generation": [0, -2],
    "max_pairs_per_group": [0, -1],
    "dataset_limit": [0, -5],
    "eval_limit": [0, -5],
    "max_prompt_length": [0, -1],
    "max_completion_length": [0, -1],
    "max_seq_length": [0, 2047],
    "num_samples": [0, 3],
    "ks": [[], [0], [-1, 2], [9], [1, 1]],
    "benchmarks": [["gsm8k", "gsm8k"]],
    "eval_temperature": [0.0, -0.6, NAN, INF],
    "eval_top_p": [0.0, 1.01, NAN],
    "pair_mining": ["hard", ""],
    "lambda_schedule": ["Constant", "linear"],
    "preference_share": [0.0, 1.1, -0.3, NAN],
    "scale_rewards": ["std", "None"],
    "importance_sampling_level": ["tokens"],
    "loss_type": ["ppo", "GRPO"],
    "report_to": ["mlflow", "all"],
}


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in WRONG_TYPES.items() for v in values])
def test_a_wrong_type_is_refused(name, value):
    message = refusal(**{name: value})
    assert message.startswith(f"{name} is {value!r}; it must be of type ")


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in IMPOSSIBLE.items() for v in values])
def test_an_impossible_value_is_refused_by_name(name, value):
    message = refusal(**{name: value})
    assert name in message
    assert str(value) in message or repr(value) in message


def test_a_rollout_of_broken_groups_is_refused():
    message = refusal(per_device_train_batch_size=6, gradient_accumulation_steps=2)
    assert "rollout of 12 completions" in message
    assert "num_generations = 8" in message
    settings_of("paper-qwen3b", {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4})


def test_more_tokens_than_fit_are_refused():
    message = refusal(max_completion_length=1025)
    assert "max_prompt_length + max_completion_length is 2049, above max_seq_length = 2048" in message
    assert settings_of("paper-qwen3b", {"max_completion_length": 1025, "max_seq_length": 2049})


def test_lists_may_come_as_text():
    """As papermill -p gives them."""
    settings = settings_of("sandbox", {"benchmarks": "chain3 chain4", "ks": "1,2"})
    assert (settings.evaluation.benchmarks, settings.evaluation.ks) == (["chain3", "chain4"], [1, 2])
