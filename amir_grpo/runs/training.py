"""Train a policy by GRPO or AMIR-GRPO from the settings of a run: the two differ in the trainer's class and λ alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from transformers import PrinterCallback, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from amir_grpo.choices import METHODS, check_names
from amir_grpo.policies.loading import (
    compute_dtype,
    device,
    keep_trained_weights_in_float32,
    load_by_unsloth,
    load_policy,
    load_tokenizer,
    lora_config,
)
from amir_grpo.policies.source import Loading
from amir_grpo.rewards import reward_functions
from amir_grpo.settings import Settings
from amir_grpo.system.files import atomic_write, check_folder
from amir_grpo.system.processes import is_main, main_first
from amir_grpo.system.progress import progress_bar
from amir_grpo.trainer import AmirGRPOConfig, AmirGRPOTrainer, loss_mask, preference_factor

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from tqdm import tqdm

    from amir_grpo.policies.backend import Backend

# Settings that go to TRL's configuration under their own name.
_SHARED = (
    "learning_rate weight_decay max_grad_norm gradient_accumulation_steps max_steps seed lr_scheduler_type optim "
    "adam_beta1 adam_beta2 gradient_checkpointing num_generations max_completion_length loss_type epsilon epsilon_high "
    "mask_truncated_completions scale_rewards importance_sampling_level logging_steps report_to use_vllm vllm_mode "
    "vllm_server_base_url vllm_gpu_memory_utilization"
).split()
_PREFERENCE = (
    "lambda_reg reward_margin beta_dpo pair_mining max_pairs_per_group ref_free pair_loss lambda_schedule preference_share"
).split()


class _PromptLimit:
    """Keeps the meaning of TRL's former `max_prompt_length`: a longer prompt loses its beginning."""

    max_prompt_length: int

    def _tokenize_prompts(self, prompts: list):
        prompt_ids, *rest = super()._tokenize_prompts(prompts)
        return [ids[-self.max_prompt_length :] for ids in prompt_ids], *rest


class _RolloutRecord:
    """Keeps one row a completion that the loss has used: what it was worth, and what the update made of it.

    Columns: step (of the optimizer), tokens (that the loss sees), reward, correct (1 or 0), advantage (A_i), bonus
    (λ κ_i w_i, 0 for GRPO) and token_weight, what stands before the gradient of each token's log-probability in the
    update: (A_i + λ κ_i w_i) / (κ_i |o_i|), before clipping.
    """

    COLUMNS = ("step", "tokens", "reward", "correct", "advantage", "bonus", "token_weight")
    FILE = "rollouts.parquet"

    def rollouts(self) -> pd.DataFrame:
        """All rows so far, in the order of use."""
        rows = np.concatenate(self._rows()) if self._rows() else np.empty((0, len(self.COLUMNS)))
        kinds = {"step": int, "tokens": int, "correct": int}
        return pd.DataFrame(rows, columns=list(self.COLUMNS)).astype(kinds)

    def _rows(self) -> list[np.ndarray]:
        self.__dict__.setdefault("_recorded_rows", [])
        return self._recorded_rows

    def _calculate_rewards(self, *args, **kwargs):
        self._scores = super()._calculate_rewards(*args, **kwargs)  # (N, functions), over all processes
        return self._scores

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            local = len(output["advantages"])
            scores = self._scores[self.accelerator.process_index * local :][:local]
            output["reward"] = (scores * self.reward_weights.to(scores.device)).nansum(dim=1)
            output["correct"] = scores[:, self.reward_func_names.index("correctness")] > 0
        return output

    def compute_loss(self, model, inputs, *args, **kwargs):
        if "correct" in inputs:
            tokens, factor = loss_mask(inputs).sum(-1), preference_factor(self, inputs)
            advantage = inputs["advantages"]
            bonus = self.preference_bonus(inputs) if "preference_weights" in inputs else torch.zeros_like(advantage)
            weight = (advantage + bonus) / (factor * tokens.clamp(min=1))
            step = torch.full_like(advantage, self.state.global_step + 1)
            columns = (step, tokens, inputs["reward"], inputs["correct"], advantage, bonus, weight)
            rows = torch.stack([column.double() for column in columns], dim=1)
            self._rows().append(self.accelerator.gather(rows).cpu().numpy())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            atomic_write(folder / self.FILE, self.rollouts().to_parquet)  # the last file: the checkpoint is whole

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / self.FILE).is_file():
            self._rows().append(pd.read_parquet(Path(checkpoint) / self.FILE).to_numpy(dtype=float))


class _OrderOfEpochs:
    """Shuffles each epoch as an undisturbed training would, where it goes on from a checkpoint, too.

    TRL draws the orders of all epochs from one stream, which begins anew where a training does.
    """

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.add_callback(_EpochBegins(self))

    def _get_train_sampler(self, dataset=None):
        self.sampler = super()._get_train_sampler(dataset)
        return self.sampler


class _EpochBegins(TrainerCallback):
    """Puts the stream of orders to where it stands when an epoch begins."""

    def __init__(self, trainer: _OrderOfEpochs) -> None:
        self.trainer = trainer
        self.epoch: int | None = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch = int(state.epoch or 0) if self.epoch is None else self.epoch + 1
        sampler = self.trainer.sampler
        sampler.generator.manual_seed(sampler.seed)
        for _ in range(self.epoch):
            torch.randperm(sampler.num_samples, generator=sampler.generator)


class _RunGRPOTrainer(_PromptLimit, _OrderOfEpochs, _RolloutRecord, GRPOTrainer):
    pass


class _RunAmirGRPOTrainer(_PromptLimit, _OrderOfEpochs, _RolloutRecord, AmirGRPOTrainer):
    pass


class _Progress(TrainerCallback):
    """A progress bar with the reward, in place of a line of metrics for each step."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = progress_bar(
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
    accumulated = settings.gradient_accumulation_steps
    steps = math.lcm(settings.micro_batches, accumulated) // accumulated  # of a rollout
    on_cpu = device().type == "cpu"
    values |= {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.micro_batch,
        "steps_per_generation": settings.steps_per_generation,
        "warmup_steps": settings.warmup_ratio,  # below 1 it is a share of the steps
        "beta": 0.0,
        "use_cpu": on_cpu,
        "bf16": str(compute_dtype()) == "torch.bfloat16",
        "fp16": str(compute_dtype()) == "torch.float16",
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": -(-settings.save_steps // steps) * steps or 500,  # where a rollout ends: none is kept half used
        "save_total_limit": settings.save_total_limit,
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,  # every weight of the adapter is used
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if settings.gradient_checkpointing else None,
    }
    if method == "grpo":
        return GRPOConfig(**values)
    return AmirGRPOConfig(**values, **{name: getattr(settings, name) for name in _PREFERENCE})


def _last_whole_checkpoint(checkpoints: Path) -> Path | None:
    """The latest checkpoint that was written to its end; those that were cut off are removed."""
    with main_first():
        for folder in checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            if not (folder / _RolloutRecord.FILE).is_file():
                shutil.rmtree(folder)
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    return Path(last) if last else None


def _policy(settings: Settings, base: str, backend: Backend) -> tuple[Any, LoraConfig | None]:
    """The policy, and the adapter that TRL is to put on it: none where Unsloth has done so."""
    adapter = settings.lora_rank, settings.lora_alpha, settings.lora_targets
    loading = Loading(settings.load_in_4bit, settings.trust_remote_code, settings.safetensors_only)
    if backend.name == "transformers":
        policy = load_policy(base, loading=loading)
        return policy, lora_config(*adapter, policy)
    length, checkpointing = settings.max_seq_length, settings.gradient_checkpointing
    return load_by_unsloth(base, loading, lora_config(*adapter), length, checkpointing, settings.seed), None


def _bytes_to_come(policy: torch.nn.Module, config: GRPOConfig) -> int:
    """What the adapter and the checkpoints that are still to be written take on the disk, at most."""
    adapter = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    number = 0
    if config.save_strategy != "no":
        number = -(-config.max_steps // config.save_steps)
        if config.save_total_limit is not None:
            number = min(number, config.save_total_limit + 1)  # the oldest goes when the newest is there
    there = len(list(Path(config.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")))
    return adapter * (1 + 3 * max(0, number - there))  # with the two moments of Adam


@contextmanager
def _memory_said() -> Iterator[None]:
    """Turns CUDA's error where the GPU's memory runs out into one with the way out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            "The GPU's memory has run out in training. Divide per_device_train_batch_size and multiply\n"
            "gradient_accumulation_steps by the same: the rollouts and updates stay. `amir_grpo plan` shows what takes it."
        ) from error


def train(
    method: str, settings: Settings, base: str, problems: Dataset, folder: Path, backend: Backend
) -> pd.DataFrame:
    """Train a LoRA adapter on `base` and save it into `folder`; continue from its last checkpoint where there is one.

    Args:
        method: "grpo" or "amir_grpo".
        base: Hub id or folder of the base policy.
        problems: Columns prompt (chat messages) and answer.
        folder: Gets the adapter, rollouts.parquet (one row a completion that the loss has used: step, tokens, reward,
            correct, advantage, bonus, token_weight), and checkpoints under checkpoints/.
        backend: What loads the policy; it has been started.

    Raises:
        OSError: If the disk cannot hold the adapter and the checkpoints.
        MemoryError: If the GPU's memory runs out; checkpoints stay.

    Returns:
        TRL's log, one row a logging step, with the columns step, completions (of that step's rollout), reward,
        reward_std, preference/… and TRL's others.
    """
    checkpoints = folder / "checkpoints"
    config = trainer_config(method, settings, checkpoints)
    last = _last_whole_checkpoint(checkpoints)
    state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)) if last else None
    if state and state.global_step >= config.max_steps:  # transformers would train a step more
        if is_main():
            for path in last.iterdir():
                if path.is_file() and not path.name.startswith(_OF_CHECKPOINTS):
                    shutil.copy2(path, folder / path.name)
    else:
        state = _train(method, settings, config, base, problems, folder, last, backend)
    # by name: a resumed training reads its rows back from a checkpoint, in another order
    log = pd.DataFrame([row for row in state.log_history if "loss" in row]).sort_index(axis=1)
    log.insert(0, "completions", config.generation_batch_size)
    log.insert(0, "step", log.pop("step"))
    log.insert(0, "method", method)
    return log


# How the files begin that a checkpoint holds beside those of a trained policy.
_OF_CHECKPOINTS = ("trainer_state", "optimizer", "scheduler", "scaler", "rng_state")


def _train(
    method: str,
    settings: Settings,
    config: GRPOConfig,
    base: str,
    problems: Dataset,
    folder: Path,
    last: Path | None,
    backend: Backend,
) -> TrainerState:
    """Train from the base, or from checkpoint `last`, to the end, and save adapter and rollouts into `folder`."""
    trainer = run_trainer(method, settings, config, base, problems, backend)
    trainer.add_callback(_Progress(method))
    check_folder(folder, "run_dir", _bytes_to_come(trainer.model, config))
    with _memory_said():
        trainer.train(resume_from_checkpoint=last and str(last))
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        atomic_write(folder / trainer.FILE, trainer.rollouts().to_parquet)
    return trainer.state


def run_trainer(
    method: str, settings: Settings, config: GRPOConfig, base: str, problems: Dataset, backend: Backend
) -> GRPOTrainer:
    """The trainer of a run, with the policy and a fresh adapter loaded; arguments as of `train` and `trainer_config`."""
    set_seed(settings.seed)  # before the adapter is drawn, so that both methods start from the same one
    trainer_class = _RunGRPOTrainer if method == "grpo" else _RunAmirGRPOTrainer
    tokenizer = load_tokenizer(base, settings.trust_remote_code)  # small, and tells what cannot be trained
    policy, lora = _policy(settings, base, backend)
    trainer = trainer_class(
        model=policy,
        reward_funcs=reward_functions(settings.calibration),
        args=config,
        train_dataset=problems,
        processing_class=tokenizer,
        peft_config=lora,
    )
    if config.fp16:
        keep_trained_weights_in_float32(trainer.model)
    trainer.max_prompt_length = settings.max_prompt_length
    trainer.remove_callback(PrinterCallback)
    return trainer
