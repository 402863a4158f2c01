"""The lists of valid names, each in one place, and the refusal of all others.

Nothing is imported but the standard library: the command line and the figures read these lists without waiting for torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

METHODS = ("grpo", "amir_grpo")
POLICIES = ("base", *METHODS)
# What tables, figures, reports and model cards call them.
POLICY_NAMES = {"base": "Base", "grpo": "GRPO", "amir_grpo": "AMIR-GRPO"}

# The policies that are made on the spot, and the training sets made for them; what comes with the package of the first.
SANDBOXES = (SANDBOX, SANDBOX_MEDIUM, SANDBOX_LARGE) = ("sandbox", "sandbox-medium", "sandbox-large")
PARAMETERS = {SANDBOX: "0.1M", SANDBOX_MEDIUM: "1M", SANDBOX_LARGE: "26M"}  # of the policies
BASE_POLICIES = 6
SMOLLM2 = "smollm2"  # a language model of 135M parameters, which the package index has
STORIES = "stories"  # the training set that is made for it

# What the study behind the claims has: exploratory runs, and those of its frozen tests.
STUDIES = ("pilot", "confirmation")

# the preference term
PAIR_MINING = ("all", "topk", "permuted")
PAIR_LOSSES = ("logistic", "linear")
LAMBDA_SCHEDULES = ("constant", "published", "share", "mixture")

# GRPO, by TRL's names; the loss types are those for which the preference term's factor is known
LOSS_TYPES = ("grpo", "sapo", "dr_grpo", "bnpo", "dapo", "cispo", "vespo", "luspo")
SCALE_REWARDS = ("group", "batch", "none")
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")

# what the reward of a run holds beside the published functions
NUISANCES = ("none", "noise", "outliers", "format", "partial")
REWARD_TERMS = ("all", "correctness")

# the machinery
BACKENDS = ("auto", "unsloth", "transformers")
ENGINES = ("transformers", "vllm")
EVAL_ENGINES = ("auto", *ENGINES)
VLLM_MODES = ("colocate", "server")
DTYPES = ("auto", "float64")
DEVICES = ("auto", "cpu")
TRACKERS = ("none", "trackio", "wandb", "tensorboard")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# The significance level of every test whose result is called clear.
SIGNIFICANCE = 0.05

_CLOSEST = 4  # names that a message gives in place of a long list


def check_names(kind: str, names: Iterable[str], valid: Iterable[str], listed: str = "") -> None:
    """Refuse names that are not valid; the message gives the nearest valid name, and all of them or where they are listed.

    Args:
        kind: What they name, for the message: "profile", "benchmark", "loss_type".
        names: The names to check.
        valid: The names that there are.
        listed: Where all are listed, of names that are too many for a message: it gives the closest few instead.

    Raises:
        ValueError: If one of `names` is not in `valid`.
    """
    valid = list(valid)
    for name in names:
        if name not in valid:
            nearest = difflib.get_close_matches(str(name), valid, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"Unknown {kind} {name!r}.{hint}\n{_valid(str(name), valid, listed)}")


def _valid(name: str, valid: list[str], listed: str) -> str:
    if not listed:
        return f"Valid: {', '.join(valid)}."
    closest = ", ".join(difflib.get_close_matches(name, valid, n=_CLOSEST, cutoff=0.4))
    return (f"Closest: {closest}. " if closest else "") + f"All of them: {listed}"
