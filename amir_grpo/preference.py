"""The preferences implied by the rewards inside a rollout group: pairs, their loss, and the loss as an advantage.

Pure functions on tensors. For N completions in groups of G that answer the same prompt (adjacent rows), with rewards
r (N,) and length-normalised sequence log-probabilities ℓ (N,), AMIR-GRPO (arXiv 2601.03661) adds to GRPO

    L_pref = -1/|S| Σ_(i,j)∈S log σ(z_ij),    z_ij = β [(ℓ_i - ℓ_i^ref) - (ℓ_j - ℓ_j^ref)],
    S = {(i, j): same group, r_i - r_j > δ}.

Its gradient is -Σ_i w_i ∇ℓ_i with weights w that sum to 0 in each group: the loss is an advantage, and
`amir_grpo.trainer` applies it as one. See docs/method.md for the derivation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

STRATEGIES = ("all", "topk")


class Pairs(NamedTuple):
    """K preference pairs as row indices into the rollout batch, (K,) int64 each: of two completions of a group,
    `chosen` has the higher reward and `rejected` the lower."""

    chosen: Tensor
    rejected: Tensor


def mine_pairs(
    rewards: Tensor,
    group_size: int,
    reward_margin: float = 0.0,
    strategy: str = "all",
    max_pairs_per_group: int | None = None,
) -> Pairs:
    """Return the pairs (i, j) of one group with r_i - r_j > reward_margin.

    Args:
        rewards: (N,) float, groups of `group_size` adjacent rows. A NaN reward (unscorable) never forms a pair.
        group_size: G, completions per group.
        reward_margin: δ ≥ 0, in units of reward; the inequality is strict.
        strategy: "all" takes every such pair; "topk" takes the best completion of the group (the first of equals)
            against the rest.
        max_pairs_per_group: Keep only the pairs with the largest reward gaps; ties go to the lower row indices.

    Returns:
        `Pairs`, ordered by group; within a group by row indices, or by decreasing gap if there is a cap.

    Raises:
        ValueError: If N is not a multiple of `group_size`, the strategy is unknown, the margin is negative or the cap
            is less than 1.
    """
    if group_size < 1 or rewards.numel() % group_size:
        raise ValueError(f"{rewards.numel()} rewards do not divide into groups of {group_size}.")
    if strategy not in STRATEGIES:
        raise ValueError(f"Unknown pair mining strategy {strategy!r}.\nValid: {', '.join(STRATEGIES)}.")
    if not reward_margin >= 0:
        raise ValueError(f"reward_margin is {reward_margin}; it must be at least 0.")
    if max_pairs_per_group is not None and max_pairs_per_group < 1:
        raise ValueError(f"max_pairs_per_group is {max_pairs_per_group}; use None for no cap, or at least 1.")

    grouped = rewards.view(-1, group_size)
    gap = grouped.unsqueeze(2) - grouped.unsqueeze(1)  # (groups, G, G): row i over column j
    wanted = gap > reward_margin  # False wherever a NaN is involved
    if strategy == "topk":
        best = grouped.where(~grouped.isnan(), -torch.inf).argmax(dim=1)
        wanted &= one_hot(best, group_size).bool().unsqueeze(2)
    if max_pairs_per_group is None:
        group, i, j = wanted.nonzero(as_tuple=True)
    else:
        flat_gap = torch.where(wanted, gap, -torch.inf).flatten(1)
        order = flat_gap.sort(dim=1, descending=True, stable=True).indices[:, :max_pairs_per_group]
        kept = wanted.flatten(1).gather(1, order)
        group, rank = kept.nonzero(as_tuple=True)
        i, j = (index[group, rank] for index in (order // group_size, order % group_size))
    return Pairs(group * group_size + i, group * group_size + j)


def pair_logits(seq_logps: Tensor, pairs: Pairs, beta: float, ref_seq_logps: Tensor | None = None) -> Tensor:
    """Return z_ij = β [(ℓ_i - ℓ_i^ref) - (ℓ_j - ℓ_j^ref)], shape (K,).

    Args:
        seq_logps: (N,) ℓ, the mean log-probability of a completion's tokens, in nats per token.
        pairs, beta: K pairs of rows; the inverse temperature of the preference.
        ref_seq_logps: (N,) ℓ^ref under the reference policy; None for the reference-free form, ℓ^ref = 0.
    """
    score = seq_logps if ref_seq_logps is None else seq_logps - ref_seq_logps
    return beta * (score[pairs.chosen] - score[pairs.rejected])


def preference_loss(seq_logps: Tensor, pairs: Pairs, beta: float, ref_seq_logps: Tensor | None = None) -> Tensor:
    """Return L_pref = -1/|S| Σ_S log σ(z_ij), a scalar; 0 without pairs. Arguments as in `pair_logits`."""
    if pairs.chosen.numel() == 0:
        return seq_logps.sum() * 0.0  # keeps the graph, so that a batch without pairs can still be differentiated
    return -logsigmoid(pair_logits(seq_logps, pairs, beta, ref_seq_logps)).mean()


def preference_weights(seq_logps: Tensor, pairs: Pairs, beta: float, ref_seq_logps: Tensor | None = None) -> Tensor:
    """Return w with ∇L_pref = -Σ_i w_i ∇ℓ_i: wins minus losses, each weighted by how wrong the policy is about the pair.

    w_i = (β/|S|) [Σ_{j:(i,j)∈S} σ(-z_ij) - Σ_{j:(j,i)∈S} σ(-z_ji)], (N,) without gradient; it sums to 0 in each group,
    and is 0 for a completion without pairs. Arguments as in `pair_logits`.
    """
    logits = pair_logits(seq_logps.detach(), pairs, beta, ref_seq_logps)
    return net_pull(seq_logps, pairs, torch.sigmoid(-logits) * (beta / max(logits.numel(), 1)))


def net_pull(rows: Tensor, pairs: Pairs, pull: Tensor) -> Tensor:
    """Return (N,), the shape of `rows`: the sum of `pull` (K,) over the pairs that a row wins minus those it loses."""
    return torch.zeros_like(rows).index_add(0, pairs.chosen, pull).index_add(0, pairs.rejected, -pull)
