"""The nine settings of the preference term, once: `AmirGRPOConfig` and a run's `Settings` both take them from here.

Free of torch, so that a command line can show them without waiting for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from amir_grpo.choices import LAMBDA_SCHEDULES, PAIR_LOSSES, PAIR_MINING, Bounds


def _setting(default: Any, about: str, choices: tuple[str, ...] | None = None) -> Any:
    # transformers' argument parser takes no other metadata, so bounds stand in the type
    metadata: dict[str, Any] = {"help": about}
    if choices:
        metadata["choices"] = list(choices)
    return field(default=default, metadata=metadata)


@dataclass
class PreferenceSettings:
    """The settings of the preference term; the defaults are the published ones (arXiv 2601.03661)."""

    lambda_reg: Annotated[float, Bounds(at_least=0)] = _setting(
        0.01, "Weight λ of the preference loss in L = L_GRPO + λ L_pref. 0 is GRPO."
    )
    reward_margin: Annotated[float, Bounds(at_least=0)] = _setting(
        2.0, "δ: completions i and j of a group form a pair if r_i - r_j > δ. In units of reward."
    )
    beta_dpo: Annotated[float, Bounds(above=0)] = _setting(
        0.2, "β: inverse temperature of the preference, multiplies the log-probability margin of a pair."
    )
    pair_mining: str = _setting(
        "all",
        "Which pairs of a group: 'all'; 'topk', the best completion against the rest; or 'permuted', a negative control: "
        "all pairs of rewards that were permuted within the group.",
        PAIR_MINING,
    )
    max_pairs_per_group: Annotated[int | None, Bounds(at_least=1)] = _setting(
        None, "Keep at most this many pairs per group, those with the largest reward gaps. None: no cap."
    )
    ref_free: bool = _setting(
        True,
        "Compare log-probabilities of the policy alone. False subtracts those of the reference policy: with PEFT the "
        "base model (the adapter switched off), else a copy of the initial policy.",
    )
    pair_loss: str = _setting(
        "logistic",
        "'logistic', the paper's -log σ(z) of a pair, or 'linear', its tangent at z = 0, whose weights are plain wins "
        "minus losses.",
        PAIR_LOSSES,
    )
    lambda_schedule: str = _setting(
        "constant",
        "How λ moves: 'constant'; 'published', the rule of the published code, which follows the ratio of the two loss "
        "values and drifts to 0.005; 'share', which sets λ for each rollout so that the preference term is "
        "preference_share of the update; 'mixture', the same, with the advantages scaled by 1 - preference_share, so that "
        "the update keeps the size of GRPO's.",
        LAMBDA_SCHEDULES,
    )
    preference_share: Annotated[float, Bounds(above=0, below=1)] = _setting(
        0.3,
        "With lambda_schedule='share' or 'mixture': wanted share of the preference term, λ Σ|κ w| over that plus Σ|A|.",
    )
