"""Cheaper steps for any GRPO trainer: less padding, and log-probabilities kept from sampling.

TRL pads every micro-batch to the width of the whole rollout. With relative positions (RoPE, sliding windows), a row's
log-probabilities do not depend on the padding around it, so loss and gradient stay the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from trl.trainer.utils import split_tensor_dict

# More slices leave less padding but take more calls of the policy; four leave little padding.
_MOST_SLICES = 4
_SLICE_ROWS = 16  # rows of a slice, at least

# Settings of `generate` that end a completion, store something, or truncate the distribution after the recorder has seen it.
_HARMLESS = (
    "bos_token_id cache_config cache_implementation compile_config disable_compile do_sample eos_token_id epsilon_cutoff "
    "eta_cutoff max_cache_len max_length max_new_tokens min_p pad_token_id temperature top_h top_k top_p "
    "transformers_version typical_p use_cache"
).split()
_NEUTRAL_AT_ONE = (
    "encoder_repetition_penalty guidance_scale length_penalty num_beam_groups num_beams num_return_sequences "
    "repetition_penalty"
).split()


class FasterSteps:
    """A mixin for `trl.GRPOTrainer` and its subclasses: the same update, with less padding and fewer forward passes.

    - The rows of an optimizer step (never of several, which would bias each) are sorted by length before they are cut
      into micro-batches. Nothing is sorted if the loss depends on which rows share a micro-batch: with loss_type
      "bnpo", an entropy bonus or quantile, a router's auxiliary loss, or images.
    - A micro-batch goes through the policy in slices, each trimmed to its own longest prompt and completion; the loss
      sees the whole. There are no slices with images or a router's auxiliary loss, and only one under FSDP and
      DeepSpeed, which need one forward pass per backward pass.
    - In one process on a CPU in float32, the completions of a prompt share its forward pass: micro-batches then keep
      groups together, and the gradient flows into the prompt's keys and values. Only rounding changes. Skipped for
      checkpointed layers, dropout, prompt learning, Liger's kernels, or caches other than plain attention's.
    - With `record_logps`, the log-probabilities of what transformers' `generate` draws are kept in `sampled_logps`, if
      they are those of the policy itself.

    Unsloth's trainers do their own trimming and are left unchanged.
    """

    trim_micro_batches: bool = True  # False keeps everything as in TRL, bit for bit
    record_logps: bool = False
    # (N / processes, T') of the latest rollout, at the trainer's temperature; None if nothing was recorded. Values
    # after the end token have no meaning.
    sampled_logps: Tensor | None = None

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        before = getattr(self, "_buffered_inputs", None)
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before or not self._may_regroup():
            return inputs
        window = min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        batches = self._buffered_inputs
        self._buffered_inputs = [
            batch
            for start in range(0, len(batches), window)
            for batch in sorted_by_length(batches[start : start + window], by_prompt=self._shares_prompts())
        ]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _may_regroup(self) -> bool:
        """Return whether rows of an optimizer step may move between its micro-batches."""
        accumulated, rollout = self.args.gradient_accumulation_steps, self.args.steps_per_generation
        by_micro_batch = (
            self.loss_type == "bnpo"
            or self.top_entropy_quantile < 1.0
            or self._entropy_bonus_enabled
            or self.aux_loss_enabled
            or "pixel_values" in self._buffered_inputs[0]  # has a row per patch
            or any(isinstance(value, list) for value in self._buffered_inputs[0].values())
        )
        aligned = accumulated % rollout == 0 or rollout % accumulated == 0
        return self._may_trim() and aligned and not by_micro_batch

    def _may_trim(self) -> bool:
        return self.trim_micro_batches and not any(kind.__name__.startswith("Unsloth") for kind in type(self).__mro__)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        """Return, as TRL does, (N, T) log-probabilities, (N, T) entropies or None, and the auxiliary loss or None."""
        score = super()._get_per_token_logps_and_entropies
        if not self._may_trim():  # Unsloth's method has other arguments and results
            return score(model, *args, **kwargs)
        return self._trimmed_logps(score, model, *args, **kwargs)

    def _trimmed_logps(
        self, score, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **rest
    ):
        options = {"batch_size": batch_size, "compute_entropy": compute_entropy, **rest}
        by_position = {name: value for name, value in rest.items() if getattr(value, "shape", None) == input_ids.shape}
        others = (value for name, value in rest.items() if name not in by_position)
        if any(value is not None and value is not False for value in others):
            return score(model, input_ids, attention_mask, logits_to_keep, **options)
        if not by_position and self._shares_prompts():
            model = _SharedPrompts(model, self._cache_name)
        completion_lengths = attention_mask[:, -logits_to_keep:].sum(1)
        order = completion_lengths.argsort(descending=True, stable=True)
        logps, entropies = [], []
        for rows in order.tensor_split(self._slices(len(order))):
            first, last = _used_columns(attention_mask[rows], logits_to_keep)
            width = logits_to_keep - (attention_mask.size(1) - last)
            columns = slice(first, last)
            options |= {name: value[rows, columns] for name, value in by_position.items()}
            sliced = score(model, input_ids[rows, columns], attention_mask[rows, columns], width, **options)
            logps.append(pad(sliced[0], (0, logits_to_keep - width)))
            if sliced[1] is not None:
                entropies.append(pad(sliced[1], (0, logits_to_keep - width)))
        back = order.argsort()
        return torch.cat(logps)[back], torch.cat(entropies)[back] if entropies else None, None

    def _shares_prompts(self) -> bool:
        """Return whether completions of a prompt share its forward pass; float64 stays as in TRL, bit for bit."""
        on_cpu = self.model.device.type == "cpu" and self.accelerator.num_processes == 1
        if not on_cpu or self.model.dtype != torch.float32 or not self._keeps_prompts:
            return False
        # a checkpointed layer takes no cache; a user may have enabled checkpointing without the setting
        return not any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())

    @property
    def _forward_arguments(self) -> Collection[str]:
        """The policy's arguments, as TRL 1.14 looks them up; none in newer versions, which score differently."""
        return getattr(self, "model_kwarg_keys", ())

    @cached_property
    def _cache_name(self) -> str | None:
        """The policy's argument for keys and values, renamed in newer versions of transformers; None without one."""
        return next((name for name in ("cache", "past_key_values") if name in self._forward_arguments), None)

    @cached_property
    def _keeps_prompts(self) -> bool:
        """Whether the policy's cache holds whole prompts, as plain attention's does, and its pass is not random."""
        takes_caches = self._cache_name and {"logits_to_keep", "position_ids"} <= set(self._forward_arguments)
        adapters = getattr(self.model, "peft_config", {}).values()
        if not takes_caches or self.args.use_liger_kernel or any(adapter.is_prompt_learning for adapter in adapters):
            return False
        layers = DynamicCache(config=self.model.config.get_text_config()).layers
        dropouts = [getattr(module, "attention_dropout", 0.0) for module in self.model.modules()]
        dropouts += [module.p for module in self.model.modules() if isinstance(module, torch.nn.Dropout)]
        random = any(isinstance(share, float) and share > 0 for share in dropouts)
        return all(hasattr(layer, "batch_select_indices") for layer in layers) and not random

    def _slices(self, rows: int) -> int:
        """Return the number of slices, by the number of rows alone: all processes need equally many forward passes."""
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            return 1
        return min(_MOST_SLICES, max(1, rows // _SLICE_ROWS))

    def _generate_single_turn(self, *args, **kwargs):
        self.sampled_logps = None
        if not (self.record_logps and self._draws_whole_rollouts()):
            return super()._generate_single_turn(*args, **kwargs)
        with recorded_logps(self.accelerator.unwrap_model(self.model_wrapped), self.temperature) as recorded:
            result = super()._generate_single_turn(*args, **kwargs)
        self.sampled_logps = recorded.logps()
        return result

    def _draws_whole_rollouts(self) -> bool:
        """Return whether transformers' `generate` draws each completion of the training in one call."""
        single_turn = not self.tools and self.environment_factories is None and self.rollout_func is None
        own_engine = not self.use_vllm and not self.use_transformers_continuous_batching
        return self.model.training and single_turn and own_engine


def _used_columns(attention_mask: Tensor, completion_width: int) -> tuple[int, int]:
    """Return the first and one past the last column in use; at least one of the prompt and one of the completion."""
    prompt_width = attention_mask.size(1) - completion_width
    used = attention_mask.any(dim=0).nonzero().flatten().tolist() or [prompt_width]
    return min(used[0], prompt_width - 1), max(used[-1] + 1, prompt_width + 1)


class _SharedPrompts:
    """A policy that TRL calls for log-probabilities, and that runs a prompt once for all its completions."""

    def __init__(self, policy: torch.nn.Module, cache_name: str) -> None:
        self._policy = policy
        self._cache_name = cache_name

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **_: Any) -> SimpleNamespace:
        """Return `logits` (N, logits_to_keep, vocabulary) of the completion tokens and of the last prompt token."""
        width = logits_to_keep - 1
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        prompts = torch.cat([input_ids[:, :-width], attention_mask[:, :-width]], dim=1)
        prompts, prompt_of = prompts.unique(dim=0, return_inverse=True)
        one = prompt_of.new_zeros(len(prompts)).scatter(0, prompt_of, torch.arange(len(input_ids)))  # a row per prompt
        cache = DynamicCache(config=self._policy.config.get_text_config())
        common = {self._cache_name: cache, "use_cache": True}
        first = self._policy(
            input_ids=input_ids[one, :-width],
            attention_mask=attention_mask[one, :-width],
            position_ids=positions[one, :-width],
            logits_to_keep=1,
            **common,
        ).logits[prompt_of]
        cache.batch_select_indices(prompt_of)
        rest = self._policy(
            input_ids=input_ids[:, -width:],
            attention_mask=attention_mask,
            position_ids=positions[:, -width:],
            **common,
        )
        return SimpleNamespace(logits=torch.cat([first, rest.logits], dim=1), aux_loss=None)


def sorted_by_length(batches: list[dict[str, Any]], by_prompt: bool = False) -> list[dict[str, Any]]:
    """Redistribute rows among micro-batches of equal size, by length or, with `by_prompt`, first by prompt.

    `batches`, as TRL buffers them, hold tensors with a row per completion, tensors without dimension that belong to
    the whole rollout, and None.
    """
    if len(batches) == 1:
        return batches
    together = {
        name: torch.cat([batch[name] for batch in batches]) if value is not None and value.ndim else value
        for name, value in batches[0].items()
    }
    order = together["completion_mask"].sum(1).argsort(descending=True, stable=True)
    if by_prompt:
        _, prompt = together["prompt_ids"].unique(dim=0, return_inverse=True)
        order = order[prompt[order].argsort(stable=True)]
    rows = {name: value[order] if value is not None and value.ndim else value for name, value in together.items()}
    return split_tensor_dict(rows, len(batches))


class LogpRecorder(LogitsProcessor):
    """A logits processor that records the log-probability of each token that `generate` draws, and changes nothing.

    It is called with the logits of the next token, before the temperature; the token itself is known one call later.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._logits: Tensor | None = None
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.keep(input_ids)
        self._logits = scores
        return scores

    def keep(self, input_ids: Tensor) -> None:
        """Score the last token of `input_ids` (N, length) under the logits that it was drawn from."""
        if self._logits is not None:
            logits = self._logits / self._temperature
            token = logits.gather(1, input_ids[:, -1:]).squeeze(1)
            self._steps.append(token - logits.logsumexp(dim=1))
            self._logits = None

    def logps(self) -> Tensor | None:
        """Return (N, steps), including what follows the end token; None if nothing was recorded."""
        return torch.stack(self._steps, dim=1) if self._steps else None


@contextmanager
def recorded_logps(model: torch.nn.Module, temperature: float) -> Iterator[LogpRecorder]:
    """Record log-probabilities of what `model.generate` draws in the block, as TRL passes on no logits processor.

    Nothing is recorded if settings of the call or of the policy change the distribution that tokens are drawn from.
    """
    recorder = LogpRecorder(temperature)
    generate, own = model.generate, vars(model).get("generate")  # Unsloth gives the policy its own

    def recording(*args, **kwargs):
        if not shows_own_logits(kwargs.get("generation_config"), model.generation_config):
            return generate(*args, **kwargs)
        output = generate(*args, **kwargs, logits_processor=LogitsProcessorList([recorder]))
        recorder.keep(output)
        return output

    model.generate = recording
    try:
        yield recorder
    finally:
        del model.generate  # restores the class's method
        if own is not None:
            model.generate = own


def shows_own_logits(asked: GenerationConfig | None, policys: GenerationConfig) -> bool:
    """Return whether a logits processor of `generate` sees the policy's own logits, one token per row at a time.

    `policys` is the policy's configuration, which fills in what the call's (`asked`) leaves out.
    """
    given = policys.to_dict() | {name: v for name, v in (asked.to_dict() if asked else {}).items() if v is not None}
    return all(
        name in _HARMLESS or name[0] == "_" or not value or (name in _NEUTRAL_AT_ONE and value == 1)
        for name, value in given.items()
    )
