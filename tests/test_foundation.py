"""The project's own files agree with one another, and the README's claims with the kept results."""

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
from amir_grpo.results import published_noise
from amir_grpo.results.published import published_sizes, published_table
from amir_grpo.study.plan import read_plan
from amir_grpo.study.results import kept_studies
from tools import base_policies, hero, readme
from tools.gallery import study_tables

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
RESULTS_PAGE = (ROOT / "docs" / "results.md").read_text()


def requirements(*extras):
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {Requirement(line).name: Requirement(line).specifier for line in lines}


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): exact for name, exact in pins}


def test_every_dependency_is_bounded_above():
    for name, specifier in requirements("gpu", "vllm", "dev", "docs", "browser").items():
        assert any(s.operator in ("<", "<=", "==") for s in specifier), f"{name} has no upper bound"


def test_constraints_hold_every_dependency_within_its_bounds():
    exact = constraints()
    for name, specifier in requirements("dev", "docs", "browser").items():
        pin = exact.get(canonicalize_name(name))
        assert pin, f"{name} is missing in constraints.txt"
        assert pin in specifier, f"{name}=={pin} is outside {specifier}"


def test_constraints_are_what_is_installed():
    installed = {name: version(name).split("+")[0] for name in ("torch", "trl", "transformers", "peft", "datasets")}
    exact = constraints()
    if installed["torch"] != exact["torch"]:
        pytest.skip("this environment was not made by make setup")
    assert installed == {name: exact[name] for name in installed}


def test_environment_yml_has_the_bounds_of_pyproject():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    bounds = requirements("gpu", "notebooks")
    for line in pip:
        if not line.startswith("-e"):
            wanted = Requirement(line)
            assert wanted.specifier == bounds[wanted.name], f"{wanted.name} differs from pyproject.toml"


def test_environment_yml_and_colab_install_the_extra_gpu():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert "-e .[gpu,notebooks]" in pip
    assert {Requirement(line).name for line in PROJECT["optional-dependencies"]["gpu"]} <= {
        Requirement(line).name for line in pip if not line.startswith("-e")
    }
    assert '"gpu"' in (ROOT / "amir_grpo" / "notebook.py").read_text()


def test_pyproject_ci_and_the_backend_name_one_version_of_unsloth():
    lines = [line for line in (ROOT / ".ci" / "unsloth.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert str(requirements("gpu")["unsloth"]) == str(requirements("gpu")["unsloth_zoo"]) == f"=={UNSLOTH_VERSION}"
    assert pins["unsloth"] == pins["unsloth_zoo"] == UNSLOTH_VERSION


def test_unsloths_bounds_are_kept():
    # Unsloth 2026.10 asks for trl <= 1.15.0, transformers <= 5.17.0, torch < 2.15, datasets < 5
    bounds = requirements()
    assert "1.15.1" not in bounds["trl"]
    assert "5.17.1" not in bounds["transformers"]
    assert "2.15.0" not in bounds["torch"]
    assert "5.0.0" not in bounds["datasets"]


def test_the_package_imports_without_torch():
    code = (
        "import sys, amir_grpo, amir_grpo.results.figures, amir_grpo.results.tables; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_path_of_a_machine_is_in_a_tracked_file():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix != ".png":
            found = re.search(r"(?<![\w.])/(work|home|Users)/\w+", path.read_text(errors="ignore"))
            assert not found or name == "tests/test_foundation.py", f"{name} holds {found.group()}"


def test_the_findings_of_the_readme_follow_the_numbers():
    main = pd.DataFrame({"benchmark": "b", "k": [1, 2], "base": 10.0, "grpo": 50.0, "amir_grpo": [53.0, 60.0]})
    main = main.assign(gain=[3.0, -1.0], gain_low=[2.0, -2.0], gain_high=[4.5, 0.5], p_holm=[0.01, 0.5])
    log = pd.DataFrame({"method": ["grpo"] * 3 + ["amir_grpo"] * 3, "step": [1, 2, 3] * 2, "reward_std": 1.0})
    log = log.assign(reward=[1, 2, 3, 1, 2, 4], **{"preference/share": [None] * 3 + [0.6] * 3})
    page = "above\n<!-- findings -->\nstale\n<!-- end of findings -->\nbelow\n"
    lines = readme.findings_lines(hero.of_run({"main": main, "log": log}))
    text = " ".join(readme.with_parts(page, {"findings": lines}).split())
    assert "the preference term is 60 % of the update" in text
    assert "the first 2 of 3 steps" in text
    assert "10.0 % before training, 50.0 % with GRPO, 53.0 % with AMIR-GRPO" in text
    assert "The 1 gains lie between +2.0 and +4.5 points (95 % intervals); 1 is distinguishable from 0" in text
    assert text.startswith("above")
    assert text.endswith("below")
    assert "stale" not in text


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
    assert len(README.splitlines()) <= 130


def test_the_page_of_results_reads_the_published_table_as_its_noise_allows():
    noise = published_noise.noise_table(published_table("table1"), published_sizes())
    beyond = published_noise.beyond_noise(noise)
    assert f"{beyond['implied']} of the {len(noise)} gains exceed 1.96 such standard errors" in RESULTS_PAGE
    assert ("none would if all\nproblems were equally hard" in RESULTS_PAGE) == (beyond["largest"] == 0)
    pooled = published_noise.pooled_table(noise).query("model == 'all' and k == 1 and noise == 'implied'")
    equal, precise = (
        pooled[(pooled["weights"] == weights) & (pooled["benchmarks"] == "all")].iloc[0]
        for weights in ("unweighted", "precision")
    )
    assert (
        f"the gain is {equal.gain:+.2f} points where every benchmark counts the same\n(z = {equal.z:.1f})"
        in RESULTS_PAGE
    )
    assert f"and {precise.gain:+.2f} weighted by precision (z = {precise.z:.1f})" in RESULTS_PAGE
    sds = f"{equal.seed_sd_together:.2f} points with equal weights, or {precise.seed_sd_together:.2f} by precision"
    assert f"by a standard deviation of {sds}" in RESULTS_PAGE
    equal = pooled[pooled["weights"] == "unweighted"].set_index("benchmarks")
    parts = equal["gain"] * equal["cells"] / equal.loc["all", "cells"]
    assert parts["up to 46 problems"] > 0.5 * equal.loc["all", "gain"]


def test_readme_says_what_the_kept_results_say():
    """`make figures` writes these parts."""
    plan = read_plan()
    studies = kept_studies(plan)
    kept = {name: pd.read_csv(ROOT / "data" / "results" / "sandbox" / f"{name}.csv") for name in ("main", "log")}
    parts = readme.computed_parts(studies, plan, hero.evidence(studies, kept))
    assert readme.with_parts(README, parts) == README


def test_the_tables_that_docs_and_reports_show_are_those_of_the_kept_study():
    """`make figures` writes them."""
    for name, table in study_tables(kept_studies(read_plan()), read_plan()).items():
        text = table.to_csv(index=False, float_format="%.6g")
        assert (ROOT / "data" / "results" / f"{name}.csv").read_text() == text, name


def test_readme_names_every_notebook_and_every_linked_file_exists():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{path.name}" in README
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README) + re.findall(r'src="(?!https?:)([^"]+)"', README):
        assert (ROOT / target).exists(), f"README links to {target}, which is not there"


def test_the_published_numbers_are_complete():
    table = pd.read_csv(ROOT / "data" / "published" / "table1.csv")
    assert len(table) == 7 * 3 * 3
    assert ((table["amir_grpo"] > table["grpo"]).sum(), (table["amir_grpo"] < table["grpo"]).sum()) == (57, 6)


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
