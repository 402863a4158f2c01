"""Draw n completions a problem from a policy, and score completions under a policy."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Logits that scoring holds at once, 1 GiB in float32: with 150,000 tokens in the vocabulary they outgrow all else.
_LOGITS = 2**28


def sample(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Dataset,
    num_samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    token_budget: int = 32_768,
    label: str = "sampling",
) -> pd.DataFrame:
    """Draw `num_samples` completions for each problem.

    Problems are sorted by prompt length, and a batch holds as many completions as `token_budget` tokens of prompt and
    completion allow. Each batch has a random stream of its own, made from the seed and the ids of its problems.

    Args:
        problems: Columns id and prompt (chat messages).
        num_samples: n, completions a problem.
        temperature: Above 0.
        max_new_tokens: A completion that reaches it is cut: finish_reason "length".

    Returns:
        One row a completion, in the order of `problems`: problem_id, sample (0 to n-1), text (without special
        tokens), completion_ids (with the end token where it came), tokens (their number), finish_reason ("stop" or
        "length"), logprob (sum of the tokens' log-probabilities under the policy at temperature 1, in nats).
    """
    prompt_ids = tokenize_prompts(tokenizer, problems)
    eos = set(_eos_ids(policy, tokenizer))
    rows = []
    policy.eval()
    with tqdm(total=len(prompt_ids) * num_samples, desc=label, unit="completion", mininterval=2) as progress:
        for batch in _batches(prompt_ids, num_samples, max_new_tokens, token_budget):
            inputs = tokenizer.pad({"input_ids": [prompt_ids[i] for i in batch]}, return_tensors="pt").to(
                policy.device
            )
            with torch.random.fork_rng():
                torch.manual_seed(zlib.crc32(f"{seed}/{'/'.join(batch)}".encode()))
                with torch.no_grad():
                    output = policy.generate(
                        **inputs,
                        do_sample=True,
                        temperature=temperature,
                        top_p=top_p,
                        top_k=0,
                        repetition_penalty=1.0,  # some policies ship with a penalty in their generation config
                        max_new_tokens=max_new_tokens,
                        num_return_sequences=num_samples,
                        pad_token_id=tokenizer.pad_token_id,
                    )
            completions = output[:, inputs["input_ids"].shape[1] :].tolist()
            for index, ids in enumerate(completions):
                end = next((place for place, token in enumerate(ids) if token in eos), None)
                kept = ids if end is None else ids[: end + 1]
                rows.append(
                    {
                        "problem_id": batch[index // num_samples],
                        "sample": index % num_samples,
                        "text": tokenizer.decode(kept, skip_special_tokens=True),
                        "completion_ids": kept,
                        "tokens": len(kept),
                        "finish_reason": "length" if end is None else "stop",
                    }
                )
            progress.update(len(completions))
    order = {problem: place for place, problem in enumerate(problems["id"])}
    rows.sort(key=lambda row: (order[row["problem_id"]], row["sample"]))
    frame = pd.DataFrame(rows)
    frame["logprob"] = score(
        policy,
        tokenizer.pad_token_id,
        [prompt_ids[problem] for problem in frame["problem_id"]],
        frame["completion_ids"].tolist(),
        token_budget,
    )
    return frame


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, problems: Dataset) -> dict[str, list[int]]:
    """Token ids of each problem's prompt up to where the completion begins, by problem id."""
    prompts = tokenizer.apply_chat_template(list(problems["prompt"]), add_generation_prompt=True, return_dict=True)
    return dict(zip(problems["id"], prompts["input_ids"], strict=True))


@torch.no_grad()
def score(
    policy: PreTrainedModel,
    pad_token_id: int,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    token_budget: int = 32_768,
) -> list[float]:
    """Sum of the log-probabilities of each completion's tokens given its prompt, at temperature 1, in nats.

    Args:
        prompt_ids, completion_ids: One list of token ids a completion, of equal number.
        token_budget: Tokens that go through the policy at once; fewer where the vocabulary is large.
    """
    policy.eval()
    token_budget = min(token_budget, _LOGITS // policy.get_output_embeddings().weight.shape[0])
    lengths = [len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    sums = [0.0] * len(lengths)
    while by_length:
        longest = lengths[by_length[-1]]
        count = max(1, token_budget // max(longest, 1))
        batch, by_length = by_length[-count:], by_length[:-count]
        # padded on the right: causal attention never looks there, so no mask is needed
        ids = torch.full((len(batch), longest), pad_token_id)
        wanted = torch.zeros((len(batch), longest), dtype=torch.bool)
        for row, index in enumerate(batch):
            whole = [*prompt_ids[index], *completion_ids[index]]
            ids[row, : len(whole)] = torch.tensor(whole)
            wanted[row, len(prompt_ids[index]) : len(whole)] = True
        ids = ids.to(policy.device)
        logits = policy(input_ids=ids, use_cache=False).logits[:, :-1].float()
        token_logps = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None]).squeeze(2).cpu()
        for row, index in enumerate(batch):
            sums[index] = token_logps[row][wanted[row, 1:]].double().sum().item()
    return sums


def _batches(
    prompt_ids: dict[str, list[int]], num_samples: int, max_new_tokens: int, token_budget: int
) -> Iterator[list[str]]:
    """Problem ids in batches of similar prompt length, each within the token budget (one problem at least)."""
    waiting = sorted(prompt_ids, key=lambda problem: (len(prompt_ids[problem]), problem))
    while waiting:
        longest = len(prompt_ids[waiting[-1]]) + max_new_tokens
        count = max(1, token_budget // (longest * num_samples))
        yield waiting[-count:]
        waiting = waiting[:-count]


def _eos_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = policy.generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    return [*ids, tokenizer.eos_token_id]
