"""A plan of the study, read from a TOML file beside this module, and the fixed sequence of its tests.

In a fixed sequence every test has the whole level α, and the first that does not show its hypothesis ends it: later
ones are not tested. That keeps the chance of showing anything false at α without a correction. The gate comes first:
if the positive control is not shown, no absence of a difference is interpreted.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from amir_grpo.choices import SANDBOX
from amir_grpo.study.arms import BASE
from amir_grpo.study.inference import COLUMNS, Comparison, Hypothesis, verdict
from amir_grpo.system.provenance import file_at

PLAN = Path(__file__).with_name("plan.toml")
# The file with the plan of each study.
PLANS = {
    "pilot": PLAN,
    "confirmation": PLAN,
    "fresh": PLAN.with_name("plan_fresh.toml"),
    "family": PLAN.with_name("plan_family.toml"),
    "language": PLAN.with_name("plan_language.toml"),
    "language-2": PLAN.with_name("plan_language_2.toml"),
    "language-3": PLAN.with_name("plan_language_3.toml"),
}
# What a test compares: pass@1, or how much larger a gain is on hard problems than on easy ones (`claims.hard_gain`).
QUANTITIES = ("pass@1", "hard minus easy")
_FREEZE = {"frozen", "commit", "date", "path"}  # what freezing itself changes, and where the plan is


def is_pilot(study: str) -> bool:
    """Return whether a study is exploratory, and so not bound by a frozen plan."""
    return study.endswith("pilot")


class Entry(BaseModel):
    """A table of a plan's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Endpoint(Entry):
    """What every test compares, unless it names another quantity, and over which group of benchmarks."""

    quantity: str
    benchmarks: str


class Runs(Entry):
    """The number of base policies, which are numbered from `first_base` (the setting base_seed), the seed of each
    study's first run, and the runs of each arm in the pilot, 0 without one."""

    base_policies: PositiveInt
    first_base: int = 0
    first_seed: Mapping[str, int]
    pilot: int = 0


class Regime(Entry):
    """A kind of reward, and the arms that are trained with it: the number of runs in the confirmation, by name."""

    name: str
    about: str
    arms: Mapping[str, PositiveInt]


class Test(Entry):
    """One test of the sequence: arm `new` against arm `old` in a regime, the hypothesis, and the quantity compared."""

    name: str
    about: str
    regime: str
    new: str
    old: str
    hypothesis: Hypothesis
    gate: bool = False
    quantity: Literal[QUANTITIES] = QUANTITIES[0]

    __test__ = False  # not a test case of pytest

    @property
    def pair(self) -> tuple[str, str]:
        """The new and the old arm as `regime/arm`."""
        return f"{self.regime}/{self.new}", f"{self.regime}/{self.old}"


class Plan(Entry):
    """The checked contents of a plan's file. Margin and gains are in percentage points.

    Every run starts from `profile` and changes `settings`.
    """

    frozen: bool
    commit: str
    date: str
    alpha: float = Field(gt=0, lt=0.5)
    power: float = Field(gt=0, lt=1)
    margin: float = Field(gt=0)
    endpoint: Endpoint
    runs: Runs
    regimes: tuple[Regime, ...] = Field(alias="regime")
    tests: tuple[Test, ...] = Field(alias="test")
    profile: str = SANDBOX
    settings: Mapping[str, Any] = {}
    path: Path

    @property
    def planned(self) -> dict[str, int]:
        """Number of runs of the confirmation by arm, `regime/arm`."""
        return {f"{regime.name}/{arm}": runs for regime in self.regimes for arm, runs in regime.arms.items()}

    def run_grid(self, study: str, path: str) -> list[tuple[int, int]]:
        """Return (base policy, seed) of the runs of an arm; consecutive seeds take the base policies in turn.

        Args:
            study: A study of the plan.
            path: The arm, as `regime/arm`. An arm that is not in the plan has runs only in the pilot.
        """
        count = self.runs.pilot if is_pilot(study) else self.planned.get(path, 0)
        bases, base, seed = self.runs.base_policies, self.runs.first_base, self.runs.first_seed[study]
        return [(base + place % bases, seed + place) for place in range(count)]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse contradictions."""
        if {self.frozen} != {bool(self.commit), bool(self.date)}:
            raise ValueError("commit and date belong to a plan that is frozen, and to no other.")
        for what, count in {"the pilot": self.runs.pilot, **self.planned}.items():
            if count % self.runs.base_policies:
                raise ValueError(f"{what}: {count} runs do not divide over {self.runs.base_policies} base policies.")
        seeds = [{seed for path in self.planned for _, seed in self.run_grid(s, path)} for s in self.runs.first_seed]
        if sum(map(len, seeds)) > len(set().union(*seeds)):
            raise ValueError("a seed is one of the pilot and of the confirmation: they are kept apart.")
        for test in self.tests:
            new, old = test.pair  # the base policies belong to the first regime, and only a gain in pass@1 takes them
            untrained = {f"{self.regimes[0].name}/{BASE}"} if test.quantity == QUANTITIES[0] else set()
            if unknown := ({new} | ({old} - untrained)) - {*self.planned}:
                raise ValueError(f"test {test.name!r}: no arm {min(unknown)}; there are {', '.join(self.planned)}.")
        if [test.gate for test in self.tests] != [True] + [False] * (len(self.tests) - 1):
            raise ValueError("the first test of the sequence, and no other, is the gate.")
        return self


def read_plan(path: Path = PLAN) -> Plan:
    """Read the plan in a TOML file, and check it.

    Raises:
        ValueError: If an entry is missing, unknown or contradictory; names it.
    """
    return _parsed(path.read_text(encoding="utf-8"), path)


def _parsed(text: str, path: Path) -> Plan:
    try:
        return Plan(**tomllib.loads(text), path=path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_frozen(plan: Plan) -> None:
    """Check that a plan is frozen and has not changed since the commit that it names.

    If git does not know that commit, for example outside a clone, changes cannot be detected.

    Raises:
        ValueError: If it is not frozen, or has changed.
    """
    if not plan.frozen:
        raise ValueError(f"The confirmation begins when the plan is frozen: see {plan.path}.")
    text = file_at(plan.commit, plan.path)
    then = None if text is None else _parsed(text, plan.path)
    if then is not None and then.model_dump(exclude=_FREEZE) != plan.model_dump(exclude=_FREEZE):
        raise ValueError(f"{plan.path} is not what it was at commit {plan.commit[:12]}, which it names: restore it.")


def judged(plan: Plan, comparisons: Mapping[str, Comparison], in_sequence: bool = True) -> pd.DataFrame:
    """Judge the tests of the plan in order, up to and including the first that does not show its hypothesis.

    Args:
        comparisons: By name of the test, in percentage points; a test without one is not shown.
        in_sequence: False judges each test by itself, as in a pilot: nothing is confirmed, and no test ends another.

    Returns:
        One row per test: number (from 1), test, about, regime, new, old, hypothesis, `Comparison.columns` (NaN without
        runs), tested, verdict ("not tested" if its turn did not come; its comparison is then only descriptive), and
        why: the reason for a verdict that the interval does not explain.
    """
    rows, ended = [], ""
    for number, test in enumerate(plan.tests, 1):
        found = comparisons.get(test.name)
        row = {"number": number, "test": test.name, "about": test.about, "regime": test.regime}
        row |= {"new": test.new, "old": test.old, "hypothesis": str(test.hypothesis)}
        row |= found.columns(plan.margin, plan.alpha, plan.power) if found else dict.fromkeys(COLUMNS, np.nan)
        row |= {"tested": bool(found) and not ended, "verdict": "not tested"}
        row["why"] = ended or "It has no complete runs yet."
        if row["tested"]:
            said = verdict(found, plan.margin, test.hypothesis, plan.alpha)
            row |= {"verdict": str(said), "why": found.no_test}
        rows.append(row)
        if in_sequence and not ended and row["verdict"] != test.hypothesis.shown:
            which = f"the gate, test {number}," if test.gate else f"test {number}"
            ended = f"Not tested: {which} {'was not shown' if row['tested'] else 'has no complete runs'}."
    return pd.DataFrame(rows)
