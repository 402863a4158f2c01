"""Problems made on the spot: answers by Python's own arithmetic, evaluation apart from training, solutions as described."""

import os
import random
import re
import subprocess
import sys
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amir_grpo.rewards import count_true_claims, has_format
from amir_grpo.sandbox.policy import build_tokenizer
from amir_grpo.sandbox.problems import (
    ALL_FAMILIES,
    FAMILIES,
    TRAINED_ON,
    Habits,
    careful_solution,
    chain_answer,
    load_sandbox,
    named_chains,
    solution,
    word_problem,
)

SOLUTION = re.compile(r"<think>(?P<think>[^<>]+)</think><answer>\\boxed\{(?P<answer>-?\d+)\}</answer>")
some_chains = st.builds(
    lambda first, rest: str(first) + "".join(f"{sign}{term}" for sign, term in rest),
    st.integers(1, 9),
    st.lists(st.tuples(st.sampled_from("+-"), st.integers(1, 9)), min_size=1, max_size=7),
)


def numbers(chain):
    return len(re.findall(r"\d+", chain))


def first_chains(names, held_out, seed, count=300):
    return [chain for _, chain in islice(named_chains(names, held_out, seed), count)]


# --- problems -------------------------------------------------------------------------------------------------------


@given(some_chains)
def test_answer_is_pythons(chain):
    assert chain_answer(chain) == eval(chain)


@pytest.mark.parametrize("name", ["sandbox", *FAMILIES])
def test_records_are_right_and_distinct(name):
    problems = load_sandbox(name, limit=200)
    assert len(problems) == len(set(problems["id"])) == len(set(problems["question"])) == 200
    for row in problems:
        assert row["answer"] == [str(eval(row["question"]))]
        assert row["prompt"] == [{"role": "user", "content": row["question"]}]
        assert re.fullmatch(r"[1-9]([+-][1-9])+", row["question"])


def test_families_rise_and_the_longest_is_not_trained_on():
    lengths = {name: {numbers(chain) for chain in load_sandbox(name, 100)["question"]} for name in FAMILIES}
    assert lengths == {f"chain{n}": {n} for n in range(3, 9)}
    trained = [numbers(chain) for chain in load_sandbox("sandbox", 3000)["question"]]
    assert set(trained) == {6, 7}
    assert all(trained.count(length) > 1400 for length in (6, 7)), "families take turns"
    large = load_sandbox("sandbox-large", limit=2000)["question"]
    assert {(numbers(question), "How many" in question) for question in large} == {
        (5, False),
        (7, False),
        (3, True),
        (4, True),
    }


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("name", TRAINED_ON)
def test_training_never_sees_a_problem_of_the_evaluation(name, seed):
    trained = set(load_sandbox(name, limit=1500, seed=seed)["question"])
    for family in ALL_FAMILIES:
        assert trained.isdisjoint(load_sandbox(family, limit=300)["question"])


def test_a_small_family_ends():
    every = {
        f"{a}{s}{b}{t}{c}" for a in "123456789" for b in "123456789" for c in "123456789" for s in "+-" for t in "+-"
    }
    trained, held_out = (set(first_chains(("chain3",), side, seed=0, count=None)) for side in (False, True))
    assert trained.isdisjoint(held_out)
    # random draws end after a long run without a new chain: all but a few are found
    assert trained | held_out <= every
    assert len(every) - len(trained | held_out) < 20
    assert len(held_out) / len(every) == pytest.approx(0.25, abs=0.03)


def test_problems_follow_from_the_seed_in_any_process():
    of_sandbox = TRAINED_ON["sandbox"]
    assert first_chains(of_sandbox, False, seed=3) == first_chains(of_sandbox, False, seed=3)
    assert first_chains(of_sandbox, False, seed=3) != first_chains(of_sandbox, False, seed=4)
    assert load_sandbox("chain5", 20)["question"] == load_sandbox("chain5", 50, seed=0)["question"][:20]
    code = """if True:
        from itertools import islice
        from amir_grpo.sandbox.problems import named_chains
        print(*(chain for _, chain in islice(named_chains(('chain4',), held_out=True, seed=5), 20)))
    """
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.split() == first_chains(("chain4",), True, seed=5, count=20)


# --- solutions ------------------------------------------------------------------------------------------------------


@given(some_chains)
def test_careful_solution_is_right_line_by_line(chain):
    parts = SOLUTION.fullmatch(careful_solution(chain))
    assert int(parts["answer"]) == eval(chain)
    lines = [line.split("=") for line in parts["think"].split("\n")]
    assert len(lines) == numbers(chain) - 1
    for left, right in lines:
        assert eval(left) == int(right)
    for (_, before), (left, _) in pairwise(lines):
        assert left.startswith(before)


def test_mixture_is_as_the_spec_says():
    spec, rng = Habits(), random.Random(0)
    chains = first_chains(TRAINED_ON["sandbox"], False, seed=0, count=4000)
    drawn = [(chain, solution(chain, rng, spec)) for chain in chains]
    careful = [text == careful_solution(chain) for chain, text in drawn]
    rambling = ["hmm" in text for _, text in drawn]
    hasty = [(c, t) for (c, t), *other in zip(drawn, careful, rambling, strict=True) if not any(other)]
    share = len(drawn) ** -1
    assert sum(careful) * share == pytest.approx(0.25, abs=0.03)
    assert sum(rambling) * share == pytest.approx(0.3, abs=0.03)
    assert len(hasty) * share == pytest.approx(0.45, abs=0.03)

    answered = [(chain, SOLUTION.fullmatch(text)) for chain, text in drawn]
    right = [bool(parts) and int(parts["answer"]) == eval(chain) for chain, parts in answered]
    assert 0.35 < sum(right) * share < 0.6
    assert sum(r for r, c in zip(right, careful, strict=True) if not c) > 300, "right ones that are not careful"
    assert sum(not parts for _, parts in answered) * share == pytest.approx(0.3 * 0.4, abs=0.02)
    guessed = [int(SOLUTION.fullmatch(text)["answer"]) == eval(chain) for chain, text in hasty]
    assert sum(guessed) / len(guessed) == pytest.approx(0.35, abs=0.05)


# --- in words -------------------------------------------------------------------------------------------------------


def reading(told):
    """The answer of a word problem, read sentence by sentence."""
    total = 0
    for sentence in told.split(". "):
        found = [int(number) for number in re.findall(r"\d+", sentence)]
        if "packs" in sentence:
            total = found[0] * found[1]
        elif "times as many" in sentence:
            total *= found[0]
        elif found:
            total += -found[0] if re.search("loses|sells|gives away", sentence) else found[0]
        assert total >= 0, "nobody has less than nothing"
    return total


@pytest.mark.parametrize("name", [name for name, family in ALL_FAMILIES.items() if family.words])
def test_word_problems_are_right_distinct_and_have_as_many_numbers(name):
    problems = load_sandbox(name, limit=150)
    assert len(set(problems["question"])) == 150
    tokenizer = build_tokenizer(words=True)
    for row in problems:
        assert row["answer"] == [str(reading(row["question"]))]
        assert numbers(row["question"]) == ALL_FAMILIES[name].numbers
        if not ALL_FAMILIES[name].story:
            ids = tokenizer.encode(row["question"])
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == row["question"]


def test_stories_have_every_operation_and_end_between_1_and_99():
    questions = load_sandbox("stories", limit=1500)["question"]
    for words in ("packs of", "times as many", "more", "gives away"):
        assert sum(words in question for question in questions) > 100
    assert all(0 < reading(question) < 100 for question in questions)
    assert word_problem("4*6-5").split(". ")[0].endswith("buys 6 packs of 4 " + word_problem("4*6-5").split()[-4])


def test_a_solved_story_can_earn_every_reward():
    problems = load_sandbox("story2", limit=20, shots=2)
    for row in problems:
        system, *turns, posed = row["prompt"]
        assert (system["role"], posed) == ("system", {"role": "user", "content": row["question"]})
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
        for asked, solved in zip(turns[::2], turns[1::2], strict=True):
            assert has_format(solved["content"])
            assert count_true_claims(solved["content"], 5) >= 1
            assert SOLUTION.fullmatch(solved["content"])["answer"] == str(reading(asked["content"]))
