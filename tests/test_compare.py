"""Comparisons of other people's results: simulations with known truth, SciPy, and logs as their tools write them."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from amir_grpo.compare import compare_results, read_results, shown_table, to_html, to_json
from amir_grpo.metrics import compare, paired_gain

STREAM = np.random.default_rng(0)


def shares(problems, samples, gain=0.0, stream=STREAM, difficulty=None):
    """Shares of right samples of a policy whose chance per problem is Beta distributed, raised by `gain`."""
    chance = stream.beta(2, 2, problems) if difficulty is None else difficulty
    return stream.binomial(samples, np.clip(chance + gain, 0, 1), (1, problems))[0] / samples


def test_one_seed_is_a_paired_gain():
    new, old = shares(80, 8), shares(80, 8)
    found, gain = compare(new, old, (8, 8)), paired_gain(new, old)
    assert (found.estimate, found.low, found.high, found.p_value) == (gain.estimate, gain.low, gain.high, gain.p_value)
    assert (found.unit, found.problems, found.seeds) == ("problem", 80, 1)


def test_several_seeds_are_welchs_test_on_their_means():
    new, old = STREAM.uniform(size=(5, 40)), STREAM.uniform(size=(3, 40)) * 0.9
    found = compare(new, old)
    reference = stats.ttest_ind(new.mean(1), old.mean(1), equal_var=False)
    ends = reference.confidence_interval()
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert (found.unit, found.seeds) == ("seed", 3)


def test_what_is_called_detectable_is_found_four_times_in_five():
    difficulty = STREAM.beta(2, 2, 100) * 0.7

    def pairs(gain, count):
        return [
            (shares(100, 4, gain, STREAM, difficulty), shares(100, 4, 0, STREAM, difficulty)) for _ in range(count)
        ]

    detectable = np.median([compare(*pair).detectable for pair in pairs(0.1, 40)])
    found = [paired_gain(*pair, resamples=400).p_value < 0.05 for pair in pairs(detectable, 300)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)


def test_more_problems_or_samples_shrink_what_is_detectable_as_said():
    difficulty = np.repeat(np.linspace(0.2, 0.7, 20), 10)
    gains = 0.04 + 0.1 * np.sin(np.arange(200))  # problems differ in their gain, which samples do not average out

    def drawn(samples):
        streams = map(np.random.default_rng, (samples, samples + 1))
        return [shares(200, samples, gain, next(streams), difficulty) for gain in (gains, 0)]

    new, old = drawn(4)
    found = compare(new, old, (4, 4))
    copies = int(np.ceil(found.units_needed / 200))
    assert compare(np.tile(new, copies), np.tile(old, copies)).detectable <= abs(found.estimate) * 1.01
    assert 4 < found.samples_needed < np.inf
    assert compare(*drawn(int(found.samples_needed))).detectable == pytest.approx(abs(found.estimate), rel=0.25)


@pytest.mark.parametrize("nothing", [[], [0.5]])
def test_what_would_decide_is_not_known_where_nothing_is_known_of_the_spread(nothing):
    found = compare(nothing, nothing)
    assert np.isnan([found.detectable, found.units_needed, found.samples_needed]).all()


def test_no_number_of_samples_decides_what_differs_between_problems():
    gains = np.tile([0.5, -0.48], 20)
    assert compare(0.49 + gains, np.full(40, 0.49), (64, 64)).samples_needed == np.inf
    assert np.isnan(compare(shares(40, 1), shares(40, 1)).samples_needed)


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [([1, 0], [1], "same problems"), ([50.0], [40.0], "give fractions"), ([np.nan], [0.5], "Shares")],
)
def test_bad_arrays_are_refused(new, old, said):
    with pytest.raises(ValueError, match=said):
        compare(new, old)


# --- files ----------------------------------------------------------------------------------------------------------


def harness(folder, right, task="gsm8k", lenient=None, shift=0):
    """Samples as lm-evaluation-harness 0.4.13 logs them, one line per problem and filter."""
    folder.mkdir(parents=True, exist_ok=True)
    readings = {"strict-match": right, **({"flexible-extract": lenient} if lenient is not None else {})}
    lines = [
        {
            "doc": {"question": f"How much is {number + shift}?"},
            "doc_hash": f"{number + shift:064x}",
            "filter": reading,
        }
        | {"filtered_resps": ["3"], "metrics": ["exact_match"], "exact_match": float(correct)}
        for reading, values in readings.items()
        for number, correct in enumerate(values)
    ]
    path = folder / f"samples_{task}_2026-11-29T11-22-46.155025.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_harness_logs_are_paired_by_problem(tmp_path):
    right = STREAM.integers(0, 2, (2, 60))
    a = read_results(str(harness(tmp_path / "a", right[0])))
    b = read_results(str(harness(tmp_path / "b", np.roll(right[1], 10), shift=-10)))  # other problems, other order
    table, remarks = compare_results(a, b)
    gain = paired_gain(right[0][:50], right[1][:50])
    row = table.iloc[0]
    assert (row["benchmark"], row["problems"]) == ("gsm8k", 50)
    expected = 100 * gain.estimate, 100 * gain.low, 100 * gain.high, gain.p_value
    assert tuple(row[["gain", "low", "high", "p"]]) == pytest.approx(expected)
    assert sum("10 of 60 problems" in remark for remark in remarks) == 2
    bare = tmp_path / "samples_aime_24.jsonl"
    bare.write_bytes(next((tmp_path / "a").iterdir()).read_bytes())
    assert set(read_results(str(bare))["benchmark"]) == {"aime_24"}


def test_a_gain_in_the_format_is_told_from_one_in_the_answers(tmp_path):
    lenient = STREAM.integers(0, 2, 100)
    strict = lenient * (STREAM.random(100) < 0.5)
    a = read_results(str(harness(tmp_path / "a", lenient, lenient=lenient)))
    b = read_results(str(harness(tmp_path / "b", strict, lenient=lenient)))
    table, remarks = compare_results(a, b)
    by_reading = table.set_index("reading")["gain"]
    assert by_reading["flexible-extract"] == 0
    assert by_reading["strict-match"] > 10
    assert any("0.0 by lenient extraction" in remark for remark in remarks)


def test_csv_with_seeds(tmp_path):
    values = [(p, s, STREAM.integers(0, 9), 8) for p in range(30) for s in range(4)]
    rows = pd.DataFrame(values, columns=["problem", "seed", "right", "n"])
    rows.to_csv(tmp_path / "a.csv", index=False)
    rows.assign(right=lambda table: np.maximum(table["right"] - 1, 0)).to_csv(tmp_path / "b.csv", index=False)
    table, remarks = compare_results(read_results(str(tmp_path / "a.csv")), read_results(str(tmp_path / "b.csv")))
    assert (table["unit"].item(), table["seeds"].item(), table["problems"].item()) == ("seed", 4, 30)
    assert not any("One seed" in remark for remark in remarks)


def test_lighteval_details_are_paired_by_their_query(tmp_path):
    for name, right in (("a", [1, 0, 1, 1]), ("b", [0, 0, 1, 0])):
        (tmp_path / name).mkdir()
        documents = [{"query": f"q{n}", "id": str(n), "task_name": "math_500"} for n in range(4)]
        metrics = [{"extractive_match": float(r), "other": None} for r in right]
        details = pd.DataFrame({"doc": documents, "model_response": [{"text": ["…"]}] * 4, "metric": metrics})
        details.to_parquet(tmp_path / name / "details_lighteval|math_500|0_2026-11-29T11-22-46.155025.parquet")
    table, _ = compare_results(read_results(str(tmp_path / "a")), read_results(str(tmp_path / "b")))
    assert (table["gain"].item(), table["problems"].item()) == (50, 4)


def test_an_export_holds_several_policies(tmp_path):
    chosen = [(policy, f"p{n}", k == 0) for policy in ("grpo", "amir_grpo") for n in range(9) for k in range(3)]
    rows = pd.DataFrame(chosen, columns=["policy", "problem_id", "correct"]).assign(benchmark="chain6", formatted=True)
    rows.to_parquet(tmp_path / "completions.parquet")
    one = read_results(f"{tmp_path}:grpo")
    assert compare_results(one, read_results(f"{tmp_path}:amir_grpo"))[0]["gain"].item() == 0
    with pytest.raises(ValueError, match="Name one, as"):
        read_results(str(tmp_path))
    (tmp_path / "samples" / "base").mkdir(parents=True)  # the run that was exported, evaluated anew
    rows.head(9).assign(policy="base").to_parquet(tmp_path / "samples" / "base" / "chain6.parquet")
    assert len(read_results(f"{tmp_path}:base")) == 2 * rows.head(9)["problem_id"].nunique()
    with pytest.raises(ValueError, match="has no policy 'gpro'"):
        read_results(f"{tmp_path}:gpro")


def test_what_is_shown_is_what_was_found(tmp_path):
    a, b = (read_results(str(harness(tmp_path / n, STREAM.integers(0, 2, 40)))) for n in "ab")
    table, remarks = compare_results(a, b)
    said = json.loads(to_json(table, remarks, ("a", "b")))
    assert {"gain", "low", "high", "p", "problems"} <= set(said["rows"][0])
    assert said["rows"][0]["gain"] == pytest.approx(table["gain"].item())
    page = to_html(table, remarks, ("<script>alert(1)</script>", "b"))
    assert "<svg" in page
    assert "<script>" not in page
    assert shown_table(table)["gain"].item() in page


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("samples_gsm8k_1.jsonl", '{"doc": {"a": 1}, "filter": "x"', "cannot be read as results"),
        ("samples_gsm8k_1.jsonl", "[]\n", "cannot be read as results"),
        ("details_x_1.parquet", "PAR1", "cannot be read as results"),
        ("a.csv", "task,score\n1,2\n", "no column problem or right"),
        ("a.csv", "problem,right,n\np,9,8\n", "right=9"),
        ("a.csv", "problem,right\np,1\np,0\n", "there twice"),
        ("a.txt", "x", "holds no results"),
    ],
)
def test_other_files_are_refused_in_three_lines(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        read_results(str(tmp_path))
    assert len(str(caught.value).splitlines()) <= 3


def test_logs_of_two_tools_in_one_folder_are_refused(tmp_path):
    harness(tmp_path, [1, 0])
    (tmp_path / "details_x_1.parquet").write_text("PAR1")
    with pytest.raises(ValueError, match=r"samples_\*.jsonl and details_\*.parquet: logs of two tools"):
        read_results(str(tmp_path))


def test_results_without_a_problem_in_common_are_refused(tmp_path):
    a = read_results(str(harness(tmp_path / "a", [1, 0])))
    for other in (harness(tmp_path / "b", [1, 0], shift=5), harness(tmp_path / "c", [1, 0], task="math")):
        with pytest.raises(ValueError, match="no problem of the same benchmark in common"):
            compare_results(a, read_results(str(other)))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_results(str(tmp_path / "nowhere"))
