r"""Find the answer in a completion, and decide whether it equals the gold answer if text alone can tell.

Pure functions on untrusted text. Undecided answers go to math-verify, in processes that can be killed
(`amir_grpo.grading`). `docs/evaluate.md` compares math-verify alone with both together on a list of cases.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from numbers import Real
from typing import Any

from amir_grpo.notation import SCALE, PlainNumber, plain_number, plain_text

# --- finding the answer -------------------------------------------------------------------------------------------

# A box without braces must hold one number or letter, with a space before it and a delimiter after it: anything else
# may be a box that lost a brace.
_BOX_TOKEN = re.compile(
    r"(?P<box>\\boxed\s*\{)|\\boxed +(?P<bare>-?\d+(?:[.,/]\d+)*|[A-Za-z])(?=[\s$.,;:<]|$)"
    r"|\\\\(?!boxed)|\\[{}]|(?P<open>\{)|(?P<close>\})"
)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last closed ``\boxed{...}``, or else of the last ``\fbox{...}``; None without either.

    The time is linear in the text.
    """
    return _last_boxed(text) or _last_boxed(text.replace("\\fbox", "\\boxed"))


def _last_boxed(text: str) -> str | None:
    start = text.find("\\boxed")
    if start < 0:
        return None
    last, begins = (0, 0), []  # begins: for each open brace, where the content of its box begins, or 0 without a box
    for token in _BOX_TOKEN.finditer(text, start):
        if token["bare"]:
            last = max(last, token.span("bare"))
        elif token["box"] or token["open"]:
            begins.append(token.end() if token["box"] else 0)
        elif token["close"] and begins and (begin := begins.pop()):
            last = max(last, (begin, token.start()))
    return text[slice(*last)] if last[0] else None


def extract_answer(completion: str) -> str | None:
    r"""Return the answer that a completion gives, or None.

    The answer is the last ``\boxed{}`` in the last closed ``<answer>`` block, or the whole block if it has no box.
    Without such a block, it is the last ``\boxed{}`` of the completion. Unclosed boxes and blocks do not count, so a
    truncated number is not taken for an answer. The time is linear in the completion.
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


def gold_answers(value: Any) -> list[str]:
    """Return the right answers of a problem from a data set's value: a text, a number, or a list of these.

    Raises:
        TypeError: If the value or an item is anything else: a boolean, None, NaN, an infinity, an object.
    """
    value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's types
    values = value if isinstance(value, list | tuple) else [value]
    for item in values:
        number = isinstance(item, Real) and not isinstance(item, bool) and math.isfinite(item)
        if not (number or isinstance(item, str)):
            raise TypeError(f"{repr(item)[:40]} is no answer: give a text, a number or a list of these")
    return [item if isinstance(item, str) else str(int(item) if item == int(item) else item) for item in values]


# --- comparing by text --------------------------------------------------------------------------------------------


def decide(answer: str, gold: str) -> bool | None:
    """Return whether an answer equals the gold answer; None if only a symbolic parser can tell.

    This settles equal notation (up to spacing and typesetting), plain numbers, lists of them, numbers with a base,
    ratios, times, letters of options, words, and prose. math-verify would read words as products of letters, equal to
    any anagram, and find a number in "not 7".
    """
    ours, theirs = plain_text(answer), plain_text(gold)
    if not ours or not theirs:
        return False
    if ours == theirs:
        return True
    rules = (_by_number, _by_list, _by_base, _by_ratio, _by_time, _by_letter, _by_words, _by_prose)
    return next((verdict for rule in rules if (verdict := rule(ours, theirs)) is not None), None)


def _equal_numbers(number: PlainNumber, gold: PlainNumber) -> bool | None:
    """Compare integers and fractions exactly, decimals to six places, or to six digits if the gold answer is below 1.

    math-verify always compares six places, so that to it 1e-8 equals 1e-9. As in math-verify, 15 % equals 15 and 0.15.
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
        return None  # 1/3 may be written as 0.333333: math-verify rounds
    tolerance = min(Fraction(1), abs(gold.value)) / 2_000_000
    return any(abs(value - gold.value) <= tolerance for value in values)


def _compare(numbers: list[PlainNumber], golds: list[PlainNumber]) -> bool | None:
    """Compare item by item: False if any item differs."""
    if len(numbers) != len(golds):
        return False
    verdicts = {_equal_numbers(*pair) for pair in zip(numbers, golds, strict=True)}
    return False if False in verdicts else None if None in verdicts else True


def _by_number(ours: str, theirs: str) -> bool | None:
    number, gold = plain_number(ours), plain_number(theirs)
    if number and gold:
        return _equal_numbers(number, gold)
    inequality = _INEQUALITY.search(ours if gold else theirs)
    return False if (number or gold) and inequality else None


_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt|not)(?![A-Za-z])")


def _by_list(ours: str, theirs: str) -> bool | None:
    """Settle lists: ``(3,-2)`` in this order, ``1,-2`` and ``{1,-2}`` in any order."""
    (brackets, numbers), (gold_brackets, golds) = _number_list(ours), _number_list(theirs)
    if not numbers or not golds or brackets != gold_brackets or len(numbers) != len(golds):
        return None
    if not brackets or brackets == r"\{}":
        numbers, golds = (sorted(items, key=lambda item: item.value) for items in (numbers, golds))
    return _compare(numbers, golds)


_LIST = re.compile(r"(?P<open>\(|\[|\\\{)?(?P<items>[^()\[\]]*?)(?P<close>\)|\]|\\\})?")


def _number_list(text: str) -> tuple[str, list[PlainNumber]]:
    match = _LIST.fullmatch(text)
    items = re.split("[,;]", match["items"]) if match and bool(match["open"]) == bool(match["close"]) else []
    numbers = [plain_number(item.strip()) for item in items] if 2 <= len(items) <= 20 else [None]
    return ("", []) if None in numbers else ((match["open"] or "") + (match["close"] or ""), numbers)


_BASE = re.compile(
    r"\(?(?P<digits>\d[\dA-Za-z]*)\)?(?:_\{?(?:base)?|,? ?\(?(?:in )?base ?)(?P<base>\d\d?|two|three|eight|sixteen)[})]?"
)
_BASES = {"two": "2", "three": "3", "eight": "8", "sixteen": "16"}


def _by_base(ours: str, theirs: str) -> bool | None:
    """Settle numbers with a stated base: digits and bases must agree, or digits alone if only one states its base."""
    match, gold = _BASE.fullmatch(ours), _BASE.fullmatch(theirs)
    if not match and not gold:
        return None
    bases = {_BASES.get(stated["base"], stated["base"]) for stated in (match, gold) if stated}
    digits = {
        (stated["digits"] if stated else text).lstrip("0").upper() for stated, text in ((match, ours), (gold, theirs))
    }
    if len(digits) == 1:
        return len(bases) == 1
    return False if match and gold else None


_SIMPLE = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)"
_RATIO = re.compile(rf"({_SIMPLE})(?::| (?:is )?(?P<word>to) )({_SIMPLE})")


def _by_ratio(ours: str, theirs: str) -> bool | None:
    """Settle ratios such as ``3 to 4`` and ``3:4``; without the word "to", math-verify reads them as fractions."""
    match, gold = _RATIO.fullmatch(ours), _RATIO.fullmatch(theirs)
    if not any(ratio and ratio["word"] for ratio in (match, gold)):
        return None
    return bool(match and gold) and Fraction(match[1]) * Fraction(gold[3]) == Fraction(match[3]) * Fraction(gold[1])


_TIME = re.compile(r"(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d))? ?(?:(?P<half>[apAP])\.? ?[mM]\.?)?")


def _by_time(ours: str, theirs: str) -> bool | None:
    """Settle times if at least one says am or pm: they must agree, though one may leave the half of the day open."""
    times = [_TIME.fullmatch(text) for text in (ours, theirs)]
    if not all(times) or not any(time["half"] for time in times):
        return None
    if not all(time["half"] or time["minute"] for time in times):
        return None  # "3 PM" against "3": a number with a unit
    return bool(set.intersection(*map(_minutes, times)))


def _minutes(time: re.Match[str]) -> set[int]:
    """Return the minutes of the day that a time may mean: one in each half of the day unless it says which."""
    hour, minute = int(time["hour"]), int(time["minute"] or 0)
    if hour > 12:
        return {60 * hour + minute}
    return {60 * (hour % 12 + 12 * (half in "pP")) + minute for half in time["half"] or "ap"}


# An option: a letter alone, in brackets, or before its value, as in "C) 59".
_CHOICE = re.compile(r"(?i:option|choice)? ?[(\[]?(?P<letter>[A-Z])(?:[).\]:]+|$)(?P<value>.*)")


def _by_letter(ours: str, theirs: str) -> bool | None:
    choice, gold = _CHOICE.match(ours), _CHOICE.fullmatch(theirs)
    if not gold or gold["value"]:
        return None
    if choice:
        return choice["letter"] == gold["letter"] and not _NEGATED.match(choice["value"])
    # another single letter, or a number, is not this letter
    return False if plain_number(ours) or len(ours) == 1 else None


# Four letters or more, or a short capitalised word: other short words may be products of variables.
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]{2,}[A-Za-z]|[A-Z][a-z]{1,2}")


def _by_words(ours: str, theirs: str) -> bool | None:
    return ours.casefold() == theirs.casefold() if _WORDS.fullmatch(theirs) else None


# Words that change what is said about a number: a negation, a comparison, or a computation.
_NEGATED = re.compile(r"\s*(?:is |was )?(?i:not|wrong|incorrect|false|untrue)\b")
_REFUSED = re.compile(
    rf"""~~|\\x?cancel|\\sout|(?:is|are|was|do|does|ca|ould|has|have)n['’]?t(?![a-z])|(?<![\\a-z])(?:
    (?:not|cannot|never|nor|neither|except|excluding|unless|instead|rather|opposite|(?:all|anything)\ but|other\ than)
    |no(?=\W*$|\ \d|\ (?:more|less|fewer)\b)
    |(?:wrong|incorrect|false|untrue)(?!\ (?!(?:answer|value|result|solution)\b)[a-z])
    |at\ (?:least|most)|half|{SCALE}
    |(?:than|over|under|above|below|beyond|exceed\w*|within|between|(?<!add\ )(?<!adds\ )up\ to|or\ equal\ to
    |(?<=\d\ )to|negative|minus|twice|double|triple|thrice|root\ of|third\ of|quarter\ of|square\ of)
    (?=(?:\ (?:about|roughly|around|approximately))?\ ?[-+.\d\\])
    )(?![a-z])
    |\d\ (?:squared|cubed|factorial|root|halves|thirds|fourths|fifths|and\ (?:above|below|over|under|up|a|one)\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_TOKEN = re.compile(
    r"(?P<number>(?<![\w.\\])[-+]?(?:\d+ ?)?(?:\\frac\{\d+\}\{\d+\}|(?:\d+(?:\.\d+)?(?:/\d+)?|\.\d+)(?!\w|\.\d))%?)"
    r"|(?P<word>[A-Za-z]+(?:['’-][A-Za-z]+)*)|[\s,;:.()!?'-]|(?P<other>.)"
)
_WORD_TIMES = re.compile(r"[^\d=\\]*[A-Za-z]{4,}[^\d=]*\d")
_FORMULA = {"max", "min", "gcd", "lcm", "mod"}
_CONNECTIVES = {"a", "and", "or", "the", "plus"}
_ALTERNATIVE = re.compile(r"(?<![\\A-Za-z])or(?![A-Za-z])", re.IGNORECASE)
_CONCLUSION = re.compile(r"(?<![\\A-Za-z])(?:is|are|equals)(?![A-Za-z])|: ?")


def _by_prose(ours: str, theirs: str) -> bool | None:
    """Settle sentences: refuse those that negate, compare or compute; compare the numbers of all others."""
    if _REFUSED.search(ours) or _REFUSED.search(theirs):
        return False
    (labels, numbers), (gold_labels, golds) = _labelled(ours), _labelled(theirs)
    if not numbers or not golds or not (labels or gold_labels):
        # a parser would read letters times zero, which is zero
        return False if _WORD_TIMES.match(ours) and golds and golds[0].value == 0 else None
    if len(golds) == 1 and len(numbers) > 1 and len(parts := _CONCLUSION.split(ours)) == 2:
        numbers = _labelled(parts[1])[1]  # "The sum of 3 and 4 is 7"
    if len(golds) == 1 and _ALTERNATIVE.search(f"{ours} {theirs}"):
        return False
    if len(golds) > 1 and labels and gold_labels:
        if sorted(labels) != sorted(gold_labels):
            return False
        sides = (labels, numbers), (gold_labels, golds)
        by_label = (sorted(zip(*side, strict=True), key=lambda pair: (pair[0], pair[1].value)) for side in sides)
        numbers, golds = ([number for _, number in pairs] for pairs in by_label)
    return _compare(numbers, golds)


def _labelled(text: str) -> tuple[list[str], list[PlainNumber]]:
    """Return the words beside each number of a sentence, and the numbers; no words for lists, nothing for formulas."""
    words: list[list[str]] = [[]]
    numbers: list[PlainNumber | None] = []
    for token in _TOKEN.finditer(text):
        if token["other"]:
            return [], []
        if token["number"]:
            numbers.append(plain_number(token["number"]))
            words.append([])
        elif token["word"] and token["word"].lower() not in _CONNECTIVES:
            words[-1].append(token["word"].lower())
    if None in numbers or any(len(word) == 1 or word in _FORMULA for group in words for word in group):
        return [], []
    labels = words[:-1] if words[0] and not words[-1] else words[1:]
    spoken = any(len(word) > 2 for group in words for word in group)
    return ([" ".join(label) for label in labels] if spoken else []), numbers
