"""Where run folders go, the clone that a command is started in, and what came with the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from amir_grpo.system.files import atomic_folder, check_folder
from amir_grpo.system.shipped import shipped

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


def notebooks_folder() -> Path:
    """The notebooks that came with the package; to be read only.

    Raises:
        FileNotFoundError: If they did not, with how to get them.
    """
    return shipped("notebooks")


def kept_results(name: str) -> Path:
    """A folder of results that came with the package, such as "sandbox" or "evidence"; to be read only.

    Raises:
        FileNotFoundError: If it did not, with how to get it.
    """
    return shipped("data/results") / name


def write_notebooks(folder: Path) -> list[Path]:
    """Copy the notebooks of the package into a new folder, to be opened in JupyterLab; returns where they are.

    Raises:
        FileExistsError: If the folder is there.
        OSError: If it cannot be written.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: give a folder that is not.")
    check_folder(folder, "folder")
    with atomic_folder(folder) as beside:
        for path in sorted(notebooks_folder().glob("*.ipynb")):
            shutil.copyfile(path, beside / path.name)
    return sorted(folder.glob("*.ipynb"))
