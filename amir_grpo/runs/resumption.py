"""Resume a training so that it ends as if it had never been interrupted, and see that the disk holds its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from trl import GRPOConfig

from amir_grpo.runs.rollout_record import RolloutRecord
from amir_grpo.system.files import first_damaged
from amir_grpo.system.processes import main_first


class OrderOfEpochs:
    """A trainer's mixin that shuffles each epoch as an uninterrupted training would, also after a checkpoint.

    TRL draws the orders of all epochs from one stream, which starts afresh whenever a training is resumed.
    """

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.add_callback(_EpochBegins(self))

    def _get_train_sampler(self, dataset=None):
        self.sampler = super()._get_train_sampler(dataset)
        return self.sampler


class _EpochBegins(TrainerCallback):
    """Moves the stream of orders to where it has to be when an epoch begins."""

    def __init__(self, trainer: OrderOfEpochs) -> None:
        self.trainer = trainer
        self.epoch: int | None = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch = int(state.epoch or 0) if self.epoch is None else self.epoch + 1
        sampler = self.trainer.sampler
        sampler.generator.manual_seed(sampler.seed)
        for _ in range(self.epoch):
            torch.randperm(sampler.num_samples, generator=sampler.generator)


def last_whole_checkpoint(checkpoints: Path) -> Path | None:
    """The latest checkpoint that was written to its end and is as it was written.

    Those that were cut off are removed; so are damaged ones, which are named.
    """
    with main_first():
        for folder in checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            if not (folder / RolloutRecord.FILE).is_file():
                shutil.rmtree(folder)
        while (last := _last(checkpoints)) and (damaged := first_damaged(last)):
            print(
                f"{last / damaged} is damaged: its SHA-256 has changed. Taking the checkpoint before it.", flush=True
            )
            shutil.rmtree(last)
    return _last(checkpoints)


def _last(checkpoints: Path) -> Path | None:
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    return Path(last) if last else None


def name_the_cpu_as_torch_does(config: GRPOConfig) -> None:
    """Call the device of several processes on a CPU "cpu": accelerate numbers it, and torch.load knows no "cpu:0"."""
    if config.device.type == "cpu":
        config.__dict__["_setup_devices"] = torch.device("cpu")  # where the configuration keeps it


def bytes_to_come(policy: torch.nn.Module, config: GRPOConfig) -> int:
    """Disk space, in bytes, of what a training still writes: the adapter, and in each checkpoint adapter and optimizer.

    The optimizer is taken to keep two moments in the precision of the weights. The rollout record, the tokenizer and the
    states beside them, small where an adapter is large, are not counted.
    """
    adapter = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    number = 0
    if config.save_strategy != "no":
        number = -(-config.max_steps // config.save_steps)
        if config.save_total_limit is not None:
            number = min(number, config.save_total_limit + 1)  # the oldest goes when the newest is there
    there = len(list(Path(config.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")))
    return adapter * (1 + 3 * max(0, number - there))
