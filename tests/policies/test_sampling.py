"""Sampling: log-probabilities and completions against plain forward passes, one sequence at a time."""

import copy
import importlib.util
import weakref

import pandas as pd
import pytest
import torch
from datasets import concatenate_datasets
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from amir_grpo.policies import engines, sampling
from amir_grpo.policies.engines import Request, TransformersEngine, engine_here, load_engine
from amir_grpo.policies.sampling import draw_batches, draw_completions, in_order, sequence_logprobs
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.settings import PolicySettings

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def problems():
    """Prompts of four lengths, not in the order of their lengths."""
    return concatenate_datasets([load_sandbox(name, 3) for name in ("chain6", "chain3", "chain5", "chain4")])


@pytest.fixture(scope="module")
def engine(tiny_policy, tokenizer):
    return TransformersEngine(tiny_policy, tokenizer)


@pytest.fixture(scope="module")
def draw(engine, problems):
    def draw(engine=engine, **changes):
        options = {"num_samples": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": NEW_TOKENS, "seed": 0}
        options |= {"problems": problems, "token_budget": 700} | changes  # several batches
        return draw_completions(engine, **options)

    return draw


@pytest.fixture(scope="module")
def drawn(draw):
    return draw()


@pytest.fixture(scope="module")
def prompts(tokenizer, problems):
    """Token ids of each prompt, spelled out without the chat template."""
    return {
        row["id"]: tokenizer.encode(f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n")
        for row in problems
    }


@torch.no_grad()
def plain_logprob(policy, prompt, completion):
    logits = policy(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
    steps = torch.log_softmax(logits, dim=-1)
    return sum(steps[len(prompt) + place - 1, token].item() for place, token in enumerate(completion))


@torch.no_grad()
def plain_greedy(policy, prompt, eos):
    ids = list(prompt)
    while len(ids) < len(prompt) + NEW_TOKENS:
        ids.append(policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.3, "top_p": 0.5}], ids=str)
def test_logprob_is_that_of_a_plain_forward_pass_at_temperature_1(tiny_policy, draw, prompts, changes):
    for row in draw(**changes).itertuples():
        expected = plain_logprob(tiny_policy, prompts[row.problem_id], row.completion_ids)
        assert row.logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1e-5])
def test_at_temperature_0_and_next_to_it_it_is_the_greedy_completion(
    tiny_policy, tokenizer, draw, prompts, temperature
):
    for row in draw(temperature=temperature, num_samples=2).itertuples():
        assert row.completion_ids == plain_greedy(tiny_policy, prompts[row.problem_id], tokenizer.eos_token_id)


def test_rows_are_by_problem_and_sample_and_their_ends_consistent(drawn, problems, tokenizer):
    expected = [(problem, number) for problem in problems["id"] for number in range(4)]
    assert list(zip(drawn["problem_id"], drawn["sample"], strict=True)) == expected
    assert list(drawn.index) == list(range(len(drawn)))
    eos = tokenizer.eos_token_id
    for row in drawn.itertuples():
        assert row.tokens == len(row.completion_ids) <= NEW_TOKENS
        assert eos not in row.completion_ids[:-1]
        assert row.finish_reason == ("stop" if row.completion_ids[-1] == eos else "length")
        assert row.finish_reason == "stop" or row.tokens == NEW_TOKENS
        assert row.text == tokenizer.decode([i for i in row.completion_ids if i not in tokenizer.all_special_ids])
    assert set(drawn["finish_reason"]) == {"stop", "length"}, "the test should see both"


def test_the_seed_decides_and_nothing_else(draw, drawn):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    pd.testing.assert_frame_equal(draw(), drawn)
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn.groupby("problem_id")["text"].nunique().mean() > 2
    assert (draw(seed=1)["text"] != drawn["text"]).mean() > 0.5


def same_but_for_rounding(rows, others):
    pd.testing.assert_frame_equal(rows.drop(columns="logprob"), others.drop(columns="logprob"))
    assert rows["logprob"].tolist() == pytest.approx(others["logprob"].tolist(), abs=1e-4)


@pytest.mark.parametrize("token_budget", [1, 250, 10**6])
def test_completions_do_not_depend_on_the_batches(draw, drawn, token_budget):
    same_but_for_rounding(draw(token_budget=token_budget), drawn)


def test_completions_do_not_depend_on_the_other_problems_or_samples(draw, drawn, problems):
    rows = draw(problems=problems.select([7, 2]), num_samples=2)
    kept = drawn[drawn["problem_id"].isin(problems.select([7, 2])["id"]) & (drawn["sample"] < 2)]
    same_but_for_rounding(rows, in_order(kept, problems.select([7, 2])))


@pytest.fixture
def shapes(tiny_policy):
    """(rows, tokens) of every forward pass of the tiny policy."""
    seen = []
    watch = tiny_policy.register_forward_pre_hook(
        lambda module, inputs, keywords: seen.append(tuple(keywords["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    watch.remove()


def test_a_prompt_goes_through_the_policy_once(draw, problems, shapes):
    """The first forward pass holds the prompts, one row each; the others one token per completion."""
    draw(problems=problems.select([0, 1, 2]), num_samples=5, token_budget=10**6)
    assert shapes[0][0] == 3
    assert shapes[1] == (15, 1)
    assert {tokens for _, tokens in shapes[1:]} == {1}


def test_completions_that_have_ended_leave_the_batch(draw, problems, shapes, monkeypatch):
    monkeypatch.setattr(engines, "_CARRIED", 0)
    rows = draw(problems=problems.select([0, 1, 2]), num_samples=5, token_budget=10**6)
    assert rows["tokens"].nunique() > 3
    # the forward pass after token t holds the completions of more than t tokens
    longest = rows["tokens"].max()
    assert [count for count, _ in shapes[1:]] == [int((rows["tokens"] > t).sum()) for t in range(1, longest)]


def test_batches_come_one_by_one_and_leave_out_what_is_done(engine, drawn, problems):
    options = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": NEW_TOKENS, "seed": 0, "token_budget": 700}
    batches = list(draw_batches(engine, problems, 4, **options))
    assert len(batches) > 2
    assert all(set(batch["sample"]) == {0, 1, 2, 3} for batch in batches)
    first = batches[0]
    rest = list(draw_batches(engine, problems, 4, **options, done=set(first["problem_id"])))
    pd.testing.assert_frame_equal(in_order(pd.concat([*rest, first]), problems), drawn)  # to the last digit


class _SmallMemory(TransformersEngine):
    """Runs out of memory, as PyTorch says it, above a number of completions at once."""

    limit = 3

    def generate(self, requests, *arguments, **keywords):
        size = sum(len(request.streams) for request in requests)
        self.sizes = [*getattr(self, "sizes", []), size]
        if size > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().generate(requests, *arguments, **keywords)


def test_memory_errors_halve_the_batch_and_those_that_follow(tiny_policy, tokenizer, draw, drawn):
    engine = _SmallMemory(tiny_policy, tokenizer)
    same_but_for_rounding(draw(engine=engine), drawn)
    assert sum(size for size in engine.sizes if size <= 3) == len(drawn)
    failures = [size for size in engine.sizes if size > 3]
    assert len(failures) <= 3, "what has failed once is not tried again"
    engine.limit = 0
    with pytest.raises(MemoryError, match="Not even one completion of 24 tokens"):
        draw(engine=engine)
    engine.generate = lambda *_, **__: torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):  # which is not taken for memory
        draw(engine=engine)


def test_engines_by_name(base):
    assert isinstance(load_engine("transformers", str(base), None, PolicySettings()), TransformersEngine)
    with pytest.raises(ValueError, match=r"Unknown engine 'sglang'\.\nValid: transformers, vllm"):
        load_engine("sglang", str(base), None, PolicySettings())


def test_auto_takes_vllm_where_it_is_installed_and_there_is_a_gpu(monkeypatch):
    find = importlib.util.find_spec
    for gpu, vllm, device, wanted in (
        (True, True, "auto", "vllm"),
        (True, True, "cpu", "transformers"),
        (True, False, "auto", "transformers"),
        (False, True, "auto", "transformers"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        there = object() if vllm else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, there=there: there if n == "vllm" else find(n))
        assert engine_here("auto", PolicySettings(device=device)) == wanted
    assert engine_here("vllm", PolicySettings()) == "vllm"


def test_generation_config_of_the_policy_does_not_matter(tiny_policy, draw, drawn, monkeypatch):
    for name, value in {"repetition_penalty": 5.0, "top_k": 1, "top_p": 0.1, "temperature": 9.0}.items():
        monkeypatch.setattr(tiny_policy.generation_config, name, value)
    pd.testing.assert_frame_equal(draw(), drawn)


def test_any_end_token_of_the_policy_ends(tiny_policy, tokenizer, draw, monkeypatch):
    closing = tokenizer.convert_tokens_to_ids("</think>")
    monkeypatch.setattr(tiny_policy.generation_config, "eos_token_id", [tokenizer.eos_token_id, closing])
    rows = draw()
    assert any(ids[-1] == closing for ids in rows["completion_ids"])
    assert not any(closing in ids[:-1] for ids in rows["completion_ids"])


def test_a_policy_without_an_end_token_is_refused(tiny_policy, tokenizer, draw, monkeypatch):
    monkeypatch.setattr(tiny_policy.generation_config, "eos_token_id", None)
    monkeypatch.setattr(tokenizer, "eos_token", None)
    with pytest.raises(ValueError, match="has no end token"):
        draw()


def test_sampling_follows_the_policys_distribution(tiny_policy, draw, problems, prompts):
    """First tokens of 4,000 samples against the softmax at that temperature; a nucleus cuts its tail."""
    one = problems.select([0])
    with torch.no_grad():
        logits = tiny_policy(input_ids=torch.tensor([prompts[one["id"][0]]])).logits[0, -1]
    expected = torch.softmax(logits / 2.0, dim=-1)
    options = {"problems": one, "num_samples": 4000, "temperature": 2.0, "max_new_tokens": 1, "token_budget": 10**6}
    counts = torch.bincount(torch.tensor(draw(**options)["completion_ids"].str[0]), minlength=len(expected))
    spread = (expected * (1 - expected) / 4000).sqrt()
    assert ((counts / 4000 - expected).abs() < 5 * spread + 1e-3).all()

    falling, tokens = expected.sort(descending=True)
    nucleus = tokens[: int((falling.cumsum(0) < 0.5).sum()) + 1].tolist()
    assert set(draw(**options, top_p=0.5)["completion_ids"].str[0]) == set(nucleus)


@pytest.mark.parametrize("token_budget", [1, 97, 10**6])
def test_score_does_not_depend_on_the_batches(tiny_policy, tokenizer, drawn, prompts, token_budget):
    prompt_ids = [prompts[problem] for problem in drawn["problem_id"]]
    ids = drawn["completion_ids"].tolist()
    scores = sequence_logprobs(tiny_policy, tokenizer.pad_token_id, prompt_ids, ids, token_budget)
    assert scores == pytest.approx(drawn["logprob"].tolist(), abs=1e-4)
    backwards = sequence_logprobs(tiny_policy, tokenizer.pad_token_id, prompt_ids[::-1], ids[::-1], token_budget)
    assert backwards[::-1] == pytest.approx(scores, abs=1e-4)


def test_score_of_nothing_is_nothing(tiny_policy):
    assert sequence_logprobs(tiny_policy, 0, [], []) == []
    assert sequence_logprobs(tiny_policy, 0, [[1, 2]], [[]]) == [0.0]


def test_scoring_holds_few_logits_at_once(tiny_policy, drawn, prompts, monkeypatch):
    """With Qwen's vocabulary the default budget would need 160 GB for the logits of one batch."""
    monkeypatch.setattr(sampling, "_LOGITS", 20_000)
    held = []
    watch = tiny_policy.register_forward_hook(lambda module, inputs, output: held.append(output.logits.numel()))
    try:
        prompt_ids = [prompts[problem] for problem in drawn["problem_id"]]
        scores = sequence_logprobs(tiny_policy, 0, prompt_ids, drawn["completion_ids"].tolist(), 262_144)
    finally:
        watch.remove()
    assert max(held) <= 20_000
    assert scores == pytest.approx(drawn["logprob"].tolist(), abs=1e-4)


def tiny(architecture, vocabulary):
    """A random policy of an architecture of the paper, small; Gemma's and Qwen's attention windows are short here."""
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    if architecture == "gemma3":
        config = Gemma3TextConfig(
            **shape, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"] * 2
        )
        return Gemma3ForCausalLM(config)
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    window = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
    return Qwen2ForCausalLM(Qwen2Config(**shape, **window))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_cutting_the_batch_changes_no_token(tokenizer, draw, architecture, monkeypatch):
    """Prompts of several lengths, padded; in float64, so that no rounding can hide or make a difference."""
    torch.manual_seed(1)
    policy = tiny(architecture, len(tokenizer)).double().eval()
    policy.generation_config.eos_token_id = list(range(10))  # so that many end early, at different places
    engine = TransformersEngine(policy, tokenizer)
    drawn = {}
    for carried in (0, 0.1, 1):  # at 1 nothing is ever cut
        monkeypatch.setattr(engines, "_CARRIED", carried)
        drawn[carried] = draw(engine=engine, token_budget=10**6)
    assert drawn[1]["tokens"].nunique() > 5
    for carried in (0, 0.1):
        columns = ["completion_ids", "finish_reason"]
        pd.testing.assert_frame_equal(drawn[carried][columns], drawn[1][columns])
        assert drawn[carried]["logprob"].tolist() == pytest.approx(drawn[1]["logprob"].tolist(), abs=2e-6)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_greedy_completions_of_the_papers_architectures_are_those_of_a_plain_loop(
    tokenizer, draw, problems, prompts, architecture
):
    """Prompts of several lengths, most of them longer than the attention window, padded and computed once."""
    torch.manual_seed(1)
    policy = tiny(architecture, len(tokenizer)).eval()
    policy.generation_config.eos_token_id = tokenizer.eos_token_id
    rows = draw(
        engine=TransformersEngine(policy, tokenizer),
        temperature=0.0,
        num_samples=2,
        problems=problems.select([0, 3, 9]),
    )
    assert len(set(rows["text"])) > 1
    for row in rows.itertuples():
        assert row.completion_ids == plain_greedy(policy, prompts[row.problem_id], tokenizer.eos_token_id)
        expected = plain_logprob(policy, prompts[row.problem_id], row.completion_ids)
        assert row.logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_are_an_error(tiny_policy, tokenizer, temperature, value):
    """Else the last token of the vocabulary would be drawn for ever, or the first."""
    spoilt = copy.deepcopy(tiny_policy).half()
    spoilt.lm_head.weight.data[7] = value
    engine = TransformersEngine(spoilt, tokenizer)
    with pytest.raises(
        FloatingPointError, match=r"it has overflowed in float16, or.*\nIn float16 take a GPU with bfloat16"
    ):
        engine.generate([Request([5, 6, 7, 8], [1, 2])], temperature, 1.0, 6)
    with pytest.raises(FloatingPointError, match="float16"):
        sequence_logprobs(spoilt, 0, [[5, 6, 7]], [[8, 9]])


def test_an_engine_that_is_closed_holds_no_policy(tiny_policy, tokenizer):
    policy = copy.deepcopy(tiny_policy)
    gone, engine = weakref.ref(policy), TransformersEngine(policy, tokenizer)
    del policy
    engine.close()
    assert gone() is None
