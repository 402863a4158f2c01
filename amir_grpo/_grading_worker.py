r"""The worker of `amir_grpo.grading`: compares answers with math-verify, one line of JSON in and one out.

It is started as a process of its own and expects to be killed. Nothing of torch is imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from fractions import Fraction
from functools import lru_cache
from types import ModuleType
from typing import Any, TextIO

import sympy
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from amir_grpo.answers import PlainNumber, plain_number, plain_text

try:
    import resource
except ImportError:  # Windows: the parent's clock is the only limit
    resource: ModuleType | None = None

_BOXED_ONLY = (LatexExtractionConfig(boxed_match_priority=0),)
_ANYWHERE = (LatexExtractionConfig(), ExprExtractionConfig())
# No completion has any business with these. The limits of the process hold even so.
_REFUSED = ("os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.spawn")
_REFUSED += ("os.system", "os.truncate", "shutil.", "socket.", "subprocess.", "ctypes.", "urllib.")


def equal(answer: str, gold: str) -> bool:
    """Whether math-verify takes an answer for the gold one. May take any time and any memory."""
    parsed = _parse(answer)
    number = plain_number(plain_text(gold))
    if number and 0 < abs(number.value) < Fraction(1, 1000):
        return any(_equals_small(value, number) for value in parsed if isinstance(value, sympy.Expr))
    return verify(_parse_gold(gold), parsed, timeout_seconds=None)


def _equals_small(value: sympy.Expr, gold: PlainNumber) -> bool:
    # math-verify rounds to six places, where all small numbers are zero: compare the ratio instead
    ratio = (value.doit() / sympy.Rational(gold.value.numerator, gold.value.denominator)).evalf(15)
    return bool(ratio.is_real) and abs(float(ratio) - 1) <= 5e-7


def _parse(text: str) -> list[Any]:
    prepared, is_prose = latex(text)
    if is_prose:
        return parse(prepared, _ANYWHERE, parsing_timeout=None)
    return parse(rf"\boxed{{{prepared}}}", _BOXED_ONLY, parsing_timeout=None)


# The completions of one problem come in a row and share its gold answer.
_parse_gold = lru_cache(maxsize=64)(_parse)

_ROOT = re.compile(r"√\s*(\d+|[A-Za-z])")
_SCIENTIFIC = re.compile(r"([+-]?\d*\.?\d+)[eE]([+-]?\d{1,3})")
_NUMBER_ALONE = re.compile(r"\d\S*\s|\s\S*\d")
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTIONS = {"inf", "infinity", "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "max", "min"}
# Words that change what a number is: leaving them out would take 5 for "5 million", and 3 for "x = 5 and y = 3".
_MATHEMATICAL_WORDS = _FUNCTIONS | {"and", "dozen", "hundred", "thousand", "million", "billion", "half", "percent"}
_CURRENCY = re.compile(r"^\s*(?:Rs\.?|[€£₹¥])\s*")


def latex(text: str) -> tuple[str, bool]:
    """An answer as LaTeX without delimiters, and whether it is rather prose in which a number is to be found."""
    text = re.sub(r"\\?\$", "", _CURRENCY.sub("", text)).strip().removesuffix(".")
    text = _ROOT.sub(r"\\sqrt{\1}", text).replace("√", r"\sqrt").replace("–", "-").replace("−", "-")
    scientific = _SCIENTIFIC.fullmatch(text)
    if scientific:  # math-verify takes the e for Euler's number
        return rf"{scientific[1]} \times 10^{{{int(scientific[2])}}}", False
    words = _LONG_WORD.findall(text)
    is_prose = bool(_NUMBER_ALONE.search(text)) and "\\" not in text and not _MATHEMATICAL_WORDS.issuperset(words)
    return text, is_prose


# --- the process --------------------------------------------------------------------------------------------------


def serve(cpu_seconds: int, memory_bytes: int) -> None:
    """Answer requests from standard input on standard output until it ends.

    A request is ``[answer, [gold, ...]]``; the reply is true, false or "memory", after which the process ends.

    Args:
        cpu_seconds: CPU time for one comparison, after which the system ends the process (not on Windows).
        memory_bytes: Address space of the process.
    """
    replies = _take_standard_output()
    with contextlib.suppress(Exception):  # what is imported late is imported now, before the limits
        equal(r"\sqrt{2}/2", r"\frac{1}{\sqrt 2}")
    _limit_process(memory_bytes)
    print("ready", file=replies, flush=True)
    for line in sys.stdin.buffer:
        answer, golds = json.loads(line)
        _limit_cpu(cpu_seconds)
        try:
            reply: bool | str = any(_equal_or_wrong(answer, gold) for gold in golds)
        except MemoryError:
            reply = "memory"
        _limit_cpu(0)
        print(json.dumps(reply), file=replies, flush=True)
        if reply == "memory":
            return


def _equal_or_wrong(answer: str, gold: str) -> bool:
    try:
        return equal(answer, gold)
    except MemoryError:
        raise
    except Exception:  # whatever a parser says about such an answer, it is not right
        return False


def _take_standard_output() -> TextIO:
    # whatever a library prints must not be taken for a reply
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return replies


def _limit_process(memory_bytes: int) -> None:
    sys.addaudithook(_refuse)
    if resource is not None:
        for name, value in (("RLIMIT_AS", memory_bytes), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # macOS has no limit of address space
                resource.setrlimit(getattr(resource, name), (value, value))


def _limit_cpu(seconds: int) -> None:
    # SIGPROF is left to its default action, which ends the process also from within C code
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _refuse(event: str, arguments: tuple) -> None:
    if event.startswith(_REFUSED) or (event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax"):
        raise PermissionError(f"A completion has no business with {event}.")
