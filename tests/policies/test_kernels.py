"""Kernels of GPU runs on a CPU: bitsandbytes' own for 4 bits, TRL's by Triton's interpreter. `.ci/gpu-on-cpu` has both."""

import importlib.util
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from amir_grpo.policies import loading
from amir_grpo.policies.backend import Backend
from amir_grpo.policies.engines import Request, load_engine
from amir_grpo.policies.sampling import sequence_logprobs
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.settings import PolicySettings, settings_of


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}: .ci/gpu-on-cpu")


@pytest.fixture
def in_4_bits(monkeypatch):
    """Lets 4 bits onto a CPU. Where it has bfloat16, bitsandbytes 0.50.2 repacks an evaluated layer for good."""
    import bitsandbytes.nn.modules

    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    monkeypatch.setattr(loading, "_need", lambda *_: None)
    return PolicySettings(load_in_4bit=True)


@needs("bitsandbytes")
def test_4_bits_train_resume_draw_and_score_by_transformers(base, tokenizer, tmp_path, in_4_bits):
    from amir_grpo.runs import training

    changes = {"model_name": str(base), "max_prompt_length": 48, "max_completion_length": 16, "reward_margin": 0.0}
    changes |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    settings = settings_of("colab-t4", changes | {"max_steps": 3, "save_steps": 1, "save_total_limit": 3})
    problems, whole, again = load_sandbox("sandbox", 60), tmp_path / "whole", tmp_path / "again"
    arguments = "amir_grpo", settings, str(base), problems
    for folder in (whole, again):
        folder.mkdir()
    log = training.train(*arguments, whole, Backend("transformers", "asked for"))
    assert log["step"].tolist() == [1, 2, 3]
    shutil.copytree(whole / "checkpoints" / "checkpoint-1", again / "checkpoints" / "checkpoint-1")
    training.train(*arguments, again, Backend("transformers", "asked for"))
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (whole, again)]
    assert {weight.dtype for weight in adapters[0].values()} == {torch.float32}
    assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items()), "a resumption is exact"

    drawn = {}
    for adapter in (None, whole):
        engine = load_engine("transformers", str(base), adapter, in_4_bits)
        assert engine.policy.is_loaded_in_4bit
        ((one,),) = engine.generate([Request([5, 6, 7, 8], [1])], 1.0, 1.0, 12)
        (score,) = sequence_logprobs(engine.policy, tokenizer.pad_token_id, [[5, 6, 7, 8]], [one.ids])
        assert score == pytest.approx(sum(one.logprobs), abs=1e-3)
        drawn[adapter] = one.logprobs
    assert drawn[None] != drawn[whole]


@needs("triton")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter: .ci/gpu-on-cpu")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trls_kernel_for_log_probabilities_is_a_log_softmax(temperature):
    from trl.kernels import selective_log_softmax_and_entropy

    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3000, requires_grad=True)  # more than one block of 1,024
    ids, weights = torch.randint(0, 3000, (2, 5)), torch.randn(2, 5)
    logps, entropy = selective_log_softmax_and_entropy(logits, ids, temperature)
    (found,) = torch.autograd.grad((weights * logps).sum(), logits)
    exact = (logits.double() / temperature).log_softmax(-1)
    wanted = exact.gather(2, ids[..., None])[..., 0]
    torch.testing.assert_close(logps.double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(exact.exp() * exact).sum(-1), rtol=0, atol=1e-4)
    torch.testing.assert_close(found, torch.autograd.grad((weights * wanted).sum(), logits)[0], rtol=0, atol=1e-6)
