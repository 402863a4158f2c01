"""How much of each published gain may be noise of the evaluation, when both policies answered the same problems.

The published table has means only: of n = 8 samples per problem, without intervals. On the same problems a gain is noisy
because the samples of either policy are, and not because of which problems there are. With p the chance of a policy to
solve a problem with one sample, the variance of its pass@1 is E[p (1 - p)] / (n problems). That is

- 0 if every problem is always or never solved;
- largest, m (1 - m) / (n problems) with m the mean, if all problems are equally hard (at k > 1 and a pass rate near 1 a
  mixture of solved and harder problems is noisier still, and is what counts);
- and known: p (1 - p) is the chance that two samples differ, halved, so that E[p (1 - p)] = pass@2 - pass@1, exactly and
  for the estimates, too. The published table has both.

What lies between is stated as a *share*, E[p (1 - p)] / (m (1 - m)). For k > 1 the variance of the estimate is computed for
a Beta distribution of p of that mean and share, in closed form. Shares and variances are of fractions, pass rates in
percent, gains and standard errors in percentage points.

None of this holds what another training seed would change: there is one pair of trainings for each model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from amir_grpo import metrics
from amir_grpo.choices import METHODS

SAMPLES = 8
# Shares that this package's own policies have on their benchmarks after training (a test reads them from the kept table);
# before it 0.92 to 0.95.
SANDBOX_SHARES = (0.57, 0.65)
SMALL = 46  # problems: AIME25, AMC23 and LiveMathBench have no more
Z = float(stats.norm.ppf(metrics.INTERVAL_ENDS[1]))
NOISES = ("largest", "sandbox_high", "sandbox_low", "implied")
ALL_MODELS, ALL_BENCHMARKS = "all", "all"


# --- one policy on one benchmark ----------------------------------------------------------------------------------


def estimate_variance(mean: float, share: float, k: int, samples: int = SAMPLES) -> float:
    """Variance, by the draw of the samples, of the unbiased pass@k estimate of a problem, averaged over problems.

    Args:
        mean: Mean over problems of p, the chance that a sample is right.
        share: E[p (1 - p)] / (mean (1 - mean)): 1 if all problems are equally hard, 0 if each is always or never solved.
    """
    if share <= 0 or not 0 < mean < 1:
        return 0.0
    counts = np.arange(samples + 1)
    estimates = metrics.pass_at_k(counts, samples, k)
    if share >= 1:
        chances, (once, twice) = stats.binom.pmf(counts, samples, mean), ((1 - mean) ** k, (1 - mean) ** (2 * k))
    else:
        a, b = _beta(mean, share)
        chances = stats.betabinom.pmf(counts, samples, a, b)
        once, twice = _failing(a, b, k), _failing(a, b, 2 * k)
    # E[Var(estimate | p)] = E[estimate²] - E[(1 - (1 - p)^k)²]
    return max(float(chances @ estimates**2) - (1 - 2 * once + twice), 0.0)


def largest_variance(pass_at_k: float, k: int, samples: int = SAMPLES) -> float:
    """The largest variance that `estimate_variance` can have at this pass@k (a fraction), however hard the problems are.

    Any distribution of problems is a mixture, so that it is the least concave function above the variance of equal
    problems as a function of their pass@k.
    """
    return float(np.interp(pass_at_k, *_concave_hull(k, samples)))


@lru_cache
def _concave_hull(k: int, samples: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    passes = np.linspace(0, 1, 2001)
    points: list[tuple[float, float]] = []
    for x, p in zip(passes, 1 - (1 - passes) ** (1 / k), strict=True):
        y = estimate_variance(float(p), 1.0, k, samples)
        while len(points) > 1 and (points[-1][1] - points[-2][1]) * (x - points[-2][0]) <= (y - points[-2][1]) * (
            points[-1][0] - points[-2][0]
        ):
            points.pop()
        points.append((float(x), y))
    at, height = np.array(points).T
    return at, height


def mean_of(pass_at_k: float, share: float, k: int) -> float:
    """The mean of p at which a Beta distribution of this share has this pass@k (a fraction)."""
    if k == 1 or pass_at_k in (0.0, 1.0):
        return pass_at_k
    return float(optimize.brentq(lambda mean: expected_pass(mean, share, k) - pass_at_k, 0.0, 1.0, xtol=1e-12))


def expected_pass(mean: float, share: float, k: int) -> float:
    """pass@k of a policy whose p has a Beta distribution of this mean and share."""
    if not 0 < mean < 1 or share <= 0:
        return mean
    return 1 - ((1 - mean) ** k if share >= 1 else _failing(*_beta(mean, share), k))


def implied_share(pass_1: float, pass_2: float) -> float:
    """The share that pass@1 and pass@2 (fractions) of one policy imply, within [0, 1]; NaN where all or none is solved.

    Where few samples are right, rounding and chance make it uncertain, and it may lie above 1 before it is cut.
    """
    if not 0 < pass_1 < 1:
        return np.nan
    return float(np.clip((pass_2 - pass_1) / (pass_1 * (1 - pass_1)), 0, 1))


def _beta(mean: float, share: float) -> tuple[float, float]:
    size = share / (1 - share)
    return mean * size, (1 - mean) * size


def _failing(a: float, b: float, times: int) -> float:
    """E[(1 - p)^times] of a Beta(a, b)."""
    steps = np.arange(times)
    return float(np.prod((b + steps) / (a + b + steps)))


# --- the table ----------------------------------------------------------------------------------------------------


def noise_table(published: pd.DataFrame, sizes: Mapping[str, int]) -> pd.DataFrame:
    """Each published gain with the standard error of its evaluation on the same problems.

    The samples of a cell serve every k, so that cells that differ in k alone are no independent evidence.

    Args:
        published: Columns benchmark, k, model, grpo, amir_grpo (percent), with k = 1 and 2 for each benchmark and model.
        sizes: Problems of each benchmark.

    Returns:
        The published columns, gain, problems, grpo_share, amir_grpo_share (as pass@1 and pass@2 imply), and a standard
        error for each of `NOISES`, largest first. "sandbox_low" and "sandbox_high" take `SANDBOX_SHARES`, "implied" the
        published shares; it is exact for k = 1, and of a Beta distribution of the published pass@1 and pass@2 for k > 1.

    Raises:
        ValueError: If a benchmark has no size, or a model's pass@1 or pass@2 on it is missing.
    """
    levels = published.set_index(["benchmark", "model", "k"])[list(METHODS)] / 100
    rows = []
    for row in published.itertuples(index=False):
        if row.benchmark not in sizes:
            raise ValueError(f"No number of problems is given for {row.benchmark}; there are {', '.join(sizes)}.")
        try:
            firsts, seconds = (levels.loc[(row.benchmark, row.model, k)].to_numpy() for k in (1, 2))
        except KeyError:
            raise ValueError(
                f"{row.benchmark}, {row.model}: pass@1 and pass@2 are both needed for the noise."
            ) from None
        shares = [implied_share(first, second) for first, second in zip(firsts, seconds, strict=True)]
        cell = row._asdict() | {"gain": row.amir_grpo - row.grpo, "problems": sizes[row.benchmark]}
        cell |= {"grpo_share": shares[0], "amir_grpo_share": shares[1]}
        values = np.array([row.grpo, row.amir_grpo]) / 100
        cell["largest"] = _error([largest_variance(v, row.k) for v in values], cell["problems"])
        for noise, share in zip(NOISES[1:3], SANDBOX_SHARES[::-1], strict=True):
            cell[noise] = _error(
                [estimate_variance(mean_of(v, share, row.k), share, row.k) for v in values], cell["problems"]
            )
        implied = [estimate_variance(m, s, row.k) for m, s in zip(firsts, shares, strict=True)]
        if row.k == 1:  # not cut to shares of at most 1
            implied = list(np.maximum(seconds - firsts, 0) / SAMPLES)
        rows.append(cell | {"implied": _error(implied, cell["problems"])})
    return pd.DataFrame(rows)


def _error(variances: Sequence[float], problems: int) -> float:
    return 100 * float(np.sqrt(np.nansum(variances) / problems))


def beyond_noise(noise: pd.DataFrame) -> dict[str, int]:
    """How many gains lie more than 1.96 standard errors from 0, for each of `NOISES`."""
    return {name: int((noise["gain"].abs() > Z * noise[name]).sum()) for name in NOISES}


# --- pooled -------------------------------------------------------------------------------------------------------


def pooled_table(noise: pd.DataFrame) -> pd.DataFrame:
    """The gains pooled over benchmarks: one row for each model and all, k, set of benchmarks, weights and noise.

    Weights are equal ("unweighted": every benchmark counts the same) or 1 / standard error² of that noise ("precision":
    large benchmarks count most). Benchmarks are all, those of up to `SMALL` problems, and the larger.

    Returns:
        Columns model, k, benchmarks, weights, noise, cells, gain, standard_error, z, and how large the standard deviation
        of a gain over training seeds would have to be for the pooled gain to lie within 1.96 standard errors (0 where it
        does already): seed_sd_together if a seed moves all benchmarks of its model by the same, seed_sd_apart if each
        by its own. A seed's noise is that of the gain, a difference of two trainings.
    """
    rows = []
    models = [ALL_MODELS, *noise["model"].unique()]
    for model in models:
        for k in sorted(noise["k"].unique()):
            cells = noise[(noise["k"] == k) & noise["model"].isin(models[1:] if model == ALL_MODELS else [model])]
            small = cells["problems"] <= SMALL
            sets = {ALL_BENCHMARKS: cells, f"up to {SMALL} problems": cells[small], "larger": cells[~small]}
            for benchmarks, part in sets.items():
                for weights in ("unweighted", "precision"):
                    for name in NOISES:
                        where = {"model": model, "k": int(k), "benchmarks": benchmarks, "weights": weights}
                        rows.append(where | {"noise": name, "cells": len(part)} | _pooled(part, name, weights))
    return pd.DataFrame(rows)


def _pooled(cells: pd.DataFrame, noise: str, weights: str) -> dict[str, float]:
    errors = cells[noise].to_numpy()
    if not len(errors) or (weights == "precision" and not (errors > 0).all()):
        names = ("gain", "standard_error", "z", "seed_sd_together", "seed_sd_apart")
        return dict.fromkeys(names, np.nan)
    weight = np.ones(len(errors)) if weights == "unweighted" else errors**-2.0
    weight /= weight.sum()
    gain, error = float(weight @ cells["gain"]), float(np.sqrt(weight**2 @ errors**2))
    by_model = pd.Series(weight).groupby(cells["model"].to_numpy()).sum().to_numpy()
    row = {"gain": gain, "standard_error": error, "z": gain / error if error > 0 else np.nan}
    row |= {"seed_sd_together": seed_sd_to_vanish(gain, error, by_model)}
    return row | {"seed_sd_apart": seed_sd_to_vanish(gain, error, weight)}


def seed_sd_to_vanish(gain: float, standard_error: float, weights: NDArray[np.float64]) -> float:
    """The standard deviation over seeds that brings a pooled gain to 1.96 standard errors; 0 where it is within already.

    `weights`: those with which independent seed effects enter the pooled gain.
    """
    room = (gain / Z) ** 2 - standard_error**2
    return float(np.sqrt(max(room, 0) / np.sum(np.square(weights))))
