"""The plan before a training: against published sizes, a pass on the meta device, and what the CPU's allocator gives."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM
from transformers.models.qwen2 import modeling_qwen2
from trl.trainer.utils import selective_log_softmax

from amir_grpo.cli import main
from amir_grpo.policies import plan as planning
from amir_grpo.policies.loading import lora_config
from amir_grpo.policies.plan import CARDS, GIB, announce, card_here, config_of, plan, profile_for
from amir_grpo.settings import replace, settings_of

ROOT = Path(__file__).parents[2]
GPU_PROFILES = ("colab-t4", "paper-qwen3b", "paper-qwen7b", "paper-gemma4b")

# from the models' pages and their safetensors headers
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "google/gemma-3-4b-it": 4_300_079_472,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_shapes_have_the_published_number_of_parameters(name, parameters):
    planned = plan(settings_of("paper-qwen3b", {"model_name": name}))
    assert planned.parameters == pytest.approx(parameters, rel=0.01 if "gemma" in name else 0)
    assert planned.parts["weights"] == pytest.approx(2 * parameters / GIB, rel=0.01)


# GiB of a training pass, of a rollout, and of activations and logits together. Counted once by running the pass at full size
# on PyTorch's meta device, tensor by tensor: the whole policy, its adapters, forward and backward, by either backend.
COUNTED = [
    ("smoke", "transformers", {}, (0.64, 0.60, 0.041)),
    ("sandbox", "transformers", {}, (0.76, 0.61, 0.162)),
    ("sandbox", "transformers", {"gradient_checkpointing": True}, (0.70, 0.61, 0.100)),
    ("sandbox-medium", "transformers", {}, (1.17, 0.63, 0.570)),
    ("sandbox-large", "transformers", {}, (18.42, 4.67, 17.75)),
    ("sandbox-large", "transformers", {"gradient_checkpointing": True}, (4.03, 4.67, 3.37)),
    ("sandbox-large", "unsloth", {}, (18.42, 4.67, 17.75)),
    ("colab-t4", "transformers", {}, (4.87, 1.59, 3.77)),
    ("colab-t4", "unsloth", {}, (2.14, 1.59, 1.03)),
    ("colab-t4", "unsloth", {"gradient_checkpointing": False}, (15.00, 1.59, 13.89)),
    ("paper-qwen3b", "transformers", {}, (18.20, 9.03, 11.57)),
    ("paper-qwen3b", "transformers", {"gradient_checkpointing": False}, (121.58, 9.03, 114.95)),
    ("paper-qwen3b", "unsloth", {}, (12.78, 9.03, 6.15)),
    ("paper-qwen7b", "transformers", {}, (27.61, 18.82, 12.45)),
    ("paper-qwen7b", "unsloth", {}, (25.00, 18.82, 9.84)),
    ("paper-gemma4b", "transformers", {}, (27.66, 14.06, 18.75)),
    ("paper-gemma4b", "transformers", {"gradient_checkpointing": False}, (145.20, 14.06, 136.28)),
    ("paper-gemma4b", "unsloth", {}, (15.97, 14.06, 7.06)),
    ("paper-qwen7b", "transformers", {"load_in_4bit": True}, (18.59, 9.80, 12.45)),
]


@pytest.mark.parametrize(("name", "backend", "changes", "counted"), COUNTED, ids=str)
def test_the_formula_is_within_15_percent_of_a_counted_pass(name, backend, changes, counted):
    made = plan(settings_of(name, changes), backend=backend)
    found = made.training, made.rollout, made.parts["activations"] + made.parts["logits"]
    assert found == pytest.approx(counted, rel=0.15)


def settings(checkpointing, micro_batch):
    changes = {
        "gradient_checkpointing": checkpointing,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_prompt_length": 64,
        "max_completion_length": 96,
    }
    return settings_of("sandbox-large", changes)


def peak_of_the_allocator(work):
    """Bytes that the CPU's allocator gave out at most while `work` ran, by the profiler's records of every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    bytes_now = peak = 0
    records = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(records, key=lambda e: e.start_ns()):
        bytes_now += event.nbytes()
        peak = max(peak, bytes_now)
    return peak


@pytest.mark.parametrize(
    ("checkpointing", "micro_batch"), [(True, 4), (False, 4), pytest.param(True, 8, marks=pytest.mark.long)]
)
def test_memory_of_the_training_pass_is_within_15_percent_of_what_is_measured(checkpointing, micro_batch):
    s = settings(checkpointing, micro_batch)
    planned = plan(s, bits=32)
    policy = AutoModelForCausalLM.from_config(config_of(s), dtype=torch.float32, attn_implementation="sdpa")
    policy = get_peft_model(policy, lora_config(s.policy))
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.enable_input_require_grads()
    policy.train()
    completion, length = s.train.max_completion_length, s.data.max_prompt_length + s.train.max_completion_length

    def step():
        ids = torch.ones(micro_batch, length, dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[:, :5] = 0  # padding, so that the mask is a real one
        options = {"use_cache": False, "logits_to_keep": completion + 1}
        logits = policy(input_ids=ids, attention_mask=mask, **options).logits[:, :-1]
        logps = selective_log_softmax(logits, ids[:, -completion:])  # TRL's
        logps.backward(torch.zeros_like(logps))

    measured = peak_of_the_allocator(step) / GIB
    estimated = planned.parts["activations"] + planned.parts["logits"] + planned.parts["gradients"]
    assert estimated == pytest.approx(measured, rel=0.15)


def test_weights_adapters_and_cache_are_what_they_are():
    s = settings(False, 8)
    planned = plan(s, bits=32)
    policy = AutoModelForCausalLM.from_config(config_of(s), dtype=torch.float32)
    assert planned.parts["weights"] * GIB == sum(p.nbytes for p in policy.parameters())
    with torch.no_grad():
        length = s.data.max_prompt_length + s.train.max_completion_length
        cache = policy(torch.ones(16, length, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert planned.parts["KV cache"] * GIB == held, "a rollout is 8 × 2 completions"
    adapted = get_peft_model(policy, lora_config(s.policy))
    trained = sum(p.nbytes for p in adapted.parameters() if p.requires_grad)
    assert planned.parts["adapters"] * GIB == planned.parts["gradients"] * GIB == trained
    assert planned.parts["optimizer"] * GIB == 2 * trained


def test_sliding_windows_hold_less():
    full = plan(settings_of("paper-gemma4b"))
    per_token = 2 * 4 * 256 * 2  # keys and values of 4 heads of 256, in 2 bytes
    tokens = 5 * 2048 + 29 * 1024  # every sixth layer sees all, the others 1,024 tokens
    assert full.parts["KV cache"] * GIB == 32 * per_token * tokens


@pytest.mark.parametrize(
    "whole", [{"load_in_4bit": False}, {"gradient_checkpointing": False, "gradient_accumulation_steps": 64}], ids=str
)
def test_the_way_out_makes_it_fit(whole):
    s, tight, seen = settings_of("paper-qwen7b", whole), 12.0, []
    while text := plan(s).ways_out(tight):
        seen.append(text)
        assert len(seen) < 9
        if "a rollout is the peak" in text:
            s = replace(s, gradient_accumulation_steps=s.train.gradient_accumulation_steps // 2)
            continue
        words = text.removeprefix("set ").split(":")[0].split(", ")
        changes = dict(word.split("=") for word in words if "=" in word)
        assert changes, text
        s = replace(s, **{k: v == "True" if v in ("True", "False") else int(v) for k, v in changes.items()})
    assert plan(s).fits(tight)
    assert seen[0].startswith("load_in_4bit=True"), "the weights alone are too large"


def test_vllm_beside_the_training_has_its_share():
    shared = plan(settings_of("paper-qwen3b", {"use_vllm": True, "vllm_gpu_memory_utilization": 0.6}))
    assert shared.parts["KV cache"] == shared.parts["generation logits"] == 0
    assert not shared.fits(CARDS["A100-40GB"])
    assert shared.ways_out(CARDS["A100-40GB"]).startswith("lower vllm_gpu_memory_utilization")
    assert plan(replace(shared.settings, vllm_mode="server")).fits(CARDS["A100-40GB"])


@pytest.mark.parametrize(
    ("memory", "profile"),
    [(7.8, "colab-t4"), (14.6, "colab-t4"), (22.0, "paper-qwen3b"), (39.4, "paper-qwen7b"), (79.2, "paper-qwen7b")],
)
def test_auto_picks_by_the_card(memory, profile):
    assert profile_for(memory) == profile
    assert plan(settings_of(profile)).fits(memory)


@pytest.mark.parametrize("profile", ["sandbox", "paper-gemma4b"])
def test_the_command_prints_a_plan_without_a_gpu(profile, capsys):
    main(["plan", "--profile", profile])
    printed = capsys.readouterr().out
    for part in ("weights", "adapters", "optimizer", "activations", "logits", "KV cache", "peak in training", *CARDS):
        assert part in printed


def test_a_plan_runs_no_code_of_a_policy_and_stops_no_training(monkeypatch):
    """Unsloth has replaced the policies' classes by the time a second training begins in a process."""
    monkeypatch.setattr(modeling_qwen2.Qwen2RotaryEmbedding, "__init__", lambda *_: pytest.fail("built"))
    monkeypatch.setattr(planning, "card_here", lambda: {"T4": 14.6})
    assert announce(settings_of("colab-t4"), "unsloth").startswith("Planned: 2.")
    assert announce(settings_of("paper-qwen7b"), "transformers").endswith("or take a smaller model_name")
    monkeypatch.setattr(planning, "config_of", lambda _: object())
    assert announce(settings_of("colab-t4"), "unsloth") == ""


def test_the_documented_sums_are_those_of_the_plans():
    table = (ROOT / "docs" / "gpu.md").read_text().split("| profile | weights |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [name for name, *_ in rows] == list(GPU_PROFILES)
    for name, *cells in rows:
        ours, unsloth = (plan(settings_of(name), backend=backend) for backend in ("transformers", "unsloth"))
        expected = [ours.parts["weights"], ours.peak, ours.parts["logits"], unsloth.peak]
        assert [float(cell) for cell in cells] == pytest.approx(expected, abs=0.051), name
        assert ours.peak == ours.training


def test_a_card_is_read_as_it_is(monkeypatch):
    assert card_here() == {}
    properties = type("", (), {"total_memory": 14.6 * GIB})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert card_here() == {"Tesla T4": 14.6}
