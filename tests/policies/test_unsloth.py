"""What a GPU machine trains with under Unsloth, asked on a CPU by unsloth_trainer.py; and Unsloth's own backend for CPUs.

`.ci/gpu-on-cpu` installs Unsloth, Triton and bitsandbytes, and runs these.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amir_grpo.choices import IMPORTANCE_SAMPLING_LEVELS, LOSS_TYPES
from amir_grpo.policies.backend import start_backend
from tests.conftest import WARMUP_STEPS

if any(importlib.util.find_spec(name) is None for name in ("unsloth", "triton")):
    pytest.skip("Unsloth and Triton are not installed: .ci/gpu-on-cpu installs them", allow_module_level=True)

CASES = [f"{loss_type}, {case}" for loss_type in LOSS_TYPES for case in (*IMPORTANCE_SAMPLING_LEVELS, "reused")]


def run(*arguments, cwd):
    """A process of its own: Unsloth rewrites TRL for good."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def ask(folder, what):
    done = run("-m", "tests.policies.unsloth_trainer", what, str(folder / "answer.json"), cwd=folder)
    assert "seem to have been set" not in done.stderr, "each rollout warns of two lengths"
    return json.loads((folder / "answer.json").read_text())


# off: by rounding; in float16, and where Unsloth takes it for parts of Gemma 3, by that of float16
@pytest.mark.parametrize(
    ("policy", "error"), [("qwen2 float32", 1e-5), ("qwen2 float16", 0.005), ("gemma3_text float32", 0.005)]
)
def test_the_gradient_by_unsloths_kernels_is_that_of_the_explicit_objective(tmp_path, policy, error):
    row = ask(tmp_path, f"gradient {policy}")
    assert row["off_without_preference"] > 10 * error, "the preference term is too small for the test to see it"
    assert row["off"] < error


def test_colab_t4_trains_resumes_and_is_evaluated_through_the_notebooks(tmp_path):
    found = ask(tmp_path, "colab-t4")
    assert "_UnslothGRPOTrainer" in found["classes"]
    assert (found["trained"], found["optimizer"]) == (["torch.float32"], "adamw_8bit")
    assert found["base"] == ["torch.float16", "torch.uint8"]
    assert found["scaler"]
    assert found["resumed"], "a resumption is exact"
    assert found["moved"] > 0
    assert found["log"]["step"] == [1, 2, 3]
    assert max(found["log"]["preference/pairs"]) > 0
    assert found["padding"] == "left"


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    return ask(tmp_path_factory.mktemp("losses"), "losses")


@pytest.mark.xdist_group("losses")
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_both_methods_have_the_same_configuration_but_for_lambda(losses, loss_type):
    assert losses["configurations"][loss_type]["differ"] == {"lambda_reg": [0.0, 0.01]}


@pytest.mark.xdist_group("losses")
def test_unsloths_own_configuration_would_have_changed_the_baseline(losses):
    """Otherwise the test above shows nothing."""
    changed = {loss_type: sorted(config["overruled"]) for loss_type, config in losses["configurations"].items()}
    assert changed["dr_grpo"] == ["scale_rewards"]
    assert changed["dapo"] == changed["cispo"] == ["epsilon_high"]


@pytest.mark.xdist_group("losses")
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_every_loss_is_that_of_the_explicit_objective(losses, case):
    assert losses["gradients"][case]["without_preference"] > 1e-3, "the term is too small for the test to see it"
    assert losses["gradients"][case]["off"] < 1e-5


# argv: the options of a training
BY_COMMAND = """
import sys
order = []
class Note:
    def find_spec(self, name, path=None, target=None):
        if name in ("unsloth", "trl", "transformers", "peft"):
            order.append(name)
sys.meta_path.insert(0, Note())
from amir_grpo import cli
cli.main(["train", *sys.argv[1:]])
print("ORDER", *order)
"""


def test_the_command_imports_unsloth_before_transformers_and_trains_by_its_backend_for_cpus(runs, tmp_path):
    options = "--profile sandbox --backend unsloth --method amir_grpo --dtype auto --device auto --max_steps 2 "
    options += f"--sandbox_warmup_steps {WARMUP_STEPS} --per_device_train_batch_size 16 --max_completion_length 24"
    printed = run("-c", BY_COMMAND, *options.split(), "--run_dir", str(runs / "by unsloth"), cwd=tmp_path).stdout
    (order,) = [line.split()[1:] for line in printed.splitlines() if line.startswith("ORDER")]
    assert order[0] == "unsloth"
    assert "transformers" in order
    stage = json.loads((runs / "by unsloth" / "amir_grpo" / "stage.json").read_text())
    assert stage["backend"] == {"name": "unsloth", "why": "asked for"}


def test_unsloth_after_trl_is_refused_with_the_way_out():
    import trl  # noqa: F401

    with pytest.raises(ValueError, match=r"trl was imported first.\nStart a new process"):
        start_backend("unsloth")


def test_auto_takes_transformers_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    backend = start_backend("auto")
    assert (backend.name, backend.why) == ("transformers", "no GPU is visible")
