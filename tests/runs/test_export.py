"""What a run gives away: what is in the folder, what the card says, and that other tools read it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from amir_grpo import cli
from amir_grpo.compare import read_results
from amir_grpo.metrics import pass_at_k
from amir_grpo.policies.loading import load_policy
from amir_grpo.policies.source import ADAPTER_FILES
from amir_grpo.runs.export import export_policy, export_results, harness_samples, model_card
from amir_grpo.runs.run import open_run
from amir_grpo.system.files import hashes, write_text
from amir_grpo.system.provenance import to_json
from tests.test_bad_input import refused

pytestmark = pytest.mark.xdist_group("complete run")


@pytest.fixture(scope="module")
def run(complete_run, tmp_path_factory):
    return open_run(run_dir=shutil.copytree(complete_run.folder, tmp_path_factory.mktemp("export") / "run"))


def test_a_merged_policy_loads_anywhere_and_is_the_trained_one(run, tmp_path):
    folder = export_policy(run, "amir_grpo", tmp_path / "out", merged=True)
    alone = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert alone.dtype == torch.float32, "16 bits would round away what was trained"
    trained = load_policy(run.base(), run.folder / "amir_grpo")
    ids = AutoTokenizer.from_pretrained(folder)("7+8-5", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, trained(ids).logits.float(), atol=1e-4, rtol=1e-4)
    assert not list(folder.glob("adapter*"))
    assert not list(folder.glob("*.bin")), "no pickle"


def test_an_adapter_on_a_hub_policy_is_copied_with_its_tokenizer(run, tmp_path, monkeypatch):
    monkeypatch.setattr(type(run), "base", lambda self: "Qwen/Qwen2.5-0.5B-Instruct")
    folder = export_policy(run, "grpo", tmp_path / "out")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    assert not {"stage.json", "log.csv", "rollouts.parquet", "training_args.bin"} & {p.name for p in folder.iterdir()}


def test_an_adapter_on_a_folder_of_this_machine_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"a local folder, .*export it merged"):
        export_policy(run, "grpo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_adapter_is_not_given_away(open_tiny, tmp_path):
    run = open_tiny()
    for name in (*ADAPTER_FILES, "log.csv"):
        write_text(run.folder / "grpo" / name, "as trained")
    write_text(run.folder / "grpo" / "stage.json", to_json({"sha256": hashes((run.folder / "grpo").iterdir())}))
    write_text(run.folder / "grpo" / ADAPTER_FILES[1], "changed since")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        export_policy(run, "grpo", tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()


def test_the_card_has_method_settings_results_and_provenance(run):
    card = ModelCard(model_card(run, "amir_grpo"))
    assert card.data.library_name == "peft"
    assert "amir-grpo" in card.data.tags
    record = json.loads(card.text.partition("```json")[2].partition("```")[0])
    assert (record["settings"]["max_steps"], record["settings"]["lambda_reg"]) == (2, 0.01)
    assert record["training"] == json.loads((run.folder / "amir_grpo" / "stage.json").read_text())
    assert all(problems["fingerprint"] for problems in record["problems"])
    row = pd.read_csv(run.folder / "tables" / "policies.csv").query(
        "policy == 'amir_grpo' and benchmark == 'chain3' and quantity == 'pass@1'"
    )
    (row,) = row.itertuples()
    assert f"| {row.estimate:.1f} | {row.estimate_low:.1f} | {row.estimate_high:.1f} |" in card.text
    assert str(run.folder) not in card.text, "no path of the machine"
    assert ModelCard(model_card(run, "grpo")).data.tags == ["trl", "grpo"]


def arguments(run, *more):
    return ["export", "--run_dir", str(run.folder), *map(str, more)]


def test_without_a_folder_the_runs_own_is_made_anew_and_kinds_are_kept_apart(run):
    cli.main(arguments(run, "--merged"))
    card = run.folder / "export" / "amir_grpo-merged" / "README.md"
    card.write_text("old")
    cli.main(arguments(run, "--merged"))
    assert card.read_text() == model_card(run, "amir_grpo", True)
    assert not (run.folder / "export" / "amir_grpo").exists()


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return export_results(run, tmp_path_factory.mktemp("out") / "results")


def test_every_completion_has_a_row(run, folder):
    rows = load_dataset("parquet", data_files=str(folder / "completions.parquet"), split="train").to_pandas()
    assert len(rows) == 3 * 2 * 4 * 8
    pd.testing.assert_frame_equal(rows, run.samples()[list(rows)], check_dtype=False)


def test_the_card_has_the_levels_and_names_no_path(run, folder):
    card = DatasetCard((folder / "README.md").read_text())
    assert [each["data_files"] for each in card.data.configs] == ["completions.parquet"]
    completions = pd.read_parquet(folder / "completions.parquet")
    base = completions[(completions["benchmark"] == "chain3") & (completions["policy"] == "base")]
    assert f"| chain3 | {100 * base['correct'].mean():.1f} |" in card.text
    assert "fingerprint" in card.text
    assert str(run.folder) not in card.text
    for path in folder.rglob("*.json*"):
        assert str(run.folder.parent) not in path.read_text()


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


def test_samples_are_read_as_the_harness_reads_its_own(folder):
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
        assert read_results(str(path))[["right", "n"]].to_numpy().tolist() == [[number, 8] for number in right]


def test_the_harness_own_tools_read_it(folder):
    harness = pytest.importorskip("lm_eval.utils", reason="needs lm-eval")
    schema = pytest.importorskip("lm_eval.result_schema", reason="needs lm-eval")
    names = [str(path) for path in folder.glob("lm_eval/grpo/*")]
    samples = harness.get_sample_results_filenames(names)
    assert sorted(harness.get_file_task_name(name.rpartition("/")[2]) for name in samples) == ["chain3", "chain6"]
    for name in samples:
        for line in Path(name).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            assert set(schema.SampleResult.__annotations__) == set(entry) - set(entry["metrics"])
            assert entry["doc_hash"] == harness.hash_string(json.dumps(entry["doc"], indent=2, ensure_ascii=False))
            assert entry["prompt_hash"] == harness.hash_string(entry["arguments"]["gen_args_0"]["arg_0"])
            assert entry["target_hash"] == harness.hash_string(entry["target"])


def test_on_the_command_line(run, tmp_path, capsys):
    out = tmp_path / "out"
    cli.main(arguments(run, "--results", out))
    assert capsys.readouterr().out.splitlines() == [
        f"Saved: {out}",
        f"To upload it to the Hub: hf upload --private --repo-type dataset me/name {out}",
    ]
    assert (out / "completions.parquet").is_file()
    refused(capsys, *arguments(run, "--results", out), named=["exists already"])


def test_a_run_that_is_not_evaluated_is_refused(runs, tiny_settings, tmp_path, capsys):
    untrained = open_run("sandbox", runs / "not evaluated", tiny_settings)
    said = ("holds no completions of Base on chain3 yet", "amir_grpo evaluate")
    refused(capsys, *arguments(untrained, "--results", tmp_path / "out"), named=said)
    assert not (tmp_path / "out").exists()
