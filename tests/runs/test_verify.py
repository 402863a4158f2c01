"""Two runs of the same settings are the same; whatever is changed in one is named first."""

import json
import shutil

import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from amir_grpo import cli
from amir_grpo.runs.run import open_run
from amir_grpo.runs.showing import results_of, save_results, write_report
from amir_grpo.runs.verify import first_difference

pytestmark = pytest.mark.xdist_group("complete run")


@pytest.fixture(scope="module")
def two(complete_run, runs, tiny_settings):
    """Two runs, made one after the other in folders of their own."""
    run = open_run("sandbox", runs / "verify two", tiny_settings)
    results = results_of(run)
    save_results(run, results)
    write_report(run, results)
    return [complete_run.folder, run.folder]


@pytest.fixture
def copy(two, tmp_path):
    """A copy of the second run, to be changed."""
    folder = tmp_path / "copy"
    shutil.copytree(two[1], folder)
    return folder


def test_the_same_settings_give_the_same_run(two, capsys):
    assert first_difference(*two) is None
    cli.main(["verify", *map(str, two)])
    assert "The same" in capsys.readouterr().out


def change_setting(folder):
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["seed"] = 7
    (folder / "config.json").write_text(json.dumps(config))


def change_problems(folder):
    path = folder / "problems" / "chain3.json"
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "0'))


def change_adapter(folder):
    path = folder / "grpo" / "adapter_model.safetensors"
    save_file({name: values + 1e-6 for name, values in load_file(path).items()}, path)


def change_log(folder):
    path = folder / "amir_grpo" / "log.csv"
    log = pd.read_csv(path)
    log.loc[1, "reward"] += 1e-9
    log.to_csv(path, index=False)


def change_completion(folder):
    path = folder / "samples" / "base" / "chain3.parquet"
    rows = pd.read_parquet(path)
    rows.loc[5, "text"] = "1+1=3"
    rows.to_parquet(path)


def lose_figure(folder):
    (folder / "figures" / "main.png").unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_setting, "setting seed: 0 and 7"),
        (change_problems, "problems/chain3.json: fingerprints"),
        (change_adapter, "grpo/adapter_model.safetensors: contents"),
        (change_log, "amir_grpo/log.csv: column reward, row 1"),
        (change_completion, "samples/base/chain3.parquet: column text, row 5: "),
        (lose_figure, "figures/main.png: not in "),
    ],
)
def test_the_first_difference_is_named(two, copy, change, named, capsys):
    change(copy)
    assert first_difference(two[0], copy).startswith(named)
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", str(two[0]), str(copy)])
    assert caught.value.code == 1
    assert named in capsys.readouterr().out


def test_a_cause_is_named_before_its_effect(two, copy):
    lose_figure(copy)
    change_completion(copy)
    change_adapter(copy)
    assert first_difference(two[0], copy).startswith("grpo/adapter_model.safetensors")


def test_time_is_no_difference(two, copy):
    log = pd.read_csv(copy / "grpo" / "log.csv")
    log["step_time"] += 1
    log.to_csv(copy / "grpo" / "log.csv", index=False)
    assert first_difference(two[0], copy) is None


def test_runs_that_hold_nothing_yet_are_not_called_the_same(tmp_path, tiny_settings, capsys):
    folders = [open_run("sandbox", tmp_path / name, tiny_settings).folder for name in ("one", "two")]
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", *map(str, folders)])
    assert caught.value.code == 2
    assert "hold nothing yet that could be compared" in capsys.readouterr().err


def test_folders_of_something_else_are_refused(tmp_path, capsys):
    """A policy's folder holds a config.json, too."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", *map(str, folders)])
    assert caught.value.code == 2
    assert f"{folders[0] / 'config.json'} is not a run's configuration" in capsys.readouterr().err
