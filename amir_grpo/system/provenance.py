"""The provenance of a result, so that it can be reproduced: time, versions, commit, device."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "amir-grpo torch transformers trl peft accelerate datasets tokenizers safetensors math-verify numpy scipy pandas "
    "matplotlib bitsandbytes unsloth vllm deepspeed"
).split()

CONFIG = "config.json"  # of a run folder


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """Return the current time, python, platform, packages, commit, uncommitted_changes, device and cpu.

    A package that is not installed is None in `packages`; without a repository, so are commit and uncommitted_changes.
    """
    import torch

    versions: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "time": now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "commit": commit(),
        "uncommitted_changes": None if status is None else bool(status),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores",
        "cpu": f"{_cpu_model()}, {torch.backends.cpu.get_cpu_capability()}",  # decides how sums are rounded
    }


def commit() -> str | None:
    """Return the commit of the package's repository; None without a repository or git."""
    return _git("rev-parse", "HEAD")


def record_of(folder: Path) -> dict[str, Any]:
    """Return the record of a run folder: profile, seed, started, ended, problems, settings, provenance.

    `problems` holds the source, size and fingerprint of each set; `started` is the earliest start and `ended` the
    latest end of all stages, None without any.
    """
    config = read_config(folder)
    patterns = ("*/stage.json", "samples/*/*.stage.json", "scores/*.stage.json")
    stages = [read_json(path, ("started", "ended")) for pattern in patterns for path in folder.glob(pattern)]
    return {
        "profile": config["profile"],
        "seed": config["settings"]["seed"],
        "started": min((stage["started"] for stage in stages), default=None),
        "ended": max((stage["ended"] for stage in stages), default=None),
        "problems": [read_json(path) for path in sorted(folder.glob("problems/*.json"))],
        "settings": config["settings"],
        "provenance": config["provenance"],
    }


def file_at(commit: str, path: Path) -> str | None:
    """Return the text of a file at a commit of its repository; None if git, the commit or the file is missing."""
    return _git("show", f"{commit}:./{path.name}", folder=path.parent)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a run folder: profile, settings and provenance.

    Raises:
        FileNotFoundError: If it is not a run folder.
        ValueError: If its configuration cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no {CONFIG}.\nGive the run_dir of a run.")
    try:
        config = read_json(path)
        for name, kind, said in (("settings", dict, "a JSON object"), ("profile", str, "a string")):
            if not isinstance(config.get(name), kind):
                raise ValueError(f"{name} is not {said}")
    except ValueError as error:
        cause = str(error).splitlines()[0].removeprefix(f"{path} cannot be read (").removesuffix(").")
        raise ValueError(
            f"{path} is not a run's configuration ({cause}).\n"
            "Give another run_dir, or delete the folder if it is a run's."
        ) from error
    return config


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: The file.
        keys: Keys that it must have.

    Raises:
        ValueError: If it cannot be read or lacks a key: something other than this package has changed it.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        if missing := [key for key in keys if key not in record]:
            raise ValueError(f"it has no {', '.join(missing)}")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}).\nDelete it, or restore it.") from error
    return record


def to_json(value: Any) -> str:
    """Return a value as JSON, as the package writes it."""
    return json.dumps(value, indent=2) + "\n"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (models or [platform.processor() or platform.machine()])[0]


def _git(*arguments: str, folder: Path = Path(__file__).parent) -> str | None:
    """Return the output of git in a folder, by default the package's; None if git fails or is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
