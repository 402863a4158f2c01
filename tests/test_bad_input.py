"""Bad input, as a table: each case is refused in at most three lines that name the value and the way out, exit code 2,
before anything expensive is begun."""

import json
import shutil
from collections import namedtuple

import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from amir_grpo import cli
from amir_grpo.policies import engines
from amir_grpo.runs import reproduce, training
from amir_grpo.runs.run import Run, open_run
from amir_grpo.sandbox import base as base_policies
from amir_grpo.system import network

# one worker of xdist, so that what the module shares is made once
pytestmark = pytest.mark.xdist_group("complete run")
TRAIN, EVALUATE, REPRODUCE, EVIDENCE, VERIFY = "train", "evaluate", "reproduce", "evidence", "verify"

# what is given on the command line, and what the message must hold
ARGUMENTS = [
    # names
    ((TRAIN, "--profile", "sandbx"), ["'sandbx'", "Did you mean 'sandbox'"]),
    ((TRAIN, "--method", "amir-grpo"), ["amir-grpo", "amir_grpo"]),
    ((TRAIN, "--lamda_reg", "0.1"), ["lamda_reg", "Did you mean 'lambda_reg'"]),
    ((EVALUATE, "--benchmarks", "chain3", "chian4"), ["'chian4'", "Did you mean 'chain4'"]),
    ((EVALUATE, "--dataset_name", "chain"), ["'chain'", "chain6"]),
    ((TRAIN, "--dataset_name", "gsm"), ["'gsm'", "gsm8k"]),
    ((TRAIN, "--dataset_name", "gsm8k"), ["'gsm8k'", "must be 'sandbox'"]),
    ((TRAIN, "--loss_type", "dapoo"), ["'dapoo'", "dapo"]),
    ((TRAIN, "--report_to", "tensorbord"), ["'tensorbord'", "Did you mean 'tensorboard'"]),
    ((EVIDENCE, "--arms", "clean/mixture-0.4"), ["'clean/mixture-0.4'", "Did you mean 'clean/mixture-0.6'"]),
    ((EVIDENCE, "--profile", "smoke"), ["'smoke'", "sandbox-large"]),
    ((EVIDENCE, "--only", "clean/grpo"), ["'clean/grpo'", "give regime/arm/seed"]),
    ((EVIDENCE, "--max_steps", "2"), ["max_steps", "give --results"]),
    # values of the wrong kind
    ((TRAIN, "--max_steps", "ten"), ["max_steps", "ten"]),
    ((TRAIN, "--max_steps", "1.5"), ["max_steps", "1.5"]),
    ((TRAIN, "--calibration", "perhaps"), ["calibration", "perhaps"]),
    ((TRAIN, "--ks", "one"), ["ks", "one"]),
    # impossible values
    ((TRAIN, "--lambda_reg", "-0.1"), ["lambda_reg is -0.1", "greater than or equal to 0"]),
    ((TRAIN, "--lambda_reg", "nan"), ["lambda_reg is nan", "finite"]),
    ((TRAIN, "--dataset_limit", "15"), ["dataset_limit is 15", "16 prompts of a rollout", "no step"]),
    ((TRAIN, "--logging_steps", "61"), ["logging_steps is 61", "max_steps = 60"]),
    ((TRAIN, "--num_generations", "7"), ["128", "num_generations = 7", "multiple"]),
    ((TRAIN, "--steps_per_generation", "0"), ["steps_per_generation is 0", "greater than 0"]),
    ((TRAIN, "--seed", "4294967296"), ["seed is 4294967296", "less than 4294967296"]),
    ((TRAIN, "--max_prompt_length", "100"), ["164", "max_seq_length = 128"]),
    ((TRAIN, "--calibration"), ["cannot state a confidence", "calibration"]),
    ((EVALUATE, "--ks", "1", "9"), ["[1, 9]", "num_samples = 8"]),
    ((EVALUATE, "--ks", "1", "1"), ["ks is '1 1'", "each once"]),
    (("plan", "--profile", "paper-qwen3b", "--use_vllm", "--load_in_4bit"), ["use_vllm=True", "one of them to False"]),
    ((EVIDENCE, "--workers", "-1"), ["workers is -1", "greater than or equal to 0"]),
    (("export", "--max_steps", "2"), ["Unknown option 'max_steps'"]),
    (("export", "--results", "out", "--merged"), ["--results", "--merged", "one or the other"]),
    (("plan", "--profile", "paper"), ["'paper'", "paper-qwen3b"]),
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
]


def refused(capsys, *arguments, named=()):
    """The message of a call that must be refused: at most three lines, which hold these parts."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 3, message
    for part in named:
        assert part in message
    return message


@pytest.fixture
def nothing_expensive(monkeypatch):
    """No policy is loaded or made, nothing is trained or downloaded."""

    def never(*arguments, **keywords):
        raise AssertionError("expensive work before the input was checked")

    monkeypatch.setattr(training, "load_policy", never)
    monkeypatch.setattr(engines, "load_engine", never)
    monkeypatch.setattr(base_policies, "make_base_policy", never)
    monkeypatch.setattr(reproduce, "_execute", never)


@pytest.mark.parametrize(("arguments", "named"), ARGUMENTS, ids=lambda value: " ".join(value)[:60])
def test_bad_arguments(arguments, named, tmp_path, capsys, monkeypatch, nothing_expensive):
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path / "empty mirror"))
    where = {VERIFY: (), "plan": (), EVIDENCE: ("--folder", tmp_path / "run")}.get(
        arguments[0], ("--run_dir", tmp_path / "run")
    )
    refused(capsys, *arguments, *where, named=named)
    assert not (tmp_path / "run" / "base").exists()


# --- run folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(complete_run, tmp_path):
    """A copy of a complete run's folder, to be spoilt."""
    others = shutil.ignore_patterns("notebooks", "figures", ".locks")
    return shutil.copytree(complete_run.folder, tmp_path / "run", ignore=others)


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
    (lambda f: (f / "config.json").write_text('{"settings": 3}'), ["settings is not a JSON object"]),
    (lambda f: config(f, lambda c: c["settings"].update(seed=5)), ["seed was 5, is now 0", "another run_dir"]),
    (lambda f: half(f / "samples/base/chain3.parquet"), ["chain3.parquet cannot be read", "Delete it"]),
    (
        lambda f: pd.DataFrame({"policy": ["base"]}).to_parquet(f / "samples/base/chain3.parquet"),
        ["chain3.parquet cannot be read (it has no column benchmark, problem_id"],
    ),
    (
        lambda f: (f / "problems/chain3.json").write_text('{"fingerprint": "0", "source": "elsewhere"}'),
        ["The problems of chain3 have changed", "elsewhere"],
    ),
    (
        lambda f: (f / "problems/chain3.json").write_text("{}"),
        ["problems/chain3.json cannot be read (it has no fingerprint, source)"],
    ),
]


@pytest.mark.parametrize(("spoil", "named"), FOLDERS, ids=range(len(FOLDERS)))
def test_spoilt_run_folders(spoil, named, folder, capsys, nothing_expensive):
    spoil(folder)
    if "problems" in named[0]:
        shutil.rmtree(folder / "samples")
    refused(capsys, EVALUATE, "--run_dir", folder, "--seed", "0", named=named)


# found by tests/test_any_input.py: what a training has left, and what the message must hold
TRAINED = [
    ({"stage.json": "{}", "log.csv": "ste"}, ["log.csv cannot be read (it has no column step, reward"]),
    ({"stage.json": '{"sha256": {"log.csv": "0"}}'}, ["log.csv is damaged or missing", "Restore it"]),
    ({"stage.json": '{"sha256"', "log.csv": "step,reward\n1,2\n"}, ["stage.json cannot be read", "Delete it"]),
]


@pytest.mark.parametrize(("files", "named"), TRAINED, ids=range(len(TRAINED)))
def test_what_a_training_left_and_something_else_changed(files, named, folder, capsys, nothing_expensive):
    for name, content in files.items():
        (folder / "amir_grpo" / name).write_text(content)
    refused(capsys, TRAIN, "--run_dir", folder, named=named)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (TRAIN, "run_dir"),
        (TRAIN, "model_dir"),
        (EVIDENCE, "results"),
        (EVIDENCE, "folder"),
        ("export", "out"),
        ("export", "results"),
    ],
)
def test_what_the_result_is_to_go_to_is_tried_first(command, option, tmp_path, capsys, nothing_expensive, monkeypatch):
    monkeypatch.setattr(Run, "is_trained", lambda *_: True)
    (tmp_path / "file").write_text("mine")
    for place, named in (("/proc/out", "/proc cannot be written to"), (tmp_path / "file" / "out", "is a file")):
        own = {EVIDENCE: ("--folder", tmp_path / "run")}.get(command, ("--run_dir", tmp_path / "run"))
        if command == "export":  # starts no run
            open_run("smoke", tmp_path / "run")
        arguments = (*(() if option in ("folder", "run_dir") else own), f"--{option}", place)
        refused(capsys, command, *arguments, named=(named, f"Give another {option}"))
    assert not (tmp_path / "run" / "base").exists()


def test_a_full_disk_is_said_before_the_work(tmp_path, capsys, nothing_expensive, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1e9, 1e9, 3e6))
    refused(capsys, TRAIN, "--run_dir", tmp_path / "run", named=("3 MB are free", "50 MB"))


# --- data -----------------------------------------------------------------------------------------------------------


def test_an_empty_mirror_is_refused(tmp_path, capsys, monkeypatch, base):
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path))
    (tmp_path / "amc23").mkdir()
    (tmp_path / "amc23" / "test.jsonl").write_text("")
    arguments = ("--model_dir", base, "--benchmarks", "amc23", "--run_dir", tmp_path / "run")
    refused(capsys, EVALUATE, *arguments, named=("amc23/test.jsonl holds no problems", "math-ai/amc23"))


def test_problems_that_come_last_are_looked_for_first(tmp_path, capsys, monkeypatch, base, nothing_expensive):
    """What lacks the second benchmark is refused before the first is sampled, and before anything is trained."""
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"{number}+1?", "answer": f"#### {number + 1}"} for number in range(50)]
    (tmp_path / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = ("--benchmarks", "chain3", "amc23", "--run_dir", tmp_path / "run")
    refused(capsys, EVALUATE, "--model_dir", base, *both, named=["amc23/test.jsonl"])
    policy = ("--model_name", base, "--dataset_name", "gsm8k")
    refused(capsys, REPRODUCE, "--profile", "smoke", *policy, *both, named=["amc23/test.jsonl"])
    assert not list(tmp_path.glob("run/samples/*"))
    policy = ("--model_name", "no/such/folder", "--dataset_name", "gsm8k", "--run_dir", tmp_path / "other")
    refused(capsys, TRAIN, *policy, named=["The tokenizer of no/such/folder cannot be loaded"])


# --- policies -------------------------------------------------------------------------------------------------------


def without(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


POLICIES = [
    (without("model.safetensors"), ["policy of ", "cannot be loaded", "safetensors"]),
    (without("tokenizer.json", "tokenizer_config.json"), ["tokenizer of ", "cannot be loaded"]),
    (without("config.json"), ["neither adapter_config.json nor config.json"]),
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
    refused(capsys, EVALUATE, *arguments, "--run_dir", tmp_path / "run", named=named)


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
    assert f"The adapter of {folder} cannot be loaded" in message
    assert "size mismatch" in message or "Error(s) in loading" in message


def test_a_hub_that_refuses_the_token(tmp_path, capsys, monkeypatch):
    import transformers

    def refuses(*arguments, **keywords):
        raise OSError("401 Client Error: Unauthorized. Invalid credentials in Authorization header: token expired")

    monkeypatch.setattr(network, "hub_answers", lambda: True)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuses)
    arguments = ("--model_dir", "some/private-policy", "--benchmarks", "chain3", "--eval_limit", "2")
    said = "The tokenizer of some/private-policy cannot be loaded: 401 Client Error"
    refused(capsys, EVALUATE, *arguments, "--run_dir", tmp_path / "run", named=(said, "hf auth login"))
