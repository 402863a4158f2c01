"""Where run folders go, the clone that a command is started in, and what came with the package."""

from __future__ import annotations

from pathlib import Path

from amir_grpo.system.files import shipped, user_path

_DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts it


def project_root() -> Path:
    """The clone that contains the working directory (its root, notebooks/, …), else the working directory."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "amir_grpo" / "runs" / "run.py").is_file():
            return folder
    return here


def runs_folder() -> Path:
    """Where run folders go: runs/ of the project, or on a mounted Google Drive, which outlives a Colab session."""
    return _DRIVE / "amir-grpo" / "runs" if _DRIVE.is_dir() else project_root() / "runs"


def run_folder(profile: str, run_dir: str | Path | None = None) -> Path:
    """The folder that a user names, absolute; by default that of the profile.

    Raises:
        ValueError: If it is in the home of a user that there is not.
    """
    return user_path(run_dir or runs_folder() / profile)


def notebooks_folder() -> Path:
    """The notebooks that came with the package; to be read only.

    Raises:
        FileNotFoundError: If they did not, with how to get them.
    """
    return shipped("notebooks")


def kept_results(name: str) -> Path:
    """A folder of results that came with the package, such as "sandbox" or "pilot"; to be read only.

    Raises:
        FileNotFoundError: If it did not, with how to get it.
    """
    return shipped("data/results") / name
