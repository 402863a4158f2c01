"""The plan of the study, read from `plan.toml`, and the fixed sequence of its tests.

In a fixed sequence every test has the whole level α, and the first that does not show its hypothesis ends it: those after
it are not tested. That keeps the chance that anything false is shown at α without a correction; what the test that ends
the sequence says instead, such as "refuted", describes. The gate comes first: where the positive control is not shown, no
absence of a difference is interpreted.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amir_grpo.study.inference import COLUMNS, Comparison, Hypothesis, Verdict, shown_by, verdict
from amir_grpo.system.provenance import file_at

PLAN = Path(__file__).with_name("plan.toml")
# What freezing itself changes.
_FREEZE: dict[str, Any] = {"frozen": True, "commit": "", "date": ""}


@dataclass(frozen=True)
class Regime:
    """A kind of reward, and the arms that are trained with it: how often each is in the confirmation, by its name."""

    name: str
    about: str
    arms: Mapping[str, int]


@dataclass(frozen=True)
class Test:
    """One comparison of the sequence: arm `new` against arm `old` in a regime, and what is to be shown."""

    name: str
    about: str
    regime: str
    new: str
    old: str
    hypothesis: Hypothesis
    gate: bool = False

    __test__ = False  # no test case of pytest


@dataclass(frozen=True)
class Plan:
    """What `plan.toml` says, checked. Margin and gains are in percentage points."""

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

    def run_grid(self, study: str, path: str) -> list[tuple[int, int]]:
        """The (base policy, seed) of the runs of an arm: seeds go round the base policies.

        Args:
            study: pilot or confirmation.
            path: The arm, as `regime/arm`. One that the plan does not have is in the pilot alone.
        """
        planned = {f"{regime.name}/{arm}": runs for regime in self.regimes for arm, runs in regime.arms.items()}
        runs = planned.get(path, 0) if study == "confirmation" else self.pilot_runs
        return [(place % self.base_policies, self.first_seeds[study] + place) for place in range(runs)]


@dataclass(frozen=True)
class Outcome:
    """A test of the sequence after the data: the comparison (None without data), whether its turn came, what it says.

    `why` tells in a sentence what an undecided verdict is due to where that is not the interval; empty otherwise.
    """

    test: Test
    comparison: Comparison | None
    tested: bool
    verdict: Verdict
    why: str

    @property
    def shown(self) -> bool:
        """Whether the data show what the test says."""
        return self.tested and self.verdict is shown_by(self.test.hypothesis)


def read_plan(path: Path = PLAN) -> Plan:
    """The plan in a TOML file, checked.

    Raises:
        ValueError: If something is missing, unknown or contradicts itself, with the entry's name.
    """
    with path.open("rb") as file:
        try:
            found = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not valid TOML: {error}.") from None
    try:
        plan = _plan(found)
        _check(plan)
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]!r} is missing.") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return plan


def _plan(found: Mapping[str, Any]) -> Plan:
    known = {"frozen", "commit", "date", "alpha", "power", "margin", "endpoint", "runs", "regime", "test"}
    if unknown := set(found) - known:
        raise ValueError(f"unknown entry {', '.join(sorted(unknown))}.")
    endpoint, runs = found["endpoint"], found["runs"]
    return Plan(
        **{name: found[name] for name in ("frozen", "commit", "date", "alpha", "power", "margin")},
        quantity=endpoint["quantity"],
        benchmarks=endpoint["benchmarks"],
        base_policies=runs["base_policies"],
        first_seeds={study: runs["first_seed"][study] for study in ("pilot", "confirmation")},
        pilot_runs=runs["pilot"],
        regimes=tuple(Regime(**entry) for entry in found["regime"]),
        tests=tuple(Test(**{**entry, "hypothesis": Hypothesis(entry["hypothesis"])}) for entry in found["test"]),
    )


def _check(plan: Plan) -> None:
    """Raise ValueError at the first contradiction."""
    if not (0 < plan.alpha < 0.5 and 0 < plan.power < 1 and plan.margin > 0):
        raise ValueError(
            f"alpha {plan.alpha}, power {plan.power}, margin {plan.margin}: "
            "alpha lies between 0 and 0.5, power between 0 and 1, the margin above 0."
        )
    _check_freeze(plan)
    _check_runs(plan)
    for what, names in (("regime", [r.name for r in plan.regimes]), ("test", [t.name for t in plan.tests])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{what} {twice[0]!r} is there twice.")
    arms = {regime.name: regime.arms for regime in plan.regimes}
    for test in plan.tests:
        if test.regime not in arms:
            raise ValueError(f"test {test.name!r}: no regime {test.regime!r}; there are {', '.join(arms)}.")
        for arm in (test.new, test.old):
            if arm not in arms[test.regime]:
                raise ValueError(
                    f"test {test.name!r}: no arm {arm!r} in regime {test.regime!r}, "
                    f"which has {', '.join(arms[test.regime])}."
                )
    if [test.gate for test in plan.tests] != [True] + [False] * (len(plan.tests) - 1):
        raise ValueError("the first test of the sequence, and no other, is the gate.")


def _check_runs(plan: Plan) -> None:
    counts = {f"{regime.name}/{arm}": runs for regime in plan.regimes for arm, runs in regime.arms.items()}
    for what, count in {"the pilot": plan.pilot_runs, **counts}.items():
        if plan.base_policies < 1 or count < 1 or count % plan.base_policies:
            raise ValueError(f"{what}: {count} runs do not divide over {plan.base_policies} base policies.")
    grids = [plan.run_grid("pilot", ""), *(plan.run_grid("confirmation", path) for path in counts)]
    pilot, *confirmation = ({seed for _, seed in grid} for grid in grids)
    if both := pilot & set().union(*confirmation):
        raise ValueError(f"seed {min(both)} is one of the pilot and of the confirmation: they are kept apart.")


def _check_freeze(plan: Plan) -> None:
    if not plan.frozen:
        if plan.commit or plan.date:
            raise ValueError("commit and date are given, but frozen is false: give them when the plan is frozen.")
        return
    if not re.fullmatch(r"[0-9a-f]{40}", plan.commit):
        raise ValueError(f"frozen at commit {plan.commit!r}: give the 40 hexadecimal digits of its hash.")
    try:
        date.fromisoformat(plan.date)
    except ValueError:
        raise ValueError(f"frozen on date {plan.date!r}: give it as YYYY-MM-DD.") from None


def check_frozen(plan: Plan, path: Path = PLAN) -> None:
    """Check that the plan, read from `path`, is frozen and says what it said at the commit that it names.

    Where git does not know that commit, as outside a clone, the latter cannot be told and is not checked.

    Raises:
        ValueError: If it is not frozen, or was changed since.
    """
    if not plan.frozen:
        raise ValueError(f"The confirmation begins when the plan is frozen: see {path}.")
    then = file_at(plan.commit, path)
    if then is not None and replace(_plan(tomllib.loads(then)), **_FREEZE) != replace(plan, **_FREEZE):
        raise ValueError(f"{path} is not what it was at commit {plan.commit[:12]}, which it names: restore it.")


def run_sequence(plan: Plan, comparisons: Mapping[str, Comparison]) -> list[Outcome]:
    """The tests of the plan in their order, up to and with the first that does not show what it says.

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
        comparison = comparisons.get(test.name)
        if ended:
            outcomes.append(Outcome(test, comparison, False, Verdict.UNDECIDED, ended))
            continue
        outcomes.append(_judge(plan, test, comparison))
        if not outcomes[-1].shown:
            gate = "the gate, " if test.gate else ""
            failed = "was not shown" if outcomes[-1].tested else "has no complete runs"
            ended = f"Not tested: {gate}test {number}{',' if gate else ''} {failed}."
    return outcomes


def judge_alone(plan: Plan, comparisons: Mapping[str, Comparison]) -> list[Outcome]:
    """Each test of the plan by itself, as an exploratory study is read: nothing is confirmed, and no test ends another.

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
        test = outcome.test
        row: dict[str, Any] = {
            "number": number,
            "test": test.name,
            "about": test.about,
            "regime": test.regime,
            "new": test.new,
        }
        row |= {"old": test.old, "hypothesis": str(test.hypothesis)}
        found = outcome.comparison
        row |= found.columns(plan.margin, plan.alpha, plan.power) if found else dict.fromkeys(COLUMNS, np.nan)
        said = str(outcome.verdict) if outcome.tested else "not tested"
        rows.append(row | {"tested": outcome.tested, "verdict": said, "why": outcome.why})
    return pd.DataFrame(rows)
