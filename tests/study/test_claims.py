"""Gains, the tests of the plan and the five claims on made-up studies whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from amir_grpo.study import claims
from amir_grpo.study.inference import compare
from amir_grpo.study.kept import Studies, compared
from amir_grpo.study.plan import read_plan
from tests.study.made_up import PROBLEMS, made_up_studies, made_up_study

PLAN = read_plan()
NEW, OLD = "clean/mixture-0.6", "clean/grpo"


# --- gains


def test_a_gain_is_that_of_the_trained_lengths_paired_by_run_and_problem():
    study = made_up_study({OLD: 0.5, "clean/two-step-grpo": 1.0})
    layout = {}
    for arm in ("grpo", "two-step-grpo"):
        part = study.tables["problems"].query("arm == @arm and benchmark != 'chain8'")
        layout[arm] = (part["correct"] / 8).to_numpy().reshape(6, 1, 2 * PROBLEMS)
    expected = compare(layout["two-step-grpo"] - layout["grpo"])
    found = claims.gain(study, "clean/two-step-grpo", OLD)
    assert found.estimate == pytest.approx(100 * expected.estimate)
    assert found.interval() == pytest.approx([100 * end for end in expected.interval()])
    assert (found.bases, found.runs, found.problems) == (6, 6, 2 * PROBLEMS)


def test_a_gain_over_the_base_policy_is_that_of_every_run_over_the_one_it_began_with():
    study = made_up_study({OLD: 0.5}, seeds_per_base=2)
    base = made_up_study({"clean/base": -1.0})
    both = replace(
        study,
        runs=pd.concat([study.runs, base.runs]),
        tables={"problems": pd.concat([study.tables["problems"], base.tables["problems"]])},
    )
    rates = {}
    for arm, seeds in (("grpo", 2), ("base", 1)):
        part = both.tables["problems"].query("arm == @arm and benchmark != 'chain8'").sort_values(["base", "seed"])
        rates[arm] = (part["correct"] / 8).to_numpy().reshape(6, seeds, 2 * PROBLEMS)
    expected = compare(rates["grpo"] - rates["base"])
    found = claims.gain(both, OLD, "clean/base")
    assert found.estimate == pytest.approx(100 * expected.estimate)
    assert found.interval() == pytest.approx([100 * end for end in expected.interval()])
    assert (found.bases, found.runs) == (6, 12)


def test_a_gain_on_hard_problems_is_told_from_one_on_easy_ones():
    levels = {"correctness/base": -2.0, "correctness/grpo": 0.0, "correctness/listwise": 0.4}
    study = made_up_study(levels)
    table = study.tables["problems"].set_index(["arm", "base", "benchmark", "problem"])["correct"].unstack("arm") / 8
    table = table[table.index.get_level_values("benchmark").isin(study.benchmarks[claims.TRAINED])]
    gain = table["listwise"] - table["grpo"]
    hard, easy = (gain[which].groupby("base").mean() for which in (table["base"] == 0, table["base"] >= 2 / 8))
    found = claims.hard_gain(study, "correctness/listwise", "correctness/grpo")
    assert found.estimate == pytest.approx(100 * (hard - easy).mean())
    assert found.p_value == pytest.approx(stats.ttest_1samp(hard - easy, 0).pvalue)


def test_the_pilot_is_read_test_by_test_and_the_confirmation_in_sequence():
    arms = {OLD: 0.5, "clean/two-step-grpo": 0.5, "nuisance/grpo": 0.0, "nuisance/mixture-0.6": 1.0}
    pilot, confirmation = (
        claims.plan_table(made_up_study(arms, name), PLAN).set_index("test") for name in ("pilot", "confirmation")
    )
    assert pilot["verdict"]["nuisance"] == "supported"
    assert pilot["why"]["published"] == "It has no complete runs yet."
    assert confirmation["verdict"]["nuisance"] == "not tested", "the gate was not shown"


def test_two_arms_are_compared_in_the_first_study_that_has_both():
    pilot = made_up_study({OLD: 0.5, "clean/published": 0.9, "clean/lr-x2": 0.9})
    confirmation = made_up_study({OLD: 0.5, "clean/published": 0.5}, "confirmation")
    pairs = [("clean/published", OLD), ("clean/lr-x2", OLD), ("clean/group-4", OLD)]
    table = claims.gain_table(Studies((confirmation, pilot)), pairs, PLAN)
    assert table["study"].to_list() == ["confirmation", "pilot"], "an arm without runs is left out"
    studies = (confirmation, pilot)
    wanted = [claims.gain(study, *pair).estimate for study, pair in zip(studies, pairs, strict=False)]
    assert table["gain"].to_list() == wanted


SEQUENCE = {
    OLD: 0.0,
    "clean/two-step-grpo": 1.0,
    "clean/published": 0.0,
    "outliers/grpo": 1.0,
    "outliers/dr_grpo": 0.0,
    "outliers/dr_grpo-clipped": 0.5,  # below the preference term, so that the sequence ends here
    "outliers/mixture-0.6": 1.0,
    "nuisance/grpo": 0.0,
    "nuisance/mixture-0.6": 1.0,
}


@pytest.mark.parametrize("name", ["pilot", "confirmation"])
def test_a_test_of_the_confirmation_has_one_p_value_and_no_verdict_before_its_turn(name):
    plan, study = PLAN.model_copy(update={"margin": 2.0}), made_up_study(SEQUENCE, name)  # the made-up runs are few
    table = claims.exploratory_gains(Studies((study,)), [*claims.REGIME_GAINS, *claims.RIVALS], plan)
    tested = claims.plan_table(study, plan)["tested"]
    turns = {frozenset(t.pair): turn for t, turn in zip(plan.tests, tested, strict=True) if study.has(*t.pair)}
    seen = set()
    for row in table.itertuples():
        turn = turns.get(frozenset((row.new, row.old)))
        if name == "confirmation" and turn is not None:
            assert row.p_holm == row.p_value if turn else np.isnan(row.p_holm)
            assert (row.verdict == "not tested") == (not turn)
            seen.add(turn)
        else:
            assert row.p_holm >= row.p_value
    assert seen == ({True, False} if name == "confirmation" else set())


def test_one_correction_holds_for_all_that_is_shown_and_no_more():
    studies = made_up_studies(SEQUENCE)
    part = claims.exploratory_gains(studies, claims.RIVALS, PLAN)
    family = list(dict.fromkeys([*claims.KNOBS, *claims.REGIME_GAINS, *claims.RIVALS]))
    whole = claims.gain_table(studies, family, PLAN)
    both = part.merge(whole, on=["new", "old"], suffixes=("", "_whole"))
    assert len(both) == len(part) < len(whole)
    assert (both["p_holm"] == both["p_holm_whole"]).all()
    assert whole["p_holm"].min() == pytest.approx(len(whole) * whole["p_value"].min())


# --- the claims


@pytest.fixture(scope="module")
def studies():
    arms = {
        "clean/base": -1.5,
        OLD: 0.5,
        "clean/published": {"logit": 0.5, "share": 0.003},
        NEW: {"logit": 0.9, "share": 0.6, "margin": 0.25, "wrong_length": 38},
        "clean/two-step-grpo": 0.8,
        "clean/two-step-grpo-published": {"logit": 0.92, "share": 0.003},  # p = 0.014
        "nuisance/grpo": 0.3,
        "nuisance/mixture-0.6": {"logit": 0.6, "share": 0.6},
    }
    return made_up_studies(arms)


def test_what_the_advantages_do_not_have_is_held_against_five_percent(studies):
    assert claims.supervision(studies.main, NEW, "share").estimate == pytest.approx(60)
    new = claims.supervision(studies.main, NEW, "residual_share")
    assert new.estimate == pytest.approx(12.05, abs=0.05)
    table = claims.claims_table(studies, PLAN)
    row = table[(table["claim"] == claims.CLAIMS[0]) & table["strength"].str.startswith("60 %")].iloc[0]
    assert (row["gain"], row["verdict"]) == (pytest.approx(new.estimate - 5), "supported")
    assert row["p_value"] == pytest.approx(new.beyond(5).p_value)


def test_a_margin_that_a_temperature_explains_vanishes_at_equal_entropy():
    """The new policy is the old one at a temperature of 0.8: margins and entropies as of that."""
    study = made_up_study({OLD: 0.5, NEW: 0.5})
    table = study.tables["boundary"]
    colder = table["arm"] == "mixture-0.6"
    table.loc[colder, "margin"] /= 0.8
    table.loc[colder, "entropy"] *= 0.8
    equal, smallest = claims.boundary_gain(study, NEW, OLD, "margin")
    assert smallest == pytest.approx(2)
    plain = 1000 * (0.2 / 0.8 - 0.2)
    assert abs(equal.estimate) < 0.15 * plain  # what interpolating between temperatures leaves


def test_wrong_completions_are_compared_on_problems_that_both_answer_wrong(studies):
    found = claims.wrong_length_gain(studies.main, NEW, OLD)
    assert (found.estimate, found.runs) == (pytest.approx(2.0), 6)  # 40 tokens against 38


def test_coverage_is_held_against_grpo_of_the_next_seed_of_the_base_policy():
    study = made_up_study({OLD: 0.5, NEW: 0.9}, seeds_per_base=2)
    new, null = claims.solved_alone(study, NEW, k=1)
    solved, grpo = study.solved(NEW), study.solved(OLD)
    for base, seed in new:
        other = 1 - grpo[base, (seed + 6) % 12]
        assert new[base, seed] == pytest.approx(solved[base, seed] * other)
        assert null[base, seed] == pytest.approx(grpo[base, seed] * other)
    assert compared(new, null).interval()[0] > 0
    assert claims.solved_alone(made_up_study({OLD: 0.5, NEW: 0.5}), NEW) == ({}, {})


def test_all_tests_that_are_shown_share_one_level(studies):
    assert claims.DECLARED == 18
    table = claims.claims_table(studies, PLAN)
    assert set(table["claim"]) == {*claims.CLAIMS} - {claims.CLAIMS[3]}, "coverage needs a second seed"
    verdicts = table.groupby(["claim", "strength"])["verdict"].first()
    assert verdicts["Richer supervision"].to_dict() == {"as published": "refuted", "60 % of the update": "supported"}
    # a p-value between α and α divided by all tests, those without runs included, decides nothing
    between = table[(table["p_value"] < PLAN.alpha) & (table["p_value"] > PLAN.alpha / 18)]
    assert len(between)
    assert not set(between["verdict"]) & {"supported", "refuted"}


def test_what_a_claim_could_have_shown_is_at_the_level_of_its_verdict(studies):
    """By simulation: a gain as large as is said to be detectable is found with the chance that is said."""
    table = claims.claims_table(studies, PLAN)
    row = next(row for row in table.to_dict("records") if row["bases"] >= 6 and row["gain_high"] > row["gain_low"])
    freedom = row["bases"] - 1
    error = (row["gain_high"] - row["gain_low"]) / 2 / stats.t.ppf(1 - PLAN.alpha / 2, freedom)
    random = np.random.default_rng(0)
    spread = np.sqrt(random.chisquare(freedom, 200_000) / freedom)
    t = (row["detectable"] / error + random.standard_normal(200_000)) / spread
    found = (np.abs(t) > stats.t.ppf(1 - PLAN.alpha / 18 / 2, freedom)).mean()
    assert found == pytest.approx(PLAN.power, abs=0.01)


def test_a_claim_that_only_the_pilot_can_test_names_the_pilot(studies):
    confirmation = made_up_study({OLD: 0.5, "clean/published": {"logit": 0.5, "share": 0.003}}, "confirmation")
    table = claims.claims_table(Studies((confirmation, studies.main)), PLAN)
    first = table[table["claim"] == claims.CLAIMS[0]]
    assert first.set_index("strength")["study"].to_dict() == {
        "as published": "confirmation",
        "60 % of the update": "pilot",
    }


def test_the_report_of_a_study_has_its_tests_and_its_claims(studies):
    text = claims.study_report(studies.main, PLAN)
    assert all(test.name in text for test in PLAN.tests)
    assert all(claim in text for claim in {*claims.CLAIMS} - {claims.CLAIMS[3]})
    assert claims.hypotheses(PLAN)[1] == "2  AMIR-GRPO, published ≡ GRPO"
    nothing = replace(studies.main, runs=studies.main.runs[:0])
    assert "nothing is read before" in claims.study_report(nothing, PLAN)
