"""AmirGRPOConfig: TRL's `GRPOConfig` with the settings of the preference term."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.utils import logging
from trl import GRPOConfig

from amir_grpo.preference_settings import PREFERENCE, PreferenceSettings
from amir_grpo.settings import RunSettings

logger = logging.get_logger(__name__)


@dataclass
class AmirGRPOConfig(PreferenceSettings, GRPOConfig):
    """Configuration of `AmirGRPOTrainer`: every setting of TRL's `GRPOConfig`, and those of the preference term.

    The defaults of the latter are the published settings of arXiv 2601.03661.

    Under Unsloth, which gives TRL's `GRPOConfig` other defaults and overrules some values, this class keeps TRL's. To
    compare with GRPO there, give `trl.GRPOTrainer` an `AmirGRPOConfig`, too: it ignores the preference term.

    Raises:
        ValueError: If a setting of the preference term is out of bounds.
    """

    # True by default: the same update for less time and memory, and the rounding of sums is all that changes
    trim_micro_batches: bool = field(
        default=True,
        metadata={
            "help": "Sort the rows of an optimizer step by length and run them through the policy in slices without "
            "the padding that they do not need. The gradient is the same up to rounding, for policies whose positions "
            "are relative (RoPE). False leaves micro-batches as TRL makes them, bit for bit."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        RunSettings.of({name: getattr(self, name) for name in PREFERENCE})


def use_one_gpu(args: TrainingArguments) -> None:
    """Keep a process to one GPU: transformers would spread it over all that it sees (nn.DataParallel).

    Batches would then be larger than the configuration says, and the preference term's weight wrong. Processes that a
    launcher has started have one GPU each already.
    """
    if args.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible; this process trains on the first. To train on all: accelerate launch.", args.n_gpu
        )
        args._n_gpu = 1
