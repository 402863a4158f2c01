"""The backend that loads and speeds up the policy in training: Unsloth where it runs, else transformers with PEFT."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

from amir_grpo.system.processes import world_size

_INSTALL = "pip install -e '.[gpu]' (Linux, NVIDIA GPU)"


@dataclass(frozen=True)
class Backend:
    """A backend and the reason for choosing it, as a run records them.

    Attributes:
        name: unsloth or transformers.
        why: The reason, in one clause.
    """

    name: str
    why: str


def start_backend(wanted: str) -> Backend:
    """Choose the backend, and import Unsloth if that is the one: it has to come before TRL, whose classes it rewrites.

    Call this before anything imports `amir_grpo.runs.training` or `amir_grpo.trainer`; a run does.

    Args:
        wanted: One of `amir_grpo.choices.BACKENDS`; auto takes Unsloth where it is installed, a GPU is there and one
            process trains.

    Raises:
        ValueError: If Unsloth is asked for and cannot be used; the message gives the way out.
    """
    if wanted == "transformers":
        return Backend("transformers", "asked for")
    obstacle = _obstacle(wanted) or _import_error()
    if obstacle is None:
        return Backend("unsloth", "asked for" if wanted == "unsloth" else "installed, and a GPU is there")
    if wanted == "unsloth":
        raise ValueError(
            f"backend='unsloth' cannot be had: {obstacle[0]}.\n{obstacle[1]} Or set backend to transformers."
        )
    return Backend("transformers", obstacle[0])


def import_early(wanted: str) -> None:
    """Import Unsloth if `start_backend` will choose it, before transformers and PEFT, which it also speeds up.

    An obstacle is reported by `start_backend`, when a training begins.
    """
    if wanted != "transformers" and _obstacle(wanted) is None:
        _import_error()


def _obstacle(wanted: str) -> tuple[str, str] | None:
    """Why Unsloth cannot be imported, and what would help; None where nothing prevents it."""
    if importlib.util.find_spec("unsloth") is None:
        return "Unsloth is not installed", f"Install it: {_INSTALL}."
    if wanted == "auto":
        import torch

        if not torch.cuda.is_available():
            return "no GPU is visible", "Set backend to unsloth for its CPU backend."
        if world_size() > 1:
            return "several processes train, by DDP, FSDP or ZeRO", "Set backend to unsloth to have it in each."
    if "trl" in sys.modules and "unsloth" not in sys.modules:
        return (
            "trl was imported first",
            "Start a new process (restart the kernel) and open the run before importing trl.",
        )
    return None


def _import_error() -> tuple[str, str] | None:
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # it runs much code of its own on import, which can fail in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"importing it failed ({lines[0][:150]})", f"Reinstall it: {_INSTALL}."
    return None
