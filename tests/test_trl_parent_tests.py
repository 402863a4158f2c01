"""tools/trl_parent_tests: what it makes of TRL's tests and of their outcomes; they themselves take minutes."""

import re

import pytest

from tools.trl_parent_tests.__main__ import EXPLAINED, compare
from tools.trl_parent_tests.stand_ins import loader, make_tokenizer, renumbered

# lines as they stand in TRL's tests, in Qwen's numbers, and what they say
SPELT_OUT = [
    (
        "[151657, 198, 4913, 606, 788, 330, 64648, 22785, 497, 330, 16370, 788, 5212, 64, 788, 220, 18, 11, 330, 65, 788, "
        "220, 19, 11248, 151658, 151645],",
        '<tool_call>\n{"name": "multiply_tool", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>',
    ),
    ("[40, 1513, 944, 1414, 894, 5392, 151645, 151643]", "I don't know any tool<|im_end|><|endoftext|>"),
    ("[17453, 0, 151645],  # 'Done!' + 3", "Done!<|im_end|>"),
]


@pytest.fixture(scope="module")
def stand_in():
    return make_tokenizer()


@pytest.mark.parametrize(("line", "text"), SPELT_OUT)
def test_completions_say_the_same_in_the_stand_ins_numbers(stand_in, line, text):
    numbers = re.search(r"\[.*\]", renumbered(line, stand_in))[0]
    assert stand_in.decode([int(number) for number in numbers[1:-1].split(", ")]) == text


def test_other_numbers_stay_as_they_are(stand_in):
    assert renumbered("max_steps=[5, 198]\n    # [151645]\n", stand_in) == "max_steps=[5, 198]\n    # [151645]\n"


def test_text_is_read_back(stand_in):
    text = '<|im_start|>user\n{"name": "5 × 3"}<tool_call>é'
    assert stand_in.decode(stand_in(text)["input_ids"]) == text


def test_other_data_sets_are_loaded_as_ever():
    load = loader(lambda *words, **options: (words, options))
    assert load("a/b", split="train") == (("a/b", None), {"split": "train", "streaming": False})
    assert len(load("trl-internal-testing/zen", "standard_prompt_only", split="train")) == 4


def test_a_lost_test_is_named_unless_it_is_explained():
    explained = next(iter(EXPLAINED))
    stock = {"a": ["passed", ""], "b": ["passed", ""], explained: ["passed", ""], "c": ["skipped", "no GPU"]}
    ours = {"a": ["passed", ""], "b": ["failed", "because"], explained: ["failed", ""], "c": ["failed", "x"]}
    lines, unexplained = compare(stock, ours)
    assert unexplained == ["b"]
    assert lines[0].startswith("3 of 4 tests pass with GRPOTrainer, 1 of these")
    assert "- b: NOT explained: because" in lines
    assert "- c: skipped: no GPU" in lines
