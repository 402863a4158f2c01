"""The values that a setting may take, each list in one place, and how a name that is on none of them is refused.

Nothing is imported but the standard library: the command line and the figures read these lists without waiting for torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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
