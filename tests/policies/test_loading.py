"""What is loaded: which backend and why, what the hardware must have, what is trusted, and which numbers are trained."""

import copy
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from amir_grpo import cli
from amir_grpo.choices import LORA_TARGETS
from amir_grpo.policies import backend, engines, loading, sampling
from amir_grpo.policies.backend import start_backend
from amir_grpo.policies.float64 import device_for_float64, merged_adapters
from amir_grpo.runs import opening
from amir_grpo.runs.run import open_run, resolve_profile
from amir_grpo.settings import PROFILES, PolicySettings, settings_of
from amir_grpo.system import network


@pytest.fixture
def machine(monkeypatch):
    """Pretend: machine(gpu=…, packages=…) sets whether there is a GPU, and which optional packages are installed."""
    find = importlib.util.find_spec

    def pretend(gpu=False, packages=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        optional = {"unsloth", "bitsandbytes", "vllm", "trackio", "wandb", "tensorboard"}
        found = {name: object() for name in packages}
        monkeypatch.setattr(importlib.util, "find_spec", lambda n: found.get(n) if n in optional else find(n))
        monkeypatch.setattr(backend, "_version", lambda package: backend.UNSLOTH_VERSION)

    return pretend


# --- the backend ----------------------------------------------------------------------------------------------------


def module(name, **contents):
    made = ModuleType(name)
    vars(made).update(contents)
    return {name: made}


NONE = {"unsloth": None}  # importing it raises ImportError
GPU, CPU = module("unsloth"), module("unsloth", DEVICE_TYPE="cpu")
HALF = module("unsloth.models.rl")  # Python has forgotten the package, whose import has failed
VERSIONS = {"unsloth": backend.UNSLOTH_VERSION, "unsloth_zoo": "2026.10.7"}


@pytest.mark.parametrize(
    ("wanted", "gpu", "packages", "modules", "world", "chosen", "why"),
    [
        ("transformers", True, ["unsloth"], {}, 1, "transformers", "asked for"),
        ("transformers", True, ["unsloth"], CPU, 1, "transformers", "asked for"),  # which leaves TRL alone
        ("transformers", True, ["unsloth"], GPU, 1, None, r"which has rewritten TRL.\nRestart the kernel, and set"),
        ("transformers", True, ["unsloth"], HALF, 1, None, r"has rewritten TRL.\nRestart the kernel"),
        ("auto", True, [], {}, 1, "transformers", "Unsloth is not installed"),
        ("auto", False, ["unsloth"], {}, 1, "transformers", "no GPU is visible"),
        ("auto", True, ["unsloth"], {}, 8, "transformers", "several processes train, by DDP, FSDP or ZeRO"),
        ("auto", True, ["unsloth"], GPU, 1, "unsloth", "installed, and a GPU is there"),
        ("auto", True, ["unsloth"], HALF, 1, None, "importing it failed .* has rewritten TRL"),
        ("auto", True, ["unsloth"], NONE, 1, "transformers", "importing it failed ("),
        ("auto", True, ["unsloth"], module("trl"), 1, "transformers", "trl was imported first"),
        ("unsloth", True, ["unsloth"], GPU, 1, "unsloth", "asked for"),
        ("unsloth", True, ["unsloth"], NONE, 1, None, r"importing it failed .*\nReinstall it: pip install"),
        ("unsloth", True, ["unsloth"], module("trl"), 1, None, r"trl was imported first.\nStart a new process"),
        ("unsloth", False, [], {}, 1, None, r"Unsloth is not installed.\nInstall it: pip install -e '\.\[gpu\]'"),
    ],
)
def test_the_backend_and_why(machine, monkeypatch, wanted, gpu, packages, modules, world, chosen, why):
    machine(gpu, packages)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for name in ("trl", "unsloth"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, made in modules.items():
        monkeypatch.setitem(sys.modules, name, made)
    if chosen is None:
        with pytest.raises(ValueError, match=why):
            start_backend(wanted)
    else:
        found = start_backend(wanted)
        assert found.name == chosen
        assert found.why.startswith(why)


def test_another_version_of_unsloth_is_not_taken(machine, monkeypatch):
    machine(gpu=True, packages=["unsloth"])
    monkeypatch.delitem(sys.modules, "trl", raising=False)
    monkeypatch.setattr(backend, "_version", VERSIONS.get)
    assert start_backend("auto").why == "unsloth_zoo is 2026.10.7, and 2026.10.9 is what was tested"
    with pytest.raises(ValueError, match=r"pip install unsloth==2026.10.9 unsloth_zoo==2026.10.9"):
        start_backend("unsloth")


@pytest.mark.parametrize(("command", "wanted"), [("train", ["unsloth"]), ("evaluate", []), ("plan", [])])
def test_unsloth_is_imported_for_a_training_alone(monkeypatch, command, wanted):
    imported = []
    monkeypatch.setattr(backend, "import_early", imported.append)
    with pytest.raises(SystemExit):
        cli.main([command, "--backend", "unsloth", "--max_steps", "0"])
    assert imported == wanted


def test_a_run_in_its_usual_place_has_its_own_backend(monkeypatch, tmp_path):
    monkeypatch.setattr(opening, "runs_folder", lambda: tmp_path)
    assert cli._backend(None, None) == "transformers"
    (tmp_path / "sandbox").mkdir()
    config = {"profile": "sandbox", "settings": {"backend": "unsloth"}}
    (tmp_path / "sandbox" / "config.json").write_text(json.dumps(config))
    assert cli._backend(None, None) == cli._backend("sandbox", None) == "unsloth"


def test_unsloth_writes_its_code_apart(monkeypatch):
    monkeypatch.delenv("UNSLOTH_COMPILE_LOCATION", raising=False)
    monkeypatch.setitem(sys.modules, "unsloth", None)
    backend._import_error()
    place = Path(os.environ["UNSLOTH_COMPILE_LOCATION"])
    assert place.is_dir()
    assert not place.is_relative_to(Path.cwd())
    backend._import_error()
    assert os.environ["UNSLOTH_COMPILE_LOCATION"] == str(place)


@pytest.mark.parametrize(
    ("targets", "in_4bit", "message"),
    [
        (["q_proj", "lm_head"], False, r"lora_targets=lm_head: Unsloth would train the whole layer.*\nLeave it out"),
        (["q_proj"], True, r"has loaded me/it in 16 bits.*\nReinstall it"),
    ],
)
def test_what_unsloth_would_do_otherwise_in_silence_is_refused(monkeypatch, targets, in_4bit, message):
    fast = SimpleNamespace(from_pretrained=lambda name, **options: (SimpleNamespace(), None))
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=fast))
    with pytest.raises(ValueError, match=message):
        loading.load_by_unsloth("me/it", PolicySettings(load_in_4bit=in_4bit, lora_targets=targets), True, 0)


def test_unsloth_is_asked_for_the_same_policy(monkeypatch):
    asked = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(name, **options):
            asked.update(options, name=name)
            return SimpleNamespace(is_loaded_in_4bit=True), "tokenizer"

        @staticmethod
        def get_peft_model(model, **options):
            asked.update(options)
            return SimpleNamespace(generation_config=SimpleNamespace(max_length=512))

    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=FastLanguageModel))
    wanted = PolicySettings(load_in_4bit=True, lora_rank=16, lora_alpha=32)
    policy = loading.load_by_unsloth("me/it", wanted, True, 7)
    assert policy.generation_config.max_length is None, "else each rollout warns of two lengths"
    assert asked["name"] == "me/it"
    assert asked["use_exact_model_name"], "not Unsloth's own quantised copy: the adapter belongs to the policy named"
    assert (asked["r"], asked["lora_alpha"], asked["random_state"]) == (16, 32, 7)
    assert set(asked["target_modules"]) == set(LORA_TARGETS)
    assert asked["load_in_4bit"]
    assert asked["trust_remote_code"] is False
    assert asked["use_safetensors"] is True
    assert asked["use_gradient_checkpointing"] == "unsloth"


# --- the hardware ---------------------------------------------------------------------------------------------------


FOUR, EIGHT, VLLM = {"load_in_4bit": True, "optim": "adamw_torch"}, {"optim": "adamw_8bit"}, {"use_vllm": True}


@pytest.mark.parametrize(
    ("gpu", "packages", "changes", "message"),
    [
        (False, ["bitsandbytes"], FOUR, "load_in_4bit=True needs an NVIDIA GPU.*set load_in_4bit to False"),
        (True, [], FOUR, r"load_in_4bit=True needs bitsandbytes: pip install -e '.\[gpu\]'"),
        (False, ["bitsandbytes"], EIGHT, "optim=adamw_8bit needs an NVIDIA GPU.*adamw_torch"),
        (True, [], EIGHT, "optim=adamw_8bit needs bitsandbytes"),
        (False, [], {"report_to": "wandb"}, "report_to=wandb needs wandb: pip install wandb"),
        (False, ["vllm"], VLLM, "use_vllm=True needs an NVIDIA GPU"),
        (True, [], VLLM, r"use_vllm=True needs vllm: pip install -e '.\[vllm\]'"),
        (False, ["vllm"], {"eval_engine": "vllm"}, "eval_engine=vllm needs an NVIDIA GPU"),
        (True, ["vllm"], VLLM | {"lora_targets": ["lm_head"]}, r"lora_targets=lm_head: vLLM takes no adapter there"),
        (True, [], {"model_name": "google/gemma-3-4b-it"}, r"overflows in float16.*\nTake another model_name"),
    ],
)
def test_what_is_missing_is_said(machine, monkeypatch, gpu, packages, changes, message):
    machine(gpu, packages)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    settings = settings_of("paper-qwen3b", {"optim": "adamw_torch"} | changes)
    with pytest.raises(ValueError, match=message) as caught:
        loading.check_hardware(settings, evaluation=True)
    assert str(caught.value).count("\n") < 3
    loading.check_hardware(settings_of("sandbox"), evaluation=True)


@pytest.mark.parametrize(
    ("engine", "stage", "changes", "message"),
    [
        ("FSDP", "", EIGHT, r"weights that FSDP has sharded.*\nSet optim to adamw_torch_fused"),
        ("FSDP", "", FOUR, "cannot be sharded over GPUs by FSDP: set load_in_4bit to False"),
        ("DEEPSPEED", "3", FOUR | EIGHT, "cannot be sharded over GPUs by ZeRO 3"),
    ],
)
def test_what_cannot_be_cut_over_gpus_is_refused(machine, monkeypatch, engine, stage, changes, message):
    machine(True, ["bitsandbytes"])
    loading.check_hardware(settings := settings_of("paper-qwen3b", changes))  # in one process
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    with pytest.raises(ValueError, match=message):
        loading.check_hardware(settings)
    loading.check_hardware(settings_of("paper-qwen3b", {"optim": "adamw_torch_fused"}))


def test_a_gpu_that_torch_cannot_see_is_spoken_of(machine, monkeypatch):
    machine(gpu=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert loading.explain_invisible_gpu() == ""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.warns(UserWarning, match=r"torch .* sees no GPU"):
        assert resolve_profile("auto") == "sandbox"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert loading.explain_invisible_gpu() == ""  # hidden on purpose


def test_a_paper_profile_without_a_gpu_is_refused_before_anything_is_loaded(machine, tmp_path, monkeypatch):
    machine()
    monkeypatch.setattr(loading, "load_policy", lambda *_, **__: pytest.fail("loaded"))
    run = open_run("paper-qwen3b", tmp_path / "run")
    with pytest.raises(ValueError, match="optim=adamw_8bit needs an NVIDIA GPU"):
        run.train("grpo")


def test_a_t4_computes_in_float16_although_it_can_emulate_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setenv("LOCAL_RANK", "3")  # one of several processes
    assert loading.device() == torch.device("cuda", 3)
    assert loading.compute_dtype() == torch.float16
    from amir_grpo.runs import training

    asked = {}
    monkeypatch.setattr(training.StudyConfig, "__init__", lambda config, **values: asked.update(values))
    training.trainer_config("grpo", settings_of("colab-t4"), "out")
    assert asked["fp16"]
    assert not asked["bf16"]


def test_apples_gpu_is_taken_in_float32(monkeypatch):
    """A stand-in for a Mac: what would be loaded where, and that no float64 is computed there, which it does not have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    loaded = {}

    def load(name, **options):
        loaded.update(options)
        raise OSError("not here")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(OSError, match="not here"):
        loading.load_policy("a policy")
    assert loaded["device_map"] == {"": torch.device("mps")}
    assert loaded["dtype"] == torch.float32
    assert device_for_float64(loading.device()) == torch.device("cpu")
    for other in ({"device": "cpu"}, {"dtype": "float64"}):
        assert loading.device(PolicySettings(**other)) == torch.device("cpu")
    with pytest.raises(ValueError, match="optim=adamw_8bit needs an NVIDIA GPU"):
        loading.check_hardware(settings_of("colab-t4", {"load_in_4bit": False}))


def test_what_float16_trains_is_float32(base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    adapted = get_peft_model(model, loading.lora_config(PolicySettings()))
    for parameter in adapted.parameters():  # as TRL does to the adapters of a 4-bit policy
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    loading.keep_trained_weights_in_float32(adapted)
    kinds = {p.dtype for p in adapted.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.float16}


def test_a_vision_tower_gets_no_adapter():
    tower = torch.nn.ModuleDict({"vision_tower": torch.nn.Linear(2, 2)})
    assert loading.lora_config(PolicySettings(), tower).exclude_modules == r".*vision_tower.*"
    assert loading.lora_config(PolicySettings(), torch.nn.Linear(2, 2)).exclude_modules is None


# --- what an adapter becomes -------------------------------------------------------------------------------------------


def tiny_qwen(folder, dtype=torch.float32, tied=True, width=32):
    """A random policy, saved."""
    shape = {"vocab_size": 200, "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**shape, **heads, tie_word_embeddings=tied, initializer_range=1 / width**0.5)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(dtype).save_pretrained(folder)
    return str(folder)


def computing_in(dtype):
    """Settings of a policy that computes in a dtype as a GPU has it, on the CPU."""
    return PolicySettings(device="cpu").model_copy(update={"dtype": dtype})


def save_adapter(base, folder, size, settings, whole=None):
    """A policy with an adapter whose second matrices are of that size; saved, and as it is trained."""
    config = loading.lora_config(settings)
    config.modules_to_save = whole
    adapted = get_peft_model(loading.load_policy(base, None, settings), config).eval()
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and "lora_A" not in name:
            weight.data += size * torch.randn_like(weight)
    adapted.save_pretrained(folder)
    return adapted


@torch.no_grad()
def logprobs_of(policy, ids):
    """Of each completion, in float32: what the weights are, and not what a pass in 16 bits rounds."""
    logits = policy.float().eval()(input_ids=ids).logits[:, :-1]
    return logits.log_softmax(-1).gather(2, ids[:, 1:, None]).sum((1, 2)).double()


@pytest.mark.parametrize("size", [1e-5, 1e-4, 3e-4, 1e-3])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_keep_what_was_trained(tmp_path, dtype, size):
    """Merged into bfloat16 weights, an update of a training's size is rounded away: 0.2 of it was left at 1e-4."""
    base, ids = tiny_qwen(tmp_path / "base", getattr(torch, dtype), width=256), torch.randint(0, 200, (8, 32))
    in_16, adapter = computing_in(dtype), tmp_path / "adapter"
    trained = save_adapter(base, adapter, size, in_16)
    start = logprobs_of(loading.load_policy(base), ids)
    moved = logprobs_of(trained, ids) - start
    for policy in (loading.load_policy(base, adapter, in_16), loading.merged_policy(base, adapter, in_16)):
        seen = logprobs_of(policy, ids) - start
        assert (seen @ moved) / (moved @ moved) == pytest.approx(1, abs=0.05)
    assert loading.merged_policy(base, adapter, in_16).dtype == torch.float32, "16 bits would round"


def test_policies_in_16_bits_draw_and_are_scored_with_their_adapter_apart(base, tokenizer, tmp_path):
    in_16 = computing_in("bfloat16")
    save_adapter(str(base), tmp_path, 0.1, in_16)
    engine = engines.load_engine("transformers", str(base), tmp_path, in_16)
    assert isinstance(engine.policy, PeftModel)
    ((drawn,),) = engine.generate([engines.Request([5, 6, 7], [1])], 1.0, 1.0, 8)
    (score,) = sampling.sequence_logprobs(engine.policy, tokenizer.pad_token_id, [[5, 6, 7]], [drawn.ids])
    assert score == pytest.approx(sum(drawn.logprobs), abs=0.1)


LAYERS = [([name], None) for name in (*LORA_TARGETS, "lm_head", "embed_tokens")]
LAYERS += [([*LORA_TARGETS, "lm_head", "embed_tokens"], None)]
LAYERS += [(["q_proj"], whole) for whole in (["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"])]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("targets", "whole"), LAYERS, ids=str)
@torch.no_grad()
def test_trained_drawn_evaluated_and_exported_policies_are_one(tmp_path, targets, whole, tied):
    """Also where the adapter is on an output layer that shares the embedding's weights: merging would change both."""
    base, ids = tiny_qwen(tmp_path / "base", tied=tied), torch.randint(0, 200, (2, 16))
    exact = PolicySettings(dtype="float64", device="cpu", lora_targets=targets)
    trained = save_adapter(base, tmp_path / "adapter", 0.3, exact, whole)
    wanted = trained(input_ids=ids).logits
    assert (wanted - loading.load_policy(base, None, exact)(input_ids=ids).logits).abs().max() > 0.01
    with merged_adapters(trained):
        torch.testing.assert_close(trained(input_ids=ids).logits, wanted, rtol=0, atol=1e-12)
    evaluated = loading.load_policy(base, tmp_path / "adapter", exact)
    torch.testing.assert_close(evaluated(input_ids=ids).logits, wanted, rtol=0, atol=1e-12)
    loading.merged_policy(base, tmp_path / "adapter").save_pretrained(tmp_path / "whole")
    exported = loading.load_policy(str(tmp_path / "whole"), None, exact)
    torch.testing.assert_close(exported(input_ids=ids).logits, wanted, rtol=0, atol=1e-4)


# --- chat templates ----------------------------------------------------------------------------------------------------

_TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
_ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "gemma": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + _ALTERNATE
    + _TURNS,
    "mistral": _ALTERNATE + _TURNS,
    "silent": "{% for m in messages %}{% if m['role'] in ('user', 'assistant') %}"
    + _TURNS[len("{% for m in messages %}") :].replace("{% endfor %}", "{% endif %}{% endfor %}"),
}


def with_template(base, folder, template):
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_instructions_are_the_users_where_there_is_no_system_role(base, tmp_path, name):
    tokenizer = loading.load_tokenizer(with_template(base, tmp_path / "base", TEMPLATES[name]))
    assert loading.instructions_in(tokenizer) == "user"
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}]
    talk = [*asked, {"role": "assistant", "content": "2"}, {"role": "user", "content": "2+2"}]
    told = tokenizer.apply_chat_template(talk, tokenize=False)
    first, *rest = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in talk[1:])
    assert told == first.replace("1+1", "Be brief.\n\n1+1") + "".join(rest)
    assert tokenizer.apply_chat_template(asked[1:], tokenize=False) == first, "without instructions as it was"
    tokenizer.save_pretrained(tmp_path / "trained")
    again = loading.load_tokenizer(str(tmp_path / "trained"))
    assert again.chat_template == tokenizer.chat_template
    assert loading.instructions_in(again) == "user"


def test_a_template_with_a_system_role_stays_as_it_is(base, tokenizer):
    assert loading.instructions_in(tokenizer) == "system"
    assert tokenizer.chat_template == (base / "chat_template.jinja").read_text()


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages[0]['role'] }}", "{% for m in %}"])
def test_a_template_that_shows_no_instructions_is_refused(base, tmp_path, template):
    name = with_template(base, tmp_path / "base", template)
    with pytest.raises(ValueError, match=r"shows no instructions, neither.*\nCorrect its tokenizer's chat_template"):
        loading.load_tokenizer(name)


# --- trust ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(base, tmp_path):
    """The base policy with its weights in a pickle."""
    folder = tmp_path / "pickled"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_refused_unless_asked_for(pickled, base):
    for profile in PROFILES:
        policy = settings_of(profile).policy
        assert (policy.safetensors_only, policy.trust_remote_code) == (True, False)
    with pytest.raises(OSError, match="cannot be loaded"):
        loading.load_policy(str(pickled))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        there = loading.load_policy(str(pickled), None, PolicySettings(safetensors_only=False))(ids).logits
        torch.testing.assert_close(there, loading.load_policy(str(base))(ids).logits)


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub_is_asked_for_a_policy_only_where_it_answers(monkeypatch, answers):
    """Else its client retries for more than a minute, and says so each time."""
    monkeypatch.setattr(network, "hub_answers", lambda: answers)
    with loading.explain_loading_error("policy", "some/where"):
        assert constants.HF_HUB_OFFLINE is not answers
    assert not constants.HF_HUB_OFFLINE


def test_code_of_a_policy_is_run_only_where_asked_for(base, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(base, folder)
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="cannot be loaded"):
        loading.load_policy(str(folder))
    assert type(loading.load_policy(str(folder), None, PolicySettings(trust_remote_code=True))).__name__ == "Own"


def test_under_unsloth_the_pad_token_is_not_the_end(tokenizer):
    """Its mask of a completion is "not the pad token": the end would be neither rewarded nor unlearnt."""
    loading.check_padding(tokenizer)
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    with pytest.raises(ValueError, match="pad_token of its own, or set backend to transformers"):
        loading.check_padding(same)
