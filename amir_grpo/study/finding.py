"""What may be said of the study in a line per regime and in five rows: text that the README must hold as it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from amir_grpo.choices import PARAMETERS
from amir_grpo.results.formatting import rounded, signed
from amir_grpo.study.claims.table import CLAIMS, STRENGTHS, claim_rows, claims_table
from amir_grpo.study.gains import gain, outcomes, test_arms
from amir_grpo.study.inference import Hypothesis, Verdict
from amir_grpo.study.plan import Outcome, Plan, sequence_table
from amir_grpo.study.regimes import TITLES
from amir_grpo.study.results import Studies, StudyResults

_TERM = "the preference term at 60 % of the update"
# A test of the plan -> (who, than whom), in the order in which they are told.
_SAID = {
    "published": ("AMIR-GRPO exactly as published", "GRPO"),
    "clean": (_TERM, "GRPO"),
    "nuisance": (_TERM, "GRPO"),
    "nuisance-correctness": (_TERM, "GRPO trained on the correctness reward alone"),
    "above-margin": (_TERM, "GRPO"),
    "outliers": (_TERM, "Dr. GRPO"),
    "outliers-clipped": ("Dr. GRPO on a clipped reward", _TERM),
}
# A test of the plan -> (new, old): GRPO against the same rival, for what of a gain is the preference term's own.
_GRPO_ITSELF = {
    "nuisance-correctness": ("nuisance/grpo", "nuisance/correctness-only"),
    "outliers": ("outliers/grpo", "outliers/dr_grpo"),
}


def finding(studies: Studies, plan: Plan) -> str:
    """The finding of the studies as Markdown: its scope, and one line per regime, computed from the tests of the plan.

    A test whose runs the confirmation does not have yet is quoted from the pilot, and said to be.
    """
    main = studies.main
    found = {outcome.test.name: outcome for outcome in outcomes(main, plan)}
    before = {outcome.test.name: outcome for outcome in outcomes(studies.ordered[-1], plan)}
    comparisons = [outcome.comparison for outcome in found.values() if outcome.comparison]
    runs = sorted({comparison.runs for comparison in comparisons} or {0})
    bases = max((comparison.bases for comparison in comparisons), default=0)
    policies = "a policy" if bases == 1 else f"{bases} base policies"
    counted = f"{runs[0]} to {runs[-1]}" if len(runs) > 1 else runs[0]
    scope = (
        f"On arithmetic chains, with {policies} of {PARAMETERS[main.model_name]} parameters and {counted} runs per arm"
    )
    kind = "frozen tests" if main.name == "confirmation" else "exploratory pilot, which confirms nothing"
    kind += f"; gains in points of pass@1, with {100 * (1 - plan.alpha):g} % intervals, "
    kind += f"{100 * (1 - 2 * plan.alpha):g} % where a verdict is about a margin"
    gate = next(outcome for outcome in found.values() if outcome.test.gate)
    unseen = "" if gate.shown or gate.comparison is None else " The positive control was not shown: no null counts."
    told: dict[str, list[str]] = {}
    for name, words in _SAID.items():
        if name not in found:
            continue
        if quoted := found[name].comparison is None and before[name].comparison is not None:
            found[name] = before[name]
        clauses = told.setdefault(TITLES[found[name].test.regime], [])
        if any(_TERM in clause for clause in clauses):
            words = tuple(word.replace(_TERM, "the preference term") for word in words)
        clause = _clause(found[name], plan, *words) + _as_grpo_does(studies, plan, found[name])
        clauses.append(f"{clause} in the pilot, not confirmed yet" if quoted else clause)
    lines = [f"- **{title[0].upper()}{title[1:]}**: {'; '.join(clauses)}." for title, clauses in told.items()]
    return "\n".join([f"{scope} ({kind}).{unseen}", "", *lines])


def _clause(outcome: Outcome, plan: Plan, who: str, whom: str) -> str:
    if outcome.comparison is None:
        return f"{who} has not been compared with {whom} yet"
    not_greater = outcome.test.hypothesis is Hypothesis.NOT_GREATER and outcome.verdict is not Verdict.REFUTED
    tails = 2 if not_greater or outcome.verdict is Verdict.EQUIVALENT else 1
    low, high = outcome.comparison.interval(1 - tails * plan.alpha)
    gain, low, high = (signed(value, 2) for value in (outcome.comparison.estimate, low, high))
    ended = "" if outcome.tested else ", since an earlier test had ended the sequence"
    return f"{who} {_told(outcome, plan.margin)} {whom}{ended} ({gain} [{low}, {high}])"


def _told(outcome: Outcome, margin: float) -> str:
    verdict, hypothesis = outcome.verdict, outcome.test.hypothesis
    if not outcome.tested:
        return "has no verdict against"
    if verdict is Verdict.EQUIVALENT:
        return f"is equivalent, within ±{margin:g} points, to"
    if hypothesis is Hypothesis.NOT_GREATER:
        said = {Verdict.SUPPORTED: "gains less", Verdict.REFUTED: "gains more"}.get(
            verdict, "is not shown to gain less"
        )
        return f"{said} than {margin:g} points over"
    if verdict is Verdict.UNDECIDED:
        return (
            "is not shown to be equivalent to"
            if hypothesis is Hypothesis.EQUIVALENT
            else "is not distinguishable from"
        )
    if hypothesis is Hypothesis.GREATER:
        return "beats" if verdict is Verdict.SUPPORTED else "falls behind"
    return f"differs by more than {margin:g} points from"


def _as_grpo_does(studies: Studies, plan: Plan, outcome: Outcome) -> str:
    """That GRPO beats the same rival, where the preference term does and GRPO does, too; else nothing."""
    pair = _GRPO_ITSELF.get(outcome.test.name)
    study = studies.first(*pair) if pair and outcome.shown else None
    if study is None:
        return ""
    itself = gain(study, *pair)
    if not (itself.p_value < plan.alpha and itself.estimate > 0):
        return ""
    where = "" if study is studies.first(*test_arms(outcome.test)) else f" in the {study.name}"
    return f", as GRPO itself does{where} ({signed(itself.estimate, 2)})"


def claim_lines(claims: pd.DataFrame) -> list[str]:
    """A Markdown table of the five claims with the verdicts of their tests; `claims`: from `claims_table`."""
    rows: list[Sequence[str]] = [("claim", *STRENGTHS), ("---",) * (1 + len(STRENGTHS))]
    rows += claim_rows(claims)
    return ["| " + " | ".join(row) + " |" for row in rows]


def verdict_rows(table: pd.DataFrame) -> pd.DataFrame:
    """`claims_table` as text: columns claim, test, result, detectable, verdict, study; one row per test."""
    rows = []
    for number, claim in enumerate(CLAIMS, 1):
        for row in table[table["claim"] == claim].to_dict("records"):
            gain, low, high = (signed(row[name], 2) for name in ("gain", "gain_low", "gain_high"))
            test = f"{row['test']} ({row['strength']})"
            result = f"{gain} {row['unit']} [{low}, {high}]"
            detectable = signed(row["detectable"], 2).removeprefix("+")
            rows.append((f"{number}. {claim}", test, result, detectable, row["verdict"], row["study"]))
    return pd.DataFrame(rows, columns=["claim", "test", "result", "detectable", "verdict", "study"])


def report_lines(study: StudyResults, plan: Plan) -> list[str]:
    """What one study says, as lines of text: its finding, the tests of the plan, the tests of the claims."""
    studies = Studies((study,))
    if not len(study.runs):
        return ["No arm has all the runs yet that the plan gives it, and nothing is read before."]
    tests = sequence_table(plan, outcomes(study, plan))
    columns = ["test", "gain", "gain_low", "gain_high", "p_value", "detectable", "runs", "verdict", "why"]
    lines = [finding(studies, plan), "", rounded(tests[columns], 3).to_string(index=False)]
    return [*lines, "", verdict_rows(claims_table(studies, plan)).to_string(index=False)]
