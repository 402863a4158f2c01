"""The log-probabilities of the tokens that a policy draws, kept while transformers' `generate` draws them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


class LogpRecorder(LogitsProcessor):
    """Keeps the log-probability of each token that `generate` draws; changes nothing.

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
        """(N, steps), with whatever followed the end token; None if nothing was generated."""
        return torch.stack(self._steps, dim=1) if self._steps else None


@contextmanager
def recorded_logps(model: torch.nn.Module, temperature: float) -> Iterator[LogpRecorder]:
    """While the block runs, `model.generate` lets a recorder see its logits: TRL hands on no logits processor."""
    recorder = LogpRecorder(temperature)
    generate, own = model.generate, vars(model).get("generate")  # Unsloth gives the policy one of its own

    def recording(*args, **kwargs):
        output = generate(*args, **kwargs, logits_processor=LogitsProcessorList([recorder]))
        recorder.keep(output)
        return output

    model.generate = recording
    try:
        yield recorder
    finally:
        del model.generate  # the class's shows again
        if own is not None:
            model.generate = own
