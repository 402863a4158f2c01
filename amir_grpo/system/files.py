"""Files: atomic writes, checksums, lines of JSON, and the place of those that come with the package.

A file or folder is filled beside its place and renamed, so that it is complete or not there.
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
_INSIDE = (
    _PACKAGE / "shipped"
)  # where setup.py puts tables and notebooks in a wheel; a clone has them beside the package


def user_path(given: str | Path) -> Path:
    """Make a path that a user has given absolute, with ~ for a home folder.

    Raises:
        ValueError: If it names the home folder of a user who does not exist.
    """
    try:
        return Path(given).expanduser().resolve()
    except RuntimeError as error:
        raise ValueError(f"{given}: there is no user {Path(given).parts[0][1:]!r}.\nGive another path.") from error


def check_folder(folder: Path, option: str, least: float = _LITTLE) -> None:
    """Refuse a folder, given by `option`, that cannot be written to or whose disk has fewer than `least` bytes left.

    Raises:
        OSError: With the way out. The folder need not exist.
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
    """Yield a temporary folder beside `folder` that takes its name when the block succeeds and is removed when it fails.

    With `replace` it takes the place of one that is there; else one that another process has made meanwhile stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp's folder is for its owner alone
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn what libraries raise on a full disk into one message with the way out.

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
            f"The disk of {folder} is full.\nWhat is complete is kept: free some space, and run the same command again."
        ) from error


def _is_full(error: BaseException | None) -> bool:
    """Tell whether an error or what caused it says so: some libraries pass on the system's message alone."""
    full = errno.ENOSPC
    while error and not (getattr(error, "errno", None) == full or os.strerror(full) in str(error)):
        error = error.__cause__ or error.__context__
    return error is not None


# --- checksums -----------------------------------------------------------------------------------------------------------


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files, by their names."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def write_checksums(folder: Path) -> None:
    """Record the SHA-256 of every file of a folder, once they are all there, in checksums.json."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    write_text(folder / CHECKSUMS, json.dumps(hashes(files), indent=2) + "\n")


def first_damaged(folder: Path, recorded: Mapping[str, str] | None = None) -> str | None:
    """Return the name of the first file of a folder that is missing or no longer what it was; None where all are whole.

    `recorded` has the SHA-256 by name; by default it is what `write_checksums` has recorded there, if it has.
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
    """Yield the object of each line that is not blank.

    The file may be as programs and editors leave it: packed by gzip, with a byte-order mark or Windows' line ends.

    Raises:
        ValueError: If a line is no JSON object or no UTF-8, or a packed file is damaged; names the file and the row.
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
    except (json.JSONDecodeError, RecursionError) as error:  # thousands of brackets
        raise ValueError(f"{path}, row {number}: not a line of JSON ({error}).") from None


def shipped(name: str) -> Path:
    """Return a folder that comes with the package, to be read only: data/published, data/results or notebooks.

    Raises:
        FileNotFoundError: If it is not there, with how to get it.
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
