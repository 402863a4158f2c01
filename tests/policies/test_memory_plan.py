"""The plan before a training: against published parameter counts, and against what the CPU's allocator really gives."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from trl.trainer.utils import selective_log_softmax

from amir_grpo.cli import main
from amir_grpo.policies.cards import CARDS, GIB, Card
from amir_grpo.policies.loading import lora_config
from amir_grpo.policies.memory_plan import hours_table, plan, profile_for
from amir_grpo.policies.meta_pass import config_of, peak_of_a_pass, policy_on_meta
from amir_grpo.policies.sampling import _batches
from amir_grpo.results.published import published_sizes
from amir_grpo.settings import PROFILES, replace, settings_of

ROOT = Path(__file__).parents[2]
GPU_PROFILES = ("colab-t4", "paper-qwen3b", "paper-qwen7b", "paper-gemma4b")
# plans are kept within a process: one worker of xdist makes each once
pytestmark = pytest.mark.xdist_group("plans")

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
    own = [profile for profile in GPU_PROFILES[1:] if settings_of(profile).policy.model_name == name]  # in 16 bits
    rel = 0.01 if "gemma" in name else 0
    if own:
        planned = plan(settings_of(own[0]))
        assert planned.parameters == pytest.approx(parameters, rel=rel)
        assert planned.parts["weights"] == pytest.approx(2 * parameters / GIB, rel=0.01)
    else:  # planned in `make test-long`
        *_, shaped = policy_on_meta(settings_of("paper-qwen3b", {"model_name": name}), torch.bfloat16)
        assert shaped == pytest.approx(parameters, rel=rel)


@pytest.mark.long
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"])
def test_weights_of_policies_without_a_profile_in_16_bits(name):
    planned = plan(settings_of("paper-qwen3b", {"model_name": name}))
    assert planned.parameters == PUBLISHED[name]
    assert planned.parts["weights"] == pytest.approx(2 * PUBLISHED[name] / GIB, rel=0.01)


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
    policy = get_peft_model(policy, lora_config(s.policy.lora_rank, s.policy.lora_alpha))
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.enable_input_require_grads()
    policy.train()
    length = s.data.max_prompt_length + s.train.max_completion_length

    def step():
        ids = torch.ones(micro_batch, length, dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[:, :5] = 0  # padding, so that the mask is a real one
        options = {"use_cache": False, "logits_to_keep": s.train.max_completion_length + 1}
        logits = policy(input_ids=ids, attention_mask=mask, **options).logits[:, :-1]
        logps = selective_log_softmax(logits, ids[:, -s.train.max_completion_length :])  # TRL's
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
    adapted = get_peft_model(policy, lora_config(s.policy.lora_rank, s.policy.lora_alpha))
    trained = sum(p.nbytes for p in adapted.parameters() if p.requires_grad)
    assert planned.parts["adapters"] * GIB == planned.parts["gradients"] * GIB == trained
    assert planned.parts["optimizer"] * GIB == 2 * trained


def test_sliding_windows_hold_less():
    full = plan(settings_of("paper-gemma4b"))
    s = full.settings
    layers, per_token = full.layers, 2 * 4 * 256 * 2  # keys and values of 4 heads of 256, in 2 bytes
    global_layers = layers // 6  # every sixth; the others see 1,024 tokens
    tokens = global_layers * 2048 + (layers - global_layers) * 1024
    assert full.parts["KV cache"] * GIB == 32 * per_token * tokens
    assert s.train.num_generations == 8


def test_4_bits_take_a_little_more_than_a_quarter():
    sixteen = plan(settings_of("paper-qwen7b"))
    four = plan(settings_of("paper-qwen7b", {"load_in_4bit": True}))
    head = 2 * 2 * 152064 * 3584 / GIB  # embeddings and head stay in 16 bits
    assert four.parts["weights"] == pytest.approx((sixteen.parts["weights"] - head) * 0.516 / 2 + head, rel=0.01)
    assert four.parts["adapters"] == sixteen.parts["adapters"], "float32: updates would round away in bfloat16"


def test_the_way_out_makes_it_fit():
    s, card = settings_of("paper-qwen7b"), CARDS["A100-40GB"]
    tight = dataclasses.replace(card, memory=12.0)
    seen = []
    while text := plan(s).ways_out(tight):
        seen.append(text)
        assert len(seen) < 6
        words = text.split(":")[0].split(", ")
        changes = dict(word.split("=") for word in words if "=" in word)
        assert changes, text
        overrides = {k: v == "True" if v in ("True", "False") else int(v) for k, v in changes.items()}
        s = replace(s, **overrides)
    assert plan(s).fits(tight)
    assert seen[0].startswith("load_in_4bit=True"), "the weights alone are too large"
    assert seen[1].startswith("per_device_train_batch_size=4, gradient_accumulation_steps=8")


@pytest.mark.parametrize(
    ("card", "profile"),
    [
        (None, "sandbox"),
        (CARDS["T4"], "colab-t4"),
        (CARDS["L4"], "paper-qwen3b"),
        (CARDS["A100-40GB"], "paper-qwen7b"),
        (CARDS["H100"], "paper-qwen7b"),
        (Card("old", 7.8, 10, 300, bf16=False), "colab-t4"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_auto_picks_by_the_card(card, profile):
    assert profile_for(card) == profile
    if card:
        assert plan(settings_of(profile), card.bf16).fits(card)


def test_colab_t4_fits_with_room_and_both_methods_in_a_session():
    planned = plan(settings_of("colab-t4"), bf16=False)
    assert planned.peak < 0.5 * CARDS["T4"].memory
    assert 2 * planned.hours(CARDS["T4"]) < 4


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "smoke"])
def test_the_command_prints_a_plan_without_a_gpu(profile, capsys):
    main(["plan", "--profile", profile])
    printed = capsys.readouterr().out
    for part in ("weights", "adapters", "optimizer", "activations", "logits", "KV cache", "peak in training"):
        assert part in printed
    for card in CARDS:
        assert card in printed


def rows_under(heading):
    """The rows of the first table under a heading of docs/gpu.md, as lists of cells."""
    section = (ROOT / "docs" / "gpu.md").read_text().split(f"{heading}\n")[1].split("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


BACKENDS = {"transformers": "transformers", "Unsloth": "unsloth"}


def sums():
    """Each row of the table; of Unsloth one that another test plans, too, and the others in `make test-long`."""
    for name, backend in itertools.product(GPU_PROFILES, BACKENDS):
        is_long = backend == "Unsloth" and name != "paper-qwen3b"
        yield pytest.param(name, backend, marks=pytest.mark.long if is_long else ())


@pytest.mark.parametrize(("name", "backend"), sums())
def test_the_documented_sums_are_those_of_the_plans(name, backend):
    (cells,) = (row[2:] for row in rows_under("### The sums, part by part") if row[:2] == [name, backend])
    made = plan(settings_of(name), backend=BACKENDS[backend])
    shown = [made.parts[part] for part in ("weights", "activations", "logits", "KV cache", "generation logits")]
    of_the_adapter = sum(made.parts[part] for part in ("adapters", "gradients", "optimizer"))
    expected = [shown[0], of_the_adapter, *shown[1:3], made.training, *shown[3:], made.rollout]
    assert [float(cell) for cell in cells] == pytest.approx(expected, abs=0.051)
    weights, adapter, activations, logits, training, cache, generation, rollout = expected
    assert training == pytest.approx(weights + adapter + activations + logits + 0.6)
    assert rollout == pytest.approx(weights + adapter + cache + generation + 0.6)


def test_the_documented_sums_add_up():
    rows = rows_under("### The sums, part by part")
    assert [tuple(row[:2]) for row in rows] == list(itertools.product(GPU_PROFILES, BACKENDS))
    for name, backend, *cells in rows:
        weights, adapter, activations, logits, training, cache, generation, rollout = map(float, cells)
        assert training == pytest.approx(weights + adapter + activations + logits + 0.6, abs=0.26), (name, backend)
        assert rollout == pytest.approx(weights + adapter + cache + generation + 0.6, abs=0.26), (name, backend)


def test_what_each_backend_keeps_of_a_logit():
    """TRL's kernel: float32 logits and their float32 gradient, 8 bytes. Unsloth: 512 rows at a time, out of the peak."""
    stock, unsloth = (plan(settings_of("paper-qwen3b"), backend=b) for b in ("transformers", "unsloth"))
    assert stock.parts["logits"] * GIB / (8 * 1024 * 151936) == pytest.approx(8, rel=0.01)
    assert unsloth.parts["logits"] == 0
    assert unsloth.training < stock.training - 5
    without_kernel = plan(settings_of("colab-t4"), bits=32)
    assert without_kernel.parts["logits"] * GIB / (8 * 384 * 151936) == pytest.approx(16, rel=0.02)


def test_more_gpus_take_less_time_and_never_less_than_their_share():
    made, card = plan(settings_of("paper-qwen3b")), CARDS["H100"]
    sizes = {"gsm8k": 1319, "aime25": 30, "olympiadbench": 675, "amc23": 40}
    sizes |= {"minervamath": 272, "aquarat": 254, "livemathbench": 46}
    table = hours_table(made, card, sizes)
    for column in ("training", "evaluation", "evaluation_vllm"):
        hours = table[column].tolist()
        for (few, long), (many, short) in itertools.pairwise(zip(table["GPUs"], hours, strict=True)):
            assert long * few / many <= short <= long, column
    # three policies on gsm8k are the three longest works: more than three GPUs wait for one of them
    gsm8k = made.evaluation_hours(card, sizes | dict.fromkeys(list(sizes)[1:], 0), gpus=8)
    assert table["evaluation"].iloc[-1] == pytest.approx(gsm8k)


FAST = Card("everything at once", 1e9, 1e18, 1e18)  # what is left is a wait for each token


def changed(**changes):
    shape = {"per_device_train_batch_size": 4, "num_generations": 4, "gradient_accumulation_steps": 4}
    return plan(settings_of("sandbox", shape | changes), bits=32)


@pytest.mark.parametrize("card", [CARDS["T4"], FAST], ids=lambda card: card.name)
def test_a_completion_is_drawn_and_trained_once_however_steps_and_rollouts_are_cut(card):
    plain = changed().step_seconds(card)
    two_rollouts = changed(gradient_accumulation_steps=8, steps_per_generation=4)
    assert two_rollouts.step_seconds(card) == pytest.approx(2 * plain)
    half_a_rollout, whole = changed(steps_per_generation=8), changed(gradient_accumulation_steps=8)
    assert 2 * half_a_rollout.step_seconds(card) == pytest.approx(whole.step_seconds(card))
    # a rollout alone is what memory holds
    assert two_rollouts.parts == changed().parts
    assert half_a_rollout.parts == whole.parts


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_operations_of_a_step_are_within_10_percent_of_those_that_are_counted(checkpointing):
    """By PyTorch's counter, which sees matrix products alone."""
    changes = {"gradient_checkpointing": checkpointing, "per_device_train_batch_size": 8, "num_generations": 8}
    s = settings_of("sandbox-large", changes | {"gradient_accumulation_steps": 1, "lora_rank": 1})
    policy, *_ = policy_on_meta(s, torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        peak_of_a_pass(
            policy, s.train.micro_batch, s.data.max_prompt_length, s.train.max_completion_length, "transformers", True
        )
    made, slow = plan(s), Card("slow", 1e9, 1e-3, 1e18)
    prefill = 2 * made.parameters * s.data.max_prompt_length / (0.35e9)  # of one prompt
    assert (made.step_seconds(slow) - prefill) * 0.35e9 == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("budget", [1, 5000, 65_536])
@pytest.mark.parametrize("problems", [0, 1, 37])
def test_the_evaluation_waits_for_the_batches_that_are_drawn(budget, problems):
    """Even where the budget does not hold one completion."""
    made = changed(eval_token_budget=budget, benchmarks=["chain6"], eval_limit=None)
    s = made.settings
    prompts = {str(n): [0] * s.data.max_prompt_length for n in range(problems)}
    length = s.evaluation.eval_max_new_tokens
    batches = sum(len(list(_batches(prompts, samples, length, budget))) for samples in (s.evaluation.num_samples, 1))
    token = made.layers * 0.8e-3
    assert made.evaluation_hours(FAST, {"chain6": problems}) * 3600 == pytest.approx(3 * batches * length * token)


def test_vllm_sets_memory_aside_beside_the_training():
    alone, beside = changed(), changed(use_vllm=True, dtype="auto", device="auto", vllm_gpu_memory_utilization=0.6)
    assert beside.parts["KV cache"] == beside.parts["generation logits"] == 0
    assert beside.peak == alone.training
    card = dataclasses.replace(FAST, memory=2 * alone.peak)
    assert alone.fits(card)
    assert beside.ways_out(card).startswith("lower vllm_gpu_memory_utilization")
    server = changed(
        use_vllm=True, dtype="auto", device="auto", vllm_mode="server", vllm_server_base_url="http://gpu:8000"
    )
    assert server.fits(card)


def test_the_documented_hours_are_the_plans():
    sizes = {re.sub(r"\W", "", name).lower(): size for name, size in published_sizes().items()}
    rows = rows_under("### Hours on several GPUs")
    assert [(row[0], int(row[1])) for row in rows] == [(p, n) for p in GPU_PROFILES[1:] for n in (1, 2, 4, 8)]
    for name, gpus, *cells in rows:
        table = hours_table(plan(settings_of(name)), CARDS["H100"], sizes).set_index("GPUs")
        assert [float(cell) for cell in cells] == pytest.approx(table.loc[int(gpus)].tolist(), abs=0.051)
