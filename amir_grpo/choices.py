"""The values that a setting may take, each list in one place, and how a name that is on none of them is refused.

Nothing is imported but the standard library: the command line and the figures read these lists without waiting for torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

METHODS = ("grpo", "amir_grpo")
POLICIES = ("base", *METHODS)
# What tables, figures, reports and model cards call them.
POLICY_NAMES = {"base": "Base", "grpo": "GRPO", "amir_grpo": "AMIR-GRPO"}

# the preference term
PAIR_MINING = ("all", "topk")
PAIR_LOSSES = ("logistic", "linear")
LAMBDA_SCHEDULES = ("constant", "published", "share")

# GRPO, by TRL's names; the loss types are those for which the preference term's factor is known
LOSS_TYPES = ("grpo", "sapo", "dr_grpo", "bnpo", "dapo", "cispo", "vespo", "luspo")
SCALE_REWARDS = ("group", "batch", "none")
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")

# the machinery
BACKENDS = ("auto", "unsloth", "transformers")
ENGINES = ("transformers", "vllm")
VLLM_MODES = ("colocate", "server")
TRACKERS = ("none", "trackio", "wandb", "tensorboard")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# The significance level of every test whose result is called clear.
SIGNIFICANCE = 0.05


def check_names(kind: str, names: Iterable[str], valid: Iterable[str]) -> None:
    """Refuse names that are not valid; the message gives the nearest valid name and all of them.

    Args:
        kind: What they name, for the message: "profile", "benchmark", "loss_type".
        names: The names to check.
        valid: The names that there are.

    Raises:
        ValueError: If one of `names` is not in `valid`.
    """
    valid = list(valid)
    for name in names:
        if name not in valid:
            nearest = difflib.get_close_matches(str(name), valid, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"Unknown {kind} {name!r}.{hint}\nValid: {', '.join(valid)}.")


@dataclass(frozen=True)
class Bounds:
    """Where the value of a setting may lie: `Annotated[float, Bounds(above=0)]`."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Refuse a value outside; None, where a setting may be None, is inside.

        Raises:
            ValueError: Naming the setting, its value and the bounds.
        """
        inside = value is None or (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )
        if not inside:
            raise ValueError(f"{name} is {value}; it must be {self}.")

    def __str__(self) -> str:
        words = (
            ("above", self.above),
            ("at least", self.at_least),
            ("below", self.below),
            ("at most", self.at_most),
        )
        return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)
