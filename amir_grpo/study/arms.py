"""The arms of the study: every method under every setting that is compared, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

PROFILE = "sandbox"

# Two optimizer steps a rollout, so that importance ratios leave 1: with one, every clipping rule and GSPO are GRPO.
_TWO_STEPS = {
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "max_steps": 120,
}
# Where the preference is to matter: 30 % of the update, a hundred times what the published λ makes of it.
_SHARE = {"lambda_schedule": "share", "preference_share": 0.3}
# Checkpoints show how a policy got to where it is; they change nothing about it.
KEEP_CHECKPOINTS = {"save_steps": 25, "save_total_limit": None}


@dataclass(frozen=True)
class Arm:
    """One method under some settings; its runs differ in the training seed alone.

    Attributes:
        name: Name of the arm, in folders and tables.
        method: grpo or amir_grpo.
        about: What it is, for tables and figures.
        against: The arm that it is compared with, None where it is a reference itself.
        seeds: Number of training seeds, 0 to seeds - 1.
        changes: Settings that differ from the profile's.
    """

    name: str
    method: str
    about: str
    against: str | None = "grpo"
    seeds: int = 3
    changes: dict[str, Any] = field(default_factory=dict)


def _variant(name: str, about: str, changes: dict[str, Any]) -> list[Arm]:
    """A variant of GRPO with two optimizer steps a rollout, without and with the preference term."""
    changes = _TWO_STEPS | changes
    return [
        Arm(f"two-step-{name}", "grpo", about, None, changes=changes),
        Arm(f"two-step-{name}-amir", "amir_grpo", f"{about} + preference", f"two-step-{name}", changes=changes),
    ]


def _group_size(size: int) -> list[Arm]:
    changes = {"num_generations": size}
    return [
        Arm(f"group-{size}", "grpo", f"GRPO, G = {size}", None, changes=changes),
        Arm(f"group-{size}-amir", "amir_grpo", f"AMIR-GRPO, G = {size}", f"group-{size}", changes=changes),
    ]


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in [
        Arm("grpo", "grpo", "GRPO", None, 5, KEEP_CHECKPOINTS),
        Arm("amir_grpo", "amir_grpo", "AMIR-GRPO", "grpo", 5, KEEP_CHECKPOINTS),
        Arm("linear", "amir_grpo", "wins − losses", "amir_grpo", 5, {"pair_loss": "linear"}),
        Arm("share-0.3", "amir_grpo", "share 0.3", "grpo", 5, _SHARE | KEEP_CHECKPOINTS),
        Arm(
            "share-0.3-linear",
            "amir_grpo",
            "share 0.3, wins − losses",
            "share-0.3",
            5,
            _SHARE | {"pair_loss": "linear"},
        ),
        *_variant("grpo", "GRPO", {}),
        *_variant("dr_grpo", "Dr. GRPO", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        *_variant(
            "dapo", "DAPO's loss", {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True}
        ),
        *_variant("gspo", "GSPO", {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}),
        Arm("share-0.1", "amir_grpo", "share 0.1", changes=_SHARE | {"preference_share": 0.1}),
        Arm("share-0.6", "amir_grpo", "share 0.6", changes=_SHARE | {"preference_share": 0.6}),
        Arm("schedule-published", "amir_grpo", "published λ schedule", changes={"lambda_schedule": "published"}),
        *_group_size(4),
        *_group_size(16),
        Arm("delta-0", "amir_grpo", "share 0.3, δ = 0", against="share-0.3", changes=_SHARE | {"reward_margin": 0.0}),
        Arm(
            "delta-2",
            "amir_grpo",
            "share 0.3, δ = 2 (published)",
            against="share-0.3",
            changes=_SHARE | {"reward_margin": 2.0},
        ),
        Arm("beta-1", "amir_grpo", "share 0.3, β = 1", against="share-0.3", changes=_SHARE | {"beta_dpo": 1.0}),
        Arm("beta-10", "amir_grpo", "share 0.3, β = 10", against="share-0.3", changes=_SHARE | {"beta_dpo": 10.0}),
        Arm(
            "pairs-topk",
            "amir_grpo",
            "share 0.3, best against the rest",
            against="share-0.3",
            changes=_SHARE | {"pair_mining": "topk"},
        ),
        Arm(
            "pairs-capped",
            "amir_grpo",
            "share 0.3, 4 pairs a group",
            against="share-0.3",
            changes=_SHARE | {"max_pairs_per_group": 4},
        ),
        Arm(
            "reference",
            "amir_grpo",
            "share 0.3, with reference policy",
            against="share-0.3",
            changes=_SHARE | {"ref_free": False},
        ),
    ]
}


def with_references(names: Iterable[str]) -> list[Arm]:
    """The named arms and the arms that they are compared with, in the order of `ARMS`."""
    wanted, waiting = set(), ["grpo", *names]
    while waiting:
        arm = ARMS[waiting.pop()]
        wanted.add(arm.name)
        if arm.against:
            waiting.append(arm.against)
    return [arm for arm in ARMS.values() if arm.name in wanted]
