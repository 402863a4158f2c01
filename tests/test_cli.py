"""The command line: what it reads, what it refuses, and both methods trained and evaluated through it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from amir_grpo import cli
from amir_grpo.options import parse
from amir_grpo.runs.run import open_run
from amir_grpo.sandbox.problems import chain_answer, load_sandbox
from amir_grpo.settings import FIELDS, PROFILES, differences, settings_of
from amir_grpo.trl_options import trainer_options

# one worker of xdist, so that what the module shares is made once
pytestmark = pytest.mark.xdist_group("complete run")

FORMAT = re.compile(r"\s*<think>[^<]*</think>\s*<answer>[^<]*[^<\s][^<]*</answer>\s*")
WITH_SETTINGS = ("reproduce", "plan", "train", "evaluate", "evidence")
WITHOUT = {
    "export": {"profile", "run_dir", "method", "out", "merged", "results"},
    "compare": {"html", "json"},
    "verify": set(),
    "doctor": set(),
    "notebooks": set(),
}
# as it stands in the README of the paper's repository, github.com/AmirHosseinYari2002/AMIR-GRPO
PUBLISHED_COMMAND = """
python -m Train.train \
  --model_name google/gemma-3-4b-it \
  --lora_rank 16 \
  --max_seq_length 2048 \
  --load_in_4bit 0 \
  --model_dir trained_model_directory \
  --dataset_name gsm8k \
  --dataset_split train \
  --trainer_type amir_grpo \
  --calibration \
  --learning_rate 5e-6 \
  --weight_decay 0.1 \
  --max_grad_norm 0.1 \
  --per_device_train_batch_size 1 \
  --gradient_accumulation_steps 4 \
  --max_steps 1000 \
  --seed 0 \
  --lr_scheduler_type cosine \
  --warmup_ratio 0.1 \
  --optim adamw_8bit \
  --adam_beta1 0.9 \
  --adam_beta2 0.99 \
  --num_generations 8 \
  --max_prompt_length 1024 \
  --max_completion_length 1024 \
  --loss_type grpo \
  --epsilon 0.20 \
  --epsilon_high 0.20 \
  --mask_truncated_completions 0 \
  --scale_rewards group \
  --importance_sampling_level token \
  --lambda_reg 0.01 \
  --reward_margin 2.0 \
  --beta_dpo 0.2 \
  --pair_mining all \
  --max_pairs_per_group None \
  --ref_free true \
  --logging_steps 1 \
  --save_steps 50 \
  --report_to wandb \
  --wandb_api_key your_wandb_api_key
"""


def parsed(command, *words):
    return parse(command, cli.COMMANDS[command], words)


def overrides(*words):
    return {
        name: value for name, value in parsed("train", *words).items() if name in FIELDS or name in trainer_options()
    }


def failure(capsys, *arguments):
    """Exit code and message of a call that is refused."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code, capsys.readouterr().err


# --- help and refusals ----------------------------------------------------------------------------------------------


def shown(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [*WITH_SETTINGS, *WITHOUT])
def test_help_lists_the_options_and_where_they_apply_every_setting(command, capsys):
    options = set(re.findall(r"--(\w+)", shown(capsys, command))) - {"help", "option"}
    assert options >= {*FIELDS, "profile"} if command in WITH_SETTINGS else options == WITHOUT[command]


def test_help_of_all_lists_the_commands_within_a_second(capsys):
    """Of CPU time: neither torch nor transformers is imported for it."""
    assert all(command in shown(capsys) for command in (*WITH_SETTINGS, *WITHOUT))
    program = "from amir_grpo import cli; cli.main(['train', '--help'])"
    program = f"import sys, time\ntry: {program}\nexcept SystemExit: print('CPU', time.process_time(), *sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    seconds, *modules = said.rpartition("CPU ")[2].split()
    assert float(seconds) < 1
    assert not {"torch", "transformers", "trl"} & set(modules)


@pytest.mark.parametrize("command", [["export"], ["export", "--results", "out"]])
def test_a_command_that_reads_a_run_makes_none(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, folder in (
        (["--run_dir", "typo"], "typo"),
        (["--profile", "smoke"], "runs/smoke"),
        ([], "runs/sandbox"),
    ):
        code, message = failure(capsys, *command, *given)
        assert code == 2
        assert f"{tmp_path / folder} is not a run folder" in message
    assert "Did you mean 'sandbox'" in failure(capsys, *command, "--profile", "sandbx", "--run_dir", "typo")[1]
    assert not list(tmp_path.iterdir())


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--max_steps", "7"], {"max_steps": 7}),
        (["--learning_rate=2"], {"learning_rate": 2.0}),
        (["--learning-rate", "1e-3"], {"learning_rate": 1e-3}),
        (["--epsilon_high", "0.28", "--dataset_limit", "40"], {"epsilon_high": 0.28, "dataset_limit": 40}),
        (["--calibration", "--seed", "3"], {"calibration": True, "seed": 3}),
        (["--load_in_4bit", "false"], {"load_in_4bit": False}),
        (["--ref_free", "False", "--gradient_checkpointing=no"], {"ref_free": False, "gradient_checkpointing": False}),
        (["--report_to", "none"], {"report_to": "none"}),
        (["--epsilon_high=none", "--eval_limit", "None"], {"epsilon_high": None, "eval_limit": None}),
        (["--lambda_reg", "-0.5"], {"lambda_reg": -0.5}),  # refused later, by its meaning
        (["--method", "grpo", "--profile", "smoke", "--run_dir", "x", "--model_dir", "y"], {}),
        (["--temperature", "0.7", "--top-k", "5"], {"temperature": 0.7, "top_k": 5}),  # of TRL
    ],
)
def test_values_are_of_the_settings_type(arguments, expected):
    assert overrides(*arguments) == expected
    assert {k: type(v) for k, v in overrides(*arguments).items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize("words", [["1", "8"], ["1,8"], ["1 8"]])
def test_lists_are_words(words):
    changed = settings_of("sandbox", overrides("--benchmarks", "chain3", "chain4", "--ks", *words)).evaluation
    assert (changed.benchmarks, changed.ks) == (["chain3", "chain4"], [1, 8])
    assert parsed("evaluate", "--model_dir", "a folder", "b=c")["model_dir"] == ["a folder", "b=c"]


def test_the_published_command_is_read_as_it_is_written():
    words = PUBLISHED_COMMAND.replace("\\\n", " ").split()[3:]
    options = parsed("train", *words)
    own = {
        name: options.pop(name)
        for name in ("profile", "run_dir", "method", "model_dir", "trainer_type", "wandb_api_key")
    }
    assert own["trainer_type"] == "amir_grpo"
    assert own["model_dir"] == "trained_model_directory"
    assert len(options) == sum(word.startswith("--") for word in words) - 3, "every other option is a setting"
    # what it changes of the paper's profile for that policy: an upper clipping range that is ε, and what is kept and logged
    assert differences(settings_of("paper-gemma4b"), settings_of("paper-gemma4b", options)) == {
        "epsilon_high": (None, 0.2),
        "save_steps": (250, 50),
        "report_to": ("none", "wandb"),
    }
    assert options["calibration"]
    assert not any(settings_of(profile).data.claims for profile in PROFILES if profile.startswith("paper-"))


def test_an_option_of_trl_reaches_the_trainer_and_is_recorded(tmp_path):
    from amir_grpo.runs.training import trainer_config

    run = open_run("smoke", tmp_path, overrides("--temperature", "0.7", "--num_iterations", "2"))
    config = trainer_config("amir_grpo", open_run(run_dir=tmp_path).settings, tmp_path)
    assert (config.temperature, config.num_iterations) == (0.7, 2)
    (tmp_path / "grpo" / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"temperature was 0\.7, is now 0\.8"):
        open_run("smoke", run.folder, {"temperature": 0.8})


# --- train and evaluate ---------------------------------------------------------------------------------------------


def as_arguments(settings):
    words = []
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


@pytest.fixture(scope="module")
def call(runs, tiny_settings):
    """Calls one command on the run folder of this module, or another one, with the tiny settings."""

    def call(command, *arguments, run="trained", **changes):
        words = as_arguments(tiny_settings | changes)
        cli.main([command, "--run_dir", str(runs / run), "--lambda_reg", "0.01", *map(str, arguments), *words])
        return runs / run

    return call


@pytest.fixture(scope="module")
def trained(runs, call):
    """Run folder with both methods trained, one copied to `copy`, and all evaluated on chain3."""
    for number, method in enumerate(("grpo", "amir_grpo")):
        torch.manual_seed(number)  # whatever was random before must not matter
        call("train", "--method", method, "--model_dir", runs / "copies" / method)
    return call("evaluate", "--dataset_name", "chain3")


@pytest.fixture(scope="module")
def logs(trained):
    return {method: pd.read_csv(trained / method / "log.csv") for method in ("grpo", "amir_grpo")}


def test_methods_start_alike(trained, logs):
    grpo, amir = logs["grpo"], logs["amir_grpo"]
    assert grpo["step"].tolist() == amir["step"].tolist() == [1, 2]
    assert grpo["completions"].tolist() == [16, 16]
    for column in ("reward", "reward_std", "num_tokens", "completions/mean_length"):
        assert grpo[column][0] == amir[column][0], column
    # B starts at zero, so that in two steps A gets no gradient: it shows what both methods started from
    adapters = {method: load_file(trained / method / "adapter_model.safetensors") for method in logs}
    for name, weight in adapters["grpo"].items():
        assert torch.equal(weight, adapters["amir_grpo"][name]) == ("lora_A" in name), name


def test_adapter_is_safetensors_of_the_profiles_rank_on_all_projections(trained):
    with safe_open(trained / "amir_grpo" / "adapter_model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    for module in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert sum(f".{module}." in name for name in shapes) == 2 * 2, f"A and B in both layers of {module}"
    rank = settings_of("sandbox").policy.lora_rank
    assert all(shape[0 if "lora_A" in name else 1] == rank for name, shape in shapes.items())
    config = json.loads((trained / "amir_grpo" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (rank, rank)
    assert not list((trained / "amir_grpo").glob("*model*.bin"))
    assert (trained / "amir_grpo" / "stage.json").is_file()


@pytest.mark.parametrize("policy", ["base", "grpo", "amir_grpo"])
def test_one_row_a_completion(trained, policy, tokenizer):
    rows = pd.read_parquet(trained / "samples" / policy / "chain3.parquet")
    problems = load_sandbox("chain3", 4)
    wanted = (
        "policy benchmark problem_id sample text completion_ids tokens finish_reason logprob correct formatted seed"
    )
    assert list(rows.columns) == wanted.split()
    assert list(zip(rows["problem_id"], rows["sample"], strict=True)) == [
        (problem, number) for problem in problems["id"] for number in range(8)
    ]
    assert set(rows["policy"]) == {policy}
    assert set(rows["benchmark"]) == {"chain3"}
    assert set(rows["seed"]) == {0}
    assert (rows["logprob"] < 0).all()
    assert rows["tokens"].tolist() == [len(ids) for ids in rows["completion_ids"]]
    assert rows["correct"].dtype == rows["formatted"].dtype == bool
    answers = {row["id"]: str(chain_answer(row["question"])) for row in problems}
    for row in rows.itertuples():
        assert tokenizer.decode(row.completion_ids, skip_special_tokens=True) == row.text
        assert answers[row.problem_id] in row.text or not row.correct
        assert row.formatted == bool(FORMAT.fullmatch(row.text))
    assert not (trained / "samples" / policy / "chain6.parquet").exists(), "only chain3 was asked for"


def test_evaluate_prints_and_saves_the_summary(trained, call, capsys):
    call("evaluate")
    printed = capsys.readouterr().out
    table = pd.read_csv(trained / "tables" / "policies.csv")
    assert sorted(set(table["policy"])) == ["amir_grpo", "base", "grpo"]
    each = ["pass@1", "pass@2", "pass@4", "greedy", "tokens", "truncated", "formatted"]
    assert table["quantity"].tolist() == each * 6  # three policies on two benchmarks
    assert all(column in printed for column in [*each, "amir_grpo"])
    comparisons = pd.read_csv(trained / "tables" / "comparisons.csv")
    assert len(comparisons) == 2 * 3 * 4
    assert "p_holm is corrected over these 24 rows" in printed


def test_the_same_settings_give_the_same_run_by_commands_and_by_notebooks(complete_run, trained, call, capsys):
    call("evaluate")
    open_run(run_dir=trained).scores()
    for name in ("tables", "figures"):  # drawn from these
        shutil.copytree(complete_run.folder / name, trained / name, dirs_exist_ok=True)
    cli.main(["verify", str(complete_run.folder), str(trained)])
    assert "The same" in capsys.readouterr().out


def test_two_policies_in_one_call_are_compared(trained, runs, call, capsys):
    folder = call(
        "evaluate",
        *("--model_dir", f"first={trained / 'grpo'}", f"second={runs / 'copies' / 'amir_grpo'}"),
        run="two of them",
    )
    printed = capsys.readouterr().out
    table = pd.read_csv(folder / "tables" / "comparisons.csv")
    assert set(zip(table["new"], table["old"], strict=True)) == {("second", "first")}
    own = pd.read_csv(trained / "tables" / "comparisons.csv")
    own = own[(own["new"] == "amir_grpo") & (own["old"] == "grpo")]
    assert table["gain"].tolist() == own["gain"].tolist()
    assert "second" in printed
    for record in folder.glob("samples/*/policy.json"):
        drawn_by = json.loads(record.read_text())
        assert drawn_by["engine"] == "transformers"
        assert Path(drawn_by["adapter"]).is_dir()
        assert record.parent.name.endswith(drawn_by["weights"])


def test_other_policies_leave_a_runs_tables_as_they_are(trained, runs, call, capsys):
    call("evaluate")
    before = (trained / "tables" / "policies.csv").read_bytes()
    capsys.readouterr()
    call("evaluate", "--model_dir", f"other={runs / 'copies' / 'grpo'}")
    printed = capsys.readouterr().out
    assert "Printed, not kept" in printed
    assert "other" in printed
    assert (trained / "tables" / "policies.csv").read_bytes() == before


def test_a_run_folder_alone_is_enough(trained, capsys):
    """It was trained with settings that no profile has."""
    before = (trained / "config.json").read_text()
    cli.main(["evaluate", "--run_dir", str(trained), "--dataset_name", "chain3"])
    assert "pass@1" in capsys.readouterr().out
    cli.main(["evaluate", "--run_dir", str(trained), "--dataset_name", "chain3", "--max_steps", "2"])
    assert (trained / "config.json").read_text() == before
    code, message = failure(capsys, "evaluate", "--run_dir", trained, "--max_steps", "3")
    assert code == 2
    assert "max_steps was 2, is now 3" in message


def test_notebooks_are_written_out_and_none_is_overwritten(tmp_path, capsys):
    cli.main(["notebooks", str(tmp_path / "mine")])
    written = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert written == sorted(path.name for path in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
    (tmp_path / "mine" / written[0]).write_text("changed")
    code, message = failure(capsys, "notebooks", tmp_path / "mine")
    assert code == 2
    assert written[0] in message
    assert (tmp_path / "mine" / written[0]).read_text() == "changed"


def completions(folder, name):
    """Those of the run's own policy of that name, else of the foreign one that was evaluated last."""
    foreign = sorted((folder / "samples").glob(f"{name}-????????"), key=lambda path: path.stat().st_mtime_ns)
    own = folder / "samples" / name
    return pd.read_parquet((own if own.exists() else foreign[-1]) / "chain3.parquet").drop(columns="policy")


@pytest.mark.parametrize(("policy", "own"), [("copies/amir_grpo", "amir_grpo"), ("another-base", "base")])
def test_an_adapter_or_a_whole_policy_draws_what_the_runs_own_evaluation_drew(trained, base, runs, call, policy, own):
    shutil.copytree(base, runs / "another-base", dirs_exist_ok=True)
    folder = call("evaluate", "--model_dir", runs / policy, "--dataset_name", "chain3", run=f"evaluated {own}")
    pd.testing.assert_frame_equal(completions(folder, Path(policy).name), completions(trained, own))
    assert not completions(trained, "amir_grpo").equals(completions(trained, "base"))


def test_an_adapter_that_was_trained_again_is_sampled_again(trained, runs, call):
    folder = runs / "again" / "policy"
    for source in ("grpo", "amir_grpo"):
        shutil.copytree(runs / "copies" / source, folder, dirs_exist_ok=True)
        if source == "amir_grpo":  # as far from GRPO's as a longer training would bring it
            weights = load_file(folder / "adapter_model.safetensors")
            save_file({name: 30 * weight for name, weight in weights.items()}, folder / "adapter_model.safetensors")
        run = call("evaluate", "--model_dir", folder, "--dataset_name", "chain3", run="trained again")
    assert not completions(run, "policy")["text"].equals(completions(trained, "grpo")["text"])
