"""The verdict on a hypothesis, from the intervals and the p-value of its test: the one rule of this package."""

from __future__ import annotations

import math
from enum import StrEnum

from amir_grpo.choices import SIGNIFICANCE

# Smallest difference of interest between two log-probability margins, as a share of the older policy's margin.
MARGIN_SHARE = 0.01


class Verdict(StrEnum):
    """What the data say of a hypothesis."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


class Hypothesis(StrEnum):
    """What a comparison may be made to show.

    GREATER: the gain is above 0. EQUIVALENT: it lies within ± margin. NOT_GREATER: it is below the margin.
    """

    GREATER = "greater"
    EQUIVALENT = "equivalent"
    NOT_GREATER = "not greater"


def verdict_from(
    p_value: float,
    interval: tuple[float, float],
    inner: tuple[float, float] = (-math.inf, math.inf),
    margin: float = 0.0,
    hypothesis: Hypothesis = Hypothesis.GREATER,
    significance: float = SIGNIFICANCE,
) -> Verdict:
    """What a test says of a hypothesis; undecided wherever there is no p-value.

    GREATER: supported or refuted where the p-value is below the significance level, by the side of 0 that the interval
    lies on; else equivalent where the inner interval lies within ± margin. EQUIVALENT: equivalent where it does; refuted
    where the interval lies beyond the margin. NOT_GREATER: supported where the inner interval lies below the margin, else
    refuted where the interval lies above it.

    Args:
        p_value: Two-sided, of a gain of 0, corrected where several are shown together; NaN where there is no test.
        interval: Ends of the interval of level 1 - significance.
        inner: Ends of that of level 1 - 2 significance, which the margin is held against; unbounded where no margin is set.
        margin: Smallest gain of interest, in the unit of the intervals.
    """
    (low, high), (inner_low, inner_high) = interval, inner
    if math.isnan(p_value):
        return Verdict.UNDECIDED
    if hypothesis is Hypothesis.NOT_GREATER:
        if inner_high < margin:
            return Verdict.SUPPORTED
        return Verdict.REFUTED if low > margin else Verdict.UNDECIDED
    if hypothesis is Hypothesis.GREATER and p_value < significance and (low > 0 or high < 0):
        return Verdict.SUPPORTED if low > 0 else Verdict.REFUTED
    if -margin < inner_low and inner_high < margin:
        return Verdict.EQUIVALENT
    beyond = low > margin or high < -margin
    return Verdict.REFUTED if hypothesis is Hypothesis.EQUIVALENT and beyond else Verdict.UNDECIDED
