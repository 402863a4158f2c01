import numpy as np
import pandas as pd
import pytest

from amir_grpo import metrics
from amir_grpo.results import style, tables

POLICIES = ("base", "grpo", "amir_grpo")


def samples_from(counts, n=4):
    """A samples table from {benchmark: {policy: [correct of n, one a problem]}}."""
    rows = [
        {
            "policy": policy,
            "benchmark": benchmark,
            "problem_id": f"{benchmark}/{number}",
            "sample": sample,
            "text": "<think>",
            "tokens": 10 + sample,
            "finish_reason": "length" if sample == 0 else "stop",
            "correct": sample < correct,
            "logprob": -1.0,
            "seed": 0,
        }
        for benchmark, policies in counts.items()
        for policy, column in policies.items()
        for number, correct in enumerate(column)
        for sample in range(n)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def samples():
    return samples_from(
        {
            "zeta": {"base": [0, 1, 0, 0], "grpo": [2, 1, 0, 0], "amir_grpo": [4, 0, 2, 0]},
            "alpha": {"base": [4, 4], "grpo": [4, 4], "amir_grpo": [4, 4]},
        }
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s[(s["policy"] != "grpo") | (s["problem_id"] != "zeta/1")], "1 problems have fewer than 4"),
        (lambda s: s.iloc[1:], "1 problems have fewer than 4"),
        (lambda s: pd.concat([s, s]), "twice"),
    ],
)
def test_what_was_not_sampled_alike_is_refused(samples, change, named):
    for table in (tables.policy_summary, tables.comparison_table):
        with pytest.raises(ValueError, match=named):
            table(change(samples))


def test_policy_summary_by_hand(samples):
    greedy = samples_from({b: {p: [1, 0, 0, 0][:n] for p in POLICIES} for b, n in (("zeta", 4), ("alpha", 2))}, n=1)
    samples["formatted"] = samples["sample"] < 3
    summary = tables.policy_summary(samples, ks=(1, 2), greedy=greedy)
    assert len(summary) == 3 * 2 * 6
    zeta = summary[(summary["policy"] == "amir_grpo") & (summary["benchmark"] == "zeta")].set_index("quantity")
    assert zeta["estimate"].to_dict() == pytest.approx(
        {
            "pass@1": 37.5,
            "pass@2": 100 * (1 + 5 / 6) / 4,
            "greedy": 25.0,
            "tokens": 11.5,
            "truncated": 25.0,
            "formatted": 75.0,
        }
    )
    assert set(zeta["problems"]) == {4}
    assert zeta["samples"].to_dict() == dict.fromkeys(zeta.index, 4) | {"greedy": 1}
    bounded = zeta.drop(index="tokens")
    assert ((bounded["estimate_low"] < bounded["estimate"]) & (bounded["estimate"] < bounded["estimate_high"])).all()
    assert np.isnan(zeta.loc["tokens", "estimate_low"]), "every problem has the same mean length: nothing is known"
    certain = summary[(summary["benchmark"] == "alpha") & (summary["quantity"] == "pass@1")].iloc[0]
    assert certain["estimate_high"] == 100
    assert certain["estimate_low"] < 70  # two problems say little


def test_summary_as_people_read_it(samples):
    wide = tables.wide_summary(tables.policy_summary(samples, ks=(1,)))
    assert list(wide.index) == [(b, p) for b in ("zeta", "alpha") for p in ("Base", "GRPO", "AMIR-GRPO")]
    assert list(wide.columns) == ["pass@1", "tokens", "truncated"]
    assert wide.loc[("zeta", "AMIR-GRPO"), "pass@1"].startswith("37.5 [")
    assert wide.loc[("zeta", "AMIR-GRPO"), "tokens"] == "11.5"


def test_summary_of_stated_confidence_by_hand():
    rows = samples_from({"b": {"p": [1, 2]}}, n=2)
    rows["confidence"] = [0.9, 0.9, 0.6, np.nan]
    summary = tables.policy_summary(rows, ks=(1,)).set_index("quantity")
    assert summary.loc["stated", "estimate"] == 75.0
    assert summary.loc["brier", "estimate"] == pytest.approx(((0.1**2 + 0.9**2) / 2 + 0.4**2) / 2)
    # one bin holds 0.9 and 0.9, half right: off by 0.4; another 0.6, right: off by 0.4
    assert summary.loc["ece", "estimate"] == pytest.approx(0.4)
    table = tables.reliability_table(rows)
    assert table[["low", "high", "right", "completions"]].to_numpy().tolist() == [
        [0.6, 0.7, 1.0, 1],
        [0.9, 1.0, 0.5, 2],
    ]


def test_no_stated_confidence_at_all():
    rows = samples_from({"b": {"p": [1, 2]}}, n=2).assign(confidence=np.nan)
    summary = tables.policy_summary(rows, ks=(1,)).set_index("quantity")
    assert summary.loc["stated", "estimate"] == 0
    assert summary.loc[["ece", "brier"], "estimate"].isna().all()
    assert tables.reliability_table(rows).empty
    assert tables.wide_summary(summary.reset_index())["brier"].tolist() == ["–"]


def test_comparisons_by_hand(samples):
    greedy = samples_from(
        {
            "zeta": {"base": [0, 0, 0, 0], "grpo": [1, 0, 0, 0], "amir_grpo": [1, 1, 1, 0]},
            "alpha": {p: [1, 0] for p in POLICIES},
        },
        n=1,
    )
    table = tables.comparison_table(samples, ks=(1, 2), greedy=greedy)
    assert list(table.columns) == tables.COMPARISON_COLUMNS
    assert len(table) == 2 * 3 * 3
    ours = table[(table["new"] == "amir_grpo") & (table["old"] == "grpo") & (table["benchmark"] == "zeta")]
    first, second, last = ours.to_dict("records")
    assert (first["old_percent"], first["new_percent"], first["gain"]) == pytest.approx((18.75, 37.5, 18.75))
    # k = 2 of 4: one correct is in 3 of 6 pairs, two in 5 of 6
    assert (second["old_percent"], second["new_percent"]) == pytest.approx((100 * (5 / 6 + 1 / 2) / 4, 1100 / 24))
    # differences 1/2, -1/4, 1/2, 0: six of the eight sign patterns reach |3/4|: 5/4, 3/4 and 1/4 twice each way
    assert first["p_value"] == pytest.approx(4 / 8)
    assert first["gain_low"] < first["gain"] < first["gain_high"]
    assert (last["quantity"], last["gain"], last["samples"], first["samples"]) == ("greedy", 50, 1, 4)
    assert table["p_holm"].tolist() == pytest.approx(metrics.holm(table["p_value"]).tolist())


def test_one_policy_alone_has_no_comparison():
    assert tables.comparison_table(samples_from({"b": {"mine": [1, 2]}}), ks=(1,)).empty


def test_the_ends_of_a_training_leave_out_what_has_no_reward():
    assert tables.reward_ends(pd.DataFrame({"reward": [0.0, np.nan, *[0.5] * 18, 2.0]})) == (0.25, 1.25, 2)
    assert tables.reward_ends(pd.DataFrame({"reward": [1.0, 3.0]})) == (1.0, 3.0, 1)


def test_published_tables():
    table = tables.published_table("table1")
    gain = table["amir_grpo"] - table["grpo"]
    assert (len(table), sum(gain > 0), sum(gain < 0)) == (63, 57, 6)
    assert set(table.loc[gain < 0, "benchmark"]) == {"GSM8K"}
    assert set(tables.published_table("sizes")["benchmark"]) == set(table["benchmark"])
    coverage = tables.published_table("coverage")
    assert coverage["problems"].sum() == 34
    np.testing.assert_allclose(coverage["percent"], 100 * coverage["problems"] / 34, atol=0.06)
    assert set(tables.published_table("margin")["method"]) == {"grpo", "amir_grpo"}

    with pytest.raises(ValueError, match="Did you mean 'table1'"):
        tables.published_table("table2")


def test_numbers_as_people_read_them():
    assert [style.signed(x) for x in (1.25, -0.2, 0.04, -0.04, np.nan)] == ["+1.2", "−0.2", "0.0", "0.0", "–"]
    assert [style.p_text(p) for p in (0.0004, 0.5, np.nan)] == ["< 0.001", "0.500", "–"]
    row = {"gain": 0.02, "gain_low": -0.1, "gain_high": 0.141}
    assert style.with_interval(row) == "+0.02 [−0.10, +0.14]"
    table = tables.rounded(pd.DataFrame({"gain": [-0.04, 1.26], "p_holm": [0.0001, 1.0]}))
    assert table.to_numpy().tolist() == [[0.0, "< 0.001"], [1.3, "1.000"]]
    assert not np.signbit(table["gain"][0])
