"""Claim 2, sharper boundary: how a policy scores completions that no trained policy wrote, at several temperatures.

A policy of lower entropy has larger differences of log-probabilities between any two completions, right and wrong ones
among them: its margin grows as that of a colder sampling temperature would. So margin and entropy are both measured at
several temperatures, and policies are compared where their entropies are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEMPERATURES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
MIXED_PROBLEMS = 100  # per benchmark: the first with right and wrong completions of the base policy
_TOKENS = 16_384  # that go through the policy at once


def mixed_completions(samples: pd.DataFrame, problems: int = MIXED_PROBLEMS) -> pd.DataFrame:
    """The completions of the first `problems` problems of each benchmark that have right and wrong ones."""
    rate = samples.groupby(["benchmark", "problem_id"])["correct"].transform("mean")
    mixed = samples[(rate > 0) & (rate < 1)]
    place = mixed.groupby("benchmark", sort=False)["problem_id"].transform(lambda names: pd.factorize(names)[0])
    return mixed[place < problems].reset_index(drop=True)


@torch.no_grad()
def tempered_scores(
    policy: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-probability and mean entropy per token of each completion, in nats: (temperatures, completions) each."""
    policy.eval()
    lengths = [len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    logps, entropies = np.zeros((2, len(temperatures), len(lengths)))
    while order:
        longest = lengths[order[-1]]
        count = max(1, _TOKENS // longest)
        batch, order = order[-count:], order[:-count]
        # padded on the right, where causal attention never looks
        ids = torch.zeros((len(batch), longest), dtype=torch.long)
        wanted = torch.zeros((len(batch), longest), dtype=torch.bool)
        for row, index in enumerate(batch):
            ids[row, : lengths[index]] = torch.tensor([*prompt_ids[index], *completion_ids[index]])
            wanted[row, len(prompt_ids[index]) : lengths[index]] = True
        ids, wanted = ids.to(policy.device), wanted[:, 1:].to(policy.device)
        logits = policy(input_ids=ids, use_cache=False).logits[:, :-1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        tokens = wanted.sum(1).clamp(min=1)
        for place, temperature in enumerate(temperatures):
            distribution = torch.log_softmax(logits / temperature, dim=-1)
            logp = distribution.gather(2, ids[:, 1:, None]).squeeze(2)
            entropy = -(distribution.exp() * distribution).sum(-1)
            for found, values in ((logps, logp), (entropies, entropy)):
                found[place, batch] = (values.where(wanted, 0.0).sum(1) / tokens).cpu().numpy()
    return logps, entropies


def boundary_table(completions: pd.DataFrame, logps: np.ndarray, entropies: np.ndarray) -> pd.DataFrame:
    """Per benchmark and temperature: margin, accuracy, entropy, logprob; means over problems.

    margin is the mean log-probability per token of the right completions minus that of the wrong ones; accuracy the share of
    a problem's right/wrong pairs that are ranked right; entropy and logprob are means per token.

    Args:
        completions: Columns benchmark, problem_id, correct; each problem has right and wrong ones.
        logps, entropies: Of `tempered_scores` at `TEMPERATURES`, in the order of the completions.
    """
    rows = []
    for place, temperature in enumerate(TEMPERATURES):
        scored = completions.assign(logp=logps[place], entropy=entropies[place])
        for (benchmark, _), part in scored.groupby(["benchmark", "problem_id"], sort=False):
            correct = part["correct"].astype(bool)
            right, wrong = (part.loc[which, "logp"].to_numpy() for which in (correct, ~correct))
            row = {"benchmark": benchmark, "temperature": temperature, "margin": right.mean() - wrong.mean()}
            row |= {"accuracy": (right[:, None] > wrong[None, :]).mean()}
            rows.append(row | {"entropy": part["entropy"].mean(), "logprob": part["logp"].mean()})
    return pd.DataFrame(rows).groupby(["benchmark", "temperature"], sort=False).mean().reset_index()
