"""One process at a time on one piece of work: a lock that the system releases when its holder ends, however it ends."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from amir_grpo.system.files import write_text

_PATIENCE = 5  # seconds; the notebook of a command that was killed ends within one, and releases its locks


class Busy(RuntimeError):
    """Another process does the same work in the same folder."""


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold `<folder>/.locks/<work>` while the block runs.

    The lock is the operating system's and ends with its holder, however that ends. A file beside it names the holder, for
    the message that others get.

    Raises:
        Busy: If another process holds it and does not end within seconds, with that process's id, machine and start time.
    """
    path = folder / ".locks" / f"{work.replace(' ', '-')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_suffix(".json")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise Busy(
            f"{folder}: {work} is already in progress, in {_who(holder)}.\nWait for it, stop it, or give another run_dir."
        ) from None
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(holder, json.dumps({"pid": os.getpid(), "machine": platform.node(), "started": now}) + "\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def in_progress(folder: Path, but: str) -> bool:
    """Tell whether any process holds a lock of this folder, other than that of the work `but`."""
    for path in (folder / ".locks").glob("*.lock"):
        if path.stem != but.replace(" ", "-"):
            try:
                with FileLock(path, timeout=0):
                    pass
            except Timeout:
                return True
    return False


def _who(holder: Path) -> str:
    try:
        record = json.loads(holder.read_text())
        return f"process {record['pid']} on {record['machine']} since {record['started']}"
    except (OSError, ValueError, KeyError):  # it has the lock, and has not said so yet
        return "another process"
