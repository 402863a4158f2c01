"""The sandbox: answers by Python's own arithmetic, evaluation apart from training, a policy made of its spec alone."""

import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from amir_grpo.sandbox import policy as sandbox
from amir_grpo.sandbox.policy import (
    FAMILIES,
    LARGE_FAMILIES,
    SANDBOXES,
    TRAINED_ON,
    SandboxSpec,
    base_policy,
    build_tokenizer,
    careful_solution,
    chain_answer,
    chains,
    load_sandbox,
    make_base_policy,
    solution,
    warmup_examples,
)
from amir_grpo.settings import settings_of

SOLUTION = re.compile(r"<think>(?P<think>[^<>]+)</think><answer>\\boxed\{(?P<answer>-?\d+)\}</answer>")
TOKENIZER = build_tokenizer()
some_chains = st.builds(
    lambda first, rest: str(first) + "".join(f"{sign}{term}" for sign, term in rest),
    st.integers(1, 9),
    st.lists(st.tuples(st.sampled_from("+-"), st.integers(1, 9)), min_size=1, max_size=7),
)


def numbers(chain):
    return len(re.findall(r"\d+", chain))


def first_chains(names, held_out, seed, count=300):
    return list(islice(chains(names, held_out=held_out, seed=seed), count))


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


def test_families_rise_and_only_the_last_is_longer_than_training():
    lengths = {name: {numbers(chain) for chain in load_sandbox(name, 100)["question"]} for name in FAMILIES}
    assert lengths == {"chain3": {3}, "chain4": {4}, "chain5": {5}, "chain6": {6}}
    trained = [numbers(chain) for chain in load_sandbox("sandbox", 3000)["question"]]
    assert set(trained) == {3, 4, 5}
    assert all(trained.count(length) > 750 for length in (3, 4, 5)), "families take turns"


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_training_never_sees_a_chain_of_the_evaluation(seed):
    trained = set(load_sandbox("sandbox", limit=4000, seed=seed)["question"])
    for name in FAMILIES:
        assert trained.isdisjoint(load_sandbox(name, limit=700)["question"])


def test_warmup_never_sees_a_chain_of_the_evaluation(tiny_spec):
    shown = set()
    for example in warmup_examples(tiny_spec, TOKENIZER):
        text = TOKENIZER.decode(example["input_ids"])
        shown.add(re.search(r"user\n(.*?)<\|im_end\|>", text)[1])
    assert len(shown) > 500
    for name in FAMILIES:
        assert shown.isdisjoint(load_sandbox(name, limit=700)["question"])


def test_a_small_family_ends():
    every = {
        f"{a}{s}{b}{t}{c}"
        for a in range(1, 10)
        for b in range(1, 10)
        for c in range(1, 10)
        for s in "+-"
        for t in "+-"
    }
    trained, held_out = (set(chains(("chain3",), held_out=side, seed=0)) for side in (False, True))
    assert trained.isdisjoint(held_out)
    # random draws end after a long run without a new chain: all but a few are found
    assert trained | held_out <= every
    assert len(every) - len(trained | held_out) < 20
    assert len(held_out) / len(every) == pytest.approx(0.25, abs=0.03)


def test_problems_follow_from_the_seed():
    assert first_chains(TRAINED_ON, False, seed=3) == first_chains(TRAINED_ON, False, seed=3)
    assert first_chains(TRAINED_ON, False, seed=3) != first_chains(TRAINED_ON, False, seed=4)
    assert load_sandbox("chain5", 50)["question"] == load_sandbox("chain5", 50, seed=0)["question"]
    assert load_sandbox("chain5", 20)["question"] == load_sandbox("chain5", 50)["question"][:20]


def test_problems_are_the_same_in_another_process():
    code = "from amir_grpo.sandbox.policy import *; print(*islice(chains(('chain4',), held_out=True, seed=5), 20))"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.split() == first_chains(("chain4",), True, seed=5, count=20)


def test_unknown_family_is_refused():
    with pytest.raises(
        ValueError, match="'chain2': choose one of sandbox, sandbox-large, chain3, chain4, chain5, chain6"
    ):
        load_sandbox("chain2", 1)


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
    spec, rng = SandboxSpec(), random.Random(0)
    drawn = [(chain, solution(chain, rng, spec)) for chain in first_chains(TRAINED_ON, False, seed=0, count=4000)]
    careful = [text == careful_solution(chain) for chain, text in drawn]
    rambling = ["hmm" in text for _, text in drawn]
    hasty = [(c, t) for (c, t), *other in zip(drawn, careful, rambling, strict=True) if not any(other)]
    share = len(drawn) ** -1
    assert sum(careful) * share == pytest.approx(0.35, abs=0.03)
    assert sum(rambling) * share == pytest.approx(0.25, abs=0.03)
    assert len(hasty) * share == pytest.approx(0.4, abs=0.03)

    answered = [(chain, SOLUTION.fullmatch(text)) for chain, text in drawn]
    right = [bool(parts) and int(parts["answer"]) == eval(chain) for chain, parts in answered]
    assert 0.4 < sum(right) * share < 0.7
    assert sum(r for r, c in zip(right, careful, strict=True) if not c) > 300, "right ones that are not careful"
    assert sum(not parts for _, parts in answered) * share == pytest.approx(0.25 * 0.4, abs=0.02)
    guessed = [int(SOLUTION.fullmatch(text)["answer"]) == eval(chain) for chain, text in hasty]
    assert sum(guessed) / len(guessed) == pytest.approx(0.35, abs=0.05)


def test_warmup_starts_careful_and_goes_on_mixed(tiny_spec):
    examples = warmup_examples(tiny_spec, TOKENIZER)
    assert len(examples) == tiny_spec.warmup_steps * tiny_spec.warmup_batch_size
    careful = []
    for example in examples:
        text = TOKENIZER.decode(example["input_ids"])
        chain = re.search(r"user\n(.*?)<\|im_end\|>", text)[1]
        shown = TOKENIZER.decode([label for label in example["labels"] if label != -100])
        careful.append(shown == careful_solution(chain) + "<|im_end|>")
    turn = int(0.65 * len(examples))
    assert all(careful[:turn])
    assert sum(careful[turn:]) / len(careful[turn:]) == pytest.approx(0.35, abs=0.06)


# --- tokenizer ------------------------------------------------------------------------------------------------------


@given(some_chains, st.integers(0, 10**6))
def test_text_survives_the_tokenizer(chain, seed):
    for text in (chain, careful_solution(chain), solution(chain, random.Random(seed), SandboxSpec())):
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.unk_token_id not in ids


def test_tokenizer_reloads_to_the_same_ids(base):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(base)
    texts = [solution(c, random.Random(c), SandboxSpec()) for c in first_chains(TRAINED_ON, False, seed=0)]
    texts += ["<|im_start|>user\n12+345-6<|im_end|>\n", "a ß €\t", ""]
    for text in texts:
        assert loaded.encode(text) == TOKENIZER.encode(text)
        assert loaded.decode(loaded.encode(text)) == TOKENIZER.decode(TOKENIZER.encode(text))
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.eos_token_id, loaded.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
    assert loaded.eos_token_id != loaded.pad_token_id


def test_generation_prompt_is_what_the_warmup_showed(tiny_spec, tokenizer):
    for example in warmup_examples(tiny_spec, TOKENIZER)[:100]:
        shown = [i for i, label in zip(example["input_ids"], example["labels"], strict=True) if label == -100]
        chain = re.search(r"user\n(.*?)<\|im_end\|>", TOKENIZER.decode(shown))[1]
        posed = tokenizer.apply_chat_template(
            [{"role": "user", "content": chain}], add_generation_prompt=True, return_dict=True
        )
        assert posed["input_ids"] == shown
        assert TOKENIZER.decode(shown) == f"<|im_start|>user\n{chain}<|im_end|>\n<|im_start|>assistant\n"
        assert example["input_ids"][-1] == example["labels"][-1] == TOKENIZER.eos_token_id


# --- base policy ----------------------------------------------------------------------------------------------------


def test_policy_is_small(tiny_policy, tiny_spec):
    assert replace(tiny_spec, warmup_steps=2000) == SandboxSpec(), "the shape is the default's"
    assert sum(p.numel() for p in tiny_policy.parameters()) < 2_000_000


def test_warmup_has_taught_something(tiny_policy, tokenizer, tiny_spec):
    """Its loss on new examples is far below that of guessing among all tokens."""
    losses = []
    for example in warmup_examples(replace(tiny_spec, seed=9), TOKENIZER)[:50]:
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor([example["labels"]])
        with torch.no_grad():
            losses.append(tiny_policy(input_ids=ids, labels=labels).loss.item())
    assert sum(losses) / len(losses) < 0.6 * torch.tensor(float(len(tokenizer))).log().item()


def test_fingerprint_is_the_specs():
    specs = [
        SandboxSpec(),
        SandboxSpec(seed=1),
        SandboxSpec(warmup_steps=60),
        SandboxSpec(hidden_size=32),
        SandboxSpec(slip=0.3),
        SandboxSpec(careful=0.3, hasty=0.45),
    ]
    prints = [spec.fingerprint() for spec in specs]
    assert len(set(prints)) == len(specs)
    assert prints == [spec.fingerprint() for spec in specs]
    assert all(re.fullmatch(r"[0-9a-f]{12}", p) for p in prints)


def test_base_policy_is_made_once(base, tiny_spec, tmp_path, monkeypatch):
    def never(spec, folder):
        raise AssertionError("made again")

    monkeypatch.setattr(sandbox, "make_base_policy", never)
    assert base_policy(tiny_spec, base.parent) == base
    with pytest.raises(AssertionError, match="made again"):
        base_policy(replace(tiny_spec, seed=1), tmp_path)
    assert not list(tmp_path.iterdir()), "an unfinished one is left behind"


def test_base_policy_is_made_of_its_spec_alone(tmp_path):
    from safetensors.torch import load_file

    weights = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # whatever was random before
        torch.set_num_threads(3 - number)  # and however many threads there were
        folder = tmp_path / str(number)
        make_base_policy(SandboxSpec(seed=seed, warmup_steps=20), folder)
        assert torch.get_num_threads() == 3 - number
        weights.append(load_file(folder / "model.safetensors"))
    first, again, other = weights
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)


# --- the large sandbox ----------------------------------------------------------------------------------------------


def reading(story):
    """The answer of a word problem, read sentence by sentence."""
    total = 0
    for sentence in story.split(". "):
        number = re.search(r"\d+", sentence)
        if number:
            sign = -1 if re.search("loses|sells|gives away", sentence) else 1
            total += sign * int(number[0])
            assert total >= 0, "nobody has less than nothing"
    return total


@pytest.mark.parametrize("name", ["words3", "words4", "words6"])
def test_word_problems_are_right_told_in_known_words_and_distinct(name):
    tokenizer = build_tokenizer(words=True)
    problems = load_sandbox(name, limit=100)
    assert len(set(problems["question"])) == 100
    for row in problems:
        assert row["answer"] == [str(reading(row["question"]))]
        ids = tokenizer.encode(row["question"])
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == row["question"]
        assert len(re.findall(r"\d", row["question"])) == LARGE_FAMILIES[name].numbers


def test_the_large_sandbox_trains_on_figures_and_words_and_evaluates_on_others():
    trained = load_sandbox("sandbox-large", limit=2000)["question"]
    assert {bool(re.search("How many", question)) for question in trained} == {True, False}
    assert {numbers(question) for question in trained} == {3, 4, 5, 7}
    for name in ("chain7", "words3", "words4"):
        assert set(trained).isdisjoint(load_sandbox(name, limit=300)["question"])


def test_the_large_policy_has_20_to_50_million_parameters_and_room_for_its_problems():
    spec = SANDBOXES["sandbox-large"]
    tokenizer = build_tokenizer(spec.words)
    policy = LlamaForCausalLM(sandbox.untrained_config(spec, tokenizer))
    assert 20e6 < sum(p.numel() for p in policy.parameters()) < 50e6
    longest = max(len(tokenizer.encode(question)) for question in load_sandbox("words6", 200)["question"])
    assert longest + 10 < settings_of("sandbox-large").max_prompt_length


def test_the_small_sandbox_has_no_word_tokens():
    assert len(build_tokenizer()) < len(build_tokenizer(words=True))
    assert not SANDBOXES["sandbox"].words
