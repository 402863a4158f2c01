"""Atomic writes: a file or folder is filled beside its place and renamed, so that it is complete or not there."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LITTLE = 1e6  # bytes


def user_path(given: str | Path) -> Path:
    """A path as a user gives it, absolute, with ~ for a home folder.

    Raises:
        ValueError: If it names the home of a user that there is not.
    """
    try:
        return Path(given).expanduser().resolve()
    except RuntimeError as error:
        raise ValueError(f"{given}: there is no user {Path(given).parts[0][1:]!r}.\nGive another path.") from error


def check_folder(folder: Path, option: str, least: float = _LITTLE) -> None:
    """Check before the work begins that a folder can be written to, and that its disk is not full.

    Args:
        folder: It need not exist.
        option: The option that the user gave it as, for the message.
        least: Bytes that the work needs.

    Raises:
        OSError: If not.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file, where a folder is needed.\nGive another {option}.")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise PermissionError(
            f"{there} cannot be written to ({error.strerror}).\nGive another {option}, or make it writable."
        ) from error
    free = shutil.disk_usage(there).free
    if free < least:
        raise OSError(
            f"{there}: {free / 1e6:.0f} MB are free on the disk; at least {least / 1e6:.0f} MB are needed.\n"
            f"Free some, or give a {option} on another disk."
        )


def atomic_write(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`, replacing what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically."""
    return atomic_write(path, lambda part: part.write_text(text, encoding="utf-8") and None)


@contextmanager
def atomic_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block succeeds and is removed when it fails.

    Args:
        folder: The folder to be made.
        replace: Whether it takes the place of one that is there; otherwise one that another process has made in the
            meantime stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    before = beside.with_name(f"{beside.name}.before")
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp's folder is for its owner alone
        if replace and folder.exists():
            os.replace(folder, before)
        if not folder.exists():
            os.replace(beside, folder)
    finally:
        if before.exists() and not folder.exists():
            os.replace(before, folder)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn what libraries raise on a full disk into one message with the way out.

    Raises:
        OSError: If the block fails for lack of space.
    """
    try:
        yield
    except Exception as error:
        if not (_is_full(error) or (isinstance(error, RuntimeError) and _little_is_left(folder))):
            raise
        raise OSError(
            f"The disk of {folder} is full.\nWhat is complete is kept: free some space, and run the same command again."
        ) from error


def _little_is_left(folder: Path) -> bool:
    """Whether a disk is nearly full: torch.save does not say why it failed."""
    return folder.exists() and shutil.disk_usage(folder).free < _LITTLE


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        # safetensors and Arrow have errors of their own, with the system's message; copytree lists those of its files
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
