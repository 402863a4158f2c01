"""Claim 1, richer supervision: what the preference pairs add to the update that the group's advantages do not have.

Within a group, GRPO pushes completion i by its advantage A_i and the preference term by its weight w_i. Where w is a
multiple of A the pairs add nothing but size: the same update, at another learning rate for that group. What they add is
what a regression of w on A leaves over, group by group. Arguments are arrays of one entry per completion, (N,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Richness:
    """How much of the preference weights the advantages explain.

    Attributes:
        groups: How many groups have both advantages and weights that differ, so that there is something to explain.
        explained: R² of w on A with an intercept and a slope for each group, pooled: 1 if the pairs add size only, NaN
            without such a group.
        explained_at_one_slope: The same with one slope for all groups: what is missing from it to `explained` is how the
            pairs weigh the groups against each other.
        share: Σ|w| / (Σ|A| + Σ|w|), how much of the update is the preference term; 0 for an update of nothing.
        residual_share: Σ|residual| / (Σ|A| + Σ|w|): how much of the update A does not have, with a slope for each group.
    """

    groups: int
    explained: float
    explained_at_one_slope: float
    share: float
    residual_share: float


def richness(advantages: ArrayLike, weights: ArrayLike, group: ArrayLike) -> Richness:
    """What of `weights` the advantages of the same group do not explain.

    Args:
        advantages: A_i of GRPO, without the preference term.
        weights: What the preference term adds to A_i in the same unit, λ κ_i w_i (the column `bonus` of a rollout record);
            or w_i itself, where only `explained` and `explained_at_one_slope` are asked for: these do not depend on the
            unit. Where κ_i depends on the length, as in Dr. GRPO, the two differ: a bonus holds the length's part, too.
        group: Which group a completion belongs to: equal labels, any order. Labels must tell steps apart.

    Raises:
        ValueError: If the arrays differ in shape or hold anything that is not finite.
    """
    advantages, weights = np.asarray(advantages, dtype=float), np.asarray(weights, dtype=float)
    group = np.asarray(group)
    if not advantages.shape == weights.shape == group.shape or advantages.ndim != 1:
        raise ValueError(
            f"advantages {advantages.shape}, weights {weights.shape}, group {group.shape}: "
            "one entry per completion is needed in each."
        )
    if not (np.isfinite(advantages).all() and np.isfinite(weights).all()):
        raise ValueError("Advantages and weights must be finite: leave completions out that could not be scored.")
    _, index = np.unique(group, return_inverse=True)
    a, w = centred(advantages, index), centred(weights, index)
    aa, ww, aw = (np.bincount(index, product) for product in (a * a, w * w, a * w))
    slope = np.divide(aw, aa, out=np.zeros_like(aw), where=aa > 0)
    residual = w - slope[index] * a
    differ = (aa > 0) & (ww > 0)
    size = np.abs(advantages).sum() + np.abs(weights).sum()
    explained = one_slope = np.nan
    if differ.any():
        total = ww[differ].sum()
        explained = 1 - float((residual**2)[differ[index]].sum() / total)
        one_slope = float(aw[differ].sum() ** 2 / (aa[differ].sum() * total))
    return Richness(
        groups=int(differ.sum()),
        explained=explained,
        explained_at_one_slope=one_slope,
        share=float(np.abs(weights).sum() / size) if size > 0 else 0.0,
        residual_share=float(np.abs(residual).sum() / size) if size > 0 else 0.0,
    )


def centred(values: NDArray[np.float64], index: NDArray[np.intp]) -> NDArray[np.float64]:
    """Values minus the mean of their group; groups are numbered 0, 1, ... What rounding leaves of equal values is 0."""
    sizes = np.maximum(np.bincount(index), 1)
    left = values - (np.bincount(index, values) / sizes)[index]
    largest = np.zeros(len(sizes))
    np.maximum.at(largest, index, np.abs(values))
    return np.where(np.abs(left) <= 1e-12 * largest[index], 0.0, left)
