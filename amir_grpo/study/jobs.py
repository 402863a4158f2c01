"""One run of the study as a value that travels to a worker process; its results are in an ordinary run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amir_grpo.runs.run import Run, open_run
from amir_grpo.settings import settings_of
from amir_grpo.study.arms import ARMS, PROFILE, Arm


@dataclass(frozen=True)
class Job:
    """One run of the study: an arm with one training seed.

    Attributes:
        folder: Holds the run folders of all arms, and the base policy that they share.
        arm: What is trained.
        seed: The training seed.
        overrides: Changes to all arms, such as fewer steps for a test.
        profile: The profile that the arm changes; arms that set a batch size suit "sandbox" alone.
    """

    folder: Path
    arm: Arm
    seed: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    profile: str = PROFILE

    @property
    def label(self) -> str:
        """Name of the job for people."""
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def policies(self) -> list[str]:
        """Whose completions the run holds: its own policy's; the runs of GRPO also hold the base policy's."""
        return ["base", self.arm.method] if self.arm.name == "grpo" else [self.arm.method]

    def open(self) -> Run:
        """The run folder, `<folder>/<arm>.seed<k>`."""
        changes = {**self.arm.changes, "seed": self.seed, **self.overrides}
        settings = settings_of(self.profile, changes)  # all of them, so that none is taken from what is there
        return open_run(self.profile, self.folder / f"{self.arm.name}.seed{self.seed}", asdict(settings))


def jobs_of(
    folder: Path,
    arms: Iterable[Arm] = tuple(ARMS.values()),
    overrides: Mapping[str, Any] | None = None,
    profile: str = PROFILE,
) -> list[Job]:
    """Every run of the arms: the arms with the most seeds first, then seed by seed, so that an interrupted study already
    holds every comparison. Arguments as of `Job`."""
    jobs = [Job(folder, arm, seed, overrides or {}, profile) for arm in arms for seed in range(arm.seeds)]
    return sorted(jobs, key=lambda job: 0 if job.arm.seeds > 3 else 1 + job.seed)
