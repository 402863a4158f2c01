"""The wheel holds all that a user needs outside a clone; test_notebooks reproduces the smoke profile from it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import amir_grpo

ROOT = Path(__file__).parents[1]
# as those of the notebooks, which share the wheel
pytestmark = pytest.mark.xdist_group("notebooks")


def test_the_wheel_holds_every_module_and_what_comes_with_the_package(wheel):
    there = set(zipfile.ZipFile(wheel).namelist())
    files = [path.relative_to(ROOT) for path in (ROOT / "amir_grpo").rglob("*") if path.is_file()]
    wanted = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    for name in ("data", "notebooks"):
        files = [
            path for path in (ROOT / name).rglob("*") if path.suffix in (".csv", ".json", ".parquet", ".ipynb", ".md")
        ]
        assert files
        wanted |= {f"amir_grpo/shipped/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert wanted <= there, sorted(wanted - there)
    folders = {"amir_grpo", f"amir_grpo-{amir_grpo.__version__}.dist-info"}
    assert {name.split("/")[0] for name in there} == folders


LOOK = """
import amir_grpo
from amir_grpo.results.tables import published_table
from amir_grpo.system.files import shipped
from amir_grpo.runs.run import open_run
for path in (amir_grpo.__file__, shipped("notebooks"), shipped("data/results") / "sandbox", open_run("smoke").folder):
    print(path)
assert len(published_table("table1")) > 10
"""


def test_an_installed_wheel_finds_its_own_files_and_writes_to_the_working_directory(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *own, run = map(Path, done.stdout.splitlines())
    for path in own:
        assert path.exists()
        assert path.is_relative_to(installed)
    assert run == tmp_path / "runs" / "smoke"
