"""A plan of the study, read from a TOML file beside this module, and the fixed sequence of its tests.

In a fixed sequence every test has the whole level α, and the first that does not show its hypothesis ends it: those after
it are not tested. That keeps the chance that anything false is shown at α without a correction. The gate comes first: where
the positive control is not shown, no absence of a difference is interpreted.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amir_grpo.choices import SANDBOX
from amir_grpo.study.inference import COLUMNS, Comparison, Hypothesis, Verdict, verdict
from amir_grpo.system.provenance import file_at

PLAN = Path(__file__).with_name("plan.toml")
# Of each study, the file with its plan.
PLANS = {
    "pilot": PLAN,
    "confirmation": PLAN,
    "fresh": PLAN.with_name("plan_fresh.toml"),
    "family": PLAN.with_name("plan_family.toml"),
    "language": PLAN.with_name("plan_language.toml"),
}
# What a test compares: pass@1, or how much more of a gain is on hard problems than on easy ones (`claims.hard_gain`).
QUANTITIES = ("pass@1", "hard minus easy")
# What freezing itself changes.
_FREEZE: dict[str, Any] = {"frozen": True, "commit": "", "date": ""}
_ENTRIES = {"frozen", "commit", "date", "alpha", "power", "margin", "endpoint", "runs", "regime", "test"}
_ENTRIES |= {"profile", "settings"}


def is_pilot(study: str) -> bool:
    """Tell whether a study is exploratory, and so bound by no frozen plan."""
    return study.endswith("pilot")


@dataclass(frozen=True)
class Regime:
    """A kind of reward, and the arms that are trained with it: how many runs of each the confirmation has, by name."""

    name: str
    about: str
    arms: Mapping[str, int]


@dataclass(frozen=True)
class Test:
    """One comparison of the sequence: arm `new` against arm `old` in a regime, what is to be shown, and of which quantity
    (one of `QUANTITIES`)."""

    name: str
    about: str
    regime: str
    new: str
    old: str
    hypothesis: Hypothesis
    gate: bool = False
    quantity: str = "pass@1"

    __test__ = False  # no test case of pytest

    @property
    def pair(self) -> tuple[str, str]:
        """The new and the old arm as `regime/arm`."""
        return f"{self.regime}/{self.new}", f"{self.regime}/{self.old}"


@dataclass(frozen=True)
class Plan:
    """The contents of a plan's file, checked. Margin and gains are in percentage points.

    Attributes:
        base_policies, first_base: They are numbered from `first_base` (the setting base_seed).
        first_seeds: By the name of each study that the plan has, the seed of its first run.
        pilot_runs: Runs of each arm in the pilot; 0 without one.
        profile, settings: What every run starts from, and the settings that all of them change.
    """

    frozen: bool
    commit: str
    date: str
    alpha: float
    power: float
    margin: float
    quantity: str
    benchmarks: str
    base_policies: int
    first_seeds: Mapping[str, int]
    pilot_runs: int
    regimes: tuple[Regime, ...]
    tests: tuple[Test, ...]
    first_base: int = 0
    profile: str = SANDBOX
    settings: Mapping[str, Any] = field(default_factory=dict)
    path: Path = field(default=PLAN, compare=False)

    @property
    def planned(self) -> dict[str, int]:
        """Runs of the confirmation by arm, as `regime/arm`."""
        return {f"{regime.name}/{arm}": runs for regime in self.regimes for arm, runs in regime.arms.items()}

    def run_grid(self, study: str, path: str) -> list[tuple[int, int]]:
        """Return the (base policy, seed) of the runs of an arm: seeds go round the base policies.

        Args:
            study: One of those that the plan has.
            path: The arm, as `regime/arm`. One that the plan does not have is in the pilot alone.
        """
        runs = self.pilot_runs if is_pilot(study) else self.planned.get(path, 0)
        first_base, first_seed = self.first_base, self.first_seeds[study]
        return [(first_base + place % self.base_policies, first_seed + place) for place in range(runs)]


@dataclass(frozen=True)
class Outcome:
    """A test of the sequence after the data: the comparison (None without data), whether its turn came, the verdict.

    `why` is the reason, in a sentence, for an undecided verdict that the interval does not explain; empty otherwise.
    """

    test: Test
    comparison: Comparison | None
    tested: bool
    verdict: Verdict
    why: str

    @property
    def shown(self) -> bool:
        """Tell whether the data show the hypothesis of the test."""
        return self.tested and self.verdict is self.test.hypothesis.shown

    @property
    def said(self) -> str:
        """The verdict as it stands in every table and figure: "not tested" where the turn of the test did not come."""
        return str(self.verdict) if self.tested else "not tested"


def read_plan(path: Path = PLAN) -> Plan:
    """Read the plan in a TOML file, and check it.

    Raises:
        ValueError: If something is missing, unknown or contradicts itself, with the entry's name.
    """
    try:
        plan = replace(_plan(tomllib.loads(path.read_text(encoding="utf-8"))), path=path)
        if problem := next(_contradictions(plan), None):
            raise ValueError(problem)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from None
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]!r} is missing.") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return plan


def _plan(found: Mapping[str, Any]) -> Plan:
    if unknown := set(found) - _ENTRIES:
        raise ValueError(f"unknown entry {', '.join(sorted(unknown))}.")
    endpoint, runs = found["endpoint"], found["runs"]
    return Plan(
        **{name: found[name] for name in ("frozen", "commit", "date", "alpha", "power", "margin")},
        quantity=endpoint["quantity"],
        benchmarks=endpoint["benchmarks"],
        base_policies=runs["base_policies"],
        first_base=runs.get("first_base", 0),
        first_seeds=runs["first_seed"],
        pilot_runs=runs.get("pilot", 0),
        **{name: found[name] for name in ("profile", "settings") if name in found},
        regimes=tuple(Regime(**entry) for entry in found["regime"]),
        tests=tuple(Test(**{**entry, "hypothesis": Hypothesis(entry["hypothesis"])}) for entry in found["test"]),
    )


def _contradictions(plan: Plan) -> Iterator[str]:
    """Yield what contradicts itself, each in a sentence."""
    if not (0 < plan.alpha < 0.5 and 0 < plan.power < 1 and plan.margin > 0):
        yield (
            f"alpha {plan.alpha}, power {plan.power}, margin {plan.margin}: "
            "alpha lies between 0 and 0.5, power between 0 and 1, the margin above 0."
        )
    if not plan.frozen and (plan.commit or plan.date):
        yield "commit and date are given, but frozen is false: give them when the plan is frozen."
    if plan.frozen and not re.fullmatch(r"[0-9a-f]{40}", plan.commit):
        yield f"frozen at commit {plan.commit!r}: give the 40 hexadecimal digits of its hash."
    if plan.frozen and not _is_date(plan.date):
        yield f"frozen on date {plan.date!r}: give it as YYYY-MM-DD."
    pilots, confirming = (
        [study for study in plan.first_seeds if is_pilot(study) is exploratory] for exploratory in (True, False)
    )
    for what, count in {**{f"the {study}": plan.pilot_runs for study in pilots}, **plan.planned}.items():
        if plan.base_policies < 1 or count < 1 or count % plan.base_policies:
            yield f"{what}: {count} runs do not divide over {plan.base_policies} base policies."
    tried = {seed for study in pilots for _, seed in plan.run_grid(study, "")}
    if both := tried & {
        seed for study in confirming for path in plan.planned for _, seed in plan.run_grid(study, path)
    }:
        yield f"seed {min(both)} is one of the pilot and of the confirmation: they are kept apart."
    for what, names in (("regime", [r.name for r in plan.regimes]), ("test", [t.name for t in plan.tests])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"{what} {twice[0]!r} is there twice."
    arms = {regime.name: regime.arms for regime in plan.regimes}
    for test in plan.tests:
        if test.quantity not in QUANTITIES:
            yield f"test {test.name!r}: quantity {test.quantity!r} is none of {', '.join(QUANTITIES)}."
        if test.regime not in arms:
            yield f"test {test.name!r}: no regime {test.regime!r}; there are {', '.join(arms)}."
        elif unknown := {test.new, test.old} - set(arms[test.regime]):
            of_regime = f"regime {test.regime!r}, which has {', '.join(arms[test.regime])}"
            yield f"test {test.name!r}: no arm {min(unknown)!r} in {of_regime}."
    if [test.gate for test in plan.tests] != [True] + [False] * (len(plan.tests) - 1):
        yield "the first test of the sequence, and no other, is the gate."


def _is_date(text: str) -> bool:
    try:
        return bool(date.fromisoformat(text))
    except ValueError:
        return False


def check_frozen(plan: Plan) -> None:
    """Check that a plan is frozen and is as it was at the commit that it names.

    Where git does not know that commit, as outside a clone, the latter cannot be told and is not checked.

    Raises:
        ValueError: If it is not frozen, or was changed since.
    """
    if not plan.frozen:
        raise ValueError(f"The confirmation begins when the plan is frozen: see {plan.path}.")
    then = file_at(plan.commit, plan.path)
    if then is not None and replace(_plan(tomllib.loads(then)), **_FREEZE) != replace(plan, **_FREEZE):
        raise ValueError(f"{plan.path} is not what it was at commit {plan.commit[:12]}, which it names: restore it.")


def run_sequence(plan: Plan, comparisons: Mapping[str, Comparison]) -> list[Outcome]:
    """Judge the tests of the plan in order, up to and including the first that does not show its hypothesis.

    Args:
        comparisons: By name of the test, in percentage points; a test without one is not shown.

    Returns:
        One outcome a test. Those whose turn did not come are undecided and keep their comparison, which then describes
        and decides nothing.

    Raises:
        ValueError: If a comparison belongs to no test of the plan.
    """
    names = [test.name for test in plan.tests]
    if unknown := sorted(set(comparisons) - set(names)):
        raise ValueError(f"No test {unknown[0]!r} in the plan, which has {', '.join(names)}.")
    outcomes, ended = [], ""
    for number, test in enumerate(plan.tests, 1):
        if ended:
            outcomes.append(Outcome(test, comparisons.get(test.name), False, Verdict.UNDECIDED, ended))
            continue
        outcomes.append(_judge(plan, test, comparisons.get(test.name)))
        if not outcomes[-1].shown:
            which = f"the gate, test {number}," if test.gate else f"test {number}"
            ended = f"Not tested: {which} {'was not shown' if outcomes[-1].tested else 'has no complete runs'}."
    return outcomes


def judge_alone(plan: Plan, comparisons: Mapping[str, Comparison]) -> list[Outcome]:
    """Judge each test by itself, as an exploratory study is read: nothing is confirmed, and no test ends another.

    Arguments as in `run_sequence`.
    """
    return [_judge(plan, test, comparisons.get(test.name)) for test in plan.tests]


def _judge(plan: Plan, test: Test, comparison: Comparison | None) -> Outcome:
    if comparison is None:
        return Outcome(test, None, False, Verdict.UNDECIDED, "It has no complete runs yet.")
    found = verdict(comparison, plan.margin, test.hypothesis, plan.alpha)
    return Outcome(test, comparison, True, found, comparison.no_test)


def sequence_table(plan: Plan, outcomes: list[Outcome]) -> pd.DataFrame:
    """One row per test, in order: number (from 1), test, about, regime, new, old, hypothesis, `Comparison.columns` (NaN
    without runs), tested, verdict ("not tested" where its turn did not come), why."""
    rows = []
    for number, outcome in enumerate(outcomes, 1):
        test, found = outcome.test, outcome.comparison
        row = {"number": number, "test": test.name, "about": test.about, "regime": test.regime}
        row |= {"new": test.new, "old": test.old, "hypothesis": str(test.hypothesis)}
        row |= found.columns(plan.margin, plan.alpha, plan.power) if found else dict.fromkeys(COLUMNS, np.nan)
        rows.append(row | {"tested": outcome.tested, "verdict": outcome.said, "why": outcome.why})
    return pd.DataFrame(rows)
