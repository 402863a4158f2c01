"""Unsloth's CPU backend: trained by one backend, read by the other. `.ci/unsloth` installs it and runs these."""

import importlib.util
import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from amir_grpo.policies.backend import start_backend

if importlib.util.find_spec("unsloth") is None:
    pytest.skip("Unsloth is not installed: .ci/unsloth installs its CPU backend", allow_module_level=True)

pytestmark = pytest.mark.xdist_group("unsloth")
SETTINGS = (
    "--profile sandbox --sandbox_warmup_steps 120 --max_steps 2 --per_device_train_batch_size 16 --dataset_limit 40 "
    "--max_completion_length 24 --reward_margin 0.1 --benchmarks chain3 --eval_limit 4 --dtype auto --device auto"
).split()

# argv: the adapter's folder, a file for the logits; the tokens stand for any completion
BY_UNSLOTH = """
import sys
from unsloth import FastLanguageModel
import torch
policy, _ = FastLanguageModel.from_pretrained(sys.argv[1], max_seq_length=128, load_in_4bit=False, dtype=torch.float32)
with torch.no_grad():
    torch.save(policy(input_ids=torch.arange(5, 15)[None]).logits, sys.argv[2])
"""


def run(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["unsloth", "transformers"])
def trained(request, runs):
    """Both methods trained for two steps by one backend."""
    folder = runs / f"by {request.param}"
    for method in ("grpo", "amir_grpo"):
        train = ("-m", "amir_grpo", "train", "--method", method, "--backend", request.param, "--run_dir", folder)
        run(*train, *SETTINGS)
    return request.param, folder


@pytest.mark.parametrize("method", ["grpo", "amir_grpo"])
def test_two_steps_train_the_adapter_and_say_by_what(trained, method):
    backend, folder = trained
    stage = json.loads((folder / method / "stage.json").read_text())
    assert stage["backend"] == {"name": backend, "why": "asked for"}
    assert (stage["provenance"]["packages"]["unsloth"] or "").startswith("20")
    log = pd.read_csv(folder / method / "log.csv")
    assert log["step"].tolist() == [1, 2]
    assert log["grad_norm"].notna().all()
    if method == "amir_grpo":
        assert (log["preference/pairs"] > 0).all()
        assert (log["preference/share"] > 0).all()
    adapter = load_file(folder / method / "adapter_model.safetensors")
    moved = [name for name, value in adapter.items() if "lora_B" in name and value.abs().max() > 0]
    assert moved, "lora_B begins at 0 and has not moved"


def test_what_one_backend_has_saved_the_other_reads(trained, tmp_path):
    from amir_grpo.policies.loading import load_policy

    _, folder = trained
    adapter = folder / "amir_grpo"
    run("-c", BY_UNSLOTH, adapter, tmp_path / "logits.pt")
    policy = load_policy(str(folder / "base"), adapter)
    with torch.no_grad():
        ours = policy(input_ids=torch.arange(5, 15)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), ours, rtol=1e-4, atol=1e-4)


def test_evaluation_goes_on_from_what_unsloth_has_trained(trained):
    backend, folder = trained
    printed = run("-m", "amir_grpo", "evaluate", "--run_dir", folder, "--backend", backend, *SETTINGS)
    assert "Completions:" in printed


def test_the_command_imports_unsloth_before_transformers(tmp_path):
    """Seen by a finder that notes the order in which the two are looked for."""
    code = """
import sys
order = []
class Note:
    def find_spec(self, name, path=None, target=None):
        if name in ("unsloth", "trl", "transformers", "peft"):
            order.append(name)
sys.meta_path.insert(0, Note())
from amir_grpo import cli
try:
    cli.main(["train", "--backend", "unsloth", "--profile", "smoke", "--max_steps", "0"])
except SystemExit:
    pass
print("ORDER", *order)
"""
    (order,) = [line.split()[1:] for line in run("-c", code).splitlines() if line.startswith("ORDER")]
    assert order[0] == "unsloth"
    assert "transformers" in order


def test_unsloth_after_trl_is_refused_with_the_way_out():
    import trl  # noqa: F401

    with pytest.raises(ValueError, match=r"trl was imported first.\nStart a new process"):
        start_backend("unsloth")


def test_auto_takes_transformers_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    backend = start_backend("auto")
    assert (backend.name, backend.why) == ("transformers", "no GPU is visible")
