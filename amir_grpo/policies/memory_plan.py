"""How much GPU memory a training will take, part by part, how long it will take, and whether it fits.

The training pass is not estimated by formulas but run on PyTorch's meta device, which knows shapes and holds no numbers:
the policy at its full size with its adapters, one micro-batch forward and backward, and a count of the tensors alive.
Weights, optimizer and KV cache are arithmetic. So a plan takes seconds and needs neither the weights nor a GPU.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amir_grpo.policies.loading import lora_config
from amir_grpo.settings import Settings, settings_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU, by its data sheet.

    Attributes:
        memory: Memory that a process can allocate, GiB.
        tflops: Speed of dense 16-bit matrix products, 10^12 operations per second.
        bandwidth: Memory bandwidth, GB per second.
        bf16: Whether it computes in bfloat16, else in float16.
    """

    name: str
    memory: float
    tflops: float
    bandwidth: float
    bf16: bool = True


CARDS = {
    card.name: card
    for card in (
        Card("T4", 14.6, 65, 320, bf16=False),
        Card("L4", 22.0, 121, 300),
        Card("A100-40GB", 39.4, 312, 1555),
        Card("A100-80GB", 79.2, 312, 2039),
        Card("H100", 79.2, 989, 3350),
        Card("H200", 139.8, 989, 4800),
    )
}

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

_CONTEXT = 0.6  # GiB: CUDA's context and the kernels' code and workspaces
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes per weight: 4 bits, and a scale for each 64, quantised in turn
# Copies of the logits that generation holds at once: the policy's, in float32, scaled, their softmax, a recorder's.
_LOGIT_COPIES = 4
# For the time: the shares of the data sheet's figures that training and decoding reach, and the least time per layer when
# decoding. Assumed, not measured.
_TRAIN_SHARE, _READ_SHARE, _LAYER_SECONDS = 0.35, 0.5, 0.8e-3


@dataclass(frozen=True)
class Plan:
    """The estimate for one training.

    Attributes:
        settings: The settings of the training.
        parts: GiB on each GPU, by part: weights, adapters, gradients, optimizer, activations, logits, KV cache,
            generation logits, CUDA context.
        parameters: Number of parameters of the policy, without the adapter.
        trained: Number of parameters of the adapter.
        layers: Number of decoder layers.
    """

    settings: Settings
    parts: dict[str, float]
    parameters: int
    trained: int
    layers: int

    @property
    def training(self) -> float:
        """GiB at the peak of the training pass."""
        return self._static + self.parts["activations"] + self.parts["logits"]

    @property
    def rollout(self) -> float:
        """GiB at the peak of a rollout."""
        return self._static + self.parts["KV cache"] + self.parts["generation logits"]

    @property
    def peak(self) -> float:
        """GiB at the higher of the two peaks."""
        return max(self.training, self.rollout)

    @property
    def _static(self) -> float:
        return sum(self.parts[name] for name in ("weights", "adapters", "gradients", "optimizer", "CUDA context"))

    def fits(self, card: Card) -> bool:
        """Whether the peak leaves a twentieth of the card's memory for fragmentation."""
        return self.peak <= 0.95 * card.memory

    def step_seconds(self, card: Card) -> float:
        """Seconds per optimizer step if every completion is as long as allowed. Rough: see the module's constants."""
        s = self.settings
        completions = _rollout(s)
        tokens = completions * (s.max_prompt_length + s.max_completion_length)
        # forward, the backward of the activations and, with checkpointing, forward once more; weights have no gradient
        passes = 6 if s.gradient_checkpointing else 4
        train = passes * self.parameters * tokens / (_TRAIN_SHARE * card.tflops * 1e12)
        read = self.parts["weights"] * GIB / (_READ_SHARE * card.bandwidth * 1e9)
        decode = s.max_completion_length * max(read, self.layers * _LAYER_SECONDS)
        prefill = 2 * self.parameters * completions * s.max_prompt_length / (_TRAIN_SHARE * card.tflops * 1e12)
        return train + prefill + decode * s.gradient_accumulation_steps / s.micro_batches

    def hours(self, card: Card) -> float:
        """Hours of one method's training."""
        return self.step_seconds(card) * self.settings.max_steps / 3600

    def ways_out(self, card: Card) -> str:
        """The setting to change where the training does not fit, by what takes most memory; empty where it fits."""
        if self.fits(card):
            return ""
        s = self.settings
        if self.parts["weights"] > 0.6 * card.memory and not s.load_in_4bit:
            return "load_in_4bit=True, or take a smaller model_name"
        if self.rollout > self.training:
            return "lower gradient_accumulation_steps or max_completion_length: a rollout is the peak"
        if not s.gradient_checkpointing:
            return "set gradient_checkpointing=True"
        if s.micro_batch > 1 and self.parts["activations"] + self.parts["logits"] > 0.1 * self.peak:
            fewer, more = s.micro_batch // 2, 2 * s.gradient_accumulation_steps
            return f"per_device_train_batch_size={fewer}, gradient_accumulation_steps={more}: the same rollouts and updates"
        return "take a smaller model_name" if s.load_in_4bit else "load_in_4bit=True, or take a smaller model_name"

    def table(self) -> pd.DataFrame:
        """The parts: columns part, GiB."""
        rows = [*self.parts.items(), ("peak in training", self.training), ("peak in a rollout", self.rollout)]
        return pd.DataFrame(rows, columns=["part", "GiB"])

    def cards(self, cards: dict[str, Card] | None = None) -> pd.DataFrame:
        """Each card: columns card, memory (GiB), fits, hours (one method), change (what helps where it does not fit)."""
        rows = [
            (card.name, card.memory, "yes" if self.fits(card) else "no", self.hours(card), self.ways_out(card))
            for card in (cards or CARDS).values()
        ]
        return pd.DataFrame(rows, columns=["card", "memory", "fits", "hours", "change"])


def plan(settings: Settings, bf16: bool = True, bits: int = 16) -> Plan:
    """Plan the training of one method; both take the same.

    Args:
        settings: Settings of the run. A policy whose shape is not known offline is looked up, on the Hub or in its folder.
        bf16: Whether the card computes in bfloat16, else in float16.
        bits: Bits per number in computation; 32 on a CPU.

    Raises:
        OSError: If the shape of the policy cannot be found.
    """
    dtype = torch.float32 if bits == 32 else torch.bfloat16 if bf16 else torch.float16
    policy, trained, linear, total = _policy_on_meta(settings, dtype)
    config = policy.config.get_text_config()
    micro_batch, width = settings.micro_batch, dtype.itemsize
    weights = total * width
    if settings.load_in_4bit:
        weights = linear * _NF4 + (total - linear) * width
    # TRL keeps the adapters of a 4-bit policy in bfloat16; a loss scaler (float16) needs float32
    adapter_width = 2 if settings.load_in_4bit and bf16 and bits == 16 else 4
    moments = 2 * (1 if "8bit" in settings.optim else adapter_width)
    logits = 2 * micro_batch * (settings.max_completion_length + 1) * config.vocab_size * width  # and their gradient
    dynamic = _peak_of_a_pass(policy, micro_batch, settings.max_prompt_length, settings.max_completion_length)
    at_once = _rollout(settings)
    parts = {
        "weights": weights,
        "adapters": trained * adapter_width,
        "gradients": trained * adapter_width,
        "optimizer": trained * moments,
        "activations": max(0.0, dynamic - logits - trained * policy_width(policy)),
        "logits": logits,
        "KV cache": at_once * _cache_of_a_completion(config, settings) * width,
        "generation logits": at_once * config.vocab_size * 4 * _LOGIT_COPIES,
    }
    in_gib = {name: value / GIB for name, value in parts.items()}
    return Plan(
        settings,
        in_gib | {"CUDA context": _CONTEXT if bits == 16 else 0.0},
        total,
        trained,
        config.num_hidden_layers,
    )


def policy_width(policy: torch.nn.Module) -> int:
    """Bytes per trained parameter on the meta device."""
    return next(p.element_size() for p in policy.parameters() if p.requires_grad)


def profile_for(card: Card | None) -> str:
    """The profile for a card: the largest of the paper's that fits, colab-t4 for a small one, sandbox without a GPU."""
    if card is None:
        return "sandbox"
    largest_first = ("paper-qwen7b", "paper-gemma4b", "paper-qwen3b")
    # on a card as small as a T4 the paper's policies would train for days, if they fit
    fitting = (name for name in largest_first if card.memory > 20 and plan(settings_of(name), card.bf16).fits(card))
    return next(fitting, "colab-t4")


def card_here() -> Card | None:
    """The GPU of this process, None without one. Its speed is taken from the most similar card that is known."""
    if not torch.cuda.is_available():
        return None
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB
    known = [card for card in CARDS.values() if card.name.split("-")[0] in name]
    like = min(known or CARDS.values(), key=lambda card: abs(card.memory - memory))
    return Card(name, memory, like.tflops, like.bandwidth, torch.cuda.is_bf16_supported(including_emulation=False))


def _rollout(s: Settings) -> int:
    """Completions that one process draws at once."""
    return s.micro_batch * s.micro_batches


def _config(settings: Settings) -> PretrainedConfig:
    from transformers import AutoConfig

    from amir_grpo.policies.loading import explain_loading_error
    from amir_grpo.sandbox.policy import SANDBOXES, build_tokenizer, untrained_config

    name = settings.model_name
    if settings.is_sandbox:
        spec = SANDBOXES[name]
        return untrained_config(spec, build_tokenizer(spec.words))
    if name in SHAPES and not Path(name).exists():
        return AutoConfig.for_model(**SHAPES[name])
    with explain_loading_error("configuration", name):
        return AutoConfig.from_pretrained(name, trust_remote_code=settings.trust_remote_code)


def _policy_on_meta(settings: Settings, dtype: torch.dtype) -> tuple[PreTrainedModel, int, int, int]:
    """The policy with its adapter, shapes only; parameters of the adapter, of what 4 bits would quantise, and of all."""
    from peft import get_peft_model
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register("plan", _attention)
    with torch.device("meta"):
        config = _config(settings)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="plan")
        total = sum(p.numel() for p in model.parameters())
        head = model.get_output_embeddings()
        linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        linear = sum(m.weight.numel() for m in linears)
        adapter = settings.lora_rank, settings.lora_alpha, settings.lora_targets
        policy = get_peft_model(model, lora_config(*adapter, model))
        if settings.gradient_checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
            policy.enable_input_require_grads()
    policy.train()
    return policy, sum(p.numel() for p in policy.parameters() if p.requires_grad), linear, total


def _cache_of_a_completion(config: PretrainedConfig, settings: Settings) -> int:
    """Numbers that the KV cache holds for one finished completion."""
    length = settings.max_prompt_length + settings.max_completion_length
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or length
    lengths = [min(length, window) if kind == "sliding_attention" else length for kind in kinds]
    return 2 * config.num_key_value_heads * head * sum(lengths)


def _peak_of_a_pass(policy: PreTrainedModel, micro_batch: int, prompt: int, completion: int) -> float:
    """Bytes alive at the peak of forward and backward, with the adapter's gradients and without the parameters."""
    length = prompt + completion
    parameters = {p.untyped_storage()._cdata for p in policy.parameters()}
    with torch.device("meta"), _Alive(parameters) as alive:
        ids = torch.zeros(micro_batch, length, dtype=torch.long)
        mask = torch.ones(micro_batch, 1, length, length, dtype=torch.bool)
        logits = policy(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=completion + 1).logits
        # GRPO's fused loss keeps the logits and writes their gradient
        logits.backward(torch.zeros_like(logits))
        return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and their peak."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.bytes, self.peak = 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


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


def plan_here(settings: Settings) -> Plan:
    """The plan for the GPU of this process or, without one, for a card that computes in bfloat16."""
    here = card_here()
    return plan(settings, here is None or here.bf16)


def cards_here() -> dict[str, Card]:
    """The GPU of this process or, without one, all known cards."""
    here = card_here()
    return {here.name: here} if here else CARDS


def planned(profile: str, settings: Settings) -> str:
    """A plan as text: the parts, the card of this process or all known ones, and what to change."""
    made = plan_here(settings)
    lines = [
        f"Profile {profile}: {settings.model_name}, {made.parameters / 1e6:,.0f}M parameters, the adapter's "
        f"{made.trained / 1e6:.1f}M on top; {settings.max_steps} steps of {_rollout(settings)} completions on each GPU.",
        "",
        made.table().round(2).to_string(index=False),
        "",
        made.cards(cards_here()).round({"memory": 1, "hours": 1}).to_string(index=False),
        "",
        "GiB on each GPU. hours: one method, if every completion is as long as it may be; rough, from data sheets.",
    ]
    return "\n".join(lines)
