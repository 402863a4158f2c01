"""Train a policy by GRPO or AMIR-GRPO from the settings of a run: the two differ in the trainer's class and λ alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from amir_grpo.policy import compute_dtype, device, load_policy, load_tokenizer, lora_config
from amir_grpo.profiles import METHODS, Settings, check_names
from amir_grpo.rewards import reward_functions
from amir_grpo.trainer import AmirGRPOConfig, AmirGRPOTrainer

if TYPE_CHECKING:
    from datasets import Dataset

# Settings that go to TRL's configuration under their own name.
_SHARED = (
    "learning_rate weight_decay max_grad_norm gradient_accumulation_steps max_steps seed lr_scheduler_type optim "
    "adam_beta1 adam_beta2 gradient_checkpointing num_generations max_completion_length loss_type epsilon epsilon_high "
    "mask_truncated_completions scale_rewards importance_sampling_level logging_steps report_to"
).split()
_PREFERENCE = (
    "lambda_reg reward_margin beta_dpo pair_mining max_pairs_per_group ref_free lambda_schedule preference_share"
).split()


class _PromptLimit:
    """Keeps the meaning of TRL's former `max_prompt_length`: a longer prompt loses its beginning."""

    max_prompt_length: int

    def _tokenize_prompts(self, prompts: list):
        prompt_ids, *rest = super()._tokenize_prompts(prompts)
        return [ids[-self.max_prompt_length :] for ids in prompt_ids], *rest


class _LimitedGRPOTrainer(_PromptLimit, GRPOTrainer):
    pass


class _LimitedAmirGRPOTrainer(_PromptLimit, AmirGRPOTrainer):
    pass


class _Progress(TrainerCallback):
    """A progress bar with the reward, in place of a line of metrics for each step."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", mininterval=2
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar and logs and "reward" in logs:
            self.bar.set_postfix(reward=f"{logs['reward']:.2f}", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar:
            self.bar.close()


def trainer_config(method: str, settings: Settings, folder: Path) -> GRPOConfig:
    """TRL's configuration for one method of a run, with checkpoints in `folder`.

    Raises:
        ValueError: If the method is unknown.
    """
    check_names("method", [method], METHODS)
    values: dict[str, Any] = {name: getattr(settings, name) for name in _SHARED}
    rollout = settings.per_device_train_batch_size * (
        settings.steps_per_generation or settings.gradient_accumulation_steps
    )
    whole_groups = rollout % settings.num_generations == 0
    on_cpu = device().type == "cpu"
    values |= {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.per_device_train_batch_size
        if whole_groups
        else settings.num_generations,
        "steps_per_generation": settings.steps_per_generation,
        "warmup_steps": settings.warmup_ratio,  # below 1 it is a share of the steps
        "beta": 0.0,
        "use_cpu": on_cpu,
        "bf16": str(compute_dtype()) == "torch.bfloat16",
        "fp16": str(compute_dtype()) == "torch.float16",
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
    }
    if method == "grpo":
        return GRPOConfig(**values)
    return AmirGRPOConfig(**values, **{name: getattr(settings, name) for name in _PREFERENCE})


def train(method: str, settings: Settings, base: str, problems: Dataset, folder: Path) -> pd.DataFrame:
    """Train a LoRA adapter on `base` and save it into `folder`; continue from its last checkpoint where there is one.

    Args:
        method: "grpo" or "amir_grpo".
        base: Hub id or folder of the base policy.
        problems: Columns prompt (chat messages) and answer.
        folder: Gets the adapter, and checkpoints under checkpoints/.

    Returns:
        TRL's log, one row a logging step, with the columns step, completions (of that step's rollout), reward,
        reward_std, preference/… and TRL's others.
    """
    set_seed(settings.seed)  # before the adapter is drawn, so that both methods start from the same one
    checkpoints = folder / "checkpoints"
    config = trainer_config(method, settings, checkpoints)
    trainer_class = _LimitedGRPOTrainer if method == "grpo" else _LimitedAmirGRPOTrainer
    trainer = trainer_class(
        model=load_policy(base, load_in_4bit=settings.load_in_4bit),
        reward_funcs=reward_functions(settings.calibration),
        args=config,
        train_dataset=problems,
        processing_class=load_tokenizer(base),
        peft_config=lora_config(settings.lora_rank, settings.lora_alpha),
        callbacks=[_Progress(method)],
    )
    trainer.max_prompt_length = settings.max_prompt_length
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(folder))
    log = pd.DataFrame([row for row in trainer.state.log_history if "loss" in row])
    log.insert(0, "completions", config.generation_batch_size)
    log.insert(0, "step", log.pop("step"))
    log.insert(0, "method", method)
    return log
