"""Other losses that compare the completions of a group, as weights in the form of AMIR-GRPO's preference weights.

Each loss depends only on the rewards and sequence log-probabilities of a rollout, so that its gradient is
-sum_i w_i grad l_i, and the losses differ only in the weights w. Added to the advantages, or used instead of them, the
weights train the policy with that loss (see `amir_grpo.preference` and docs/method.md).

The `group_size` completions of a prompt are adjacent rows. `rewards` and `seq_logps` (mean log-probability per token,
in nats) have shape (N,). Losses that only distinguish right from wrong count a completion as right if it beats the
worst of its group by more than `reward_margin`; the weights of a group without right completions are 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amir_grpo.preference import mine_pairs, preference_weights


def family_weights(
    name: str, rewards: Tensor, seq_logps: Tensor, group_size: int, reward_margin: float = 0.0, tau: float = 1.0
) -> Tensor:
    """Return the weights w of a loss, (N,), such that its gradient is -sum_i w_i grad l_i; w carries no gradient.

    Args:
        name: One of `FAMILY`.
        rewards: (N,).
        seq_logps: Mean log-probability per token of each completion, in nats, (N,).
        group_size: Completions per prompt, G.
        reward_margin: Difference of rewards above which one completion beats another.
        tau: Temperature, for losses that have one: 1 / beta in AMIR-GRPO; listwise divides rewards by it.

    Raises:
        ValueError: If the name is unknown, or the rewards do not divide into groups.
    """
    if name not in FAMILY:
        raise ValueError(f"Unknown loss {name!r}.\nValid: {', '.join(FAMILY)}.")
    if rewards.numel() % group_size:
        raise ValueError(f"{rewards.numel()} rewards do not divide into groups of {group_size}.")
    grouped = rewards.to(seq_logps.dtype).view(-1, group_size)
    weights = FAMILY[name](grouped, seq_logps.detach().view(-1, group_size), reward_margin, tau)
    return weights.reshape(-1)


def amir(rewards: Tensor, scores: Tensor, margin: float, tau: float) -> Tensor:
    """Return the weights of AMIR-GRPO (arXiv 2601.03661), the logistic loss over all pairs of the rollout."""
    flat, group_size = rewards.reshape(-1), rewards.size(1)
    return preference_weights(scores.reshape(-1), mine_pairs(flat, group_size, margin), 1 / tau)


def group_pairs(rewards: Tensor, scores: Tensor, margin: float, tau: float) -> Tensor:
    """Return the weights of the logistic loss over pairs, averaged per group as in DisCO-b (arXiv 2505.12366)."""
    wins = (rewards[:, :, None] - rewards[:, None, :] > margin).to(scores)
    pull = wins * torch.sigmoid((scores[:, None, :] - scores[:, :, None]) / tau) / tau
    pairs = wins.sum((1, 2)).clamp(min=1)
    return (pull.sum(2) - pull.sum(1)) / pairs[:, None] / len(rewards)


def ranks(rewards: Tensor, scores: Tensor, margin: float, tau: float) -> Tensor:
    """Return the weights of GOPO (arXiv 2602.03876), ranks spread from -2 to 2, with ties at their mean rank."""
    wins = (rewards[:, :, None] - rewards[:, None, :] > margin).to(scores)
    return 2 / (rewards.size(1) - 1) * (wins.sum(2) - wins.sum(1)) / rewards.numel()


def infonce(rewards: Tensor, scores: Tensor, margin: float, tau: float) -> Tensor:
    """Return the weights of InfoNCE (ConSPO, arXiv 2605.12969; ReNCE, 2601.22432): each right one against all wrong.

    L = -mean over right i of log(e_i / (e_i + sum of e_j over wrong j)) with e = exp(score / tau), averaged over groups.
    """
    right, mixed = _classes(rewards, margin)
    scaled = scores / tau
    wrong = scaled.masked_fill(right, -torch.inf)
    # log of each right completion's denominator, (groups, G); entries of wrong completions are not used
    denominator = torch.logaddexp(scaled, torch.logsumexp(wrong, dim=1, keepdim=True))
    of_right = (1 - torch.exp(scaled - denominator)).masked_fill(~right, 0.0)
    chosen = torch.exp(wrong[:, None, :] - denominator[:, :, None])  # (groups, right i, wrong j)
    of_wrong = chosen.masked_fill(~right[:, :, None], 0.0).sum(1)
    weights = (of_right - of_wrong) / right.sum(1, keepdim=True).clamp(min=1) / tau / len(rewards)
    return torch.where(mixed, weights, 0.0)


def listwise(rewards: Tensor, scores: Tensor, margin: float, tau: float) -> Tensor:
    """Return the weights of LPO (arXiv 2605.06139), forward KL from softmax(score + reward/tau) to softmax(score)."""
    target = torch.softmax(scores + rewards / tau, dim=1)
    return (target - torch.softmax(scores, dim=1)) / len(rewards)


def real(rewards: Tensor, scores: Tensor, margin: float, tau: float) -> Tensor:
    """Return the weights of REAL (arXiv 2602.05630), a classification by reward with an anchor logit, on-policy.

    L = log(1 + sum over right of exp(-s / tau)) + log(1 + sum over wrong of exp(s / tau)), where s is the log-probability
    relative to the policy that drew the completion: 0 on-policy. The weights of a group do not quite sum to zero.
    """
    right, mixed = _classes(rewards, margin)
    count = right.sum(1, keepdim=True).to(scores)
    weights = torch.where(right, 1 / (1 + count), -1 / (1 + rewards.size(1) - count)) / tau / len(rewards)
    return torch.where(mixed, weights, 0.0)


def grpo(rewards: Tensor, scores: Tensor, margin: float, tau: float) -> Tensor:
    """Return the weights of GRPO (arXiv 2402.03300), its advantages as TRL computes them."""
    deviation = rewards.std(dim=1, keepdim=True) + 1e-4
    return (rewards - rewards.mean(dim=1, keepdim=True)) / deviation / rewards.numel()


def dr_grpo(rewards: Tensor, scores: Tensor, margin: float, tau: float) -> Tensor:
    """Return the weights of Dr. GRPO (arXiv 2503.20783), advantages without division by the standard deviation."""
    return (rewards - rewards.mean(dim=1, keepdim=True)) / rewards.numel()


def two(rewards: Tensor, scores: Tensor, margin: float, tau: float) -> Tensor:
    """Return the weights of It Takes Two (arXiv 2510.00977), GRPO on two adjacent completions of a group at a time.

    Raises:
        ValueError: If the group size is odd.
    """
    if rewards.size(1) % 2:
        raise ValueError(f"Groups of {rewards.size(1)} cannot be cut into twos; choose an even num_generations.")
    return grpo(rewards.reshape(-1, 2), scores, margin, tau).view_as(rewards)


FAMILY: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    loss.__name__: loss for loss in (amir, group_pairs, ranks, infonce, listwise, real, grpo, dr_grpo, two)
}


def weight_curve(name: str, group_size: int = 8, spread: float = 0.0, tau: float = 1.0, seed: int = 0) -> Tensor:
    """Return how a loss weights groups by their number m of right completions, at scores of a given spread.

    For 0/1 rewards and equal scores, the weights of a group are f(m) (c - mean of c), where c is 1 for right
    completions; otherwise, f(m) is the projection onto that direction. The rollout has one group for each m.

    Args:
        name: One of `FAMILY`.
        group_size: Completions per prompt, G.
        spread: Standard deviation of the scores, in nats per token.
        tau: As in `family_weights`.
        seed: Seed of the scores.

    Returns:
        Columns m, f(m) and the cosine of the weights with c - mean of c, (G - 1, 3).
    """
    m = torch.arange(1, group_size)
    correct = (torch.arange(group_size)[None, :] < m[:, None]).double()
    noise = torch.randn(correct.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = family_weights(name, correct.flatten(), spread * noise.flatten(), group_size, tau=tau).view_as(correct)
    direction = correct - correct.mean(1, keepdim=True)
    along = (weights * direction).sum(1)
    f = along / direction.square().sum(1)
    cosine = along / (weights.norm(dim=1) * direction.norm(dim=1)).clamp(min=1e-30)
    return torch.stack([m.double(), f, cosine], dim=1)


def _classes(rewards: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return which completions are right, (groups, G), and which groups have right and wrong ones, (groups, 1)."""
    right = rewards - rewards.min(dim=1, keepdim=True).values > margin
    return right, right.any(dim=1, keepdim=True)
