"""Bad input, as a table: each case is refused in at most three lines that name the value and the way out, exit code 2,
before anything expensive is begun."""

import json
import shutil
from collections import namedtuple

import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from amir_grpo import cli
from amir_grpo.policies import engines, loading
from amir_grpo.runs import (
    reproduce,
    training,  # noqa: F401 (binds what is patched here)
)
from amir_grpo.runs.run import Run, open_run
from amir_grpo.sandbox import base as base_policies

# one worker of xdist, so that what the module shares is made once
pytestmark = pytest.mark.xdist_group("bad input")
TRAIN, EVALUATE, REPRODUCE, EVIDENCE, VERIFY = "train", "evaluate", "reproduce", "evidence", "verify"

# what is given on the command line, and what the message must hold
ARGUMENTS = [
    # names
    ((TRAIN, "--profile", "sandbx"), ["'sandbx'", "Did you mean 'sandbox'"]),
    ((TRAIN, "--profile", "paper-qwen3"), ["'paper-qwen3'", "paper-qwen3b"]),
    ((TRAIN, "--method", "amir-grpo"), ["amir-grpo", "amir_grpo"]),
    ((TRAIN, "--lamda_reg", "0.1"), ["lamda_reg", "Did you mean 'lambda_reg'"]),
    ((EVALUATE, "--benchmarks", "chain3", "chian4"), ["'chian4'", "Did you mean 'chain4'"]),
    ((EVALUATE, "--benchmarks", "gsm8"), ["'gsm8'", "gsm8k"]),
    ((EVALUATE, "--dataset_name", "chain"), ["'chain'", "chain6"]),
    ((TRAIN, "--dataset_name", "gsm"), ["'gsm'", "gsm8k"]),
    ((TRAIN, "--dataset_name", "gsm8k"), ["'gsm8k'", "must be 'sandbox'"]),
    ((TRAIN, "--loss_type", "dapoo"), ["'dapoo'", "dapo"]),
    ((TRAIN, "--pair_mining", "best"), ["'best'", "all, topk"]),
    ((TRAIN, "--report_to", "tensorbord"), ["'tensorbord'", "Did you mean 'tensorboard'"]),
    ((EVALUATE, "--eval_engine", "sglang"), ["'sglang'", "transformers, vllm"]),
    ((EVIDENCE, "--arms", "clean/share-0.4"), ["'clean/share-0.4'", "Did you mean 'clean/share-0.6'"]),
    ((EVIDENCE, "--profile", "smoke"), ["'smoke'", "sandbox-large"]),
    # values of the wrong kind
    ((TRAIN, "--max_steps", "ten"), ["max_steps", "ten"]),
    ((TRAIN, "--learning_rate", "fast"), ["learning_rate", "fast"]),
    ((TRAIN, "--max_steps", "1.5"), ["max_steps", "1.5"]),
    ((TRAIN, "--calibration", "perhaps"), ["calibration", "perhaps"]),
    ((TRAIN, "--ks", "one"), ["ks", "one"]),
    # impossible values
    ((TRAIN, "--lambda_reg", "-0.1"), ["lambda_reg is -0.1", "at least 0"]),
    ((TRAIN, "--beta_dpo", "0"), ["beta_dpo is 0", "above 0"]),
    ((TRAIN, "--lambda_reg", "nan"), ["lambda_reg is nan", "finite"]),
    ((TRAIN, "--dataset_limit", "15"), ["dataset_limit is 15", "16 prompts of a rollout", "no step"]),
    ((TRAIN, "--logging_steps", "61"), ["logging_steps is 61", "max_steps = 60"]),
    ((TRAIN, "--num_generations", "7"), ["128", "num_generations = 7", "multiple"]),
    ((TRAIN, "--steps_per_generation", "0"), ["steps_per_generation is 0", "None"]),
    ((TRAIN, "--seed", "4294967296"), ["seed is 4294967296", "below 4294967296"]),
    ((TRAIN, "--max_prompt_length", "100"), ["164", "max_seq_length = 128"]),
    ((TRAIN, "--calibration"), ["cannot state a confidence", "calibration"]),
    ((EVALUATE, "--ks", "1", "9"), ["[1, 9]", "num_samples = 8"]),
    ((EVALUATE, "--ks", "0"), ["[0]", "between 1 and"]),
    ((EVALUATE, "--ks", "1", "1"), ["ks is 1 1", "each once"]),
    ((EVALUATE, "--num_samples", "2"), ["[1, 2, 4]", "num_samples = 2"]),
    ((EVALUATE, "--benchmarks", "chain3", "chain3"), ["chain3", "once"]),
    ((EVIDENCE, "--workers", "-1"), ["workers is -1", "at least 0"]),
    (("export", "--method", "dpo"), ["dpo", "amir_grpo"]),
    (("export", "--results", "out", "--merged"), ["--results", "--merged", "one or the other"]),
    (("plan", "--profile", "paper"), ["'paper'", "paper-qwen3b"]),
    ((TRAIN, "--backend", "unsloht"), ["'unsloht'", "Did you mean 'unsloth'"]),
    ((TRAIN, "--vllm_mode", "remote"), ["'remote'", "colocate, server"]),
    ((REPRODUCE, "--eval_engine", "vllm"), ["eval_engine=vllm needs", "transformers"]),
    ((REPRODUCE, "--load_in_4bit"), ["load_in_4bit=True needs", "False"]),
    ((VERIFY, "only-one"), ["required: SECOND"]),
    ((VERIFY, "no-such-run", "nor-this"), ["no-such-run", "no config.json"]),
    # policies
    ((EVALUATE, "--model_dir", "no/such/folder"), ["no/such/folder", "Hub id"]),
    ((EVALUATE, "--model_dir", "a=b=c"), ["b=c", "Hub id"]),
    ((EVALUATE, "--model_dir", "../up=org/name"), ["'../up'", "letters, digits"]),
    ((EVALUATE, "--model_dir", "=cmd()=org/name"), ["is not a name for a policy"]),
    ((EVALUATE, "--model_dir", "one=org/a", "one=org/b"), ["'one'", "tell them apart"]),
    ((TRAIN, "--model_dir", "~nobody-here/out"), ["~nobody-here/out", "no user 'nobody-here'"]),
    ((TRAIN, "--model_name", "no/such/folder", "--dataset_name", "gsm8k"), []),
]


def refused(capsys, *arguments):
    """The message of a call that must be refused."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    return message


def at_most_three_lines(message):
    assert len(message.splitlines()) <= 3, message


@pytest.fixture
def nothing_expensive(monkeypatch):
    """No policy is loaded or made, nothing is trained or downloaded."""

    def never(*arguments, **keywords):
        raise AssertionError("expensive work before the input was checked")

    monkeypatch.setattr(loading, "load_policy", never)
    monkeypatch.setattr(engines, "load_engine", never)
    monkeypatch.setattr(base_policies, "make_base_policy", never)
    monkeypatch.setattr(reproduce, "_execute", never)


@pytest.mark.parametrize(("arguments", "named"), ARGUMENTS, ids=lambda value: " ".join(value)[:60])
def test_bad_arguments(arguments, named, tmp_path, capsys, monkeypatch, nothing_expensive):
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path / "empty mirror"))
    where = {VERIFY: (), "plan": (), EVIDENCE: ("--folder", tmp_path / "run")}.get(
        arguments[0], ("--run_dir", tmp_path / "run")
    )
    message = refused(capsys, *arguments, *where)
    at_most_three_lines(message)
    for part in named:
        assert part in message
    assert not (tmp_path / "run" / "base").exists()


# --- run folders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(runs, tiny_settings):
    """A run folder whose base policy has been sampled."""
    run = open_run("sandbox", runs / "bad input", tiny_settings | {"benchmarks": ["chain3"]})
    run.samples(["base"])
    return run


@pytest.fixture
def folder(sampled, tmp_path):
    """A copy of that folder, to be spoilt."""
    shutil.copytree(sampled.folder, tmp_path / "run")
    return tmp_path / "run"


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def config(folder, change):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# what is done to the folder, and what the message must hold
FOLDERS = [
    (lambda f: half(f / "config.json"), ["config.json is not a run's configuration", "another run_dir"]),
    (lambda f: (f / "config.json").write_text("[1, 2]"), ["config.json is not a run's configuration"]),
    (lambda f: (f / "config.json").write_text('{"settings": 3}'), ["settings is not a JSON object"]),
    (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), ["config.json is not a run's configuration"]),
    (lambda f: config(f, lambda c: c["settings"].update(seed=5)), ["seed was 5, is now 0", "another run_dir"]),
    (lambda f: half(f / "samples/base/chain3.parquet"), ["chain3.parquet cannot be read", "Delete it"]),
    (lambda f: (f / "samples/base/chain3.parquet").write_text("a,b\n1,2\n"), ["chain3.parquet cannot be read"]),
    (lambda f: (f / "samples/base/chain3.parquet").write_bytes(b""), ["chain3.parquet cannot be read"]),
    (
        lambda f: pd.DataFrame({"policy": ["base"]}).to_parquet(f / "samples/base/chain3.parquet"),
        ["chain3.parquet cannot be read (it has no column benchmark, problem_id"],
    ),
    (
        lambda f: (f / "problems/chain3.json").write_text('{"fingerprint": "0", "source": "elsewhere"}'),
        ["The problems of chain3 have changed", "elsewhere"],
    ),
    (lambda f: half(f / "problems/chain3.json"), ["problems/chain3.json cannot be read", "Delete it"]),
    (
        lambda f: (f / "problems/chain3.json").write_text("{}"),
        ["problems/chain3.json cannot be read (it has no fingerprint, source)"],
    ),
]


@pytest.mark.parametrize(("spoil", "named"), FOLDERS, ids=range(len(FOLDERS)))
def test_spoilt_run_folders(spoil, named, folder, sampled, capsys, nothing_expensive, monkeypatch):
    spoil(folder)
    if "problems" in named[0]:
        shutil.rmtree(folder / "samples")
    monkeypatch.setattr(Run, "train", lambda *_: None)
    settings = [f"--{k}={' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in tiny(sampled).items()]
    message = refused(capsys, EVALUATE, "--run_dir", folder, *settings, "--seed", "0", "--benchmarks", "chain3")
    at_most_three_lines(message)
    for part in named:
        assert part in message


def tiny(run):
    names = "sandbox_warmup_steps max_steps per_device_train_batch_size dataset_limit max_completion_length"
    names += " reward_margin eval_limit eval_max_new_tokens"
    return {name: run.settings.flat()[name] for name in names.split()}


# found by tests/test_any_input.py: what a training has left, and what the message must hold
TRAINED = [
    ({"stage.json": "{}", "log.csv": "ste"}, ["log.csv cannot be read (it has no column step, reward"]),
    ({"stage.json": "{}", "log.csv": "step,reward\n1,?\n"}, ["log.csv cannot be read", "Unable to parse"]),
    ({"stage.json": "{}"}, ["log.csv is damaged or missing", "Restore it"]),
    ({"stage.json": '{"sha256"', "log.csv": "step,reward\n1,2\n"}, ["stage.json cannot be read", "Delete it"]),
    ({"stage.json": '{"sha256": 3}', "log.csv": "step,reward\n1,2\n"}, ["stage.json cannot be read", "Delete it"]),
]


@pytest.mark.parametrize(("files", "named"), TRAINED, ids=range(len(TRAINED)))
def test_what_a_training_left_and_something_else_changed(files, named, folder, capsys, nothing_expensive):
    (folder / "amir_grpo").mkdir()
    for name, content in files.items():
        (folder / "amir_grpo" / name).write_text(content)
    message = refused(capsys, TRAIN, "--run_dir", folder)
    at_most_three_lines(message)
    for part in named:
        assert part in message


def test_a_file_in_the_place_of_the_folder(tmp_path, capsys, nothing_expensive):
    (tmp_path / "run").write_text("mine")
    message = refused(capsys, TRAIN, "--run_dir", tmp_path / "run")
    assert f"{tmp_path / 'run'} is a file" in message
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_written_to(capsys, nothing_expensive):
    message = refused(capsys, TRAIN, "--run_dir", "/proc/run")
    assert "/proc cannot be written to" in message
    at_most_three_lines(message)


@pytest.mark.parametrize(
    ("command", "option"), [(TRAIN, "model_dir"), (EVIDENCE, "results"), (EVIDENCE, "folder"), ("export", "out")]
)
def test_what_the_result_is_to_go_to_is_tried_first(command, option, tmp_path, capsys, nothing_expensive, monkeypatch):
    monkeypatch.setattr(Run, "is_trained", lambda *_: True)
    (tmp_path / "file").write_text("mine")
    for place, named in (("/proc/out", "/proc cannot be written to"), (tmp_path / "file" / "out", "is a file")):
        own = {EVIDENCE: ("--folder", tmp_path / "run")}.get(command, ("--run_dir", tmp_path / "run"))
        if command == "export":  # starts no run
            open_run("smoke", tmp_path / "run")
        message = refused(capsys, command, *(() if option == "folder" else own), f"--{option}", place)
        at_most_three_lines(message)
        assert named in message
        assert f"Give another {option}" in message
    assert not (tmp_path / "run" / "base").exists()


def test_a_full_disk_is_said_before_the_work(tmp_path, capsys, nothing_expensive, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1e9, 1e9, 3e6))
    message = refused(capsys, TRAIN, "--run_dir", tmp_path / "run")
    assert "3 MB are free" in message
    assert "50 MB" in message


# --- data -----------------------------------------------------------------------------------------------------------

GOOD = {"question": "What is 1+1?", "answer": "2"}
MIRRORS = [
    (None, ["amc23/test.jsonl", "AMIR_GRPO_DATA"]),
    ("", ["amc23/test.jsonl holds no problem", "math-ai/amc23"]),
    (json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:20], ["row 2", "not a line of JSON"]),
    (json.dumps([1]), ["row 1", "not a JSON object"]),
    (json.dumps({"problem": "?", "answer": "2"}), ["row 1", "no question", "problem"]),
    (json.dumps({"question": "?", "answer": None}), ["row 1", "no answer"]),
    (json.dumps({"question": "?", "answer": " "}), ["row 1", "no answer"]),
    (json.dumps({"question": "", "answer": "2"}), ["row 1", "no question"]),
]


@pytest.mark.parametrize(("content", "named"), MIRRORS, ids=range(len(MIRRORS)))
def test_spoilt_mirrors(content, named, tmp_path, capsys, monkeypatch, base):
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path))
    if content is not None:
        (tmp_path / "amc23").mkdir()
        (tmp_path / "amc23" / "test.jsonl").write_text(content)
    message = refused(capsys, EVALUATE, "--model_dir", base, "--benchmarks", "amc23", "--run_dir", tmp_path / "run")
    at_most_three_lines(message)
    for part in named:
        assert part in message


def test_problems_that_come_last_are_looked_for_first(tmp_path, capsys, monkeypatch, base, nothing_expensive):
    """What lacks the second benchmark is refused before the first is sampled, and before anything is trained."""
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"{number}+1?", "answer": f"#### {number + 1}"} for number in range(50)]
    (tmp_path / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = ("--benchmarks", "chain3", "amc23", "--run_dir", tmp_path / "run")
    assert "amc23/test.jsonl" in refused(capsys, EVALUATE, "--model_dir", base, *both)
    policy = ("--model_name", base, "--dataset_name", "gsm8k")
    message = refused(capsys, REPRODUCE, "--profile", "smoke", *policy, *both)
    at_most_three_lines(message)
    assert "amc23/test.jsonl" in message
    assert not list(tmp_path.glob("run/samples/*"))


def test_no_network(tmp_path, capsys, monkeypatch, base):
    from amir_grpo import problems

    def unreachable(*arguments, **keywords):
        raise ConnectionError("Couldn't reach 'math-ai/amc23' on the Hub (Connection timed out)")

    monkeypatch.setattr(problems, "load_dataset", unreachable)
    message = refused(capsys, EVALUATE, "--model_dir", base, "--benchmarks", "amc23", "--run_dir", tmp_path / "run")
    at_most_three_lines(message)
    assert "math-ai/amc23" in message
    assert "AMIR_GRPO_DATA" in message


# --- policies -------------------------------------------------------------------------------------------------------


def without(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


POLICIES = [
    (without("model.safetensors"), ["policy of ", "cannot be loaded", "safetensors"]),
    (lambda f: half(f / "model.safetensors"), ["policy of ", "cannot be loaded"]),
    (without("tokenizer.json", "tokenizer_config.json"), ["tokenizer of ", "cannot be loaded"]),
    (without("config.json"), ["neither adapter_config.json nor config.json"]),
    (lambda f: (f / "config.json").write_text("{}"), ["cannot be loaded"]),
    (lambda f: (f / "adapter_config.json").write_text("{}"), ["does not name the base"]),
    (
        lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/away"}'),
        ["/gone/away", "does not exist"],
    ),
    (
        lambda f: (f / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(f)})),
        ["no adapter_model.safetensors"],
    ),
]


@pytest.mark.parametrize(("spoil", "named"), POLICIES, ids=range(len(POLICIES)))
def test_spoilt_policies(spoil, named, tmp_path, capsys, base):
    shutil.copytree(base, tmp_path / "policy")
    spoil(tmp_path / "policy")
    arguments = ("--model_dir", tmp_path / "policy", "--benchmarks", "chain3", "--eval_limit", "2")
    message = refused(capsys, EVALUATE, *arguments, "--run_dir", tmp_path / "run")
    at_most_three_lines(message)
    for part in named:
        assert part in message


def test_an_adapter_of_another_base(tmp_path, capsys, base, tiny_policy):
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "adapter"
    import copy

    adapter = get_peft_model(copy.deepcopy(tiny_policy), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(folder)
    weights = {
        name: values[:, :-8] if "lora_A" in name else values
        for name, values in load_file(folder / "adapter_model.safetensors").items()
    }
    save_file({name: values.copy() for name, values in weights.items()}, folder / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    arguments = ("--model_dir", folder, "--benchmarks", "chain3", "--eval_limit", "2")
    message = refused(capsys, EVALUATE, *arguments, "--run_dir", tmp_path / "run")
    at_most_three_lines(message)
    assert f"The adapter of {folder} cannot be loaded" in message
    assert "size mismatch" in message or "Error(s) in loading" in message


def test_a_hub_that_refuses_the_token(tmp_path, capsys, monkeypatch):
    import transformers

    def refuses(*arguments, **keywords):
        raise OSError("401 Client Error: Unauthorized. Invalid credentials in Authorization header: token expired")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuses)
    arguments = ("--model_dir", "some/private-policy", "--benchmarks", "chain3", "--eval_limit", "2")
    message = refused(capsys, EVALUATE, *arguments, "--run_dir", tmp_path / "run")
    at_most_three_lines(message)
    assert "some/private-policy" in message
    assert "hf auth login" in message


def test_the_same_message_in_a_notebook(tmp_path):
    """What the command line prints is the text of the exception that a notebook shows."""
    with pytest.raises(ValueError, match=r"lambda_reg is -1\.0; it must be at least 0"):
        open_run("sandbox", tmp_path / "run", {"lambda_reg": -1.0})
