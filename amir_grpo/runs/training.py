"""Train a policy by GRPO or AMIR-GRPO from the settings of a run: the two differ in the trainer's class and λ alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from transformers import PrinterCallback, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOConfig, GRPOTrainer

from amir_grpo.microbatches import TrimmedMicroBatches
from amir_grpo.policies.float64 import round_to_float32
from amir_grpo.policies.loading import (
    check_padding,
    free_memory,
    is_sharded,
    keep_trained_weights_in_float32,
    load_by_unsloth,
    load_policy,
    load_tokenizer,
    lora_config,
)
from amir_grpo.policies.source import copy_policy
from amir_grpo.runs.drawn_rollouts import DrawnRollouts, draw_adapter
from amir_grpo.runs.regimes import UniformGroupsDropped, rewards_of
from amir_grpo.runs.resumption import OrderOfEpochs, bytes_to_come, last_whole_checkpoint, name_the_cpu_as_torch_does
from amir_grpo.runs.rollout_record import RolloutRecord
from amir_grpo.runs.trl_config import trainer_config
from amir_grpo.settings import RunSettings
from amir_grpo.system.files import atomic_write, check_folder
from amir_grpo.system.processes import is_main
from amir_grpo.system.progress import progress_bar
from amir_grpo.trainer import AmirGRPOTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from tqdm import tqdm

    from amir_grpo.policies.backend import Backend


class _PromptLimit:
    """Keeps the meaning of TRL's former `max_prompt_length`: a longer prompt loses its beginning."""

    max_prompt_length: int

    def _tokenize_prompts(self, prompts: list):
        prompt_ids, *rest = super()._tokenize_prompts(prompts)
        return [ids[-self.max_prompt_length :] for ids in prompt_ids], *rest


class _RewardsInThePolicysPrecision:
    """Takes the rewards' means and deviations in float64 where the policy computes in it; TRL's are in float32."""

    def _calculate_rewards(self, *args, **kwargs):
        return super()._calculate_rewards(*args, **kwargs).to(torch.promote_types(torch.float32, self.model.dtype))


class _OfARun(
    _PromptLimit, OrderOfEpochs, RolloutRecord, UniformGroupsDropped, _RewardsInThePolicysPrecision, DrawnRollouts
):
    """What the trainers of both methods have in a run."""


class _RunGRPOTrainer(_OfARun, TrimmedMicroBatches, GRPOTrainer):
    pass


class _RunAmirGRPOTrainer(_OfARun, AmirGRPOTrainer):
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

    def close(self) -> None:
        if self.bar:
            self.bar.close()


def _policy(settings: RunSettings, base: str, backend: Backend) -> tuple[Any, LoraConfig | None]:
    """The policy, and the adapter that TRL is to put on it: none where Unsloth has done so."""
    if backend.name == "unsloth":
        train = settings.train
        return load_by_unsloth(base, settings.policy, train.gradient_checkpointing, train.seed), None
    policy = load_policy(base, None, settings.policy)
    return policy, lora_config(settings.policy, policy)


@contextmanager
def explain_full_gpu() -> Iterator[None]:
    """Turns CUDA's out-of-memory error into one that names the way out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            "The GPU's memory has run out in training. Divide per_device_train_batch_size and multiply\n"
            "gradient_accumulation_steps by as much: rollouts and updates stay the same. `amir_grpo plan` shows the rest."
        ) from error


def train(
    method: str, settings: RunSettings, base: str, problems: Dataset, folder: Path, backend: Backend
) -> pd.DataFrame:
    """Train a LoRA adapter on `base` and save it into `folder`; continue from its last checkpoint where there is one.

    Args:
        method: "grpo" or "amir_grpo".
        base: Hub id or folder of the base policy.
        problems: Columns prompt (chat messages) and answer.
        folder: Gets the adapter, rollouts.parquet (one row per completion that the loss has used: step, group, tokens,
            reward, correct, advantage, bonus, token_weight), and checkpoints under checkpoints/.
        backend: What loads the policy; it has been started.

    Raises:
        OSError: If the disk cannot hold the adapter and the checkpoints.
        MemoryError: If the GPU's memory runs out; checkpoints stay.

    Returns:
        TRL's log, one row per logging step, with the columns step, completions (of that step's rollout), reward,
        reward_std, preference/… and TRL's others.
    """
    checkpoints = folder / "checkpoints"
    config = trainer_config(method, settings, checkpoints)
    last = last_whole_checkpoint(checkpoints)
    state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)) if last else None
    if state and state.global_step >= config.max_steps:  # transformers would train a step more
        if is_main():
            copy_policy(last, folder)
            round_to_float32(folder / WEIGHTS)
            for name in ("README.md", "training_args.bin", RolloutRecord.FILE):  # as the end of a training saves them
                shutil.copy2(last / name, folder / name)
    else:
        state = _train(method, settings, config, base, problems, folder, last, backend)
    # by name: a resumed training reads its rows back from a checkpoint, in another order
    log = pd.DataFrame([row for row in state.log_history if "loss" in row]).sort_index(axis=1)
    log.insert(0, "completions", config.generation_batch_size)
    log.insert(0, "step", log.pop("step"))
    log.insert(0, "method", method)
    return log


def _train(
    method: str,
    settings: RunSettings,
    config: GRPOConfig,
    base: str,
    problems: Dataset,
    folder: Path,
    last: Path | None,
    backend: Backend,
) -> TrainerState:
    """Train from the base, or from checkpoint `last`, to the end, and save adapter and rollouts into `folder`."""
    trainer = run_trainer(method, settings, config, base, problems, backend)
    progress = _Progress(method)
    trainer.add_callback(progress)
    check_folder(folder, "run_dir", bytes_to_come(trainer.model, config))
    name_the_cpu_as_torch_does(config)
    try:
        with explain_full_gpu():
            trainer.train(resume_from_checkpoint=last and str(last))
    finally:
        progress.close()  # before anything is said about what has ended it
    trainer.processing_class.padding_side = "left"  # Unsloth has changed it, and what is saved goes with the policy
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        round_to_float32(folder / WEIGHTS)  # a checkpoint holds them as they are: what is resumed has lost no digit
        atomic_write(folder / trainer.FILE, trainer.rollouts().to_parquet)
    state = trainer.state
    del trainer
    free_memory()  # a trainer refers to itself, and would keep its policy until Python happens to look
    return state


def run_trainer(
    method: str, settings: RunSettings, config: GRPOConfig, base: str, problems: Dataset, backend: Backend
) -> GRPOTrainer:
    """The trainer of a run, with the policy and a fresh adapter loaded; arguments as in `train` and `trainer_config`."""
    set_seed(settings.train.seed)  # before the adapter is drawn, so that both methods start from the same one
    trainer_class = _RunGRPOTrainer if method == "grpo" else _RunAmirGRPOTrainer
    tokenizer = load_tokenizer(base, settings.policy.trust_remote_code)  # small, and tells what cannot be trained
    if backend.name == "unsloth":
        check_padding(tokenizer)
    policy, lora = _policy(settings, base, backend)
    functions, config.reward_weights = rewards_of(settings)
    trainer = trainer_class(
        model=policy,
        reward_funcs=functions,
        args=config,
        train_dataset=problems,
        processing_class=tokenizer,
        peft_config=lora,
    )
    if config.fp16 or settings.policy.load_in_4bit:
        keep_trained_weights_in_float32(trainer.model)
    if backend.name == "transformers":  # else Unsloth has ways of its own
        draw_adapter(trainer.model, settings.train.seed)
        # where each process holds a part of the policy, TRL draws
        trainer.draws_rollouts = not settings.train.use_vllm and not is_sharded()
    trainer.max_prompt_length = settings.data.max_prompt_length
    trainer.drop_uniform_groups = settings.study.drop_uniform_groups
    trainer.remove_callback(PrinterCallback)
    return trainer
