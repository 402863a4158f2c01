import numpy as np
import pandas as pd

from amir_grpo.results import sentences, tables
from tests.results.test_tables import samples_from


def test_the_base_policys_sentence_has_the_means_of_its_first_and_last_k():
    counts = {"a": {"base": [1, 2]}, "b": {"base": [0, 1]}}
    policies = tables.policy_summary(samples_from(counts), ks=(1, 4))
    # 4 of 16 completions are right, 3 of 4 problems are solved in four tries
    assert "solves 25 % of the problems with one try and 75 % with 4 tries" in sentences.base_sentence(policies)
    once = sentences.base_sentence(tables.policy_summary(samples_from(counts), ks=(1,)))
    assert (
        once
        == "Before any training the base policy solves 25 % of the problems with one try (mean of the benchmarks)."
    )


def test_the_sentence_of_a_training_says_what_is_known():
    log = pd.DataFrame(
        {"step": range(1, 101), "reward": np.linspace(0, 1, 100), "preference/share": [0.001, 0.003] * 50}
    )
    text = sentences.training_sentence(log, 14)
    assert text == (
        "The reward went from 0.05 to 0.95 (means of the first and last 10 steps); the preference term was 0.2 % of the "
        "update (median); up to step 13 both methods drew the same completions."
    )
    assert "from the first step on" in sentences.training_sentence(log, 1)
    assert "to the end" in sentences.training_sentence(log, 101)
    alone = sentences.training_sentence(log[["step", "reward"]].head(2), None)
    assert alone == "The reward went from 0.00 to 0.01 (first and last step)."


def test_the_sentence_of_the_evaluation_counts_what_can_be_told():
    counts = {"a": {"base": [0] * 12, "grpo": [4] * 12, "amir_grpo": [4] * 11 + [3]}}
    text = sentences.evaluation_sentence(tables.comparison_table(samples_from(counts), ks=(1, 2)))
    assert "GRPO +100.0 points and AMIR-GRPO +97.9 points of pass@1" in text
    assert "of the 2 differences between the two methods, none is distinguishable from 0" in text


def test_sentences_of_coverage_and_margin():
    test = {"only_amir_grpo": 3, "only_grpo": 7, "p_value": 0.344}
    assert "GRPO alone 7: a difference is not shown (p = 0.344)" in sentences.coverage_sentence(test)
    clear = sentences.coverage_sentence({"only_amir_grpo": 40, "only_grpo": 7, "p_value": 0.0001})
    assert "GRPO alone 7: more than chance would give (p < 0.001)" in clear
    gain = {"problems": 9, "level": 0.2, "gain": 0.004, "gain_low": -0.001, "gain_high": 0.009, "p_value": 0.1}
    text = sentences.margin_sentence(gain)
    assert "+0.00400 nats per token (95 % interval −0.00100 to +0.00900, p = 0.100)" in text
    assert "count as equal" not in text
    small = sentences.margin_sentence(gain | {"gain": 1e-4, "gain_low": 5e-5, "gain_high": 1.5e-4, "p_value": 1e-4})
    assert (
        "p < 0.001), for these two policies: +0.05 % of GRPO's margin, within the ±1 % that count as equal." in small
    )
    assert "nothing can be said" in sentences.margin_sentence(gain | {"gain": np.nan})


def test_the_sentence_of_the_knobs_names_the_largest_clear_difference():
    gains = pd.DataFrame(
        {
            "regime": "clean",
            "about": ["a − b", "c − b", "d − b"],
            "gain": [-4.0, 1.5, 9.0],
            "p_holm": [0.01, 0.04, 0.2],
        }
    )
    assert sentences.knobs_sentence(gains) == (
        "2 of 3 comparisons are clear (p < 0.05, Holm); the largest difference is a − b (clean), −4.0 points."
    )
    assert sentences.knobs_sentence(gains[2:]) == "0 of 1 comparisons are clear (p < 0.05, Holm)."


def test_the_sentence_of_the_regimes_counts_the_better_aligned_arms_that_end_better():
    predictions = pd.DataFrame(
        {"regime": "noise", "arm": ["a", "b", "c"], "cosine": [0.9, 0.8, 0.3], "measured": [0.85, 0.8, 0.31]}
    ).assign(grpo_cosine=0.5, grpo_measured=0.5)
    gains = pd.DataFrame({"regime": "noise", "new": ["a", "b", "c"], "about": ["a − GRPO", "b − GRPO", "c − GRPO"]})
    gains = gains.assign(gain=[1.0, -1.0, -9.0], p_holm=[0.9, 0.01, 0.0])
    text = sentences.alignment_sentence(predictions, gains)
    assert "differs from the theory by at most 0.05" in text
    assert "In 2 of 3 arms" in text
    assert text.endswith("of these, clearly above GRPO in pass@1: 0, clearly below: 1.")
    shown = sentences.alignment_sentence(predictions, gains.assign(p_holm=0.01))
    assert shown.endswith("clearly above GRPO in pass@1: 1 (a − GRPO, +1.0), clearly below: 1.")
    grpo_off = sentences.alignment_sentence(predictions.assign(grpo_measured=0.61), gains)
    assert "at most 0.11. In 2 of 3 arms" in grpo_off
    close = predictions.assign(cosine=[0.9, 0.55, 0.3], measured=[0.9, 0.55, 0.3], grpo_measured=0.54)
    assert "In 1 of 3 arms" in sentences.alignment_sentence(close, gains)
