"""The project's own files agree with one another, and with what is kept."""

import ast
import json
import re
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from amir_grpo.policies.backend import UNSLOTH_VERSION
from tools import base_policies

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def requirements(*extras):
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {Requirement(line).name: Requirement(line).specifier for line in lines}


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): exact for name, exact in pins}


def test_every_dependency_is_bounded_above():
    for extra in PROJECT["optional-dependencies"]:
        for name, specifier in requirements(extra).items():
            assert any(s.operator in ("<", "<=", "==") for s in specifier), f"{name} has no upper bound"


def test_constraints_hold_every_dependency_within_its_bounds():
    exact = constraints()
    for name, specifier in requirements("dev", "notebooks", "docs", "browser").items():
        pin = exact.get(canonicalize_name(name))
        assert pin, f"{name} is missing in constraints.txt"
        assert pin in specifier, f"{name}=={pin} is outside {specifier}"


def test_constraints_are_what_is_installed():
    installed = {name: version(name).split("+")[0] for name in ("torch", "trl", "transformers", "peft", "datasets")}
    exact = constraints()
    if installed["torch"] != exact["torch"]:
        pytest.skip("this environment was not made by make setup")
    assert installed == {name: exact[name] for name in installed}


def test_every_way_to_start_names_the_versions_of_pyproject_and_constraints():
    environment, binder, workflow, container = (
        yaml.safe_load((ROOT / name).read_text())
        for name in (
            "environment.yml",
            ".binder/environment.yml",
            ".github/workflows/ci.yml",
            ".devcontainer/devcontainer.json",
        )
    )
    # conda on a GPU: the bounds, and the extra that notebooks install as well
    bounds, (own, *pip) = requirements("gpu", "notebooks"), environment["dependencies"][-1]["pip"]
    assert own == "-e .[gpu,notebooks]"
    assert '"gpu"' in (ROOT / "amir_grpo" / "notebook.py").read_text()
    assert {Requirement(line).name for line in PROJECT["optional-dependencies"]["gpu"]} <= {
        Requirement(line).name for line in pip
    }
    for line in pip:
        assert Requirement(line).specifier == bounds[Requirement(line).name], f"{line} differs from pyproject.toml"
    # a container, Binder: one script, which installs what constraints.txt names; CI does so by make
    script, dockerfile = (ROOT / ".binder" / "postBuild").read_text(), (ROOT / "Dockerfile").read_text()
    assert "--constraint constraints.txt --editable '.[notebooks]'" in script
    assert "RUN .binder/postBuild" in dockerfile
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    run = [step["run"] for step in steps if "run" in step]
    assert run[:2] == [".ci/run", "make setup"]
    executed = [re.match(r"\.venv/bin/papermill (\S+) \S+ -p profile smoke$", line)[1] for line in run[2:]]
    assert executed == ["notebooks/01_train.ipynb", "notebooks/03_main_figure.ipynb"]
    # one Python, that of constraints.txt
    pythons = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    pythons += [re.search(r"FROM python:([\d.]+)", dockerfile)[1], binder["dependencies"][0].removeprefix("python=")]
    assert {*pythons} == {re.search(r"with Python ([\d.]+\d)", (ROOT / "constraints.txt").read_text())[1]} == {"3.11"}
    assert environment["dependencies"][0].startswith(f"python{PROJECT['requires-python']}")


def test_pyproject_ci_and_the_backend_name_one_version_of_unsloth():
    lines = [line for line in (ROOT / ".ci" / "gpu-on-cpu.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert str(requirements("gpu")["unsloth"]) == str(requirements("gpu")["unsloth_zoo"]) == f"=={UNSLOTH_VERSION}"
    assert pins["unsloth"] == pins["unsloth_zoo"] == UNSLOTH_VERSION


def test_no_path_of_a_machine_is_in_a_tracked_file():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix != ".png":
            found = re.search(r"(?<![\w.])/(work|home|Users)/\w+", path.read_text(errors="ignore"))
            assert not found or name == "tests/test_foundation.py", f"{name} holds {found.group()}"


def test_the_table_of_base_policies_is_of_the_pilot():
    found = base_policies.base_policy_table(ROOT / "data" / "results" / "pilot")
    kept = pd.read_csv(ROOT / "data" / "results" / "base_policies.csv")
    assert found["base_policy"].tolist() == kept["base_policy"].tolist()
    assert found.iloc[:, 1:].to_numpy() == pytest.approx(kept.iloc[:, 1:].to_numpy(), abs=1e-3)
    six, mean, spread = kept.iloc[:-2, 1:], kept.iloc[-2, 1:], kept.iloc[-1, 1:]
    assert len(six) == 6
    assert mean.tolist() == pytest.approx([sum(six[column]) / 6 for column in six], abs=1e-3)
    assert spread.tolist() == pytest.approx([statistics.stdev(six[column]) for column in six], abs=1e-3)


def test_the_method_page_says_which_λ_a_share_takes():
    log = pd.read_csv(ROOT / "data" / "results" / "sandbox" / "log.csv")
    share = log["preference/share"].median()
    settings = json.loads((ROOT / "data" / "results" / "sandbox" / "provenance.json").read_text())["settings"]
    # share / (1 - share) grows with λ
    wanted = settings["lambda_reg"] * (0.3 / 0.7) / (share / (1 - share))
    assert f"a preference share of 0.3 takes a λ of about {wanted:.1f}" in (ROOT / "docs" / "method.md").read_text()


def test_readme_is_one_page():
    assert len(README.splitlines()) <= 120


def test_readme_names_every_notebook():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{path.name}" in README


# A module that is imported under another name than its distribution has.
DISTRIBUTIONS = {"IPython": "ipython", "math_verify": "math-verify", "yaml": "pyyaml"}


def test_what_is_imported_is_declared():
    """Lazy imports, too; optional are what the extras name."""
    imported = set()
    for path in (ROOT / "amir_grpo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    imported -= {"amir_grpo", *sys.stdlib_module_names}
    declared = {canonicalize_name(name) for name in requirements("gpu", "vllm", "cluster", "notebooks")}
    assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported} <= declared
    assert len(imported) > 20
