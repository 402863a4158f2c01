"""The paper's five claims with their tests and verdicts, computed from the results of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from amir_grpo.study.claims import boundary, coverage, length_bias, supervision, variants
from amir_grpo.study.gains import gain
from amir_grpo.study.inference import COLUMNS, Comparison, verdict
from amir_grpo.study.plan import Plan
from amir_grpo.study.results import Studies, about

CLAIMS = (
    "Richer supervision",
    "Sharper decision boundary",
    "Less length bias",
    "Broader coverage",
    "Gains for every variant",
)
# How strong the preference term is -> the arm.
STRENGTHS = {"as published": "clean/published", "60 % of the update": "clean/mixture-0.6"}
_GRPO = "clean/grpo"
SAMPLES = 8  # of a problem, all of which coverage takes
# How many tests there are, those without runs included, so that a verdict does not change when others get theirs.
DECLARED = len(STRENGTHS) * (3 + len(boundary.TESTED)) + sum(map(len, variants.PAIRS.values()))

_COLUMNS = ["claim", "test", "strength", "study", "unit", *COLUMNS, "verdict"]


@dataclass(frozen=True)
class ClaimTest:
    """One test of a claim: what is compared, how strong the term is, in which study, its comparison and the smallest
    difference of interest."""

    claim: str
    test: str
    strength: str
    study: str
    unit: str
    comparison: Comparison
    margin: float


def claim_tests(studies: Studies, plan: Plan) -> Iterator[ClaimTest]:
    """The tests of the claims for which there are runs, claim by claim; above 0 is what the claim says."""
    has = {
        strength: (arm, study)
        for strength, arm in STRENGTHS.items()
        if (study := studies.first(arm, _GRPO)) is not None
    }
    for strength, (arm, study) in has.items():
        test = f"part of the update that the advantages do not have, beyond {supervision.RICHER:g} %"
        found = supervision.residual_beyond(study, arm)
        yield ClaimTest(CLAIMS[0], test, strength, study.name, "points", found, supervision.MARGIN)
    for strength, (arm, study) in has.items():
        for quantity in boundary.TESTED:
            found, _, smallest = boundary.boundary_gain(study, arm, _GRPO, quantity)
            test, unit = f"{quantity}, on the base policy's completions", boundary.QUANTITIES[quantity][3]
            yield ClaimTest(CLAIMS[1], test, strength, study.name, unit, found, smallest)
    for strength, (arm, study) in has.items():
        test, found = "tokens by which wrong completions are shorter", length_bias.wrong_length_gain(study, arm, _GRPO)
        yield ClaimTest(CLAIMS[2], test, strength, study.name, "tokens", found, length_bias.MARGIN)
    for strength, arm in STRENGTHS.items():
        if (study := coverage.study_of_coverage(studies, arm)) is not None:
            test = f"problems solved with {SAMPLES} samples that another GRPO does not solve, beyond GRPO's"
            found = coverage.coverage_gain(study, arm, SAMPLES)
            yield ClaimTest(CLAIMS[3], test, strength, study.name, "points", found, plan.margin)
    for strength, pairs in zip(STRENGTHS, variants.PAIRS.values(), strict=True):
        for new, old in pairs:
            if (study := studies.first(new, old)) is not None:
                test = f"pass@1 of {about(old)}, with the term − without"
                yield ClaimTest(CLAIMS[4], test, strength, study.name, "points", gain(study, new, old), plan.margin)


def claims_table(studies: Studies, plan: Plan) -> pd.DataFrame:
    """Every test of the claims with its verdict.

    One correction for all: verdicts are at the plan's α divided by `DECLARED`.

    Returns:
        Columns claim, test, strength, study, unit, those of `inference.Comparison.columns` (intervals at the plan's α,
        detectable at that of the verdicts), and verdict.
    """
    tests = list(claim_tests(studies, plan))
    rows = []
    for test in tests:
        row = {"claim": test.claim, "test": test.test, "strength": test.strength, "study": test.study}
        row["unit"] = test.unit
        row |= test.comparison.columns(test.margin, plan.alpha, plan.power)
        alpha = plan.alpha / DECLARED
        row["detectable"] = test.comparison.detectable(alpha, plan.power)
        decided = verdict(test.comparison, test.margin, alpha=alpha)
        rows.append(row | {"verdict": str(decided)})
    return pd.DataFrame(rows, columns=_COLUMNS)


def claim_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """One row per claim, as people read it: claim, and for each of `STRENGTHS` the verdicts of its tests.

    Where some claims are tested in the confirmation, those that only the pilot tests say so.
    """
    both = len(set(table["study"])) > 1
    rows = []
    for claim in CLAIMS:
        cells = []
        for strength in STRENGTHS:
            part = table[(table["claim"] == claim) & (table["strength"] == strength)]
            verdicts = Counter(part["verdict"])
            said = ", ".join(_counted(name, verdicts, len(part)) for name in verdicts) or "no runs yet"
            cells.append(f"{said} (pilot)" if both and set(part["study"]) == {"pilot"} else said)
        rows.append((claim, *cells))
    return rows


def _counted(name: str, verdicts: Counter, tests: int) -> str:
    return name if len(verdicts) == 1 else f"{name} in {verdicts[name]} of {tests}"
