"""Where the project and its runs are, from wherever a command is started."""

from pathlib import Path

from amir_grpo.runs import locations
from amir_grpo.runs.locations import project_root, runs_folder
from amir_grpo.runs.run import open_run

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
