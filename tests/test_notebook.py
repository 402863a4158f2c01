"""A notebook opened alone: what its first cell installs and keeps, when the kernel restarts, and what a cell shows."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

from amir_grpo import notebook
from amir_grpo.results.style import new_figure

ROOT = Path(__file__).parents[1]
# What a Colab kernel runs on (googlecolab/backend-info, August 2026).
COLABS = {"ipykernel": "6.17.1", "ipython": "7.34.0", "jupyter-client": "7.4.9", "tornado": "6.5.7"}
COLABS |= {"pyzmq": "26.2.1", "numpy": "2.1.3", "pandas": "2.2.3"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.fixture
def asked(monkeypatch):
    """What would be installed, in place of installing it."""
    commands = []

    def run(command, check):
        constraints = Path(command[command.index("--constraint") + 1]).read_text().split()
        commands.append((command, constraints))

    monkeypatch.setattr(notebook.subprocess, "run", run)
    monkeypatch.setattr(notebook, "imported_before", lambda: [])
    monkeypatch.setattr(notebook, "_gpu", lambda: None)
    return commands


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("uv", [False, True])
def test_the_extra_gpu_is_installed_where_there_is_one(asked, monkeypatch, gpu, uv):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if uv else None)
    monkeypatch.setattr(notebook, "_gpu", lambda: "a GPU" if gpu else None)
    notebook.install()
    ((command, constraints),) = asked
    names = {Requirement(word).name for word in command[command.index("--constraint") + 2 :]}
    assert {"torch", "trl", "papermill"} <= names
    assert ("unsloth" in names) == gpu
    assert "jupyterlab" not in names, "Colab brings its own"
    assert command[:3] == (["/bin/uv", "pip", "install"] if uv else [sys.executable, "-m", "pip"])
    assert any(line.startswith("torch==") for line in constraints)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (2.009, "Right."),
        (lambda: [2], "[2] is not it. Hint: think"),
        (None, "No answer yet. Hint: think"),
        (lambda: [1, None], "No answer yet. Hint: think"),
        (lambda: 1 / 0, "Your code fails: ZeroDivisionError: division by zero. Hint: think"),
    ],
)
def test_an_answer_is_checked_and_stops_nothing(answer, said, capsys):
    notebook.check(answer, 2, "think")
    assert capsys.readouterr().out == f"{said}\n"


def test_set_up_installs_only_what_is_missing_and_on_colab_says_what_to_expect(monkeypatch, capsys):
    monkeypatch.setattr(notebook, "install", lambda: print("installed"))
    notebook.set_up()
    assert capsys.readouterr().out == "", "elsewhere it says nothing"
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: None)
    for gpu in ("Tesla T4", None):
        monkeypatch.setattr(notebook, "_gpu", lambda gpu=gpu: gpu)
        notebook.set_up()
        printed = capsys.readouterr().out
        assert printed.startswith(f"installed\nDevice: {gpu or 'no GPU'}")
        assert re.search(r"sandbox +.* minutes", printed)
        assert re.search(r"colab-t4 +.* hours", printed)


def test_what_the_kernel_runs_on_is_kept_and_torch_with_what_belongs_to_it():
    assert notebook.kept(COLABS) == [f"{name}=={version}" for name, version in COLABS.items()]
    assert "numpy==1.26.4" not in notebook.kept(COLABS | {"numpy": "1.26.4"})  # out of bounds: the kernel restarts
    there = {"torch": "2.9.0+cu126", "torchvision": "0.24.0+cu126"}
    assert notebook.kept(there) == ["torch==2.9.0+cu126", "torchvision==0.24.0+cu126"]
    for version in ("2.7.1", "2.15.0"):
        assert notebook.kept(there | {"torch": version}) == []


def test_only_an_imported_package_that_was_replaced_asks_for_a_restart(monkeypatch):
    for name, held in (("some-old", "1.0"), ("some-same", "2026.07.22"), ("some-local", None)):
        module = ModuleType(name)
        module.__version__ = held
        monkeypatch.setitem(sys.modules, name, module)
    now = {"some-old": "1.1", "some-same": "2026.7.22", "some-local": "1.0", "some-unimported": "3.0"}
    monkeypatch.setattr(notebook, "_installed", lambda: now)
    assert notebook.imported_before() == ["some-old 1.0 → 1.1"]


def test_a_restart_is_said_and_stops_the_cell(asked, monkeypatch, capsys):
    monkeypatch.setattr(notebook, "imported_before", lambda: ["numpy 1.26.4 → 2.0.2"])
    with pytest.raises(SystemExit, match="Run all again"):
        notebook.install()
    assert "numpy 1.26.4 → 2.0.2" in capsys.readouterr().out


def test_the_installer_needs_nothing_that_it_installs():
    needed = "{'torch', 'trl', 'numpy', 'pandas', 'pydantic'}"
    code = f"import sys; import amir_grpo.notebook; sys.exit(bool({needed} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_notebook_has_the_same_short_first_cell_and_its_own_badge():
    (cell,) = {code_cells(path)[0] for path in NOTEBOOKS}
    assert len(cell.splitlines()) <= 6
    for path in NOTEBOOKS:
        assert f"/blob/main/notebooks/{path.name})" in path.read_text()


@pytest.mark.parametrize("there", [True, False])
def test_the_first_cell_fetches_the_package_only_where_it_is_missing(tmp_path, there):
    """In a folder of its own; pip is replaced by what it would do."""
    script = tmp_path / "cell.py"
    cell = TransformerManager().transform_cell(code_cells(NOTEBOOKS[0])[0])
    script.write_text(f"""
import sys, types
def install(magic, arguments):
    print(magic, arguments)
    fake = types.ModuleType("amir_grpo.notebook")
    fake.set_up = lambda: print("set up")
    sys.modules["amir_grpo.notebook"] = fake
get_ipython = lambda: types.SimpleNamespace(run_line_magic=install)
if not {there}:
    sys.modules["amir_grpo.notebook"] = None
{cell}
""")
    done = subprocess.run([sys.executable, script], cwd=ROOT / "notebooks", capture_output=True, text=True, check=True)
    assert ("set up" in done.stdout) == (not there), "where it is there, nothing is said"
    assert ("pip install --quiet --no-deps git+https://github.com/amir-grpo/amir-grpo" in done.stdout) == (not there)


def test_a_table_is_shown_with_names_rounded_numbers_and_p_values():
    table = pd.DataFrame({"policy": ["amir_grpo"], "grpo": [1.23456], "p_holm": [0.0001], "n": [3]})
    shown = re.findall(r"<t[dh][^>]*>([^<]+)</t", notebook.show_table(table, "Read\nthis", digits=3).to_html())
    assert shown == ["policy", "GRPO", "p_holm", "n", "AMIR-GRPO", "1.235", "&lt; 0.001", "3"]


def test_a_figure_is_shown_as_a_picture():
    shown = notebook.show(new_figure(2, 1), width=300)
    assert shown.data.startswith(b"\x89PNG")
    assert shown.width == 300
