"""Tables of the study: gains of one arm over another, the plan's tests, and the paper's five claims with verdicts.

Every interval is for new base policies and seeds (`amir_grpo.study.inference`). A claim is tested at two strengths of
the preference term; differences above 0 support it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amir_grpo.metrics import holm
from amir_grpo.study.arms import BASE, about
from amir_grpo.study.inference import COLUMNS, Comparison, Verdict, verdict
from amir_grpo.study.kept import TRAINED, Run, Studies, StudyResults, compared, level, shared_runs
from amir_grpo.study.plan import QUANTITIES, Plan, is_pilot, judged

Pair = tuple[str, str]  # the new arm and the old one, as `regime/arm`
GRPO = "clean/grpo"
# Strength of the preference term -> the arm.
STRENGTHS = {"as published": "clean/published", "60 % of the update": "clean/mixture-0.6"}
CLAIMS = (
    "Richer supervision",
    "Sharper decision boundary",
    "Less length bias",
    "Broader coverage",
    "Gains for every variant",
)

# Settings of the term and of GRPO, each against the arm that it changes: exploratory, except for tests of the plan.
KNOBS: list[Pair] = [
    ("clean/published-schedule", GRPO),
    ("clean/mixture-0.6", GRPO),
    ("clean/mixture-0.6-linear", "clean/mixture-0.6"),
    ("clean/mixture-0.6-permuted", GRPO),
    ("clean/group-4", GRPO),
    ("clean/group-16", GRPO),
    ("clean/lr-x2", GRPO),
]
# For each kind of reward: the term and simpler remedies, against GRPO with the same rewards.
REGIME_GAINS: list[Pair] = [
    ("nuisance/mixture-0.6", "nuisance/grpo"),
    ("nuisance/dr_grpo", "nuisance/grpo"),
    ("nuisance/correctness-only", "nuisance/grpo"),
    ("nuisance/grpo-unscaled", "nuisance/grpo"),
    ("nuisance/uniform-dropped", "nuisance/grpo"),
    ("above-margin/mixture-0.6", "above-margin/grpo"),
    ("outliers/mixture-0.6", "outliers/grpo"),
    ("outliers/dr_grpo", "outliers/grpo"),
    ("outliers/dr_grpo-clipped", "outliers/grpo"),
    ("format/mixture-0.6", "format/grpo"),
    ("partial/mixture-0.6", "partial/grpo"),
]
# The term against simpler methods that may do the same.
RIVALS: list[Pair] = [
    ("nuisance/mixture-0.6", "nuisance/dr_grpo"),
    ("nuisance/mixture-0.6", "nuisance/correctness-only"),
    ("outliers/mixture-0.6", "outliers/dr_grpo"),
    ("outliers/mixture-0.6", "outliers/dr_grpo-clipped"),
]
_VARIANTS = ("grpo", "dr_grpo", "dapo", "gspo")
VARIANTS: dict[str, list[Pair]] = {
    strength: [(f"clean/two-step-{name}-{kind}", f"clean/two-step-{name}") for name in _VARIANTS]
    for strength, kind in zip(STRENGTHS, ("published", "mixture"), strict=True)
}
RICHER, RICHER_MARGIN = 5.0, 1.0  # percent of the update that must be new for claim 1: a threshold of this study
# Claim 2: what is compared at equal entropy -> (column, scale, unit).
BOUNDARY = {"margin": ("margin", 1000.0, "10⁻³ nats per token"), "pair accuracy": ("accuracy", 100.0, "points")}
MARGIN_SHARE, ACCURACY_MARGIN = 0.01, 0.5  # share of the old arm's margin; points
LENGTH_MARGIN = 0.5  # tokens
SAMPLES = 8  # per problem; coverage takes all of them
# The number of tests of claims, including those without runs, so that no verdict changes when others get their runs.
DECLARED = len(STRENGTHS) * (3 + len(BOUNDARY)) + sum(map(len, VARIANTS.values()))
Solved = dict[Run, NDArray[np.float64]]  # one chance per problem
_DIRECTIONS = {Verdict.SUPPORTED: "higher", Verdict.REFUTED: "lower"}


# --- gains ----------------------------------------------------------------------------------------------------------


def gain(study: StudyResults, new: str, old: str, group: str = TRAINED, k: int = 1) -> Comparison:
    """Return the gain of one arm over another in pass@k over a group of benchmarks, in points.

    If the old arm is `base`, each run is compared with the base policy that it started from.
    """
    ours, theirs = study.solved(new, group, k), study.solved(old, group, k)
    if old.endswith(f"/{BASE}"):  # evaluated once, not once per run
        bases = {base: solved for (base, _), solved in theirs.items()}
        theirs = {run: bases[run[0]] for run in ours if run[0] in bases}
    return compared(ours, theirs).scaled(100.0)


def hard_gain(study: StudyResults, new: str, old: str) -> Comparison:
    """Return how much larger a gain in pass@1 is on hard problems than on easy ones, in points.

    Of the trained lengths, the problems that a run's base policy never solves are hard, and those that it solves in
    two samples or more are easy.
    """
    regime = new.partition("/")[0]
    bases = {base: solved * study.samples for (base, _), solved in study.solved(f"{regime}/{BASE}").items()}

    def contrast(path: str) -> dict[Run, float]:
        runs = study.solved(path).items()
        return {run: solved[bases[run[0]] < 0.5].mean() - solved[bases[run[0]] > 1.5].mean() for run, solved in runs}

    return compared(contrast(new), contrast(old)).scaled(100.0)


def plan_table(study: StudyResults, plan: Plan) -> pd.DataFrame:
    """Judge the tests of the plan, see `plan.judged`: in their fixed sequence, or each by itself for a pilot."""
    gains = dict(zip(QUANTITIES, (gain, hard_gain), strict=True))
    found = {test.name: gains[test.quantity](study, *test.pair) for test in plan.tests if study.has(*test.pair)}
    return judged(plan, found, in_sequence=not is_pilot(study.name))


def hypotheses(plan: Plan) -> list[str]:
    """Label the plan's tests: number, new arm, > (better than), ≡ (as good as) or ≯ (not better than), old arm."""
    signs = {"greater": ">", "equivalent": "≡", "not greater": "≯"}
    names = [[about(path) for path in test.pair] for test in plan.tests]
    return [f"{n}  {new} {signs[plan.tests[n - 1].hypothesis]} {old}" for n, (new, old) in enumerate(names, 1)]


def gain_table(studies: Studies, pairs: Sequence[Pair], plan: Plan, family: Sequence[Pair] = ()) -> pd.DataFrame:
    """Return gains in pass@1 on the trained lengths, one row per pair that has runs.

    p-values are corrected together (Holm) over the pairs and `family`. A pair that is also a test of the confirmation
    is not counted, since the sequence corrects it: it keeps its p-value from there, or none if its turn did not come.

    Columns study, regime, new, old, about, those of `Comparison.columns`, p_holm, and verdict: higher, lower,
    equivalent, undecided or not tested. `family`: further pairs that are shown elsewhere under the same correction.
    """
    main = studies.main
    tests = [] if is_pilot(main.name) else zip(plan.tests, plan_table(main, plan)["tested"], strict=True)
    turns = {frozenset(test.pair): turn for test, turn in tests if main.has(*test.pair)}
    found = {
        (new, old): (study, gain(study, new, old))
        for new, old in dict.fromkeys([*pairs, *family])
        if (study := studies.first(new, old)) is not None
    }
    explored = [pair for pair in found if frozenset(pair) not in turns]
    p_holm = dict(zip(explored, holm(pd.Series([found[pair][1].p_value for pair in explored])), strict=True))
    rows = []
    for new, old in filter(found.get, pairs):
        study, comparison = found[new, old]
        turn = turns.get(frozenset((new, old)))
        row = {"study": study.name, "regime": new.partition("/")[0], "new": new, "old": old}
        row |= {"about": f"{about(new)} − {about(old)}"}
        row |= comparison.columns(plan.margin, plan.alpha, plan.power)
        row["p_holm"] = p_holm.get((new, old), comparison.p_value if turn else np.nan)
        said = verdict(comparison, plan.margin, alpha=plan.alpha, p_value=row["p_holm"])
        row["verdict"] = "not tested" if turn is False else _DIRECTIONS.get(said, str(said))
        rows.append(row)
    columns = ["study", "regime", "new", "old", "about", *COLUMNS, "p_holm", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def exploratory_gains(studies: Studies, pairs: Sequence[Pair], plan: Plan) -> pd.DataFrame:
    """Return the `gain_table` of exploratory pairs, with one correction for all that notebooks 07 and 08 show."""
    return gain_table(studies, pairs, plan, family=[*KNOBS, *REGIME_GAINS, *RIVALS])


# --- the five claims ------------------------------------------------------------------------------------------------


def supervision(study: StudyResults, arm: str, quantity: str) -> Comparison:
    """Return, for claim 1, a column of `measures.richness` over the training: the mean of the runs, in percent."""
    return level({run: 100 * float(rows[quantity].mean()) for run, rows in study.by_run("richness", arm).items()})


def boundary_gain(study: StudyResults, new: str, old: str, quantity: str) -> tuple[Comparison, float]:
    """Return, for claim 2, the final difference on the base policy's completions, and the smallest one of interest.

    The new policy is scored at the temperature at which its entropy equals the old one's, by interpolation: a policy
    that is more certain of everything has larger margins, just as a lower temperature makes them larger.
    """
    column, scale, _ = BOUNDARY[quantity]
    tables = study.by_run("boundary", new), study.by_run("boundary", old)
    ours, theirs = {}, {}
    for run in shared_runs(*tables):
        values = []
        last = [table[run][table[run]["step"] == table[run]["step"].max()] for table in tables]
        for benchmark in last[1]["benchmark"].unique():
            mine, other = (rows[rows["benchmark"] == benchmark].sort_values("temperature") for rows in last)
            own = other[other["temperature"] == 1].iloc[0]
            values.append((float(np.interp(own["entropy"], mine["entropy"], mine[column])), own[column]))
        ours[run], theirs[run] = scale * np.mean(values, axis=0)
    relative = MARGIN_SHARE * abs(float(np.mean(list(theirs.values()))))
    return compared(ours, theirs), relative if quantity == "margin" else ACCURACY_MARGIN


def wrong_length_gain(study: StudyResults, new: str, old: str) -> Comparison:
    """Return, for claim 3, by how many tokens the new arm's wrong completions are shorter than the old arm's.

    Only problems of the trained lengths that both policies of a run get wrong at least once count, to fix difficulty.
    """
    tables = study.by_run("problems", new), study.by_run("problems", old)
    ours, theirs = {}, {}
    for run in shared_runs(*tables):
        parts = [table[run] for table in tables]
        parts = [p[p["benchmark"].isin(study.benchmarks[TRAINED])].set_index(["benchmark", "problem"]) for p in parts]
        wrong = [study.samples - part["correct"] for part in parts]
        both = (wrong[0] > 0) & (wrong[1] > 0)
        lengths = [(part["tokens_wrong"] / number)[both] for part, number in zip(parts, wrong, strict=True)]
        ours[run], theirs[run] = (float(tokens.mean()) for tokens in lengths)
    return compared(theirs, ours)


def solved_alone(study: StudyResults, arm: str, k: int = SAMPLES) -> tuple[Solved, Solved]:
    """Return, for claim 4, the chances that the arm and that GRPO solve what GRPO of another seed does not.

    Of any two trainings, each solves some problems that the other does not: GRPO's chance is the null. The other seed
    is the next one of the base policy; runs without one are left out. Both chances are by run and problem.
    """
    grpo, other = study.solved(GRPO, k=k), {}
    for base, seed in grpo:
        seeds = sorted(s for b, s in grpo if b == base)
        following = seeds[(seeds.index(seed) + 1) % len(seeds)]
        if following != seed:
            other[base, seed] = grpo[base, following]
    solved = study.solved(arm, k=k), grpo
    runs = shared_runs(other, *solved)
    new, null = ({run: part[run] * (1 - other[run]) for run in runs} for part in solved)
    return new, null


def claims_table(studies: Studies, plan: Plan) -> pd.DataFrame:
    """Return every test of the claims that has runs, with its verdict at the plan's α / `DECLARED`: one correction.

    Columns claim, test, strength, study, unit, those of `Comparison.columns` (intervals at the plan's α, detectable at
    that of the verdicts), and verdict.
    """
    rows, alpha = [], plan.alpha / DECLARED
    for claim, test, strength, study, unit, comparison, margin in _claim_tests(studies, plan):
        row = {"claim": claim, "test": test, "strength": strength, "study": study.name, "unit": unit}
        row |= comparison.columns(margin, plan.alpha, plan.power)
        row |= {"detectable": comparison.detectable(alpha, plan.power)}
        rows.append(row | {"verdict": str(verdict(comparison, margin, alpha=alpha))})
    return pd.DataFrame(rows, columns=["claim", "test", "strength", "study", "unit", *COLUMNS, "verdict"])


def _claim_tests(studies: Studies, plan: Plan) -> Iterator[tuple[str, str, str, StudyResults, str, Comparison, float]]:
    """Yield claim, test, strength of the term, study, unit, comparison and the smallest difference of interest."""
    has = [(s, arm, study) for s, arm in STRENGTHS.items() if (study := studies.first(arm, GRPO)) is not None]
    test = f"part of the update that the advantages do not have, beyond {RICHER:g} %"
    for strength, arm, study in has:
        new = supervision(study, arm, "residual_share").beyond(RICHER)
        yield CLAIMS[0], test, strength, study, "points", new, RICHER_MARGIN
    for strength, arm, study in has:
        for quantity, (_, _, unit) in BOUNDARY.items():
            test = f"{quantity} at equal entropy, on the base policy's completions"
            yield CLAIMS[1], test, strength, study, unit, *boundary_gain(study, arm, GRPO, quantity)
    for strength, arm, study in has:
        test, shorter = "tokens by which wrong completions are shorter", wrong_length_gain(study, arm, GRPO)
        yield CLAIMS[2], test, strength, study, "tokens", shorter, LENGTH_MARGIN
    test = f"problems solved with {SAMPLES} samples that another GRPO does not solve, beyond GRPO's"
    for strength, arm in STRENGTHS.items():
        parts = ((study, *solved_alone(study, arm)) for study in studies.ordered if study.has(arm, GRPO))
        for study, new, null in [part for part in parts if part[1]][:1]:
            yield CLAIMS[3], test, strength, study, "points", compared(new, null).scaled(100), plan.margin
    for strength, pairs in VARIANTS.items():
        for new, old in pairs:
            if (study := studies.first(new, old)) is not None:
                test = f"pass@1 of {about(old)}, with the term − without"
                yield CLAIMS[4], test, strength, study, "points", gain(study, new, old), plan.margin


def study_report(study: StudyResults, plan: Plan) -> str:
    """Return the tests of the plan and of the claims in one study, as two tables for the terminal."""
    if not len(study.runs):
        return "No arm has all its planned runs yet, and nothing is read before."
    tests, claims = plan_table(study, plan), claims_table(Studies((study,)), plan)
    columns = ["gain", "gain_low", "gain_high", "p_value", "detectable", "runs", "verdict"]
    tables = tests[["test", *columns, "why"]], claims[["claim", "test", "strength", "unit", *columns]]
    return "\n\n".join(table.round(3).to_string(index=False) for table in tables)
