"""The runs behind the claims: every arm of every comparison, over several training seeds, in parallel and resumable.

An arm is one method under some settings; its runs differ in the training seed alone. A run is an ordinary run folder,
`<folder>/<arm>.seed<k>`, so that what is complete is not repeated and everything that works on a run works on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from amir_grpo.experiment import Run, open_run

PROFILE = "sandbox"

# Two optimizer steps a rollout, so that importance ratios leave 1: with one, every clipping rule and GSPO are GRPO.
_TWO_STEPS = {
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "max_steps": 200,
}
# Where the preference is to matter: 30 % of the update, a hundred times what the published λ makes of it.
_SHARE = {"lambda_schedule": "share", "preference_share": 0.3}
# Checkpoints show how a policy got to where it is; they change nothing about it.
_KEEP_CHECKPOINTS = {"save_steps": 25, "save_total_limit": None}


@dataclass(frozen=True)
class Arm:
    """One method under some settings.

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
        Arm("grpo", "grpo", "GRPO", None, 5, _KEEP_CHECKPOINTS),
        Arm("amir_grpo", "amir_grpo", "AMIR-GRPO, published λ and β", "grpo", 5, _KEEP_CHECKPOINTS),
        Arm("linear", "amir_grpo", "wins − losses, published λ and β", "amir_grpo", 5, {"pair_loss": "linear"}),
        Arm("share-0.3", "amir_grpo", "share 0.3", changes=_SHARE | _KEEP_CHECKPOINTS),
        Arm("share-0.3-linear", "amir_grpo", "share 0.3, wins − losses", changes=_SHARE | {"pair_loss": "linear"}),
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
        Arm("delta-0", "amir_grpo", "share 0.3, δ = 0", changes=_SHARE | {"reward_margin": 0.0}),
        Arm("delta-2", "amir_grpo", "share 0.3, δ = 2 (published)", changes=_SHARE | {"reward_margin": 2.0}),
        Arm("beta-1", "amir_grpo", "share 0.3, β = 1", changes=_SHARE | {"beta_dpo": 1.0}),
        Arm("beta-10", "amir_grpo", "share 0.3, β = 10", changes=_SHARE | {"beta_dpo": 10.0}),
        Arm("pairs-topk", "amir_grpo", "share 0.3, best against the rest", changes=_SHARE | {"pair_mining": "topk"}),
        Arm("pairs-capped", "amir_grpo", "share 0.3, 4 pairs a group", changes=_SHARE | {"max_pairs_per_group": 4}),
        Arm("reference", "amir_grpo", "share 0.3, with reference policy", changes=_SHARE | {"ref_free": False}),
    ]
}


def runs(arms: Iterable[Arm] = tuple(ARMS.values())) -> list[tuple[Arm, int]]:
    """Every run of the arms, as (arm, seed): the arms with the most seeds first, then seed by seed, so that a part of
    them already holds every comparison."""
    pairs = [(arm, seed) for arm in arms for seed in range(arm.seeds)]
    return sorted(pairs, key=lambda pair: 0 if pair[0].seeds > 3 else 1 + pair[1])


def open_arm(folder: Path, arm: Arm, seed: int, overrides: dict[str, Any] | None = None) -> Run:
    """The run folder of one arm and seed.

    Args:
        folder: Holds the run folders of all arms, and the base policy that they share.
        overrides: Changes to all arms, such as fewer steps for a test.
    """
    return open_run(PROFILE, folder / f"{arm.name}.seed{seed}", arm.changes | {"seed": seed} | (overrides or {}))


def _train(folder: Path, arm: Arm, seed: int, overrides: dict[str, Any]) -> str:
    open_arm(folder, arm, seed, overrides).train(arm.method)
    return f"{arm.name}, seed {seed}"


@contextmanager
def _workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """Processes without progress bars: the bar of the whole is this one's."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported
    try:
        with ProcessPoolExecutor(number or os.cpu_count(), get_context("spawn")) as pool:
            yield pool
    finally:
        os.environ.pop("TQDM_DISABLE")
        if before is not None:
            os.environ["TQDM_DISABLE"] = before


def train(
    folder: Path, arms: Iterable[Arm] = tuple(ARMS.values()), overrides: dict[str, Any] | None = None, workers: int = 0
) -> None:
    """Train every run of the arms that is not complete, side by side, with a progress bar.

    Args:
        folder: As in `open_arm`.
        overrides: As in `open_arm`.
        workers: Processes; 0 is one a core.
    """
    overrides = overrides or {}
    todo = [(a, s) for a, s in runs(arms) if not open_arm(folder, a, s, overrides).is_trained(a.method)]
    if not todo:
        return
    open_arm(folder, *todo[0], overrides).base()  # made once, before the workers would each make it
    with (
        _workers(workers) as pool,
        tqdm(total=len(todo), desc="training", unit="run", smoothing=0) as progress,
    ):
        waiting = [pool.submit(_train, folder, arm, seed, overrides) for arm, seed in todo]
        for done in as_completed(waiting):
            progress.set_postfix_str(done.result(), refresh=False)
            progress.update()
