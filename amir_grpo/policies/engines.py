"""Engines that draw completions from a policy: transformers, or vLLM where it is installed.

Each sample of a problem has its own random stream, named by an integer. The transformers engine draws a token by
inverting the cumulative distribution at the stream's next number. So a completion does not depend on the rest of the
batch, except through the rounding of the logits: on a CPU the tests find the same tokens for every batch size; on a
GPU in 16 bits, kernels round differently for different shapes. vLLM seeds each request with the same integer, and
promises equal completions for equal seeds only if its batches are equal, too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, TopPLogitsWarper

from amir_grpo.choices import ENGINES, check_names
from amir_grpo.policies.float64 import device_for_float64, merged_adapters
from amir_grpo.policies.loading import compute_dtype, free_memory, load_policy, load_tokenizer
from amir_grpo.policies.source import adapted_embeddings
from amir_grpo.settings import PolicySettings
from amir_grpo.system.files import install_command

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from vllm import LLM, CompletionOutput


_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # ranks that vLLM's kernels support
# Finished completions stay in the batch until they exceed this share of it, because removing rows has a cost.
_CARRIED = 0.1


@dataclass(frozen=True)
class Request:
    """A request for samples of one prompt: its token ids, and a random stream (a non-negative integer) per sample."""

    prompt_ids: Sequence[int]
    streams: Sequence[int]


@dataclass(frozen=True)
class Drawn:
    """One completion.

    Attributes:
        ids: Its token ids, with the end token if it was reached.
        ended: Whether the end token was reached; otherwise the completion was cut off.
        logprobs: Log-probability of each token under the policy, at temperature 1, in nats.
    """

    ids: list[int]
    ended: bool
    logprobs: list[float]


def stream(*names: object) -> int:
    """Return the random stream that belongs to a sequence of names: a non-negative integer of 64 bits."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:8], "big")


class TransformersEngine:
    """Engine that draws completions from a decoder-only transformers policy with rotary positions.

    A prompt goes through the policy once, however many samples it has, and finished completions leave the batch. The
    `generate` of transformers keeps them until the longest has finished, and has no option to change that.
    """

    name = "transformers"

    def __init__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.policy = policy
        self.tokenizer = tokenizer
        whole = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        # newer versions of transformers renamed the argument
        self._cache_name = "cache" if "cache" in inspect.signature(whole.forward).parameters else "past_key_values"

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, max_new_tokens: int
    ) -> list[list[Drawn]]:
        """Draw the samples of each request, in order. Temperature 0 is greedy and does not use the streams.

        Raises:
            FloatingPointError: If the policy's logits are not numbers.
            torch.OutOfMemoryError: If the requests do not fit into memory together.
        """
        training = self.policy.training
        self.policy.eval()  # no dropout, and no gradient checkpointing, which would disable the cache
        try:
            with merged_adapters(self.policy):
                return self._generate(requests, temperature, top_p, max_new_tokens)
        finally:
            self.policy.train(training)

    def close(self) -> None:
        """Free the memory; the engine is then unusable."""
        self.policy = None
        free_memory()

    def _generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, max_new_tokens: int
    ) -> list[list[Drawn]]:
        prompts = self.tokenizer.pad(
            {"input_ids": [list(request.prompt_ids) for request in requests]}, return_tensors="pt", padding_side="left"
        ).to(self.policy.device)
        cache = DynamicCache(config=self.policy.config.get_text_config())
        mask = prompts["attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(prompts["input_ids"], mask, positions, cache)

        streams = [stream for request in requests for stream in request.streams]
        exact = device_for_float64(mask.device)
        draw = _Draw(streams, temperature, top_p, max_new_tokens, exact)
        known = self.policy.generation_config.eos_token_id  # None, one or several
        known = known if isinstance(known, list) else [known]
        known = sorted({*known, self.tokenizer.eos_token_id} - {None})
        if not known:
            raise ValueError("The policy has no end token.\nGive its tokenizer an eos_token, or take another policy.")
        ends = torch.tensor(known, device=mask.device)
        ids = torch.full((len(streams), max_new_tokens), int(ends[0]), device=mask.device)
        logprobs = torch.zeros(ids.shape, dtype=torch.float64, device=exact)

        repeats = torch.tensor([len(request.streams) for request in requests], device=mask.device)
        prompt_of = torch.arange(len(repeats), device=mask.device).repeat_interleave(repeats)
        cache.batch_select_indices(prompt_of)
        logits, mask, position = logits[prompt_of], mask[prompt_of], positions[prompt_of, -1:]
        rows = torch.arange(len(streams), device=mask.device)  # which completions the batch still holds
        ended = torch.zeros_like(rows, dtype=torch.bool)
        for step in range(max_new_tokens):
            token, logprobs[rows.to(exact), step] = draw(logits.to(exact), rows.to(exact), step)
            token = token.to(mask.device)
            ids[rows, step] = token
            ended |= torch.isin(token, ends)
            number_ended = int(ended.sum())
            if number_ended == len(rows) or step + 1 == max_new_tokens:
                break
            if number_ended > _CARRIED * len(rows):
                kept = (~ended).nonzero().squeeze(1)
                cache.batch_select_indices(kept)
                rows, token, mask, position, ended = (part[kept] for part in (rows, token, mask, position, ended))
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            position = position + 1
            logits = self._forward(token[:, None], mask, position, cache)
        is_end = torch.isin(ids, ends)
        lengths = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, max_new_tokens)
        cut = zip(ids.tolist(), logprobs.tolist(), lengths.tolist(), is_end.any(dim=1).tolist(), strict=True)
        drawn = iter([Drawn(tokens[:length], end, values[:length]) for tokens, values, length, end in cut])
        return [[next(drawn) for _ in request.streams] for request in requests]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Return the logits of the token after each row of `ids`, (N, vocabulary), and add `ids` to the cache."""
        return self.policy(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: cache},
        ).logits[:, -1]


class VLLMEngine:
    """Engine that draws completions with vLLM from a base policy, alone or with a LoRA adapter on top.

    Its prefix cache computes a prompt once for all samples, and its scheduler makes no completion wait for another, so
    pass all requests at once. The engine is built once for a base and a largest rank; `use` changes the adapter.
    """

    name = "vllm"

    def __init__(
        self, llm: LLM, tokenizer: PreTrainedTokenizerBase, base: str, adapter: Path | None, lora_rank: int
    ) -> None:
        self.tokenizer = tokenizer
        self.base = base
        self.lora_rank = lora_rank
        self._llm = llm
        self._adapters: list[Path] = []  # vLLM identifies each by a number
        self.use(adapter)

    def use(self, adapter: Path | None) -> None:
        """Switch to an adapter of the base policy; None selects the base itself."""
        from vllm.lora.request import LoRARequest

        _check_adapter(adapter)
        if adapter is not None and adapter not in self._adapters:
            self._adapters.append(adapter)
        number = self._adapters.index(adapter) + 1 if adapter is not None else 0
        self._lora = LoRARequest(f"policy {number}", number, str(adapter)) if number else None

    def generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, max_new_tokens: int
    ) -> list[list[Drawn]]:
        """Draw like `TransformersEngine.generate`; vLLM fits batches to its memory."""
        from vllm import SamplingParams

        # logprobs=0 asks only for those of the drawn tokens; they are raw, that is, at temperature 1
        same = {"temperature": temperature, "top_p": top_p, "max_tokens": max_new_tokens, "logprobs": 0}
        each = [(request.prompt_ids, stream) for request in requests for stream in request.streams]
        prompts = [{"prompt_token_ids": list(ids)} for ids, _ in each]
        parameters = [SamplingParams(seed=stream % 2**63, **same) for _, stream in each]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False, lora_request=self._lora)
        drawn = iter([output.outputs[0] for output in outputs])
        return [[_of_vllm(next(drawn)) for _ in request.streams] for request in requests]

    def close(self) -> None:
        """Free the memory and end vLLM's processes, which nothing else does reliably; the engine is then unusable."""
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        free_memory()


Engine = TransformersEngine | VLLMEngine


def _check_adapter(adapter: Path | None) -> None:
    """Refuse an adapter of embedding or output layers, whose weights vLLM may share, or leave unchanged."""
    if adapter is not None and (layers := adapted_embeddings(adapter)):
        raise ValueError(
            f"eval_engine=vllm takes no adapter of {' and '.join(layers)}, as {adapter} is:\n"
            "set eval_engine to transformers."
        )


def _start_vllm(base: str, settings: PolicySettings, lora_rank: int, tokens: int | None) -> LLM:
    """Build vLLM's own engine; raise ValueError if it is missing, takes no such rank or would read pickled weights."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            f"eval_engine=vllm needs vLLM, which is not installed: {install_command('vllm')} (Linux, NVIDIA GPU).\n"
            "Or set eval_engine to transformers."
        )
    if lora_rank > _VLLM_RANKS[-1]:
        raise ValueError(
            f"eval_engine=vllm takes adapters up to rank {_VLLM_RANKS[-1]}, and this one's is {lora_rank}:\n"
            "set eval_engine to transformers."
        )
    pickled = Path(base).is_dir() and not any(Path(base).glob("*.safetensors"))
    if settings.load_in_4bit and settings.safetensors_only and pickled:
        raise ValueError(
            f"{base} holds no safetensors, and with 4 bits vLLM would read pickled weights, which can run code.\n"
            "Save it as safetensors, or set safetensors_only to False if you trust it."
        )
    # here, where no frame refers to an engine of ours: vLLM keeps the frames alive if an import inside it fails
    from vllm import LLM

    by_default = "safetensors" if settings.safetensors_only else "auto"
    free_memory()
    free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (1, 1)
    return LLM(
        model=base,
        quantization="bitsandbytes" if settings.load_in_4bit else None,
        trust_remote_code=settings.trust_remote_code,
        load_format="bitsandbytes" if settings.load_in_4bit else by_default,
        dtype=str(compute_dtype(settings)).removeprefix("torch."),  # by default, vLLM takes bfloat16 on a T4
        max_model_len=tokens,
        enable_prefix_caching=True,
        enable_lora=lora_rank > 0,
        max_lora_rank=next(rank for rank in _VLLM_RANKS if rank >= lora_rank),
        gpu_memory_utilization=round(0.9 * free / total, 3),  # 90 % of the memory that is free
    )


def _of_vllm(output: CompletionOutput) -> Drawn:
    ids = list(output.token_ids)
    logprobs = [float(known[token].logprob) for token, known in zip(ids, output.logprobs, strict=True)]
    return Drawn(ids, output.finish_reason == "stop", logprobs)


def engine_here(wanted: str, settings: PolicySettings) -> str:
    """Return one of `ENGINES`: for auto, vLLM if it is installed and policies run on a GPU, else transformers."""
    if wanted != "auto":
        return wanted
    on_gpu = settings.device != "cpu" and torch.cuda.is_available()
    return "vllm" if on_gpu and importlib.util.find_spec("vllm") is not None else "transformers"


def load_engine(
    name: str,
    base: str,
    adapter: Path | None,
    settings: PolicySettings,
    lora_rank: int = 16,
    tokens: int | None = None,
) -> Engine:
    """Load an engine for a policy; `base`, `adapter` and `settings` are as in `load_policy`.

    Args:
        name: One of `ENGINES`.
        lora_rank: For vLLM, the largest rank of an adapter that will be used; 0 for none.
        tokens: For vLLM, the most tokens of a prompt and its completion together; None for the policy's own limit.

    Raises:
        ValueError: If the engine is unknown or not installed, or the policy cannot be loaded with it.
    """
    check_names("engine", [name], ENGINES)
    tokenizer = load_tokenizer(base, settings.trust_remote_code)
    if name == "transformers":
        return TransformersEngine(load_policy(base, adapter, settings), tokenizer)
    _check_adapter(adapter)  # before vLLM starts, which takes minutes
    return VLLMEngine(_start_vllm(base, settings, lora_rank, tokens), tokenizer, base, adapter, lora_rank)


def check_finite(logprobs: Tensor, dtype: torch.dtype) -> None:
    """Raise FloatingPointError if a log-probability is not a number; `dtype` is the policy's precision."""
    if logprobs.isnan().any():
        name = str(dtype).removeprefix("torch.")
        raise FloatingPointError(
            f"The policy's logits are not numbers: it has overflowed in {name}, or its weights are damaged.\n"
            "In float16 take a GPU with bfloat16, or another policy; else train again with a lower learning_rate."
        )


class _Draw:
    """Sampler of each completion's next token from its own random stream."""

    def __init__(
        self, streams: Sequence[int], temperature: float, top_p: float, max_new_tokens: int, device: torch.device
    ) -> None:
        self._temperature = temperature
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        if temperature > 0:
            # from raw bits of an integer generator, which are the same on every platform and in every library build
            numbers = [np.random.Generator(np.random.PCG64(stream)).random(max_new_tokens) for stream in streams]
            self._numbers = torch.from_numpy(np.stack(numbers)).to(device)  # (N, max_new_tokens) in [0, 1)

    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Draw token number `step` of completions `rows` from logits (M, vocabulary).

        Returns:
            The tokens and their log-probabilities at temperature 1: (M,) each.
        """
        # in float64: in a vocabulary of 150,000 tokens, float32 would lose the last ones
        logprobs = logits.double().log_softmax(dim=1)
        if self._temperature == 0:
            token = logprobs.argmax(dim=1, keepdim=True)
        else:
            tempered = logprobs / self._temperature
            if self._nucleus:
                tempered = self._nucleus(None, tempered)
            cumulated = tempered.softmax(dim=1).cumsum(dim=1)
            number = self._numbers[rows, step, None] * cumulated[:, -1:]
            token = torch.searchsorted(cumulated, number, right=True).clamp(max=logprobs.shape[1] - 1)
        chosen = logprobs.gather(1, token).squeeze(1)
        check_finite(chosen, logits.dtype)  # one NaN logit makes all log-probabilities of its row NaN
        return token.squeeze(1), chosen
