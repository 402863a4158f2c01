"""The vLLM engine: what it is built with, and what is refused; `test_vllm_itself.py` draws by the real one (`.ci/vllm`)."""

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from amir_grpo.policies import engines
from amir_grpo.policies.source import PolicySource
from amir_grpo.settings import PolicySettings


@pytest.fixture
def asked(monkeypatch):
    """What an engine is built with, by a stand-in."""
    options = {}
    vllm = ModuleType("vllm")
    vllm.__spec__ = ModuleSpec("vllm", None)
    vllm.LLM = lambda **given: options.update(given)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return options


def test_pickled_weights_in_4_bits_are_refused(asked, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ValueError, match=r"holds no safetensors, and with 4 bits vLLM would read pickled weights"):
        engines._start_vllm(str(tmp_path), PolicySettings(load_in_4bit=True), 16, None)


def test_vllm_that_is_not_installed_is_asked_for(base, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name))
    with pytest.raises(ValueError, match=r"eval_engine=vllm needs vLLM.*pip install -e '\.\[vllm\]'"):
        engines.load_engine("vllm", str(base), None, PolicySettings())


@pytest.mark.parametrize(("rank", "built_for"), [(0, None), (4, 8), (16, 16), (17, 32), (512, 512)])
def test_the_engine_is_built_for_the_rank(asked, rank, built_for):
    engines._start_vllm("some/policy", PolicySettings(), rank, 96)
    assert asked["enable_lora"] is (built_for is not None)
    assert asked["max_lora_rank"] == (built_for or 1)
    assert asked["max_model_len"] == 96


def test_a_rank_without_kernels_is_refused(asked):
    with pytest.raises(ValueError, match=r"up to rank 512, and this one's is 513"):
        engines._start_vllm("some/policy", PolicySettings(), 513, None)


def test_it_takes_nine_tenths_of_what_is_left_of_the_gpu_and_its_precision(asked, monkeypatch):
    """vLLM's own defaults are 0.9 of the whole, which fails after a training, and on a T4 bfloat16, which it refuses."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40, 80))
    monkeypatch.setattr(engines, "compute_dtype", lambda settings: torch.float16)
    engines._start_vllm("some/policy", PolicySettings(), 16, None)
    assert (asked["gpu_memory_utilization"], asked["dtype"]) == (0.45, "float16")


def adapter(folder, rank, **more):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "base_model_name_or_path": "base", **more}))
    return PolicySource("base", folder)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ".*(lm_head|q_proj)"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_an_adapter_of_the_output_layer_is_refused_before_vllm_starts(asked, base, tmp_path, config):
    adapter(tmp_path / "of the head", 4, **config)
    with pytest.raises(ValueError, match=r"takes no adapter of lm_head, as .*\nset eval_engine to transformers"):
        engines.load_engine("vllm", str(base), tmp_path / "of the head", PolicySettings())
    assert not asked


def test_the_rank_of_a_policy_is_its_largest(tmp_path):
    assert PolicySource("base").lora_rank() == 0
    assert adapter(tmp_path / "plain", 4).lora_rank() == 4
    assert adapter(tmp_path / "of patterns alone", None, rank_pattern={"q_proj": 2}).lora_rank() == 2
    assert adapter(tmp_path / "pattern", 4, rank_pattern={"q_proj": 8, "v_proj": 2}).lora_rank() == 8
