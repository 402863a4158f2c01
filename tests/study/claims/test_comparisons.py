"""Comparisons of arms, on a made-up study whose truth is known."""

import pytest

from amir_grpo import metrics
from amir_grpo.study.claims import comparisons
from tests.study.claims.conftest import PROBLEMS, SEEDS, N


def test_gains_are_differences_of_the_arms_means_and_large_ones_are_found(study):
    table = comparisons.gain_table(study, ["amir_grpo", "linear"], ks=(1, 0))
    assert list(table.columns) == comparisons.GAIN_COLUMNS
    correct = study["correct"]
    trained = correct[correct["benchmark"] != "chain6"]
    means = trained.groupby("arm")["correct"].mean() / N * 100
    row = table[(table["arm"] == "amir_grpo") & (table["benchmarks"] == "trained lengths")].iloc[0]
    assert row["gain"] == pytest.approx(means["amir_grpo"] - means["grpo"])
    assert row["estimate"] == pytest.approx(means["amir_grpo"])
    assert (row["seeds"], row["problems"]) == (SEEDS, 3 * PROBLEMS)
    assert row["gain_low"] > 10
    assert row["p_holm"] < 0.001
    same = table[(table["arm"] == "linear") & (table["quantity"] == "pass@1")]
    assert (same["p_holm"] > 0.05).all()
    greedy = table[(table["quantity"] == "greedy") & (table["arm"] == "linear")]
    assert (greedy["gain"] == 0).all()
    assert table["p_holm"].tolist() == pytest.approx(metrics.holm(table["p_value"]).tolist(), nan_ok=True)


def test_only_seeds_and_problems_that_both_arms_have_are_compared(study):
    correct = study["correct"]
    fewer = correct[~((correct["arm"] == "amir_grpo") & (correct["seed"] == 3)) & (correct["problem"] > 4)]
    table = comparisons.gain_table(study | {"correct": fewer}, ["amir_grpo"], ks=(1,))
    assert set(table["seeds"]) == {3}
    assert table["problems"].tolist() == [3 * (PROBLEMS - 5), PROBLEMS - 5]


def test_an_arm_without_completions_is_named(study):
    with pytest.raises(ValueError, match="no completions of arm 'delta-2' on chain3"):
        comparisons.solved(study["correct"], "delta-2", ["chain3"], 1)


def test_main_table_has_the_methods_means_and_the_chance_to_improve(study):
    table = comparisons.main_table(study, ks=(1, 4))
    assert table[["benchmark", "k"]].to_numpy().tolist()[:3] == [["chain3", 1], ["chain3", 4], ["chain4", 1]]
    row = table.iloc[0]
    assert row["gain"] == pytest.approx(row["amir_grpo"] - row["grpo"])
    assert row["improvement_low"] > 50
    last = table[table["benchmark"] == "chain6"].iloc[0]
    assert last["improvement_low"] < 50 < last["improvement_high"]
    assert set(table["seeds"]) == {SEEDS}


def test_plain_sentences(study):
    first, second, third, fourth = comparisons.told_apart(study)
    assert first.startswith("AMIR-GRPO at the published λ and β can be told from GRPO (4 seeds): +")
    assert "cannot be told from plain wins − losses" in second
    assert "can be told from GRPO" in third
    assert "−" in third.split("points")[0]
    assert "cannot be told" in fourth
