"""How a command's process ends, and the processes beside it: its children, and those that train together."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread, current_thread, main_thread

from amir_grpo.system.locks import Busy
from amir_grpo.system.progress import REPORT_TO

_GOES_ON = "Completed work is kept: run the same command again to continue."
_PATIENCE = 3.0  # seconds for tidying up after a signal
PR_SET_PDEATHSIG = 1  # prctl's option for the signal that is sent when the parent ends
# environment variables that a launcher sets for each of several processes
_OF_SEVERAL = r"(LOCAL_|GROUP_|ROLE_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)|(ACCELERATE|FSDP|TORCHELASTIC)_.*"


@contextmanager
def ending(name: str) -> Iterator[None]:
    """Run the block as the command `name`; report an error that the user can fix in at most three lines.

    SIGINT and SIGTERM end the process within seconds, with one line and the exit code 128 plus the signal's number.

    Raises:
        SystemExit: 2 for an error that the user can fix; 1 if another process of a training has ended; 141 if nobody
            reads the output any more.
    """
    if hasattr(sys.stdout, "reconfigure"):  # an encoding without λ or a minus sign must not end the work
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _ended_by_signals(f"amir_grpo {name}: interrupted. {_GOES_ON}" if is_main() else ""):
            yield
            print(end="", flush=True)
    except (ValueError, OSError, MemoryError, Busy) as error:
        try:
            sys.stdout.flush()
        except OSError:  # the output is on a full disk, or nobody reads it: let the interpreter end quietly
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(141) from error  # 128 plus SIGPIPE's number
        lines = [line.strip() for line in str(error).splitlines() if line.strip()][:3]
        text = "\n".join(lines)[:4000] or type(error).__name__
        text = "".join(c for c in text if c == "\n" or c.isprintable())
        print(f"amir_grpo {name}: {text}", file=sys.stderr)
        raise SystemExit(2) from error
    except RuntimeError as error:
        if not _is_loss_of_another(error):
            raise
        print(f"amir_grpo {name}: another process of the training has ended. {_GOES_ON}", file=sys.stderr)
        raise SystemExit(1) from error


@contextmanager
def _ended_by_signals(line: str) -> Iterator[None]:
    """Make SIGINT and SIGTERM unwind the block and end the process, after three seconds at the latest."""
    if current_thread() is not main_thread():  # only the main thread gets signals
        yield
        return
    caught, left = [], []

    def last_line() -> None:  # after the last lines of progress bars
        if line and not left:
            left.append(os.write(2, f"\n{line}\n".encode()))

    def leave_later() -> None:
        time.sleep(_PATIENCE)
        last_line()
        os._exit(128 + caught[0])

    def interrupt(number: int, frame: object) -> None:
        for each in handlers:  # a second signal would interrupt the tidying up
            signal.signal(each, signal.SIG_IGN)
        caught.append(number)
        sys.unraisablehook = lambda _: None
        Thread(target=leave_later, daemon=True).start()
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if caught:  # whatever a library has turned the interrupt into
            last_line()
            raise SystemExit(128 + caught[0])
        for number, handler in handlers.items():
            signal.signal(number, handler)


def die_with_parent() -> None:
    """Make the system kill this process when the thread that started it ends, however that happens. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold back SIGINT during the block, and in processes that it starts until they call `work_for_parent`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work_for_parent() -> None:
    """Set up a worker process: it ends with its parent, leaves a terminal's Ctrl-C to it, and shows no progress."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.environ[REPORT_TO] = ""


# --- processes that train together ------------------------------------------------------------------------------


def world_size() -> int:
    """Return the number of processes that train together, as `accelerate launch` and `torchrun` set it."""
    return _number_in("WORLD_SIZE", 1)


def is_main() -> bool:
    """Return whether this is the main process, the one that writes, of those that train together."""
    return _number_in("RANK", 0) == 0


def _number_in(variable: str, default: int) -> int:
    value = os.environ.get(variable, str(default))
    if not value.isdecimal():
        raise ValueError(
            f"The environment's {variable} is {value!r}; torchrun and accelerate set it to a number. Unset it."
        )
    return int(value)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process before the others, so that they find what it has made."""
    if world_size() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def wait_for_everyone() -> None:
    """Wait until all processes of the training have reached this point."""
    if world_size() > 1:
        _state().wait_for_everyone()


def leave_process_group() -> None:
    """Leave the group of a distributed training: exiting inside it may abort, and end the other processes with it."""
    if world_size() > 1:
        wait_for_everyone()
        _state().destroy_process_group()


def run_alone(module: str, *arguments: str) -> None:
    """Run a module in a separate process, without the environment that makes it one of several.

    Raises:
        RuntimeError: If it fails, with the end of its error output.
    """
    environment = {name: value for name, value in os.environ.items() if not re.fullmatch(_OF_SEVERAL, name)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} has failed: {' '.join(done.stderr.split())[-500:]}")


def _is_loss_of_another(error: RuntimeError) -> bool:
    """Return whether a training of several processes has failed because another of them has ended."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # by name, so that torch need not be imported
    return world_size() > 1 and ("DistError" in kinds or "gloo" in str(error) or "closed by peer" in str(error))


def _state():
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
