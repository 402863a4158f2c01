"""Claims on made-up evidence whose truth is known, and the noise of the published table against simulation."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from amir_grpo import metrics
from amir_grpo.results import study_figures as evidence_figures
from amir_grpo.results import tables
from amir_grpo.study import claims
from amir_grpo.study.running import LONGER, TRAINED

SEEDS, PROBLEMS, N = 4, 40, 8
ARMS = {  # arm -> (compared with, logit of success, logit on the longer chains)
    "base": (None, -1.0, -3.0),
    "grpo": (None, 1.0, -3.0),
    "amir_grpo": ("grpo", 2.5, -3.0),
    "linear": ("amir_grpo", 2.5, -3.0),
    "share-0.3": ("grpo", -0.5, -3.0),
    "share-0.3-linear": ("grpo", -0.5, -3.0),
    **dict.fromkeys(claims.VARIANTS, (None, 0.0, -3.0)),
    **{f"{name}-amir": (name, 0.0, -3.0) for name in claims.VARIANTS},
}


@pytest.fixture(scope="module")
def evidence():
    generator = np.random.default_rng(0)
    hardness = {b: generator.normal(0, 1, PROBLEMS) for b in ("chain3", "chain4", "chain5", "chain6")}
    correct, training, pressure, margins = [], [], [], []
    for arm, (_, logit, longer) in ARMS.items():
        for seed in range(SEEDS):
            for benchmark, hard in hardness.items():
                chance = 1 / (1 + np.exp(-((longer if benchmark == "chain6" else logit) + hard)))
                correct.append(
                    pd.DataFrame(
                        {
                            "arm": arm,
                            "seed": seed,
                            "benchmark": benchmark,
                            "problem": range(PROBLEMS),
                            "correct": generator.binomial(N, chance),
                            "samples": N,
                            "greedy": (chance > 0.5).astype(int),
                        }
                    )
                )
            for step in (25, 50, 100):
                training.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "step": step,
                        "group_size": 8,
                        "completions": 128,
                        "pairs": np.nan if "amir" not in arm and "share" not in arm else 16 * 12.0 + seed,
                        "share": 0.003 + 0.0001 * seed,
                        "reward": 1.0,
                        "tokens_right": 20.0,
                        "tokens_wrong": 30.0 + seed,
                    }
                )
                boundary = {"grpo": 0.3, "amir_grpo": 0.5, "share-0.3": 0.1}
                if arm in boundary:
                    for problem in range(12):
                        value = boundary[arm] * step / 100 + generator.normal(0, 0.02)
                        row = {"arm": arm, "seed": seed, "step": step, "benchmark": "chain3", "problem": problem}
                        margins.append(row | {"margin": value, "accuracy": 0.5 + value / 2})
            for tokens, weight in ((16, -1.0), (20, -1.0), (40, -0.5 if "amir" in arm else -0.4), (52, -0.4)):
                row = {"arm": arm, "seed": seed, "correct": 0, "tokens": tokens, "length": tokens + 1.5}
                pressure.append(
                    row
                    | {"completions": 10, "token_weight": weight + (tokens > 20) * 0.01 * (generator.random() - 0.5)}
                )
    settings = [
        {"arm": arm, "about": arm, "method": "", "against": against or "", "seeds": SEEDS, "changes": "{}"}
        for arm, (against, *_) in ARMS.items()
        if arm != "base"
    ]
    weights = [
        {"arm": "grpo", "seed": 0, "policy": when, "beta": beta, "wins_minus_losses": 1 - beta / 100}
        for when in ("before", "after")
        for beta in (0.2, 1.0, 10.0)
    ]
    return {
        "correct": pd.concat(correct, ignore_index=True),
        "training": pd.DataFrame(training),
        "pressure": pd.DataFrame(pressure),
        "margins": pd.DataFrame(margins),
        "settings": pd.DataFrame(settings),
        "weights": pd.DataFrame(weights),
        "benchmarks": pd.DataFrame(
            {"benchmark": list(hardness), "group": [TRAINED] * 3 + [LONGER], "model": "sandbox"}
        ),
    }


def test_gains_are_differences_of_the_arms_means_and_large_ones_are_found(evidence):
    table = claims.gain_table(evidence, ["amir_grpo", "linear"], ks=(1, 0))
    assert list(table.columns) == claims.GAIN_COLUMNS
    correct = evidence["correct"]
    trained = correct[correct["benchmark"] != "chain6"]
    means = trained.groupby("arm")["correct"].mean() / N * 100
    row = table[(table["arm"] == "amir_grpo") & (table["benchmarks"] == "trained lengths")].iloc[0]
    assert row["gain"] == pytest.approx(means["amir_grpo"] - means["grpo"])
    assert row["estimate"] == pytest.approx(means["amir_grpo"])
    assert (row["seeds"], row["problems"]) == (SEEDS, 3 * PROBLEMS)
    assert row["low"] > 10
    assert row["p_holm"] < 0.001
    same = table[(table["arm"] == "linear") & (table["quantity"] == "pass@1")]
    assert (same["p_holm"] > 0.05).all()
    greedy = table[(table["quantity"] == "greedy") & (table["arm"] == "linear")]
    assert (greedy["gain"] == 0).all()
    assert table["p_holm"].tolist() == pytest.approx(metrics.holm(table["p_value"]).tolist(), nan_ok=True)


def test_only_seeds_and_problems_that_both_arms_have_are_compared(evidence):
    correct = evidence["correct"]
    fewer = correct[~((correct["arm"] == "amir_grpo") & (correct["seed"] == 3)) & (correct["problem"] > 4)]
    table = claims.gain_table(evidence | {"correct": fewer}, ["amir_grpo"], ks=(1,))
    assert set(table["seeds"]) == {3}
    assert table["problems"].tolist() == [3 * (PROBLEMS - 5), PROBLEMS - 5]


def test_an_arm_without_completions_is_named(evidence):
    with pytest.raises(ValueError, match="no completions of arm 'delta-2' on chain3"):
        claims.solved(evidence["correct"], "delta-2", ["chain3"], 1)


def test_main_table_has_the_methods_means_and_the_chance_to_improve(evidence):
    table = claims.main_table(evidence, ks=(1, 4))
    assert table[["benchmark", "k"]].to_numpy().tolist()[:3] == [["chain3", 1], ["chain3", 4], ["chain4", 1]]
    row = table.iloc[0]
    assert row["gain"] == pytest.approx(row["amir_grpo"] - row["grpo"])
    assert row["improvement_low"] > 50
    last = table[table["benchmark"] == "chain6"].iloc[0]
    assert last["improvement_low"] < 50 < last["improvement_high"]
    assert set(table["seeds"]) == {SEEDS}


def test_patterns_by_brute_force_over_the_choice_of_samples():
    counts = {"base": [1, 0, 3], "grpo": [2, 3, 1], "amir_grpo": [0, 2, 2]}
    correct = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "benchmark": "b", "problem": p, "correct": c, "samples": 3, "greedy": 0}
            for arm, column in counts.items()
            for seed in (0, 1)
            for p, c in enumerate(column)
        ]
    )
    table = (
        claims.coverage_table({"correct": correct}, ks=(1, 2))
        .set_index(["k", "base", "grpo", "amir_grpo"])
        .sort_index()
    )
    for k in (1, 2):
        found = dict.fromkeys(metrics.PATTERNS, 0.0)
        for problem in range(3):
            choices = [
                [any(s < counts[arm][problem] for s in chosen) for chosen in combinations(range(3), k)]
                for arm in counts
            ]
            for a in choices[0]:
                for b in choices[1]:
                    for c in choices[2]:
                        found[(int(a), int(b), int(c))] += 100 / 3 / len(choices[0]) ** 3
        assert table.loc[k, "percent"].to_dict() == pytest.approx(found)


def test_verdicts_say_what_was_put_into_the_evidence(evidence):
    table = claims.verdicts(evidence)
    found = table.groupby("claim")["verdict"].agg(list)
    # 12 pairs against 8; 0.3 % of the update
    assert found["1. Richer supervision"] == [claims.SUPPORTED, claims.REFUTED]
    assert found["2. Sharper decision boundary"] == [claims.SUPPORTED] * 2
    assert found["3. Less length bias"] == [claims.SUPPORTED] * 2
    assert found["4. Broader coverage"][0] == claims.SUPPORTED  # at greater k both solve nearly all
    assert set(found["5. Gains for every variant"]) == {claims.OPEN}
    assert table["result"].str.len().min() > 5


def test_a_claim_that_fails_is_not_supported(evidence):
    swap = {"grpo": "amir_grpo", "amir_grpo": "grpo"}
    turned = {
        name: table.assign(arm=table["arm"].replace(swap)) if name in ("correct", "margins", "pressure") else table
        for name, table in evidence.items()
    }
    found = claims.verdicts(turned).groupby("claim")["verdict"].agg(list)
    assert found["2. Sharper decision boundary"] == [claims.REFUTED] * 2
    assert found["3. Less length bias"][0] == claims.REFUTED
    assert found["4. Broader coverage"][0] == claims.REFUTED


def test_plain_sentences(evidence):
    first, second, third, fourth = claims.told_apart(evidence)
    assert first.startswith("AMIR-GRPO at the published λ and β can be told from GRPO (4 seeds): +")
    assert "cannot be told from plain wins − losses" in second
    assert "can be told from GRPO" in third
    assert "−" in third.split("points")[0]
    assert "cannot be told" in fourth


def test_dilution_by_hand(evidence):
    (row,) = claims.dilution_table(evidence, {"amir_grpo": "grpo"}).to_dict("records")
    assert row["dilution"] == pytest.approx(0.45, abs=0.01)
    assert row["against_dilution"] == pytest.approx(0.40, abs=0.01)
    assert row["gain"] == pytest.approx(0.05, abs=0.01)
    pressure = claims.pressure_table(evidence, ["grpo"])
    assert pressure.set_index("tokens")["relative"].to_dict() == pytest.approx(
        {16: 1.0, 20: 1.0, 40: 0.4, 52: 0.4}, abs=0.01
    )


def test_boundary_is_paired_with_grpo_at_the_same_step(evidence):
    table = claims.boundary_table(evidence)
    last = table[(table["step"] == 100) & (table["quantity"] == "margin")].set_index("arm")
    assert last.loc["amir_grpo", "gain"] == pytest.approx(0.2, abs=0.02)
    assert last.loc["share-0.3", "high"] < 0
    assert last.loc["grpo", "gain"] == 0
    assert set(table["problems"]) == {12}


@pytest.mark.parametrize("k", [1, 2, 4])
def test_noise_band_holds_95_percent_of_the_differences_of_equal_policies(k):
    """Its two ends against simulation of the two extremes, at AMC23's size and in the middle of the scale."""
    generator = np.random.default_rng(k)
    problems, mean = 40, 0.5
    published = pd.DataFrame([{"benchmark": "b", "k": k, "model": "m", "grpo": 50.0, "amir_grpo": 50.0}])
    (row,) = claims.noise_table(published, {"b": problems}).to_dict("records")
    p = 1 - (1 - mean) ** (1 / k)

    def differences(chance):
        counts = generator.binomial(8, chance, (2, 4000, problems))
        new, old = metrics.pass_at_k(counts, 8, k).mean(axis=2)
        return 100 * np.abs(new - old)

    assert np.mean(differences(p) <= row["least"]) == pytest.approx(0.95, abs=0.02)
    always_or_never = generator.random((2, 4000, problems)) < mean
    assert np.mean(differences(always_or_never.astype(float)) <= row["most"]) == pytest.approx(0.95, abs=0.03)


def test_no_published_gain_leaves_the_band():
    noise = claims.noise_table(tables.published("table1"), tables.published_sizes())
    assert len(noise) == 63
    assert (noise["least"] < noise["most"]).all()
    assert (noise["reading"] == "exceeds").sum() == (noise["gain"].abs() > noise["most"]).sum() == 0
    figure = evidence_figures.noise_figure(noise, "test")
    assert len(figure.axes) == 3


def test_figures_of_the_evidence_are_drawn(evidence):
    lengths = ["grpo", "amir_grpo"]
    drawn = [
        evidence_figures.supervision_figure(evidence["training"], ["amir_grpo", "share-0.3"], "a"),
        evidence_figures.boundary_figure(claims.boundary_table(evidence), "b"),
        evidence_figures.length_figure(claims.pressure_table(evidence, lengths), evidence["training"], "c"),
        evidence_figures.patterns_figure(claims.coverage_table(evidence), "d"),
        evidence_figures.gains_figure(claims.gain_table(evidence, claims.ablation_arms(evidence)), "e"),
        evidence_figures.weights_figure(evidence["weights"], "f"),
    ]
    for figure in drawn:
        figure.canvas.draw()
        width, height = figure.bbox.size
        for axes in figure.axes:
            box = axes.get_tightbbox()
            assert box.x0 >= -1
            assert box.y0 >= -1
            assert box.x1 <= width + 1
            assert box.y1 <= height + 1
    labels = [label.get_text() for label in drawn[4].axes[0].get_yticklabels()]
    assert labels == [f"{arm} vs {ARMS[arm][0]} (4 seeds)" for arm in claims.ablation_arms(evidence)]
