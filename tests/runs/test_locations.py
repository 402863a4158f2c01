"""Where the project and its runs are, from wherever a command is started."""

from pathlib import Path

import pytest

from amir_grpo.runs import locations
from amir_grpo.runs.locations import kept_results, notebooks_folder, project_root, runs_folder
from amir_grpo.runs.run import open_run
from amir_grpo.system import files

ROOT = Path(__file__).parents[2]


def test_project_root_is_found_from_the_notebooks(monkeypatch, tmp_path):
    for folder in (ROOT, ROOT / "notebooks", ROOT / "data" / "published"):
        monkeypatch.chdir(folder)
        assert project_root() == ROOT
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path


def test_runs_go_to_a_mounted_drive(monkeypatch, tmp_path):
    assert runs_folder() == project_root() / "runs"
    monkeypatch.setattr(locations, "_DRIVE", tmp_path)
    assert open_run("smoke").folder == tmp_path / "amir-grpo" / "runs" / "smoke"


def test_what_comes_with_the_package_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert notebooks_folder() == ROOT / "notebooks"
    assert (kept_results("sandbox") / "main.csv").is_file()


def test_an_optional_part_is_installed_as_the_package_was(monkeypatch, tmp_path):
    assert files.install_command("gpu") == "pip install -e '.[gpu]'"  # in a clone, as these tests run
    monkeypatch.setattr(files, "_INSIDE", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    assert files.install_command("gpu") == "pip install 'amir-grpo[gpu]'"


def test_what_did_not_come_with_the_package_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "_PACKAGE", tmp_path / "amir_grpo")
    with pytest.raises(FileNotFoundError, match=r"notebooks did not come with the package.*\n.*pip install"):
        notebooks_folder()
