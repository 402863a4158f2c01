"""A lock that lets one process at a time do a piece of work; the system releases it however its holder ends."""

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

_PATIENCE = 5  # seconds; the notebook of a killed command ends and releases its locks within one


class Busy(RuntimeError):
    """The error raised if another process is doing the same work in the same folder."""


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold `<folder>/.locks/<work>` while the block runs.

    The operating system releases the lock when its holder ends, however that happens. A file beside it names the
    holder, for the message that others get.

    Raises:
        Busy: If another process holds it for more than a few seconds; names its id, machine and start time.
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
    """Return whether any process holds a lock of this folder, except the lock of the work `but`."""
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
        record = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {record['pid']} on {record['machine']} since {record['started']}"
    except (OSError, ValueError, KeyError):  # it has the lock, but has not written its record yet
        return "another process"
