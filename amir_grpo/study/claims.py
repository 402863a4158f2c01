"""Tables of the study: gains of arms over others, the tests of the plan, and the paper's five claims with their verdicts.

Every interval is for new base policies and seeds (`amir_grpo.study.inference`). A claim is tested at two strengths of the
preference term; above 0 is what the claim says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from amir_grpo.choices import PARAMETERS
from amir_grpo.metrics import holm
from amir_grpo.results.style import signed
from amir_grpo.study.arms import about
from amir_grpo.study.inference import (
    COLUMNS,
    Comparison,
    Verdict,
    verdict,
)
from amir_grpo.study.kept import TRAINED, Studies, StudyResults, compared, level, shared_runs
from amir_grpo.study.plan import Outcome, Plan, judge_alone, run_sequence, sequence_table

Pair = tuple[str, str]  # the new arm and the old one, as `regime/arm`
GRPO = "clean/grpo"
# How strong the preference term is -> the arm.
STRENGTHS = {"as published": "clean/published", "60 % of the update": "clean/mixture-0.6"}
CLAIMS = (
    "Richer supervision",
    "Sharper decision boundary",
    "Less length bias",
    "Broader coverage",
    "Gains for every variant",
)

# Settings of the term and of GRPO, each against the arm that it changes: exploratory, but for tests of the plan.
KNOBS: list[Pair] = [
    ("clean/published-schedule", GRPO),
    ("clean/mixture-0.6", GRPO),
    ("clean/mixture-0.6-linear", "clean/mixture-0.6"),
    ("clean/mixture-0.6-permuted", GRPO),
    ("clean/group-4", GRPO),
    ("clean/group-16", GRPO),
    ("clean/lr-x2", GRPO),
]
# Under each kind of reward: the term, and the simpler remedies, against GRPO with the same rewards.
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
# The term against what is simpler and may do the same.
RIVALS: list[Pair] = [
    ("nuisance/mixture-0.6", "nuisance/dr_grpo"),
    ("nuisance/mixture-0.6", "nuisance/correctness-only"),
    ("outliers/mixture-0.6", "outliers/dr_grpo"),
    ("outliers/mixture-0.6", "outliers/dr_grpo-clipped"),
]
# The positive control, without which a null means nothing at a size, and both strengths of the term.
SIZE_GAINS: list[Pair] = [("clean/two-step-grpo", GRPO), *((arm, GRPO) for arm in STRENGTHS.values())]
_VARIANTS = ("grpo", "dr_grpo", "dapo", "gspo")
VARIANTS: dict[str, list[Pair]] = {
    strength: [(f"clean/two-step-{name}-{kind}", f"clean/two-step-{name}") for name in _VARIANTS]
    for strength, kind in zip(STRENGTHS, ("published", "mixture"), strict=True)
}


# --- gains ----------------------------------------------------------------------------------------------------------


def gain(study: StudyResults, new: str, old: str, group: str = TRAINED, k: int = 1) -> Comparison:
    """The gain of one arm over another in pass@k over a group of benchmarks, in points."""
    return compared(study.solved(new, group, k), study.solved(old, group, k)).scaled(100.0)


def test_outcomes(study: StudyResults, plan: Plan) -> list[Outcome]:
    """The tests of the plan: in their fixed sequence for the confirmation, each by itself for the pilot."""
    found = {test.name: gain(study, *test.pair) for test in plan.tests if study.has(*test.pair)}
    return run_sequence(plan, found) if study.name == "confirmation" else judge_alone(plan, found)


test_outcomes.__test__ = False  # no test case of pytest


def hypotheses(plan: Plan) -> list[str]:
    """The tests of the plan as labels: number, new arm, > (better than), ≡ (as good as) or ≯ (not better than), old arm."""
    signs = {"greater": ">", "equivalent": "≡", "not greater": "≯"}
    pairs = [[about(path) for path in test.pair] for test in plan.tests]
    return [f"{n}  {new} {signs[plan.tests[n - 1].hypothesis]} {old}" for n, (new, old) in enumerate(pairs, 1)]


def gain_table(studies: Studies, pairs: Sequence[Pair], plan: Plan, family: Sequence[Pair] = ()) -> pd.DataFrame:
    """Gains in pass@1 on the trained lengths, one row per pair that has runs.

    p-values are corrected together (Holm) over the pairs and `family`. A pair that is also a test of the confirmation is
    corrected by the sequence: it keeps its p-value from there, none where its turn did not come, and is not counted.

    Args:
        pairs: (new, old) as `regime/arm`.
        family: Further pairs that are shown elsewhere under the same correction.

    Returns:
        Columns study, regime, new, old, about, old_percent and old_range (of the old arm's runs, as text), those of
        `Comparison.columns`, p_holm, and verdict: higher, lower, equivalent, undecided or not tested.
    """
    tests = test_outcomes(studies.main, plan) if studies.main.name == "confirmation" else []
    tested = {frozenset(outcome.test.pair): outcome.tested for outcome in tests if outcome.comparison}
    rows, comparisons = [], []
    for new, old in dict.fromkeys([*pairs, *family]):
        if (study := studies.first(new, old)) is None:
            continue
        found, solved = gain(study, new, old), study.solved(old)
        levels = [100 * solved[run].mean() for run in shared_runs(study.solved(new), solved)]
        row = {"study": study.name, "regime": new.partition("/")[0], "new": new, "old": old}
        row |= {"about": f"{about(new)} − {about(old)}", "old_percent": float(np.mean(levels))}
        row |= {"old_range": f"{min(levels):.1f} to {max(levels):.1f}"}
        rows.append(row | found.columns(plan.margin, plan.alpha, plan.power))
        comparisons.append(found)
    columns = ["study", "regime", "new", "old", "about", "old_percent", "old_range", *COLUMNS]
    table = pd.DataFrame(rows, columns=columns)
    turns = [tested.get(frozenset(pair)) for pair in zip(table["new"], table["old"], strict=True)]
    explored = holm(table["p_value"].where([turn is None for turn in turns]))
    table["p_holm"] = [
        p if turn is None else row.p_value if turn else np.nan
        for p, turn, row in zip(explored, turns, table.itertuples(), strict=True)
    ]
    table["verdict"] = [
        "not tested" if turn is False else _direction(verdict(found, plan.margin, alpha=plan.alpha, p_value=p))
        for found, turn, p in zip(comparisons, turns, table["p_holm"], strict=True)
    ]
    shown = [pair in set(pairs) for pair in zip(table["new"], table["old"], strict=True)]
    return table[shown].reset_index(drop=True)


def _direction(found: Verdict) -> str:
    return {Verdict.SUPPORTED: "higher", Verdict.REFUTED: "lower"}.get(found, str(found))


def exploratory_gains(studies: Studies, pairs: Sequence[Pair], plan: Plan) -> pd.DataFrame:
    """`gain_table` of some of the exploratory pairs, under one correction for all that notebooks 07 and 08 show."""
    return gain_table(studies, pairs, plan, family=[*KNOBS, *REGIME_GAINS, *RIVALS])


def size_table(sizes: Sequence[Studies], plan: Plan) -> pd.DataFrame:
    """`gain_table` of `SIZE_GAINS` for each size, corrected within it, with the column parameters in front.

    Where the positive control of a size is not shown, none of its verdicts is read: they are "control not shown".
    """
    tables = []
    for studies in sizes:
        table = gain_table(studies, SIZE_GAINS, plan)
        table.insert(0, "parameters", PARAMETERS[studies.main.model_name])
        if "higher" not in set(table.loc[table["new"] == SIZE_GAINS[0][0], "verdict"]):
            table["verdict"] = "control not shown"
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


# --- the five claims ------------------------------------------------------------------------------------------------

RICHER, RICHER_MARGIN = 5.0, 1.0  # percent of the update that has to be new for claim 1: a threshold of this study
# Claim 2: what is compared at equal entropy -> (column, scale, unit).
BOUNDARY = {"margin": ("margin", 1000.0, "10⁻³ nats per token"), "pair accuracy": ("accuracy", 100.0, "points")}
MARGIN_SHARE, ACCURACY_MARGIN = 0.01, 0.5  # of the old arm's margin; points
LENGTH_MARGIN = 0.5  # tokens
SAMPLES = 8  # of a problem, all of which coverage takes
# How many tests there are, those without runs included, so that a verdict does not change when others get theirs.
DECLARED = len(STRENGTHS) * (3 + len(BOUNDARY)) + sum(map(len, VARIANTS.values()))


def supervision(study: StudyResults, arm: str, quantity: str) -> Comparison:
    """Claim 1: a column of `measures.richness` over the training, in percent, the mean of the runs."""
    return level({run: 100 * float(rows[quantity].mean()) for run, rows in study.by_run("richness", arm).items()})


def claim_supervision(studies: Studies) -> pd.DataFrame:
    """Claim 1: columns about, share, residual_share (percent of the update) and explained (percent), at both strengths."""
    rows = []
    for arm in STRENGTHS.values():
        if (study := studies.first(arm, GRPO)) is not None:
            quantities = ("share", "residual_share", "explained")
            rows.append({"about": about(arm)} | {name: supervision(study, arm, name).estimate for name in quantities})
    return pd.DataFrame(rows)


def boundary_gain(
    study: StudyResults, new: str, old: str, quantity: str, equal_entropy: bool = True
) -> tuple[Comparison, float]:
    """Claim 2: the difference at the end of the training on the base policy's completions, and the smallest of interest.

    The new policy is taken at the temperature at which its entropy is the old one's, interpolated between those measured:
    a policy that is more certain of everything has larger margins, as a colder temperature gives them.

    Args:
        quantity: One of `BOUNDARY`.
        equal_entropy: False takes the new policy as it is.
    """
    column, scale, _ = BOUNDARY[quantity]
    tables = study.by_run("boundary", new), study.by_run("boundary", old)
    ours, theirs = {}, {}
    for run in shared_runs(*tables):
        values = []
        last = [table[run][table[run]["step"] == table[run]["step"].max()] for table in tables]
        for benchmark in last[1]["benchmark"].unique():
            mine, other = (rows[rows["benchmark"] == benchmark].sort_values("temperature") for rows in last)
            own, at_one = (rows[rows["temperature"] == 1].iloc[0] for rows in (mine, other))
            entropy = (at_one if equal_entropy else own)["entropy"]
            values.append((float(np.interp(entropy, mine["entropy"], mine[column])), at_one[column]))
        ours[run], theirs[run] = scale * np.mean(values, axis=0)
    relative = MARGIN_SHARE * abs(float(np.mean(list(theirs.values()))))
    return compared(ours, theirs), relative if quantity == "margin" else ACCURACY_MARGIN


def boundary_curves(studies: Studies) -> pd.DataFrame:
    """Claim 2: columns about, temperature, margin, accuracy, entropy at the end of the training, means over the runs that
    all arms share and over benchmarks; the base policy, GRPO and both strengths of the term."""
    trained = [GRPO, *STRENGTHS.values()]
    study = studies.with_most(*trained)
    runs = shared_runs(*(study.by_run("boundary", arm) for arm in trained if study.has(arm)))
    frames = []
    for arm in ("clean/base", *filter(study.has, trained)):
        parts = [part for run, part in study.by_run("boundary", arm).items() if run in runs or arm == "clean/base"]
        last = pd.concat([part[part["step"] == part["step"].max()] for part in parts])
        means = last.groupby("temperature")[["margin", "accuracy", "entropy"]].mean().reset_index()
        frames.append(means.assign(about=about(arm)))
    return pd.concat(frames, ignore_index=True)


def token_weight(loss_type: str, length: ArrayLike, reference: float, share: float = 0.0) -> NDArray[np.float64]:
    """Claim 3: the push on a token by the length of its completion, relative to that at the length `reference`.

    GRPO divides a completion's weight by its length, Dr. GRPO, DAPO and others by something that all share. The preference
    term is made of means per token, and falls as 1 / length in every loss: to Dr. GRPO it brings the dilution back.

    Args:
        loss_type: TRL's name of GRPO's loss.
        length: Tokens of the completion, any shape, at least 1.
        reference: The length at which the push is 1.
        share: Part of the push at `reference` that is the preference term's, 0 to 1.
    """
    diluted = reference / np.asarray(length, dtype=float)
    return share * diluted + (1 - share) * (diluted if loss_type in ("grpo", "sapo") else np.ones_like(diluted))


def wrong_length_gain(study: StudyResults, new: str, old: str) -> Comparison:
    """Claim 3: tokens by which the old arm's wrong completions are longer than the new one's; above 0, they became shorter.

    On problems of the trained lengths that both policies of a run answer wrong at least once, so that difficulty is fixed.
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


Solved = dict[tuple[int, int], NDArray[np.float64]]


def other_draw(study: StudyResults, k: int = 1) -> Solved:
    """For each run of GRPO the pass@k of GRPO from the same base policy with another seed: of its own arm where there is
    one, else the next seed of that base policy. Runs without one are left out."""
    again = study.solved("clean/grpo-again", k=k)
    grpo, found = study.solved(GRPO, k=k), {}
    for base, seed in grpo:
        seeds = sorted(s for b, s in grpo if b == base)
        following = seeds[(seeds.index(seed) + 1) % len(seeds)]
        if (base, seed) in again:
            found[base, seed] = again[base, seed]
        elif following != seed:
            found[base, seed] = grpo[base, following]
    return found


def solved_alone(studies: Studies, arm: str, k: int = SAMPLES) -> tuple[StudyResults, Solved, Solved] | None:
    """Claim 4: the first study that can tell, and the chance by run and problem that the arm, and that GRPO, solves what
    GRPO of another seed does not, drawing independently.

    Any two trainings solve some problems that the other does not: GRPO's own is the null.
    """
    for study in studies.ordered:
        if study.has(arm, GRPO):
            other, solved = other_draw(study, k), (study.solved(arm, k=k), study.solved(GRPO, k=k))
            if runs := shared_runs(other, *solved):
                new, null = ({run: part[run] * (1 - other[run]) for run in runs} for part in solved)
                return study, new, null
    return None


def claim_coverage(studies: Studies, plan: Plan) -> pd.DataFrame:
    """Claim 4 at both strengths: columns about, new and null (percent of the problems, of `solved_alone`), and those of
    `claims_table`."""
    table, rows = claims_table(studies, plan), []
    for row in table[table["claim"] == CLAIMS[3]].to_dict("records"):
        _, *parts = solved_alone(studies, arm := STRENGTHS[row["strength"]])
        new, null = (100 * float(np.mean([chances.mean() for chances in part.values()])) for part in parts)
        rows.append(row | {"about": about(arm), "new": new, "null": null})
    return pd.DataFrame(rows)


def claim_variants(studies: Studies, plan: Plan) -> pd.DataFrame:
    """Claim 5: each variant with the term against itself without: columns heading, about, and those of `claims_table`."""
    table = claims_table(studies, plan)
    table = table[table["claim"] == CLAIMS[4]]
    names = table["test"].str.extract("pass@1 of (.*), with the term")[0]
    return table.assign(heading=table["strength"], about=names)


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
    """The tests of the claims for which there are runs, claim by claim."""
    has = {s: (arm, study) for s, arm in STRENGTHS.items() if (study := studies.first(arm, GRPO)) is not None}
    for strength, (arm, study) in has.items():
        test = f"part of the update that the advantages do not have, beyond {RICHER:g} %"
        found = supervision(study, arm, "residual_share").beyond(RICHER)
        yield ClaimTest(CLAIMS[0], test, strength, study.name, "points", found, RICHER_MARGIN)
    for strength, (arm, study) in has.items():
        for quantity, (_, _, unit) in BOUNDARY.items():
            test = f"{quantity} at equal entropy, on the base policy's completions"
            yield ClaimTest(CLAIMS[1], test, strength, study.name, unit, *boundary_gain(study, arm, GRPO, quantity))
    for strength, (arm, study) in has.items():
        test, found = "tokens by which wrong completions are shorter", wrong_length_gain(study, arm, GRPO)
        yield ClaimTest(CLAIMS[2], test, strength, study.name, "tokens", found, LENGTH_MARGIN)
    for strength, arm in STRENGTHS.items():
        if (told := solved_alone(studies, arm)) is not None:
            study, new, null = told
            test = f"problems solved with {SAMPLES} samples that another GRPO does not solve, beyond GRPO's"
            yield ClaimTest(
                CLAIMS[3], test, strength, study.name, "points", compared(new, null).scaled(100), plan.margin
            )
    for strength, pairs in VARIANTS.items():
        for new, old in pairs:
            if (study := studies.first(new, old)) is not None:
                test = f"pass@1 of {about(old)}, with the term − without"
                yield ClaimTest(CLAIMS[4], test, strength, study.name, "points", gain(study, new, old), plan.margin)


def claims_table(studies: Studies, plan: Plan) -> pd.DataFrame:
    """Every test of the claims with its verdict at the plan's α divided by `DECLARED`: one correction for all.

    Columns claim, test, strength, study, unit, those of `Comparison.columns` (intervals at the plan's α, detectable at
    that of the verdicts), and verdict.
    """
    rows, alpha = [], plan.alpha / DECLARED
    for test in claim_tests(studies, plan):
        row = {name: getattr(test, name) for name in ("claim", "test", "strength", "study", "unit")}
        row |= test.comparison.columns(test.margin, plan.alpha, plan.power)
        row["detectable"] = test.comparison.detectable(alpha, plan.power)
        rows.append(row | {"verdict": str(verdict(test.comparison, test.margin, alpha=alpha))})
    return pd.DataFrame(rows, columns=["claim", "test", "strength", "study", "unit", *COLUMNS, "verdict"])


def claims_shown(table: pd.DataFrame) -> pd.DataFrame:
    """`claims_table` as text: columns claim, test, result, detectable, verdict, study; one row per test."""
    rows = []
    for number, claim in enumerate(CLAIMS, 1):
        for row in table[table["claim"] == claim].to_dict("records"):
            estimate, low, high = (signed(row[name], 2) for name in ("gain", "gain_low", "gain_high"))
            result = f"{estimate} {row['unit']} [{low}, {high}]"
            detectable = signed(row["detectable"], 2).removeprefix("+")
            test = f"{row['test']} ({row['strength']})"
            rows.append((f"{number}. {claim}", test, result, detectable, row["verdict"], row["study"]))
    return pd.DataFrame(rows, columns=["claim", "test", "result", "detectable", "verdict", "study"])


def study_report(study: StudyResults, plan: Plan) -> str:
    """The tests of the plan and of the claims in one study, as two tables for the terminal."""
    if not len(study.runs):
        return "No arm has all the runs yet that the plan gives it, and nothing is read before."
    tests = sequence_table(plan, test_outcomes(study, plan))
    columns = ["test", "gain", "gain_low", "gain_high", "p_value", "detectable", "runs", "verdict", "why"]
    claims = claims_shown(claims_table(Studies((study,)), plan))
    return f"{tests[columns].round(3).to_string(index=False)}\n\n{claims.to_string(index=False)}"
