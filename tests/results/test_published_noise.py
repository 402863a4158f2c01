"""Noise of the published gains: against enumeration, quadrature and simulation, and on the published table."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from amir_grpo import metrics
from amir_grpo.choices import METHODS
from amir_grpo.results import published_noise as noise
from amir_grpo.results import study_figures, style
from amir_grpo.results.published import published_sizes, published_table
from amir_grpo.runs.locations import kept_results

N = 8


def variance_of_equal_problems(p, k, n):
    """By enumeration of all 2^n outcomes, each scored by the share of k-subsets with a correct sample."""
    total = squares = 0.0
    for outcome in product((0, 1), repeat=n):
        right = sum(outcome)
        chance = p**right * (1 - p) ** (n - right)
        score = metrics.pass_at_k(right, n, k)
        total, squares = total + chance * score, squares + chance * score**2
    return squares - total**2


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_variance_of_equal_problems_by_enumeration(p, k):
    assert noise.estimate_variance(p, 1.0, k, N) == pytest.approx(variance_of_equal_problems(p, k, N))


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(("mean", "share"), [(0.3, 0.4), (0.8, 0.66), (0.5, 0.95)])
def test_variance_over_a_beta_distribution_by_quadrature(mean, share, k):
    size = share / (1 - share)
    spread = stats.beta(mean * size, (1 - mean) * size)
    expected, _ = integrate.quad(lambda p: noise.estimate_variance(p, 1.0, k, N) * spread.pdf(p), 0, 1, limit=200)
    assert noise.estimate_variance(mean, share, k, N) == pytest.approx(expected, rel=1e-4)
    assert noise.expected_pass(mean, share, k) == pytest.approx(spread.expect(lambda p: 1 - (1 - p) ** k), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_at_one_sample_the_variance_is_the_share_of_the_largest(share):
    assert noise.estimate_variance(0.3, share, 1, N) == pytest.approx(share * 0.3 * 0.7 / N)
    assert noise.largest_variance(0.3, 1, N) == pytest.approx(0.3 * 0.7 / N, rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_what_is_never_or_always_solved_has_no_noise(mean, k):
    assert noise.estimate_variance(mean, 0.5, k, N) == 0
    assert noise.estimate_variance(0.4, 0.0, k, N) == 0
    assert noise.largest_variance(mean, k, N) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_no_mixture_of_problems_is_noisier_than_the_largest(k):
    generator = np.random.default_rng(k)
    nearest = []
    for _ in range(300):
        chances = generator.beta(*generator.uniform(0.05, 3, 2), generator.integers(1, 4))
        weights = generator.dirichlet(np.ones(len(chances)))
        mixed = weights @ [noise.estimate_variance(p, 1.0, k, N) for p in chances]
        largest = noise.largest_variance(weights @ (1 - (1 - chances) ** k), k, N)
        assert mixed <= largest * (1 + 1e-4) + 1e-7
        nearest.append(mixed / max(largest, 1e-6))
    assert max(nearest) > 0.99


def test_near_one_at_k_4_equal_problems_are_not_the_noisiest():
    mean = 0.97
    equal = noise.estimate_variance(1 - (1 - mean) ** 0.25, 1.0, 4, N)
    mixed = 0.4 * noise.estimate_variance(1 - (0.03 / 0.4) ** 0.25, 1.0, 4, N)  # the other 60 % are always solved
    assert equal < mixed <= noise.largest_variance(mean, 4, N)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_mean_of_a_pass_rate_gives_that_pass_rate(share, k):
    for wanted in (0.02, 0.4, 0.95):
        assert noise.expected_pass(noise.mean_of(wanted, share, k), share, k) == pytest.approx(wanted)


def test_pass_2_minus_pass_1_is_the_variance_of_a_sample_to_the_digit():
    correct = np.random.default_rng(0).binomial(N, 0.4, 50)
    difference = metrics.pass_at_k(correct, N, 2) - metrics.pass_at_k(correct, N, 1)
    # the unbiased estimate of p (1 - p) from n samples
    assert difference == pytest.approx(correct * (N - correct) / (N * (N - 1)))


def test_the_implied_share_is_that_of_the_distribution():
    mean, share = 0.35, 0.42
    assert noise.implied_share(mean, noise.expected_pass(mean, share, 2)) == pytest.approx(share)
    assert np.isnan(noise.implied_share(1.0, 1.0))
    assert noise.implied_share(0.008, 0.017) == 1.0  # rounded means may imply more than can be


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_standard_error_is_that_of_evaluations_repeated_on_the_same_problems(share, monkeypatch):
    generator = np.random.default_rng(1)
    problems, means = 60, {"grpo": 0.3, "amir_grpo": 0.36}
    size = share / (1 - share)
    # problems at the middles of equal chances, so that their mean and share are the distribution's
    places = (np.arange(problems) + 0.5) / problems
    chances = {policy: stats.beta.ppf(places, m * size, (1 - m) * size) for policy, m in means.items()}
    draws = {policy: generator.binomial(N, p, (20_000, problems)) for policy, p in chances.items()}
    rows, simulated = [], {}
    for k in (1, 2, 4):
        gains = metrics.pass_at_k(draws["amir_grpo"], N, k) - metrics.pass_at_k(draws["grpo"], N, k)
        simulated[k] = 100 * gains.mean(axis=1).std()
        values = {policy: 100 * (1 - (1 - p) ** k).mean() for policy, p in chances.items()}
        rows.append({"benchmark": "b", "k": k, "model": "m"} | values)
    monkeypatch.setattr(noise, "SANDBOX_SHARES", (share, share))
    found = noise.noise_table(pd.DataFrame(rows), {"b": problems})
    for column in ("implied", "sandbox_low", "sandbox_high"):
        assert found.set_index("k")[column].to_dict() == pytest.approx(simulated, rel=0.03)
    assert (found["largest"] > 1.1 * found["implied"]).all()


def test_the_sandboxs_shares_are_those_of_the_kept_policies():
    kept = pd.read_csv(kept_results("sandbox") / "main.csv").pivot(
        index="benchmark", columns="k", values=["grpo", "amir_grpo"]
    )
    shares = [noise.implied_share(row[m, 1] / 100, row[m, 2] / 100) for _, row in kept.iterrows() for m in METHODS]
    assert pytest.approx((min(shares), max(shares)), abs=0.005) == noise.SANDBOX_SHARES


@pytest.fixture(scope="module")
def published():
    return noise.noise_table(published_table("table1"), published_sizes())


def pooled(published, **where):
    table = noise.pooled_table(published)
    for column, value in where.items():
        table = table[table[column] == value]
    (row,) = table.to_dict("records")
    return row


def test_gains_beyond_the_noise_of_the_published_table(published):
    gains = published["gain"].abs()
    assert len(published) == 63
    assert noise.beyond_noise(published) == {"largest": 0, "sandbox_high": 4, "sandbox_low": 7, "implied": 9}
    # of the largest variance, a half and a quarter
    assert [(gains > noise.Z * published["largest"] * np.sqrt(part)).sum() for part in (0.5, 0.25)] == [4, 14]


@pytest.mark.parametrize(
    ("where", "gain", "z"),
    [
        ({"weights": "unweighted", "noise": "largest"}, 1.50, 3.25),
        ({"weights": "precision", "noise": "largest"}, 0.33, 1.57),
        ({"weights": "unweighted", "noise": "implied"}, 1.50, 5.10),
        ({"weights": "precision", "noise": "implied"}, 0.36, 2.79),
        ({"weights": "unweighted", "noise": "largest", "benchmarks": "up to 46 problems"}, 2.68, 2.72),
        ({"weights": "unweighted", "noise": "largest", "benchmarks": "larger"}, 0.62, 1.88),
    ],
)
def test_pooled_gains_of_the_published_table(published, where, gain, z):
    row = pooled(published, **({"model": "all", "k": 1, "benchmarks": "all"} | where))
    assert (row["gain"], row["z"]) == (pytest.approx(gain, abs=0.005), pytest.approx(z, abs=0.005))


def test_one_model_and_all_are_pooled_alike(published):
    where = {"k": 1, "benchmarks": "all", "weights": "unweighted", "noise": "implied"}
    models = [pooled(published, model=model, **where) for model in published["model"].unique()]
    whole = pooled(published, model="all", **where)
    assert whole["gain"] == pytest.approx(np.mean([row["gain"] for row in models]))
    assert whole["standard_error"] == pytest.approx(np.sqrt(sum(row["standard_error"] ** 2 for row in models)) / 3)
    assert whole["cells"] == sum(row["cells"] for row in models) == 21


def test_noise_of_seeds_of_that_size_makes_the_pooled_gain_vanish(published):
    generator = np.random.default_rng(2)
    cells = published[published["k"] == 1]
    row = pooled(published, model="all", k=1, benchmarks="all", weights="unweighted", noise="implied")
    together = np.repeat(generator.normal(0, row["seed_sd_together"], (40_000, 3)), 7, axis=1)
    apart = generator.normal(0, row["seed_sd_apart"], (40_000, 21))
    for seeds in (together, apart):
        gains = (seeds + generator.normal(0, cells["implied"], (40_000, 21))).mean(axis=1)
        assert row["gain"] / gains.std() == pytest.approx(1.96, rel=0.02)


def test_a_gain_within_its_noise_needs_no_noise_of_seeds():
    assert noise.seed_sd_to_vanish(0.3, 0.2, np.array([1.0])) == 0


def test_what_is_missing_is_named():
    table = published_table("table1")
    with pytest.raises(ValueError, match="GSM8K"):
        noise.noise_table(table, {"AIME25": 30})
    with pytest.raises(ValueError, match=r"GSM8K.*pass@1 and pass@2 are both needed"):
        noise.noise_table(table[table["k"] != 2], published_sizes())


def test_the_figure_shows_each_gain_with_its_two_noises(published):
    figure = study_figures.noise_figure(published, noise.pooled_table(published), "test")
    assert [panel.get_title() for panel in figure.axes] == list(published["model"].unique())
    for panel in figure.axes:
        rows = published[published["model"] == panel.get_title()].reset_index(drop=True)
        points = [line for line in panel.lines if line.get_marker() == "o"]
        assert [p.get_xdata()[0] for p in points[: len(rows)]] == rows["gain"].tolist()
        bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in panel.patches]
        for row in rows.itertuples():
            for bar, error in zip(bars[2 * row.Index :], (row.largest, row.implied), strict=False):
                assert bar == pytest.approx((row.gain - 1.96 * error, row.gain + 1.96 * error))
        coloured = [point.get_color() != style.NEUTRAL for point in points]
        assert coloured == [not low <= 0 <= high for low, high in bars[1::2]]
        assert len(points) == len(rows) + 2
        where = {"model": panel.get_title(), "k": 1, "benchmarks": "all", "noise": "implied"}
        wanted = [pooled(published, weights=weights, **where)["gain"] for weights in ("unweighted", "precision")]
        assert [point.get_xdata()[0] for point in points[-2:]] == wanted
