"""The noise of the published table against simulation."""

import numpy as np
import pandas as pd
import pytest

from amir_grpo import metrics
from amir_grpo.results import published_noise, study_figures
from amir_grpo.results.published import published_sizes, published_table


@pytest.mark.parametrize("k", [1, 2, 4])
def test_noise_band_holds_95_percent_of_the_differences_of_equal_policies(k):
    """Its two ends against simulation of the two extremes, at AMC23's size and in the middle of the scale."""
    generator = np.random.default_rng(k)
    problems, mean = 40, 0.5
    published = pd.DataFrame([{"benchmark": "b", "k": k, "model": "m", "grpo": 50.0, "amir_grpo": 50.0}])
    (row,) = published_noise.noise_table(published, {"b": problems}).to_dict("records")
    p = 1 - (1 - mean) ** (1 / k)

    def differences(chance):
        counts = generator.binomial(8, chance, (2, 4000, problems))
        new, old = metrics.pass_at_k(counts, 8, k).mean(axis=2)
        return 100 * np.abs(new - old)

    assert np.mean(differences(p) <= row["least"]) == pytest.approx(0.95, abs=0.02)
    always_or_never = generator.random((2, 4000, problems)) < mean
    assert np.mean(differences(always_or_never.astype(float)) <= row["most"]) == pytest.approx(0.95, abs=0.03)


def test_no_published_gain_leaves_the_band():
    noise = published_noise.noise_table(published_table("table1"), published_sizes())
    assert len(noise) == 63
    assert (noise["least"] < noise["most"]).all()
    assert (noise["reading"] == "exceeds").sum() == (noise["gain"].abs() > noise["most"]).sum() == 0
    figure = study_figures.noise_figure(noise, "test")
    assert len(figure.axes) == 3
