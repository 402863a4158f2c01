"""Rewards: against values worked out by hand, an evaluator of Python's own, and TRL's float32 arithmetic."""

import re
from fractions import Fraction

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from amir_grpo import rewards
from amir_grpo.rewards import (
    arithmetic_claims,
    brier,
    check_answers,
    correctness,
    count_true_claims,
    has_format,
    integer_answer,
    reward_functions,
    stated_confidence,
    strict_format,
    xml_tags,
)

GOOD = r"<think>3+4=7</think><answer>\boxed{7}</answer>"
CONFIDENT = GOOD + "\n<analysis>sure</analysis>\n<confidence>0.8</confidence>"
BASE = ["correctness", "integer_answer", "strict_format", "xml_tags", "arithmetic_claims"]


def message(text, role="assistant"):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [((), BASE), ((True,), [*BASE, "brier"]), ((False, False), BASE[:-1]), ((True, False), [*BASE[:-1], "brier"])],
)
def test_names_are_the_log_keys_in_order(arguments, names):
    assert [function.__name__ for function in reward_functions(*arguments)] == names


@pytest.mark.parametrize("calibration", [False, True])
def test_as_trl_calls_them_whatever_the_columns_are_called(calibration):
    texts = [CONFIDENT if calibration else GOOD, "no answer", ""]
    columns = {"answer": [["7"], 7, 7.0], "prompts": [None] * 3, "completion_ids": [[1]] * 3, "id": ["a", "b", "c"]}
    others = dict.fromkeys(("calibration", "claims", "tags", "limit", "workers"), [not calibration] * 3)
    for function in reward_functions(calibration):
        as_text = function(completions=texts, **columns)
        assert as_text == function(completions=[message(text) for text in texts], trainer_state=object(), **columns)
        assert as_text == function(completions=texts, **columns, **others)
        assert len(as_text) == 3
        assert all(type(reward) is float for reward in as_text)
        assert as_text[0] > 0


@pytest.mark.parametrize(
    ("conversation", "reward"),
    [
        (message("5") + message("x", "tool") + message(GOOD), 2.0),
        (message(GOOD) + message("8", "tool"), 0.0),
        (message("5") + message(GOOD, "tool"), 0.0),
        (message("5") + message(GOOD, "user"), 0.0),
        (message([{"type": "text", "text": GOOD[:20]}, {"type": "text", "text": GOOD[20:]}]), 2.0),
        (message([{"type": "image", "image": None}, {"type": "text", "text": GOOD}]), 2.0),
        (message([GOOD]), 2.0),
        ([{"content": GOOD}], 2.0),
        (message(None), 0.0),
        (message([]), 0.0),
        ([], 0.0),
    ],
)
def test_a_conversation_is_judged_by_what_the_policy_says_last(conversation, reward):
    assert correctness([conversation], answer=["7"]) == [reward]


@pytest.mark.parametrize("answers", [["7", "8"], [7, 8], [7.5, -1.0], [["7"], ["8", "9"]], [[7, 8], [9]]])
def test_texts_and_numbers_are_answers(answers):
    check_answers(Dataset.from_dict({"answer": answers}))
    first = answers[0][0] if isinstance(answers[0], list) else answers[0]
    assert correctness([rf"\boxed{{{first}}}", r"\boxed{0}"], answer=answers) == [2.0, 0.0]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([True, False], "row 0: True is no answer"),
        ([1.0, float("nan")], "row 1: nan is no answer"),
        ([1.0, float("inf")], "row 1: inf is no answer"),
        (["7", None], "row 1: None is no answer"),
        ([["7"], ["8", None]], "row 1: None is no answer"),
        ([["7"], []], "row 1: no answer"),
        (["7", " "], "row 1: no answer"),
        ([{"value": 7}], "row 0: {'value': 7} is no answer"),
        ([[[7]]], r"row 0: [7] is no answer"),
        (None, "No column 'answer'"),
    ],
)
def test_other_answers_are_refused_by_row_before_training(answers, said):
    dataset = Dataset.from_dict({"question": ["?"]} if answers is None else {"answer": answers})
    with pytest.raises(ValueError) as refused:
        check_answers(dataset)
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3
    assert correctness.check_dataset is brier.check_dataset is check_answers


INTEGERS = ["7", "-7", "1,250", "3.0", r"11,\! 111", "**7**", "12 million"]
NO_INTEGERS = ["3.5", r"\frac{4}{2}", "50%", "x", "628, 372", "(1, 234)", "7 apples", "=-17"]


def test_integer_answer():
    for answers, reward in ((INTEGERS, 0.2), (NO_INTEGERS, 0.0)):
        completions = [rf"<answer>\boxed{{{answer}}}</answer>" for answer in answers]
        assert integer_answer(completions) == [reward] * len(answers)
    assert integer_answer(["7"]) == [0.0]


WELL_FORMED = [
    GOOD,
    f"  \n{GOOD}\n ",
    "<think></think>\n\n<answer>7</answer>",
    "<think>a\nb</think> <answer> x </answer>",
]
MALFORMED = [
    "",
    "7",
    r"<answer>\boxed{7}</answer>",
    f"Sure! {GOOD}",
    f"{GOOD} So 7.",
    "<think>a</think><answer> </answer>",
    "<think>a</think> b <answer>7</answer>",
    "<answer>7</answer><think>a</think>",
    "<think>a<think>b</think><answer>7</answer>",
    "<think>a</think><answer>7</answer><answer>7</answer>",
    "<think>a<answer>7</answer></think>",
    "<think>a</think><answer>7",
    "<THINK>a</THINK><answer>7</answer>",
]


def test_strict_format():
    assert strict_format(WELL_FORMED) == [0.5] * len(WELL_FORMED)
    assert strict_format(MALFORMED) == [0.0] * len(MALFORMED)
    wrong = [CONFIDENT.replace("0.8", confidence) for confidence in ("1.5", "-0.1", "high", "", "80%", "nan")]
    assert reward_functions(True)[2]([CONFIDENT, GOOD, *wrong]) == [0.5] + [0.0] * 7
    for text in (GOOD, CONFIDENT):
        assert has_format(text) is not has_format(text, calibration=True)


@pytest.mark.parametrize(
    ("text", "base", "calibrated"),
    [
        (GOOD, 0.1, 0.1),
        (CONFIDENT, 0.1 - 0.054, 0.2),
        (f"{GOOD}{'x' * 30}", 0.1 - 0.03, 0.1),
        (f"{GOOD}{'x' * 5000}", 0.0, 0.1),
        (f"{CONFIDENT}{'x' * 30}", 0.1 - 0.084, 0.2 - 0.03),
        ("<think>", 0.025, 0.025),
        ("<think><think></think>", 0.025, 0.025),
        ("</answer></answer>" + "x" * 200, -0.1, 0.0),
        ("nothing", 0.0, 0.0),
    ],
)
def test_xml_tags(text, base, calibrated):
    assert xml_tags([text]) == pytest.approx([base])
    assert reward_functions(True)[3]([text]) == pytest.approx([calibrated])


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("3+4=7", 1),
        ("7+12=19\n19-5=14", 2),
        ("3+4=8", 0),
        ("3+4=7, 3 + 4 = 7 and 3+4=7.", 1),
        ("so 3+4=7, (2*3=6).", 2),
        ("1+1=2 2+2=4", 2),
        ("3+4=7=8-1", 1),
        ("3+4=7+2=9", 1),
        ("(1+2)*3=9", 1),
        ("-3+4=1", 1),
        ("- 3+5=8", 1),
        ("1. 9-8=1", 1),
        ("$5 + $3 = $8 in all", 1),
        ("1,000+1=1,001", 1),
        (r"3 \times 4 = 12 and 48 ÷ 2 = 24 apples", 2),
        ("<<16-3-4=9>>", 1),
        ("0.1+0.2=0.3", 1),
        ("5=5", 0),
        ("10/3=3.33", 0),
        ("1/0=1", 0),
        ("x+3+4=7, x + 3 + 4 = 7", 0),
        ("2x+3=3", 0),
        ("x^2+5=5", 0),
        ("2^3+1=1", 0),
        (r"\frac{1}{2}+3=3", 0),
        ("3+4=7x", 0),
        ("3+4=7^2", 0),
        ("2**3=8", 0),
        ("3+4=\n7", 0),
        ("((3+4=7", 0),
        ("__import__('os').getpid()*0+1=1", 0),
    ],
)
def test_claims(text, claims):
    assert count_true_claims(text, 99) == claims


def test_claims_are_bounded_and_counted_once():
    many = "\n".join(f"{i}+1={i + 1}" for i in range(50))
    assert arithmetic_claims([many, "1+1=2\n" * 50, ""]) == pytest.approx([0.1 * rewards.MAX_CLAIMS, 0.1, 0.0])


expressions = st.recursive(
    st.integers(0, 50).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map("({})".format),
        inner.map("(-{})".format),
    ),
    max_leaves=6,
)


@given(expressions, st.integers(-3, 3))
@settings(max_examples=300, deadline=None)
def test_claims_agree_with_pythons_arithmetic(expression, error):
    try:
        value = eval(re.sub(r"(\d+)", r"Fraction(\1)", expression), {"Fraction": Fraction})  # made here
    except ZeroDivisionError:
        assert count_true_claims(f"{expression}=0", 9) == 0
        return
    has_operator = bool(re.search(r"[0-9)][-+*/]", expression))
    stated = f"{value.numerator + error * value.denominator}/{value.denominator}"
    # a claim that begins with a minus after nothing is a claim; with an operator after a word it would be none
    assert count_true_claims(f"We get\n{expression} = {stated}", 9) == int(has_operator and error == 0)


HOSTILE = {
    "equations": "1+1=" * 250_000,
    "claims": "1+2=4 " * 160_000,
    "brackets": "(" * 1_000_000 + "1+1=2",
    "digits": "1" * 1_000_000 + "+1=2",
    "points": "1." * 500_000 + "=1",
    "bullets": "- " * 500_000,
    "spaces": "1+1" + " " * 1_000_000 + "=2",
    "tags": "<think>" * 140_000 + "</answer>" * 100_000,
    "boxes": r"\boxed{" * 140_000,
    "confidence": "<confidence>" * 50_000 + "0" * 400_000,
}


@pytest.mark.timeout(120)  # measured: below 1 s; what is quadratic takes many minutes
@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_anything_is_linear(name):
    text = HOSTILE[name]
    for function in reward_functions(True):
        assert len(function([text], answer=["1"])) == 1


def test_nested_brackets_do_not_exhaust_the_stack():
    for length in (49, 5000):
        count_true_claims(f"{'(' * length}1+1{')' * length}=2 {'-' * length}1+1=2", 9)


def test_stated_confidence():
    assert stated_confidence("<confidence> .5 </confidence>") == 0.5
    assert stated_confidence("<confidence>0.1</confidence><confidence>1</confidence>") == 1.0
    for none in ("0.8", "<confidence>2</confidence>", "<confidence>0.8", "<confidence>0.1</confidence><confidence>?"):
        assert stated_confidence(none) is None


@given(st.floats(0, 1), st.booleans())
def test_brier(confidence, right):
    text = CONFIDENT.replace("0.8", f"{confidence:.6f}")
    expected = 1 - (round(confidence, 6) - right) ** 2
    # silence earns what the worst statement does
    assert brier([text, GOOD], answer=["7" if right else "8", "7"]) == pytest.approx([expected, 0.0])


def trl_rewards(completions, answers, calibration=False):
    """Total rewards as TRL's GRPOTrainer computes them: float32 a function, times weights, nansum over functions."""
    functions = reward_functions(calibration)
    per_function = torch.zeros(len(completions), len(functions))
    for index, function in enumerate(functions):
        per_function[:, index] = torch.tensor(function(completions, answer=answers), dtype=torch.float32)
    return (per_function * torch.ones(len(functions)).unsqueeze(0)).nansum(dim=1)


def alike(claims, suffix=""):
    steps = "\n".join(f"{i}+1={i + 1}" for i in range(1, claims + 1))
    return [rf"<think>{steps}</think><answer>\boxed{{{value}}}</answer>{suffix}" for value in (7, 8)]


@pytest.mark.parametrize("claims", range(6))
@pytest.mark.parametrize("copies", [1, 64])
def test_the_published_margin_loses_pairs_that_differ_in_correctness_only(claims, copies):
    totals = trl_rewards(alike(claims) * copies, ["7", "7"] * copies)
    gap = totals[0::2] - totals[1::2]
    assert gap.tolist() == pytest.approx([2.0] * copies, abs=5e-7)
    assert not (gap > 2.0).any()
    assert (gap > 1.4).all()


def test_the_published_margin_keeps_pairs_of_better_form():
    right, wrong = alike(2)
    worse = [wrong.replace("2+1=3", ""), f"Well. {wrong}", wrong.replace("8", "8.5"), wrong.replace("<think>", "")]
    totals = trl_rewards([right, *worse], ["7"] * 5)
    assert (totals[0] - totals[1:] > 2.0).all()


@pytest.mark.parametrize(("confidence", "kept"), [("0.2", False), ("0.4", False), ("0.6", True), ("1.0", True)])
def test_with_calibration_the_margin_keeps_confident_pairs(confidence, kept):
    pair = alike(3, f"<analysis>a</analysis><confidence>{confidence}</confidence>")
    right, wrong = trl_rewards(pair, ["7", "7"], calibration=True)
    assert (right - wrong).item() == pytest.approx(2 + 2 * float(confidence) - 1, abs=1e-6)
    assert bool(right - wrong > 2.0) is kept


# Completions by what they show: text, wanted answer, then correctness, integer, format, tags, and with calibration format,
# tags and Brier score; this package's and those that the published rules give. The latter take the last number of a text
# where none is boxed, compare within 0.1 %, pay "integer" for any number in the answer block, always count the eight tags,
# and take a missing confidence for 0.5; both lists leave claims of arithmetic out.
TABLE = {
    "right": (GOOD, "7", (2, 0.2, 0.5, 0.1, 0, 0.1, 0), (2, 0.2, 0.5, 0.1, 0, 0.1, 0.75)),
    "right, confident": (CONFIDENT, "7", (2, 0.2, 0, 0.046, 0.5, 0.2, 0.96), (2, 0.2, 0.5, 0.2, 0.5, 0.2, 0.96)),
    "wrong, confident": (CONFIDENT, "8", (0, 0.2, 0, 0.046, 0.5, 0.2, 0.36), (0, 0.2, 0.5, 0.2, 0.5, 0.2, 0.36)),
    "text after": (GOOD + "x" * 30, "7", (2, 0.2, 0, 0.07, 0, 0.1, 0), (2, 0.2, 0, 0.1, 0, 0.1, 0.75)),
    "no integer": (
        CONFIDENT.replace("{7}", "{7.5}"),
        "7.5",
        (2, 0, 0, 0.046, 0.5, 0.2, 0.96),
        (2, 0.2, 0.5, 0.2, 0.5, 0.2, 0.96),
    ),
    "near": (GOOD.replace("{7}", "{1000}"), "1001", (0, 0.2, 0.5, 0.1, 0, 0.1, 0), (2, 0.2, 0.5, 0.1, 0, 0.1, 0.75)),
    "no number": (GOOD.replace("{7}", "{x+1}"), "x+1", (2, 0, 0.5, 0.1, 0, 0.1, 0), (0, 0.2, 0.5, 0.1, 0, 0.1, 0.75)),
    "bare": ("7", "7", (0, 0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 0, 0, 0.75)),
    "tag twice": (
        "<think>" + CONFIDENT,
        "7",
        (2, 0.2, 0, 0.021, 0, 0.175, 0.96),
        (2, 0.2, 0.5, 0.175, 0.5, 0.175, 0.96),
    ),
}
# How the published rules differ, by function: what `docs/published-code.md` says.
DIFFERING = {
    "correctness": {"near", "no number", "bare"},
    "integer_answer": {"no integer", "no number"},
    "strict_format": {"right, confident", "wrong, confident", "no integer", "tag twice"},
    "xml_tags": {"right, confident", "wrong, confident", "text after", "no integer", "tag twice"},
    "strict_format, calibrated": {"tag twice"},
    "xml_tags, calibrated": set(),
    "brier": {"right", "text after", "near", "no number", "bare"},
}


def test_rewards_beside_what_the_published_rules_give():
    plain, calibrated = reward_functions(False, claims=False), reward_functions(True, claims=False)
    differing = {name: set() for name in DIFFERING}
    for shows, (text, answer, ours, published) in TABLE.items():
        values = [function([text], answer=[answer])[0] for function in (*plain, *calibrated[2:])]
        assert values == pytest.approx(ours), shows
        for name, own, theirs in zip(DIFFERING, ours, published, strict=True):
            if own != theirs:
                differing[name].add(shows)
    assert differing == DIFFERING


def test_all_other_rewards_span_1_4():
    best, worst = alike(5)[0], "</answer></answer>" + "x" * 200
    totals = trl_rewards([best, worst], ["0", "0"])
    assert (totals[0] - totals[1]).item() == pytest.approx(1.4, abs=1e-6)
