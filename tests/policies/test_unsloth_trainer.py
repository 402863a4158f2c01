"""What a GPU machine trains with under Unsloth: TRL's trainer as Unsloth rewrites it; see unsloth_trainer.py."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from amir_grpo.choices import IMPORTANCE_SAMPLING_LEVELS, LOSS_TYPES

if importlib.util.find_spec("unsloth") is None:
    pytest.skip("Unsloth is not installed: .ci/unsloth installs it", allow_module_level=True)

pytestmark = pytest.mark.xdist_group("unsloth")
CASES = [f"{loss_type}, {case}" for loss_type in LOSS_TYPES for case in (*IMPORTANCE_SAMPLING_LEVELS, "reused")]


def ask(folder, what):
    """The answer of a process of its own: Unsloth rewrites TRL for good. It writes its code beside the working directory."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "tests.policies.unsloth_trainer", what, str(folder / "answer.json")]
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "answer.json").read_text())


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return ask(tmp_path_factory.mktemp("configs"), "configs")


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    return ask(tmp_path_factory.mktemp("gradients"), "gradients")


def test_the_generated_functions_are_those_that_were_read(tmp_path):
    """Each was read before its hash was kept: where the preference's factor κ holds, and what each function returns."""
    kept = json.loads(Path(__file__).with_name("unsloth_functions.json").read_text())
    if sys.version_info[:2] != tuple(map(int, kept["python"].split("."))):
        pytest.skip(f"the syntax trees were hashed by Python {kept['python']}")
    now = ask(tmp_path, "functions")
    versions = {name: importlib.metadata.version(name) for name in ("unsloth", "trl")}
    changed = [name for name, value in kept["functions"].items() if now[name] != value]
    assert not changed, (
        f"{', '.join(changed)} changed between unsloth {kept['unsloth']} with trl {kept['trl']} and {versions}: read what "
        "`python tools/unsloth_diff.py OLD NEW` shows, see that the gradients below still agree, and keep the new hashes in "
        "unsloth_functions.json"
    )
    assert now.keys() == kept["functions"].keys()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_both_methods_have_the_same_configuration_but_for_lambda(configs, loss_type):
    assert configs[loss_type]["differ"] == {"lambda_reg": [0.0, 0.01]}


def test_unsloths_own_configuration_would_have_changed_the_baseline(configs):
    """Otherwise the test above shows nothing."""
    changed = {loss_type: sorted(config["overruled"]) for loss_type, config in configs.items()}
    assert changed["dr_grpo"] == ["scale_rewards"]
    assert changed["dapo"] == changed["cispo"] == ["epsilon_high"]


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_explicit_objective(gradients, case):
    assert gradients[case]["without_preference"] > 1e-3, "the preference term is too small for the test to see it"
    assert gradients[case]["off"] < 1e-5
