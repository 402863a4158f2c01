"""The backend that loads the policy and speeds up its training: Unsloth where it runs, else transformers with PEFT."""

from __future__ import annotations

import atexit
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass

from amir_grpo.system.files import install_command
from amir_grpo.system.processes import world_size

_INSTALL = f"{install_command('gpu')} (Linux, NVIDIA GPU)"
# Unsloth rewrites TRL with regular expressions, differently in each version: 2026.10.7 normalises bnpo like dapo, and
# breaks an evaluation that follows a training in one process. Only this version's gradients are tested.
UNSLOTH_VERSION = "2026.10.9"


@dataclass(frozen=True)
class Backend:
    """A backend (unsloth or transformers) and, in one clause, the reason for choosing it; a run records both."""

    name: str
    why: str


def start_backend(wanted: str) -> Backend:
    """Choose the backend, and import Unsloth if chosen: it must come before TRL, whose classes it rewrites.

    Args:
        wanted: unsloth, transformers or auto: Unsloth if it is installed, a GPU is visible and one process trains.

    Raises:
        ValueError: If Unsloth is requested and cannot be used, or transformers is chosen after Unsloth was imported.
    """
    obstacle = ("asked for", "") if wanted == "transformers" else _obstacle(wanted) or _import_error()
    if obstacle is None:
        return Backend("unsloth", "asked for" if wanted == "unsloth" else "installed, and a GPU is there")
    why, out = obstacle
    if wanted == "unsloth":
        raise ValueError(f"backend='unsloth' cannot be used: {why}.\n{out} Or set backend to transformers.")
    if _has_rewritten_trl():
        raise ValueError(
            f"backend='transformers' ({why}) cannot be used: this process has imported Unsloth, which has rewritten TRL.\n"
            "Restart the kernel, and set backend from the start."
        )
    return Backend("transformers", why)


def _has_rewritten_trl() -> bool:
    """Return whether Unsloth has rewritten TRL, whose trainer then adds no adapter and would train all weights."""
    unsloth = sys.modules.get("unsloth")
    if unsloth is None:  # after a failed import, Python forgets the package but not its modules
        return any(name.startswith("unsloth.") for name in sys.modules)
    return getattr(unsloth, "DEVICE_TYPE", "cuda") != "cpu"  # its CPU backend leaves TRL unchanged


def import_early(wanted: str) -> None:
    """Import Unsloth before transformers and PEFT if `start_backend`, which reports any error, will choose it."""
    if wanted != "transformers" and _obstacle(wanted) is None:
        _import_error()


def _obstacle(wanted: str) -> tuple[str, str] | None:
    """Return why Unsloth cannot be imported, and a remedy; None if nothing prevents it."""
    if importlib.util.find_spec("unsloth") is None:
        return "Unsloth is not installed", f"Install it: {_INSTALL}."
    for package in ("unsloth", "unsloth_zoo"):
        if (version := _version(package)) != UNSLOTH_VERSION:
            return (
                f"{package} is {version or 'not installed'}, and {UNSLOTH_VERSION} is what was tested",
                f"Install that: pip install unsloth=={UNSLOTH_VERSION} unsloth_zoo=={UNSLOTH_VERSION}.",
            )
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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_error() -> tuple[str, str] | None:
    if "UNSLOTH_COMPILE_LOCATION" not in os.environ:  # otherwise it writes its code beside the notebook
        os.environ["UNSLOTH_COMPILE_LOCATION"] = folder = tempfile.mkdtemp(prefix="unsloth_compiled_cache")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # the import runs much code, which can fail in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"importing it failed ({lines[0][:150]})", f"Reinstall it: {_INSTALL}."
    return None
