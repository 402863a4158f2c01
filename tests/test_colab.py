"""A notebook opened alone: what its first cell installs, what it keeps, and when the kernel restarts."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from amir_grpo import colab
from amir_grpo.settings import PROFILES
from tools import colab_install

ROOT = Path(__file__).parents[1]
# What a Colab kernel runs on (googlecolab/backend-info, August 2026).
COLABS = {"ipykernel": "6.17.1", "ipython": "7.34.0", "jupyter-client": "7.4.9", "tornado": "6.5.7"}
COLABS |= {"pyzmq": "26.2.1", "numpy": "2.1.3", "pandas": "2.2.3"}
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


def test_the_seconds_are_shown_while_it_installs(asked, monkeypatch):
    shown, ticked = [], threading.Event()

    def note(text, **options):
        shown.append(text)
        if len(shown) > 1:
            ticked.set()

    monkeypatch.setattr(colab, "print", note, raising=False)
    monkeypatch.setattr(colab.subprocess, "run", lambda *_, **__: ticked.wait(600))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    colab.install(ROOT)
    assert re.fullmatch(r"\rInstalling amir-grpo .* about 1 minutes: [1-9]\d* s", shown[1]), "while it installs"


def test_on_colab_it_says_which_device_there_is_and_what_the_profiles_take(monkeypatch, capsys):
    colab.introduce()
    assert capsys.readouterr().out == "", "elsewhere it says nothing"
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    for gpu in ("Tesla T4", None):
        monkeypatch.setattr(colab, "_gpu", lambda gpu=gpu: gpu)
        colab.introduce()
        printed = capsys.readouterr().out
        assert printed.startswith(f"Device: {gpu or 'no GPU'}")
        assert re.search(r"sandbox +.* minutes", printed)
        assert re.search(r"colab-t4 +.* hours", printed)


def test_what_an_installation_replaces():
    listing = "torch==2.11.0+cu128\njupyter_client==7.4.9\n# a comment\nx @ https://there/x.whl\nPyYAML==6.0.3\n"
    there = colab_install.versions(listing)
    assert there == {"torch": "2.11.0", "jupyter-client": "7.4.9", "pyyaml": "6.0.3"}
    assert colab_install.replaced(there, there | {"pyyaml": "6.1", "trl": "1.14.2"}) == {"pyyaml": ("6.0.3", "6.1")}


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_nothing_is_replaced_that_colabs_kernel_holds():
    """By the versions of googlecolab/backend-info of August 2026, of what the core install shares with it."""
    there = COLABS | {"torch": "2.11.0", "transformers": "5.15.0", "tokenizers": "0.22.2", "accelerate": "1.14.0"}
    there |= {"peft": "0.20.0", "datasets": "4.0.0", "pyarrow": "18.1.0", "scipy": "1.16.3", "packaging": "26.3"}
    try:
        after = colab_install.resolved(there)
    except RuntimeError as error:
        if "conflict" in str(error) or "unsatisfiable" in str(error):
            raise
        pytest.skip(f"PyPI does not answer: {str(error)[-100:]}")
    assert not colab_install.replaced(there, after).keys() & set(colab_install.STAYS)


def test_torch_is_kept_as_it_is_with_what_belongs_to_it(monkeypatch):
    there = {"torch": "2.9.0+cu126", "torchvision": "0.24.0+cu126"}
    monkeypatch.setattr(colab, "_version", there.get)
    assert colab.kept(ROOT) == ["torch==2.9.0+cu126", "torchvision==0.24.0+cu126"]
    for line in colab.kept(ROOT):
        Requirement(line)


def test_what_colabs_kernel_runs_on_is_kept():
    colabs = COLABS | {"jupyter_client": COLABS["jupyter-client"]}
    expected = ("ipykernel", "ipython", "jupyter_client", "tornado", "pyzmq", "numpy", "pandas")
    assert colab.kept(ROOT, colabs) == [f"{name}=={colabs[name]}" for name in expected]
    assert "numpy==1.26.4" not in colab.kept(ROOT, colabs | {"numpy": "1.26.4"})  # out of bounds: the kernel restarts


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
    assert cells == {cell for cell in cells if cell.startswith("# @title ") and len(cell.splitlines()) <= 20}
    (cell,) = cells
    assert "from amir_grpo.colab import install" in cell
    for path in NOTEBOOKS:
        assert f"/blob/main/notebooks/{path.name})" in path.read_text()


def test_the_first_cell_opened_alone_clones_and_installs(tmp_path, monkeypatch):
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
fake.introduce = lambda: print("introduced")
sys.modules["amir_grpo.colab"] = fake
{first_cell(NOTEBOOKS[0])}
""")
    (tmp_path / "alone").mkdir()
    done = subprocess.run([sys.executable, script], cwd=tmp_path / "alone", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    clone = tmp_path / "alone" / "amir-grpo"
    assert f"installed {clone}" in done.stdout
    assert "introduced" in done.stdout


def test_the_first_cell_does_nothing_in_a_clone(tmp_path):
    script = tmp_path / "cell.py"
    script.write_text("import subprocess\nsubprocess.run = None\n" + first_cell(NOTEBOOKS[0]))
    subprocess.run([sys.executable, script], cwd=ROOT / "notebooks", check=True)


def test_the_form_offers_profiles_and_begins_with_the_one_that_runs_anywhere():
    for path in NOTEBOOKS:
        cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        forms = [found for cell in cells if (found := re.search(r'^profile = "(.*)"  # @param (\[.*\])', cell, re.M))]
        assert len(forms) == ("profile =" in "".join(cells)), path.name
        for form in forms:
            assert form[1] == "sandbox"
            assert json.loads(form[2])[:2] == ["sandbox", "colab-t4"]
            assert set(json.loads(form[2])) <= {*PROFILES, "auto"}
