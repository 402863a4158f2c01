"""What a setting may be: the lists of valid names, each in one place, bounds, and the refusal of all else.

Nothing is imported but the standard library: the command line and the figures read these lists without waiting for torch.
"""

from __future__ import annotations

import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

METHODS = ("grpo", "amir_grpo")
POLICIES = ("base", *METHODS)
# What tables, figures, reports and model cards call them.
POLICY_NAMES = {"base": "Base", "grpo": "GRPO", "amir_grpo": "AMIR-GRPO"}

# The policies that are made on the spot, and the training sets made for them; what comes with the package of the first.
SANDBOXES = (SANDBOX, SANDBOX_MEDIUM, SANDBOX_LARGE) = ("sandbox", "sandbox-medium", "sandbox-large")
PARAMETERS = {SANDBOX: "0.1M", SANDBOX_MEDIUM: "1M", SANDBOX_LARGE: "26M"}  # of the policies
BASE_POLICIES = 6

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


@dataclass(frozen=True)
class Bounds:
    """Where the value of a setting may lie, as its declaration says: `Annotated[float, Bounds(above=0)]`."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def hold(self, value: float) -> bool:
        """Whether a value lies within; NaN does not."""
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        words = (
            ("above", self.above),
            ("at least", self.at_least),
            ("below", self.below),
            ("at most", self.at_most),
        )
        return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)


# evaluates the annotations of a dataclass, which takes milliseconds; not to be changed by who asks
declared_types = functools.cache(typing.get_type_hints)


def check_types(settings: Any, declared: type) -> None:
    """Refuse values that are not of the types that their settings declare.

    Args:
        settings: Holds the values, as attributes.
        declared: A dataclass.

    Raises:
        ValueError: If one is not, with its name, its value and the type.
    """
    for name, kind in declared_types(declared).items():
        _check_type(name, getattr(settings, name), kind)


def _check_type(name: str, value: Any, kind: Any) -> None:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for option in options:
        if typing.get_origin(option) is list:
            (item,) = typing.get_args(option)
            if isinstance(value, list) and value and all(type(entry) is item for entry in value):
                return
        elif isinstance(value, bool):  # a bool is an int to Python, not to a reader of settings
            if option is bool:
                return
        elif isinstance(value, (int, float) if option is float else option):
            return
    wanted = str(kind).replace("<class '", "").replace("'>", "")
    raise ValueError(f"{name} is {value!r}; it must be of type {wanted}.")


def check_values(settings: Any, declared: type) -> None:
    """Refuse values that the declarations of their settings rule out.

    Args:
        settings: Holds the values, as attributes.
        declared: A dataclass; the bounds stand in the types of its fields (`Annotated[float, Bounds(above=0)]`), the valid
            names under "choices" in their metadata.

    Raises:
        ValueError: If a number is not finite or out of its bounds, a name is not among the choices, or a list names
            something twice. The message names the setting, its value and what is valid.
    """
    kinds = declared_types(declared, include_extras=True)
    for setting in fields(declared):
        name, value = setting.name, getattr(settings, setting.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; it must be finite.")
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError(f"{name} is {value}; name each once.")
        if "choices" in setting.metadata:
            check_names(name, [value], setting.metadata["choices"])
        for bounds in getattr(kinds[name], "__metadata__", ()):
            if value is not None and not bounds.hold(value):
                may_be_none = type(None) in typing.get_args(typing.get_args(kinds[name])[0])
                wanted = f"leave it None, or give a value {bounds}" if may_be_none else f"it must be {bounds}"
                raise ValueError(f"{name} is {value}; {wanted}.")
