"""The sandbox's policies: a tokenizer that loses nothing, a warm-up as described, weights made of the spec alone."""

import random
import re
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from amir_grpo.choices import PARAMETERS
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

TOKENIZER = build_tokenizer()
some_chains = st.builds(
    lambda first, rest: str(first) + "".join(f"{sign}{term}" for sign, term in rest),
    st.integers(1, 9),
    st.lists(st.tuples(st.sampled_from("+-"), st.integers(1, 9)), min_size=1, max_size=7),
)


def first_chains(names, held_out, seed, count=300):
    return [chain for _, chain in islice(named_chains(names, held_out, seed), count)]


# --- warm-up ----------------------------------------------------------------------------------------------------


def test_warmup_never_sees_a_chain_of_the_evaluation(tiny_spec):
    shown = set()
    for example in warmup_examples(tiny_spec, TOKENIZER):
        text = TOKENIZER.decode(example["input_ids"])
        shown.add(re.search(r"user\n(.*?)<\|im_end\|>", text)[1])
    assert len(shown) > 500
    for name in FAMILIES:
        assert shown.isdisjoint(load_sandbox(name, limit=700)["question"])


def test_warmup_starts_careful_and_goes_on_mixed(tiny_spec):
    examples = warmup_examples(tiny_spec, TOKENIZER)
    assert len(examples) == tiny_spec.warmup_steps * tiny_spec.warmup_batch_size
    careful = []
    for example in examples:
        text = TOKENIZER.decode(example["input_ids"])
        chain = re.search(r"user\n(.*?)<\|im_end\|>", text)[1]
        shown = TOKENIZER.decode([label for label in example["labels"] if label != -100])
        careful.append(shown == careful_solution(chain) + "<|im_end|>")
    turn = int(0.4 * len(examples))
    assert all(careful[:turn])
    assert sum(careful[turn:]) / len(careful[turn:]) == pytest.approx(0.25, abs=0.06)


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
    texts = [solution(c, random.Random(c), SandboxSpec()) for c in first_chains(TRAINED_ON["sandbox"], False, seed=0)]
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
    default = SandboxSpec()
    assert replace(tiny_spec, warmup_steps=default.warmup_steps, seed=default.seed) == default, (
        "the shape is the default's"
    )
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


def test_base_policy_is_made_of_its_spec_alone(tmp_path):
    from safetensors.torch import load_file

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


@pytest.mark.parametrize("name", SPECS)
def test_policies_have_the_parameters_that_are_said(name):
    spec = SPECS[name]
    with torch.device("meta"):
        policy = LlamaForCausalLM(untrained_config(spec, build_tokenizer(spec.words)))
    millions = sum(p.numel() for p in policy.parameters()) / 1e6
    said = float(PARAMETERS[name].removesuffix("M"))
    assert 0.9 * said < millions < 1.15 * said


def test_the_large_policy_has_room_for_its_problems():
    tokenizer = build_tokenizer(SPECS["sandbox-large"].words)
    longest = max(len(tokenizer.encode(question)) for question in load_sandbox("words6", 200)["question"])
    assert longest + 10 < settings_of("sandbox-large").data.max_prompt_length


def test_the_small_sandbox_has_no_word_tokens():
    assert len(build_tokenizer()) < len(build_tokenizer(words=True))
    assert not SPECS["sandbox"].words
