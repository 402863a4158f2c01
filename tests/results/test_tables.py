import re

import numpy as np
import pandas as pd
import pytest

from amir_grpo import metrics
from amir_grpo.results import formatting, tables
from amir_grpo.results.published import published_table

MAIN_COLUMNS = ["benchmark", "k", "model", "grpo", "amir_grpo", "gain", "gain_low", "gain_high", "p_value", "p_holm"]
MAIN_COLUMNS += ["base", "problems", "samples"]


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


def test_main_table_by_hand(samples):
    table = tables.main_table(samples, ks=(1, 2), model="tiny")
    assert list(table.columns[: len(MAIN_COLUMNS)]) == MAIN_COLUMNS
    assert table[["benchmark", "k"]].to_numpy().tolist() == [["zeta", 1], ["zeta", 2], ["alpha", 1], ["alpha", 2]]
    first, second = table.iloc[0], table.iloc[1]
    assert (first["base"], first["grpo"], first["amir_grpo"], first["gain"]) == pytest.approx(
        (6.25, 18.75, 37.5, 18.75)
    )
    # k = 2 of 4: one correct is in 3 of 6 pairs, two in 5 of 6
    assert (second["grpo"], second["amir_grpo"]) == pytest.approx((100 * (5 / 6 + 1 / 2) / 4, 100 * (1 + 5 / 6) / 4))
    assert (first["model"], first["problems"], first["samples"]) == ("tiny", 4, 4)
    # differences 1/2, -1/4, 1/2, 0: six of the eight sign patterns reach |3/4|: 5/4, 3/4 and 1/4 twice each way
    assert first["p_value"] == pytest.approx(4 / 8)
    assert table["p_holm"].tolist() == pytest.approx(metrics.holm(table["p_value"]).tolist())


def test_main_table_intervals_hold_the_estimates_at_0_and_100_percent_too(samples):
    table = tables.main_table(samples, ks=(1, 4))
    for policy in tables.POLICIES:
        assert (table[f"{policy}_low"] <= table[policy]).all()
        assert (table[policy] <= table[f"{policy}_high"]).all()
    assert (table["gain_low"] < table["gain"]).all()
    assert (table["gain"] < table["gain_high"]).all()
    certain = table[table["benchmark"] == "alpha"].iloc[0]
    assert certain["grpo_high"] == 100
    assert certain["grpo_low"] < 70  # two problems say little


def test_tables_do_not_depend_on_the_rows_order_or_a_seed_elsewhere(samples):
    np.random.seed(0)  # noqa: NPY002 the global state must not matter
    whole = tables.main_table(samples)
    np.random.seed(1)  # noqa: NPY002
    shuffled = pd.concat([samples.iloc[:1], samples.iloc[1:].sample(frac=1, random_state=0)])
    again = tables.main_table(shuffled)
    pd.testing.assert_frame_equal(whole.drop(columns="p_holm"), again.drop(columns="p_holm"), rtol=0.05)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s[(s["policy"] != "grpo") | (s["problem_id"] != "zeta/1")], "grpo 1"),
        (lambda s: s.iloc[1:], "3 to 4 samples"),
        (lambda s: pd.concat([s, s]), "twice"),
        (lambda s: s.drop(columns="correct"), "no column correct"),
    ],
)
def test_main_table_refuses_what_was_not_sampled_alike(samples, change, named):
    with pytest.raises(ValueError, match=named):
        tables.main_table(change(samples))


def test_main_table_refuses_k_beyond_the_samples(samples):
    with pytest.raises(ValueError, match="pass@8 from n=4"):
        tables.main_table(samples, ks=(8,))


def test_coverage_table_by_hand(samples):
    table = tables.coverage_table(samples)
    assert list(table.columns) == list(published_table("coverage").columns)
    counts = {tuple(row[:3]): row[4] for row in table.itertuples(index=False)}
    assert counts == {(1, 1, 1): 2, (1, 1, 0): 1, (0, 1, 1): 1, (0, 0, 1): 1} | dict.fromkeys(
        [(1, 0, 1), (1, 0, 0), (0, 1, 0), (0, 0, 0)], 0
    )
    assert table["percent"].sum() == pytest.approx(100)
    assert table["percent"].iloc[0] == pytest.approx(40)
    assert table.attrs["problems"] == 6
    assert tables.coverage_table(samples, "alpha")["problems"].tolist() == [2, 0, 0, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="zeta, alpha"):
        tables.coverage_table(samples, "beta")


def test_coverage_table_with_nothing_solved():
    table = tables.coverage_table(samples_from({"hard": {policy: [0, 0, 0] for policy in tables.POLICIES}}))
    assert table["problems"].sum() == 0
    assert table["percent"].tolist() == [0.0] * 8


def greedy_from(counts):
    return samples_from(counts, n=1)


def test_policy_summary_by_hand(samples):
    greedy = greedy_from({b: {p: [1, 0, 0, 0][:n] for p in tables.POLICIES} for b, n in (("zeta", 4), ("alpha", 2))})
    samples["formatted"] = samples["sample"] < 3
    summary = tables.policy_summary(samples, ks=(1, 2), greedy=greedy)
    assert list(summary.columns) == tables.SUMMARY_COLUMNS
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
    assert set(zeta.drop("greedy")["samples"]) == {4}
    assert zeta.loc["greedy", "samples"] == 1, "one greedy completion was drawn"
    bounded = zeta.drop(index="tokens")
    assert ((bounded["estimate_low"] < bounded["estimate"]) & (bounded["estimate"] < bounded["estimate_high"])).all()
    assert np.isnan(zeta.loc["tokens", "estimate_low"]), (
        "every problem has the same mean length here: nothing is known"
    )


def test_summary_as_people_read_it(samples):
    wide = formatting.wide_summary(tables.policy_summary(samples, ks=(1,)))
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
    assert np.isnan(summary.loc["ece", "estimate"])
    assert np.isnan(summary.loc["brier", "estimate"])
    assert tables.reliability_table(rows).empty
    assert formatting.wide_summary(tables.policy_summary(rows, ks=(1,)))["brier"].tolist() == ["–"]


def test_comparisons_hold_every_two_policies_and_agree_with_the_main_table(samples):
    greedy = greedy_from(
        {
            "zeta": {"base": [0, 0, 0, 0], "grpo": [1, 0, 0, 0], "amir_grpo": [1, 1, 1, 0]},
            "alpha": {p: [1, 0] for p in tables.POLICIES},
        }
    )
    table = tables.comparison_table(samples, ks=(1, 2), greedy=greedy)
    assert list(table.columns) == tables.COMPARISON_COLUMNS
    assert len(table) == 2 * 3 * 3
    main = tables.main_table(samples, ks=(1, 2))
    ours = table[(table["new"] == "amir_grpo") & (table["old"] == "grpo") & (table["quantity"] != "greedy")]
    assert ours["gain"].tolist() == pytest.approx(main["gain"].tolist())
    assert ours["gain_low"].tolist() == pytest.approx(main["gain_low"].tolist())
    assert ours["p_value"].tolist() == pytest.approx(main["p_value"].tolist())
    assert set(table.loc[table["quantity"] == "greedy", "samples"]) == {1}
    assert table["p_holm"].tolist() == pytest.approx(metrics.holm(table["p_value"]).tolist())
    pairs = table.loc[table["quantity"] == "greedy"].set_index(["benchmark", "new", "old"])["gain"]
    assert pairs["zeta"].to_dict() == {("grpo", "base"): 25, ("amir_grpo", "base"): 75, ("amir_grpo", "grpo"): 50}
    html = formatting.style_comparisons(table.assign(new="<script>")).to_html()
    assert "<script>" not in html


def test_one_policy_alone_has_no_comparison():
    assert tables.comparison_table(samples_from({"b": {"mine": [1, 2]}}), ks=(1,)).empty


@pytest.fixture
def scores():
    """Two problems, two completions a sampler; every completion scored by both policies."""
    rows = []
    for sampler in ("grpo", "amir_grpo"):
        for scorer, right in (("grpo", -1.0), ("amir_grpo", -0.5)):
            for problem in ("p", "q"):
                rows.append((scorer, sampler, "b", problem, 2, True, 2 * right))
                rows.append((scorer, sampler, "b", problem, 4, problem == "q" and sampler == "grpo", 4 * -2.0))
    columns = ["scorer", "sampler", "benchmark", "problem_id", "tokens", "correct", "logprob"]
    return pd.DataFrame(rows, columns=columns)


def test_margin_table_by_hand(scores):
    table = tables.margin_table(scores)
    assert list(table.columns) == ["reading", "method", "benchmark", "problem_id", "margin"]
    found = {(row.reading, row.method, row.problem_id): row.margin for row in table.itertuples()}
    assert found == pytest.approx(
        {
            ("own", "grpo", "p"): 1.0,  # q: GRPO's own completions are all right
            ("own", "amir_grpo", "p"): 1.5,
            ("own", "amir_grpo", "q"): 1.5,
            ("shared", "grpo", "p"): 1.0,
            ("shared", "amir_grpo", "p"): 1.5,
            ("shared", "grpo", "q"): (-1 - 2 - 1) / 3 + 2,
            ("shared", "amir_grpo", "q"): (-0.5 - 2 - 0.5) / 3 + 2,
        }
    )


def test_margin_table_without_shared_scores_or_without_any_margin(scores):
    own = tables.margin_table(scores[scores["scorer"] == scores["sampler"]])
    assert set(own["reading"]) == {"own"}
    empty = tables.margin_table(scores.assign(correct=True))
    assert list(empty.columns) == tables.MARGIN_COLUMNS
    assert empty.empty
    assert tables.margin_summary(empty).empty


def test_margin_table_leaves_out_empty_completions_and_refuses_unequal_sets(scores):
    nothing = scores.iloc[[0]].assign(tokens=0, logprob=0.0)
    pd.testing.assert_frame_equal(tables.margin_table(pd.concat([scores, nothing])), tables.margin_table(scores))
    with pytest.raises(ValueError, match="same completions"):
        tables.margin_table(scores.iloc[1:])


def test_margin_summary_by_hand(scores):
    summary = tables.margin_summary(tables.margin_table(scores)).set_index(["reading", "method"])
    row = summary.loc[("shared", "grpo")]
    assert (row["mean"], row["problems"], row["positive"]) == pytest.approx(((1 + 2 / 3) / 2, 2, 100.0))
    assert row["mean_low"] < row["mean"] < row["mean_high"]
    assert np.isnan(summary.loc[("own", "grpo"), "mean_low"])


def test_published_tables():
    table = tables.with_gain(published_table("table1"))
    assert len(table) == 63
    assert (table["gain"] > 0).sum() == 57
    below = table[table["gain"] < 0]
    assert len(below) == 6
    assert set(below["benchmark"]) == {"GSM8K"}
    coverage = published_table("coverage")
    assert coverage["problems"].sum() == 34
    np.testing.assert_allclose(coverage["percent"], 100 * coverage["problems"] / 34, atol=0.06)
    assert set(published_table("margin")["method"]) == {"grpo", "amir_grpo"}


def test_published_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="Give a folder that holds table1"):
        published_table("table1", folder=tmp_path)
    with pytest.raises(ValueError, match="coverage"):
        published_table("table2")


def test_style_main_table_escapes_and_colours(samples):
    table = tables.main_table(samples, ks=(1,), model="<script>alert(1)</script>")
    table.loc[1, "gain"] = -3.0
    table["p_holm"] = 0.01
    html = formatting.style_main_table(table).to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "+18.8" in html
    assert "−3.0" in html
    assert formatting.GAIN_COLOUR in html
    assert formatting.LOSS_COLOUR in html
    assert "95 % interval" in html
    assert "n = 4" in html


def test_that_an_interval_is_that_of_no_difference_at_all_is_said_where_it_is():
    counts = {"base": [1] * 24, "grpo": [1, 0] * 12, "amir_grpo": [1, 0] * 12}
    same = tables.main_table(samples_from({"b": counts}), ks=(1, 2))
    low, high = same.loc[0, ["gain_low", "gain_high"]]
    note = formatting.unchanged_note(same)
    assert note.startswith(" In 2 of 2 comparisons both policies score the same on every problem")
    assert f"±{high:.1f} points of 24 problems" in note
    assert low == pytest.approx(-high)
    assert f"unless p < 0.05.{note}" in formatting.style_main_table(same).to_html()
    other = tables.main_table(samples_from({"b": counts | {"amir_grpo": [0, 1] * 12}}), ks=(1,))
    assert other["gain"].tolist() == [0.0]
    assert formatting.unchanged_note(other) == "", "equal on average, and not on every problem"


def test_style_main_table_draws_the_published_table():
    html = formatting.style_main_table(published_table("table1")).to_html()
    assert html.count("<tr>") == 64
    assert "interval" not in html
    assert "+11.9" in html


def test_signed_shows_no_minus_zero():
    assert [formatting.signed(value) for value in (1.25, -0.2, 0.04, -0.04, np.nan)] == [
        "+1.2",
        "−0.2",
        "0.0",
        "0.0",
        "–",
    ]


def test_a_gain_in_a_table_is_grey_unless_it_is_significant():
    grey = formatting.gain_colour(np.nan, np.nan)
    assert [formatting.gain_colour(gain, p) for gain, p in ((3.0, 0.05), (-3.0, 0.5), (3.0, np.nan))] == [grey] * 3
    assert formatting.gain_colour(0.3, 0.01) == formatting.GAIN_COLOUR != grey
    assert formatting.gain_colour(-0.3, 0.01) == formatting.LOSS_COLOUR != grey


def test_shared_margin_gain_by_hand_and_where_nothing_is_right():
    rows = [
        ("shared", method, "b", problem, value)
        for method, values in (("grpo", [0.1, 0.2, 0.4]), ("amir_grpo", [0.2, 0.2, 0.3]))
        for problem, value in enumerate(values)
    ]
    margins = pd.DataFrame(rows, columns=tables.MARGIN_COLUMNS)
    gain = tables.shared_margin_gain(margins)
    assert gain["problems"] == 3
    assert gain["gain"] == pytest.approx(0.0)
    assert gain["level"] == pytest.approx(0.7 / 3)
    empty = tables.shared_margin_gain(margins.iloc[:0])
    assert empty["problems"] == 0
    assert all(np.isnan(empty[name]) for name in ("level", "gain", "gain_low", "gain_high", "p_value"))


def test_what_is_printed_is_rounded_and_never_minus_zero():
    table = pd.DataFrame({"k": [1, 2], "gain": [-0.04, -0.26], "p_holm": [0.12345, 1.0]})
    shown = formatting.rounded(table).to_string(index=False)
    assert shown.split() == ["k", "gain", "p_holm", "1", "0.0", "0.123", "2", "-0.3", "1.000"]
    assert formatting.rounded(table.assign(p_holm=[0.0004, np.nan]))["p_holm"].tolist() == ["< 0.001", "–"]


def test_the_mixed_problem_is_nearest_to_half_right_and_of_equals_the_most_varied(samples):
    assert tables.mixed_problem(samples[samples["policy"] == "grpo"]) == "zeta/0"
    twins = samples_from({"a": {"base": [1, 3, 1]}}).assign(text=list("aaab" + "aabc" + "aabb"))
    assert tables.mixed_problem(twins) == "a/1"


def test_policies_are_shown_by_the_names_that_people_write():
    table = pd.DataFrame({"method": ["amir_grpo", "mine"], "grpo": [1, 2]})
    shown = formatting.named(table)
    assert shown["method"].tolist() == ["AMIR-GRPO", "mine"]
    assert list(shown) == ["method", "GRPO"]


def test_long_tables_are_folded():
    short = formatting.folded(formatting.style_texts(pd.DataFrame({"a": range(16)})), "All")
    assert "<details" not in short
    long = formatting.folded(formatting.style_texts(pd.DataFrame({"a": range(17)})), "All <17>")
    assert long.startswith("<details><summary>All &lt;17&gt;</summary>")
    assert long.count("<tr>") == 18


def test_a_question_stands_above_its_completions_as_text():
    group = pd.DataFrame({"text": ["<b>1</b>"], "correct": [True]})
    html = formatting.style_group("<script>7+8", ["15", "<i>"], group).to_html()
    assert "&lt;script&gt;7+8" in html
    assert "right: 15 or &lt;i&gt;" in html
    assert not re.search("<script|<b>|<i>", html)
    assert ">right<" in html


def test_a_training_is_told_by_its_first_and_last_tenth():
    log = pd.DataFrame({"reward": [0.0, np.nan, 1.0, *[5.0] * 17, np.nan, 2.0, 4.0], "step": range(23)})
    assert tables.reward_ends(log) == (0.5, 3.0, 2)  # 21 steps have a reward
    assert tables.reward_ends(log.head(3)) == (0.0, 1.0, 1)
    assert np.isnan(tables.reward_ends(log.iloc[1:2]).first)


def test_the_share_of_the_preference_term_is_the_median_of_the_steps_that_have_one():
    log = pd.DataFrame({"preference/share": [0.1, np.nan, 0.2, 0.6]})
    assert tables.preference_share(log) == 0.2
    assert np.isnan(tables.preference_share(log[1:2]))
    assert np.isnan(tables.preference_share(pd.DataFrame({"reward": [1.0]})))
