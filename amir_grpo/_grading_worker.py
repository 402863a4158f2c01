r"""The worker process of `amir_grpo.grading`: it compares answers with math-verify, one line of JSON in and one out.

The parent may kill it at any time. It does not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from functools import lru_cache
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, grader, parse, verify
from sympy.core.evalf import PrecisionExhausted

from amir_grpo.notation import notation

_BOXED_ONLY = (LatexExtractionConfig(boxed_match_priority=0),)
# Audit events that no comparison needs. The limits of the process hold regardless.
_REFUSED = ("os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.spawn")
_REFUSED += ("os.system", "os.truncate", "shutil.", "socket.", "subprocess.", "ctypes.", "urllib.")


def equal(answer: str, gold: str) -> bool:
    """Ask math-verify whether an answer equals the gold answer, without limits on time or memory."""
    try:
        return verify(_parse_gold(gold), _parse(answer), timeout_seconds=None)
    except MemoryError:
        raise
    except Exception:  # an answer that makes a parser fail is wrong
        return False


def _parse(text: str) -> list[Any]:
    return parse(rf"\boxed{{{notation(text).removesuffix('.')}}}", _BOXED_ONLY, parsing_timeout=None)


# The completions of a problem arrive together and share its gold answer.
_parse_gold = lru_cache(maxsize=64)(_parse)

_round_and_compare = grader.sympy_numeric_eq


def _equal_numbers(gold: Any, value: Any, float_rounding: int, numeric_precision: int) -> bool:
    """Compare to six decimal places, as math-verify does, or to six digits if a value is below 0.001 in size."""
    if all(isinstance(side, sympy.Expr) and side.is_number for side in (gold, value)):
        with contextlib.suppress(PrecisionExhausted):  # a value may be exactly zero
            sides = gold.doit(), value.doit(), value.doit() - gold.doit()
            size, other_size, distance = (abs(side.evalf(15, strict=True)) for side in sides)
            if size.is_real and other_size.is_real and min(size, other_size) < 1e-3:
                return bool(distance <= 5e-7 * size)
    return _round_and_compare(gold, value, float_rounding, numeric_precision)


grader.sympy_numeric_eq = _equal_numbers  # patched where lists, intervals and matrices use it, too


def serve(cpu_seconds: int, memory_bytes: int) -> None:
    """Answer requests from standard input on standard output, until the input ends or memory runs out.

    A request is ``[answer, [gold, ...]]``; the reply is true or false.

    Args:
        cpu_seconds: CPU time for one comparison, after which the system ends the process (not on Windows).
        memory_bytes: Limit on the address space of the process.
    """
    # output of a library must not be mistaken for a reply
    replies, nowhere = os.fdopen(os.dup(1), "w"), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    equal(r"\sqrt{2}/2", r"\frac{1}{\sqrt 2}")  # triggers late imports before the limits apply
    _limit_process(memory_bytes)
    print("ready", file=replies, flush=True)
    for line in sys.stdin.buffer:
        answer, golds = json.loads(line)
        _limit_cpu(cpu_seconds)
        reply = any(equal(answer, gold) for gold in golds)
        _limit_cpu(0)
        print(json.dumps(reply), file=replies, flush=True)


def _limit_process(memory_bytes: int) -> None:
    sys.addaudithook(_refuse)
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    for name, value in (("RLIMIT_AS", memory_bytes), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # macOS cannot limit the address space
            resource.setrlimit(getattr(resource, name), (value, value))


def _limit_cpu(seconds: int) -> None:
    # SIGPROF keeps its default action, which ends the process even inside C code
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _refuse(event: str, arguments: tuple) -> None:
    if event.startswith(_REFUSED) or (event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax"):
        raise PermissionError(f"A completion has no business with {event}.")
