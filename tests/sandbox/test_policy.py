"""The sandbox's policies: a tokenizer that loses nothing, a warm-up as described, weights made of the spec alone."""

import random
import re
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from amir_grpo.sandbox.policy import (
    SPECS,
    SandboxSpec,
    build_tokenizer,
    make_base_policy,
    untrained_config,
    warmup_examples,
)
from amir_grpo.sandbox.problems import FAMILIES, TRAINED_ON, careful_solution, load_sandbox, named_chains, solution
from amir_grpo.settings import settings_of
from tests.sandbox.test_problems import some_chains

TOKENIZER = build_tokenizer()


def chain_and_solution(example):
    """What an example of the warm-up asks and what it shows, as text."""
    asked = TOKENIZER.decode(
        [i for i, label in zip(example["input_ids"], example["labels"], strict=True) if label < 0]
    )
    chain = re.fullmatch(r"<\|im_start\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant\n", asked)[1]
    return chain, TOKENIZER.decode([label for label in example["labels"] if label >= 0])


def test_the_warmup_starts_careful_goes_on_mixed_and_never_sees_a_chain_of_the_evaluation(tiny_spec):
    examples = [chain_and_solution(example) for example in warmup_examples(tiny_spec, TOKENIZER)]
    assert len(examples) == tiny_spec.warmup_steps * tiny_spec.warmup_batch_size
    careful = [shown == careful_solution(chain) + "<|im_end|>" for chain, shown in examples]
    turn = int(0.4 * len(examples))
    assert all(careful[:turn])
    assert sum(careful[turn:]) / len(careful[turn:]) == pytest.approx(0.25, abs=0.06)
    shown = {chain for chain, _ in examples}
    assert len(shown) > 500
    for name in FAMILIES:
        assert shown.isdisjoint(load_sandbox(name, limit=700)["question"])


def test_a_problem_is_posed_as_in_the_warmup(tiny_spec, tokenizer):
    for example in warmup_examples(tiny_spec, TOKENIZER)[:100]:
        chain, _ = chain_and_solution(example)
        posed = tokenizer.apply_chat_template(
            [{"role": "user", "content": chain}], add_generation_prompt=True, return_dict=True
        )
        assert example["input_ids"][: len(posed["input_ids"])] == posed["input_ids"]
        assert example["input_ids"][-1] == example["labels"][-1] == TOKENIZER.eos_token_id


@given(some_chains, st.integers(0, 10**6))
def test_text_survives_the_tokenizer(chain, seed):
    for text in (chain, careful_solution(chain), solution(chain, random.Random(seed), SandboxSpec())):
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.unk_token_id not in ids


def test_tokenizer_reloads_to_the_same_ids(base):
    loaded = AutoTokenizer.from_pretrained(base)
    chains = [chain for _, chain in islice(named_chains(TRAINED_ON["sandbox"], False, seed=0), 300)]
    texts = [solution(chain, random.Random(chain), SandboxSpec()) for chain in chains]
    for text in (*texts, "<|im_start|>user\n12+345-6<|im_end|>\n", "a ß €\t", ""):
        assert loaded.encode(text) == TOKENIZER.encode(text)
        assert loaded.decode(loaded.encode(text)) == TOKENIZER.decode(TOKENIZER.encode(text))
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.eos_token_id, loaded.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
    assert loaded.eos_token_id != loaded.pad_token_id


def test_the_warmup_has_taught_something(tiny_policy, tokenizer, tiny_spec):
    """Its loss on new examples is far below that of guessing among all tokens."""
    losses = []
    for example in warmup_examples(replace(tiny_spec, seed=9), TOKENIZER)[:50]:
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor([example["labels"]])
        with torch.no_grad():
            losses.append(tiny_policy(input_ids=ids, labels=labels).loss.item())
    assert sum(losses) / len(losses) < 0.6 * torch.tensor(float(len(tokenizer))).log().item()


def test_the_fingerprint_is_the_specs():
    changes = ({}, {"seed": 1}, {"warmup_steps": 60}, {"hidden_size": 32}, {"slip": 0.3}, {"careful": 0.3})
    prints = [SandboxSpec(**change).fingerprint() for change in changes]
    assert len(set(prints)) == len(changes)
    assert prints == [SandboxSpec(**change).fingerprint() for change in changes]
    assert all(re.fullmatch(r"[0-9a-f]{12}", p) for p in prints)


def test_a_base_policy_is_made_of_its_spec_alone(tmp_path):
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # whatever was random before
        torch.set_num_threads(3 - number)  # and however many threads there were
        folder = tmp_path / str(number)
        make_base_policy(SandboxSpec(seed=seed, warmup_steps=6), folder)
        assert torch.get_num_threads() == 3 - number
        weights.append(load_file(folder / "model.safetensors"))
    first, again, other = weights
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)


@pytest.mark.parametrize(("name", "said"), [("sandbox", 0.1), ("sandbox-medium", 1), ("sandbox-large", 26)])
def test_policies_have_the_parameters_that_are_said(name, said):
    spec = SPECS[name]
    with torch.device("meta"):
        policy = LlamaForCausalLM(untrained_config(spec, build_tokenizer(spec.words)))
    millions = sum(p.numel() for p in policy.parameters()) / 1e6
    assert 0.9 * said < millions < 1.15 * said


def test_the_large_policy_has_words_and_room_for_its_problems():
    assert not SPECS["sandbox"].words
    tokenizer = build_tokenizer(SPECS["sandbox-large"].words)
    assert len(build_tokenizer()) < len(tokenizer)
    longest = max(len(tokenizer.encode(question)) for question in load_sandbox("words6", 200)["question"])
    assert longest + 10 < settings_of("sandbox-large").data.max_prompt_length
