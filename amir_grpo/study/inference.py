"""Paired inference over base policies, training seeds and problems: is one arm better than another, or as good?

In a run, of a base policy b and a seed s, both arms train with the same random numbers and answer the same problems p.
The data are their differences,

    d_bsp = gain + base_b + seed_bs + problem_p + rest_bsp,

where everything except the gain is random; every interval is for new base policies, seeds and problems.

The test is a t-test on the means of the base policies: a seed affects all problems of its run, and a base policy all
its runs, so neither problems nor runs count as independent. It is exact for normal effects and stays valid if base
policies differ in their number of runs (Ibragimov and Müller 2010). The problems' part of the mean's variance is added
to the squared standard error at the same degrees of freedom, which can only make the test more careful (Mickey and
Brown 1966). `benchmarks/inference_error.py` simulates it and alternatives. With one base policy, its runs take the
place of base policies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

ALPHA, POWER = 0.05, 0.8
# The test that assumes least, flipping the signs of n differences, has no p-value below 2^(1-n): with fewer than 6, a
# result could be significant at 0.05 only through the assumed shape of the distribution.
MIN_UNITS = 6
# Columns of a table of comparisons: see `Comparison.columns`.
COLUMNS = ("gain", "gain_low", "gain_high", "gain_inner_low", "gain_inner_high", "p_value", "p_equivalent")
COLUMNS += ("detectable", "bases", "runs", "problems", "no_test")


class Verdict(StrEnum):
    """A verdict of the data on a hypothesis."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


class Hypothesis(StrEnum):
    """A hypothesis: a gain above 0 (GREATER), within ± margin (EQUIVALENT) or below the margin (NOT_GREATER)."""

    GREATER = "greater"
    EQUIVALENT = "equivalent"
    NOT_GREATER = "not greater"

    @property
    def shown(self) -> Verdict:
        """The verdict by which the hypothesis is shown."""
        return Verdict.EQUIVALENT if self is Hypothesis.EQUIVALENT else Verdict.SUPPORTED


@dataclass(frozen=True)
class Comparison:
    """The mean gain of one arm over another with its standard error: every interval and p-value follows from these.

    Attributes:
        estimate, standard_error: In the unit of the data; the error is NaN if it is unknown.
        freedom: Degrees of freedom, (base policies - 1) or, with one base policy, (runs - 1).
        bases, runs, problems: Numbers of each; one problem if each run is a single number.
        no_test: Why there is no p-value, in a sentence; empty if there is one.
    """

    estimate: float
    standard_error: float
    freedom: int
    bases: int
    runs: int
    problems: int
    no_test: str = ""

    @property
    def p_value(self) -> float:
        """Two-sided p-value of a gain of 0; NaN if there is none, see `no_test`."""
        return min(1.0, 2 * min(self._p_above(0.0), self._p_below(0.0))) if not self.no_test else np.nan

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """Return the ends of the two-sided t-interval; NaN if the spread is unknown."""
        if not self.standard_error > 0:
            return np.nan, np.nan
        half = float(stats.t.ppf((1 + level) / 2, self.freedom)) * self.standard_error
        return self.estimate - half, self.estimate + half

    def p_equivalent(self, margin: float) -> float:
        """Return the p-value of two one-sided tests (Schuirmann 1987): < α if the 1 - 2α interval is in ± margin."""
        return max(self._p_above(-margin), self._p_below(margin))

    def detectable(self, alpha: float = ALPHA, power: float = POWER) -> float:
        """Return the smallest gain that a test with this standard error finds with this power; NaN without a test."""
        return np.nan if self.no_test else detectable_gain(self.standard_error, self.freedom, alpha, power)

    def scaled(self, factor: float) -> Comparison:
        """Return the comparison in another unit: 100 turns fractions into percentage points."""
        return replace(self, estimate=self.estimate * factor, standard_error=self.standard_error * abs(factor))

    def beyond(self, bound: float) -> Comparison:
        """Return the comparison of the gain with `bound` instead of 0."""
        return replace(self, estimate=self.estimate - bound)

    def columns(self, margin: float, alpha: float = ALPHA, power: float = POWER) -> dict[str, float | int | str]:
        """Return a table row of `COLUMNS`: gain_low and gain_high are the ends of the 1 - α interval, gain_inner_low
        and gain_inner_high those of the 1 - 2α interval, which is compared with the margin."""
        ends = (*self.interval(1 - alpha), *self.interval(1 - 2 * alpha))
        p_values = (self.p_value, self.p_equivalent(margin), self.detectable(alpha, power))
        values = (self.estimate, *ends, *p_values, self.bases, self.runs, self.problems, self.no_test)
        return dict(zip(COLUMNS, values, strict=True))

    def _p_above(self, bound: float) -> float:
        """Return the one-sided p-value of "the gain is at most `bound`"; NaN if there is none."""
        t = np.nan if self.no_test else (self.estimate - bound) / self.standard_error
        return float(stats.t.sf(t, self.freedom))

    def _p_below(self, bound: float) -> float:
        """Return the one-sided p-value of "the gain is at least `bound`"; NaN if there is none."""
        t = np.nan if self.no_test else (self.estimate - bound) / self.standard_error
        return float(stats.t.cdf(t, self.freedom))


def compare(differences: Sequence[ArrayLike]) -> Comparison:
    """Return the gain of one arm over another, for new base policies, seeds and problems.

    `differences`: for each base policy (seeds, problems), the new minus the old score of a run on a problem. With one
    score per run, (seeds, 1), the interval is only for the problems behind that score.
    """
    by_base = [np.asarray(runs, dtype=float) for runs in differences]
    units = np.array([runs.mean(axis=0) for runs in by_base]) if len(by_base) > 1 else by_base[0]
    estimate, error = crossed_error(units) if len(units) > 1 else (units.mean(), np.nan)
    if error < 1e-12 * np.abs(units).max():  # what rounding leaves of equal differences
        error = 0.0
    what, reason = ("base policies" if len(by_base) > 1 else "runs"), ""
    if len(units) < MIN_UNITS:
        reason = f"{len(units)} {what}: at least {MIN_UNITS} are needed for a p-value."
    elif not error > 0:
        reason = f"All {len(units)} {what} differ by the same, so that nothing is known of the spread."
    sizes = {"bases": len(by_base), "runs": sum(map(len, by_base)), "problems": units.shape[1]}
    return Comparison(float(estimate), float(error), len(units) - 1, **sizes, no_test=reason)


def crossed_error(difference: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and its standard error for new units (base policies or runs) and new problems, crossed.

    `difference`: (..., units, problems), at least two units; leading axes are separate experiments. The variance of
    the mean is that of the units' means, plus (MS_problems - MS_rest) / (units x problems) if that is above 0.
    Its degrees of freedom are units - 1. With one problem nothing is added.
    """
    units, problems = difference.shape[-2:]
    by_unit, by_problem = difference.mean(axis=-1), difference.mean(axis=-2)
    mean = by_unit.mean(axis=-1)
    variance = by_unit.var(axis=-1, ddof=1) / units
    if problems > 1:
        of_units = problems * np.sum((by_unit - mean[..., None]) ** 2, axis=-1)
        of_problems = units * np.sum((by_problem - mean[..., None]) ** 2, axis=-1)
        total = np.sum((difference - mean[..., None, None]) ** 2, axis=(-2, -1))
        rest = (total - of_units - of_problems) / ((units - 1) * (problems - 1))
        variance = variance + np.maximum(of_problems / (problems - 1) - rest, 0) / (units * problems)
    return mean, np.sqrt(variance)


def verdict(
    comparison: Comparison,
    margin: float,
    hypothesis: Hypothesis = Hypothesis.GREATER,
    alpha: float = ALPHA,
    p_value: float | None = None,
) -> Verdict:
    """Judge a hypothesis by the study's one rule. Without a p-value it is undecided.

    GREATER: if the p-value is below α, supported or refuted by the side of 0 on which the 1 - α interval lies; else
    equivalent if the 1 - 2α interval lies within ± margin. EQUIVALENT: equivalent if it does; refuted if the 1 - α
    interval lies beyond. NOT_GREATER: supported if the 1 - 2α interval lies below the margin, refuted if the 1 - α
    interval lies above it. `p_value`: corrected, if several comparisons are shown together; None for the plain one.
    """
    (low, high), (inner_low, inner_high) = comparison.interval(1 - alpha), comparison.interval(1 - 2 * alpha)
    p_value = comparison.p_value if p_value is None else p_value
    if math.isnan(p_value):
        return Verdict.UNDECIDED
    if hypothesis is Hypothesis.NOT_GREATER:
        if inner_high < margin:
            return Verdict.SUPPORTED
        return Verdict.REFUTED if low > margin else Verdict.UNDECIDED
    if hypothesis is Hypothesis.GREATER and p_value < alpha and (low > 0 or high < 0):
        return Verdict.SUPPORTED if low > 0 else Verdict.REFUTED
    if -margin < inner_low and inner_high < margin:
        return Verdict.EQUIVALENT
    beyond = low > margin or high < -margin
    return Verdict.REFUTED if hypothesis is Hypothesis.EQUIVALENT and beyond else Verdict.UNDECIDED


def detectable_gain(standard_error: float, freedom: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the gain that the two-sided t-test finds with this power (in either direction)."""
    return standard_error * _detectable_errors(freedom, alpha, power)


@lru_cache
def _detectable_errors(freedom: int, alpha: float, power: float) -> float:
    critical = stats.t.ppf(1 - alpha / 2, freedom)
    edge = critical * estimated_over_true(freedom)

    def surplus(gain: float) -> float:
        return np.mean(stats.norm.cdf(gain - edge) + stats.norm.cdf(-gain - edge)) - power

    return float(optimize.brentq(surplus, 0, 10 * critical))


def estimated_over_true(freedom: int) -> NDArray[np.float64]:
    """Return 4,000 equally likely ratios of estimated to true standard errors, independent of the estimate."""
    return np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, freedom) / freedom)
