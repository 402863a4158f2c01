"""What is kept of a run: small tables made from its rollouts, its log and its evaluation. Pure functions on tables."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd

from amir_grpo.study.length_weight import length_slope, relative_weight
from amir_grpo.study.richness import centred, richness

# Lower ends of the bins of completion lengths, in tokens.
LENGTH_EDGES = (0, 20, 24, 28, 32, 36, 40, 46, 52, 58, 64)
WINDOWS = 10  # parts of a training
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


def problem_table(samples: pd.DataFrame, greedy: pd.DataFrame) -> pd.DataFrame:
    """One row per problem of the evaluation: benchmark, problem (its number), correct (of the n samples), greedy (0 or 1),
    tokens_right and tokens_wrong (tokens of all right and all wrong samples together).

    Args:
        samples, greedy: Columns benchmark, problem_id, correct, tokens; n rows and one row per problem.
    """
    key = ["benchmark", "problem_id"]
    right = samples["correct"].astype(bool)
    counted = samples.assign(
        correct=right.astype(int),
        tokens_right=samples["tokens"].where(right, 0),
        tokens_wrong=samples["tokens"].where(~right, 0),
    )
    table = counted.groupby(key, sort=False)[["correct", "tokens_right", "tokens_wrong"]].sum()
    table.insert(1, "greedy", greedy.set_index(key)["correct"].astype(int))
    table = table.reset_index()
    numbers = table.pop("problem_id").map(lambda name: int(name.rpartition("-")[2]))
    table.insert(1, "problem", numbers)
    return table


def rollout_table(rollouts: pd.DataFrame, log: pd.DataFrame, steps_per_rollout: int = 1) -> pd.DataFrame:
    """One row per rollout: what its rewards, its update and the log say.

    Args:
        rollouts: The record of a training, see `amir_grpo.runs.study_trainer`.
        log: The log of the training, one row per optimizer step; its columns are averaged over the steps of a rollout.
        steps_per_rollout: Optimizer steps that use one rollout.

    Returns:
        Columns rollout (from 1), mixed (share of the groups with right and wrong completions), right (share of the
        completions), cosine_advantage and cosine_update (of A, and of A plus the preference term, with correctness minus
        the mean of its group), uniform_share (of the update's L1 norm, in groups that are all right or all wrong), size
        (mean of |A plus the preference term|), tokens_right, tokens_wrong (mean lengths), and those of the log.
    """
    rows = rollouts.assign(rollout=(rollouts["step"] - 1) // steps_per_rollout + 1)
    measured = rows.groupby("rollout").apply(_of_rollout, include_groups=False)
    logged = log.reindex(columns=["step", *_LOG]).rename(columns=_LOG)
    logged.insert(0, "rollout", (logged.pop("step") - 1) // steps_per_rollout + 1)
    return measured.join(logged.astype(float).groupby("rollout").mean()).reset_index()


def _of_rollout(rows: pd.DataFrame) -> pd.Series:
    _, index = np.unique(rows["group"], return_inverse=True)
    correct = rows["correct"].to_numpy(float)
    advantage = rows["advantage"].to_numpy()
    update = advantage + rows["bonus"].to_numpy()
    wanted = centred(correct, index)
    mixed = np.bincount(index, np.abs(wanted)) > 0
    right, tokens = correct > 0, rows["tokens"].to_numpy(float)
    size = np.abs(update).sum()
    return pd.Series(
        {
            "mixed": mixed.mean(),
            "right": right.mean(),
            "cosine_advantage": _cosine(advantage, wanted),
            "cosine_update": _cosine(update, wanted),
            "uniform_share": np.abs(update[~mixed[index]]).sum() / size if size > 0 else np.nan,
            "size": size / len(update),
            "tokens_right": tokens[right].mean() if right.any() else np.nan,
            "tokens_wrong": tokens[~right].mean() if (~right).any() else np.nan,
        }
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms > 0 else np.nan


def richness_table(rollouts: pd.DataFrame, steps_per_rollout: int = 1) -> pd.DataFrame:
    """What the preference term adds that the advantages do not have, over `WINDOWS` parts of a training.

    Columns window (from 1) and those of `amir_grpo.study.richness.Richness`; no row for a training without the term.
    """
    if not rollouts["bonus"].any():
        return pd.DataFrame(
            columns=["window", "groups", "explained", "explained_at_one_slope", "share", "residual_share"]
        )
    number = (rollouts["step"] - 1) // steps_per_rollout
    window = number * WINDOWS // (number.max() + 1) + 1
    rows = []
    for name, part in rollouts.groupby(window):
        rows.append({"window": name, **vars(richness(part["advantage"], part["bonus"], part["group"]))})
    return pd.DataFrame(rows)


def length_table(rollouts: pd.DataFrame) -> pd.DataFrame:
    """Weight of a token by the length of its completion, within groups and equal rewards.

    Columns tokens (lower end of the bin), relative (weight relative to the first bin that holds any), completions (in the
    bin), and, equal in all rows, slope, cells and told (completions that tell the slope) of
    `amir_grpo.study.length_weight.length_slope`.
    """
    columns = [rollouts[name].to_numpy() for name in ("token_weight", "tokens", "group", "reward")]
    slope = length_slope(*columns)
    tokens = rollouts["tokens"]
    edges = np.array(LENGTH_EDGES)
    counts = np.bincount(np.digitize(tokens, edges) - 1, minlength=len(edges))
    weighed = (rollouts["token_weight"] != 0) & (tokens > 0)
    first = int(np.digitize(tokens[weighed].min(), edges)) - 1 if weighed.any() else 0
    relative = np.full(len(edges), np.nan)
    if slope.cells:
        relative[first:] = relative_weight(*columns, edges[first:])
    table = pd.DataFrame({"tokens": edges, "relative": relative, "completions": counts})
    return table.assign(slope=slope.slope, cells=slope.cells, told=slope.completions)


def digest_of(samples: pd.DataFrame) -> str:
    """Digest of the completions, token by token: 16 hexadecimal digits, equal on every machine that draws the same."""
    digest = hashlib.sha256()
    for benchmark, problem, sample, ids in zip(
        *(samples[name] for name in ("benchmark", "problem_id", "sample", "completion_ids")), strict=True
    ):
        digest.update(json.dumps([benchmark, problem, int(sample), [int(token) for token in ids]]).encode())
    return digest.hexdigest()[:16]
