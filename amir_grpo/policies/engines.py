"""What draws completions from a policy: transformers, or vLLM where it is installed; both behind `Engine.generate`.

Each sample of a problem has a random stream of its own, named by an integer. With transformers a token is the inverse
of the cumulated distribution at the stream's next number, so that a completion does not depend on what else is in the
batch, but for the rounding of the logits: on a CPU in float32 that changes next to nothing (the tests find the same
tokens for every batch size); in bfloat16 on a GPU, kernels round differently for different shapes and completions may
part. vLLM seeds each request by the same integer; its batches are its own, and it promises equal completions for
equal seeds only where the batches are equal too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from amir_grpo.choices import ENGINES
from amir_grpo.policies.source import Loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Request:
    """Samples wanted for one prompt.

    Attributes:
        prompt_ids: Token ids up to where the completion begins.
        streams: The random stream of each sample, a non-negative integer.
    """

    prompt_ids: Sequence[int]
    streams: Sequence[int]


@dataclass(frozen=True)
class Drawn:
    """One completion.

    Attributes:
        ids: Its token ids, with the end token where it came.
        ended: Whether it came; otherwise the completion was cut.
        logprob: Sum of the log-probabilities of its tokens under the policy, at temperature 1, in nats.
    """

    ids: list[int]
    ended: bool
    logprob: float


class Engine(Protocol):
    """Draws completions from one policy. `name` is one of `ENGINES`."""

    name: str
    tokenizer: PreTrainedTokenizerBase

    def generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, max_new_tokens: int
    ) -> list[list[Drawn]]:
        """The samples of each request, in order. Temperature 0 is greedy: the streams are not used then."""


class TransformersEngine:
    """transformers' `generate` on a policy and its tokenizer; decoder-only policies with rotary positions.

    A prompt goes through the policy once, whatever the number of its samples.
    """

    name = "transformers"

    def __init__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.policy = policy
        self.tokenizer = tokenizer

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, max_new_tokens: int
    ) -> list[list[Drawn]]:
        """See `Engine.generate`.

        Raises:
            torch.OutOfMemoryError: If the requests do not fit into memory together.
        """
        self.policy.eval()
        prompts = self.tokenizer.pad(
            {"input_ids": [list(request.prompt_ids) for request in requests]}, return_tensors="pt", padding_side="left"
        ).to(self.policy.device)
        ids, mask = prompts["input_ids"], prompts["attention_mask"]
        repeats = torch.tensor([len(request.streams) for request in requests], device=ids.device)
        streams = [stream for request in requests for stream in request.streams]
        draw = _Draw(streams, ids.shape[1], temperature, top_p, max_new_tokens, ids.device)
        output = self.policy.generate(
            input_ids=ids.repeat_interleave(repeats, dim=0),
            attention_mask=mask.repeat_interleave(repeats, dim=0),
            past_key_values=self._prefill(ids, mask, repeats),
            logits_processor=LogitsProcessorList([draw]),
            # the processor has chosen already; and some policies ship with a penalty in their generation config
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        ends = eos_ids(self.policy, self.tokenizer)
        rows = zip(output[:, ids.shape[1] :].tolist(), draw.logprobs().tolist(), strict=True)
        drawn = iter([_until_end(row, logprobs, ends) for row, logprobs in rows])
        return [[next(drawn) for _ in request.streams] for request in requests]

    def _prefill(self, ids: Tensor, mask: Tensor, repeats: Tensor) -> DynamicCache | None:
        """Keys and values of all prompt tokens but the last, one row a sample; None where there is but one token."""
        if ids.shape[1] == 1:
            return None
        cache = DynamicCache(config=self.policy.config.get_text_config())
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.policy(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        rows = torch.arange(len(repeats), device=ids.device).repeat_interleave(repeats)
        cache.batch_select_indices(rows)
        return cache


class VLLMEngine:
    """vLLM on a policy, with a LoRA adapter on top where one is given; needs `pip install 'amir-grpo[vllm]'` and a GPU.

    Its prefix cache computes a prompt once for all its samples.

    Raises:
        ValueError: If vLLM is not installed.
    """

    name = "vllm"

    def __init__(
        self,
        base: str,
        adapter: Path | None,
        tokenizer: PreTrainedTokenizerBase,
        loading: Loading = Loading(),
        lora_rank: int = 64,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "engine='vllm' needs vLLM, which is not installed: pip install -e '.[vllm]' (Linux, NVIDIA GPU).\n"
                "Or set engine to 'transformers'."
            )
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.tokenizer = tokenizer
        self._lora = LoRARequest("policy", 1, str(adapter)) if adapter else None
        lora = {"enable_lora": True, "max_lora_rank": lora_rank} if adapter else {}
        self._llm = LLM(
            model=base,
            quantization="bitsandbytes" if loading.in_4bit else None,
            trust_remote_code=loading.trust_remote_code,
            load_format="bitsandbytes" if loading.in_4bit else "safetensors" if loading.safetensors_only else "auto",
            enable_prefix_caching=True,
            **lora,
        )

    def generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, max_new_tokens: int
    ) -> list[list[Drawn]]:
        """See `Engine.generate`."""
        from vllm import SamplingParams

        prompts, parameters = [], []
        for request in requests:
            for stream in request.streams:
                prompts.append({"prompt_token_ids": list(request.prompt_ids)})
                parameters.append(
                    SamplingParams(
                        temperature=temperature,
                        top_p=top_p,
                        max_tokens=max_new_tokens,
                        seed=stream % 2**63,
                        logprobs=0,  # of the drawn token alone; raw, so at temperature 1
                    )
                )
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False, lora_request=self._lora)
        drawn = iter(
            [
                Drawn(list(one.token_ids), one.finish_reason == "stop", float(one.cumulative_logprob))
                for one in (output.outputs[0] for output in outputs)
            ]
        )
        return [[next(drawn) for _ in request.streams] for request in requests]


def load_engine(name: str, base: str, adapter: Path | None, loading: Loading) -> Engine:
    """The engine of one policy.

    Args:
        name: One of `ENGINES`.
        base: Hub id or folder of the policy, or of the base of its adapter.
        adapter: Folder of a PEFT adapter, None for the base itself.
        loading: 4 bits or not, and what is trusted.

    Raises:
        ValueError: If there is no such engine, it is not installed, or the policy cannot be loaded so.
    """
    from amir_grpo.policies.loading import load_policy, load_tokenizer

    if name == "transformers":
        return TransformersEngine(load_policy(base, adapter, loading), load_tokenizer(base, loading.trust_remote_code))
    if name == "vllm":
        return VLLMEngine(base, adapter, load_tokenizer(base, loading.trust_remote_code), loading)
    raise ValueError(f"Unknown engine {name!r}: choose one of {', '.join(ENGINES)}.")


def eos_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a completion: the tokenizer's, and those of the policy's generation config."""
    ids = policy.generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else ids
    return {*ids, tokenizer.eos_token_id}


class _Draw(LogitsProcessor):
    """Chooses each row's next token from its own random stream, and leaves `generate` no other choice."""

    def __init__(
        self,
        streams: Sequence[int],
        prompt_tokens: int,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        device: torch.device,
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._temperature = temperature
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self._logprobs: list[Tensor] = []
        if temperature > 0:
            numbers = [np.random.default_rng(stream).random(max_new_tokens) for stream in streams]
            self._numbers = torch.from_numpy(np.stack(numbers)).to(device)  # (N, max_new_tokens) in [0, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        token = self._token(input_ids, scores)
        self._logprobs.append(scores.gather(1, token).squeeze(1) - scores.logsumexp(dim=1))
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)

    def _token(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(N, 1)"""
        if self._temperature == 0:
            return scores.argmax(dim=1, keepdim=True)
        logits = scores / self._temperature
        if self._nucleus:
            logits = self._nucleus(input_ids, logits)
        # in float64: with 150,000 tokens float32 would lose the last of them
        cumulated = torch.softmax(logits.double(), dim=1).cumsum(dim=1)
        step = input_ids.shape[1] - self._prompt_tokens
        number = self._numbers[:, step : step + 1] * cumulated[:, -1:]
        return torch.searchsorted(cumulated, number, right=True).clamp(max=scores.shape[1] - 1)

    def logprobs(self) -> Tensor:
        """(N, steps), with whatever followed the end token."""
        return torch.stack(self._logprobs, dim=1)


def _until_end(ids: list[int], logprobs: list[float], ends: set[int]) -> Drawn:
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    kept = ids if end is None else ids[: end + 1]
    return Drawn(kept, end is not None, float(sum(logprobs[: len(kept)])))
