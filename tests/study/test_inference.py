"""Paired comparison of arms over base policies, seeds and problems: against SciPy, and by simulation with known truth."""

import numpy as np
import pytest
from scipy import stats

from amir_grpo.study import inference
from amir_grpo.study.inference import Comparison, Hypothesis, Verdict, compare, verdict
from tools.study import design_error, power_if_equal

MARGIN = 0.5


def differences(seed, bases, seeds, problems, base_sd=0.0, problem_sd=0.0, gain=0.0):
    generator = np.random.default_rng(seed)
    found = gain + generator.normal(0, base_sd, (bases, 1, 1)) + generator.normal(0, 1, (bases, seeds, 1))
    return found + generator.normal(0, problem_sd, (1, 1, problems)) + generator.normal(0, 3, (bases, seeds, problems))


def made(estimate, standard_error, freedom=5):
    return Comparison(estimate, standard_error, freedom, bases=6, runs=24, problems=1)


def test_one_score_a_run_is_the_t_test_on_the_means_of_the_base_policies():
    generator = np.random.default_rng(0)
    new, old = generator.normal(0.3, 1, (6, 4, 1)), generator.normal(0, 1, (6, 4, 1))
    found = compare(new - old)
    oracle = stats.ttest_rel(new.mean(axis=(1, 2)), old.mean(axis=(1, 2)))
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert found.interval() == pytest.approx(oracle.confidence_interval(0.95))
    assert found.interval(0.9) == pytest.approx(oracle.confidence_interval(0.9))
    assert (found.bases, found.runs, found.freedom) == (6, 24, 5)


def test_with_one_base_policy_its_runs_are_the_units():
    new, old = np.random.default_rng(1).normal(0, 1, (2, 1, 8, 1))
    oracle = stats.ttest_rel(new[0, :, 0], old[0, :, 0])
    found = compare(new - old)
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert found.freedom == 7


def test_problems_add_what_they_contribute_to_the_variance_of_the_mean():
    generator = np.random.default_rng(2)
    means, errors = [], []
    for _ in range(3000):
        difference = generator.normal(0, 1, (8, 1)) + generator.normal(0, 4, 40) + generator.normal(0, 3, (8, 40))
        mean, error = inference.crossed_error(difference)
        means.append(mean)
        errors.append(error**2)
    assert np.mean(errors) == pytest.approx(np.var(means), rel=0.1)
    assert np.var(means) == pytest.approx(1 / 8 + 16 / 40 + 9 / 320, rel=0.1)


@pytest.mark.parametrize(("bases", "seeds", "base_sd"), [(6, 4, 0.0), (6, 4, 1.0), (1, 6, 0.0)])
def test_a_true_null_is_rejected_as_often_as_stated(bases, seeds, base_sd):
    p_values = np.array(
        [compare(differences(i, bases, seeds, 20, base_sd, problem_sd=0.5)).p_value for i in range(1500)]
    )
    for level in (0.05, 0.01):
        # at most three standard errors of the simulation above the level; below it is careful, and allowed
        assert np.mean(p_values < level) <= level + 3 * np.sqrt(level * (1 - level) / 1500)
    assert np.mean(p_values < 0.05) > 0.025


def test_base_policies_weigh_the_same_whatever_their_number_of_runs():
    whole = differences(4, 6, 4, 10, gain=2.0)
    ragged = [whole[0, :2], *whole[1:5], whole[5, :1]]
    found = compare(ragged)
    assert (found.bases, found.runs) == (6, 19)
    assert found.estimate == pytest.approx(np.mean([runs.mean() for runs in ragged]))


@pytest.mark.parametrize(("bases", "seeds"), [(1, 3), (3, 1), (5, 8), (1, 5)])
def test_few_units_give_an_interval_and_no_p_value(bases, seeds):
    found = compare(differences(6, bases, seeds, 10, gain=100.0))
    assert np.isnan([found.p_value, found.p_equivalent(MARGIN), found.detectable()]).all()
    assert "at least 6 are needed" in found.no_test
    assert found.interval()[0] > 0
    assert {verdict(found, MARGIN, hypothesis) for hypothesis in Hypothesis} == {Verdict.UNDECIDED}


def test_one_run_gives_an_estimate_only():
    found = compare(differences(7, 1, 1, 10))
    assert np.isnan(found.interval()).all()
    assert found.no_test


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_equal_differences_say_nothing_of_the_spread(gain):
    found = compare(np.full((6, 2, 3), gain))
    assert np.isnan([found.p_value, *found.interval()]).all()
    assert "nothing is known of the spread" in found.no_test


@pytest.mark.parametrize(
    ("estimate", "standard_error"), [(0.1, 0.1), (0.3, 0.1), (-0.29, 0.1), (0.0, 0.26), (0.9, 0.1)]
)
def test_equivalence_is_the_inner_interval_within_the_margin(estimate, standard_error):
    found = made(estimate, standard_error)
    low, high = found.interval(0.9)
    assert (found.p_equivalent(MARGIN) < 0.05) == (low > -MARGIN and high < MARGIN)
    oracle = max(
        stats.t.cdf((estimate - MARGIN) / standard_error, 5), stats.t.sf((estimate + MARGIN) / standard_error, 5)
    )
    assert found.p_equivalent(MARGIN) == pytest.approx(oracle)


def test_an_arm_at_the_margin_is_found_equivalent_in_5_percent():
    generator = np.random.default_rng(8)
    runs = generator.normal(MARGIN, 0.3, (2000, 6, 1, 1))
    found = [compare(one).p_equivalent(MARGIN) < 0.05 for one in runs]
    assert np.mean(found) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("estimate", "standard_error", "greater", "equivalent", "not_greater"),
    [
        (1.0, 0.2, "supported", "undecided", "undecided"),
        (2.0, 0.2, "supported", "refuted", "refuted"),
        (-1.0, 0.15, "refuted", "refuted", "supported"),
        (0.0, 0.1, "equivalent", "equivalent", "supported"),
        (0.2, 0.05, "supported", "equivalent", "supported"),  # shown, and smaller than what is of interest
        (0.4, 0.5, "undecided", "undecided", "undecided"),
        (-0.6, 0.4, "undecided", "undecided", "supported"),
    ],
)
def test_verdicts(estimate, standard_error, greater, equivalent, not_greater):
    found = made(estimate, standard_error)
    assert verdict(found, MARGIN) == greater
    assert verdict(found, MARGIN, Hypothesis.EQUIVALENT) == equivalent
    assert verdict(found, MARGIN, Hypothesis.NOT_GREATER) == not_greater


def test_another_unit_changes_the_numbers_and_not_the_test():
    difference = differences(9, 6, 2, 10, gain=0.4)
    fraction, points = compare(difference), compare(100 * difference)
    scaled = fraction.scaled(100)
    assert scaled.columns(MARGIN) == pytest.approx(points.columns(MARGIN))
    assert scaled.p_value == fraction.p_value


@pytest.mark.parametrize("freedom", [5, 23])
def test_the_detectable_gain_is_found_with_the_stated_power(freedom):
    generator = np.random.default_rng(10)
    gain = inference.detectable_gain(0.2, freedom)
    units = freedom + 1
    runs = generator.normal(gain, 0.2 * np.sqrt(units), (20_000, units))
    assert np.mean(stats.ttest_1samp(runs, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)


def test_the_power_of_equal_arms_is_that_of_a_simulation():
    runs = np.random.default_rng(11).normal(0, 0.7, (20_000, 6))
    inner = stats.ttest_1samp(runs, 0, axis=1).confidence_interval(0.9)
    simulated = np.mean((inner.low > -MARGIN) & (inner.high < MARGIN))
    error = 0.7 / np.sqrt(6)
    assert power_if_equal(Hypothesis.EQUIVALENT, error, 5, MARGIN, 0.05) == pytest.approx(simulated, abs=0.01)
    below = np.mean(inner.high < MARGIN)
    assert power_if_equal(Hypothesis.NOT_GREATER, error, 5, MARGIN, 0.05) == pytest.approx(below, abs=0.01)
    assert np.isnan(power_if_equal(Hypothesis.GREATER, error, 5, MARGIN, 0.05))


def test_the_error_of_a_design_is_that_of_its_experiments():
    expected = design_error(6, 4, seed_sd=np.sqrt(1 + 9 / 20), base_sd=0.8)
    found = [compare(differences(i, 6, 4, 20, base_sd=0.8)).standard_error ** 2 for i in range(1000)]
    assert np.sqrt(np.mean(found)) == pytest.approx(expected, rel=0.06)


def test_a_corrected_p_value_decides_in_place_of_the_comparisons_own():
    found = made(0.4, 0.1)
    assert verdict(found, MARGIN) == "supported"
    assert verdict(found, MARGIN, p_value=0.2) == "undecided"
    assert verdict(found, MARGIN, p_value=np.nan) == "undecided"
