"""Run folders: what may change, what is done once, what is left behind when something fails."""

import contextlib
import dataclasses
import itertools
import json
import math
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset

from amir_grpo.policies import loading as policy
from amir_grpo.policies import sampling
from amir_grpo.problems import fingerprint
from amir_grpo.results import report
from amir_grpo.runs import run as experiment
from amir_grpo.runs import training
from amir_grpo.runs.run import injected_parameters, open_run, project_root
from amir_grpo.runs.verify import first_difference
from amir_grpo.settings import settings_of
from amir_grpo.system.files import atomic_folder, atomic_write, write_text
from amir_grpo.system.provenance import provenance

ROOT = Path(__file__).parents[2]


@pytest.fixture
def open_tiny(runs, tiny_settings, request):
    """Opens a run folder of this test, beside the cache that holds the tiny base policy."""

    def open_tiny(**changes):
        return open_run("sandbox", runs / request.node.name, tiny_settings | {"eval_limit": 2} | changes)

    return open_tiny


def never(*args, **kwargs):
    raise AssertionError("done again")


# --- opening --------------------------------------------------------------------------------------------------------


def test_config_holds_settings_and_provenance(open_tiny, tiny_settings):
    run = open_tiny()
    config = json.loads((run.folder / "config.json").read_text())
    assert config["profile"] == "sandbox"
    assert config["settings"] == asdict(settings_of("sandbox", tiny_settings | {"eval_limit": 2}))
    made_with = config["provenance"]
    assert made_with["packages"]["trl"] == version("trl")
    assert made_with["packages"]["torch"] == version("torch")
    assert {"time", "python", "platform", "commit", "uncommitted_changes", "device"} <= set(made_with)
    assert made_with["time"].endswith("+00:00")
    assert made_with["repeats"].startswith("byte for byte")


def test_a_changed_setting_is_refused_with_both_values(open_tiny):
    run = open_tiny(lambda_reg=0.01)
    run.samples(["base"], ["chain3"])
    folder = run.folder
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        open_tiny(lambda_reg=0.5, benchmarks=["chain6"])
    message = str(caught.value)
    assert str(folder) in message
    assert "lambda_reg was 0.01, is now 0.5" in message
    assert "benchmarks was ['chain3', 'chain6'], is now ['chain6']" in message
    assert "seed" not in message
    assert "another run_dir" in message
    assert (folder / "config.json").read_bytes() == before


def test_settings_that_change_no_number_may_change(open_tiny):
    folder = open_tiny().folder
    before = (folder / "config.json").read_bytes()
    assert open_tiny(report_to="trackio", save_steps=7).settings.report_to == "trackio"
    assert (folder / "config.json").read_bytes() == before


def test_a_setting_given_as_its_own_default_is_no_change(open_tiny):
    assert open_tiny().settings == open_tiny(seed=0, max_grad_norm=0.1).settings


def test_settings_of_another_version_of_the_package_are_refused(open_tiny):
    run = open_tiny()
    run.samples(["base"], ["chain3"])
    path = run.folder / "config.json"
    config = json.loads(path.read_text())
    del config["settings"]["epsilon"]
    path.write_text(json.dumps(config | {"settings": {**config["settings"], "removed_since": 3}}))
    with pytest.raises(ValueError, match=r"removed_since was 3, is now None; epsilon was None, is now 0\.2"):
        open_tiny()


def test_the_sandbox_policy_is_trained_on_arithmetic_only(tmp_path):
    with pytest.raises(ValueError, match="reads arithmetic only"):
        open_run("sandbox", tmp_path / "run", {"dataset_name": "gsm8k"})
    assert not (tmp_path / "run").exists()


def test_a_folder_without_results_takes_new_settings(open_tiny):
    with pytest.raises(ValueError, match="cosin is not a valid"):
        open_tiny(lr_scheduler_type="cosin").train("grpo")
    open_tiny(lr_scheduler_type="cosine")


def test_run_dir_defaults_to_the_projects(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert open_run("smoke").folder == tmp_path / "runs" / "smoke"
    assert open_run("smoke", "elsewhere").folder == tmp_path / "elsewhere"


# --- stages ---------------------------------------------------------------------------------------------------------


def test_problems_are_the_settings(open_tiny):
    run = open_tiny()
    assert len(run.training_problems()) == 40
    assert len(run.problems("chain3")) == 2
    assert open_tiny().problems("chain3")["question"] == run.problems("chain3")["question"]


def test_base_is_copied_once(open_tiny, base, monkeypatch):
    folder = Path(open_tiny().base())
    assert folder == open_tiny().folder / "base"
    for part in base.iterdir():
        assert (folder / part.name).read_bytes() == part.read_bytes()
    monkeypatch.setattr(experiment, "base_policy", never)
    assert open_tiny().base() == str(folder)


def test_a_hub_policy_is_not_copied(tmp_path):
    run = open_run("paper-qwen3b", tmp_path / "run")
    assert run.base() == "Qwen/Qwen2.5-3B-Instruct"


def test_samples_are_drawn_once(open_tiny, monkeypatch):
    first = open_tiny().samples(["base"])
    assert len(first) == 2 * 2 * 8
    assert set(first["benchmark"]) == {"chain3", "chain6"}
    monkeypatch.setattr(sampling, "sample", never)
    monkeypatch.setattr(policy, "load_policy", never)
    pd.testing.assert_frame_equal(open_tiny().samples(["base"]), first)
    (open_tiny().folder / "samples" / "base" / "chain6.parquet").unlink()
    with pytest.raises(AssertionError, match="done again"):
        open_tiny().samples(["base"])
    assert len(open_tiny().samples(["base"], ["chain3"])) == 16


def test_training_is_done_once_and_again_only_if_it_failed(open_tiny, monkeypatch):
    from amir_grpo.runs import training

    run, calls = open_tiny(), []

    def train(method, settings, base, problems, folder, backend):
        assert backend.name == "transformers"
        calls.append((method, settings, Path(base).name, len(problems), folder))
        if len(calls) == 1:
            raise RuntimeError("the power went")
        return pd.DataFrame({"method": [method], "step": [1], "reward": [0.5]})

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(RuntimeError, match="the power went"):
        run.train("grpo")
    assert not run.is_trained("grpo")
    log = run.train("grpo")
    assert run.is_trained("grpo")
    assert not run.is_trained("amir_grpo")
    assert calls == [("grpo", run.settings, "base", 40, run.folder / "grpo")] * 2

    monkeypatch.setattr(training, "train", never)
    pd.testing.assert_frame_equal(open_tiny().train("grpo"), log)
    assert log.to_dict("records") == [{"method": "grpo", "step": 1, "reward": 0.5}]
    stage = json.loads((run.folder / "grpo" / "stage.json").read_text())
    assert stage["started"] <= stage["ended"]
    assert stage["provenance"]["packages"]["trl"] == version("trl")
    assert run.stages()["stage"].tolist() == ["grpo"]
    with pytest.raises(AssertionError, match="done again"):
        open_tiny().train("amir_grpo")


def test_unknown_method_or_policy_is_refused_at_once(open_tiny):
    with pytest.raises(ValueError, match="Did you mean 'amir_grpo'"):
        open_tiny().train("amir-grpo")
    with pytest.raises(ValueError, match=r"Unknown policy 'bass'. Did you mean 'base'\?"):
        open_tiny().samples(["bass"])
    assert not (open_tiny().folder / "base").exists()


def test_calibration_is_not_for_the_sandbox(open_tiny):
    with pytest.raises(ValueError, match="leave calibration off"):
        open_tiny(calibration=True)


@pytest.mark.parametrize("calibration", [False, True])
def test_formatted_means_the_format_that_was_asked_for(open_tiny, monkeypatch, calibration):
    plain = r"<think>1+1=2</think><answer>\boxed{2}</answer>"
    texts = [plain, plain + "<analysis>sure</analysis><confidence>0.9</confidence>", "2"]

    def sample_batches(engine, problems, *arguments, **options):
        yield pd.DataFrame({"problem_id": problems["id"], "text": texts, "sample": 0})

    monkeypatch.setattr(sampling, "sample_batches", sample_batches)
    run = open_tiny(benchmarks=["chain3"], eval_limit=3)
    run.settings = dataclasses.replace(run.settings, calibration=calibration)
    rows = run.samples(["base"])
    assert rows["formatted"].tolist() == [not calibration, calibration, False]
    if calibration:
        assert rows["confidence"].tolist() == pytest.approx([math.nan, 0.9, math.nan], nan_ok=True)
    else:
        assert "confidence" not in rows


def test_correct_is_against_the_answer_of_the_rows_own_problem(open_tiny, monkeypatch):
    run = open_tiny(benchmarks=["chain6"], eval_limit=3)
    answers = [eval(chain) for chain in run.problems("chain6")["question"]]
    assert len(set(answers)) == 3
    said = [answers[0], answers[1], answers[2], answers[0], answers[1] + 1]
    about, number = [0, 1, 2, 1, 1], [0, 0, 0, 1, 2]

    def sample_batches(engine, problems, *arguments, **options):
        ids = [problems["id"][index] for index in about]
        texts = [rf"<answer>\boxed{{{value}}}</answer>" for value in said]
        yield pd.DataFrame({"problem_id": ids, "sample": number, "text": texts})

    monkeypatch.setattr(sampling, "sample_batches", sample_batches)
    assert run.samples(["base"])["correct"].tolist() == [True, True, False, False, True]


def test_a_killed_evaluation_goes_on_where_it_stopped(open_tiny, monkeypatch):
    """Killed after each batch in turn: the same file in the end, and nothing drawn twice."""
    whole = open_tiny(eval_limit=4, eval_token_budget=700)
    expected = whole.samples(["base"], ["chain3"])
    path = whole.folder / "samples" / "base" / "chain3.parquet"
    assert not path.with_suffix(".parts").exists()
    path.unlink()

    drawn, plain = [], sampling.sample_batches

    def killed_after_one(*arguments, **options):
        for batch in itertools.islice(plain(*arguments, **options), 1):
            drawn.extend(batch["problem_id"].unique())
            yield batch
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "sample_batches", killed_after_one)
    for _ in range(len(expected["problem_id"].unique())):
        if path.exists():
            break
        with contextlib.suppress(KeyboardInterrupt):
            open_tiny(eval_limit=4, eval_token_budget=700).samples(["base"], ["chain3"])
    else:
        open_tiny(eval_limit=4, eval_token_budget=700).samples(["base"], ["chain3"])
    assert len(drawn) == len(set(drawn)) == expected["problem_id"].nunique() > 2
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected)
    assert not path.with_suffix(".parts").exists()


def test_greedy_completions_lie_beside_the_samples(open_tiny):
    run = open_tiny()
    greedy = run.samples(["base"], ["chain3"], greedy=True)
    assert greedy["sample"].tolist() == [0] * 2
    assert (run.folder / "samples" / "base" / "chain3.greedy.parquet").is_file()
    assert len(run.samples(["base"], ["chain3"])) == 2 * 8
    pd.testing.assert_frame_equal(open_tiny().samples(["base"], ["chain3"], greedy=True), greedy)


def amc23(folder, answer="27", rows=5):
    path = folder / "amc23" / "test.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"question": f"What is {n}+3?", "answer": answer}) + "\n" for n in range(rows)))


def test_problems_are_recorded_with_their_fingerprint_and_may_not_change(open_tiny, monkeypatch, tmp_path):
    amc23(tmp_path)
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path))
    run = open_tiny(benchmarks=["amc23"])
    problems = run.problems("amc23")
    record = json.loads((run.folder / "problems" / "amc23.json").read_text())
    assert record["fingerprint"] == fingerprint(problems)
    assert record["problems"] == 2
    assert str(tmp_path) in record["source"]
    amc23(tmp_path, answer="28")
    with pytest.raises(ValueError, match=r"The problems of amc23 are not those that this run has used"):
        open_tiny(benchmarks=["amc23"]).problems("amc23")


REAL = ROOT.parent / "shared" / "benchmarks"


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/benchmarks, which is not here")
def test_a_sandbox_policy_on_every_mirrored_benchmark(open_tiny, monkeypatch):
    """The real problems: recorded, sampled, graded; nothing of it is right but by luck."""
    monkeypatch.setenv("AMIR_GRPO_DATA", str(REAL))
    names = sorted(
        path.parent.name for path in REAL.glob("*/*.jsonl") if path.stem != "train" or "olympiad" in str(path)
    )
    run = open_tiny(benchmarks=names)
    rows = run.samples(["base"])
    assert (rows.groupby("benchmark").size() == 2 * 8).all()
    assert set(rows["benchmark"]) == set(names)
    assert rows["correct"].mean() < 0.2
    assert {path.stem for path in (run.folder / "problems").glob("*.json")} == set(names)


def test_a_sandbox_policy_on_a_benchmark_of_the_paper(open_tiny, monkeypatch, tmp_path):
    """Its prompts are beyond its tokenizer; what counts is the path from the mirror to the report."""
    amc23(tmp_path)
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path))
    run = open_tiny(benchmarks=["amc23", "chain3"])
    summary, comparisons = report.policies_result(run)
    assert set(summary["benchmark"]) == {"amc23", "chain3"}
    assert len(comparisons) == 2 * 3 * 4
    page = report.write(run).read_text()
    assert fingerprint(run.problems("amc23")) in page
    assert "Broader coverage" in page, "verdicts"


def test_calibrated_policies_are_evaluated_with_their_confidence(open_tiny, monkeypatch):
    """Completions of a policy that states one, on problems of a mirror, from the samples to the report's diagram."""
    right, wrong = r"<think>.</think><answer>\boxed{27}</answer>", r"<think>.</think><answer>\boxed{2}</answer>"
    said = "<analysis>.</analysis><confidence>{}</confidence>"
    texts = [right + said.format(0.9), right + said.format(0.8), wrong + said.format(0.9), wrong]

    def sample_batches(engine, problems, num_samples, **options):
        for problem in problems["id"]:
            yield pd.DataFrame(
                {
                    "problem_id": problem,
                    "sample": range(num_samples),
                    "text": texts[:num_samples],
                    "tokens": 5,
                    "finish_reason": "stop",
                    "logprob": -1.0,
                    "completion_ids": [[1]] * num_samples,
                }
            )

    monkeypatch.setattr(sampling, "sample_batches", sample_batches)
    run = open_tiny(benchmarks=["chain3"], ks=[1], num_samples=4)
    run.settings = dataclasses.replace(run.settings, calibration=True)
    monkeypatch.setattr(
        run, "problems", lambda name: Dataset.from_list([{"id": f"p-{n}", "answer": ["27"]} for n in range(3)])
    )
    summary, _ = report.policies_result(run)
    base = summary[summary["policy"] == "base"].set_index("quantity")["estimate"]
    assert base["stated"] == 75
    assert base["brier"] == pytest.approx((0.01 + 0.04 + 0.81) / 3)
    table, figure = report.reliability_result(run)
    assert table.loc[table["policy"] == "base", "right"].tolist() == [1.0, 0.5]
    assert len(figure.axes) == 3


def test_tables_go_to_their_folder(open_tiny):
    run = open_tiny()
    table = pd.DataFrame({"k": [1, 2], "gain": [0.25, -1.5]})
    path = run.save_table(table, "main")
    assert path == run.folder / "tables" / "main.csv"
    pd.testing.assert_frame_equal(pd.read_csv(path), table)


# --- files ----------------------------------------------------------------------------------------------------------


def test_atomic_write_leaves_the_old_file_when_the_writer_raises(tmp_path):
    path = write_text(tmp_path / "new" / "table.csv", "old")

    def half(part):
        part.write_text("ha")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        atomic_write(path, half)
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]
    assert path.read_text() == "old"
    write_text(path, "neü")
    assert path.read_text(encoding="utf-8") == "neü"


def test_atomic_write_shows_nothing_before_it_is_whole(tmp_path):
    path = tmp_path / "table.csv"

    def write(part):
        part.write_text("half")
        assert not path.exists()
        assert part.parent == path.parent, "a rename is whole within one file system only"
        part.write_text("whole")

    assert atomic_write(path, write).read_text() == "whole"


def test_atomic_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "base"

    def fill_half():
        with atomic_folder(folder) as beside:
            (beside / "half").write_text("ha")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fill_half()
    assert not list(folder.parent.iterdir())
    with atomic_folder(folder) as beside:
        (beside / "part").write_text("whole")
        assert not folder.exists()
    assert [entry.name for entry in folder.parent.iterdir()] == ["base"]
    assert (folder / "part").read_text() == "whole"
    assert folder.stat().st_mode & 0o777 == 0o755


def test_atomic_folder_leaves_what_another_process_has_made(tmp_path):
    folder = tmp_path / "base"
    with atomic_folder(folder) as beside:
        (beside / "mine").touch()
        folder.mkdir()
        (folder / "theirs").touch()
    assert [entry.name for entry in tmp_path.rglob("*")] == ["base", "theirs"]


# --- where and with what --------------------------------------------------------------------------------------------


def test_project_root_is_found_from_the_notebooks(monkeypatch, tmp_path):
    for folder in (ROOT, ROOT / "notebooks", ROOT / "data" / "published"):
        monkeypatch.chdir(folder)
        assert project_root() == ROOT
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path


def test_papermills_own_cell_is_read():
    from papermill.translators import PythonTranslator

    given = {"profile": "smoke", "method": "grpo", "run_dir": "/tmp/x", "overrides": {"seed": 3}}
    settings = {"max_steps": 3, "learning_rate": 2e-4, "calibration": True, "epsilon_high": None, "ks": [1, 2]}
    source = PythonTranslator.codify(given | settings, "Parameters")
    namespace = {"In": ["", "seed = 9", source, "max_steps"], "seed": 9}
    exec(source, namespace)
    assert injected_parameters(namespace) == settings
    assert settings_of("sandbox", injected_parameters(namespace)).ks == [1, 2]


def test_without_papermill_nothing_is_injected():
    assert injected_parameters({"In": ["", "profile = 'smoke'\nmax_steps = 5"], "max_steps": 5}) == {}
    assert injected_parameters({}) == {}


def test_provenance_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    made_with = provenance()
    assert made_with["commit"] is None
    assert made_with["uncommitted_changes"] is None
    json.dumps(made_with)


def test_provenance_says_that_a_gpu_does_not_repeat_exactly(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    made_with = provenance()
    assert made_with["device"] == "Tesla T4"
    assert made_with["repeats"].startswith("not byte for byte")


def test_every_table_says_what_it_was_made_with(open_tiny):
    run = open_tiny()
    run.samples(["base"], ["chain3"])
    run.save_table(pd.DataFrame({"a": [1]}), "some")
    record = json.loads((run.folder / "tables" / "some.json").read_text())
    assert record["table"] == "some"
    assert record["profile"] == "sandbox"
    assert record["settings"] == asdict(run.settings)
    assert record["seed"] == run.settings.seed
    assert {p["set"]: p["fingerprint"] for p in record["problems"]} == {"chain3": fingerprint(run.problems("chain3"))}
    assert set(record["stages"]) == {"samples/base/chain3", "samples/base/chain3.greedy"}
    assert record["started"] <= record["ended"] <= record["made"]
    assert {"commit", "uncommitted_changes", "packages", "device", "repeats"} <= set(record["provenance"])


def test_runs_go_to_a_mounted_drive(monkeypatch, tmp_path):
    from amir_grpo.runs import run as experiment

    assert experiment.runs_folder() == project_root() / "runs"
    monkeypatch.setattr(experiment, "_DRIVE", tmp_path)
    assert open_run("smoke").folder == tmp_path / "amir-grpo" / "runs" / "smoke"


def test_auto_without_a_gpu_is_the_sandbox(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = open_run("auto", tmp_path / "run")
    assert run.profile == "sandbox"
    assert json.loads((run.folder / "config.json").read_text())["profile"] == "sandbox"


def test_a_run_of_an_earlier_version_goes_on(open_tiny):
    run = open_tiny()
    run.samples(["base"], ["chain3"])
    path = run.folder / "config.json"
    config = json.loads(path.read_text())
    for later in ("backend", "use_vllm", "lora_targets", "trust_remote_code"):
        del config["settings"][later]
    path.write_text(json.dumps(config))
    open_tiny()
    with pytest.raises(ValueError, match="backend was 'transformers', is now 'unsloth'"):
        open_tiny(backend="unsloth")


def test_memory_that_runs_out_in_training_names_the_settings(runs, tiny_settings, monkeypatch):
    def full(*arguments, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(training._RunGRPOTrainer, "train", full)
    run = open_run("sandbox", runs / "out of memory", tiny_settings)
    with pytest.raises(MemoryError, match="Divide per_device_train_batch_size"):
        run.train("grpo")
    assert not run.is_trained("grpo")


def test_a_disk_too_small_for_the_checkpoints_is_said_before_the_first_step(runs, tiny_settings, monkeypatch):
    settings = tiny_settings | {"save_steps": 1, "max_steps": 3, "save_total_limit": None}
    run = open_run("sandbox", runs / "checkpoints", settings)
    run.train("grpo")
    written = sum(p.stat().st_size for p in (run.folder / "grpo").rglob("*") if p.name[:5] in ("adapt", "optim"))
    asked = []
    monkeypatch.setattr(training, "check_folder", lambda folder, option, least: asked.append(least))
    again = open_run("sandbox", runs / "checkpoints again", settings)
    again.train("grpo")
    assert asked[0] == pytest.approx(written, rel=0.1)

    def full(*_):
        raise OSError("3 MB are free")

    monkeypatch.setattr(training, "check_folder", full)
    monkeypatch.setattr(training._RunGRPOTrainer, "train", never)
    with pytest.raises(OSError, match="3 MB are free"):
        open_run("sandbox", runs / "no disk", settings).train("grpo")


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"dataset_limit": 8, "max_steps": 6}, 5),  # in the second epoch of four steps
        ({"steps_per_generation": 2, "per_device_train_batch_size": 8, "max_steps": 4}, 2),  # none within a rollout
    ],
    ids=["epochs", "rollouts"],
)
def test_a_resumed_training_is_the_undisturbed_one(runs, tiny_settings, request, changes, kept):
    settings = tiny_settings | {"save_steps": 1, "save_total_limit": None, "lambda_reg": 5.0} | changes
    whole = open_run("sandbox", runs / request.node.name, settings)
    whole.train("amir_grpo")
    killed = shutil.copytree(whole.folder, runs / f"{request.node.name} killed")
    for path in (killed / "amir_grpo").iterdir():
        if path.is_file():
            path.unlink()
    steps = {int(path.name.split("-")[1]): path for path in killed.glob("amir_grpo/checkpoints/checkpoint-*")}
    for step in steps:
        if step > kept:
            shutil.rmtree(steps[step])
    assert max(step for step in steps if step <= kept) == kept
    assert "steps_per_generation" not in changes or not {1, 3} & set(steps)
    open_run("sandbox", killed, settings).train("amir_grpo")
    assert first_difference(whole.folder, killed) is None
