"""Progress of long work: a bar in the terminal or notebook, or a report that the parent process shows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from shutil import get_terminal_size
from threading import Event, Thread

from tqdm import tqdm

from amir_grpo.system.files import write_text

REPORT_TO = "AMIR_GRPO_PROGRESS"  # environment variable: the file that gets a report instead of a bar
_SECONDS = 1.0  # between two reports
_QUIET_SECONDS = 30.0  # between two lines in a log, or in an output that is not a terminal


@contextmanager
def stage(
    label: str, total: int, done: int = 0, unit: str = "step", leave: bool = True
) -> Iterator[Callable[..., None]]:
    """Show the progress of the block's work: `total` units, of which `done` were complete before.

        with stage("training grpo", total=60) as tick:
            ...
            tick(reward="0.42")  # one more; tick(5): five more

    Args:
        label, unit: What is done, and what is counted, in the singular.
        total, done: Numbers of units.
        leave: Whether the bar stays when the work is complete.
    """
    path = os.environ.get(REPORT_TO)
    first, started, last = done, time.monotonic(), 0.0

    def report(line: str) -> None:
        with suppress(OSError):  # the work itself will report a bad disk
            write_text(Path(path), line)

    def tick(number: int = 1, **shown: object) -> None:
        nonlocal done, last
        done += number
        bar.set_postfix(shown, refresh=False)
        bar.update(number)
        now = time.monotonic()
        if path and now - last >= _SECONDS:
            last = now
            each = (now - started) / max(1, done - first)
            left = f", {timedelta(seconds=round((total - done) * each))} left" if first < done < total else ""
            report(f"{label}, {done:,} of {total:,} {unit}{'' if total == 1 else 's'}{left}")

    # a notebook shows stderr in red, which is for errors only
    kernel = sys.modules.get("ipykernel.kernelapp")
    output = sys.stdout if kernel is not None and kernel.IPKernelApp.initialized() else sys.stderr
    options = {"desc": label, "unit": f" {unit}", "mininterval": 2, "leave": leave, "disable": bool(path)}
    with tqdm(total=total, initial=done, file=output, **options) as bar:
        tick(0)
        try:
            yield tick
        finally:
            if path:
                report("")


@contextmanager
def reports_shown(folder: Path, log: Path) -> Iterator[Callable[[str], None]]:
    """Show the reports in a folder, under their files' names, during the block; yield a function that prints and logs.

    Each working process has a file in the folder, named by `REPORT_TO` in its environment. A terminal shows the
    reports in one line that is updated; the log, and an output that is not a terminal, get lines every half minute.
    """
    live, over = sys.stderr.isatty(), Event()
    folder.mkdir(parents=True, exist_ok=True)

    def say(line: str, shown: bool = True) -> None:
        with suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n")
        if shown:
            show("")
            print(line, flush=True)

    def show(line: str) -> None:
        if live:
            print(end=f"\r\x1b[K{line[: get_terminal_size().columns - 1]}", file=sys.stderr, flush=True)

    def watch() -> None:
        said = time.monotonic()
        while not over.wait(_SECONDS):
            lines = _reports(folder)
            show("; ".join(lines))
            if time.monotonic() - said >= _QUIET_SECONDS:
                said = time.monotonic()
                for line in lines:
                    say(line, shown=not live)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield say
    finally:
        over.set()
        watcher.join()
        show("")


def _reports(folder: Path) -> list[str]:
    lines = []
    for path in sorted(folder.glob("[!.]*")):
        with suppress(OSError):  # its process has just ended
            lines.append(f"{path.name}: {path.read_text(encoding='utf-8')}".removesuffix(": "))
    return lines


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars for weights while the block runs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
