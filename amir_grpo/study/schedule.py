"""Which runs a study has, and in which order: complete tests first, wherever it is stopped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amir_grpo.choices import STUDIES, check_names
from amir_grpo.runs.run import Run, open_run
from amir_grpo.settings import RunSettings, settings_of
from amir_grpo.study.plan import Plan
from amir_grpo.study.regimes import ARMS, BASE, RegimeArm

PROFILE = "sandbox"
PROBLEMS = 400  # per benchmark


@dataclass(frozen=True)
class StudyRun:
    """One run of a study as a value that travels to a worker process.

    Attributes:
        study: Which of `STUDIES` it belongs to.
        arm: What is trained.
        seed: The seed of the run, equal for all arms that are compared; the training's own is `training_seed`.
        base: Which base policy.
        folder: Holds the run folders.
        overrides: Changes to all runs, such as fewer steps for a test.
        profile: The profile that the arm changes.
    """

    study: str
    arm: RegimeArm
    seed: int
    base: int
    folder: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    profile: str = PROFILE

    @property
    def name(self) -> str:
        """`<regime>.<arm>.seed<k>`, of its folder and of the file with its results."""
        return f"{self.arm.regime}.{self.arm.name}.seed{self.seed}"

    @property
    def label(self) -> str:
        """Name of the run for people."""
        return f"{self.arm.path}, seed {self.seed}"

    @property
    def training_seed(self) -> int:
        """The seed of everything random in the run."""
        return self.seed + self.arm.seed_offset

    @property
    def settings(self) -> RunSettings:
        """All settings of the run; it keeps a checkpoint where half of the training is done."""
        changes = {"seed": self.training_seed, "base_seed": self.base, "eval_limit": PROBLEMS, **self.arm.changes}
        changes |= self.overrides
        half = -(-settings_of(self.profile, changes).train.max_steps // 2)
        return settings_of(self.profile, changes | {"save_steps": half, "save_total_limit": None})

    def open(self) -> Run:
        """The run folder, with every setting given, so that none is taken from what is there."""
        return open_run(self.profile, self.folder / self.name, self.settings.flat())


def arms_in_order(plan: Plan, study: str) -> list[list[str]]:
    """The arms of a study as `regime/arm`, in the blocks in which they are run: the base policies, what each test of the
    plan needs, then the plan's other arms. The pilot goes on with the exploratory arms, one by one."""
    blocks = [[f"{plan.regimes[0].name}/{BASE}"]]
    blocks += [[f"{test.regime}/{arm}" for arm in (test.old, test.new)] for test in plan.tests]
    blocks += [[f"{regime.name}/{arm}"] for regime in plan.regimes for arm in regime.arms]
    if study == "pilot":
        blocks += [[path] for path in ARMS]
    seen: set[str] = set()
    return [new for block in blocks if (new := [path for path in block if not (path in seen or seen.add(path))])]


def runs_in_order(
    plan: Plan,
    study: str,
    folder: Path,
    arms: Collection[str] = (),
    seeds: Collection[int] = (),
    overrides: Mapping[str, Any] | None = None,
    profile: str = PROFILE,
) -> list[StudyRun]:
    """Every run of a study, block by block of `arms_in_order` and within a block seed by seed.

    The base policies come first, each once, with the first seed that is theirs: all runs need their completions.

    Args:
        study: One of `STUDIES`.
        arms, seeds: Only these, and the base policies that they need. Empty: all.
        folder, overrides, profile: As in `StudyRun`.

    Raises:
        ValueError: If an arm or a seed is none of the study's, with all that are.
    """
    check_names("study", [study], STUDIES)
    (untrained,), *blocks = arms_in_order(plan, study)
    check_names("arm", arms, [untrained, *(path for block in blocks for path in block)])
    grids = {path: plan.run_grid(study, path) for block in blocks for path in block}
    longest = max(grids.values(), key=len)
    check_names("seed", map(str, seeds), [str(seed) for _, seed in longest])
    chosen = [(base, seed) for base, seed in longest if not seeds or seed in seeds]
    bases = {base for base, _ in chosen}
    runs = [(untrained, base, seed) for base, seed in longest[: plan.base_policies] if base in bases]
    for block in blocks:
        wanted = [path for path in block if not arms or path in arms]
        runs += [(path, *place) for place in chosen for path in wanted if place in grids[path]]
    return [StudyRun(study, ARMS[path], seed, base, folder, overrides or {}, profile) for path, base, seed in runs]


def single_run(
    plan: Plan,
    study: str,
    folder: Path,
    name: str,
    overrides: Mapping[str, Any] | None = None,
    profile: str = PROFILE,
) -> StudyRun:
    """One run of a study by its name, `regime/arm/seed`; the other arguments as in `runs_in_order`.

    Raises:
        ValueError: If the study has no such run.
    """
    path, _, seed = name.rpartition("/")
    if not seed.isdecimal():
        raise ValueError(f"{name!r} does not name a run: give regime/arm/seed, as in clean/grpo/0.")
    for run in runs_in_order(plan, study, folder, [path], [int(seed)], overrides, profile):
        if (run.arm.path, run.seed) == (path, int(seed)):
            return run
    raise ValueError(f"The {study} has no run {name}; its base policies' are those of its first seeds.")
