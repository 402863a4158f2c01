"""A notebook opened alone: what its first cell installs, what it keeps, and when the kernel restarts."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from amir_grpo import colab

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def first_cell(path):
    return next("".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")


@pytest.fixture
def asked(monkeypatch):
    """What would be installed, in place of installing it."""
    commands = []

    def run(command, check):
        constraints = Path(command[command.index("--constraint") + 1]).read_text().split()
        commands.append((command, constraints))

    monkeypatch.setattr(colab.subprocess, "run", run)
    monkeypatch.setattr(colab, "imported_before", lambda: [])
    return commands


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("uv", [False, True])
def test_the_extra_gpu_is_installed_where_there_is_one(asked, monkeypatch, gpu, uv):
    there = {"nvidia-smi": gpu, "uv": uv}
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if there[name] else None)
    colab.install(ROOT)
    ((command, constraints),) = asked
    assert command[-2:] == ["--editable", f"{ROOT}{'[gpu]' if gpu else ''}"]
    assert command[:3] == (["/bin/uv", "pip", "install"] if uv else [sys.executable, "-m", "pip"])
    assert any(line.startswith("torch==") for line in constraints)


def test_torch_is_kept_as_it_is_with_what_belongs_to_it(monkeypatch):
    there = {"torch": "2.9.0+cu126", "torchvision": "0.24.0+cu126"}
    monkeypatch.setattr(colab, "_version", there.get)
    assert colab.kept(ROOT) == ["torch==2.9.0+cu126", "torchvision==0.24.0+cu126"]
    for line in colab.kept(ROOT):
        Requirement(line)


def test_what_colabs_kernel_runs_on_is_kept(monkeypatch):
    colabs = {"ipykernel": "6.17.1", "ipython": "7.34.0", "jupyter_client": "7.4.9", "tornado": "6.5.1"}
    colabs |= {"pyzmq": "26.2.1", "numpy": "2.0.2", "pandas": "2.2.2"}
    monkeypatch.setattr(colab, "_version", colabs.get)
    assert colab.kept(ROOT) == [f"{name}=={version}" for name, version in colabs.items()]
    monkeypatch.setattr(colab, "_version", (colabs | {"numpy": "1.26.4"}).get)
    assert "numpy==1.26.4" not in colab.kept(ROOT)  # out of bounds: replaced, and the kernel restarts


def test_the_core_install_names_no_notebook_server():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(line).name for line in project["dependencies"]}
    assert names.isdisjoint({"jupyterlab", "notebook", "jupyter_server", "ipywidgets", "tornado", "jupyter_client"})


@pytest.mark.parametrize("version", ["2.7.1", "2.15.0", None])
def test_torch_out_of_bounds_is_replaced(monkeypatch, version):
    monkeypatch.setattr(colab, "_version", {"torch": version}.get)
    assert colab.kept(ROOT) == []


def test_only_an_imported_package_that_was_replaced_asks_for_a_restart(monkeypatch):
    for name, held in (("some_old", "1.0"), ("some_same", "2.0"), ("some_local", None)):
        module = ModuleType(name)
        module.__version__ = held
        monkeypatch.setitem(sys.modules, name, module)
    real = importlib.metadata.version
    now = {"some_old": "1.1", "some_same": "2.0", "some_unimported": "3.0"}
    monkeypatch.setattr(colab.importlib.metadata, "version", lambda name: now.get(name) or real(name))
    assert [line for line in colab.imported_before() if line.startswith("some_")] == ["some_old 1.0 → 1.1"]


def test_a_restart_is_said_and_stops_the_cell(asked, monkeypatch, capsys):
    monkeypatch.setattr(colab, "imported_before", lambda: ["numpy 1.26.4 → 2.0.2"])
    with pytest.raises(SystemExit, match="Run all again"):
        colab.install(ROOT)
    assert "numpy 1.26.4 → 2.0.2" in capsys.readouterr().out


def test_the_installer_needs_nothing_that_it_installs():
    code = "import sys; import amir_grpo.colab; sys.exit(bool({'torch', 'trl', 'numpy', 'pandas'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_notebook_has_the_same_first_cell_and_its_own_badge():
    cells = {first_cell(path) for path in NOTEBOOKS}
    assert len(cells) == 1
    (cell,) = cells
    assert "from amir_grpo.colab import install" in cell
    for path in NOTEBOOKS:
        assert f"/blob/main/notebooks/{path.name})" in path.read_text()


def test_the_first_cell_opened_alone_clones_installs_and_moves(tmp_path, monkeypatch):
    """In an empty folder, without the package: with git and the installer replaced by what they would do."""
    script = tmp_path / "cell.py"
    script.write_text(f"""
import importlib.util, os, shutil, subprocess, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in ("trl", "amir_grpo") else find(name)
run = subprocess.run
def instead(command, **options):
    if command[:2] == ["git", "clone"]:
        assert "--depth" in command
        shutil.copytree({str(ROOT / "amir_grpo")!r}, command[-1] + "/amir_grpo")
        return os.mkdir(command[-1] + "/notebooks")
    return run(command, **options)
subprocess.run = instead
import types
fake = types.ModuleType("amir_grpo.colab")
fake.install = lambda clone: print("installed", clone)
sys.modules["amir_grpo.colab"] = fake
{first_cell(NOTEBOOKS[0])}
print("now in", os.getcwd())
""")
    (tmp_path / "alone").mkdir()
    done = subprocess.run([sys.executable, script], cwd=tmp_path / "alone", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    clone = tmp_path / "alone" / "amir-grpo"
    assert f"installed {clone}" in done.stdout
    assert f"now in {clone / 'notebooks'}" in done.stdout


def test_the_first_cell_does_nothing_in_a_clone(tmp_path):
    script = tmp_path / "cell.py"
    script.write_text("import subprocess\nsubprocess.run = None\n" + first_cell(NOTEBOOKS[0]))
    subprocess.run([sys.executable, script], cwd=ROOT / "notebooks", check=True)
