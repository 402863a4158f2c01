"""The settings of a run in TRL's terms: the configuration of one training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from trl import GRPOConfig

from amir_grpo.choices import METHODS, check_names
from amir_grpo.config import use_one_gpu
from amir_grpo.policies.loading import compute_dtype, device
from amir_grpo.preference_settings import PREFERENCE
from amir_grpo.settings import RunSettings
from amir_grpo.trainer import AmirGRPOConfig


@dataclass
class _BaselineConfig(GRPOConfig):
    """GRPO's configuration with the constructor of a dataclass, as `AmirGRPOConfig` has it.

    Unsloth gives `GRPOConfig` a constructor of its own, which overrules what it is given (scale_rewards of dr_grpo,
    epsilon_high of dapo and cispo, vLLM's importance sampling, …). The baseline alone would be changed.
    """


def steps_per_rollout(settings: RunSettings) -> int:
    """Optimizer steps after which a rollout and a step end together."""
    accumulated = settings.train.gradient_accumulation_steps
    return math.lcm(settings.train.micro_batches, accumulated) // accumulated


def trainer_config(method: str, settings: RunSettings, folder: Path) -> GRPOConfig:
    """TRL's configuration for one method of a run, with checkpoints in `folder`.

    Raises:
        ValueError: If the method is unknown.
    """
    check_names("method", [method], METHODS)
    values = {name: value for name, value in settings.train.model_dump().items() if name not in PREFERENCE}
    steps = steps_per_rollout(settings)
    loading = settings.policy
    on_cpu = device(loading).type == "cpu"
    values |= {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.train.micro_batch,
        "warmup_steps": settings.train.warmup_ratio,  # below 1 it is a share of the steps
        "beta": 0.0,
        "use_cpu": on_cpu,
        "bf16": str(compute_dtype(loading)) == "torch.bfloat16",
        "fp16": str(compute_dtype(loading)) == "torch.float16",
        "save_strategy": "steps" if settings.train.save_steps else "no",
        "save_steps": -(-settings.train.save_steps // steps) * steps
        or 500,  # where a rollout ends: none is kept half used
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,  # every weight of the adapter is used
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if settings.train.gradient_checkpointing else None,
        # TRL's own mode multiplies all tokens of a completion by one ratio, without bound from below, and drops those
        # above 3: the weights of a group's preferences would no longer sum to 0
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
    }
    if method == "grpo":
        config = _BaselineConfig(**values)
    else:
        config = AmirGRPOConfig(
            **values, **{name: value for name, value in settings.flat().items() if name in PREFERENCE}
        )
    use_one_gpu(config)
    return config
