"""Run folders: what may change, what is done once, what is left behind when something fails."""

import json
import shutil
import subprocess
import sys
import weakref
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from amir_grpo.grading import is_correct
from amir_grpo.policies.backend import Backend
from amir_grpo.policies.loading import load_policy
from amir_grpo.policies.source import ADAPTER_FILES
from amir_grpo.problems import fingerprint
from amir_grpo.runs import training
from amir_grpo.runs.run import open_run
from amir_grpo.runs.verify import first_difference
from amir_grpo.system.files import write_text


def never(*args, **kwargs):
    raise AssertionError("done again")


# --- stages ---------------------------------------------------------------------------------------------------------


def test_reading_a_complete_run_imports_no_torch(open_tiny):
    """The notebooks of figures start in half the time without it."""
    run = open_tiny(max_steps=1)
    run.samples(["base"])
    code = (
        "import sys; from amir_grpo.runs.run import open_run; from amir_grpo.results import figures, tables\n"
        f"open_run(None, {str(run.folder)!r}).samples(['base'])\n"
        "sys.exit(bool({'torch', 'transformers', 'trl', 'peft'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_base_is_copied_once(open_tiny, base, monkeypatch):
    folder = Path(open_tiny().base())
    assert folder == open_tiny().folder / "base"
    for part in base.iterdir():
        assert (folder / part.name).read_bytes() == part.read_bytes()
    monkeypatch.setattr("amir_grpo.runs.run.base_policy", never)
    assert open_tiny().base() == str(folder)


def test_a_training_set_smaller_than_a_rollout_is_refused_before_any_work(open_tiny, monkeypatch):
    """As many as one process needs are fewer than two processes need."""
    run = open_tiny(dataset_limit=2)
    assert len(run.training_problems()) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"sandbox holds 2 problems, fewer than the 4 prompts of a rollout"):
        run.train("grpo")
    assert not (run.folder / "base").exists()


def test_training_is_done_once_and_again_only_if_it_failed(open_tiny, monkeypatch):
    run, calls = open_tiny(), []

    def train(method, settings, base, problems, folder, backend, watched):
        assert backend.name == "transformers"
        calls.append((method, settings, Path(base).name, len(problems), folder))
        if len(calls) == 1:
            raise RuntimeError("the power went")
        for name in (*ADAPTER_FILES, training.ROLLOUTS_FILE):
            write_text(folder / name, "trained")
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
    with pytest.raises(AssertionError, match="done again"):
        open_tiny().train("amir_grpo")


def test_a_finished_training_leaves_no_policy_in_memory(open_tiny, monkeypatch):
    """A trainer refers to itself; on a GPU what is drawn next needs its memory."""
    policies, plain = [], training.run_trainer

    def run_trainer(*arguments):
        trainer = plain(*arguments)
        policies.append(weakref.ref(trainer.model))
        return trainer

    monkeypatch.setattr(training, "run_trainer", run_trainer)
    open_tiny(max_steps=2).train("grpo")
    assert [policy() for policy in policies] == [None]


def test_what_is_trained_of_a_policy_in_4_bits_is_float32(open_tiny, monkeypatch, tmp_path):
    run, kept = open_tiny(load_in_4bit=True, dtype="auto", device="auto"), []
    monkeypatch.setattr(training, "load_policy", lambda base, *_: load_policy(base))  # without bitsandbytes
    monkeypatch.setattr(training, "keep_trained_weights_in_float32", kept.append)
    config = training.trainer_config("grpo", run.settings, tmp_path)
    backend = Backend("transformers", "chosen by the test")
    trainer = training.run_trainer(run.settings, config, run.base(), run.training_problems(), backend)
    assert kept == [trainer.model]


def test_problems_are_recorded_with_their_fingerprint_and_may_not_change(open_tiny, amc23, monkeypatch, tmp_path):
    amc23(tmp_path)
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path))
    run = open_tiny(benchmarks=["amc23"])
    problems = run.problems("amc23")
    record = json.loads((run.folder / "problems" / "amc23.json").read_text())
    assert record["fingerprint"] == fingerprint(problems)
    assert record["problems"] == 2
    assert str(tmp_path) in record["source"]
    amc23(tmp_path, answer="28")
    with pytest.raises(ValueError, match=r"The problems of amc23 have changed since this run used them"):
        open_tiny(benchmarks=["amc23"]).problems("amc23")


# --- where and with what --------------------------------------------------------------------------------------------


def test_overrides_are_a_mapping_or_text_as_papermill_gives_it(tmp_path):
    from papermill.cli import _resolve_type

    given = {"max_steps": 3, "learning_rate": 2e-4, "calibration": False, "epsilon_high": None, "ks": 2}
    first = open_run("smoke", tmp_path, given)
    assert (first.settings.train.max_steps, first.settings.evaluation.ks) == (3, [2])
    for text in (json.dumps(given), "", "None", "{}"):
        assert open_run("smoke", tmp_path, _resolve_type(text)).settings == first.settings
    assert open_run("", tmp_path, None).settings == first.settings
    for wrong in ("max_steps=4", "[1]", 3):
        with pytest.raises(ValueError, match=r'give a mapping or JSON text, such as \{"max_steps": 4\}'):
            open_run("smoke", tmp_path, wrong)


def test_every_table_says_what_it_was_made_with(open_tiny):
    run = open_tiny()
    run.samples(["base"], ["chain3"])
    table = pd.DataFrame({"k": [1, 2], "gain": [0.25, -1.5]})
    assert run.save_table(table, "some") == run.folder / "tables" / "some.csv"
    pd.testing.assert_frame_equal(pd.read_csv(run.folder / "tables" / "some.csv"), table)
    record = json.loads((run.folder / "tables" / "some.json").read_text())
    assert record["table"] == "some"
    assert record["profile"] == "sandbox"
    assert record["settings"] == run.settings.flat()
    assert record["seed"] == run.settings.train.seed
    assert {p["set"]: p["fingerprint"] for p in record["problems"]} == {"chain3": fingerprint(run.problems("chain3"))}

    assert record["started"] <= record["ended"] <= record["made"]
    assert {"commit", "uncommitted_changes", "packages", "device"} <= set(record["provenance"])


def test_memory_that_runs_out_in_training_names_the_settings(runs, tiny_settings, monkeypatch):
    def full(*arguments, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(training.StudyTrainer, "train", full)
    run = open_run("sandbox", runs / "out of memory", tiny_settings)
    with pytest.raises(MemoryError, match="Divide per_device_train_batch_size"):
        run.train("grpo")
    assert not run.is_trained("grpo")


def test_steps_that_float16_skips_are_said_and_an_adapter_that_none_has_changed_is_refused(
    open_tiny, monkeypatch, capsys
):
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", True)  # the learning rate stays at its start, 0
    run = open_tiny(max_steps=3)
    with pytest.raises(RuntimeError, match=r"safetensors is untrained: no step has changed a weight.\nGradients"):
        run.train("grpo")
    assert "The loss scaler of float16 has skipped 3 of 3 steps." in capsys.readouterr().out
    assert not run.is_trained("grpo")
    log = pd.DataFrame({"frac_reward_zero_std": [1.0]})
    with pytest.raises(RuntimeError, match="No group had unequal rewards"):
        training.check_adapter(run.folder / "grpo" / "adapter_model.safetensors", log)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"dataset_limit": 8, "max_steps": 6}, 5),  # in the second epoch of four steps
        ({"steps_per_generation": 2, "per_device_train_batch_size": 8, "max_steps": 4}, 2),  # none within a rollout
        ({"eval_steps": 1, "max_steps": 2}, 1),
    ],
    ids=["epochs", "rollouts", "watched"],
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
    if "eval_steps" in changes:
        seen = [pd.read_parquet(folder / "amir_grpo" / "watched.parquet") for folder in (whole.folder, killed)]
        pd.testing.assert_frame_equal(*seen)


def test_a_training_that_is_watched_is_the_same_training(runs, tiny_settings):
    settings = tiny_settings | {"benchmarks": ["chain3"], "max_completion_length": 48}
    plain = open_run("sandbox", runs / "plain", settings)
    watched = open_run("sandbox", runs / "watched", settings | {"eval_steps": 2})
    seen = {}
    for method in ("grpo", "amir_grpo"):
        plain.train(method)
        watched.train(method)
        adapters = [(run.folder / method / "adapter_model.safetensors").read_bytes() for run in (plain, watched)]
        assert adapters[0] == adapters[1]
        seen[method] = pd.read_parquet(watched.folder / method / "watched.parquet")
        assert seen[method].groupby("step").size().to_dict() == {0: 4 * 8, 2: 4 * 8}
    first = [table[table["step"] == 0] for table in seen.values()]
    pd.testing.assert_frame_equal(*first)  # the same policy, and the same random numbers
    answers = {row["id"]: row["answer"] for row in plain.problems("chain3")}
    for row in seen["grpo"].itertuples():
        assert row.correct == is_correct(row.text, answers[row.problem_id])
    assert seen["grpo"]["correct"].any()
