"""Files: atomic writes, checksums, lines of JSON, and the files that come with the package.

A file or folder is written under a temporary name and then renamed, so that it is either complete or missing.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKSUMS = "checksums.json"  # in a folder, beside the files
_LITTLE = 1e6  # bytes
_GZIP = b"\x1f\x8b"
_PACKAGE = Path(__file__).parents[1]
_INSIDE = _PACKAGE / "shipped"  # setup.py puts tables and notebooks there in a wheel; in a clone they are elsewhere


def user_path(given: str | Path) -> Path:
    """Return a user's path as an absolute one, with ~ expanded.

    Raises:
        ValueError: If it names the home folder of a user who does not exist.
    """
    try:
        return Path(given).expanduser().resolve()
    except RuntimeError as error:
        raise ValueError(f"{given}: there is no user {Path(given).parts[0][1:]!r}.\nGive another path.") from error


def check_folder(folder: Path, option: str, least: float = _LITTLE) -> None:
    """Check that a folder, given by `option`, can be written to and its disk has at least `least` bytes left.

    Raises:
        OSError: If not; the message says how to fix it. The folder need not exist.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file, where a folder is needed.\nGive another {option}.")
    try:
        tempfile.TemporaryFile(dir=there).close()
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
    """Yield a temporary folder beside `folder`, renamed to `folder` if the block succeeds and removed if it fails.

    With `replace`, it replaces an existing folder; otherwise one that another process has made meanwhile stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp's folder is for its owner only
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn what libraries raise on a full disk into one message that says how to go on.

    Raises:
        OSError: If the block fails for lack of space.
    """
    try:
        yield
    except Exception as error:
        # torch.save does not say why it failed
        little = isinstance(error, RuntimeError) and folder.exists() and shutil.disk_usage(folder).free < _LITTLE
        if not (little or _is_full(error)):
            raise
        raise OSError(
            f"The disk of {folder} is full.\nCompleted work is kept: free some space, and run the same command again."
        ) from error


def _is_full(error: BaseException | None) -> bool:
    """Return whether an error or its cause reports a full disk; some libraries pass on only the system's message."""
    full = errno.ENOSPC
    while error and not (getattr(error, "errno", None) == full or os.strerror(full) in str(error)):
        error = error.__cause__ or error.__context__
    return error is not None


# --- checksums --------------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of files, by name."""
    return {path.name: sha256_of(path) for path in sorted(paths)}


def write_checksums(folder: Path) -> None:
    """Record the SHA-256 of every file in a complete folder in checksums.json."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    write_text(folder / CHECKSUMS, json.dumps(hashes(files), indent=2) + "\n")


def first_damaged(folder: Path, recorded: Mapping[str, str] | None = None) -> str | None:
    """Return the name of the first file of a folder that is missing or has changed; None if there is none.

    `recorded` has the SHA-256 by name; by default it is what `write_checksums` has recorded there, if anything.
    """
    try:
        if recorded is None:
            recorded = dict(json.loads((folder / CHECKSUMS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return CHECKSUMS
    there = hashes(folder / name for name in recorded if (folder / name).is_file())
    return next((name for name, digest in recorded.items() if there.get(name) != digest), None)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line that is not blank.

    The file may be packed by gzip, and may have a byte-order mark or Windows line endings.

    Raises:
        ValueError: If a line is not a JSON object or not UTF-8, or a packed file is damaged; names file and row.
    """
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    number = 0
    try:
        with (gzip.open if packed else open)(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text and not isinstance(row := json.loads(text), dict):
                    raise ValueError(f"{path}, row {number}: not a JSON object.")
                if text:
                    yield row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}, after row {number}: the packed file is damaged ({error}).") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, row {number}: not UTF-8 ({error.reason}).") from error
    except (json.JSONDecodeError, RecursionError) as error:  # thousands of brackets recurse
        raise ValueError(f"{path}, row {number}: not a line of JSON ({error}).") from None


def shipped(name: str) -> Path:
    """Return a folder that comes with the package, to be read only: data/published, data/results or notebooks.

    Raises:
        FileNotFoundError: If it is missing; the message says how to get it.
    """
    for root in (_INSIDE, _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"{name} did not come with the package in {_PACKAGE}.\n"
        "Install its wheel (pip install amir-grpo), or a clone (pip install -e .)."
    )


def install_command(extra: str) -> str:
    """Return the command that installs an extra of pyproject.toml, for a package from a wheel or from a clone."""
    return f"pip install 'amir-grpo[{extra}]'" if _INSIDE.is_dir() else f"pip install -e '.[{extra}]'"
