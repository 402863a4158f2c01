"""Titles and sentences follow the numbers: a finding that is not in the table is not in the words."""

import numpy as np
import pandas as pd
import pytest

from amir_grpo.results import findings


@pytest.mark.parametrize(
    ("gains", "p_values", "title"),
    [
        ([0.3, -0.4], [0.8, 0.06], "No gain of AMIR-GRPO over GRPO is distinguishable from 0"),
        ([3.0, -0.4], [0.01, 0.2], "AMIR-GRPO is above GRPO in 1 of 2 comparisons"),
        ([-3.0, -0.4], [0.01, 0.2], "AMIR-GRPO is below GRPO in 1 of 2 comparisons"),
        ([3.0, -4.0], [0.01, 0.01], "Of 2 gains of AMIR-GRPO over GRPO, 1 are above 0 and 1 below"),
    ],
)
def test_the_main_title_calls_a_difference_only_what_is_significant(gains, p_values, title):
    assert findings.main_title(pd.DataFrame({"gain": gains, "p_holm": p_values})) == title


def coverage(only_amir_grpo, only_grpo):
    return pd.DataFrame({"base": 0, "grpo": [0, 1], "amir_grpo": [1, 0], "problems": [only_amir_grpo, only_grpo]})


@pytest.mark.parametrize(
    ("counts", "title"),
    [
        ((3, 7), "AMIR-GRPO alone solves 3 problems, GRPO alone 7: a difference is not shown (p = 0.344)"),
        ((20, 2), "AMIR-GRPO alone solves 20 problems, GRPO alone 2 (p < 0.001)"),
        ((0, 0), "AMIR-GRPO and GRPO solve the same problems"),
    ],
)
def test_the_coverage_title_counts_and_tests(counts, title):
    assert findings.coverage_title(coverage(*counts)) == title


@pytest.mark.parametrize(
    ("gain", "words"), [(0.02, "0.02 nats per token larger"), (-0.02, "0.02 nats per token smaller")]
)
def test_the_margin_title_is_of_the_shared_completions(gain, words):
    problems = np.arange(12)
    frames = [
        pd.DataFrame(
            {"reading": "shared", "method": method, "benchmark": "b", "problem_id": problems, "margin": margin}
        )
        for method, margin in (("grpo", 0.1 + 0.001 * problems), ("amir_grpo", 0.1 + 0.001 * problems + gain))
    ]
    table = pd.concat(frames)
    assert words in findings.margin_title(table)
    other = table.assign(margin=np.where(problems % 2, 1, -1).tolist() * 2)
    assert (
        "a difference between the methods' margins on the same completions is not shown (p = "
        in findings.margin_title(other)
    )
    near = table.assign(margin=np.where(table["method"] == "grpo", 0.2, 0.2 + gain / 20 + 1e-6 * table["problem_id"]))
    assert findings.margin_title(near).endswith(f"equal to within 1 % ({'+' if gain > 0 else '−'}0.50 %)"), "p < 0.001"
    assert findings.margin_title(table.assign(reading="own")) == "Margins of right over wrong completions"


def test_the_published_margins_are_told_without_a_verdict():
    published = pd.DataFrame({"method": ["amir_grpo", "grpo"], "mean": [0.25, 0.05]})
    title = "Published: AMIR-GRPO's mean margin is 0.2 nats per token larger; no interval is published"
    assert findings.published_margin_title(published) == title
    assert "0.2 nats per token smaller" in findings.published_margin_title(published.assign(mean=[0.05, 0.25]))


def test_the_titles_of_a_training_say_where_it_began_and_ended():
    logs = pd.DataFrame({"method": "grpo", "reward": [0.0, np.nan, *[0.5] * 18, 2.0]})
    assert findings.reward_title(logs) == "Reward: GRPO 0.25 → 1.25"
    assert findings.share_title(pd.Series([np.nan, 0.002, 0.003])) == "The preference term is 0.25 % of the update"
    assert "%" not in findings.share_title(pd.Series([0.0, 0.0]))
