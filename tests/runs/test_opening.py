"""Opening a run folder: it keeps its own settings, what is given anew is compared with them, and one process at a time."""

import json
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from amir_grpo.runs import opening
from amir_grpo.runs.opening import project_root, runs_folder
from amir_grpo.runs.run import open_run
from amir_grpo.settings import settings_of
from amir_grpo.system.locks import Busy, locked

ROOT = Path(__file__).parents[2]


def test_config_holds_settings_and_provenance(open_tiny, tiny_settings):
    run = open_tiny()
    config = json.loads((run.folder / "config.json").read_text())
    assert config["profile"] == "sandbox"
    assert config["settings"] == settings_of("sandbox", tiny_settings | {"eval_limit": 2}).flat()
    made_with = config["provenance"]
    assert made_with["packages"]["trl"] == version("trl")
    assert made_with["packages"]["torch"] == version("torch")
    assert {"time", "python", "platform", "commit", "uncommitted_changes", "device"} <= set(made_with)
    assert made_with["time"].endswith("+00:00")


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
    assert open_tiny(report_to="trackio", save_steps=7).settings.train.report_to == "trackio"
    assert (folder / "config.json").read_bytes() == before


def test_settings_of_another_version_of_the_package_are_refused(open_tiny):
    run = open_tiny()
    run.samples(["base"], ["chain3"])
    path = run.folder / "config.json"
    config = json.loads(path.read_text())
    del config["settings"]["seed"]  # counts as its default: it is younger than the record
    path.write_text(json.dumps(config | {"settings": {**config["settings"], "removed_since": 3}}))
    with pytest.raises(ValueError, match="removed_since was 3, is now None"):
        open_tiny()


def test_a_folder_without_results_takes_new_settings(open_tiny):
    with pytest.raises(ValueError, match="cosin is not a valid"):
        open_tiny(lr_scheduler_type="cosin").train("grpo")
    open_tiny(lr_scheduler_type="cosine")


# --- a folder that is there -----------------------------------------------------------------------------------------


def pretend_results(folder):
    (folder / "grpo").mkdir()
    (folder / "grpo" / "stage.json").write_text("{}")


def test_only_what_is_given_anew_is_compared(tmp_path):
    open_run("smoke", tmp_path, {"lambda_reg": 1.0, "seed": 3})
    pretend_results(tmp_path)
    for profile in (None, "auto", "smoke"):
        opened = open_run(profile, tmp_path, {"seed": 3})
        assert (opened.profile, opened.settings.train.lambda_reg) == ("smoke", 1.0)
    with pytest.raises(ValueError, match=r"settings: seed was 3, is now 4\.") as raised:
        open_run(run_dir=tmp_path, overrides={"seed": 4})
    assert "lambda_reg" not in str(raised.value)


def test_another_profile_is_given_anew(tmp_path):
    open_run("smoke", tmp_path)
    assert open_run("sandbox", tmp_path).profile == "sandbox", "nothing was made yet"
    pretend_results(tmp_path)
    with pytest.raises(ValueError, match="max_steps was 60, is now 4"):
        open_run("smoke", tmp_path)
    assert open_run(run_dir=tmp_path).profile == "sandbox"


def test_a_folder_does_not_consent_to_untrusted_weights(tmp_path):
    """One that came from elsewhere could otherwise have code run by who opens it."""
    open_run("paper-qwen3b", tmp_path, {"trust_remote_code": True, "safetensors_only": False, "seed": 3})
    pretend_results(tmp_path)
    settings = open_run(run_dir=tmp_path).settings
    assert (settings.policy.trust_remote_code, settings.policy.safetensors_only, settings.train.seed) == (
        False,
        True,
        3,
    )
    assert open_run(run_dir=tmp_path, overrides={"trust_remote_code": True}).settings.policy.trust_remote_code


# --- several processes ----------------------------------------------------------------------------------------------


def open_and_work(folder, seed, start, go_on, said):
    """In a process of its own: open the folder and begin a stage, with one seed."""
    start.wait()
    try:
        run = open_run("smoke", folder, {"seed": seed})
        with run._stage("training grpo"):
            said.write_text(f"working with {run.settings.train.seed}")
            go_on.wait()
            (run.folder / "grpo").mkdir()
            (run.folder / "grpo" / "stage.json").write_text("{}")
    except (ValueError, Busy) as error:
        said.write_text(f"refused: {error}")


@pytest.mark.xdist_group("server")
def test_of_two_first_openers_at_once_one_works_and_the_other_is_refused(server, tmp_path):
    """They are let go at the same moment; whoever begins its work first, the folder is configured as that one says."""
    start, go_on, said = server.Barrier(2), server.Event(), [tmp_path / "first", tmp_path / "second"]
    processes = [
        server.Process(target=open_and_work, args=(tmp_path / "run", seed, start, go_on, path))
        for seed, path in enumerate(said, start=1)
    ]
    for process in processes:
        process.start()
    wait([process.sentinel for process in processes], timeout=300)  # the one that is refused ends first
    go_on.set()
    for process in processes:
        process.join()
    note = [path.read_text() for path in said]
    (working,) = [seed for seed, text in enumerate(note, start=1) if text == f"working with {seed}"]
    (refused,) = (text for text in note if text.startswith("refused: "))
    assert "settings: seed was" in refused or "already in progress" in refused
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["seed"] == working


def test_settings_of_a_folder_in_which_work_goes_on_are_kept(tmp_path):
    """Its first checkpoint is still to come."""
    run = open_run("smoke", tmp_path, {"seed": 1})
    with locked(run.folder, "training grpo"), pytest.raises(ValueError, match="seed was 1, is now 2"):
        open_run("smoke", tmp_path, {"seed": 2})
    assert open_run("smoke", tmp_path, {"seed": 2}).settings.train.seed == 2


def test_a_stage_is_not_begun_under_settings_that_another_has_changed(tmp_path):
    first = open_run("smoke", tmp_path, {"seed": 1})
    open_run("smoke", tmp_path, {"seed": 2})
    with pytest.raises(ValueError, match="seed was 2, is now 1"):
        first.base()
    assert not (tmp_path / "base").exists()


# --- where run folders are -------------------------------------------------------------------------------------------


def test_project_root_is_found_from_the_notebooks(monkeypatch, tmp_path):
    for folder in (ROOT, ROOT / "notebooks", ROOT / "data" / "published"):
        monkeypatch.chdir(folder)
        assert project_root() == ROOT
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path


def test_runs_go_to_a_mounted_drive(monkeypatch, tmp_path):
    assert runs_folder() == project_root() / "runs"
    monkeypatch.setattr(opening, "_DRIVE", tmp_path)
    assert open_run("smoke").folder == tmp_path / "amir-grpo" / "runs" / "smoke"
