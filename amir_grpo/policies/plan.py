"""An estimate of the GPU memory that a training takes, part by part, from the shape of the policy."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from amir_grpo.settings import RunSettings, settings_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB = 2**30
# What a process can allocate on a card, in GiB.
CARDS = {"T4": 14.6, "L4": 22.0, "A100-40GB": 39.4, "A100-80GB": 79.2, "H100": 79.2, "H200": 139.8}
_CONTEXT = 0.6  # GiB: CUDA's context and the kernels' code and workspaces
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes per weight: 4 bits, and a scale per 64 weights, itself quantised
_DRAWN = 2 + 4 * 8  # bytes per logit of a drawn token: one copy in 16 bits, four in float64
_UNSLOTH_ROWS = 512  # rows of logits that Unsloth's fused projection holds at once

SHAPES: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("shapes.toml").read_text())


def config_of(settings: RunSettings) -> PretrainedConfig:
    """Return the configuration of the policy, from the Hub or its folder if it is not known offline."""
    from transformers import AutoConfig

    from amir_grpo.policies.loading import explain_loading_error
    from amir_grpo.sandbox.policy import SPECS, build_tokenizer, untrained_config

    name = settings.policy.model_name
    if settings.policy.is_sandbox:
        return untrained_config(SPECS[name], build_tokenizer(SPECS[name].words))
    if name in SHAPES and not Path(name).exists():
        return AutoConfig.for_model(**SHAPES[name])
    with explain_loading_error("configuration", name):
        return AutoConfig.from_pretrained(name, trust_remote_code=settings.policy.trust_remote_code)


@dataclass(frozen=True)
class MemoryPlan:
    """The estimate for one training.

    Attributes:
        settings: The settings of the training.
        parts: GiB on each GPU, by part. Activations and logits are those at the peak of the training pass; KV cache
            and generation logits are 0 if vLLM draws.
        training, rollout: GiB at the peak of the training pass, and of a rollout.
        parameters, trained: Number of parameters of the policy, and of its adapter.
    """

    settings: RunSettings
    parts: dict[str, float]
    training: float
    rollout: float
    parameters: int
    trained: int

    @property
    def peak(self) -> float:
        """GiB at the higher of the two peaks."""
        return max(self.training, self.rollout)

    def fits(self, memory: float) -> bool:
        """Return whether the peak leaves 5 % of a card's memory (GiB) for fragmentation, besides vLLM's share."""
        train = self.settings.train
        aside = train.vllm_gpu_memory_utilization if train.use_vllm and train.vllm_mode == "colocate" else 0.0
        return self.peak <= (0.95 - aside) * memory

    def ways_out(self, memory: float) -> str:
        """Name the setting to change if a card's memory (GiB) is too small, by the largest part; empty if it fits."""
        train, in_4bit = self.settings.train, self.settings.policy.load_in_4bit
        smaller = "take a smaller model_name" if in_4bit else "load_in_4bit=True, or take a smaller model_name"
        if self.fits(memory):
            return ""
        if train.use_vllm and self.peak <= 0.95 * memory:
            return "lower vllm_gpu_memory_utilization, or set use_vllm=False"
        if self.parts["weights"] > 0.6 * memory:
            return smaller
        if self.rollout > self.training:
            return "lower gradient_accumulation_steps or max_completion_length: a rollout is the peak"
        if not train.gradient_checkpointing:
            return "set gradient_checkpointing=True"
        if train.micro_batch == 1 or self.parts["activations"] + self.parts["logits"] < 0.1 * self.peak:
            return smaller
        fewer, more = train.micro_batch // 2, 2 * train.gradient_accumulation_steps
        return f"per_device_train_batch_size={fewer}, gradient_accumulation_steps={more}: the same rollouts"


def plan(settings: RunSettings, bits: int = 16, backend: str = "transformers") -> MemoryPlan:
    """Plan the memory of training one method; both methods take the same.

    Args:
        settings: Settings of the run. A policy of unknown shape is looked up, on the Hub or in its folder.
        bits: Bits per number in computation; 32 on a CPU.
        backend: transformers or unsloth, which keep different parts of the logits. Unsloth also moves activations to
            the CPU's memory, which the plan ignores: it is an upper bound.

    Raises:
        OSError: If the shape of the policy cannot be found.
    """
    policy, train = settings.policy, settings.train
    completion, length = train.max_completion_length, settings.data.max_prompt_length + train.max_completion_length
    whole = config_of(settings)
    config, width = whole.get_text_config(), bits // 8
    hidden, layers = config.hidden_size, config.num_hidden_layers
    wide = getattr(config, "intermediate_size", None) or 4 * hidden
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    query, key = (
        head * config.num_attention_heads,
        head * getattr(config, "num_key_value_heads", config.num_attention_heads),
    )
    projections = dict.fromkeys(("gate_proj", "up_proj"), (hidden, wide)) | {"down_proj": (wide, hidden)}
    projections |= dict.fromkeys(("k_proj", "v_proj"), (hidden, key)) | {"q_proj": (hidden, query)}
    projections["o_proj"] = query, hidden
    targets = [projections[name] for name in policy.lora_targets if name in projections]

    gemma = "gemma" in config.model_type
    linear = layers * sum(rows * columns for rows, columns in projections.values())
    norms = layers * (4 * hidden + 2 * head if gemma else 2 * hidden) + hidden
    biases = layers * (query + 2 * key) if config.model_type == "qwen2" else 0
    total = linear + norms + biases + config.vocab_size * hidden * (1 if whole.tie_word_embeddings else 2)
    if tower := getattr(whole, "vision_config", None):
        seen = tower.num_hidden_layers * tower.hidden_size * (4 * tower.hidden_size + 2 * tower.intermediate_size)
        linear, total = linear + seen, total + seen
    trained = policy.lora_rank * layers * sum(map(sum, targets))

    # For the backward pass a layer keeps the norms' inputs in float32; query, key, value and result of the attention;
    # three values of the MLP's width; and the adapters' inputs, in 16 bits as separate float32 copies.
    tokens, rows = train.micro_batch * length, train.micro_batch * completion
    normed = 4 * hidden + query + key if gemma else 2 * hidden
    inputs = sum(size for size, _ in targets) if bits == 16 else 2 * hidden + query + wide
    layer = tokens * (4 * normed + width * (4 * query + 3 * wide) + 4 * inputs)
    kept = layers * (tokens * hidden * width if train.gradient_checkpointing else layer)
    # The peak is at the logits, or within a layer: its gradients and, with checkpointing, its recomputed values.
    backward = tokens * (6 * wide + 4 * hidden) + (layer if train.gradient_checkpointing else 0)
    # float32 logits and their gradient, twice that without TRL's kernel for GPUs; in Unsloth one overwrites the other
    logit = 4 * min(_UNSLOTH_ROWS, rows) if backend == "unsloth" else (8 if bits == 16 else 16) * rows
    at_logits = config.vocab_size * logit > backward
    at_once = 0 if train.use_vllm else train.micro_batch * train.micro_batches
    window = getattr(config, "sliding_window", None) or length
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * layers
    cached = sum(min(length, window) if kind == "sliding_attention" else length for kind in kinds)
    parts = {
        "weights": linear * _NF4 + (total - linear) * width if policy.load_in_4bit else total * width,
        "adapters": trained * 4,  # float32, whatever the policy's precision
        "gradients": trained * 4,
        "optimizer": trained * 2 * (1 if "8bit" in train.optim else 4),
        "activations": kept if at_logits else kept + backward,
        "logits": config.vocab_size * logit if at_logits else 0,
        "KV cache": at_once * 2 * key * width * cached,
        "generation logits": at_once * config.vocab_size * _DRAWN,
        "CUDA context": _CONTEXT * GIB if bits == 16 else 0,
    }
    parts = {name: value / GIB for name, value in parts.items()}
    training = sum(parts.values()) - parts["KV cache"] - parts["generation logits"]
    rollout = sum(parts.values()) - parts["activations"] - parts["logits"]
    return MemoryPlan(settings, parts, training, rollout, total, trained)


def card_here() -> dict[str, float]:
    """Return the memory of this process's GPU in GiB, by its name; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {torch.cuda.get_device_name(): torch.cuda.get_device_properties(0).total_memory / GIB}


def profile_for(memory: float) -> str:
    """Choose the profile for a card by its memory in GiB: the largest of the paper's that fits, else colab-t4."""
    largest_first = ("paper-qwen7b", "paper-gemma4b", "paper-qwen3b")
    # on a card as small as a T4 the paper's policies would train for days, if they fit
    fitting = (name for name in largest_first if memory > 20 and plan(settings_of(name)).fits(memory))
    return next(fitting, "colab-t4")


def announce(settings: RunSettings, backend: str) -> str:
    """Compare the plan with this process's GPU in one line; empty without a GPU or a plan."""
    try:
        ((name, memory),) = card_here().items()
        made = plan(settings, backend=backend)
    except Exception:  # no card, unusual configuration, no network: a plan is advice and must not stop a training
        return ""
    return f"Planned: {made.peak:.1f} of the {memory:.1f} GiB of {name}. {made.ways_out(memory)}".strip()


def planned(profile: str, settings: RunSettings, backend: str = "transformers") -> str:
    """Format a plan as text: parts, this process's card or all known ones, and what to change if it does not fit."""
    made = plan(settings, backend=backend)
    parts = [*made.parts.items(), ("peak in training", made.training), ("peak in a rollout", made.rollout)]
    cards = [
        (name, memory, "yes" if made.fits(memory) else "no", made.ways_out(memory))
        for name, memory in (card_here() or CARDS).items()
    ]
    head = f"{made.parameters / 1e6:,.0f}M parameters, the adapter's {made.trained / 1e6:.1f}M on top; by {backend}."
    return "\n\n".join(
        (
            f"Profile {profile}: {settings.policy.model_name}, {head} GiB on each GPU:",
            pd.DataFrame(parts, columns=["part", "GiB"]).round(2).to_string(index=False),
            pd.DataFrame(cards, columns=["card", "memory", "fits", "change"]).round(1).to_string(index=False),
        )
    )
