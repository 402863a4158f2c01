"""The figures of the study, from its results and its plan; for the gallery and the notebooks alike.

Titles state the finding, and are computed like it. `claims` is a `claims_table` throughout.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from amir_grpo.results import comparison_figures, regime_figures, study_figures
from amir_grpo.study.claims import boundary, coverage, length_bias, supervision, variants
from amir_grpo.study.claims.table import CLAIMS, DECLARED, SAMPLES, STRENGTHS, claim_rows, claims_table
from amir_grpo.study.exploration import KNOBS, exploratory_gains, rows_of
from amir_grpo.study.gains import gain_table, outcomes
from amir_grpo.study.inference import Hypothesis
from amir_grpo.study.plan import Plan, sequence_table
from amir_grpo.study.regime_tables import PASS_RATES, arms_of_regimes, measured_cosines
from amir_grpo.study.regimes import ARMS, TITLES
from amir_grpo.study.results import TRAINED, Studies, about
from amir_grpo.study.sizes import size_title
from amir_grpo.study.theory import cosine_table

_GRPO = "clean/grpo"
_CORRECTED = "p-values are corrected (Holm; tests of the plan by their order), intervals are not."
_RELATIONS = {Hypothesis.GREATER: ">", Hypothesis.EQUIVALENT: "≡", Hypothesis.NOT_GREATER: "≯"}


def sequence_figure(studies: Studies, plan: Plan) -> Figure:
    """The tests of the plan in their order."""
    study = studies.main
    found = outcomes(study, plan)
    table = sequence_table(plan, found)
    shown = _with_titles(table.assign(p=table["p_value"].where(table["tested"]))).assign(
        about=[
            f"{row.number}  {about(f'{row.regime}/{row.new}')} {_RELATIONS[row.hypothesis]} "
            f"{about(f'{row.regime}/{row.old}')}"
            for row in table.itertuples()
        ]
    )
    said, made = sum(outcome.shown for outcome in found), int(table["gain"].notna().sum())
    title = f"{said} of the {made} tests{' with runs' if made < len(table) else ''} show what they say"
    if study.name != "confirmation":
        title += " (pilot, exploratory)"
    elif ended := [number for number, outcome in enumerate(found, 1) if outcome.tested and not outcome.shown]:
        title += f"; test {ended[0]} does not, which ends the sequence"
    if made < len(table):
        title += f"; {len(table) - made} wait for theirs"
    note = "Rows: what is tested, > better than, ≡ as good as, ≯ not better than; gains: left minus right."
    return comparison_figures.comparison_figure(shown, title, margin=plan.margin, note=note)


def claim_title(claims: pd.DataFrame, claim: str) -> str:
    """A claim and the verdicts of its tests."""
    rows = {name: verdicts for name, *verdicts in claim_rows(claims)}
    if len(set(rows[claim])) == 1:
        return f"{claim}: {rows[claim][0]}, {' and with '.join(STRENGTHS)}"
    return f"{claim}: " + "; ".join(f"{how}, {said}" for how, said in zip(STRENGTHS, rows[claim], strict=True))


def supervision_bars(studies: Studies, claims: pd.DataFrame) -> Figure:
    """Claim 1: what the preference term is of the update, and what of it the advantages do not have."""
    table = supervision.supervision_table(studies, list(STRENGTHS.values()))
    if not len(table):
        return regime_figures.empty_figure(CLAIMS[0])
    shown = table.assign(share=table["share"] / 100, residual_share=table["residual_share"] / 100)
    return study_figures.share_bars_figure(shown, supervision.RICHER, claim_title(claims, CLAIMS[0]))


def entropy_curves(studies: Studies) -> pd.DataFrame:
    """Claim 2: margin, accuracy and entropy by temperature at the end of the training, means over runs and benchmarks."""
    trained = [_GRPO, *STRENGTHS.values()]
    study = studies.with_most(*trained)
    runs = set.intersection(*(set(study.by_run("boundary", arm)) for arm in trained if study.has(arm)))
    frames = []
    for arm in ("clean/base", *filter(study.has, trained)):
        parts = [part for run, part in study.by_run("boundary", arm).items() if run in runs or arm == "clean/base"]
        last = pd.concat([part[part["step"] == part["step"].max()] for part in parts])
        means = last.groupby("temperature")[["margin", "accuracy", "entropy"]].mean().reset_index()
        frames.append(means.assign(about=about(arm)))
    return pd.concat(frames, ignore_index=True)


def boundary_curves(studies: Studies, claims: pd.DataFrame) -> Figure:
    """Claim 2: margins against entropy."""
    curves = entropy_curves(studies)
    return regime_figures.entropy_figure(curves, boundary_title(claims), boundary.base_sentence(curves))


def boundary_title(claims: pd.DataFrame) -> str:
    """Claim 2 by its two quantities, where their verdicts do not depend on how strong the term is; else as any claim."""
    part = claims[claims["claim"] == CLAIMS[1]]
    said = {quantity: set(part.loc[part["test"].str.startswith(quantity), "verdict"]) for quantity in boundary.TESTED}
    marked = "pilot" in set(part["study"]) and len(set(claims["study"])) > 1  # as a number of the pilot beside others
    if marked or any(len(verdicts) != 1 for verdicts in said.values()):
        return claim_title(claims, CLAIMS[1])
    told = ", ".join(f"{quantity.partition(' at ')[0]} {next(iter(verdicts))}" for quantity, verdicts in said.items())
    strengths = [strength for strength in STRENGTHS if strength in set(part["strength"])]
    return f"{CLAIMS[1]}: {told}, {' and with '.join(strengths)}"


def length_lines(studies: Studies, claims: pd.DataFrame) -> Figure:
    """Claim 3: the weight of a token against the length of its completion."""
    table = length_bias.weight_table(studies)
    if not len(table):
        return regime_figures.empty_figure(CLAIMS[2])
    longest = table[table["length"] == table["length"].max()].set_index("about")["relative"]
    said = "; ".join(f"{name} {100 * weight:.0f} %" for name, weight in longest.items())
    note = f"How hard a token of the longest completions is pushed, of one of the shortest: {said}. "
    became = claims[claims["claim"] == CLAIMS[2]]
    lengths = (
        f"{row.strength}, {abs(row.gain):.2f} tokens {'shorter' if row.gain > 0 else 'longer'}"
        for row in became.itertuples()
    )
    note += (
        f"The verdict is about what became of it, the length of wrong completions: {'; '.join(lengths)} than GRPO's."
    )
    return study_figures.length_weight_figure(table, claim_title(claims, CLAIMS[2]), note)


def coverage_bars(studies: Studies, plan: Plan, claims: pd.DataFrame) -> Figure:
    """Claim 4: what an arm solves and another GRPO does not, beside what GRPO does of that."""
    table = coverage.coverage_table(studies, list(STRENGTHS.values()), plan.margin, plan.alpha)
    if not len(table):
        return regime_figures.empty_figure(CLAIMS[3])
    note = f"Bars: problems that a policy solves with {SAMPLES} samples, and GRPO of another seed does not."
    note += f" p-values are corrected for the {DECLARED} tests of the claims, intervals are not."
    shown = table[table["k"] == SAMPLES].assign(p=lambda rows: (DECLARED * rows["p_value"]).clip(upper=1))
    return comparison_figures.alone_figure(shown, claim_title(claims, CLAIMS[3]), plan.margin, note)


def variant_gains(studies: Studies, plan: Plan, claims: pd.DataFrame) -> Figure:
    """Claim 5: each variant with the preference term against itself without."""
    pairs = [pair for pairs in variants.PAIRS.values() for pair in pairs]
    note = f"Verdicts are corrected for all {DECLARED} tests of the claims, by wider intervals than these bars."
    return gains_figure(gain_table(studies, pairs, plan, ks=(1,)), plan, claim_title(claims, CLAIMS[4]), note)


def knob_gains(studies: Studies, plan: Plan) -> Figure:
    """Knobs and rivals: each against what it changes."""
    table = rows_of(exploratory_gains(studies, plan), KNOBS)
    shown = table[table["benchmarks"] == TRAINED]
    clear = shown["p_holm"] < plan.alpha
    term = pd.Series(
        [ARMS[f"{row.regime}/{row.new}"].method == "amir_grpo" for row in shown.itertuples()], shown.index
    )
    of_term, others = (f"{int(clear[rows].sum())} of {int(rows.sum())}" for rows in (term, ~term))
    title = f"Clearly different: {others} without the preference term, {of_term} with it (exploratory)"
    return gains_figure(table, plan, title)


def regime_gains(table: pd.DataFrame, plan: Plan) -> Figure:
    """Arms against GRPO with the same rewards; `table`: rows of `exploratory_gains`."""
    shown = table[table["benchmarks"] == TRAINED]
    clear = shown["p_holm"] < plan.alpha
    above, below = (int((clear & (sign * shown["gain"] > 0)).sum()) for sign in (1, -1))
    title = f"Of {len(shown)} arms, {above} clearly above GRPO with the same rewards, {below} clearly below"
    return gains_figure(table, plan, title)


def gains_figure(table: pd.DataFrame, plan: Plan, title: str, note: str = "") -> Figure:
    """The gains of a `gain_table` on the trained lengths; significant after its correction."""
    if not len(table):
        return regime_figures.empty_figure(title)
    table = table[table["benchmarks"] == TRAINED].rename(columns={"p_holm": "p"})
    note = f"{_CORRECTED} {note}".strip()
    return comparison_figures.comparison_figure(_with_titles(table), title, margin=plan.margin, note=note)


def size_gains(table: pd.DataFrame, plan: Plan) -> Figure:
    """The main comparisons at each size of the policy; `table`: a `size_table`."""
    shown = table.assign(regime=table["parameters"] + " parameters").rename(columns={"p_holm": "p"})
    title = f"{size_title(table)} (exploratory)"
    return comparison_figures.comparison_figure(shown, title, margin=plan.margin, note=_CORRECTED)


def regime_cosines(studies: Studies, plan: Plan) -> Figure:
    """The regimes: how much of an update is about correctness, predicted and measured."""
    arms = arms_of_regimes(plan)
    return regime_figures.cosine_figure(
        _with_titles(measured_cosines(studies, arms)),
        _with_titles(cosine_table(arms, PASS_RATES)),
        "How much of an update is about correctness: theory (lines) and rollouts (points)",
    )


def _with_titles(table: pd.DataFrame) -> pd.DataFrame:
    """With the regimes called as people call them."""
    return table.assign(regime=table["regime"].map(TITLES))


def figures_of_study(studies: Studies, plan: Plan) -> dict[str, Figure]:
    """Every figure by the name of its file, but for those of claims of which no test has runs."""
    claims = claims_table(studies, plan)
    of_claims: dict[str, Callable[[], Figure]] = {
        "claim_supervision": lambda: supervision_bars(studies, claims),
        "claim_boundary": lambda: boundary_curves(studies, claims),
        "claim_length": lambda: length_lines(studies, claims),
        "claim_coverage": lambda: coverage_bars(studies, plan, claims),
        "claim_variants": lambda: variant_gains(studies, plan, claims),
    }
    drawn = {
        "tests": sequence_figure(studies, plan),
        "knobs": knob_gains(studies, plan),
        "regimes": regime_cosines(studies, plan),
    }
    tested = set(claims["claim"])
    return drawn | {
        name: draw() for claim, (name, draw) in zip(CLAIMS, of_claims.items(), strict=True) if claim in tested
    }
