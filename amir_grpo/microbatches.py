"""Micro-batches without the padding that no completion needs: sorted by length, cut into slices, each slice trimmed.

TRL keeps every micro-batch at the width of the whole rollout, so that most of what a forward and backward pass computes is
padding. A row's log-probabilities do not depend on the rows beside it nor, where positions are relative (RoPE, sliding
windows), on the padding around it: the loss and its gradient stay what they were, up to the rounding of sums.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.nn.functional import pad
from trl.trainer.utils import split_tensor_dict

# More slices leave less padding and cost more calls of the policy: four of a quarter of the rows each leave little.
_MOST_SLICES = 4
_SLICE_ROWS = 16  # at least


class TrimmedMicroBatches:
    """Mixin for `trl.GRPOTrainer` and its subclasses: the same update, with less padding in it.

    - The rows of an optimizer step are sorted by length before they are cut into its micro-batches; never across
      optimizer steps, which would give each step completions of one length and bias it. Left out where the loss depends
      on which rows share a micro-batch: loss_type "bnpo", an entropy bonus or quantile, a router's auxiliary loss, and
      images.
    - Within a micro-batch, rows go through the policy in slices of equally many, each trimmed to its own longest prompt
      and completion. The loss sees the whole micro-batch, so that this is exact for every loss type. Left out for images
      and a router's auxiliary loss; under FSDP and DeepSpeed, which want one forward pass for a backward pass, there is
      one slice.

    Unsloth's trainers do their own, and are left alone.
    """

    trim_micro_batches: bool = True  # False leaves all as TRL has it, bit for bit

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
            for batch in sorted_by_length(batches[start : start + window])
        ]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _may_regroup(self) -> bool:
        """Whether the rows of an optimizer step may change places among its micro-batches."""
        accumulated, rollout = self.args.gradient_accumulation_steps, self.args.steps_per_generation
        by_micro_batch = (
            self.loss_type == "bnpo"
            or self.top_entropy_quantile < 1.0
            or self._entropy_bonus_enabled
            or self.aux_loss_enabled
            or "pixel_values" in self._buffered_inputs[0]  # a row for each patch
            or any(isinstance(value, list) for value in self._buffered_inputs[0].values())
        )
        aligned = accumulated % rollout == 0 or rollout % accumulated == 0
        return self._may_trim() and aligned and not by_micro_batch

    def _may_trim(self) -> bool:
        return self.trim_micro_batches and not any(kind.__name__.startswith("Unsloth") for kind in type(self).__mro__)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        """As TRL's: (N, T) log-probabilities, (N, T) entropies or None, and the auxiliary loss or None."""
        score = super()._get_per_token_logps_and_entropies
        if not self._may_trim():  # Unsloth's takes other arguments and returns something else
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

    def _slices(self, rows: int) -> int:
        """Slices of a batch: of its number of rows alone, so that all processes make as many forward passes."""
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            return 1
        return min(_MOST_SLICES, max(1, rows // _SLICE_ROWS))


def _used_columns(attention_mask: Tensor, completion_width: int) -> tuple[int, int]:
    """First and one past the last column that some row uses; at least one of the prompt and one of the completion."""
    prompt_width = attention_mask.size(1) - completion_width
    used = attention_mask.any(dim=0).nonzero().flatten().tolist() or [prompt_width]
    return min(used[0], prompt_width - 1), max(used[-1] + 1, prompt_width + 1)


def sorted_by_length(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of some micro-batches of equal size, cut anew into as many so that rows of one length are together.

    Args:
        batches: Micro-batches as TRL buffers them: tensors with a row for each completion, tensors without dimension
            that belong to the whole rollout, and None.
    """
    if len(batches) == 1:
        return batches
    together = {
        name: torch.cat([batch[name] for batch in batches]) if value is not None and value.ndim else value
        for name, value in batches[0].items()
    }
    order = together["completion_mask"].sum(1).argsort(descending=True, stable=True)
    rows = {name: value[order] if value is not None and value.ndim else value for name, value in together.items()}
    return split_tensor_dict(rows, len(batches))
