"""Two runs of the same settings are the same, and so is a run and what the package keeps; else the first change is named."""

import json
import shutil

import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from amir_grpo import cli
from amir_grpo.options import parse
from amir_grpo.runs.run import open_run
from amir_grpo.runs.verify import TABLES, compared_with_kept, completion_digests, first_difference, keep_results
from amir_grpo.settings import FIELDS, settings_of

pytestmark = pytest.mark.xdist_group("complete run")


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def edit_table(path, change):
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    change(table)
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)


@pytest.fixture
def copy(complete_run, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(complete_run.folder, tmp_path / "copy")


# --- two run folders --------------------------------------------------------------------------------------------------


def test_a_figure_holds_the_command_that_draws_it(complete_run):
    with Image.open(complete_run.folder / "figures" / "main.png") as picture:
        program, _, command = picture.info["Source"].partition(" (commit ")[0].partition(" amir_grpo ")
    assert program == "python -m"
    name, *words = command.split()
    options = parse(name, cli.COMMANDS[name], words)
    settings = {setting: value for setting, value in options.items() if setting in FIELDS}
    assert settings_of(options["profile"], settings) == complete_run.settings


def change_setting(folder):
    edit(folder / "config.json", lambda config: config["settings"].update(seed=7))


def change_problems(folder):
    edit(folder / "problems" / "chain3.json", lambda record: record.update(fingerprint="0"))


def change_adapter(folder):
    path = folder / "grpo" / "adapter_model.safetensors"
    save_file({name: values + 1e-6 for name, values in load_file(path).items()}, path)


def change_log(folder):
    edit_table(folder / "amir_grpo" / "log.csv", lambda log: log.update(log.loc[1:, "reward"] + 1e-9))


def change_completion(folder):
    edit_table(folder / "samples" / "base" / "chain3.parquet", lambda rows: rows.__setitem__("text", "1+1=3"))


def lose_figure(folder):
    (folder / "figures" / "main.svg").unlink()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([change_setting], "setting seed: 0 and 7"),
        ([change_problems], "problems/chain3.json: fingerprints"),
        ([change_adapter], "grpo/adapter_model.safetensors: contents"),
        ([change_log], "amir_grpo/log.csv: column reward, row 1"),
        ([change_completion], "samples/base/chain3.parquet: column text, row 0: "),
        ([lose_figure], "figures/main.svg: not in "),
        ([lose_figure, change_completion, change_adapter], "grpo/adapter_model.safetensors"),
    ],
)
def test_the_first_difference_is_named(complete_run, copy, changes, named, capsys):
    for change in changes:
        change(copy)
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", str(complete_run.folder), str(copy)])
    assert caught.value.code == 1
    assert f"First difference: {named}" in capsys.readouterr().out


def test_time_is_no_difference(complete_run, copy):
    edit_table(copy / "grpo" / "log.csv", lambda log: log.update(log["step_time"] + 1))
    assert first_difference(complete_run.folder, copy) is None


def test_runs_that_hold_nothing_yet_are_not_called_the_same(tmp_path, tiny_settings, capsys):
    folders = [open_run("sandbox", tmp_path / name, tiny_settings).folder for name in ("one", "two")]
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", *map(str, folders)])
    assert caught.value.code == 2
    assert "hold nothing yet that could be compared" in capsys.readouterr().err


# --- a run, and what is kept ----------------------------------------------------------------------------------------


@pytest.fixture
def kept(complete_run, tmp_path):
    """What is kept of the run, to be changed."""
    keep_results(complete_run, tmp_path / "kept")
    return tmp_path / "kept"


def comparison(folder, kept):
    """What a run in this folder, as it is now, is told."""
    return compared_with_kept(open_run(run_dir=folder), kept)


def test_every_kept_table_counts(copy, kept):
    # 3 policies on 2 benchmarks of 4 problems, each with 8 samples and a greedy completion
    equal = "Equal to the published results of this package: 6 tables, the logs of both trainings and 216 completions."
    assert comparison(copy, kept) == equal
    assert {path.stem for path in kept.glob("*.csv")} == {*TABLES, "log", "completions"}
    for path in kept.glob("*.csv"):
        text = path.read_text()
        table = pd.read_csv(path)  # one may be empty, where no problem has right and wrong completions
        table[table.columns[::-1]].to_csv(path, index=False)
        assert comparison(copy, kept) == equal, "in any order of columns"
        table.iloc[:, :-1].to_csv(path, index=False)
        assert f"First difference (there and here): {path.name}: columns " in comparison(copy, kept)
        path.write_text(text)


def another_token(rows):
    ids = list(rows["completion_ids"])
    rows["completion_ids"] = [*ids[:3], [*ids[3][:-1], 1], *ids[4:]]


def another_grade(rows):
    rows.loc[3, "correct"] = not rows.loc[3, "correct"]


def another_order(rows):
    rows.loc[[0, 8]] = rows.loc[[8, 0]].to_numpy()


@pytest.mark.parametrize("change", [another_token, another_grade, another_order])
def test_a_change_of_one_completion_changes_its_digest_alone(copy, kept, change):
    before = completion_digests(open_run(run_dir=copy))
    edit_table(copy / "samples" / "grpo" / "chain6.parquet", change)
    after = completion_digests(open_run(run_dir=copy))
    changed = before[before["sha256"] != after["sha256"]]
    assert changed[["policy", "benchmark"]].to_numpy().tolist() == [["grpo", "chain6"]]
    assert "completions.csv: column sha256, row " in comparison(copy, kept)


def test_what_may_explain_a_difference_is_named(copy, kept):
    (kept / "main.csv").write_text((kept / "main.csv").read_text().replace("chain3", "chain9"))
    message = comparison(copy, kept)
    assert "main.csv: column benchmark, row 0: 'chain9' != 'chain3'" in message
    assert "Only the code differs: commit " in message

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
    edit(kept / "provenance.json", lambda record: record["settings"].update(report_to="wandb", save_steps=7))
    assert comparison(copy, kept).startswith("Equal"), "these change no result"
    edit(copy / "config.json", lambda record: record["settings"].update(max_steps=5, seed=3))
    assert comparison(copy, kept) == (
        "Not compared with the published results of this package, made with another max_steps (there 2, here 5) and 1 more."
    )


def test_a_profile_of_which_nothing_is_kept_is_not_spoken_of(copy, kept, tmp_path):
    assert comparison(copy, tmp_path / "nothing") is None
    edit(copy / "config.json", lambda record: record.update(profile="smoke"))
    assert comparison(copy, kept) is None
