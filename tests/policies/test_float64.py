"""Float64 from end to end: against NumPy's own arithmetic, and against what another build of the libraries computes."""

import copy
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from amir_grpo.policies.float64 import compute_in_float64, merged_adapters, round_to_float32
from amir_grpo.runs.run import open_run
from amir_grpo.runs.verify import first_difference

# one worker of xdist, so that what the module shares is made once
pytestmark = pytest.mark.xdist_group("float64")
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


@pytest.fixture(params=["llama", "qwen2"])
def policies(request):
    """A policy in float64 as transformers computes it, and as this package has it."""
    torch.manual_seed(0)
    kinds = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}
    policy_class, config_class = kinds[request.param]
    theirs = policy_class(config_class(**SHAPE)).double().eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    ours = copy.deepcopy(theirs)
    compute_in_float64(ours)
    return theirs, ours


@torch.no_grad()
def test_it_is_the_policy_but_for_the_rounding_of_float32(policies):
    theirs, ours = policies
    ids = torch.randint(0, 50, (3, 20))
    difference = (ours(input_ids=ids).logits - theirs(input_ids=ids).logits).abs().max()
    assert 1e-12 < difference < 1e-4
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@torch.no_grad()
def test_no_part_of_it_sees_float32(policies):
    _, ours = policies
    seen = set()
    for module in ours.modules():
        module.register_forward_hook(
            lambda module, inputs, output: seen.update(
                value.dtype for value in (output if isinstance(output, tuple) else (output,)) if torch.is_tensor(value)
            )
        )
    ours(input_ids=torch.arange(10)[None])
    assert seen == {torch.float64}


@torch.no_grad()
def test_norms_and_positions_are_right_to_the_last_digits(policies):
    _, ours = policies
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    norm = ours.model.norm
    exact = x.numpy().astype(np.longdouble)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + np.longdouble(ours.config.rms_norm_eps))
    np.testing.assert_allclose(norm(x).numpy(), exact * norm.weight.numpy(), rtol=1e-14)

    places = torch.tensor([[0, 5, 200]])
    cosines, sines = ours.model.rotary_emb(x, places)
    frequencies = np.longdouble(10_000) ** -(np.arange(0, 8, 2, dtype=np.longdouble) / 8)
    angles = np.concatenate([places.numpy()[0][:, None] * frequencies] * 2, axis=1)
    np.testing.assert_allclose(cosines[0].numpy(), np.cos(angles).astype(float), atol=1e-13)
    np.testing.assert_allclose(sines[0].numpy(), np.sin(angles).astype(float), atol=1e-13)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0)])
@torch.no_grad()
def test_adapters_are_merged_where_that_loses_nothing_and_leave_no_trace(policies, dtype, error):
    policy = get_peft_model(
        policies[dtype == torch.float64].to(dtype), LoraConfig(target_modules=["q_proj", "down_proj"])
    ).eval()
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            weight.normal_()
    ids = torch.randint(0, 50, (3, 20))
    before, expected = copy.deepcopy(policy.state_dict()), policy(input_ids=ids).logits
    with merged_adapters(policy):
        merged = policy.get_base_model().model.layers[0].mlp.down_proj
        assert bool(merged.merged_adapters) == (dtype != torch.bfloat16)
        torch.testing.assert_close(policy(input_ids=ids).logits, expected, rtol=error, atol=error)
    after = policy.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert torch.equal(policy(input_ids=ids).logits, expected)


def test_what_cannot_be_computed_so_is_refused():
    policy = Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=8)).double()
    with pytest.raises(ValueError, match=r"gemma3_text.*\nSet dtype to auto"):
        compute_in_float64(policy)


def test_saved_weights_are_rounded_once(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = {"a": torch.rand(9, dtype=torch.float64), "b": torch.arange(3)}
    save_file(weights, path, metadata={"format": "pt"})
    round_to_float32(path)
    rounded = load_file(path)
    assert rounded["a"].dtype == torch.float32
    assert torch.equal(rounded["a"], weights["a"].float())
    assert torch.equal(rounded["b"], weights["b"])
    before = path.read_bytes()
    round_to_float32(path)
    assert path.read_bytes() == before


# What a run imports before it trains, then the run; argv: its folder, threads.
RUN = """
import sys
import amir_grpo.cli, amir_grpo.results.figures, amir_grpo.study.experiment
import amir_grpo.policies.backend, amir_grpo.policies.engines, amir_grpo.policies.loading
import amir_grpo.policies.plan, amir_grpo.policies.sampling
from amir_grpo import mine_pairs, preference_loss
from amir_grpo.runs.run import open_run
print("imported:", *sys.modules)
import torch
run = open_run("smoke", sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
run.samples(["grpo", "amir_grpo"], ["chain3"])
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
"""
LIBRARIES = {
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "DEFAULT": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}


@pytest.fixture(scope="module")
def here(runs, base, tiny_settings):
    """A short run in this process, with the libraries as they come: trained, saved and evaluated."""
    run = open_run("smoke", runs / "libraries as they come", tiny_settings | {"benchmarks": ["chain3"]})
    run.samples(["grpo", "amir_grpo"], ["chain3"])
    return run.folder


def made_elsewhere(base, tiny_settings, folder, libraries, threads):
    """The same run in a process of its own, under one setting of the math libraries; what that printed."""
    shutil.copytree(base, folder / "base")
    changes = {**tiny_settings, "benchmarks": ["chain3"]}
    code = RUN.replace("sys.argv[1])", f"sys.argv[1], {changes!r})")
    threaded = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    environment = {**os.environ, **LIBRARIES.get(libraries, {}), **threaded}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(threads)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    capability, ran_with = done.stdout.split()[-2:]
    assert ran_with == str(threads)
    assert libraries in ("native", capability)
    return done.stdout


def check_same_run(here, folder):
    """Equal by `verify`, and the adapters to the byte."""
    assert first_difference(here, folder) is None
    for method in ("grpo", "amir_grpo"):
        adapters = [f / method / "adapter_model.safetensors" for f in (here, folder)]
        assert adapters[0].read_bytes() == adapters[1].read_bytes(), "to the byte"
        assert {weight.dtype for weight in load_file(adapters[0]).values()} == {torch.float32}


@pytest.fixture(scope="module")
def furthest(base, tiny_settings, tmp_path_factory):
    """The setting that is furthest from this process: the run's folder, and what its process printed."""
    folder = tmp_path_factory.mktemp("furthest") / "run"
    return folder, made_elsewhere(base, tiny_settings, folder, "DEFAULT", 2)


def test_a_run_is_the_same_without_vector_instructions_and_on_two_threads(here, furthest):
    """The settings between them are tested by `make test-long`."""
    check_same_run(here, furthest[0])


def test_what_a_run_imports_before_training_leaves_trl_alone(furthest):
    """So that Unsloth can come first, in notebooks and on the command line."""
    (imported,) = (line.split() for line in furthest[1].splitlines() if line.startswith("imported: "))
    assert "amir_grpo.policies.engines" in imported
    assert "trl" not in imported


@pytest.mark.long
@pytest.mark.parametrize(("libraries", "threads"), [("native", 2), ("AVX2", 1), ("AVX2", 2), ("DEFAULT", 1)])
def test_a_run_is_the_same_under_every_setting_of_the_math_libraries(
    here, base, tiny_settings, tmp_path, libraries, threads
):
    made_elsewhere(base, tiny_settings, tmp_path / "run", libraries, threads)
    check_same_run(here, tmp_path / "run")
