"""Ctrl-C and SIGTERM end a command with one line and the exit code that shells expect, within seconds."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread

_PATIENCE = 3.0  # seconds; then the process ends, even inside of something that cannot be interrupted
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ends_with_one_line(line: str) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the block: by an exception in Python's code, after three seconds whatever it does.

    The process is to end with the block then: whatever else goes wrong on the way out, and further signals, change nothing.
    Other threads than the main one cannot take signals: there the block runs as it is.

    Args:
        line: Printed to the error stream; empty for none.

    Raises:
        SystemExit: 128 and the number of the signal.
    """
    if current_thread() is not main_thread():
        yield
        return
    caught: list[int] = []
    said = Event()

    def interrupt(number: int, frame: object) -> None:
        for each in _SIGNALS:  # once and for all: a second one would interrupt the tidying up
            signal.signal(each, signal.SIG_IGN)
        caught.append(number)
        raise KeyboardInterrupt

    def lost(error: sys.UnraisableHookArgs) -> None:
        # in a destructor or a callback the interpreter prints an exception and goes on: the clock ends the work then
        if not caught:
            unraisable(error)

    # The interpreter writes to the wake-up socket at once, even while the main thread is inside a library.
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    Thread(target=_leave_later, args=(ours, line, said), daemon=True).start()
    handlers = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    unraisable, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
        if caught:
            raise KeyboardInterrupt
    except BaseException as error:  # a library may have made another one of the interrupt
        if not (caught or isinstance(error, KeyboardInterrupt)):
            raise
        _say(line, said)
        raise SystemExit(128 + (caught[0] if caught else signal.SIGINT)) from error
    finally:
        if not caught:  # else the way out is watched, too
            if sys.unraisablehook is lost:
                sys.unraisablehook = unraisable
            signal.set_wakeup_fd(wakeup)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            theirs.close()


def _leave_later(wakeup: socket.socket, line: str, said: Event) -> None:
    """End the process some seconds after a signal, unless it ends by itself."""
    with wakeup:
        while number := wakeup.recv(1):
            if number[0] in _SIGNALS:
                time.sleep(_PATIENCE)
                _say(line, said)
                os._exit(128 + number[0])


def _say(line: str, said: Event) -> None:
    if line and not said.is_set():
        said.set()
        print(f"\n{line}", file=sys.stderr, flush=True)
