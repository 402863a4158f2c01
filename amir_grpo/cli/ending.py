"""How a command ends: its exit code, and what it says in at most three lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from amir_grpo.system.interruption import ends_with_one_line
from amir_grpo.system.locks import Busy
from amir_grpo.system.processes import is_loss_of_another, is_main

_NOBODY_READS = 141  # 128 and SIGPIPE's number, which not every system has
_GOES_ON = "What is complete stays: start the same again, and it goes on."


@contextmanager
def ending(name: str) -> Iterator[None]:
    """Run the block, which is the command `name`.

    Raises:
        SystemExit: 2 for what the user can mend; 1 where another process of a training has ended; 128 and the signal's
            number for Ctrl-C and SIGTERM, and for an output that nobody reads any more.
    """
    if hasattr(sys.stdout, "reconfigure"):  # an encoding without λ or a minus sign ends no work
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with ends_with_one_line(f"amir_grpo {name}: interrupted. {_GOES_ON}" if is_main() else ""):
            yield
            print(end="", flush=True)
    except (ValueError, OSError, MemoryError, Busy) as error:
        broken = isinstance(error, BrokenPipeError)
        if _output_is_lost("\n" if broken else "") and broken:
            raise SystemExit(_NOBODY_READS) from error
        print(f"amir_grpo {name}: {_in_three_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    except RuntimeError as error:
        if not is_loss_of_another(error):
            raise
        print(f"amir_grpo {name}: another process of the training has ended. {_GOES_ON}", file=sys.stderr)
        raise SystemExit(1) from error


def _output_is_lost(probe: str) -> bool:
    """Whether standard output takes no `probe` more; what it still holds goes nowhere then, and the interpreter's end is
    quiet."""
    try:
        print(end=probe, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _in_three_lines(error: BaseException) -> str:
    """The message of an error, at most three lines of it, without control characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()][:3]
    text = "\n".join(lines)[:4000] or type(error).__name__
    return "".join(c for c in text if c == "\n" or c.isprintable())
