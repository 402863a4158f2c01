"""One forward and backward pass of a policy at its full size on PyTorch's meta device, which holds no numbers."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amir_grpo.policies.loading import lora_config
from amir_grpo.settings import RunSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Shapes of the published policies, so that a plan needs no network.
_QWEN = {"model_type": "qwen2", "vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN
    | {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864},
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN
    | {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "intermediate_size": 8960},
    "Qwen/Qwen2.5-3B-Instruct": _QWEN
    | {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "intermediate_size": 11008},
    "Qwen/Qwen2.5-7B-Instruct": _QWEN
    | {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "tie_word_embeddings": False,
    },
    "google/gemma-3-4b-it": {
        "model_type": "gemma3",
        "text_config": {
            "vocab_size": 262208,
            "hidden_size": 2560,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "intermediate_size": 10240,
            "sliding_window": 1024,
        },
        "vision_config": {
            "hidden_size": 1152,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "intermediate_size": 4304,
            "image_size": 896,
            "patch_size": 14,
        },
    },
}

# Rows of logits that Unsloth's fused projection holds at once, for vocabularies above 76,000 (its fused_linear_rows).
_UNSLOTH_ROWS = 512


def policy_width(policy: torch.nn.Module) -> int:
    """Bytes per trained parameter on the meta device."""
    return next(p.element_size() for p in policy.parameters() if p.requires_grad)


def config_of(settings: RunSettings) -> PretrainedConfig:
    """The policy's shape; looked up, on the Hub or in its folder, where it is not known offline."""
    from transformers import AutoConfig

    from amir_grpo.policies.loading import explain_loading_error
    from amir_grpo.sandbox.policy import SPECS, build_tokenizer, untrained_config

    name = settings.policy.model_name
    if settings.policy.is_sandbox:
        spec = SPECS[name]
        return untrained_config(spec, build_tokenizer(spec.words))
    if name in SHAPES and not Path(name).exists():
        return AutoConfig.for_model(**SHAPES[name])
    with explain_loading_error("configuration", name):
        return AutoConfig.from_pretrained(name, trust_remote_code=settings.policy.trust_remote_code)


def policy_on_meta(settings: RunSettings, dtype: torch.dtype) -> tuple[PreTrainedModel, int, int, int]:
    """The policy with its adapter, shapes only; parameters of the adapter, of what 4 bits would quantise, and of all."""
    from peft import get_peft_model
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register("plan", _attention)
    with torch.device("meta"):
        config = config_of(settings)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="plan")
        total = sum(p.numel() for p in model.parameters())
        head = model.get_output_embeddings()
        linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        linear = sum(m.weight.numel() for m in linears)
        adapter = settings.policy.lora_rank, settings.policy.lora_alpha, settings.policy.lora_targets
        policy = get_peft_model(model, lora_config(*adapter, model))
        if settings.train.gradient_checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
            policy.enable_input_require_grads()
    policy.train()
    return policy, sum(p.numel() for p in policy.parameters() if p.requires_grad), linear, total


@dataclass(frozen=True)
class Peak:
    """Bytes alive at the peak of forward and backward, with the adapter's gradients and without the parameters.

    Attributes:
        total: All of them.
        logits: Those of tensors as wide as the vocabulary: logits, copies of them, and their gradients.
    """

    total: int
    logits: int


def peak_of_a_pass(
    policy: PreTrainedModel, micro_batch: int, prompt: int, completion: int, backend: str, on_gpu: bool
) -> Peak:
    """The peak of the pass that a trainer makes: the policy, the log-probabilities of the completions, and back.

    Args:
        policy: On the meta device, with its adapter.
        micro_batch: Number of completions.
        prompt, completion: Their lengths, in tokens.
        backend: transformers or unsloth; they keep different things of the logits.
        on_gpu: Whether TRL's kernel computes the log-probabilities; it is written in Triton, and runs on GPUs alone.
    """
    length = prompt + completion
    parameters = {p.untyped_storage()._cdata for p in policy.parameters()}
    vocabulary = policy.get_output_embeddings().weight.shape[0]
    with torch.device("meta"), _Alive(parameters, vocabulary) as alive:
        ids = torch.zeros(micro_batch, length, dtype=torch.long)
        mask = torch.ones(micro_batch, 1, length, length, dtype=torch.bool)
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if backend == "unsloth":
            logps = _logps_by_unsloth(policy, inputs, completion)
        else:
            logps = _logps_by_trl(policy, inputs, completion, on_gpu)
        logps.backward(torch.zeros_like(logps))
        return alive.peak


def _logps_by_trl(policy: PreTrainedModel, inputs: dict[str, Any], completion: int, on_gpu: bool) -> Tensor:
    """(N, T). accelerate makes the output float32; TRL drops the last logit of a row, and the logits stay until the backward
    pass has written their gradient beside them."""
    logits = policy(**inputs, logits_to_keep=completion + 1).logits.float()[:, :-1][:, -completion:]
    ids = inputs["input_ids"][:, -completion:]
    if on_gpu:
        return _TRLKernel.apply(logits)
    selected = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return selected - torch.stack([row.logsumexp(-1) for row in logits])  # each of the two has a gradient of its own


def _logps_by_unsloth(policy: PreTrainedModel, inputs: dict[str, Any], completion: int) -> Tensor:
    """(N, T), from the last hidden states: logits of some rows at a time, whose gradient goes into the same buffer."""
    hidden = policy.get_base_model().base_model(**inputs).last_hidden_state
    vocabulary = policy.get_output_embeddings().weight.shape[0]
    return _UnslothChunks.apply(hidden[:, -completion - 1 : -1], vocabulary)


class _TRLKernel(torch.autograd.Function):
    """What TRL's kernel keeps and writes."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        logps = torch.empty(logits.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(logits, torch.empty_like(logps), torch.empty_like(logps))
        return logps

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.empty_like(ctx.saved_tensors[0], memory_format=torch.contiguous_format)


class _UnslothChunks(torch.autograd.Function):
    """What Unsloth's fused projection keeps and writes where the output head is not trained: the hidden states' gradient,
    already in the forward pass."""

    @staticmethod
    def forward(ctx, hidden: Tensor, vocabulary: int) -> Tensor:
        torch.empty(min(_UNSLOTH_ROWS, hidden.shape[0] * hidden.shape[1]), vocabulary, dtype=torch.float32)
        ctx.save_for_backward(torch.empty_like(hidden))
        return torch.empty(hidden.shape[:-1], dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return torch.empty_like(ctx.saved_tensors[0]), None


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, those as wide as the vocabulary apart, and their peak."""

    def __init__(self, known: set[int], vocabulary: int) -> None:
        super().__init__()
        self.known = known
        self.vocabulary = vocabulary
        self.bytes = self.logits = 0
        self.peak = Peak(0, 0)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            wide = size if tensor.shape[-1:] == (self.vocabulary,) else 0
            self.known.add(key)
            self._add(size, wide)
            weakref.finalize(storage, self._gone, key, size, wide)

    def _add(self, size: int, wide: int) -> None:
        self.bytes += size
        self.logits += wide
        if self.bytes > self.peak.total:
            self.peak = Peak(self.bytes, self.logits)

    def _gone(self, key: int, size: int, wide: int) -> None:
        self.known.discard(key)
        self._add(-size, -wide)


class _FusedAttention(torch.autograd.Function):
    """What fused attention kernels keep for the backward pass, on the meta device, where PyTorch has none."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        out, sums = torch.empty_like(query), torch.empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums, mask)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention(module, query, key, value, attention_mask, **options):
    """transformers' interface of an attention function; keys and values are repeated, as its SDPA does under a mask."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (key, value))
    return _FusedAttention.apply(query, key, value, attention_mask).transpose(1, 2).contiguous(), None
