"""Train a policy with GRPO or AMIR-GRPO from the settings of a run; the two differ only in λ."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from amir_grpo.choices import METHODS, check_names
from amir_grpo.doctor import LEAST_STEPS, diagnose
from amir_grpo.policies.engines import stream
from amir_grpo.policies.float64 import round_to_float32
from amir_grpo.policies.loading import (
    check_padding,
    compute_dtype,
    device,
    free_memory,
    keep_trained_weights_in_float32,
    load_by_unsloth,
    load_policy,
    load_tokenizer,
    lora_config,
)
from amir_grpo.policies.source import copy_policy
from amir_grpo.rewards import reward_functions
from amir_grpo.runs.study_trainer import ROLLOUTS_FILE, WATCHED_FILE, StudyConfig, StudyTrainer
from amir_grpo.settings import RunSettings
from amir_grpo.system.files import first_damaged
from amir_grpo.system.processes import is_main, main_first
from amir_grpo.system.progress import stage

if TYPE_CHECKING:
    from datasets import Dataset

    from amir_grpo.policies.backend import Backend


def train(
    method: str,
    settings: RunSettings,
    base: str,
    problems: Dataset,
    folder: Path,
    backend: Backend,
    watched: Dataset | None = None,
) -> pd.DataFrame:
    """Train a LoRA adapter on `base` and save it into `folder`, continuing from its last checkpoint if there is one.

    Args:
        method: "grpo" or "amir_grpo".
        base: Hub id or folder of the base policy.
        problems: Columns prompt (chat messages) and answer.
        folder: Gets the adapter, rollouts.parquet (see `StudyTrainer.rollouts`), and checkpoints under checkpoints/.
        backend: The backend that loads the policy, already started.
        watched: Problems whose completions are drawn every `eval_steps` steps, into watched.parquet; None for none.

    Raises:
        MemoryError: If the GPU's memory runs out; checkpoints are kept.
        RuntimeError: If no step has changed the adapter.

    Returns:
        TRL's log, one row per logging step, with the columns step, completions (of that step's rollout), reward,
        reward_std, preference/… and TRL's others.
    """
    checkpoints = folder / "checkpoints"
    config = trainer_config(method, settings, checkpoints, backend.name)
    last = last_whole_checkpoint(checkpoints)
    state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)) if last else None
    if state and state.global_step >= config.max_steps:  # transformers would train one more step
        if is_main():
            copy_policy(last, folder)
            round_to_float32(folder / WEIGHTS)
            watched_file = [WATCHED_FILE] if (last / WATCHED_FILE).exists() else []
            for name in ("README.md", "training_args.bin", ROLLOUTS_FILE, *watched_file):  # as after a training
                shutil.copy2(last / name, folder / name)
    else:
        trainer = run_trainer(settings, config, base, problems, backend, watched)
        state = _train_to_the_end(trainer, method, folder, last)
        del trainer
        free_memory()  # a trainer refers to itself, and would keep its policy until the garbage is collected
    # columns sorted by name: a resumed training reads them from a checkpoint in another order
    log = pd.DataFrame([row for row in state.log_history if "loss" in row]).sort_index(axis=1)
    log.insert(0, "completions", config.generation_batch_size)
    log.insert(0, "step", log.pop("step"))
    log.insert(0, "method", method)
    if is_main():
        check_adapter(folder / WEIGHTS, log)
    return log


def _train_to_the_end(trainer: StudyTrainer, method: str, folder: Path, last: Path | None) -> TrainerState:
    """Train from the base, or from checkpoint `last`, and save adapter and rollouts into `folder`."""
    args, done = trainer.args, int(last.name.rpartition("-")[2]) if last else 0
    args.eval_on_start = args.eval_on_start and not last
    if args.device.type == "cpu":  # with several processes accelerate makes it "cpu:0", which torch.load refuses
        args.__dict__["_setup_devices"] = torch.device("cpu")  # where it is cached
    shown = stage(f"training {method}", args.max_steps, done) if is_main() else nullcontext(lambda **shown: None)
    try:
        with shown as tick:
            trainer.add_callback(steps := _Steps(trainer, tick))
            trainer.train(resume_from_checkpoint=last and str(last))
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            "The GPU's memory has run out in training. Divide per_device_train_batch_size and multiply\n"
            "gradient_accumulation_steps by as much: rollouts and updates stay the same. `amir_grpo plan` shows the rest."
        ) from error
    if steps.skipped and is_main():
        print(f"The loss scaler of float16 has skipped {steps.skipped} of {args.max_steps - done} steps.", flush=True)
    trainer.processing_class.padding_side = "left"  # Unsloth has changed it, and it is saved with the policy
    trainer.save_model(str(folder))
    if is_main():
        round_to_float32(folder / WEIGHTS)  # checkpoints are not rounded, so that a resumed training loses no digit
        trainer.write_records(folder)
    return trainer.state


def check_adapter(weights: Path, log: pd.DataFrame) -> None:
    """Refuse an untrained adapter, in which the second matrix of each pair is still zero.

    Raises:
        RuntimeError: If no step has changed a weight.
    """
    if any(weight.any() for name, weight in load_file(weights).items() if "lora_B" in name):
        return
    why = "Gradients that are not finite in float16, or a tiny learning rate: take bfloat16, or raise learning_rate."
    if (log["frac_reward_zero_std"] == 1).all():
        why = "No group had unequal rewards: take problems that the policy gets right now and then."
    raise RuntimeError(f"{weights} is untrained: no step has changed a weight.\n{why}")


# --- trainer and policy -----------------------------------------------------------------------------------------


def steps_per_rollout(settings: RunSettings) -> int:
    """Return the number of optimizer steps after which a rollout and a step end together."""
    accumulated = settings.train.gradient_accumulation_steps
    return math.lcm(settings.train.micro_batches, accumulated) // accumulated


def trainer_config(method: str, settings: RunSettings, folder: Path, backend: str = "transformers") -> StudyConfig:
    """Return the trainer's configuration for one method of a run, with checkpoints in `folder`.

    Raises:
        ValueError: If the method is unknown.
    """
    check_names("method", [method], METHODS)
    train, steps = settings.train, steps_per_rollout(settings)
    dtype, on_cpu = compute_dtype(settings.policy), device(settings.policy).type == "cpu"
    derived = {
        "output_dir": str(folder),
        "per_device_train_batch_size": train.micro_batch,
        "warmup_steps": train.warmup_ratio,  # below 1 it is a share of the steps
        "beta": 0.0,
        "use_cpu": on_cpu,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "save_strategy": "steps" if train.save_steps else "no",
        "save_steps": -(-train.save_steps // steps) * steps or 500,  # at the end of a rollout: none is half used
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,  # every weight of the adapter is used
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if train.gradient_checkpointing else None,
        # TRL's default mode multiplies all tokens of a completion by one ratio without a lower bound, and drops those
        # above 3: the preference weights of a group would no longer sum to 0
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "max_prompt_length": settings.data.max_prompt_length,
        "own_engine": backend == "transformers",  # Unsloth generates in its own way
    }
    if method == "grpo":
        derived["lambda_reg"] = 0.0
    given = train.model_extra or {}  # TRL's options by name, which override a run's choices
    if given.get("eval_steps"):
        whole_groups = max(train.micro_batch // train.num_generations, 1) * train.num_generations
        derived |= {"eval_strategy": "steps", "eval_on_start": True, "per_device_eval_batch_size": whole_groups}
    return StudyConfig(**train.model_dump() | settings.study.model_dump() | derived | given)


def run_trainer(
    settings: RunSettings,
    config: StudyConfig,
    base: str,
    problems: Dataset,
    backend: Backend,
    watched: Dataset | None = None,
) -> StudyTrainer:
    """Return the trainer of a run, with the policy and a fresh adapter loaded; arguments as in `train`."""
    set_seed(settings.train.seed)  # before the adapter is drawn, so that both methods start from the same one
    tokenizer = load_tokenizer(base, settings.policy.trust_remote_code)  # small, and may refuse the policy
    if by_unsloth := backend.name == "unsloth":
        check_padding(tokenizer)
        train = settings.train
        policy = load_by_unsloth(base, settings.policy, train.gradient_checkpointing, train.seed)
    else:
        policy = load_policy(base, None, settings.policy)
    trainer = StudyTrainer(
        model=policy,
        reward_funcs=reward_functions(settings.data.calibration, settings.data.claims),
        args=config,
        train_dataset=problems,
        eval_dataset=watched,
        processing_class=tokenizer,
        peft_config=None if by_unsloth else lora_config(settings.policy, policy),
    )
    if config.fp16 or settings.policy.load_in_4bit:
        keep_trained_weights_in_float32(trainer.model)
    if not by_unsloth:
        draw_adapter(trainer.model, settings.train.seed)
    trainer.remove_callback(PrinterCallback)
    return trainer


@torch.no_grad()
def draw_adapter(policy: torch.nn.Module, seed: int) -> None:
    """Redraw the initial weights of a LoRA adapter: PEFT's distribution, from numbers that are the same everywhere.

    torch draws other numbers in another precision, and possibly in another build. Weights that another process holds
    (on the meta device, or split by ZeRO-3) stay as they are.
    """
    for name, weight in policy.named_parameters():
        if ".lora_A." in name and not weight.is_meta and not hasattr(weight, "ds_id"):
            # like kaiming_uniform_ with a = √5, but without a multiplication that could be fused with an addition
            numbers = np.random.Generator(np.random.PCG64(stream(seed, "adapter", name))).random(tuple(weight.shape))
            drawn = (numbers * 2 - 1) / np.sqrt(weight.shape[1])
            weight.copy_(torch.from_numpy(drawn.astype(np.float32)))


class _Steps(TrainerCallback):
    """Callback that shows each step with the latest reward, and counts steps skipped by the loss scaler of float16.

    It warns once about each symptom that keeps a training from learning (`amir_grpo.doctor`).
    """

    def __init__(self, trainer: StudyTrainer, tick: Callable[..., None]) -> None:
        self.accelerator, self.tick = trainer.accelerator, tick
        self.skipped, self.shown, self.warned = 0, {}, set()

    def on_step_end(self, args, state, control, **kwargs):
        self.skipped += self.accelerator.optimizer_step_was_skipped
        self.tick(**self.shown)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "reward" in logs:
            self.shown = {"reward": f"{logs['reward']:.2f}"}
            rows = [row for row in state.log_history if "reward" in row]
            if state.is_world_process_zero and len(rows) % LEAST_STEPS == 0:
                self._warn(pd.DataFrame(rows))

    def _warn(self, log: pd.DataFrame) -> None:
        for finding in diagnose(log):
            if finding.stops and finding.name not in self.warned:
                self.warned.add(finding.name)
                print(f"After {len(log)} logged steps: {finding.symptom} {finding.remedy}", flush=True)


# --- checkpoints ------------------------------------------------------------------------------------------------


def last_whole_checkpoint(checkpoints: Path) -> Path | None:
    """Return the latest checkpoint that is complete and undamaged; None if there is none.

    Incomplete checkpoints are removed, and so are damaged ones, with a message.
    """
    last = None
    with main_first():
        for folder in checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            if not (folder / ROLLOUTS_FILE).is_file():
                shutil.rmtree(folder)
        while (
            checkpoints.is_dir()
            and (last := get_last_checkpoint(checkpoints))
            and (damaged := first_damaged(Path(last)))
        ):
            print(
                f"{last}/{damaged} is damaged: its SHA-256 has changed. Taking the checkpoint before it.", flush=True
            )
            shutil.rmtree(last)
    return Path(last) if last else None
