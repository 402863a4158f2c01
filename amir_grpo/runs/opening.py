"""Where run folders are, and their configuration: read, compared with the requested one, and written under a lock."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from amir_grpo.choices import check_names
from amir_grpo.problems import BENCHMARKS, TRAINING_SETS
from amir_grpo.sandbox.problems import ALL_FAMILIES, TRAINED_ON
from amir_grpo.settings import FIELDS, PROFILES, RunSettings, differences, settings_of
from amir_grpo.system.files import check_folder, explain_full_disk, user_path, write_text
from amir_grpo.system.locks import in_progress, locked
from amir_grpo.system.processes import is_main
from amir_grpo.system.provenance import CONFIG, provenance, read_config, to_json
from amir_grpo.trl_options import trainer_options

_DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts it
_OPENING = "opening"
_LEAST_DISK = 50e6  # bytes for the smallest run, with its base policy
# Consent that only the person who opens a folder can give, not the folder.
CONSENTS = ("trust_remote_code", "safetensors_only")
# Settings that change neither a completion nor a number.
NO_EFFECT = ("report_to", "save_steps", "save_total_limit", *CONSENTS)


def project_root() -> Path:
    """Return the root of the clone that contains the working directory, else the working directory."""
    here = Path.cwd().resolve()
    clones = (folder for folder in (here, *here.parents) if (folder / "amir_grpo" / "runs" / "run.py").is_file())
    return next(clones, here)


def runs_folder() -> Path:
    """Return the folder of run folders: runs/ in the project, or on a mounted Drive, which outlives Colab sessions."""
    return _DRIVE / "amir-grpo" / "runs" if _DRIVE.is_dir() else project_root() / "runs"


def run_folder(profile: str, run_dir: str | Path | None = None) -> Path:
    """Return the folder of a run: `run_dir`, or by default the one named after its profile among the run folders."""
    return user_path(run_dir or runs_folder() / profile)


def overrides_of(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Return the settings to override, from a mapping or from JSON text, which `papermill -p overrides` passes.

    Raises:
        ValueError: If it is neither.
    """
    try:
        found = json.loads(given) if isinstance(given, str) and given.strip() else given or {}
    except ValueError:
        found = given
    if not isinstance(found, Mapping):
        raise ValueError(f'overrides is {given!r}; give a mapping or JSON text, such as {{"max_steps": 4}}.')
    return dict(found)


def configure(
    folder: Path, profile: str | None, new_profile: str, overrides: Mapping[str, Any]
) -> tuple[str, RunSettings]:
    """Determine the profile and settings of a run folder, and write them if it is new or holds no results yet.

    An existing folder supplies its own settings, except the two that consent to reading untrusted weights. They are
    compared only with what is given now: the overrides, and a profile other than the folder's. A new folder gets
    `new_profile`.

    Raises:
        ValueError: If a name or value is not valid, or the folder holds results made with other settings.
        OSError: If the folder cannot be written to, or its disk is full.
    """
    while True:
        stored = _read(folder)
        name, settings = _merged(stored, profile, new_profile, overrides)  # raises before anything is written
        check_folder(folder, "run_dir", _LEAST_DISK)
        differing = {} if stored is None else _differing(stored, settings)
        if stored is not None and not differing:
            return stored["profile"], settings
        config = {"profile": name, "settings": settings.flat(), "provenance": provenance()}
        with _lock(folder, _OPENING):
            if _read(folder) != stored:  # another process has changed it in the meantime
                continue
            if differing and (_holds_results(folder, differing) or in_progress(folder, but=_OPENING)):
                raise _mixing(folder, differing)
            if is_main():
                for record in (folder / "problems").glob("*.json"):  # of other settings, with which no result was made
                    record.unlink()
                write_text(folder / CONFIG, to_json(config))
        return name, settings


def resolve_profile(profile: str) -> str:
    """Return the profile itself; for auto, the one that `amir_grpo.policies.plan` chooses for this process's GPU.

    Raises:
        ValueError: If the name is unknown.
    """
    check_names("profile", [profile], [*PROFILES, "auto"])
    if profile != "auto":
        return profile
    from amir_grpo.policies.loading import explain_invisible_gpu
    from amir_grpo.policies.plan import card_here, profile_for

    if warning := explain_invisible_gpu():
        warnings.warn(warning, stacklevel=2)
    return next((profile_for(memory) for memory in card_here().values()), "sandbox")


@contextmanager
def stage_lock(folder: Path, settings: RunSettings, work: str) -> Iterator[None]:
    """Hold the lock of a stage, such as "training grpo", while the block runs, after checking the folder's settings.

    Raises:
        Busy: If another process is doing the same work.
        OSError: If the disk is full.
        ValueError: If another process has changed the folder's settings since it was opened.
    """
    with explain_full_disk(folder), _lock(folder, work):
        with _lock(folder, _OPENING):
            stored = _read(folder)
            if stored is not None and (differing := _differing(stored, settings)):
                raise _mixing(folder, differing)
        yield


def _lock(folder: Path, work: str) -> AbstractContextManager[None]:
    """Return the lock of some work; of several training processes, the main one holds it for all."""
    return locked(folder, work) if is_main() else nullcontext()


def _differing(stored: Mapping[str, Any], settings: RunSettings) -> dict[str, tuple[Any, Any]]:
    return {k: v for k, v in differences(stored["settings"], settings).items() if k not in NO_EFFECT}


def _mixing(folder: Path, differing: Mapping[str, tuple[Any, Any]]) -> ValueError:
    what = "; ".join(f"{setting} was {old!r}, is now {new!r}" for setting, (old, new) in differing.items())
    return ValueError(
        f"{folder} holds a run with other settings: {what}.\n"
        "Results would mix. Give another run_dir, restore the settings, or delete the folder."
    )


def _merged(
    stored: Mapping[str, Any] | None, profile: str | None, new_profile: str, overrides: Mapping[str, Any]
) -> tuple[str, RunSettings]:
    """Merge the folder's own profile and settings, if it has any, with what is given now."""
    if stored is None:
        name, settings = new_profile, settings_of(new_profile, overrides)
    elif profile in (None, stored["profile"]):
        name = stored["profile"] if stored["profile"] in PROFILES else "sandbox"
        # an option that a later version of TRL has dropped is left out here; the comparison reports it
        known = FIELDS if set(stored["settings"]) <= set(FIELDS) else {**FIELDS, **trainer_options()}
        own = {k: v for k, v in stored["settings"].items() if k in known and k not in CONSENTS}
        settings = settings_of(name, own | dict(overrides))
    else:
        name, settings = profile, settings_of(profile, overrides)
    _check(settings)
    return name, settings


def _check(settings: RunSettings) -> None:
    check_names("benchmark", settings.evaluation.benchmarks, [*ALL_FAMILIES, *BENCHMARKS])
    check_names("training set", [settings.data.dataset_name], [*TRAINED_ON, *TRAINING_SETS])
    model, data = settings.policy.model_name, settings.data.dataset_name
    if settings.policy.is_sandbox and data != model:
        raise ValueError(
            f"The sandbox's policy reads arithmetic only: with model_name={model!r}, dataset_name must be {model!r}, "
            f"not {data!r}."
        )
    if settings.policy.is_sandbox and settings.data.calibration:
        raise ValueError(
            "The sandbox's policy cannot state a confidence: leave calibration off, or take another policy."
        )


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of a run folder; None if it has none."""
    return read_config(folder) if (folder / CONFIG).exists() else None


def _holds_results(folder: Path, differing: Iterable[str]) -> bool:
    """Return whether a run folder holds anything made with the differing settings: a checkpoint, samples, the base."""
    parts = ["*/checkpoints/*", "*/stage.json", "samples/**/*.parquet", "scores/*.parquet"]
    if not {"model_name", "base_seed", "sandbox_warmup_steps"}.isdisjoint(differing):
        parts.append("base")
    return any(True for part in parts for _ in folder.glob(part))
