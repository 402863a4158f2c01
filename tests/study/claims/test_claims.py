"""The five claims on made-up studies whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from amir_grpo.study.claims import boundary, coverage, length_bias, supervision
from amir_grpo.study.claims.table import CLAIMS, claim_rows, claims_table
from amir_grpo.study.figures import boundary_title, claim_title, figures_of_study
from amir_grpo.study.plan import read_plan
from amir_grpo.study.results import Studies
from amir_grpo.study.shared_scores import TEMPERATURES
from tests.study.made_up import made_up_studies, made_up_study

PLAN = read_plan()
NEW, OLD = "clean/mixture-0.6", "clean/grpo"


@pytest.fixture(scope="module")
def studies():
    arms = {
        "clean/base": -1.5,
        OLD: 0.5,
        "clean/grpo-again": 0.5,
        "clean/published": {"logit": 0.5, "share": 0.003},
        NEW: {"logit": 0.9, "share": 0.6, "margin": 0.25, "wrong_length": 38},
        "clean/two-step-grpo": 0.8,
        "clean/two-step-grpo-published": {"logit": 0.8, "share": 0.003},
        "nuisance/grpo": 0.3,
        "nuisance/mixture-0.6": {"logit": 0.6, "share": 0.6},
    }
    return made_up_studies(arms)


@pytest.fixture(scope="module")
def study(studies):
    return studies.main


def test_what_the_advantages_do_not_have_is_held_against_five_percent(studies, study):
    table = supervision.supervision_table(studies, ["clean/published", NEW]).set_index("arm")
    assert table["share"].to_numpy() == pytest.approx([0.3, 60.0])
    assert table.loc[NEW, "residual_share"] == pytest.approx(12.05, abs=0.05)
    assert supervision.residual_beyond(study, NEW).estimate == pytest.approx(7.05, abs=0.05)
    assert supervision.residual_beyond(study, "clean/published").interval()[1] < 0


def test_a_margin_that_a_temperature_explains_vanishes_at_equal_entropy():
    """The new policy is the old one at a temperature of 0.8: margins and entropies as of that."""
    study = made_up_study({OLD: 0.5, NEW: 0.5})
    table = study.tables["boundary"]
    colder = table["arm"] == "mixture-0.6"
    table.loc[colder, "margin"] /= 0.8
    table.loc[colder, "entropy"] *= 0.8
    plain, level, smallest = boundary.boundary_gain(study, NEW, OLD, "margin")
    assert plain.estimate == pytest.approx(1000 * (0.2 / 0.8 - 0.2))
    assert (level, smallest) == (pytest.approx(200), pytest.approx(2))
    corrected, _, _ = boundary.boundary_gain(study, NEW, OLD, "margin at equal entropy")
    assert (
        abs(corrected.estimate) < 0.15 * plain.estimate
    )  # what is left is that of interpolating between temperatures


def test_a_policy_that_prefers_wrong_completions_is_compared_all_the_same():
    """As after a few steps on a few problems: the smallest difference of interest is a size, whatever the margin's sign."""
    study = made_up_study({OLD: {"logit": 0.5, "margin": -0.2}, NEW: {"logit": 0.5, "share": 0.6, "margin": -0.2}})
    _, level, smallest = boundary.boundary_gain(study, NEW, OLD, "margin")
    assert (level, smallest) == (pytest.approx(-200), pytest.approx(2))
    assert len(claims_table(Studies((study,)), PLAN))


def test_what_a_claim_could_have_shown_is_at_the_level_of_its_verdict(studies):
    """By simulation: a gain as large as is said to be detectable is found with the chance that is said."""
    claims = claims_table(studies, PLAN)
    row = next(row for row in claims.to_dict("records") if row["bases"] >= 6 and row["gain_high"] > row["gain_low"])
    freedom = row["bases"] - 1
    error = (row["gain_high"] - row["gain_low"]) / 2 / stats.t.ppf(1 - PLAN.alpha / 2, freedom)
    random = np.random.default_rng(0)
    spread = np.sqrt(random.chisquare(freedom, 200_000) / freedom)
    t = (row["detectable"] / error + random.standard_normal(200_000)) / spread
    found = (np.abs(t) > stats.t.ppf(1 - PLAN.alpha / 18 / 2, freedom)).mean()
    assert found == pytest.approx(PLAN.power, abs=0.01)


def test_that_the_base_policy_has_the_highest_pair_accuracy_is_said_where_it_has():
    curves = pd.DataFrame(
        {"about": ["base policy", "GRPO", "GRPO"], "temperature": [1.0, 1.0, 2.0], "accuracy": [0.9, 0.895, 0.95]}
    )
    said = "At temperature 1 the base policy itself has the highest pair accuracy, 90.0 % (GRPO: 89.5 %)."
    assert boundary.base_sentence(curves) == said
    assert boundary.base_sentence(curves.assign(accuracy=[0.9, 0.9, 0.5])) == ""
    assert boundary.base_sentence(curves[1:]) == ""


def test_the_figure_of_the_boundary_tells_margin_and_accuracy_apart_where_all_strengths_agree(studies):
    claims = claims_table(studies, PLAN)
    of_margin = claims["test"].str.startswith("margin at equal entropy")
    both = claims.assign(verdict=np.where(of_margin, "undecided", "equivalent"))
    title = "Sharper decision boundary: margin undecided, pair accuracy equivalent, as published and with 60 % of the update"
    assert boundary_title(both) == title
    one = both.assign(verdict=both["verdict"].mask(of_margin & (both["strength"] == "as published"), "supported"))
    assert boundary_title(one) == claim_title(one, CLAIMS[1])
    pilots = both.assign(study=np.where(both["claim"] == CLAIMS[1], "pilot", "confirmation"))
    assert boundary_title(pilots) == claim_title(pilots, CLAIMS[1])
    assert "(pilot)" in boundary_title(pilots)


def test_values_at_an_entropy_lie_between_those_of_the_temperatures():
    rows = pd.DataFrame({"entropy": [0.1, 0.3], "margin": [0.5, 0.1], "temperature": [0.5, 1.0]})
    assert boundary.at_entropy(rows, 0.2, "margin") == pytest.approx(0.3)
    assert boundary.at_entropy(rows, 0.9, "margin") == 0.1


def test_wrong_completions_are_compared_on_problems_that_both_answer_wrong(studies, study):
    found = length_bias.wrong_length_gain(study, NEW, OLD)
    assert found.estimate == pytest.approx(2.0)  # 40 tokens against 38
    assert found.runs == 6
    table = length_bias.slope_table(studies).set_index("about")
    assert table["slope"].to_list() == [-1.0, -1.0]
    assert table["theory"].to_numpy() == pytest.approx([-1.0, -1.0])
    assert length_bias.theoretical_slope("dr_grpo", 0.0) == 0
    assert -1 < length_bias.theoretical_slope("dr_grpo", 0.6) < 0


def test_coverage_is_held_against_grpo_of_another_seed(studies, study):
    table = coverage.coverage_table(studies, ["clean/published", NEW], PLAN.margin, PLAN.alpha)
    one = table[(table["k"] == 1)].set_index("about")
    new, other = (study.solved(arm) for arm in (NEW, "clean/grpo-again"))
    by_hand = np.mean([(new[run] * (1 - other[run])).mean() for run in new])
    assert one.loc["AMIR-GRPO, 60 %", "only_new"] == pytest.approx(100 * by_hand)
    assert one.loc["AMIR-GRPO, 60 %", "gain"] == pytest.approx(
        one.loc["AMIR-GRPO, 60 %", "only_new"] - one.loc["AMIR-GRPO, 60 %", "null"]
    )
    assert one.loc["AMIR-GRPO, 60 %", "gain_low"] > 0
    assert one.loc["AMIR-GRPO, published", "gain_low"] < 0 < one.loc["AMIR-GRPO, published", "gain_high"]


def test_without_a_second_draw_the_next_seed_of_the_base_policy_is_the_other():
    study = made_up_study({OLD: 0.5, NEW: 0.5}, seeds_per_base=2)
    other = coverage.others(study)
    solved = study.solved(OLD)
    assert np.array_equal(other[0, 0], solved[0, 6])
    assert np.array_equal(other[0, 6], solved[0, 0])
    assert coverage.others(made_up_study({OLD: 0.5})) == {}


def test_all_tests_that_are_shown_share_one_level(studies):
    table = claims_table(studies, PLAN)
    assert set(table["claim"]) == set(CLAIMS)
    rows = {claim: cells for claim, *cells in claim_rows(table)}
    assert rows["Richer supervision"] == ["refuted", "supported"]
    assert rows["Gains for every variant"] == ["undecided", "no runs yet"]
    assert rows["Broader coverage"][1] in ("supported", "undecided")
    # a p-value between α and α divided by all tests, those without runs included, decides nothing
    between = table[(table["p_value"] < PLAN.alpha) & (table["p_value"] > PLAN.alpha / 18)]
    assert not set(between["verdict"]) & {"supported", "refuted"}


def test_a_claim_that_only_the_pilot_tests_says_so_beside_those_of_the_confirmation(study):
    confirmation = made_up_study({OLD: 0.5, "clean/published": {"logit": 0.5, "share": 0.003}}, "confirmation")
    table = claims_table(Studies((confirmation, study)), PLAN)
    rows = {claim: cells for claim, *cells in claim_rows(table)}
    assert rows["Richer supervision"] == ["refuted", "supported (pilot)"]
    assert set(table.loc[table["claim"] == CLAIMS[3], "study"]) == {"pilot"}, "it has no GRPO of another seed"


def test_every_figure_is_drawn_within_its_edges(studies):
    drawn = figures_of_study(studies, PLAN)
    assert len(drawn) == 3 + len(CLAIMS)
    for name, figure in drawn.items():
        figure.canvas.draw()
        width, height = figure.bbox.size
        box = figure.get_tightbbox()
        assert box.x0 * figure.dpi >= -2, name
        assert box.y0 * figure.dpi >= -2, name
        assert box.x1 * figure.dpi <= width + 2, name
        assert box.y1 * figure.dpi <= height + 2, name


def test_temperatures_hold_the_one_of_the_policy_itself():
    assert 1.0 in TEMPERATURES
