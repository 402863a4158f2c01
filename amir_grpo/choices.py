"""Lists of valid names, each in one place, and checks that refuse all others.

Only the standard library is imported, so that the command line and the figures do not wait for torch.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

if typing.TYPE_CHECKING:
    from pydantic import ValidationError

METHODS = ("grpo", "amir_grpo")
POLICIES = ("base", *METHODS)
# Their names in tables, figures, reports and model cards.
POLICY_NAMES = {"base": "Base", "grpo": "GRPO", "amir_grpo": "AMIR-GRPO"}

# Policies that are made on the spot, and the training sets made for them.
SANDBOXES = (SANDBOX, SANDBOX_MEDIUM, SANDBOX_LARGE) = ("sandbox", "sandbox-medium", "sandbox-large")
SMOLLM2 = "smollm2"  # a language model of 135M parameters, from the package index
STORIES = "stories"  # the training set made for it

# The studies behind the claims: exploratory runs, runs of the frozen tests, runs of a second frozen plan with base
# policies that nobody selected, related methods, and a language model, three times. "…pilot" is exploratory.
STUDIES = ("pilot", "confirmation", "fresh", "family", "language", "language-2", "language-3")

# the preference term
PAIR_MINING = ("all", "topk", "permuted")
# "logistic" is the paper's; "group_pairs" and all below are in `amir_grpo.family`
PAIR_LOSSES = (
    "logistic",
    "linear",
    "group_pairs",
    "ranks",
    "infonce",
    "listwise",
    "real",
    "grpo",
    "dr_grpo",
    "two",
)
LAMBDA_SCHEDULES = ("constant", "published", "share", "mixture")

# GRPO, with TRL's names; LOSS_TYPES are those with a known factor for the preference term
LOSS_TYPES = ("grpo", "sapo", "dr_grpo", "bnpo", "dapo", "cispo", "vespo", "luspo")
SCALE_REWARDS = ("group", "batch", "none")
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")

# the study's changes to the reward
NUISANCES = ("none", "noise", "outliers", "format", "partial")
REWARD_TERMS = ("all", "correctness")

# backends and hardware
BACKENDS = ("auto", "unsloth", "transformers")
ENGINES = ("transformers", "vllm")
EVAL_ENGINES = ("auto", *ENGINES)
VLLM_MODES = ("colocate", "server")
DTYPES = ("auto", "bfloat16", "float64")
DEVICES = ("auto", "cpu")
TRACKERS = ("none", "trackio", "wandb", "tensorboard")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# The significance level at which results are called clear.
SIGNIFICANCE = 0.05

_CLOSEST = 4  # names that a message shows instead of a long list


def check_names(kind: str, names: Iterable[str], valid: Iterable[str], listed: str = "") -> None:
    """Refuse invalid names; the message suggests the closest valid one, and lists all or says where they are listed.

    Args:
        kind: Kind of the names, for the message: "profile", "benchmark", "loss_type".
        names: The names to check.
        valid: The valid names.
        listed: Where the valid names are listed, if they are too many for a message, which then gives the closest few.

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


def names_of(kind: Any) -> list[str]:
    """Return the names that a Literal, or a union with one, allows; no names for other types."""
    literals = (each for each in (kind, *typing.get_args(kind)) if typing.get_origin(each) is typing.Literal)
    return [name for each in literals for name in typing.get_args(each)]


def refusal(error: ValidationError, given: Mapping[str, Any], annotation_of: Callable[[str], Any]) -> ValueError:
    """Turn pydantic's first error into one that gives the name and value of the setting.

    Args:
        error: An error about settings.
        given: Their values by name.
        annotation_of: Returns the type of a setting by its name.
    """
    first = error.errors(include_url=False)[0]
    name = next((part for part in first["loc"] if part in given), None)
    if name is None:  # incompatible settings
        return ValueError(str(first["ctx"]["error"]))
    if first["type"] == "literal_error":
        check_names(name, [given[name]], names_of(annotation_of(name)))
    wanted = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    return ValueError(f"{name} is {given[name]!r}; {wanted}.")
