"""The published gains beside what noise alone would make of two equal policies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from amir_grpo import metrics


def noise_table(published: pd.DataFrame, sizes: Mapping[str, int], samples: int = 8) -> pd.DataFrame:
    """For each cell of the published table, how large a gain noise alone makes in 5 % of the comparisons.

    `published`: columns benchmark, k, model, grpo, amir_grpo (percent). `sizes`: problems of each benchmark.

    Nothing is published but two means, and their noise depends on how much the problems differ. The band has an end for
    each extreme: `least`, all problems equally hard, so that only the draws of the n samples count; `most`, each problem
    always or never solved, so that the draw of the problems is everything. Ends are 1.96 standard errors of the
    difference of two independent means, in percentage points; the standard error of one is sqrt(v / problems), with v
    the exact variance of the pass@k estimate of a problem of that difficulty for the first, m (1 - m) for the second.
    Neither holds what another training seed would change. A comparison paired by problem, for which the results of
    single problems would have to be published, could tell smaller gains than either end where problems differ much.

    Returns:
        The published columns, gain, problems, least, most and reading: "exceeds" the band, "within" it, "below" it.
    """
    rows = []
    for row in published.itertuples(index=False):
        means = np.array([row.grpo, row.amir_grpo]) / 100
        problems = sizes[row.benchmark]
        least = np.sqrt(sum(_estimate_variance(m, samples, row.k) for m in means) / problems)
        most = np.sqrt(np.sum(means * (1 - means)) / problems)
        gain = row.amir_grpo - row.grpo
        low, high = 196 * least, 196 * most
        reading = "exceeds" if abs(gain) > high else "below" if abs(gain) <= low else "within"
        rows.append(
            row._asdict() | {"gain": gain, "problems": problems, "least": low, "most": high, "reading": reading}
        )
    return pd.DataFrame(rows)


def _estimate_variance(mean: float, n: int, k: int) -> float:
    """Variance of the unbiased pass@k estimate from n samples of a problem whose pass@k is `mean`."""
    p = 1 - (1 - mean) ** (1 / k)
    counts = np.arange(n + 1)
    chances, estimates = stats.binom.pmf(counts, n, p), metrics.pass_at_k(counts, n, k)
    return float(np.sum(chances * estimates**2) - np.sum(chances * estimates) ** 2)
