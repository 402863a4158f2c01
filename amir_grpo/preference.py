"""The preferences that the rewards inside a rollout group imply: pairs, their loss, and the loss as an advantage.

Pure functions on tensors. With N completions in groups of G that answer the same prompt (rows of a group adjacent),
rewards r (N,) and length-normalised sequence log-probabilities ℓ (N,), AMIR-GRPO (arXiv 2601.03661) adds to GRPO

    L_pref = -1/|S| Σ_(i,j)∈S log σ(z_ij),    z_ij = β [(ℓ_i - ℓ_i^ref) - (ℓ_j - ℓ_j^ref)],
    S = {(i, j): same group, r_i - r_j > δ}.

Its gradient is -Σ_i w_i ∇ℓ_i with weights w that sum to 0 in each group: the regulariser is an advantage, and that is
how `amir_grpo.trainer` applies it.

The z_ij of length-normalised log-probabilities are small, and the paper's pair loss -log σ(z) is nearly its tangent at
z = 0, log 2 - z/2, whose weights are w_i = β/(2|S|) (wins_i - losses_i) and do not depend on the policy. That limit is
the pair loss "linear", so that an experiment can tell it from the paper's "logistic".
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from amir_grpo.choices import PAIR_LOSSES, PAIR_MINING, check_names


class Pairs(NamedTuple):
    """Preference pairs as row indices into the rollout batch.

    Attributes:
        chosen: (K,) int64, the completion with the higher reward of each pair.
        rejected: (K,) int64, the one with the lower reward, of the same group.
    """

    chosen: Tensor
    rejected: Tensor


def mine_pairs(
    rewards: Tensor,
    group_size: int,
    reward_margin: float = 0.0,
    strategy: str = "all",
    max_pairs_per_group: int | None = None,
) -> Pairs:
    """Pairs (i, j) of one group with r_i - r_j > reward_margin.

    Args:
        rewards: (N,) float, groups of `group_size` adjacent rows. A NaN reward (unscorable) never forms a pair.
        group_size: G, completions per group.
        reward_margin: δ ≥ 0, in units of reward; the inequality is strict.
        strategy: "all" takes every such pair, and so does "permuted", whose caller has permuted the rewards; "topk"
            takes the best completion of the group (the first of equals) against the rest.
        max_pairs_per_group: Keep only the pairs with the largest reward gaps; ties go to the lower row indices.

    Returns:
        `Pairs`, ordered by group; within a group by row indices, or by falling gap where there is a cap.

    Raises:
        ValueError: If N is no multiple of `group_size`, the strategy is unknown, the margin is negative or the cap is
            less than 1.
    """
    if group_size < 1 or rewards.numel() % group_size:
        raise ValueError(f"{rewards.numel()} rewards do not divide into groups of {group_size}.")
    check_names("pair mining strategy", [strategy], PAIR_MINING)
    if not reward_margin >= 0:
        raise ValueError(f"reward_margin is {reward_margin}; it must be at least 0.")
    if max_pairs_per_group is not None and max_pairs_per_group < 1:
        raise ValueError(f"max_pairs_per_group is {max_pairs_per_group}; use None for no cap, or at least 1.")

    grouped = rewards.view(-1, group_size)
    gap = grouped.unsqueeze(2) - grouped.unsqueeze(1)  # (groups, G, G): row i over column j
    wanted = gap > reward_margin  # False wherever a NaN is involved
    if strategy == "topk":
        best = grouped.where(~grouped.isnan(), -torch.inf).argmax(dim=1)
        wanted &= torch.nn.functional.one_hot(best, group_size).bool().unsqueeze(2)
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
    """z_ij = β [(ℓ_i - ℓ_i^ref) - (ℓ_j - ℓ_j^ref)], shape (K,).

    Args:
        seq_logps: (N,) ℓ, the mean log-probability of a completion's tokens, in nats per token.
        pairs: K pairs of rows.
        beta: β, the inverse temperature of the preference.
        ref_seq_logps: (N,) ℓ^ref under the reference policy; None is the reference-free form, ℓ^ref = 0.
    """
    score = seq_logps if ref_seq_logps is None else seq_logps - ref_seq_logps
    return beta * (score[pairs.chosen] - score[pairs.rejected])


def preference_loss(
    seq_logps: Tensor,
    pairs: Pairs,
    beta: float,
    ref_seq_logps: Tensor | None = None,
    pair_loss: str = "logistic",
) -> Tensor:
    """L_pref = -1/|S| Σ_S log σ(z_ij), a scalar; 0 where there is no pair. Arguments as in `preference_weights`."""
    _check_pair_loss(pair_loss)
    if pairs.chosen.numel() == 0:
        return seq_logps.sum() * 0.0  # keeps the graph, so that an all-equal batch can still be differentiated
    logits = pair_logits(seq_logps, pairs, beta, ref_seq_logps)
    if pair_loss == "linear":
        return (math.log(2.0) - logits / 2).mean()
    return -logsigmoid(logits).mean()


def preference_weights(
    seq_logps: Tensor,
    pairs: Pairs,
    beta: float,
    ref_seq_logps: Tensor | None = None,
    pair_loss: str = "logistic",
) -> Tensor:
    """w with ∇L_pref = -Σ_i w_i ∇ℓ_i: wins minus losses, each weighted by how wrong the policy still is about the pair.

    w_i = (β/|S|) [Σ_{j:(i,j)∈S} σ(-z_ij) - Σ_{j:(j,i)∈S} σ(-z_ji)].

    Args:
        seq_logps, pairs, beta, ref_seq_logps: As in `pair_logits`.
        pair_loss: "logistic", the paper's -log σ(z), or "linear", its tangent log 2 - z/2, where every σ(-z) is 1/2.

    Returns:
        (N,) float without gradient; sums to 0 in each group, all 0 where there is no pair.
    """
    logits = pair_logits(seq_logps.detach(), pairs, beta, ref_seq_logps)
    _check_pair_loss(pair_loss)
    slope = torch.full_like(logits, 0.5) if pair_loss == "linear" else torch.sigmoid(-logits)
    pull = slope * (beta / max(logits.numel(), 1))
    weights = torch.zeros_like(seq_logps)
    return weights.index_add(0, pairs.chosen, pull).index_add(0, pairs.rejected, -pull)


def _check_pair_loss(pair_loss: str) -> None:
    check_names("pair loss", [pair_loss], PAIR_LOSSES)


def published_lambda(lambda_reg: float, preference_loss: float, grpo_loss: float) -> float:
    """λ of the next step by the rule of the published code, which compares the values of the two losses.

    ratio = λ L_pref / max(1e-9, L_GRPO): below 0.3, λ ← min(0.05, 1.25 λ); above 0.7, λ ← max(0.005, 0.8 λ). On-policy
    the value of L_GRPO is about 0, since advantages add up to 0, so that the ratio follows its rounding and its sign.
    """
    ratio = lambda_reg * preference_loss / max(1e-9, grpo_loss)
    if ratio < 0.3:
        return min(0.05, 1.25 * lambda_reg)
    if ratio > 0.7:
        return max(0.005, 0.8 * lambda_reg)
    return lambda_reg


def lambda_of_share(share: float, advantage_sum: float, weight_sum: float) -> float:
    """λ at which the preference term is `share` of the update: λ Σ|κ w| = share (Σ|A| + λ Σ|κ w|).

    Args:
        share: Wanted share, between 0 and 1.
        advantage_sum: Σ|A| over the rollout.
        weight_sum: Σ|κ w| over the rollout, above 0.
    """
    return share / (1 - share) * advantage_sum / weight_sum


def lambda_of_mixture(share: float, advantage_sum: float, weight_sum: float) -> float:
    """λ at which (1 - share) A + λ κ w is a mixture whose two parts have the L1 norms (1 - share) Σ|A| and share Σ|A|.

    The update of that is (1 - share) times the gradient of L_GRPO + λ' L_pref with λ' = `lambda_of_share`: the same
    objective as at that share, scaled so that, up to what cancels between the parts, the update keeps GRPO's size.
    Arguments as in `lambda_of_share`.
    """
    return share * advantage_sum / weight_sum


def permuted_within_groups(rewards: Tensor, group_size: int, generator: np.random.Generator) -> Tensor:
    """Rewards (N,) shuffled inside each group of `group_size` adjacent rows: what pairs they imply is chance."""
    order = [start + generator.permutation(group_size) for start in range(0, rewards.numel(), group_size)]
    return rewards[torch.from_numpy(np.concatenate(order)).to(rewards.device)]
