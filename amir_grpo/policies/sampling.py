"""Draw n completions per problem from a policy, and score completions under a policy."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import torch
from accelerate.utils.memory import should_reduce_batch_size

from amir_grpo.policies.engines import Drawn, Engine, Request, check_finite, stream
from amir_grpo.policies.loading import free_memory
from amir_grpo.system.progress import stage

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Decimal places, in nats: float64 results of two machines differ only far beyond them.
LOGPROB_DIGITS = 6
# Logits that scoring holds at once, 1 GiB in float32: with a vocabulary of 150,000 tokens they take the most memory.
_LOGITS = 2**28
_Key = TypeVar("_Key", str, int)


def draw_completions(engine: Engine, problems: Dataset, num_samples: int, **options: Any) -> pd.DataFrame:
    """Draw like `draw_batches`, but return one table, in the order of `problems` and of the samples."""
    return in_order(pd.concat(draw_batches(engine, problems, num_samples, **options)), problems)


def in_order(rows: pd.DataFrame, problems: Dataset) -> pd.DataFrame:
    """Sort completions by the order of `problems`, then by sample, with a new index."""
    place = rows["problem_id"].map({problem: place for place, problem in enumerate(problems["id"])})
    return rows.assign(_place=place).sort_values(["_place", "sample"], ignore_index=True).drop(columns="_place")


def draw_batches(
    engine: Engine,
    problems: Dataset,
    num_samples: int,
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    token_budget: int = 32_768,
    done: Collection[str] = (),
    label: str = "sampling",
) -> Iterator[pd.DataFrame]:
    """Draw `num_samples` completions for each problem and yield them batch by batch, so that each batch can be saved.

    Problems are sorted by prompt length, and a batch holds as many whole problems as `token_budget` tokens of prompt
    and completion allow, but at least one. If memory runs out, this batch and later ones are halved.
    Each sample has its own random stream, made from the seed, the problem's id and the sample's number.

    Args:
        problems: Columns id and prompt (chat messages).
        num_samples: n, completions per problem.
        temperature: 0 is greedy.
        max_new_tokens: A completion that reaches this length is cut off: finish_reason "length".
        done: Ids of problems to leave out; the batches of the others stay the same.
        label: Label of the progress bar.

    Yields:
        One row per completion: problem_id, sample (0 to n-1), text (without special tokens), completion_ids (with the
        end token if reached), tokens (their number), finish_reason ("stop" or "length"), logprob (sum of the
        tokens' log-probabilities under the policy at temperature 1, in nats).

    Raises:
        MemoryError: If not even one completion fits into memory.
    """
    tokenizer = engine.tokenizer
    prompt_ids = tokenize_prompts(tokenizer, problems)
    options = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    if engine.name == "vllm":  # fits batches to its memory, and makes no completion wait for the longest of a batch
        token_budget = sys.maxsize
    lengths = {problem: num_samples * (len(ids) + max_new_tokens) for problem, ids in prompt_ids.items()}
    batches = _within_budget(lengths, token_budget)
    shrink = _Shrinking(engine, options)
    total, there = num_samples * len(prompt_ids), num_samples * len(set(done) & set(prompt_ids))
    with stage(label, total, there, unit="completion", leave=temperature > 0) as tick:
        for batch in batches:
            batch = [problem for problem in batch if problem not in done]
            if not batch:
                continue
            requests = [Request(prompt_ids[p], [stream(seed, p, n) for n in range(num_samples)]) for p in batch]
            drawn = zip(batch, shrink.generate(requests), strict=True)
            rows = [
                {
                    "problem_id": problem,
                    "sample": number,
                    "text": tokenizer.decode(one.ids, skip_special_tokens=True),
                    "completion_ids": one.ids,
                    "tokens": len(one.ids),
                    "finish_reason": "stop" if one.ended else "length",
                    "logprob": round(sum(one.logprobs), LOGPROB_DIGITS),
                }
                for problem, samples in drawn
                for number, one in enumerate(samples)
            ]
            tick(len(rows))
            yield pd.DataFrame(rows)


class _Shrinking:
    """A wrapper of `generate` that halves the number of completions drawn at once whenever memory runs out."""

    def __init__(self, engine: Engine, options: dict[str, Any]) -> None:
        self._engine = engine
        self._options = options
        self._most = sys.maxsize

    def generate(self, requests: list[Request]) -> list[list[Drawn]]:
        size = sum(len(request.streams) for request in requests)
        if size <= self._most:
            try:
                return self._engine.generate(requests, **self._options)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if size == 1:
                    raise MemoryError(
                        f"Not even one completion of {self._options['max_new_tokens']} tokens fits into memory.\n"
                        "Lower eval_max_new_tokens, load the policy in 4 bits, or use a smaller one."
                    ) from error
                self._most = size // 2
            free_memory()  # outside of the except block, which holds the failed batch's tensors
        if middle := len(requests) // 2:
            return self.generate(requests[:middle]) + self.generate(requests[middle:])
        prompt, streams = requests[0].prompt_ids, requests[0].streams
        halves = streams[: len(streams) // 2], streams[len(streams) // 2 :]
        return [[one for half in halves for one in self.generate([Request(prompt, half)])[0]]]


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, problems: Dataset) -> dict[str, list[int]]:
    """Tokenize each problem's prompt up to where the completion begins; return token ids by problem id."""
    prompts = tokenizer.apply_chat_template(list(problems["prompt"]), add_generation_prompt=True, return_dict=True)
    return dict(zip(problems["id"], prompts["input_ids"], strict=True))


@torch.no_grad()
def sequence_logprobs(
    policy: PreTrainedModel,
    pad_token_id: int,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    token_budget: int = 32_768,
) -> list[float]:
    """Sum the log-probabilities of each completion's tokens given its prompt, at temperature 1, in nats.

    Args:
        prompt_ids, completion_ids: One list of token ids per completion.
        token_budget: Tokens that go through the policy at once; fewer if the vocabulary is large.

    Raises:
        FloatingPointError: If the policy's logits are not numbers.
    """
    policy.eval()
    token_budget = min(token_budget, _LOGITS // policy.get_output_embeddings().weight.shape[0])
    whole = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    sums = [0.0] * len(whole)
    with stage("scoring", len(whole), unit="completion", leave=False) as tick:
        for batch, ids in padded_batches(whole, token_budget, pad_token_id):
            ids = ids.to(policy.device)
            logits = policy(input_ids=ids, use_cache=False).logits[:, :-1]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            token_logps = torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None]).squeeze(2).cpu()
            for row, index in enumerate(batch):
                wanted = token_logps[row, max(0, len(prompt_ids[index]) - 1) : max(0, len(whole[index]) - 1)]
                check_finite(wanted, policy.dtype)
                sums[index] = round(wanted.double().sum().item(), LOGPROB_DIGITS)
            tick(len(batch))
    return sums


def padded_batches(
    sequences: Sequence[Sequence[int]], token_budget: int, pad_token_id: int = 0
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield indices and token ids (N, longest) of sequences of similar length, each batch within a budget of tokens.

    They are padded on the right, where causal attention never looks, so that no mask is needed.
    """
    lengths = {index: len(sequence) for index, sequence in enumerate(sequences)}
    for batch in _within_budget(lengths, token_budget):
        rows = [torch.tensor(sequences[index], dtype=torch.long) for index in batch]
        yield batch, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)


def _within_budget(lengths: Mapping[_Key, int], token_budget: int) -> Iterator[list[_Key]]:
    """Split keys into batches of similar length in tokens, longest first; one at least, and padded within the budget."""
    waiting = sorted(lengths, key=lambda key: (lengths[key], key))
    while waiting:
        count = max(1, token_budget // max(lengths[waiting[-1]], 1))
        yield waiting[-count:]
        waiting = waiting[:-count]
