"""Sampling: log-probabilities and completions against plain forward passes, one sequence at a time."""

import pandas as pd
import pytest
import torch
from datasets import concatenate_datasets

from amir_grpo import sampling
from amir_grpo.sampling import sample, score
from amir_grpo.sandbox import load_sandbox

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def problems():
    """Prompts of four lengths, not in the order of their lengths."""
    return concatenate_datasets([load_sandbox(name, 3) for name in ("chain6", "chain3", "chain5", "chain4")])


@pytest.fixture(scope="module")
def draw(tiny_policy, tokenizer, problems):
    def draw(policy=tiny_policy, **changes):
        options = {"num_samples": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": NEW_TOKENS, "seed": 0}
        options |= {"problems": problems, "token_budget": 700} | changes  # several batches
        return sample(policy, tokenizer, **options)

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


def test_logprob_is_that_of_a_plain_forward_pass(tiny_policy, drawn, prompts):
    for row in drawn.itertuples():
        expected = plain_logprob(tiny_policy, prompts[row.problem_id], row.completion_ids)
        assert row.logprob == pytest.approx(expected, abs=1e-4)


def test_logprob_is_at_temperature_1_whatever_was_sampled_at(tiny_policy, draw, prompts):
    for row in draw(temperature=0.3, top_p=0.5).itertuples():
        expected = plain_logprob(tiny_policy, prompts[row.problem_id], row.completion_ids)
        assert row.logprob == pytest.approx(expected, abs=1e-4)


def test_next_to_temperature_0_it_is_the_greedy_completion(tiny_policy, tokenizer, draw, prompts):
    cold = draw(temperature=1e-5, num_samples=2)
    for row in cold.itertuples():
        assert row.completion_ids == plain_greedy(tiny_policy, prompts[row.problem_id], tokenizer.eos_token_id)


def test_rows_are_by_problem_and_sample(drawn, problems):
    expected = [(problem, number) for problem in problems["id"] for number in range(4)]
    assert list(zip(drawn["problem_id"], drawn["sample"], strict=True)) == expected
    assert list(drawn.index) == list(range(len(drawn)))


def test_ends_are_consistent(drawn, tokenizer):
    eos = tokenizer.eos_token_id
    for row in drawn.itertuples():
        assert row.tokens == len(row.completion_ids) <= NEW_TOKENS
        assert eos not in row.completion_ids[:-1]
        assert row.finish_reason == ("stop" if row.completion_ids[-1] == eos else "length")
        assert row.finish_reason == "stop" or row.tokens == NEW_TOKENS
        assert row.text == tokenizer.decode([i for i in row.completion_ids if i not in tokenizer.all_special_ids])
    assert set(drawn["finish_reason"]) == {"stop", "length"}, "the test should see both"


def test_seed_decides(draw, drawn):
    torch.manual_seed(123)  # and nothing else does
    pd.testing.assert_frame_equal(draw(), drawn)
    other = draw(seed=1)
    assert (other["text"] != drawn["text"]).mean() > 0.5


def test_samples_of_a_problem_differ(drawn):
    assert drawn.groupby("problem_id")["text"].nunique().mean() > 2


def test_global_randomness_is_left_alone(draw):
    before = torch.get_rng_state()
    draw(num_samples=1)
    assert torch.equal(torch.get_rng_state(), before)


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
    scores = score(tiny_policy, tokenizer.pad_token_id, prompt_ids, ids, token_budget)
    assert scores == pytest.approx(drawn["logprob"].tolist(), abs=1e-4)
    backwards = score(tiny_policy, tokenizer.pad_token_id, prompt_ids[::-1], ids[::-1], token_budget)
    assert backwards[::-1] == pytest.approx(scores, abs=1e-4)


def test_score_of_nothing_is_nothing(tiny_policy):
    assert score(tiny_policy, 0, [], []) == []
    assert score(tiny_policy, 0, [[1, 2]], [[]]) == [0.0]


def test_scoring_holds_few_logits_at_once(tiny_policy, drawn, prompts, monkeypatch):
    """With Qwen's vocabulary the default budget would need 160 GB for the logits of one batch."""
    monkeypatch.setattr(sampling, "_LOGITS", 20_000)
    held = []
    watch = tiny_policy.register_forward_hook(lambda module, inputs, output: held.append(output.logits.numel()))
    try:
        prompt_ids = [prompts[problem] for problem in drawn["problem_id"]]
        scores = score(tiny_policy, 0, prompt_ids, drawn["completion_ids"].tolist(), 262_144)
    finally:
        watch.remove()
    assert max(held) <= 20_000
    assert scores == pytest.approx(drawn["logprob"].tolist(), abs=1e-4)
