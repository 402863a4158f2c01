"""The settings of a run in TRL's terms: the configuration of one training."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from amir_grpo.choices import METHODS, check_names
from amir_grpo.config import use_one_gpu
from amir_grpo.policies.loading import compute_dtype, device
from amir_grpo.policies.source import Loading
from amir_grpo.preference_settings import PreferenceSettings
from amir_grpo.settings import Settings
from amir_grpo.trainer import AmirGRPOConfig

# Settings that go to TRL's configuration under their own name.
_SHARED = (
    "learning_rate weight_decay max_grad_norm gradient_accumulation_steps max_steps seed lr_scheduler_type optim "
    "adam_beta1 adam_beta2 gradient_checkpointing num_generations max_completion_length loss_type epsilon epsilon_high "
    "mask_truncated_completions scale_rewards importance_sampling_level logging_steps report_to use_vllm vllm_mode "
    "vllm_server_base_url vllm_gpu_memory_utilization"
).split()
_PREFERENCE = [setting.name for setting in fields(PreferenceSettings)]


@dataclass
class _BaselineConfig(GRPOConfig):
    """GRPO's configuration with the constructor of a dataclass, as `AmirGRPOConfig` has it.

    Unsloth gives `GRPOConfig` a constructor of its own, which overrules what it is given (scale_rewards of dr_grpo,
    epsilon_high of dapo and cispo, vLLM's importance sampling, …). The baseline alone would be changed.
    """


def steps_per_rollout(settings: Settings) -> int:
    """Optimizer steps after which a rollout and a step end together."""
    accumulated = settings.gradient_accumulation_steps
    return math.lcm(settings.micro_batches, accumulated) // accumulated


def trainer_config(method: str, settings: Settings, folder: Path) -> GRPOConfig:
    """TRL's configuration for one method of a run, with checkpoints in `folder`.

    Raises:
        ValueError: If the method is unknown.
    """
    check_names("method", [method], METHODS)
    values: dict[str, Any] = {name: getattr(settings, name) for name in _SHARED}
    steps = steps_per_rollout(settings)
    loading = Loading.of(settings)
    on_cpu = device(loading).type == "cpu"
    values |= {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.micro_batch,
        "steps_per_generation": settings.steps_per_generation,
        "warmup_steps": settings.warmup_ratio,  # below 1 it is a share of the steps
        "beta": 0.0,
        "use_cpu": on_cpu,
        "bf16": str(compute_dtype(loading)) == "torch.bfloat16",
        "fp16": str(compute_dtype(loading)) == "torch.float16",
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": -(-settings.save_steps // steps) * steps or 500,  # where a rollout ends: none is kept half used
        "save_total_limit": settings.save_total_limit,
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,  # every weight of the adapter is used
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if settings.gradient_checkpointing else None,
        # TRL's own mode multiplies all tokens of a completion by one ratio, without bound from below, and drops those
        # above 3: the weights of a group's preferences would no longer sum to 0
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
    }
    if method == "grpo":
        config = _BaselineConfig(**values)
    else:
        config = AmirGRPOConfig(**values, **{name: getattr(settings, name) for name in _PREFERENCE})
    use_one_gpu(config)
    return config
