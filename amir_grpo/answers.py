r"""What an answer means: where a completion gives it, and whether it equals the gold answer as far as text can tell.

Pure functions on untrusted text, linear in its length. What they leave open goes to
math-verify, in processes that can be killed: see `amir_grpo.grading`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

# Runs of braces are one token, so that ten million of them are few.
_BOX_TOKEN = re.compile(r"\\boxed\s*\{|\\\\(?!boxed)|\\[{}]|\{+|\}+")


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` whose brace is closed, None where there is none. Linear in the text."""
    start = text.find("\\boxed")
    if start < 0:
        return None
    last, depth = None, 0
    open_boxes: list[tuple[int, int]] = []  # depth outside the box, and where its content begins
    for token in _BOX_TOKEN.finditer(text, start):
        kind = token.group()
        if kind[-1] == "{" and kind != "\\{":
            if kind[0] == "\\":
                open_boxes.append((depth, token.end()))
                depth += 1
            else:
                depth += len(kind)
        elif kind[0] == "}":
            while open_boxes and open_boxes[-1][0] >= depth - len(kind):
                outside, begin = open_boxes.pop()
                span = (begin, token.start() + depth - outside - 1)
                last = max(last or span, span)
            depth -= len(kind)
    return text[slice(*last)] if last else None


def extract_answer(completion: str) -> str | None:
    r"""The answer that a completion gives; None if it gives none.

    It is taken from the last closed ``<answer>`` block: the content of the block's last ``\boxed{}``, or the whole
    block where it has none. Without such a block it is the last ``\boxed{}`` of the completion. Boxes and blocks that
    are not closed do not count, so that a truncated number is not taken for an answer. Linear in the completion.
    """
    end = completion.rfind("</answer>")
    start = completion.rfind("<answer>", 0, max(end, 0))
    if start >= 0:
        block = completion[start + len("<answer>") : end]
        boxed = last_boxed(block)
        answer = (block if boxed is None else boxed).strip()
    else:
        answer = (last_boxed(completion) or "").strip()
    return answer or None


def decide(answer: str, gold: str) -> bool | None:
    """Whether an answer equals the gold answer; None where only a symbolic parser could tell.

    Settled here are the same notation (up to spacing and typesetting), two plain numbers or lists of them, an option
    named by its letter, and gold answers that are words; math-verify would read words as products of letters, equal to
    any anagram.
    """
    ours, theirs = plain_text(answer), plain_text(gold)
    if not ours or not theirs:
        return False
    if ours == theirs:
        return True
    number, gold_number = plain_number(ours), plain_number(theirs)
    if number and gold_number:
        return _equal_numbers(number, gold_number)
    lists = _number_list(ours), _number_list(theirs)
    if all(lists):
        return _equal_lists(*lists)
    if _LETTER.fullmatch(theirs):
        choice = _CHOICE.match(ours)
        if choice:
            return choice["letter"] == theirs.strip("()")
        # another single letter, or a number, is not this letter
        return False if number or len(ours) == 1 else None
    if _WORDS.fullmatch(theirs):
        return ours.casefold() == theirs.casefold()
    return None


_TYPESETTING = re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\displaystyle|\\[!,;:]|\\\s|\\?\$")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}")
_SYNONYMS = {"\\dfrac": "\\frac", "\\tfrac": "\\frac", "{,}": ",", "−": "-", "–": "-", "°": "^\\circ", "\\%": "%"}
_SYNONYM = re.compile("|".join(map(re.escape, _SYNONYMS)))
_SPACES = re.compile(r"\s+")
# A space between two letters or digits parts words or numbers; every other one is typesetting.
_SPACE_BETWEEN_SIGNS = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")
_LETTER = re.compile(r"\(?[A-Z]\)?")
# An option: its letter alone, in brackets, or before its value, as in "C) 59".
_CHOICE = re.compile(r"\(?(?P<letter>[A-Z])(?:[).]|$)")
# Four letters or more, or a short capitalised word: fewer are a product of variables.
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]{2,}[A-Za-z]|[A-Z][a-z]{1,2}")


def plain_text(answer: str) -> str:
    """An answer without the typesetting that does not change its meaning. Linear in its length."""
    text = _TYPESETTING.sub(" ", answer)
    text = _SYNONYM.sub(lambda match: _SYNONYMS[match.group()], text)
    text = _TEXT_COMMAND.sub(r" \1 ", text)
    text = _SPACE_BETWEEN_SIGNS.sub("", _SPACES.sub(" ", text).strip())
    return text.removesuffix(".") if not text.endswith("..") else text


_PLAIN_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>\d{1,3}(?:[, ]\d{3})+|\d*)(?P<decimals>\.\d*)?"
    r"(?:(?:[eE]|(?:\\times|\\cdot|\*|×) ?10\^)\{?(?P<exponent>[+-]?\d{1,3})\}?)?(?P<percent>%?)",
    re.ASCII,
)
_FRACTION = re.compile(
    r"(?P<sign>[+-]?)(?:\\frac ?(?:\{(?P<a>-?\d+)\}|(?P<b>\d)) ?(?:\{(?P<c>\d+)\}|(?P<d>\d))|(?P<e>\d+)/(?P<f>\d+))",
    re.ASCII,
)
_LONGEST_NUMBER = 400


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """A number as it was written: its exact value, and whether it was a decimal, a fraction or a percentage."""

    value: Fraction
    form: Literal["integer", "decimal", "fraction"]
    percent: bool = False


def plain_number(text: str) -> PlainNumber | None:
    r"""Read an integer, a decimal, a fraction of integers or a power of ten times one; None for anything else.

    Args:
        text: An answer as `plain_text` returns it. Thousands may be parted by commas or spaces.
    """
    if len(text) > _LONGEST_NUMBER:
        return None
    match = _FRACTION.fullmatch(text)
    if match:
        above, below = int(match["a"] or match["b"] or match["e"]), int(match["c"] or match["d"] or match["f"])
        if below == 0:
            return None
        value = Fraction(above, below)
        return PlainNumber(-value if match["sign"] == "-" else value, "fraction")
    match = _PLAIN_NUMBER.fullmatch(text)
    decimals = match and (match["decimals"] or "").removeprefix(".")
    if not match or not (match["whole"] or decimals):
        return None
    exponent = int(match["exponent"] or 0)
    digits = int(re.sub("[, ]", "", match["whole"]) + decimals)
    value = Fraction(digits) * Fraction(10) ** (exponent - len(decimals))
    form = "decimal" if decimals or exponent < 0 else "integer"
    return PlainNumber(-value if match["sign"] == "-" else value, form, bool(match["percent"]))


def _equal_numbers(number: PlainNumber, gold: PlainNumber) -> bool | None:
    """Exact for integers and fractions; decimals to six places, or to six digits where the gold one is below 1.

    math-verify compares at six places whatever the size, so that 1e-8 equals 1e-9. As there, a percentage equals the
    number with its sign left out and the number that it stands for.
    """
    values = {number.value}
    if number.percent != gold.percent:
        values.add(number.value / 100 if number.percent else number.value * 100)
    if gold.value in values:
        return True
    forms = {number.form, gold.form}
    if "decimal" not in forms:
        return False
    if "fraction" in forms:
        return None  # a third as 0.333333: math-verify rounds
    tolerance = min(Fraction(1), abs(gold.value)) / 2_000_000
    return any(abs(value - gold.value) <= tolerance for value in values)


def _number_list(text: str) -> tuple[str, list[PlainNumber]] | None:
    """The brackets and the plain numbers of a list such as ``(3,-2)`` or ``1,-2``; None for anything else."""
    brackets = text[:1] + text[-1:] if text[:1] == "(" and text[-1:] == ")" else ""
    items = (text[1:-1] if brackets else text).split(",")
    numbers = [plain_number(item) for item in items] if 2 <= len(items) <= 20 else [None]
    return None if None in numbers else (brackets, numbers)


def _equal_lists(ours: tuple[str, list[PlainNumber]], gold: tuple[str, list[PlainNumber]]) -> bool | None:
    """Item by item; without brackets the order does not count."""
    if ours[0] != gold[0] or len(ours[1]) != len(gold[1]):
        return None
    numbers, golds = ([*items] if gold[0] else sorted(items, key=lambda n: n.value) for _, items in (ours, gold))
    verdicts = [_equal_numbers(number, item) for number, item in zip(numbers, golds, strict=True)]
    if False in verdicts:
        return False
    return None if None in verdicts else True
