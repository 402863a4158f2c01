r"""Answers: where a completion gives one, and what is decided without a symbolic parser."""

from decimal import Decimal
from fractions import Fraction

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
    starts = [i for i in range(len(text)) if text.startswith(r"\boxed{", i)]
    for start in reversed(starts):
        depth = 0
        for end in range(start + len(r"\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + len(r"\boxed{") : end]
    return None


@given(st.lists(st.sampled_from(["{", "}", "}", "{{", "}}", r"\boxed{", "a", " "]), max_size=14).map("".join))
@settings(max_examples=500)
def test_last_boxed_agrees_with_brute_force(text):
    assert last_boxed(text) == last_boxed_by_brute_force(text)


# --- what is decided without a parser -----------------------------------------------------------------------------

DECIDED = [
    ("5", "5", True),
    ("5", "6", False),
    ("05", "5", True),
    ("+5", "5", True),
    ("−5", "-5", True),
    ("- 5", "-5", True),
    ("5.", "5", True),
    ("5.0", "5", True),
    (".5", "0.50", True),
    ("2,125", "2125", True),
    (r"10,\!080", "10080", True),
    ("10{,}080", "10,080", True),
    ("1 0", "10", None),
    (r"\$18", "18", True),
    (r"\$32,\!348", "32348", True),
    ("3e8", r"3 \times 10^8", True),
    ("3e8", "300000000", True),
    ("1e-8", "1e-9", False),
    ("0", "1e-9", False),
    ("0.00006721", ".0000672", False),
    ("3.1415926", "3.1415927", True),
    ("3.14", "3.14159", False),
    ("15%", "15", True),
    (r"15\%", "0.15", True),
    ("0.15", "15%", True),
    ("16%", "15", False),
    (r"\frac{1}{2}", r"\dfrac12", True),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    ("1/2", r"\frac{2}{4}", True),
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{3}", "0.333333", None),
    ("3", r"\frac{10}{3}", False),
    ("3.0000005", "3", True),
    ("3.0000006", "3", False),
    (r"\frac{1}{0}", "5", None),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
    (r"\text{Evelyn}", "evelyn", True),
    ("Evenly", r"\text{Evelyn}", False),
    ("none of these", "None of these", True),
    ("C", r"\text{(C)}", True),
    ("C) 59", "C", True),
    ("(B)", "C", False),
    ("B. 59", "C", False),
    ("59", "C", False),
    ("(X)", "X", True),
    ("x", "C", False),
    ("x+1", "C", None),
    ("x", "5", None),
    ("", "5", False),
    (r"\,", "5", False),
    ("(3, -2)", "(3,-2.0)", True),
    ("(3, -2)", "(-2,3)", False),
    ("3, -2", "-2,3", True),
    ("3, -2", "-2,4", False),
    ("3, -2", "(3,-2)", None),
    ("3", "3,5", None),
    ("(3)", "(5)", None),
    ("(3,45", "(3,25", None),
    ("(1/3, 2)", "(0.333333,2)", None),
    ("1," * 19 + "1", "1," * 19 + "2", False),
    ("1," * 20 + "1", "1," * 20 + "2", None),
    (r"(\frac12, 4)", "(0.5,4)", True),
    ("٣", "3", None),
]


@pytest.mark.parametrize(("answer", "gold", "verdict"), DECIDED)
def test_decide(answer, gold, verdict):
    assert decide(answer, gold) is verdict


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
    ("text", "number"),
    [
        ("9" * 400, PlainNumber(Fraction(10**400 - 1), "integer")),
        ("3e2", PlainNumber(Fraction(300), "integer")),
        ("3e-2", PlainNumber(Fraction(3, 100), "decimal")),
        ("-2.50", PlainNumber(Fraction(-5, 2), "decimal")),
        ("-7/2", PlainNumber(Fraction(-7, 2), "fraction")),
        ("15%", PlainNumber(Fraction(15), "integer", percent=True)),
    ],
)
def test_plain_numbers(text, number):
    assert plain_number(text) == number


@given(st.text(max_size=60), st.text(max_size=60))
def test_decide_takes_any_text(answer, gold):
    assert decide(answer, gold) in (True, False, None)
    assert decide(answer, answer) is bool(plain_text(answer))


def test_a_full_stop_ends_an_answer_and_an_ellipsis_goes_on():
    assert plain_text("blue.") == "blue"
    assert plain_text("1, 2, ...") == "1,2,..."
