"""Claim 3, less length bias: the weight of a token in the update against the length of its completion.

Long completions are those of hard prompts, and hard prompts have other advantages: across groups, weight and length are
confounded by difficulty. Here completions are compared only within a *cell*, the completions of one group with the same
reward: same prompt, same advantage, another length. What is left is what the loss does with length.

In GRPO a token's weight is A_i / (N |o_i|), and falls as 1 / length; in Dr. GRPO, DAPO and others it does not depend on
the length. The preference term is made of mean log-probabilities per token, and its w_i / |o_i| falls as 1 / length in
every loss: added to Dr. GRPO it brings the dilution back that Dr. GRPO removes. Arguments are arrays of one entry per
completion, (N,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amir_grpo.study.richness import centred

# Of TRL's loss types, those that divide by a completion's own length; the others divide by something that all share.
DIVIDES_BY_LENGTH = ("grpo", "sapo")


@dataclass(frozen=True)
class LengthSlope:
    """How weights fall with length within cells.

    Attributes:
        slope: Of log |weight| on log length: -1 is full dilution, 0 none; NaN where no cell has two lengths.
        cells: Cells with at least two lengths, which alone say something.
        completions: Completions in them.
    """

    slope: float
    cells: int
    completions: int


def theoretical_weight(loss_type: str, length: ArrayLike, reference: float, share: float = 0.0) -> NDArray[np.float64]:
    """Weight of a token by the length of its completion, relative to that at the length `reference`.

    Args:
        loss_type: TRL's name of GRPO's loss.
        length: Tokens of the completion, any shape, at least 1.
        reference: The length at which the weight is 1.
        share: Part of the weight at `reference` that is the preference term's, 0 to 1.
    """
    length = np.asarray(length, dtype=float)
    diluted = reference / length
    of_loss = diluted if loss_type in DIVIDES_BY_LENGTH else np.ones_like(length)
    return (1 - share) * of_loss + share * diluted


def length_slope(token_weight: ArrayLike, length: ArrayLike, group: ArrayLike, reward: ArrayLike) -> LengthSlope:
    """The slope of log |token_weight| on log length with an intercept for each cell.

    Args:
        token_weight: What stands before the gradient of each token's log-probability; those of 0 say nothing and are
            left out.
        length: Tokens of each completion.
        group, reward: Equal pairs of both are a cell. Weights of different sign are kept apart as well.
    """
    weight, tokens, cell = _cells(token_weight, length, group, reward)
    x, y = centred(np.log(tokens), cell), centred(np.log(np.abs(weight)), cell)
    spread = np.bincount(cell, x * x)
    told = spread > 0
    if not told.any():
        return LengthSlope(np.nan, 0, 0)
    slope = float((x * y).sum() / spread.sum())
    return LengthSlope(slope, int(told.sum()), int(np.bincount(cell)[told].sum()))


def relative_weight(
    token_weight: ArrayLike, length: ArrayLike, group: ArrayLike, reward: ArrayLike, edges: ArrayLike
) -> NDArray[np.float64]:
    """Weight of a token by length, relative to the shortest bin, with the cells held fixed: (bins,).

    The least-squares fit of log |token_weight| on cells and bins, so that a bin is compared through the cells that it
    shares with others. NaN for a bin that no chain of cells ties to the first.

    Args:
        edges: Lower ends of the bins, rising; the first must not lie above the shortest completion.
        token_weight, length, group, reward: As in `length_slope`.
    """
    weight, tokens, cell = _cells(token_weight, length, group, reward)
    edges = np.asarray(edges, dtype=float)
    if tokens.size and tokens.min() < edges[0]:
        raise ValueError(
            f"A completion of {tokens.min():g} tokens lies below the first bin, which begins at {edges[0]:g}."
        )
    place = np.digitize(tokens, edges) - 1
    counts = np.zeros((cell.max(initial=-1) + 1, len(edges)))
    np.add.at(counts, (cell, place), 1)
    sums = np.zeros_like(counts)
    np.add.at(sums, (cell, place), np.log(np.abs(weight)))
    sizes = counts.sum(axis=1, keepdims=True)
    # normal equations of the bins after the cells' means are taken out
    normal = np.diag(counts.sum(axis=0)) - counts.T @ (counts / sizes)
    target = sums.sum(axis=0) - counts.T @ (sums.sum(axis=1) / sizes[:, 0])
    tied = _tied_to_first(normal)
    found = np.full(len(edges), np.nan)
    if counts[:, 0].sum() > 0:
        found[0] = 0.0
        others = np.flatnonzero(tied)[1:]
        found[others] = np.linalg.solve(normal[np.ix_(others, others)], target[others])
    return np.exp(found)


def _cells(
    token_weight: ArrayLike, length: ArrayLike, group: ArrayLike, reward: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Weights that are not 0, lengths, and the number of each one's cell."""
    weight, tokens = np.asarray(token_weight, dtype=float), np.asarray(length, dtype=float)
    group, reward = np.asarray(group), np.asarray(reward, dtype=float)
    if not weight.shape == tokens.shape == group.shape == reward.shape or weight.ndim != 1:
        raise ValueError(
            f"token_weight {weight.shape}, length {tokens.shape}, group {group.shape}, reward {reward.shape}: "
            "one entry per completion is needed in each."
        )
    kept = (weight != 0) & (tokens > 0)
    weight, tokens = weight[kept], tokens[kept]
    _, number = np.unique(group[kept], return_inverse=True)
    # rewards are rounded, so that sums of floats that print alike are one cell
    keys = np.stack([number.astype(float), np.round(reward[kept], 6), np.sign(weight)])
    _, cell = np.unique(keys, axis=1, return_inverse=True)
    return weight, tokens, cell.reshape(-1)


def _tied_to_first(normal: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which bins a chain of shared cells ties to the first."""
    shares = np.abs(normal) > 1e-12
    tied = np.arange(len(normal)) == 0
    for _ in range(len(normal)):
        tied = tied | (shares[tied].any(axis=0))
    return tied
