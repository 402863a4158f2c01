from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from amir_grpo import metrics


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(completions, data):
    k = data.draw(st.integers(1, len(completions)))
    subsets = [any(subset) for subset in combinations(completions, k)]
    estimate = metrics.pass_at_k([sum(completions)], len(completions), k)
    np.testing.assert_allclose(estimate, [np.mean(subsets)], rtol=0, atol=1e-14)


def test_pass_at_k_is_exact_for_many_samples_and_every_shape():
    correct = np.array([[0, 1, 7], [300, 999, 1000]])
    expected = [[1 - comb(1000 - c, 500) / comb(1000, 500) for c in row] for row in correct.tolist()]
    np.testing.assert_allclose(metrics.pass_at_k(correct, 1000, 500), expected, rtol=1e-12)
    assert metrics.pass_at_k([0, 8], 8, 4).tolist() == metrics.pass_at_k([0.0, 8.0], 8.0, 4).tolist() == [0.0, 1.0]
    assert metrics.pass_at_k([True, False], 1, 1).tolist() == [1.0, 0.0]


def test_pass_at_k_takes_a_number_of_samples_for_each_problem():
    np.testing.assert_allclose(metrics.pass_at_k([1, 1], [2, 4], 2), [1.0, 0.5])


@pytest.mark.parametrize(
    ("correct", "n", "k", "named"),
    [
        ([1], 4, 5, "pass@5 from n=4"),
        ([1], 4, 0, "k=0"),
        ([5], 4, 1, "c=5 correct of n=4 samples"),
        ([-1], 4, 1, r"c=-1 .*\nCount each completion of a problem once, and give the n"),
        ([1, 5], [4, 4], 1, "c=5 correct of n=the given samples"),
        ([0.5], 8, 1, r"c=0\.5: .*\nGive counts, not shares"),
        ([1, np.nan], 8, 1, "c=nan"),
        ([1], 8.5, 1, r"n=8\.5"),
        ([1], [4, np.inf], 1, "n=inf"),
        ([1], 8, 1.5, r"k=1\.5"),
    ],
)
def test_pass_at_k_refuses_what_cannot_be(correct, n, k, named):
    with pytest.raises(ValueError, match=named) as error:
        metrics.pass_at_k(correct, n, k)
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("problems", [1, 2, 30, 200])
def test_mean_interval_of_equal_values_has_the_width_that_the_size_allows(problems):
    # one Dirichlet share against half an unseen problem: Beta(1/2, problems)
    unseen = stats.beta.ppf(0.975, 0.5, problems)
    none = metrics.mean_interval(np.zeros(problems))
    every = metrics.mean_interval(np.ones(problems))
    half = metrics.mean_interval(np.full(problems, 0.5))
    assert (none.estimate, none.low) == (0.0, 0.0)
    assert (every.estimate, every.high) == (1.0, 1.0)
    assert none.high == pytest.approx(unseen, rel=0.08)
    assert 1 - every.low == pytest.approx(unseen, rel=0.08)
    assert half.high - half.estimate == pytest.approx(unseen / 2, rel=0.08)
    clopper_pearson = 1 - 0.025 ** (1 / problems)
    assert 0 < none.high <= clopper_pearson


@pytest.mark.filterwarnings("error")
def test_mean_interval_without_bounds_is_students_and_knows_what_it_does_not_know():
    values = np.array([0.1, -0.2, 0.4, 0.3])
    found = metrics.mean_interval(values, bounds=None)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    for few in ([0.3], [0.3, 0.3]):
        interval = metrics.mean_interval(few, bounds=None)
        assert interval.estimate == pytest.approx(0.3)
        assert np.isnan([interval.low, interval.high]).all()
    nothing = metrics.mean_interval([])
    assert np.isnan([nothing.estimate, nothing.low, nothing.high]).all()


def test_mean_interval_scales_with_its_bounds_is_seeded_and_refuses_percent():
    values = np.linspace(0, 1, 40)
    once, fourfold = metrics.mean_interval(values), metrics.mean_interval(4 * values, bounds=(0, 4))
    assert (fourfold.low, fourfold.high) == pytest.approx((4 * once.low, 4 * once.high))
    assert metrics.mean_interval(values, seed=3) == metrics.mean_interval(values, seed=np.random.default_rng(3))
    assert metrics.mean_interval(values, seed=3) != metrics.mean_interval(values, seed=4)
    assert metrics.mean_interval(values) == metrics.mean_interval(values, seed=0)
    metrics.mean_interval(values * (1 + 1e-12))  # rounding
    for percent in (values * 100, values + 0.01, values - 0.01):
        with pytest.raises(ValueError, match=r"leave the bounds \(0.0, 1.0\).\nGive fractions, not percent"):
            metrics.mean_interval(percent)
    with pytest.raises(ValueError, match=r"shape \(20, 2\): one number per problem"):
        metrics.mean_interval(values.reshape(20, 2))


def true_pass_at_k(a, b, k):
    """1 - E[(1 - p)^k] for p ~ Beta(a, b)."""
    return 1 - np.prod([(b + j) / (a + b + j) for j in range(k)])


@pytest.mark.parametrize(
    ("problems", "a", "b", "k", "least", "most"),
    [
        (30, 0.3, 1.2, 4, 0.925, 0.985),
        (60, 0.5, 0.5, 1, 0.925, 0.985),
        (100, 2, 2, 2, 0.925, 0.985),
        # nearly every problem solved, where percentile and BCa intervals cover 66 to 85 %
        (30, 3, 0.6, 4, 0.93, 1.0),
        (60, 0.05, 1.5, 1, 0.93, 1.0),
    ],
)
def test_mean_interval_covers_the_benchmarks_mean(problems, a, b, k, least, most):
    generator = np.random.default_rng(problems)
    truth, experiments = true_pass_at_k(a, b, k), 400
    rates = generator.beta(a, b, (experiments, problems))
    values = metrics.pass_at_k(generator.binomial(8, rates), 8, k)
    intervals = [metrics.mean_interval(row, resamples=1000) for row in values]
    assert least <= np.mean([interval.low <= truth <= interval.high for interval in intervals]) <= most


@pytest.mark.parametrize(("problems", "k"), [(30, 1), (60, 4), (200, 2)])
def test_paired_gain_covers_the_true_gain(problems, k):
    generator = np.random.default_rng(problems)
    experiments, a, b, lift = 400, 0.5, 0.5, 0.2
    # the new policy fails (1 - lift) times as often, so E[(1 - p)^k] shrinks by (1 - lift)^k
    truth = (1 - true_pass_at_k(a, b, k)) * (1 - (1 - lift) ** k)
    rates = generator.beta(a, b, (experiments, problems))
    old = metrics.pass_at_k(generator.binomial(8, rates), 8, k)
    new = metrics.pass_at_k(generator.binomial(8, rates + lift * (1 - rates)), 8, k)
    gains = [metrics.paired_gain(n, o, resamples=50) for n, o in zip(new, old, strict=True)]
    assert 0.925 <= np.mean([gain.low <= truth <= gain.high for gain in gains]) <= 0.98


@pytest.mark.filterwarnings("error")
def test_paired_gain_of_equal_policies():
    gain = metrics.paired_gain(np.full(30, 0.25), np.full(30, 0.25))
    assert (gain.estimate, gain.p_value) == (0.0, 1.0)
    assert gain.low < 0 < gain.high
    assert gain.high == pytest.approx(-gain.low, rel=0.05)


def test_paired_gain_by_hand_and_its_refusal():
    new, old = np.linspace(0.1, 1.0, 10), np.linspace(0.0, 0.9, 10) - np.linspace(0, 0.05, 10)
    gain = metrics.paired_gain(new, old)
    expected = stats.ttest_rel(new, old).confidence_interval(0.95)
    assert gain.estimate == pytest.approx((new - old).mean())
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high))
    assert gain.p_value == pytest.approx(2 / 2**10)  # all ten rose: only all signs up or all down are as extreme
    with pytest.raises(ValueError, match=r"same problems in the same order\.\nGive two arrays"):
        metrics.paired_gain(new, old[:-1])


def test_paired_gain_is_students_from_eight_changed_problems_on_and_stays_in_its_bounds():
    old, step = np.zeros(20), np.linspace(0.1, 0.4, 20)
    for changed, student in ((7, False), (8, True)):
        new = np.where(np.arange(20) < changed, step, 0.0)
        gain, expected = metrics.paired_gain(new, old), stats.ttest_rel(new, old).confidence_interval(0.95)
        assert bool(gain.high == pytest.approx(expected.high)) is student
        assert gain == metrics.paired_gain(new, old)
    new = np.array([1.0] * 8 + [0.0])
    expected = stats.ttest_rel(new, np.zeros(9)).confidence_interval(0.95)
    assert expected.high > 1
    assert metrics.paired_gain(new, np.zeros(9)).high == 1.0
    assert metrics.paired_gain(new, np.zeros(9), bounds=None).high == pytest.approx(expected.high)


def test_paired_gain_takes_outcomes_one_problem_and_none():
    new, old = [True] * 30 + [False] * 10, [False] * 15 + [True] * 25
    gain = metrics.paired_gain(new, old)
    assert gain == metrics.paired_gain(np.array(new, float), np.array(old, float), seed=0)
    assert gain.estimate == pytest.approx(5 / 40)
    assert gain.p_value == metrics.sign_flip_p_value(np.array(new, float) - old, seed=0, resamples=10_000)
    assert metrics.paired_gain([1.0], [0.0]).estimate == 1.0
    assert metrics.paired_gain([1.0], [0.0]).p_value == 1.0
    nothing = metrics.paired_gain([], [])
    assert np.isnan([nothing.estimate, nothing.low, nothing.high, nothing.p_value]).all()


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_sign_flip_p_value_is_exact_for_few_differences(eighths):
    flipped = np.abs(np.array([*product((1, -1), repeat=len(eighths))]) @ eighths)
    expected = np.mean(flipped >= abs(sum(eighths)))
    assert metrics.sign_flip_p_value(np.array(eighths) / 8) == pytest.approx(expected)


def test_sign_flip_p_value_at_its_ends():
    difference = np.append(np.arange(1.0, 17.0), np.zeros(5))
    for unit in (1.0, 1e-9, 1e9):
        assert metrics.sign_flip_p_value(unit * difference) == pytest.approx(2 / 2**16)
    for resamples in (999, 1_000, 1_500, 10_000):
        assert metrics.sign_flip_p_value([1, -1] * 10, resamples=resamples) == 1.0


def test_sign_flip_p_value_by_monte_carlo_agrees_with_scipy_and_holds_its_level():
    generator = np.random.default_rng(0)
    difference = generator.normal(0.15, 0.5, 40)
    assert metrics.sign_flip_p_value(difference) == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, abs=0.02)
    assert metrics.sign_flip_p_value(difference) == metrics.sign_flip_p_value(difference, seed=0)
    assert metrics.sign_flip_p_value(difference) != metrics.sign_flip_p_value(difference, seed=1)
    null = generator.integers(-3, 4, (300, 40)) / 8
    p_values = [metrics.sign_flip_p_value(row, resamples=500) for row in null]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert metrics.sign_flip_p_value(np.ones(40), resamples=999) == 1 / 1000


def test_holm_by_hand():
    np.testing.assert_allclose(metrics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(metrics.holm([0.9, np.nan, 0.8]), [1.0, np.nan, 1.0])
    assert metrics.holm([0.0, 1.0]).tolist() == [0.0, 1.0]
    assert metrics.holm([]).size == 0
    with pytest.raises(ValueError, match=r"1\.5"):
        metrics.holm([1.5])


def test_margins_by_hand():
    problem = np.array(["b", "a", "b", "b", "c", "a", "c", "d", "a"])
    logp = np.array([-0.1, -0.5, -0.3, -0.4, -9.0, -0.2, -8.0, -7.0, -0.9])
    correct = np.array([True, False, False, True, True, True, True, False, False])
    names, values = metrics.margins(problem, logp, correct)  # c has no wrong completion, d no right one
    assert names.tolist() == ["a", "b"]
    np.testing.assert_allclose(values, [-0.2 + 0.7, -0.25 + 0.3])
    assert metrics.margins(problem, logp, np.ones(9))[1].size == 0
    with pytest.raises(
        ValueError, match=r"4 of 9 log-probabilities are not finite: .*\nScore these completions again"
    ):
        metrics.margins(problem, np.where(correct, logp, np.nan), correct)
    with pytest.raises(ValueError, match=r"correct \(8,\): one entry per completion"):
        metrics.margins(problem, logp, correct[:8])


def test_calibration_error_by_hand_and_its_interval():
    # problem a: two completions at 0.95, one right; problem b: one at 0.15, wrong, and one at 1.0, right
    error = metrics.calibration_error(["a", "a", "b", "b"], [0.95, 0.95, 0.15, 1.0], [1, 0, 0, 1])
    assert error.estimate == pytest.approx((abs(0.95 + 0.95 + 1.0 - 2) + 0.15) / 4)
    # resamples: a twice, b twice, or both
    assert error.low == pytest.approx(0.15 / 2)
    assert error.high == pytest.approx(0.45)
    one = metrics.calibration_error(["a"], [0.5], [1])
    assert one.estimate == 0.5
    assert np.isnan([one.low, one.high]).all()
    nothing = metrics.calibration_error([], [], [])
    assert np.isnan([nothing.estimate, nothing.low, nothing.high]).all()


def test_calibration_errors_of_two_bins_do_not_cancel_and_are_seeded():
    problem, confidence = np.arange(40), np.repeat([0.25, 0.75], 20)
    correct = np.tile([True, False], 20)  # half right at both
    error = metrics.calibration_error(problem, confidence, correct, resamples=50)
    assert error.estimate == pytest.approx(0.25)
    assert error == metrics.calibration_error(problem, confidence, correct, seed=0, resamples=50)
    assert error != metrics.calibration_error(problem, confidence, correct, seed=1, resamples=50)


def test_calibration_error_of_a_calibrated_policy_is_near_zero():
    generator = np.random.default_rng(0)
    confidence = generator.random(20_000)
    error = metrics.calibration_error(
        np.arange(20_000), confidence, generator.random(20_000) < confidence, resamples=200
    )
    assert error.estimate < 0.02
    assert error.low <= error.estimate <= error.high
    overconfident = metrics.calibration_error(
        np.arange(20_000), confidence, generator.random(20_000) < confidence / 2, resamples=200
    )
    assert overconfident.estimate == pytest.approx(0.25, abs=0.02)
    assert overconfident.low < 0.25 < overconfident.high


def test_confidence_bins_hold_their_lower_ends():
    assert metrics.confidence_bins([0.0, 0.05, 0.1, 0.95, 1.0]).tolist() == [0, 0, 1, 9, 9]
