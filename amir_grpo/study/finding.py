"""What may be said of the study in one sentence and in five rows: text that the README must hold as it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from amir_grpo.results.formatting import rounded, signed
from amir_grpo.study.claims.table import CLAIMS, STRENGTHS, claim_rows, claims_table
from amir_grpo.study.gains import outcomes
from amir_grpo.study.inference import Hypothesis, Verdict
from amir_grpo.study.plan import Outcome, Plan, sequence_table
from amir_grpo.study.results import Studies, StudyResults

# A test of the plan -> (when, who, than whom); the sentence has them in this order.
_SAID = {
    "published": ("", "AMIR-GRPO exactly as published", "GRPO"),
    "clean": ("", "with 60 % of the update the preference term", "GRPO"),
    "nuisance": ("with noise in the reward below its margin ", "it", "GRPO"),
    "outliers": ("with rare outliers in the reward ", "it", "Dr. GRPO"),
    "outliers-clipped": ("there ", "Dr. GRPO on a clipped reward", "the preference term"),
}


def finding(study: StudyResults, plan: Plan) -> str:
    """The finding of a study in one sentence with its scope, computed from the tests of the plan."""
    found = outcomes(study, plan)
    by_name = {outcome.test.name: outcome for outcome in found}
    made = sorted({o.comparison.runs for o in found if o.comparison})
    runs = f"{made[0]} to {made[-1]}" if len(made) > 1 else f"{made[0] if made else 0}"
    bases = max((o.comparison.bases for o in found if o.comparison), default=0)
    policies = "a policy" if bases == 1 else f"{bases} base policies"
    scope = f"On arithmetic chains, with {policies} of 0.1M parameters and {runs} runs per arm"
    kind = "frozen tests" if study.name == "confirmation" else "exploratory pilot, which confirms nothing"
    kind += f"; gains in points of pass@1, with {100 * (1 - plan.alpha):g} % intervals, "
    kind += f"{100 * (1 - 2 * plan.alpha):g} % where they are held against a margin"
    parts = [_clause(by_name[name], plan, *words) for name, words in _SAID.items() if name in by_name]
    return f"{scope} ({kind}): {'; '.join(parts)}."


def _clause(outcome: Outcome, plan: Plan, when: str, who: str, whom: str) -> str:
    if outcome.comparison is None:
        return f"{when}{who} has not been compared with {whom} yet"
    tails = 1 if outcome.test.hypothesis is Hypothesis.GREATER else 2
    low, high = outcome.comparison.interval(1 - tails * plan.alpha)
    gain, low, high = (signed(value, 2) for value in (outcome.comparison.estimate, low, high))
    return f"{when}{who} {_told(outcome, plan.margin)} {whom} ({gain} [{low}, {high}])"


def _told(outcome: Outcome, margin: float) -> str:
    if outcome.verdict is Verdict.EQUIVALENT:
        return f"is equivalent, within ±{margin:g} points, to"
    if not outcome.tested:
        return "was not tested against"
    if outcome.verdict is Verdict.UNDECIDED and outcome.test.hypothesis is Hypothesis.EQUIVALENT:
        return "is not shown to be equivalent to"
    if outcome.verdict is Verdict.UNDECIDED:
        return "is not distinguishable from"
    if outcome.test.hypothesis is Hypothesis.GREATER:
        return "beats" if outcome.verdict is Verdict.SUPPORTED else "falls behind"
    if outcome.test.hypothesis is Hypothesis.NOT_GREATER and outcome.verdict is Verdict.SUPPORTED:
        return f"gains less than {margin:g} points over"
    return f"differs by more than {margin:g} points from"


def claim_lines(claims: pd.DataFrame) -> list[str]:
    """A Markdown table of the five claims with the verdicts of their tests; `claims`: as of `claims_table`."""
    rows: list[Sequence[str]] = [("claim", *STRENGTHS), ("---",) * (1 + len(STRENGTHS))]
    rows += claim_rows(claims)
    return ["| " + " | ".join(row) + " |" for row in rows]


def verdict_rows(table: pd.DataFrame) -> pd.DataFrame:
    """`claims_table` as text: columns claim, test, result, verdict, study; one row per test."""
    rows = []
    for number, claim in enumerate(CLAIMS, 1):
        for row in table[table["claim"] == claim].to_dict("records") if len(table) else []:
            gain, low, high = (signed(row[name], 2) for name in ("gain", "gain_low", "gain_high"))
            test = f"{row['test']} ({row['strength']})"
            result = f"{gain} {row['unit']} [{low}, {high}]"
            rows.append((f"{number}. {claim}", test, result, row["verdict"], row["study"]))
    return pd.DataFrame(rows, columns=["claim", "test", "result", "verdict", "study"])


def report_lines(study: StudyResults, plan: Plan) -> list[str]:
    """What one study says, as lines of text: its finding, the tests of the plan, the tests of the claims."""
    if not len(study.runs):
        return ["No arm has all the runs yet that the plan gives it, and nothing is read before."]
    tests = sequence_table(plan, outcomes(study, plan))
    columns = ["test", "gain", "gain_low", "gain_high", "p_value", "detectable", "runs", "verdict", "why"]
    lines = [finding(study, plan), "", rounded(tests.reindex(columns=columns), 3).to_string(index=False)]
    return [*lines, "", verdict_rows(claims_table(Studies((study,)), plan)).to_string(index=False)]
