"""The rule of the verdicts, case by case, and in agreement with the p-values that it stands for."""

import math

import numpy as np
import pytest
from scipy import stats

from amir_grpo.choices import SIGNIFICANCE
from amir_grpo.metrics import INTERVAL_ENDS
from amir_grpo.results.verdicts import Hypothesis, verdict_from

GREATER, EQUIVALENT, NOT_GREATER = Hypothesis


@pytest.mark.parametrize(
    ("hypothesis", "p_value", "interval", "inner", "verdict"),
    [
        (GREATER, 0.01, (0.2, 1.8), (0.4, 1.6), "supported"),
        (GREATER, 0.01, (-1.8, -0.2), (-1.6, -0.4), "refuted"),
        (GREATER, 0.20, (-0.4, 0.6), (-0.3, 0.4), "equivalent"),
        (GREATER, 0.01, (0.1, 0.4), (0.15, 0.35), "supported"),  # small, and above 0
        (GREATER, 0.06, (0.2, 1.8), (0.4, 1.6), "undecided"),  # a corrected p-value may not follow its interval
        (GREATER, math.nan, (0.2, 1.8), (0.4, 1.6), "undecided"),
        (EQUIVALENT, 0.01, (0.1, 0.4), (0.15, 0.35), "equivalent"),
        (EQUIVALENT, 0.01, (0.6, 1.8), (0.7, 1.6), "refuted"),
        (EQUIVALENT, 0.01, (0.4, 1.8), (0.6, 1.6), "undecided"),
        (NOT_GREATER, 0.20, (-0.9, 0.6), (-0.8, 0.4), "supported"),
        (NOT_GREATER, 0.01, (0.6, 1.8), (0.7, 1.6), "refuted"),
        (NOT_GREATER, 0.01, (0.2, 1.8), (0.4, 1.6), "undecided"),
        (NOT_GREATER, 0.20, (-0.2, 1.8), (-0.1, 1.6), "undecided"),
    ],
)
def test_every_verdict(hypothesis, p_value, interval, inner, verdict):
    assert verdict_from(p_value, interval, inner, 0.5, hypothesis) == verdict


def test_without_a_margin_nothing_is_equivalent():
    assert verdict_from(0.9, (-1e-9, 1e-9)) == "undecided"


def test_equivalence_is_that_of_two_one_sided_tests():
    generator = np.random.default_rng(0)
    for values in generator.normal(0.1, 0.6, (200, 8)):
        inner = stats.ttest_1samp(values, 0).confidence_interval(1 - 2 * SIGNIFICANCE)
        sides = [
            stats.ttest_1samp(values, -0.5, alternative="greater"),
            stats.ttest_1samp(values, 0.5, alternative="less"),
        ]
        both = max(side.pvalue for side in sides) < SIGNIFICANCE
        found = verdict_from(1.0, (-9.0, 9.0), (inner.low, inner.high), 0.5, EQUIVALENT)
        assert (found == "equivalent") == both


def test_intervals_and_tests_are_at_one_level():
    assert INTERVAL_ENDS == (SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2)
