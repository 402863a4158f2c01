"""How much GPU memory a training will take, part by part, how long it will take, and whether it fits.

The training pass is not estimated by formulas but run on PyTorch's meta device, which knows shapes and holds no numbers:
the policy at its full size with its adapters, one micro-batch forward and backward, and a count of the tensors alive.
Weights, optimizer and KV cache are arithmetic. So a plan takes seconds and needs neither the weights nor a GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import pandas as pd
import torch

from amir_grpo.policies.cards import CARDS, GIB, Card, card_here, cards_here
from amir_grpo.policies.meta_pass import peak_of_a_pass, policy_on_meta, policy_width
from amir_grpo.settings import RunSettings, settings_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_CONTEXT = 0.6  # GiB: CUDA's context and the kernels' code and workspaces
_ADAPTER = 4  # bytes per weight: float32, whatever the policy is in
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes per weight: 4 bits, and a scale for each 64, quantised in turn
# Bytes per logit of a token that is drawn: in 16 bits, and four times in float64.
_DRAWN = 2 + 4 * 8
# For the time: the shares of the data sheet's figures that training and decoding reach, and the least time per layer when
# decoding. Assumed, not measured.
_TRAIN_SHARE, _READ_SHARE = 0.35, 0.5
_LAYER_SECONDS = {"transformers": 0.8e-3, "vllm": 0.1e-3}  # vLLM replays CUDA graphs
_VLLM_ROWS = 256  # completions that vLLM draws at once


@dataclass(frozen=True)
class MemoryPlan:
    """The estimate for one training.

    Attributes:
        settings: The settings of the training.
        parts: GiB on each GPU, by part: weights, adapters, gradients, optimizer, activations, logits, KV cache,
            generation logits, CUDA context. Activations and logits as they are at the peak of the training pass; KV cache
            and generation logits are 0 where vLLM draws.
        parameters: Number of parameters of the policy, without the adapter.
        trained: Number of parameters of the adapter.
        layers: Number of decoder layers.
        completion_cache: GiB that the KV cache holds for one completion at full length, prompt included.
        backend: What trains, transformers or unsloth.
    """

    settings: RunSettings
    parts: dict[str, float]
    parameters: int
    trained: int
    layers: int
    completion_cache: float
    backend: str

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
        """Whether the peak leaves a twentieth of the card's memory for fragmentation, beside what vLLM sets aside."""
        return self.peak <= (0.95 - self._vllm_share) * card.memory

    @property
    def _vllm_share(self) -> float:
        """The share of the card that vLLM takes for rollouts where it runs on the GPUs that train."""
        s = self.settings
        return s.train.vllm_gpu_memory_utilization if s.train.use_vllm and s.train.vllm_mode == "colocate" else 0.0

    def step_seconds(self, card: Card, gpus: int = 1) -> float:
        """Seconds per optimizer step if every completion is as long as allowed. Rough: see the module's constants.

        Args:
            card: What computes.
            gpus: How many share one GPU's rollout by DDP. A completion is still drawn token by token, and the adapter's
                gradients, which they exchange, are too small to count.
        """
        s = self.settings
        trained = s.train.micro_batch * s.train.gradient_accumulation_steps / gpus
        tokens = trained * (s.data.max_prompt_length + s.train.max_completion_length)
        # forward, the backward of the activations and, with checkpointing, forward once more; weights have no gradient
        passes = 6 if s.train.gradient_checkpointing else 4
        train = passes * self.parameters * tokens / (_TRAIN_SHARE * card.tflops * 1e12)
        drawn = _rollout(s) / gpus
        engine = "vllm" if s.train.use_vllm else "transformers"
        decode = s.train.max_completion_length * self._token_seconds(
            card, drawn, s.train.max_completion_length, engine
        )
        # TRL's generate, which draws under Unsloth, computes a prompt again for each of its completions
        prompts = drawn if self.backend == "unsloth" and not s.train.use_vllm else drawn / s.train.num_generations
        return train + (self._prefill_seconds(card, prompts) + decode) * trained / drawn

    def hours(self, card: Card, gpus: int = 1) -> float:
        """Hours of one method's training."""
        return self.step_seconds(card, gpus) * self.settings.train.max_steps / 3600

    def evaluation_hours(
        self, card: Card, sizes: Mapping[str, int], gpus: int = 1, engine: str = "transformers"
    ) -> float:
        """Hours to evaluate the base policy and both methods, if every prompt and completion is as long as allowed.

        As rough as `step_seconds`.

        Args:
            card: What computes.
            sizes: Number of problems of each benchmark of the run.
            gpus: How many, each with a worker; a worker takes one policy on one benchmark at a time.
            engine: transformers or vllm.
        """
        s = self.settings
        length = s.evaluation.eval_max_new_tokens
        seconds = []
        for benchmark in s.evaluation.benchmarks:
            problems = min(sizes[benchmark], s.evaluation.eval_limit or sizes[benchmark])
            work = 0.0
            for samples in (s.evaluation.num_samples, 1):  # one is greedy
                if engine == "vllm":
                    at_once = min(_VLLM_ROWS, problems * samples)
                else:  # as many whole problems as the budget allows, one at least
                    width = (s.data.max_prompt_length + length) * samples
                    at_once = min(max(1, s.evaluation.eval_token_budget // width), problems) * samples
                batches = math.ceil(problems * samples / at_once) if problems else 0
                work += batches * length * self._token_seconds(card, at_once, length, engine)
                work += self._prefill_seconds(card, problems)
            seconds += [work] * 3
        busy = [0.0] * gpus
        for work in sorted(seconds, reverse=True):
            busy[busy.index(min(busy))] += work
        return max(busy) / 3600

    def _token_seconds(self, card: Card, rows: float, length: int, engine: str = "transformers") -> float:
        """Seconds to draw a token of some completions at once: the weights are read, and what the cache holds half way."""
        s = self.settings
        held = (s.data.max_prompt_length + length / 2) / (s.data.max_prompt_length + s.train.max_completion_length)
        cache = self.completion_cache * rows * held
        read = (self.parts["weights"] + cache) * GIB / (_READ_SHARE * card.bandwidth * 1e9)
        return max(read, self.layers * _LAYER_SECONDS[engine])

    def _prefill_seconds(self, card: Card, prompts: float) -> float:
        return (
            2 * self.parameters * prompts * self.settings.data.max_prompt_length / (_TRAIN_SHARE * card.tflops * 1e12)
        )

    def ways_out(self, card: Card) -> str:
        """The setting to change where the training does not fit, by what takes most memory; empty where it fits."""
        if self.fits(card):
            return ""
        s = self.settings
        if self._vllm_share and self.peak <= 0.95 * card.memory:
            return "lower vllm_gpu_memory_utilization, or set use_vllm=False"
        if self.parts["weights"] > 0.6 * card.memory and not s.policy.load_in_4bit:
            return "load_in_4bit=True, or take a smaller model_name"
        if self.rollout > self.training:
            return "lower gradient_accumulation_steps or max_completion_length: a rollout is the peak"
        if not s.train.gradient_checkpointing:
            return "set gradient_checkpointing=True"
        if s.train.micro_batch > 1 and self.parts["activations"] + self.parts["logits"] > 0.1 * self.peak:
            fewer, more = s.train.micro_batch // 2, 2 * s.train.gradient_accumulation_steps
            return f"per_device_train_batch_size={fewer}, gradient_accumulation_steps={more}: the same rollouts and updates"
        return (
            "take a smaller model_name" if s.policy.load_in_4bit else "load_in_4bit=True, or take a smaller model_name"
        )

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


def plan(settings: RunSettings, bf16: bool = True, bits: int = 16, backend: str = "transformers") -> MemoryPlan:
    """Plan the training of one method; both take the same.

    Args:
        settings: Settings of the run. A policy whose shape is not known offline is looked up, on the Hub or in its folder.
        bf16: Whether the card computes in bfloat16, else in float16.
        bits: Bits per number in computation; 32 on a CPU.
        backend: What trains, transformers or unsloth: they keep different things of the logits. Unsloth also moves
            activations to the CPU's memory, which is not counted: its plan is an upper bound.

    Raises:
        OSError: If the shape of the policy cannot be found.
    """
    return _plan(json.dumps(settings.flat()), bf16, bits, backend)


@lru_cache(maxsize=32)  # choosing a profile, checking it and showing its plan ask for the same one
def _plan(settings_as_json: str, bf16: bool, bits: int, backend: str) -> MemoryPlan:
    settings = RunSettings.of(json.loads(settings_as_json))
    dtype = torch.float32 if bits == 32 else torch.bfloat16 if bf16 else torch.float16
    policy, trained, linear, total = policy_on_meta(settings, dtype)
    config = policy.config.get_text_config()
    micro_batch, width = settings.train.micro_batch, dtype.itemsize
    weights = total * width
    if settings.policy.load_in_4bit:
        weights = linear * _NF4 + (total - linear) * width
    moments = 2 * (1 if "8bit" in settings.train.optim else _ADAPTER)
    lengths = settings.data.max_prompt_length, settings.train.max_completion_length
    peak = peak_of_a_pass(policy, micro_batch, *lengths, backend, on_gpu=bits == 16)
    at_once = 0 if settings.train.use_vllm else _rollout(settings)
    cache = _cache_of_a_completion(config, settings) * width
    parts = {
        "weights": weights,
        "adapters": trained * _ADAPTER,
        "gradients": trained * _ADAPTER,
        "optimizer": trained * moments,
        "activations": max(0.0, peak.total - peak.logits - trained * policy_width(policy)),
        "logits": peak.logits,
        "KV cache": at_once * cache,
        "generation logits": at_once * config.vocab_size * _DRAWN,
    }
    in_gib = {name: value / GIB for name, value in parts.items()}
    return MemoryPlan(
        settings,
        in_gib | {"CUDA context": _CONTEXT if bits == 16 else 0.0},
        total,
        trained,
        config.num_hidden_layers,
        cache / GIB,
        backend,
    )


def profile_for(card: Card | None) -> str:
    """The profile for a card: the largest of the paper's that fits, colab-t4 for a small one, sandbox without a GPU."""
    if card is None:
        return "sandbox"
    largest_first = ("paper-qwen7b", "paper-gemma4b", "paper-qwen3b")
    # on a card as small as a T4 the paper's policies would train for days, if they fit
    fitting = (name for name in largest_first if card.memory > 20 and plan(settings_of(name), card.bf16).fits(card))
    return next(fitting, "colab-t4")


def _rollout(s: RunSettings) -> int:
    """Completions that one process draws at once."""
    return s.train.micro_batch * s.train.micro_batches


def _cache_of_a_completion(config: PretrainedConfig, settings: RunSettings) -> int:
    """Numbers that the KV cache holds for one finished completion."""
    length = settings.data.max_prompt_length + settings.train.max_completion_length
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or length
    lengths = [min(length, window) if kind == "sliding_attention" else length for kind in kinds]
    return 2 * config.num_key_value_heads * head * sum(lengths)


def plan_here(settings: RunSettings, backend: str = "transformers") -> MemoryPlan:
    """The plan for the GPU of this process or, without one, for a card that computes in bfloat16."""
    here = card_here()
    return plan(settings, here is None or here.bf16, backend=backend)


def hours_table(made: MemoryPlan, card: Card, sizes: Mapping[str, int]) -> pd.DataFrame:
    """Hours on 1, 2, 4 and 8 GPUs: columns GPUs, training (one method), evaluation (three policies, by transformers), and
    evaluation_vllm."""
    rows = [
        (n, made.hours(card, n), *(made.evaluation_hours(card, sizes, n, e) for e in ("transformers", "vllm")))
        for n in (1, 2, 4, 8)
    ]
    return pd.DataFrame(rows, columns=["GPUs", "training", "evaluation", "evaluation_vllm"])


def planned(profile: str, settings: RunSettings, sizes: Mapping[str, int], backend: str = "transformers") -> str:
    """A plan as text: the parts, the card of this process or all known ones, what to change, and hours on several GPUs.

    Args:
        profile: Name of the profile, to be shown.
        settings: Of the run.
        sizes: Number of problems of each benchmark of the run.
        backend: What trains.
    """
    made = plan_here(settings, backend)
    cards = cards_here()
    fastest = max((card for card in cards.values() if made.fits(card)), key=lambda card: card.tflops, default=None)
    lines = [
        f"Profile {profile}: {settings.policy.model_name}, {made.parameters / 1e6:,.0f}M parameters, the adapter's "
        f"{made.trained / 1e6:.1f}M on top; {settings.train.max_steps} steps of {_rollout(settings)} completions on each "
        f"GPU, by {backend}.",
        "",
        made.table().round(2).to_string(index=False),
        "",
        made.cards(cards).round({"memory": 1, "hours": 1}).to_string(index=False),
        "",
        "GiB on each GPU. hours: one method. All hours are arithmetic from data sheets, not measurements, and take every",
        "completion to be as long as it may be.",
    ]
    if fastest:
        lines += [
            "",
            f"Hours on {fastest.name}s that share one GPU's rollout: training of one method, evaluation of all policies.",
            "",
            hours_table(made, fastest, sizes).round(1).to_string(index=False),
        ]
    return "\n".join(lines)
