"""Pass@k, margins, intervals and paired tests: pure functions on plain NumPy arrays.

The unit of every interval and test is the problem: more samples only sharpen its own pass rate, while more problems
show how the benchmark's mean varies. Every function that draws random numbers takes `seed` (an int or a NumPy
Generator) and returns the same result for the same int.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

# The ends of every 95 % interval as quantiles. A test checks that they match `choices.SIGNIFICANCE`.
INTERVAL_ENDS = (0.025, 0.975)
RESAMPLES = 10_000
# Up to this many non-zero differences, all 2^m sign patterns are enumerated; beyond, they are drawn.
EXACT_SIGN_FLIPS = 16
# With fewer changed problems, Student's t covers too rarely (measured: down to 76 %); see `paired_gain`.
MIN_CHANGED = 8
BINS = 10  # of stated confidence

Seed = int | np.random.Generator
Bounds = tuple[float, float] | None


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval, which are NaN if the data say nothing about them."""

    estimate: float
    low: float
    high: float

    def columns(self, name: str, scale: float = 1.0) -> dict[str, float]:
        """Return the interval as part of a table's row: name, name_low and name_high, each times `scale`."""
        return {name: scale * self.estimate, f"{name}_low": scale * self.low, f"{name}_high": scale * self.high}


@dataclass(frozen=True)
class Gain(Interval):
    """A mean difference between two policies on the same problems, its 95 % interval and two-sided p-value."""

    p_value: float

    def columns(self, name: str = "gain", scale: float = 1.0) -> dict[str, float]:
        """Return the gain as part of a table's row: the columns of its interval, and p_value."""
        return super().columns(name, scale) | {"p_value": self.p_value}


@dataclass(frozen=True)
class Comparison(Gain):
    """A gain, and how much data it would take to be certain of it.

    `unit`: what the interval generalises to, "problem" or "seed". `problems`, `seeds`: how many were compared.
    `detectable`: the smallest gain that a test at 5 % finds with a chance of 80 %. `units_needed`, `samples_needed`: how
    many units, or samples per problem, would find a true gain of the estimated size with that chance; infinite if no
    number would, NaN if the data do not tell.
    """

    problems: int
    seeds: int
    unit: str
    detectable: float
    units_needed: float
    samples_needed: float


def pass_at_k(correct: ArrayLike, n: ArrayLike, k: int) -> NDArray[np.float64]:
    """Estimate without bias the chance that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k).

    `correct`: correct samples c of each problem, any shape. `n`: samples drawn, an int or one for each problem.
    Returns fractions in the shape of `correct`: the share of k-subsets of the n samples that hold a correct one (Chen
    et al. 2021, arXiv 2107.03374). Raises ValueError if k < 1, k > n, c < 0, c > n, or one is not a whole number.
    """
    correct, n = np.asarray(correct), np.asarray(n)
    for name, counts in (("c", correct), ("n", n), ("k", np.asarray(k))):
        if (broken := counts[~np.isfinite(counts) | (counts != np.floor(counts))]).size:
            raise ValueError(
                f"pass@k with {name}={broken.flat[0]}: it counts samples, in whole numbers.\nGive counts, not shares."
            )
    if k < 1:
        raise ValueError(f"pass@k with k={k}: k counts samples, so it is at least 1.\nChoose k >= 1.")
    if n.size and k > n.min():
        raise ValueError(
            f"pass@{k} from n={n.min()} samples: the estimator chooses k of the n samples, so k <= n.\n"
            f"Draw at least {k} samples per problem or choose k <= {n.min()}."
        )
    if (wrong := correct[(correct < 0) | (correct > n)]).size:
        raise ValueError(
            f"c={wrong.flat[0]} correct of n={n if n.ndim == 0 else 'the given'} samples: 0 <= c <= n must hold.\n"
            "Count each completion of a problem once, and give the n that it was counted over."
        )
    none_correct = np.ones(np.broadcast_shapes(correct.shape, n.shape))
    for j in range(k):  # a product of ratios, which does not overflow
        # the factor is 0 from j = n - c on: every k-subset then holds a correct sample
        none_correct = none_correct * np.maximum(n - correct - j, 0) / (n - j)
    return 1.0 - none_correct


def mean_interval(
    values: ArrayLike, bounds: Bounds = (0.0, 1.0), seed: Seed = 0, resamples: int = RESAMPLES
) -> Interval:
    """Return the mean over problems and its 95 % interval, as if the problems were drawn from many like them.

    `values`: one number per problem, (problems,). `bounds`: the least and greatest value that a problem can have, or
    None if it has none.

    With bounds, the interval is a Bayesian bootstrap over problems (Rubin 1981: Dirichlet weights) with half an unseen
    problem at the lower bound for the lower end, half at the upper bound for the upper end. A benchmark at 0 % or
    100 % gets the width that its size allows: with 30 problems, all wrong, the upper end is about 8 %. Measured on
    beta-binomial benchmarks (n = 8; k = 1, 2, 4; 30 to 200 problems), it covers 93.6 to 99.2 %; percentile and BCa
    intervals fall to 66 %.

    Without bounds, it is Student's t; the ends are NaN for fewer than two problems or without variance.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"values of shape {values.shape}: one number per problem is needed, shape (problems,).")
    if values.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    if bounds is None:
        return Interval(float(values.mean()), *_student_ends(values))
    low, high = values.min(), values.max()
    if low < bounds[0] - 1e-9 or high > bounds[1] + 1e-9:
        message = f"values from {low:g} to {high:g} leave the bounds {bounds}."
        raise ValueError(f"{message}\nGive fractions, not percent, or the bounds that hold.")
    return Interval(float(values.mean()), *_bounded_ends(values, bounds, seed, resamples))


def _student_ends(values: NDArray[np.float64]) -> tuple[float, float]:
    if values.size < 2 or np.ptp(values) == 0:
        return np.nan, np.nan
    half = stats.t.ppf(INTERVAL_ENDS[1], values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean() - half), float(values.mean() + half)


def _bounded_ends(
    values: NDArray[np.float64], bounds: tuple[float, float], seed: Seed, resamples: int
) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    unseen = generator.gamma(0.5, size=resamples)
    weights = (generator.standard_exponential((rows, values.size)) for rows in _blocks(resamples))
    weighted, total = np.concatenate([(block @ values, block.sum(axis=1)) for block in weights], axis=1)
    low, high = (
        np.quantile((weighted + unseen * bound) / (total + unseen), end)
        for bound, end in zip(bounds, INTERVAL_ENDS, strict=True)
    )
    # rounding must not push an end past the mean if all values are equal
    mean = values.mean()
    return float(min(max(low, bounds[0]), mean)), float(max(min(high, bounds[1]), mean))


def _blocks(resamples: int) -> Iterator[int]:
    """Yield the sizes of blocks of resamples, so that memory does not grow with their number."""
    for start in range(0, resamples, 1000):
        yield min(1000, resamples - start)


def paired_gain(
    new: ArrayLike, old: ArrayLike, bounds: Bounds = (-1.0, 1.0), seed: Seed = 0, resamples: int = RESAMPLES
) -> Gain:
    """Return the mean of `new - old` over the same problems, its 95 % interval, and a sign-flip permutation p-value.

    `new`, `old`: one number per problem, (problems,), same order. `bounds`: of a difference (None: unbounded).
    The interval is Student's t on the differences. If fewer than 8 problems changed, most of what could change was not
    seen, and it is the bootstrap of `mean_interval` within the bounds. Measured on pairs of such policies as there, it
    covers 95.4 % on average, 87 % at worst (a gain in the few hard problems of an easy benchmark). The p-value is that
    of `sign_flip_p_value`, which may disagree with the interval at the edge. Raises ValueError if the shapes differ.
    """
    new, old = np.asarray(new, dtype=float), np.asarray(old, dtype=float)
    if new.shape != old.shape or new.ndim != 1:
        raise ValueError(
            f"new has shape {new.shape}, old {old.shape}: a paired gain needs the same problems in the same order.\n"
            "Give two arrays of shape (problems,)."
        )
    difference = new - old
    if difference.size == 0:
        return Gain(np.nan, np.nan, np.nan, np.nan)
    if bounds is None:
        ends = _student_ends(difference)
    elif np.count_nonzero(difference) < MIN_CHANGED:
        ends = _bounded_ends(difference, bounds, seed, resamples)
    else:
        ends = np.clip(_student_ends(difference), *bounds).tolist()
    return Gain(float(difference.mean()), *ends, sign_flip_p_value(difference, seed, resamples))


def compare(new: ArrayLike, old: ArrayLike, samples: tuple[int, int] = (1, 1), seed: Seed = 0) -> Comparison:
    """Compare two policies on the same problems, and estimate how much data it would take to be certain.

    `new`, `old`: share of right samples of each problem, (problems,), or (seeds, problems) with a row per training seed.
    `samples`: samples per problem behind the shares of `new` and of `old`.

    With two or more seeds on both sides, the unit is the seed: Welch's t-test on their means over problems, which
    include the noise of the seeds. Otherwise the unit is the problem (`paired_gain`), and other seeds are not covered.
    Raises ValueError if the numbers of problems differ or shares leave [0, 1].
    """
    arrays = [np.atleast_2d(np.asarray(shares, dtype=float)) for shares in (new, old)]
    if arrays[0].shape[-1] != arrays[1].shape[-1]:
        raise ValueError(
            f"{arrays[0].shape[-1]} and {arrays[1].shape[-1]} problems: compare the same problems, in the same order."
        )
    if not all(((shares >= 0) & (shares <= 1)).all() for shares in arrays):
        raise ValueError("Shares of right samples must lie in [0, 1]; give fractions, not percent or counts.")
    seeds, problems = min(len(shares) for shares in arrays), arrays[0].shape[-1]
    means = [shares.mean(axis=0) for shares in arrays]
    if seeds > 1:
        unit, units = "seed", seeds
        test = stats.ttest_ind(*(shares.mean(axis=1) for shares in arrays), equal_var=False)
        ends = test.confidence_interval(INTERVAL_ENDS[1] - INTERVAL_ENDS[0])
        gain = Gain(float(means[0].mean() - means[1].mean()), float(ends.low), float(ends.high), float(test.pvalue))
        freedom = float(test.df)
    else:
        unit, units = "problem", problems
        gain = paired_gain(*means, seed=seed)
        freedom = problems - 1.0
    # from the interval, since the spread says nothing if hardly a problem changed; NaN without a degree of freedom
    quantile, of_power = (float(stats.t.ppf(p, freedom)) for p in (INTERVAL_ENDS[1], 0.8))
    error = (gain.high - gain.low) / 2 / quantile
    detectable, size = (quantile + of_power) * error, abs(gain.estimate)
    needed = np.ceil(units * (detectable / size) ** 2) if size > 0 else np.inf
    units_needed = needed if np.isfinite(detectable) else np.nan
    samples_needed = np.nan
    if unit == "problem" and min(samples) > 1 and size > 0 and np.count_nonzero(means[0] - means[1]) >= MIN_CHANGED:
        # the part of the variance that further samples of the same problems would average out
        drawn = sum((share * (1 - share) / (n - 1)).mean() for share, n in zip(means, samples, strict=True))
        room = problems * (size / (quantile + of_power)) ** 2 - max(problems * error**2 - drawn, 0.0)
        samples_needed = np.ceil(min(samples) * drawn / room) if room > 0 else np.inf
    return Comparison(*astuple(gain), problems, seeds, unit, detectable, units_needed, samples_needed)


def sign_flip_p_value(difference: ArrayLike, seed: Seed = 0, resamples: int = RESAMPLES) -> float:
    """Return the two-sided p-value of "the two policies are exchangeable on every problem", by flipping signs.

    It is exact, by enumeration, for up to 16 non-zero differences, and 1 without any. For more, it is the seeded Monte
    Carlo estimate (1 + as extreme) / (1 + resamples), itself a valid p-value (Phipson and Smyth 2010).
    """
    magnitude = np.abs(np.asarray(difference, dtype=float))
    observed = abs(float(np.sum(difference)))
    magnitude = magnitude[magnitude > 0]
    if magnitude.size == 0:
        return 1.0
    extreme = observed - 1e-9 * magnitude.sum()  # ties stay ties under rounding
    if magnitude.size <= EXACT_SIGN_FLIPS:
        sums = np.zeros(1)
        for value in magnitude:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= extreme))
    generator = np.random.default_rng(seed)
    as_extreme = 0
    for rows in _blocks(resamples):
        signs = generator.integers(0, 2, (rows, magnitude.size), dtype=np.int8) * 2.0 - 1.0
        as_extreme += int(np.count_nonzero(np.abs(signs @ magnitude) >= extreme))
    return (1 + as_extreme) / (1 + resamples)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values for testing all of them, after Holm (1979), in the given order; NaN stays NaN and is no test.

    Rejecting if the result is <= 0.05 keeps the chance of any false rejection at 5 %, however the tests depend.
    """
    p_values = np.asarray(p_values, dtype=float)
    if np.any((p_values < 0) | (p_values > 1)):
        raise ValueError(f"p-values from {np.nanmin(p_values):g} to {np.nanmax(p_values):g}: they must lie in [0, 1].")
    tests = np.count_nonzero(~np.isnan(p_values))
    order = np.argsort(p_values, kind="stable")[:tests]  # NaN come last
    adjusted = np.full(p_values.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(tests, 0, -1)), 1.0)
    return adjusted


def margins(
    problem: ArrayLike, logp_per_token: ArrayLike, correct: ArrayLike
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Return the length-normalised log-probability margin of each problem that has right and wrong completions.

    Arguments have one entry per completion, (completions,): its problem, the sum of its tokens' log-probabilities
    divided by their number (nats per token), whether it is correct. Returns the problems, sorted, and their margins:
    the mean over correct minus the mean over incorrect completions (arXiv 2601.03661, Figure 4). Both are empty if no
    problem has both. Raises ValueError if the lengths differ or a log-probability is not finite.
    """
    problem, correct = np.asarray(problem), np.asarray(correct, dtype=bool)
    logp_per_token = np.asarray(logp_per_token, dtype=float)
    if not problem.shape == logp_per_token.shape == correct.shape:
        shapes = f"problem {problem.shape}, logp_per_token {logp_per_token.shape}, correct {correct.shape}"
        raise ValueError(f"{shapes}: one entry per completion is needed in each.")
    if infinite := np.count_nonzero(~np.isfinite(logp_per_token)):
        raise ValueError(
            f"{infinite} of {logp_per_token.size} log-probabilities are not finite: a margin needs all of them.\n"
            "Score these completions again, or leave them out."
        )
    names, index = np.unique(problem, return_inverse=True)
    (right, sum_right), (wrong, sum_wrong) = (
        [np.bincount(index, weights, names.size) for weights in (side, logp_per_token * side)]
        for side in (correct, ~correct)
    )
    both = (right > 0) & (wrong > 0)
    return names[both], sum_right[both] / right[both] - sum_wrong[both] / wrong[both]


def confidence_bins(confidence: ArrayLike) -> NDArray[np.int64]:
    """Return the bin, 0 to 9, of each stated confidence in [0, 1]: ten of equal width, 1 in the last."""
    return np.minimum((np.asarray(confidence, dtype=float) * BINS).astype(int), BINS - 1)


def calibration_error(
    problem: ArrayLike, confidence: ArrayLike, correct: ArrayLike, seed: Seed = 0, resamples: int = 2_000
) -> Interval:
    """Return the expected calibration error over ten equal bins (Guo et al. 2017, arXiv 1706.04599), with an interval.

    `problem`, `confidence` (in [0, 1]), `correct`: one entry per completion, (completions,). The error is the mean over
    completions of |mean confidence - share right| in their bin. The interval is SciPy's percentile bootstrap over
    problems. Noise in a bin can only raise the error, so the error and its interval are too high if a bin holds few
    completions. The error is NaN without completions, and its ends with fewer than two problems.
    """
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if confidence.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    names, index = np.unique(np.asarray(problem), return_inverse=True)
    gaps = np.zeros((names.size, BINS))  # sums of confidence - correct
    np.add.at(gaps, (index, confidence_bins(confidence)), confidence - correct)
    sizes = np.bincount(index, minlength=names.size)

    def error(drawn: NDArray[np.int64]) -> float:
        return float(np.abs(gaps[drawn].sum(axis=0)).sum() / sizes[drawn].sum())

    problems = np.arange(names.size)
    if names.size < 2:
        return Interval(error(problems), np.nan, np.nan)
    drawn = stats.bootstrap(
        (problems,),
        error,
        vectorized=False,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    ends = drawn.confidence_interval
    return Interval(error(problems), float(ends.low), float(ends.high))
