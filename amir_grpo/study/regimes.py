"""The regimes of the study and the arms that are trained in each: every (regime, arm) as the settings that it changes.

Size. Under `lambda_schedule="share"` the preference term comes on top of GRPO's advantages, so that at a share of 0.6 the
update is up to 2.5 times GRPO's and gradient clipping nearly always active: its gain over GRPO could be that of another
learning rate. The arms of the tests are therefore mixtures, (1 - s) A + s ŵ with ŵ scaled to the L1 norm of A: the
objective of the same share, at the size of GRPO's update. The share itself is an exploratory arm beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What the rewards of a regime are; the first is without a nuisance.
REGIMES: dict[str, dict[str, Any]] = {
    "clean": {},
    "nuisance": {"nuisance": "noise", "nuisance_size": 0.45, "reward_margin": 1.0},
    "above-margin": {"nuisance": "noise", "nuisance_size": 1.5, "reward_margin": 1.0},
    "outliers": {"nuisance": "outliers", "nuisance_size": 10.0, "nuisance_rate": 1 / 16},
    "format": {"nuisance": "format", "nuisance_size": 1.0},
    "partial": {"nuisance": "partial", "nuisance_size": 1.0},
}
# What people call them.
TITLES = {
    "clean": "clean rewards",
    "nuisance": "noise below the margin",
    "above-margin": "noise above the margin",
    "outliers": "rare outliers",
    "format": "format reward",
    "partial": "partial credit",
}
BASE = "base"

_MIXTURE = {"lambda_schedule": "mixture", "preference_share": 0.6}
_PUBLISHED = {"lambda_reg": 0.01, "beta_dpo": 0.2, "reward_margin": 2.0}
# Two optimizer steps per rollout, so that importance ratios leave 1: with one, every clipping rule and GSPO are GRPO.
_TWO_STEPS = {
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "max_steps": 120,
}
_DR_GRPO = {"loss_type": "dr_grpo", "scale_rewards": "none"}
# The largest reward that a completion can earn without a nuisance: what would be clipped at is known in practice.
_LARGEST_REWARD = 3.3
_VARIANTS = {
    "grpo": ("GRPO", {}),
    "dr_grpo": ("Dr. GRPO", _DR_GRPO),
    "dapo": ("DAPO's loss", {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True}),
    "gspo": ("GSPO", {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}),
}


@dataclass(frozen=True)
class RegimeArm:
    """What is trained under some rewards; its runs differ in the seed and the base policy.

    Attributes:
        regime: Name of the regime.
        name: Name of the arm in the regime.
        method: grpo or amir_grpo; base for the policy before training, which is only evaluated.
        about: What it is, for tables and figures; a percentage is the preference term's part of the update.
        changes: Settings that differ from the profile's, those of the regime included.
        seed_offset: Added to the seed of its runs, for a training that is another draw of the same.
    """

    regime: str
    name: str
    method: str
    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    seed_offset: int = 0

    @property
    def path(self) -> str:
        """`regime/arm`."""
        return f"{self.regime}/{self.name}"


def _arm(
    regime: str, name: str, method: str, about: str, *changes: Mapping[str, Any], seed_offset: int = 0
) -> RegimeArm:
    together = dict(REGIMES[regime])
    for change in changes:
        together |= change
    return RegimeArm(regime, name, method, about, together, seed_offset)


def _grpo(regime: str) -> RegimeArm:
    return _arm(regime, "grpo", "grpo", "GRPO")


def _mixture(regime: str) -> RegimeArm:
    return _arm(regime, "mixture-0.6", "amir_grpo", "AMIR-GRPO, 60 %", _MIXTURE)


def _variant(name: str) -> list[RegimeArm]:
    """A variant of GRPO with two optimizer steps per rollout: without the preference term, as published, as a mixture."""
    about, changes = _VARIANTS[name]
    loss = _TWO_STEPS | changes
    return [
        _arm("clean", f"two-step-{name}", "grpo", f"{about}, two steps", loss),
        _arm("clean", f"two-step-{name}-published", "amir_grpo", f"{about}, two steps, published", loss, _PUBLISHED),
        _arm("clean", f"two-step-{name}-mixture", "amir_grpo", f"{about}, two steps, 60 %", loss, _MIXTURE),
    ]


def _group_size(size: int) -> list[RegimeArm]:
    changes = {"num_generations": size, "per_device_train_batch_size": 16 * size}
    return [
        _arm("clean", f"group-{size}", "grpo", f"GRPO, G = {size}", changes),
        _arm("clean", f"group-{size}-mixture", "amir_grpo", f"60 %, G = {size}", changes, _MIXTURE),
    ]


# In the order in which they are worth their time, after those that the tests of the plan need.
_ALL = [
    _arm("clean", BASE, BASE, "base policy"),
    _grpo("clean"),
    _arm("clean", "published", "amir_grpo", "AMIR-GRPO, published", _PUBLISHED),
    _mixture("clean"),
    _arm(
        "clean",
        "mixture-0.6-permuted",
        "amir_grpo",
        "60 %, rewards permuted",
        _MIXTURE,
        {"pair_mining": "permuted"},
    ),
    *(_grpo(regime) for regime in ("nuisance", "outliers", "above-margin")),
    *(_mixture(regime) for regime in ("nuisance", "outliers", "above-margin")),
    _arm("nuisance", "dr_grpo", "grpo", "Dr. GRPO", _DR_GRPO),
    _arm("nuisance", "correctness-only", "grpo", "GRPO, correctness reward only", {"reward_terms": "correctness"}),
    _arm("outliers", "dr_grpo", "grpo", "Dr. GRPO", _DR_GRPO),
    _arm(
        "outliers", "dr_grpo-clipped", "grpo", "Dr. GRPO, clipped reward", _DR_GRPO, {"reward_clip": _LARGEST_REWARD}
    ),
    # another draw of the same training: what coverage, and any difference between two trainings, is compared with
    _arm("clean", "grpo-again", "grpo", "GRPO, another seed", seed_offset=100),
    _arm(
        "clean",
        "published-schedule",
        "amir_grpo",
        "published λ schedule",
        _PUBLISHED,
        {"lambda_schedule": "published"},
    ),
    _arm("clean", "share-0.6", "amir_grpo", "share 0.6, larger update", _MIXTURE, {"lambda_schedule": "share"}),
    _arm("clean", "lr-x2", "grpo", "GRPO, learning rate × 2", {"learning_rate": 2e-3}),
    *_variant("grpo"),
    *_variant("dr_grpo"),
    *_variant("dapo"),
    *_variant("gspo"),
    _arm("nuisance", "grpo-unscaled", "grpo", "GRPO without division", {"scale_rewards": "none"}),
    _arm("nuisance", "uniform-dropped", "grpo", "GRPO, uniform groups dropped", {"drop_uniform_groups": True}),
    _arm(
        "clean",
        "mixture-0.6-linear",
        "amir_grpo",
        "60 %, linear pairs",
        _MIXTURE,
        {"pair_loss": "linear"},
    ),
    _arm("clean", "mixture-0.6-beta-10", "amir_grpo", "60 %, β = 10", _MIXTURE, {"beta_dpo": 10.0}),
    *_group_size(4),
    *_group_size(16),
    *(arm(regime) for regime in ("format", "partial") for arm in (_grpo, _mixture)),
]
ARMS: dict[str, RegimeArm] = {arm.path: arm for arm in _ALL}
