r"""Reward functions as TRL calls them: completions and columns in, a list of floats out.

The format is ``<think>…</think><answer>…</answer>``, with calibration followed by
``<analysis>…</analysis><confidence>0.8</confidence>``; white space around the tags is free.

`docs/published-code.md` says where the published rewards differ.

The margin. Without calibration, a right and a wrong completion that are otherwise alike differ by 2.0. The published
δ = 2.0 is strict, and TRL's sum in float32 is 2.0 or a rounding error below it, so the pair is lost. With calibration,
they differ by 2.0 + 2p - 1 if both state the confidence p. Without calibration, all rewards except correctness span
1.4: a margin from 1.4 to just under 2.0 pairs only right with wrong completions, and loses none that are otherwise alike.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from amir_grpo.answers import extract_answer, gold_answers
from amir_grpo.grading import grade_many
from amir_grpo.notation import plain_number, plain_text

if TYPE_CHECKING:
    from datasets import Dataset

Completion = str | Sequence[Mapping[str, Any]]
RewardFunction = Callable[..., list[float]]

TAGS = ("think", "answer")
CALIBRATION_TAGS = (*TAGS, "analysis", "confidence")
MAX_CLAIMS = 5
_MAX_TRAILING_PENALTY = 0.1


def reward_functions(calibration: bool = False, claims: bool = True) -> list[RewardFunction]:
    """List the reward functions of a run; their names are TRL's log keys.

    Args:
        calibration: Whether completions must state their confidence, which changes the format and the tags, and adds
            the Brier score.
        claims: Whether true claims of arithmetic are rewarded. The published lists, with and without calibration, have
            that function commented out.
    """
    functions = [correctness, integer_answer, *_format_rewards(calibration)]
    return functions + [arithmetic_claims] * claims + [brier] * calibration


def correctness(completions: Sequence[Completion], answer: Sequence[Any], **columns: object) -> list[float]:
    """Return 2.0 for a completion that is right by `amir_grpo.grading`, which the evaluation also uses."""
    return [2.0 if grade else 0.0 for grade in grade_many(completion_texts(completions), answer)]


def integer_answer(completions: Sequence[Completion], **columns: object) -> list[float]:
    """Return 0.2 for a completion whose answer is an integer, right or wrong, such as ``-7``, ``1,250`` or ``3.0``."""
    return [0.2 if _is_integer(extract_answer(text)) else 0.0 for text in completion_texts(completions)]


def _format_rewards(calibration: bool) -> tuple[RewardFunction, RewardFunction]:
    # closures instead of an argument, since TRL passes every column of a data set as an argument
    tags = CALIBRATION_TAGS if calibration else TAGS

    def strict_format(completions: Sequence[Completion], **columns: object) -> list[float]:
        """Return 0.5 for a completion that follows the format exactly; see `has_format`."""
        return [0.5 if has_format(text, calibration) else 0.0 for text in completion_texts(completions)]

    def xml_tags(completions: Sequence[Completion], **columns: object) -> list[float]:
        """Return 0.025 per opening or closing tag that occurs once, less 0.001 per character after them, up to 0.1."""
        return [_tag_score(text, tags) for text in completion_texts(completions)]

    return strict_format, xml_tags


strict_format, xml_tags = _format_rewards(calibration=False)


def arithmetic_claims(completions: Sequence[Completion], **columns: object) -> list[float]:
    """Return 0.1 for each distinct true claim of arithmetic, such as ``3+4=7``, for at most `MAX_CLAIMS` of them.

    Without the limit, or if claims could be repeated, a completion would earn more by claims than by being right.
    """
    return [0.1 * count_true_claims(text, MAX_CLAIMS) for text in completion_texts(completions)]


def brier(completions: Sequence[Completion], answer: Sequence[Any], **columns: object) -> list[float]:
    """Return 1 - (p - a)² for a stated confidence p, with a = 1 for right and 0 for wrong; 0.0 without a confidence.

    A missing confidence earns as little as the worst one, so that leaving it out never pays.
    """
    texts = completion_texts(completions)
    stated = zip(map(stated_confidence, texts), grade_many(texts, answer), strict=True)
    return [0.0 if confidence is None else 1.0 - (confidence - grade.correct) ** 2 for confidence, grade in stated]


def check_answers(dataset: Dataset) -> None:
    """Refuse a data set in which a row has no answer that `correctness` can compare with.

    `AmirGRPOTrainer` calls the ``check_dataset`` of every reward function that has one, before the training.

    Raises:
        ValueError: If there is no column ``answer``, or a row of it holds a boolean, None, NaN, an object or nothing.
    """
    if not hasattr(dataset, "__len__"):
        return  # a stream's rows are only seen during the training
    if "answer" not in dataset.column_names:
        raise ValueError(f"No column 'answer' to judge completions by; there are {dataset.column_names}.")
    for row, value in enumerate(dataset["answer"]):
        try:
            answers = gold_answers(value)
        except TypeError as error:
            raise ValueError(f"Column 'answer', row {row}: {error}.\nCorrect or remove the row.") from None
        if not answers or not all(map(str.strip, answers)):
            raise ValueError(f"Column 'answer', row {row}: no answer.\nCorrect or remove the row.")


correctness.check_dataset = brier.check_dataset = check_answers


def has_format(completion: str, calibration: bool = False) -> bool:
    """Return whether a completion has exactly its tags in order, each once, with an answer and any wanted confidence.

    White space around the tags is free. The time is linear in the completion.
    """
    tags = CALIBRATION_TAGS if calibration else TAGS
    if _marks_once(completion, tags) < 2 * len(tags):
        return False
    blocks = r"\s*".join(rf"<{tag}>(?P<{tag}>.*?)</{tag}>" for tag in tags)
    found = re.fullmatch(rf"\s*{blocks}\s*", completion, re.DOTALL)
    if not found or not found["answer"].strip():
        return False
    return not calibration or stated_confidence(completion) is not None


_CONFIDENCE = re.compile(r"<confidence>\s*(\d*\.?\d+)\s*</confidence>")


def stated_confidence(completion: str) -> float | None:
    """Return the confidence in the last confidence block; None without one, or if it is not a number from 0 to 1."""
    start = completion.rfind("<confidence>")
    match = _CONFIDENCE.match(completion, start, start + 100) if start >= 0 else None
    confidence = float(match[1]) if match else math.nan
    return confidence if 0 <= confidence <= 1 else None


# --- parts --------------------------------------------------------------------------------------------------------


def completion_texts(completions: Sequence[Completion]) -> list[str]:
    """Return the text of each completion: of a conversation, its last message if that is the assistant's."""
    return [text if isinstance(text, str) else _said(text[-1]) if text else "" for text in completions]


def _said(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if message.get("role", "assistant") != "assistant":
        return ""
    parts = [content] if isinstance(content, str) else content
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in parts)


def _is_integer(answer: str | None) -> bool:
    number = plain_number(plain_text(answer)) if answer and len(answer) <= 100 else None
    return number is not None and not number.percent and number.form != "fraction" and number.value.denominator == 1


def _marks_once(text: str, tags: Sequence[str]) -> int:
    """Count the opening and closing tags that occur exactly once in a text."""
    return sum(text.count(mark) == 1 for tag in tags for mark in (f"<{tag}>", f"</{tag}>"))


def _tag_score(text: str, tags: Sequence[str]) -> float:
    _, closing, trailing = text.rpartition(f"</{tags[-1]}>")
    penalty = 0.001 * len(trailing.strip()) if closing else 0.0
    return 0.025 * _marks_once(text, tags) - min(penalty, _MAX_TRAILING_PENALTY)


# --- claims of arithmetic -----------------------------------------------------------------------------------------

_SYNONYMS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"}
_SYNONYM = re.compile("|".join(map(re.escape, _SYNONYMS)))
_BULLET = re.compile(r"^[ \t]*[-*+][ \t]+", re.MULTILINE)
_DOLLAR = re.compile(r"\\?\$")
# Numbers, operators and what may stand between them, on one line; one class, so that the search is linear.
_RUN = re.compile(r"[0-9.,+\-*/()= \t]+")
# The end of a sentence or list item, or a space between two claims.
_SENTENCE_END = re.compile(r"[.,](?=[ \t]|$)|(?<=[0-9)])[ \t]+(?=[0-9(])")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_MAX_EXAMINED = 10_000  # claims: megabytes of false ones must not hold up a training step
_MAX_EXPRESSION = 100  # characters: keeps the exact arithmetic small
_CLOSE = Fraction(1, 1_000_000)


def count_true_claims(text: str, limit: int) -> int:
    """Count the distinct true claims in a text, up to a limit.

    A claim is two expressions of numbers, ``+ - * /`` and brackets with ``=`` between them; the left one must have an
    operator. It is true if they agree to 1e-6. A part of a larger formula, as in ``x + 3 + 4 = 7``, is not a claim.
    Python parses the expressions, and this module evaluates the four operations in exact arithmetic.
    """
    text = _BULLET.sub("", _DOLLAR.sub("", _SYNONYM.sub(lambda match: _SYNONYMS[match.group()], text)))
    claims: set[str] = set()
    for left, right in itertools.islice(_claims(text), _MAX_EXAMINED):
        claim = re.sub(r"[ \t]", "", f"{left}={right}")
        if len(claims) < limit and claim not in claims and _is_true(left, right):
            claims.add(claim)
    return len(claims)


def _claims(text: str) -> Iterator[tuple[str, str]]:
    for run in _RUN.finditer(text):
        if "=" not in run.group():
            continue
        sides_of_sentences = [sentence.split("=") for sentence in _SENTENCE_END.split(run.group())]
        before, after = text[max(run.start() - 1, 0) : run.start()], text[run.end() : run.end() + 1]
        first, last = sides_of_sentences[0], sides_of_sentences[-1]
        if before and _continues(before, first[0]):
            first[0] = ""
        if (after.isalpha() or after in ("^", "_", "\\", "{")) and not last[-1].endswith((" ", "\t")):
            last[-1] = ""
        for sides in sides_of_sentences:
            yield from itertools.pairwise(map(str.strip, sides))


def _continues(before: str, expression: str) -> bool:
    """Return whether the character before an expression belongs to it, as in ``x + 3``, ``2^3 + 1`` or ``x3 + 1``."""
    adjacent = not expression.startswith((" ", "\t"))
    operator_first = expression.lstrip()[:1] in ("+", "-", "*", "/")
    if before.isalpha():
        return adjacent or operator_first
    return before in "^_{\\" or (operator_first and before in ")}]!%|")


def _is_true(left: str, right: str) -> bool:
    if max(len(left), len(right)) > _MAX_EXPRESSION:
        return False
    # drop a bracket that encloses the whole claim
    if left.count("(") > left.count(")"):
        left = left.removeprefix("(")
    if right.count(")") > right.count("("):
        right = right.removesuffix(")")
    try:
        stated, result = _parsed(left), _parsed(right)
        has_operator = any(isinstance(node, ast.BinOp) for node in ast.walk(stated))
        return has_operator and abs(_value(stated) - _value(result)) <= _CLOSE
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False


def _parsed(expression: str) -> ast.expr:
    # numbers become strings in brackets: exact, and two of them cannot run together
    quoted = _NUMBER.sub(lambda number: f"('{number.group().replace(',', '')}')", expression.strip())
    return ast.parse(quoted, mode="eval").body


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=str(number)):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_value(left), _value(right))
    raise ValueError("no arithmetic")
