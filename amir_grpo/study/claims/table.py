"""The paper's five claims with their tests and verdicts, computed from the results of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from amir_grpo.study.claims import boundary, coverage, length_bias, supervision, variants
from amir_grpo.study.gains import gain
from amir_grpo.study.inference import Comparison, verdict
from amir_grpo.study.plan import Plan
from amir_grpo.study.results import StudyResults, about

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
_K = 8  # of coverage: all samples of a problem


@dataclass(frozen=True)
class ClaimTest:
    """One test of a claim: what is compared, how strong the term is, its comparison and smallest difference of interest."""

    claim: str
    test: str
    strength: str
    unit: str
    comparison: Comparison
    margin: float


def claim_tests(study: StudyResults, plan: Plan) -> Iterator[ClaimTest]:
    """The tests of the claims for which there are runs, claim by claim; above 0 is what the claim says."""
    has = {strength: arm for strength, arm in STRENGTHS.items() if study.has(arm, _GRPO)}
    for strength, arm in has.items():
        test = f"part of the update that the advantages do not have, beyond {supervision.RICHER:g} %"
        found = supervision.residual_beyond(study, arm)
        yield ClaimTest(CLAIMS[0], test, strength, "points", found, supervision.MARGIN)
    for strength, arm in has.items():
        for quantity in ("margin at equal entropy", "pair accuracy at equal entropy"):
            found, _, smallest = boundary.boundary_gain(study, arm, _GRPO, quantity)
            test = f"{quantity}, on the base policy's completions"
            yield ClaimTest(CLAIMS[1], test, strength, boundary.QUANTITIES[quantity][3], found, smallest)
    for strength, arm in has.items():
        test = "tokens by which wrong completions are shorter"
        yield ClaimTest(
            CLAIMS[2], test, strength, "tokens", length_bias.wrong_length_gain(study, arm, _GRPO), length_bias.MARGIN
        )
    for strength, arm in has.items():
        if set(coverage.others(study, k=_K)) & set(study.solved(arm)):
            test = f"problems solved with {_K} samples that another GRPO does not solve, beyond GRPO's"
            yield ClaimTest(CLAIMS[3], test, strength, "points", coverage.coverage_gain(study, arm, _K), plan.margin)
    for strength, pairs in zip(STRENGTHS, variants.PAIRS.values(), strict=True):
        for new, old in pairs:
            if study.has(new, old):
                test = f"pass@1 of {about(old)}, with the term − without"
                yield ClaimTest(CLAIMS[4], test, strength, "points", gain(study, new, old), plan.margin)


def claims_table(study: StudyResults, plan: Plan) -> pd.DataFrame:
    """Every test of the claims with its verdict.

    One correction for all that is shown together: verdicts are at the plan's α divided by the number of rows.

    Returns:
        Columns claim, test, strength, unit, those of `inference.Comparison.columns` (intervals at the plan's α), and
        verdict.
    """
    tests = list(claim_tests(study, plan))
    rows = []
    for test in tests:
        row = {"claim": test.claim, "test": test.test, "strength": test.strength, "unit": test.unit}
        row |= test.comparison.columns(test.margin, plan.alpha, plan.power)
        decided = verdict(test.comparison, test.margin, alpha=plan.alpha / len(tests))
        rows.append(row | {"verdict": str(decided)})
    return pd.DataFrame(rows)


def claim_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """One row per claim, as people read it: claim, and for each of `STRENGTHS` the verdicts of its tests."""
    rows = []
    for claim in CLAIMS:
        cells = []
        for strength in STRENGTHS:
            part = table[(table["claim"] == claim) & (table["strength"] == strength)] if len(table) else table
            verdicts = Counter(part["verdict"]) if len(part) else {}
            cells.append(", ".join(_counted(name, verdicts, len(part)) for name in verdicts) or "no runs yet")
        rows.append((claim, *cells))
    return rows


def _counted(name: str, verdicts: Counter, tests: int) -> str:
    return name if len(verdicts) == 1 else f"{name} in {verdicts[name]} of {tests}"
