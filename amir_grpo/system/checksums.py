"""SHA-256 of the files of a folder, kept beside them, so that a file that something has changed is found and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from amir_grpo.system.files import write_text

CHECKSUMS = "checksums.json"


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files, by their names."""
    found = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_checksums(folder: Path) -> None:
    """Record the SHA-256 of every file of a folder, once they are all there, in checksums.json."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    write_text(folder / CHECKSUMS, json.dumps(hashes(files), indent=2) + "\n")


def first_damaged(folder: Path, recorded: Mapping[str, str] | None = None) -> str | None:
    """The name of the first file of a folder that is missing or no longer what it was; None where all are whole.

    Args:
        folder: The folder.
        recorded: SHA-256 by name; by default what `write_checksums` has recorded there, and nothing where it has not.
    """
    if recorded is None:
        path = folder / CHECKSUMS
        if not path.is_file():
            return None
        try:
            recorded = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            return CHECKSUMS
    there = hashes(folder / name for name in recorded if (folder / name).is_file())
    return next((name for name, digest in recorded.items() if there.get(name) != digest), None)
