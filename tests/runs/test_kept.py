"""A run is told whether it gives the results that the package keeps; here, what a tiny run of this test has kept."""

import json
import shutil

import pandas as pd
import pytest

from amir_grpo.runs import reproduce
from amir_grpo.runs.kept import compared_with_kept, completion_digests, keep_results
from amir_grpo.runs.run import open_run
from amir_grpo.runs.showing import results_of

pytestmark = pytest.mark.xdist_group("complete run")


@pytest.fixture(scope="module")
def kept_once(complete_run, tmp_path_factory):
    """What is kept of the run."""
    folder = tmp_path_factory.mktemp("kept once") / "kept"
    keep_results(complete_run, results_of(complete_run), folder)
    return folder


@pytest.fixture
def kept(kept_once, tmp_path):
    """What is kept of the run, to be changed."""
    return shutil.copytree(kept_once, tmp_path / "kept")


@pytest.fixture
def copy(complete_run, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(complete_run.folder, tmp_path / "copy")


def comparison(folder, kept):
    """What a run in this folder, as it is now, is told."""
    run = open_run(run_dir=folder)
    return compared_with_kept(run, results_of(run), kept)


def digests(folder):
    return completion_digests(results_of(open_run(run_dir=folder)))


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_the_same_results_are_told_so(copy, kept):
    message = comparison(copy, kept)
    # 3 policies on 2 benchmarks of 4 problems, each with 8 samples and a greedy completion
    assert message == (
        "Equal to the published results of this package: 6 tables, the logs of both trainings and 216 completions."
    )


def test_every_kept_table_counts(copy, kept):
    run = open_run(run_dir=copy)
    results = results_of(run)
    for path in kept.glob("*.csv"):
        text = path.read_text()
        table = pd.read_csv(path)  # one may be empty, where no problem has right and wrong completions
        table.iloc[:, :-1].to_csv(path, index=False)
        message = compared_with_kept(run, results, kept)
        assert f"First difference (there and here): {path.name}: columns " in message
        path.write_text(text)
    assert compared_with_kept(run, results, kept).startswith("Equal")


def another_token(rows):
    ids = list(rows["completion_ids"])
    ids[3] = [*ids[3][:-1], 1]
    rows["completion_ids"] = ids


def another_grade(rows):
    rows.loc[3, "correct"] = not rows.loc[3, "correct"]


def another_order(rows):
    rows.loc[[0, 8]] = rows.loc[[8, 0]].to_numpy()


@pytest.mark.parametrize("change", [another_token, another_grade, another_order])
def test_a_change_of_one_completion_changes_its_digest_alone(copy, change):
    before = digests(copy)
    path = copy / "samples" / "grpo" / "chain6.parquet"
    rows = pd.read_parquet(path)
    change(rows)
    rows.to_parquet(path)
    after = digests(copy)
    changed = before[before["sha256"] != after["sha256"]]
    assert changed[["policy", "benchmark"]].to_numpy().tolist() == [["grpo", "chain6"]]


def test_completions_are_named_before_the_tables_that_follow_from_them(copy, kept):
    path = copy / "samples" / "amir_grpo" / "chain3.greedy.parquet"
    rows = pd.read_parquet(path)
    another_grade(rows)
    rows.to_parquet(path)
    assert "completions.csv: column sha256, row amir_grpo, chain3: " in comparison(copy, kept)


def test_what_may_explain_a_difference_is_named(copy, kept):
    (kept / "main.csv").write_text((kept / "main.csv").read_text().replace("chain3", "chain9"))
    message = comparison(copy, kept)
    assert "main.csv: column benchmark, row 0: 'chain9' and 'chain3'" in message
    assert "the code may be the reason: commit " in message

    def elsewhere(record):
        record["provenance"]["packages"]["torch"] = "2.9.0"
        record["provenance"]["cpu"] = "Another CPU, AVX2"

    edit(kept / "provenance.json", elsewhere)
    message = comparison(copy, kept)
    assert "were made with torch 2.9.0 (here " in message
    assert ", CPU Another CPU, AVX2 (here " in message
    assert "numpy" not in message
    assert len(message.splitlines()) == 2


def test_other_settings_are_not_compared(copy, kept):
    def change(record):
        record["settings"] |= {"max_steps": 5, "seed": 3}

    edit(copy / "config.json", change)
    assert comparison(copy, kept) == (
        "Not compared with the published results of this package, made with another max_steps (there 2, here 5) and 1 more."
    )


def test_settings_that_change_no_result_are_not_compared(copy, kept):
    edit(kept / "provenance.json", lambda record: record["settings"].update(report_to="wandb", save_steps=7))
    assert comparison(copy, kept).startswith("Equal")


def test_a_profile_of_which_nothing_is_kept_is_not_spoken_of(copy, kept, tmp_path):
    assert comparison(copy, tmp_path / "nothing") is None
    edit(copy / "config.json", lambda record: record.update(profile="smoke"))
    assert comparison(copy, kept) is None


def test_reproduce_ends_with_the_comparison(copy, kept, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "_execute", lambda *_: 0.0)  # the run is complete
    monkeypatch.setattr(reproduce, "kept_results", {"sandbox": kept}.__getitem__)
    reproduce.reproduce_run(open_run(run_dir=copy), {})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Equal to the published results of this package: 6 tables")
