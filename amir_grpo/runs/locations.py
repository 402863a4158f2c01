"""Where run folders go, and the clone that a command is started in."""

from __future__ import annotations

from pathlib import Path

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
