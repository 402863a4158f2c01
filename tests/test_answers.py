r"""Answers: where a completion gives one, and what is decided without a symbolic parser."""

import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amir_grpo.answers import PlainNumber, decide, extract_answer, last_boxed, plain_number, plain_text

# --- where the answer is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"<think>\boxed{1}</think><answer>\boxed{2}</answer>", "2"),
        (r"<answer>\boxed{1}</answer> no: <answer>\boxed{2}</answer>", "2"),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        (r"<answer>\boxed{1} or rather \boxed{2}</answer>", "2"),
        (r"<answer>\boxed{1}</answer> and \boxed{2}", "1"),
        (r"<answer> 42 </answer>", "42"),
        (r"so \boxed{1}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{7} and \boxed{1", "7"),
        (r"<answer>\boxed{1</answer>", r"\boxed{1"),
        (r"<answer>\boxed{12", None),
        (r"<answer>5</answer> then <answer>\boxed{12", "5"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\\boxed{5}", "5"),
        (r"\boxed{a \\ b}", r"a \\ b"),
        (r"\boxed{}", None),
        ("<answer> </answer>", None),
        ("</answer>5<answer>", None),
        ("the answer is 5", None),
        ("", None),
        ("}}}}{{{{", None),
    ],
)
def test_extract_answer(completion, answer):
    assert extract_answer(completion) == answer


def last_boxed_by_brute_force(text):
    """The last box that closes, by trying every start from the end; braces only, no escapes."""
    for box in reversed([*re.finditer(r"\\boxed\{", text)]):
        depth = 1
        for end in range(box.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[box.end() : end]
    return None


@given(st.lists(st.sampled_from(["{", "}", "}", "{{", "}}", r"\boxed{", "a", " "]), max_size=14).map("".join))
@settings(max_examples=500)
def test_last_boxed_agrees_with_brute_force(text):
    assert last_boxed(text) == last_boxed_by_brute_force(text)


# --- what is decided without a parser -----------------------------------------------------------------------------

CASES = (Path(__file__).parent / "decided_cases.tsv").read_text(encoding="utf-8").splitlines()[1:]


@pytest.mark.parametrize("case", CASES)
def test_decide(case):
    answer, gold, verdict, _ = case.split("\t")
    assert decide(answer, gold) is {"yes": True, "no": False, "open": None}[verdict]


NUMBERS = st.one_of(
    st.integers(-1200, 1200).map(str),
    st.decimals(-30, 30, allow_nan=False, places=3).map("{:f}".format),
    st.integers(1000, 10**7).map("{:,}".format),
    st.tuples(st.integers(-9, 9), st.integers(1, 9)).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
)


@given(NUMBERS, NUMBERS)
@settings(max_examples=100, deadline=None)
def test_numbers_are_decided_as_math_verify_does(answer, gold):
    math_verify = pytest.importorskip("math_verify")
    verdict = decide(answer, gold)
    if verdict is not None:
        golds, answers = (math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer))
        assert verdict is math_verify.verify(golds, answers, timeout_seconds=None)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=8))
def test_plain_number_reads_decimals_exactly(decimal):
    number = plain_number(f"{decimal:f}")
    assert Decimal(number.value.numerator) / Decimal(number.value.denominator) == decimal
    assert decide(f"{decimal:f}", f"{decimal:f}") is True


@pytest.mark.parametrize(
    "text", ["", ".", "-", "1.2.3", "1,2", "12,34", "e5", "1e", "1e99999", "x", "1/2/3", "9" * 401, "٣"]
)
def test_what_is_no_plain_number(text):
    assert plain_number(text) is None


@pytest.mark.parametrize(
    ("text", "value", "form"),
    [
        ("9" * 400, 10**400 - 1, "integer"),
        ("3e2", 300, "integer"),
        ("3e-2", Fraction(3, 100), "decimal"),
        ("-2.50", Fraction(-5, 2), "decimal"),
        ("-7/2", Fraction(-7, 2), "fraction"),
        ("15%", 15, "integer"),
    ],
)
def test_plain_numbers(text, value, form):
    assert plain_number(text) == PlainNumber(value, form, percent="%" in text)


@given(st.text(max_size=60), st.text(max_size=60))
def test_decide_takes_any_text(answer, gold):
    assert decide(answer, gold) in (True, False, None)
    assert decide(answer, answer) is bool(plain_text(answer))


def test_a_full_stop_ends_an_answer_and_an_ellipsis_goes_on():
    assert plain_text("blue.") == "blue"
    assert plain_text("1, 2, ...") == "1,2,..."
