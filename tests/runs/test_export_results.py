"""What others get of a run: every problem, every completion, a card, and the lm-evaluation-harness' form."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from amir_grpo import cli
from amir_grpo.metrics import pass_at_k
from amir_grpo.runs import export_results
from amir_grpo.runs.harness import FILTER, harness_results, harness_samples
from amir_grpo.runs.run import open_run

pytestmark = pytest.mark.xdist_group("complete run")


@pytest.fixture(scope="module")
def run(complete_run):
    return complete_run


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return export_results.export_results(run, tmp_path_factory.mktemp("out") / "results")


def test_every_problem_of_every_policy_has_a_row_that_its_completions_confirm(run, folder):
    problems, completions = (pd.read_parquet(folder / f"{name}.parquet") for name in ("problems", "completions"))
    assert len(problems) == 3 * 2 * 4
    assert len(completions) == len(problems) * 8
    for row in problems.itertuples():
        own = completions[(completions["policy"] == row.policy) & (completions["problem_id"] == row.problem_id)]
        assert row.samples == len(own) == 8
        assert row.correct == own["correct"].sum()
        assert row.tokens == pytest.approx(own["tokens"].mean())
        assert row.truncated == (own["finish_reason"] == "length").sum()
        assert row.formatted == own["formatted"].sum()
    asked = {row["id"]: row for name in run.settings.evaluation.benchmarks for row in run.problems(name)}
    assert {r.problem_id: (r.question, list(r.answers)) for r in problems.itertuples()} == {
        name: (row["question"], row["answer"]) for name, row in asked.items()
    }
    greedy = run.samples(greedy=True).set_index(["policy", "problem_id"])["correct"]
    assert [greedy[row.policy, row.problem_id] for row in problems.itertuples()] == problems["greedy_correct"].tolist()


def test_the_card_describes_every_column_and_names_no_path(run, folder):
    card = DatasetCard((folder / "README.md").read_text())
    assert [each["data_files"] for each in card.data.configs] == ["problems.parquet", "completions.parquet"]
    for name in ("problems", "completions"):
        for column in pd.read_parquet(folder / f"{name}.parquet").columns:
            assert f"`{column}`" in card.text, column
    problems = pd.read_parquet(folder / "problems.parquet")
    base = problems[(problems["benchmark"] == "chain3") & (problems["policy"] == "base")]
    assert f"| chain3 | {100 * (base['correct'] / base['samples']).mean():.1f} |" in card.text
    assert "fingerprint" in card.text
    assert str(run.folder) not in card.text
    for path in folder.rglob("*.json*"):
        assert str(run.folder.parent) not in path.read_text()


def test_the_card_loads_as_the_hub_would(folder):
    problems = load_dataset("parquet", data_files=str(folder / "problems.parquet"), split="train")
    assert problems.num_rows == 24


def test_a_sample_of_the_harness_by_hand():
    rows = pd.DataFrame(
        {
            "problem_id": ["p"] * 4,
            "sample": [3, 0, 1, 2],
            "text": ["none", r"<answer>\boxed{15}</answer>", r"\boxed{1}", r"<answer>15</answer>"],
            "correct": [False, True, False, True],
        }
    )
    problem = {"id": "p", "question": "7+8", "answer": ["15"]}
    (entry,) = harness_samples(rows, [problem], {"p": "user: 7+8"}, {"temperature": 0.6}, [1, 2])
    assert entry["resps"] == [[r"<answer>\boxed{15}</answer>", r"\boxed{1}", r"<answer>15</answer>", "none"]]
    assert entry["filtered_resps"] == [["15", "1", "15", ""]]
    assert entry["target"] == "15"
    assert (entry["pass@1"], entry["pass@2"]) == pytest.approx((1 / 2, 5 / 6))
    assert entry["arguments"] == {"gen_args_0": {"arg_0": "user: 7+8", "arg_1": {"temperature": 0.6}}}
    assert entry["prompt_hash"] == hashlib.sha256(b"user: 7+8").hexdigest()
    (several,) = harness_samples(rows, [problem | {"answer": ["15", "15.0"]}], {"p": ""}, {}, [1])
    assert json.loads(several["target"]) == ["15", "15.0"]
    results = harness_results("grpo", {"chain3": [entry, several | {"pass@2": 0.0}]}, {}, 0)["results"]["chain3"]
    assert results[f"pass@1,{FILTER}"] == pytest.approx(0.5)
    assert results["sample_len"] == 2
    alone = harness_results("grpo", {"chain3": [entry]}, {}, 0)["results"]["chain3"]
    assert alone[f"pass@1_stderr,{FILTER}"] == "N/A", "NaN is no JSON"


def test_samples_are_read_as_the_harness_reads_its_own(run, folder):
    """By `datasets`, for which it writes them; each line has just the keys of its schema and the metrics that it names."""
    fixed = "doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash target_hash".split()
    completions = pd.read_parquet(folder / "completions.parquet")
    paths = sorted(folder.glob("lm_eval/*/samples_*.jsonl"))
    assert len(paths) == 3 * 2
    for path in paths:
        policy, benchmark = path.parent.name, path.name.split("_")[1]
        rows = load_dataset("json", data_files=str(path), split="train")
        own = completions[(completions["policy"] == policy) & (completions["benchmark"] == benchmark)]
        assert rows["resps"] == [[texts.tolist()] for _, texts in own.groupby("problem_id", sort=False)["text"]]
        assert set(rows.column_names) == {*fixed, *rows[0]["metrics"]}
        right = own.groupby("problem_id", sort=False)["correct"].sum().to_numpy()
        np.testing.assert_allclose(rows["pass@2"], pass_at_k(right, 8, 2))
        (results,) = path.parent.glob("results_*.json")
        mean = json.loads(results.read_text())["results"][benchmark][f"pass@2,{FILTER}"]
        assert mean == pytest.approx(np.mean(rows["pass@2"]))


def test_the_harness_own_tools_read_it(folder):
    harness = pytest.importorskip("lm_eval.utils", reason="needs lm-eval")
    schema = pytest.importorskip("lm_eval.result_schema", reason="needs lm-eval")
    names = [str(path) for path in folder.glob("lm_eval/grpo/*")]
    samples = harness.get_sample_results_filenames(names)
    assert sorted(harness.get_file_task_name(name.rpartition("/")[2]) for name in samples) == ["chain3", "chain6"]
    (results,) = harness.get_results_filenames(names)
    assert harness.get_file_datetime(samples[0]) == harness.get_file_datetime(results).removesuffix(".json")
    for name in samples:
        for line in Path(name).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            assert set(schema.SampleResult.__annotations__) == set(entry) - set(entry["metrics"])
            assert entry["doc_hash"] == harness.hash_string(json.dumps(entry["doc"], indent=2, ensure_ascii=False))
            assert entry["prompt_hash"] == harness.hash_string(entry["arguments"]["gen_args_0"]["arg_0"])
            assert entry["target_hash"] == harness.hash_string(entry["target"])
    pytest.importorskip("pytablewriter", reason="needs lm-eval")
    table = harness.make_table(json.loads(Path(results).read_text(encoding="utf-8")))
    assert "chain3" in table
    assert "pass@1" in table


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(["export", *map(str, arguments)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_on_the_command_line(run, tmp_path, capsys):
    cli.main(["export", "--run_dir", str(run.folder), "--results", str(tmp_path / "out")])
    assert f"Saved: {tmp_path / 'out'}" in capsys.readouterr().out
    assert (tmp_path / "out" / "problems.parquet").is_file()
    assert "is there already" in refused(capsys, "--run_dir", run.folder, "--results", tmp_path / "out")
    message = refused(capsys, "--run_dir", run.folder, "--results", tmp_path / "b", "--merged")
    assert "--results goes without --merged" in message
    assert not (tmp_path / "b").exists()


def test_a_run_that_is_not_evaluated_is_refused(runs, tiny_settings, tmp_path, capsys):
    untrained = open_run("sandbox", runs / "not evaluated", tiny_settings)
    message = refused(capsys, "--run_dir", untrained.folder, "--results", tmp_path / "out")
    assert "holds no completions of Base on chain3 yet" in message
    assert "amir_grpo evaluate" in message
    assert not (tmp_path / "out").exists()
