"""The measurements of one run: small tables made from its rollouts, its log and its evaluation.

- *Richness* (claim 1). Within a group, GRPO pushes completion i by its advantage A_i, and the preference term by its
  weight w_i. If w is a multiple of A, the pairs add only size; what else they add is the residual of w regressed on A.
- *Boundary* (claim 2). A policy of lower entropy has larger differences of log-probabilities, as a lower temperature
  would also give. So completions that no trained policy wrote are scored at several temperatures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEMPERATURES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
MIXED_PROBLEMS = 100  # per benchmark: the first with right and wrong completions of the base policy
WINDOWS = 10  # parts of a training
_TOKENS = 16_384  # tokens that go through the policy at once
# Columns of the training log that are kept, and their names in tables.
_LOG = {
    "reward": "reward",
    "rewards/nuisance/mean": "nuisance",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "clip_ratio/region_mean": "clip_ratio",
    "preference/loss": "preference_loss",
    "preference/pairs": "pairs",
    "preference/accuracy": "pair_accuracy",
    "preference/margin": "pair_margin",
    "preference/share": "share",
    "preference/lambda": "lambda_reg",
}


# --- evaluation and rollouts ----------------------------------------------------------------------------------------


def problem_counts(samples: pd.DataFrame, greedy: pd.DataFrame) -> pd.DataFrame:
    """Count right completions and tokens in one row per problem: benchmark, problem (its number), correct (of the n
    samples), greedy (0 or 1), tokens_right and tokens_wrong (tokens of all right and all wrong samples together).

    Args:
        samples, greedy: Columns benchmark, problem_id, correct, tokens; n rows and one row per problem.
    """
    key = ["benchmark", "problem_id"]
    right = samples["correct"].astype(bool)
    tokens = {"tokens_right": samples["tokens"].where(right, 0), "tokens_wrong": samples["tokens"].where(~right, 0)}
    counted = samples.assign(correct=right.astype(int), **tokens)
    table = counted.groupby(key, sort=False)[["correct", *tokens]].sum()
    table.insert(1, "greedy", greedy.set_index(key)["correct"].astype(int))
    table = table.reset_index()
    table.insert(1, "problem", table.pop("problem_id").map(lambda name: int(name.rpartition("-")[2])))
    return table


def digest_of(samples: pd.DataFrame) -> str:
    """Digest completions token by token: 16 hexadecimal digits, equal on every machine that draws the same."""
    digest = hashlib.sha256()
    columns = (samples[name] for name in ("benchmark", "problem_id", "sample", "completion_ids"))
    for benchmark, problem, sample, ids in zip(*columns, strict=True):
        digest.update(json.dumps([benchmark, problem, int(sample), [int(token) for token in ids]]).encode())
    return digest.hexdigest()[:16]


def rollout_summary(rollouts: pd.DataFrame, log: pd.DataFrame, steps_per_rollout: int = 1) -> pd.DataFrame:
    """Summarise each rollout in one row: its rewards, its update and its log.

    Args:
        rollouts: The record of a training, `StudyTrainer.rollouts()`.
        log: Its log, one row per optimizer step; columns are averaged over the steps of a rollout.
        steps_per_rollout: Optimizer steps that use one rollout.

    Returns:
        Columns rollout (from 1), mixed (share of the groups with right and wrong completions), right (share of the
        completions), cosine_advantage and cosine_update (of A, and of A plus the preference term, with correctness
        minus its group's mean), uniform_share (of the update's L1 norm, in groups that are all right or all wrong),
        size (mean of |A plus the preference term|), tokens_right, tokens_wrong (mean lengths), and those of the log.
    """
    rows = rollouts.assign(rollout=(rollouts["step"] - 1) // steps_per_rollout + 1)
    measured = rows.groupby("rollout").apply(_of_rollout, include_groups=False)
    logged = log.reindex(columns=["step", *_LOG]).rename(columns=_LOG)
    logged.insert(0, "rollout", (logged.pop("step") - 1) // steps_per_rollout + 1)
    return measured.join(logged.astype(float).groupby("rollout").mean()).reset_index()


def _of_rollout(rows: pd.DataFrame) -> pd.Series:
    _, index = np.unique(rows["group"], return_inverse=True)
    advantage, right = rows["advantage"].to_numpy(), rows["correct"] > 0
    update, wanted = advantage + rows["bonus"].to_numpy(), centred(rows["correct"].to_numpy(float), index)
    mixed = np.bincount(index, np.abs(wanted)) > 0
    size = np.abs(update).sum()
    found = {"mixed": mixed.mean(), "right": right.mean()}
    found |= {"cosine_advantage": _cosine(advantage, wanted), "cosine_update": _cosine(update, wanted)}
    found |= {"uniform_share": np.abs(update[~mixed[index]]).sum() / size if size > 0 else np.nan}
    found |= {"size": size / len(update)}
    found |= {"tokens_right": rows["tokens"][right].mean(), "tokens_wrong": rows["tokens"][~right].mean()}
    return pd.Series(found)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms > 0 else np.nan


def centred(values: NDArray[np.float64], index: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return values minus their group's mean; groups are numbered 0, 1, ... Rounding errors of equal values are 0."""
    sizes = np.maximum(np.bincount(index), 1)
    left = values - (np.bincount(index, values) / sizes)[index]
    largest = np.zeros(len(sizes))
    np.maximum.at(largest, index, np.abs(values))
    return np.where(np.abs(left) <= 1e-12 * largest[index], 0.0, left)


# --- richness -------------------------------------------------------------------------------------------------------

RICHNESS = ("groups", "explained", "explained_at_one_slope", "share", "residual_share")


def richness(advantages: ArrayLike, weights: ArrayLike, group: ArrayLike) -> dict[str, float]:
    """Return the part of `weights` that the group's advantages do not explain; arrays have an entry per completion.

    Args:
        advantages: A_i of GRPO, without the preference term.
        weights: What the preference term adds to A_i, λ κ_i w_i.
        group: Label of the group; labels must tell steps apart.

    Returns:
        groups (number of those in which both vary), explained (R² of w on A with an intercept and a slope for each
        group, pooled; NaN without such a group), explained_at_one_slope (the same with one slope for all), share
        (Σ|w| / (Σ|A| + Σ|w|)) and residual_share (Σ|residual| over the same sum); the shares of a zero update are 0.
    """
    a, w = np.asarray(advantages, dtype=float), np.asarray(weights, dtype=float)
    share = np.abs(w).sum()
    size = np.abs(a).sum() + share
    _, index = np.unique(group, return_inverse=True)
    a, w = centred(a, index), centred(w, index)
    aa, ww, aw = (np.bincount(index, product) for product in (a * a, w * w, a * w))
    residual = w - np.divide(aw, aa, out=np.zeros_like(aw), where=aa > 0)[index] * a
    differ = (aa > 0) & (ww > 0)
    explained = one_slope = np.nan
    if differ.any():
        explained = 1 - float((residual**2)[differ[index]].sum() / ww[differ].sum())
        one_slope = float(aw[differ].sum() ** 2 / (aa[differ].sum() * ww[differ].sum()))
    shares = (float(part / size) if size > 0 else 0.0 for part in (share, np.abs(residual).sum()))
    return dict(zip(RICHNESS, (int(differ.sum()), explained, one_slope, *shares), strict=True))


def richness_by_window(rollouts: pd.DataFrame, steps_per_rollout: int = 1) -> pd.DataFrame:
    """Return `richness` in `WINDOWS` parts of a training, with a column window (from 1); no row without the term."""
    if not rollouts["bonus"].any():
        return pd.DataFrame(columns=["window", *RICHNESS])
    number = (rollouts["step"] - 1) // steps_per_rollout
    parts = rollouts.groupby(number * WINDOWS // (number.max() + 1) + 1)
    return pd.DataFrame(
        [{"window": name} | richness(part["advantage"], part["bonus"], part["group"]) for name, part in parts]
    )


# --- boundary -------------------------------------------------------------------------------------------------------


def mixed_completions(samples: pd.DataFrame, problems: int = MIXED_PROBLEMS) -> pd.DataFrame:
    """Return the completions of the first `problems` problems of each benchmark that have right and wrong ones."""
    rate = samples.groupby(["benchmark", "problem_id"])["correct"].transform("mean")
    mixed = samples[(rate > 0) & (rate < 1)]
    place = mixed.groupby("benchmark", sort=False)["problem_id"].transform(lambda names: pd.factorize(names)[0])
    return mixed[place < problems].reset_index(drop=True)


def tempered_scores(
    policy: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return each completion's mean log-probability and entropy per token in nats: (`TEMPERATURES`, completions)."""
    import torch

    from amir_grpo.policies.sampling import padded_batches

    policy.eval()
    whole = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    logps, entropies = np.zeros((2, len(TEMPERATURES), len(whole)))
    for batch, ids in padded_batches(whole, _TOKENS):
        wanted = torch.zeros(ids.shape, dtype=torch.bool)
        for row, index in enumerate(batch):
            wanted[row, len(prompt_ids[index]) : len(whole[index])] = True
        ids, wanted = ids.to(policy.device), wanted[:, 1:].to(policy.device)
        with torch.no_grad():
            logits = policy(input_ids=ids, use_cache=False).logits[:, :-1]
            logits = logits if logits.dtype == torch.float64 else logits.float()
        tokens = wanted.sum(1).clamp(min=1)
        for place, temperature in enumerate(TEMPERATURES):
            distribution = torch.log_softmax(logits / temperature, dim=-1)
            logp = distribution.gather(2, ids[:, 1:, None]).squeeze(2)
            entropy = -(distribution.exp() * distribution).sum(-1)
            for found, values in ((logps, logp), (entropies, entropy)):
                found[place, batch] = (values.where(wanted, 0.0).sum(1) / tokens).cpu().numpy()
    return logps, entropies


def boundary_scores(completions: pd.DataFrame, logps: np.ndarray, entropies: np.ndarray) -> pd.DataFrame:
    """Return means over problems, by benchmark and temperature, of margin, accuracy, entropy and logprob.

    The margin is the mean log-probability per token of a problem's right completions minus that of its wrong ones;
    accuracy is the share of its right/wrong pairs that are ranked right. `completions`: columns benchmark, problem_id,
    correct, in the order of `tempered_scores`; each problem has both kinds.
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
