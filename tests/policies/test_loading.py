"""Loading: which backend and why, what the hardware must have, what is trusted, and which numbers are trained."""

import copy
import importlib.util
import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from amir_grpo import cli
from amir_grpo.choices import LORA_TARGETS
from amir_grpo.policies import backend, cards, loading
from amir_grpo.policies.backend import Backend, start_backend
from amir_grpo.policies.source import Loading
from amir_grpo.runs.run import open_run, resolve_profile
from amir_grpo.settings import settings_of
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


@pytest.fixture
def before_trl(monkeypatch):
    monkeypatch.delitem(sys.modules, "trl", raising=False)


# --- the backend ----------------------------------------------------------------------------------------------------


def test_transformers_when_asked_for(machine):
    machine(gpu=True, packages=["unsloth"])
    assert start_backend("transformers") == Backend("transformers", "asked for")


@pytest.mark.parametrize(
    ("gpu", "packages", "world", "why"),
    [
        (True, [], "1", "Unsloth is not installed"),
        (False, ["unsloth"], "1", "no GPU is visible"),
        (True, ["unsloth"], "8", "several processes train, by DDP, FSDP or ZeRO"),
    ],
)
def test_auto_falls_back_and_says_why(machine, before_trl, monkeypatch, gpu, packages, world, why):
    machine(gpu, packages)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert start_backend("auto") == Backend("transformers", why)


def test_auto_takes_unsloth_where_it_runs_and_imports_it(machine, before_trl, monkeypatch):
    machine(gpu=True, packages=["unsloth"])
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    assert start_backend("auto") == Backend("unsloth", "installed, and a GPU is there")


def test_unsloth_that_fails_to_import_is_not_fatal_to_auto(machine, before_trl, monkeypatch):
    machine(gpu=True, packages=["unsloth"])
    monkeypatch.setitem(sys.modules, "unsloth", None)  # importing it raises ImportError
    chosen = start_backend("auto")
    assert chosen.name == "transformers"
    assert chosen.why.startswith("importing it failed (")
    with pytest.raises(ValueError, match=r"cannot be used: importing it failed .*\nReinstall it: pip install"):
        start_backend("unsloth")


def test_unsloth_asked_for_and_missing_names_the_install_command(machine):
    machine()
    with pytest.raises(ValueError, match=r"Unsloth is not installed.\nInstall it: pip install -e '\.\[gpu\]'"):
        start_backend("unsloth")


def test_unsloth_after_trl_is_refused(machine, monkeypatch):
    import trl  # noqa: F401

    machine(gpu=True, packages=["unsloth"])
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    assert start_backend("auto") == Backend("transformers", "trl was imported first")
    with pytest.raises(ValueError, match="restart the kernel"):
        start_backend("unsloth")


def test_another_version_of_unsloth_is_not_taken(machine, before_trl, monkeypatch):
    machine(gpu=True, packages=["unsloth"])
    monkeypatch.setattr(backend, "_version", lambda package: "2026.10.7" if package == "unsloth_zoo" else "2026.10.9")
    assert start_backend("auto") == Backend(
        "transformers", "unsloth_zoo is 2026.10.7, and 2026.10.9 is what was tested"
    )
    with pytest.raises(ValueError, match=r"pip install unsloth==2026.10.9 unsloth_zoo==2026.10.9"):
        start_backend("unsloth")


@pytest.mark.parametrize(("command", "wanted"), [("train", ["unsloth"]), ("evaluate", []), ("plan", [])])
def test_unsloth_is_imported_for_a_training_alone(monkeypatch, command, wanted):
    imported = []
    monkeypatch.setattr(cli, "import_early", imported.append)
    with pytest.raises(SystemExit):
        cli.main([command, "--backend", "unsloth", "--no_such_option", "1"])
    assert imported == wanted


@pytest.mark.parametrize(
    ("name", "memory", "like"),
    [
        ("Tesla T4", 14.6, "T4"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", 79.2, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 79.2, "H100"),
        ("NVIDIA L40S", 44.4, "A100-40GB"),  # by its memory, and not an L4
    ],
)
def test_a_card_is_known_by_its_name_or_else_by_its_memory(machine, monkeypatch, name, memory, like):
    machine(gpu=True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory * cards.GIB)
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    here = cards.card_here()
    assert (here.name, here.memory) == (name, pytest.approx(memory))
    assert (here.tflops, here.bandwidth) == (cards.CARDS[like].tflops, cards.CARDS[like].bandwidth)


def test_the_tested_version_of_unsloth_is_the_one_that_is_installed():
    import tomllib
    from pathlib import Path

    root = Path(__file__).parents[2]
    wanted = {f"{package}=={backend.UNSLOTH_VERSION}" for package in ("unsloth", "unsloth_zoo")}
    assert wanted <= set(
        tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    )
    assert wanted <= set((root / ".ci" / "unsloth.txt").read_text().split())


def test_transformers_after_unsloth_is_refused(machine, monkeypatch):
    """Unsloth has then taken from TRL's trainer what puts an adapter on the policy."""
    machine(gpu=True, packages=["unsloth"])
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    with pytest.raises(ValueError, match=r"has imported Unsloth, which has rewritten TRL.\nRestart the kernel"):
        start_backend("transformers")
    on_cpu = ModuleType("unsloth")
    on_cpu.DEVICE_TYPE = "cpu"  # its backend for machines without a GPU leaves TRL alone
    monkeypatch.setitem(sys.modules, "unsloth", on_cpu)
    assert start_backend("transformers") == Backend("transformers", "asked for")


def test_unsloth_is_asked_for_the_same_policy(monkeypatch):
    asked = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(name, **options):
            asked.update(options, name=name)
            return "policy", "tokenizer"

        @staticmethod
        def get_peft_model(model, **options):
            asked.update(options)
            return f"adapted {model}"

    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=FastLanguageModel))
    lora = loading.lora_config(16, 32)
    assert loading.load_by_unsloth("me/it", Loading(in_4bit=True), lora, 1024, True, 7) == "adapted policy"
    assert asked["name"] == "me/it"
    assert asked["use_exact_model_name"], "not Unsloth's own quantised copy: the adapter belongs to the policy named"
    assert (asked["r"], asked["lora_alpha"], asked["random_state"]) == (16, 32, 7)
    assert set(asked["target_modules"]) == set(LORA_TARGETS)
    assert asked["load_in_4bit"]
    assert asked["trust_remote_code"] is False
    assert asked["use_safetensors"] is True
    assert asked["use_gradient_checkpointing"] == "unsloth"


# --- the hardware ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "packages", "arguments", "message"),
    [
        (
            False,
            ["bitsandbytes"],
            (True, "adamw_torch"),
            "load_in_4bit=True needs an NVIDIA GPU.*set load_in_4bit to False",
        ),
        (True, [], (True, "adamw_torch"), r"load_in_4bit=True needs bitsandbytes: pip install -e '.\[gpu\]'"),
        (False, ["bitsandbytes"], (False, "adamw_8bit"), "optim=adamw_8bit needs an NVIDIA GPU.*adamw_torch"),
        (True, [], (False, "adamw_8bit"), "optim=adamw_8bit needs bitsandbytes"),
        (False, [], (False, "adamw_torch", "wandb"), "report_to=wandb needs wandb: pip install wandb"),
        (False, ["vllm"], (False, "adamw_torch", "none", True), "use_vllm=True needs an NVIDIA GPU"),
        (True, [], (False, "adamw_torch", "none", True), r"use_vllm=True needs vllm: pip install -e '.\[vllm\]'"),
    ],
)
def test_what_is_missing_is_said_in_a_line(machine, gpu, packages, arguments, message):
    machine(gpu, packages)
    with pytest.raises(ValueError, match=message) as caught:
        loading.check_hardware(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("engine", "stage", "arguments", "message"),
    [
        ("FSDP", "", (False, "adamw_8bit"), r"weights that FSDP has sharded.*\nSet optim to adamw_torch_fused"),
        ("FSDP", "", (True, "adamw_torch_fused"), "cannot be sharded over GPUs by FSDP: set load_in_4bit to False"),
        ("DEEPSPEED", "3", (True, "adamw_8bit"), "cannot be sharded over GPUs by ZeRO 3"),
    ],
)
def test_what_cannot_be_cut_over_gpus_is_refused(monkeypatch, engine, stage, arguments, message):
    loading.check_sharding(*arguments)  # in one process
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    with pytest.raises(ValueError, match=message):
        loading.check_sharding(*arguments)
    loading.check_sharding(False, "adamw_torch_fused")


def test_a_gpu_that_torch_cannot_see_is_spoken_of(machine, monkeypatch):
    machine(gpu=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert loading.explain_invisible_gpu() == ""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.warns(UserWarning, match=r"torch .* sees no GPU"):
        assert resolve_profile("auto") == "sandbox"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert loading.explain_invisible_gpu() == ""  # hidden on purpose


def test_nothing_is_asked_of_who_wants_nothing(machine):
    machine()
    loading.check_hardware(False, "adamw_torch")


def test_a_paper_profile_without_a_gpu_is_refused_before_anything_is_loaded(machine, tmp_path, monkeypatch):
    machine()
    monkeypatch.setattr(loading, "load_policy", lambda *_, **__: pytest.fail("loaded"))
    run = open_run("paper-qwen3b", tmp_path / "run")
    with pytest.raises(ValueError, match="optim=adamw_8bit needs an NVIDIA GPU"):
        run.train("grpo")


def test_a_t4_computes_in_float16_although_it_can_emulate_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert loading.compute_dtype() == torch.float16
    from amir_grpo.runs import trl_config

    asked = {}
    monkeypatch.setattr(
        trl_config, "_BaselineConfig", lambda **values: asked.update(values) or SimpleNamespace(n_gpu=1)
    )
    trl_config.trainer_config("grpo", settings_of("colab-t4"), "out")
    assert asked["fp16"]
    assert not asked["bf16"]


def test_what_float16_trains_is_float32_and_a_loss_scaler_works(base):
    from peft import get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    adapted = get_peft_model(model, loading.lora_config(4, 4))
    for parameter in adapted.parameters():  # as TRL does to the adapters of a 4-bit policy
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    loading.keep_trained_weights_in_float32(adapted)
    kinds = {p.dtype for p in adapted.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.float16}

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    before = [p.detach().clone() for p in trained]
    with torch.autocast("cpu", torch.float16):
        loss = adapted(torch.arange(5, 15)[None]).logits.float().logsumexp(-1).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True)), "the step was not skipped"


def test_each_of_several_processes_has_its_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert loading.device() == torch.device("cuda", 3)


def test_a_vision_tower_gets_no_adapter():
    tower = torch.nn.ModuleDict({"vision_tower": torch.nn.Linear(2, 2)})
    assert loading.lora_config(4, 4, policy=tower).exclude_modules == r".*vision_tower.*"
    assert loading.lora_config(4, 4, policy=torch.nn.Linear(2, 2)).exclude_modules is None


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
    with pytest.raises(OSError, match="cannot be loaded"):
        loading.load_policy(str(pickled))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        there = loading.load_policy(str(pickled), loading=Loading(safetensors_only=False))(ids).logits
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
    assert type(loading.load_policy(str(folder), loading=Loading(trust_remote_code=True))).__name__ == "Own"


def test_trust_is_off_in_every_profile():
    for name in ("sandbox", "colab-t4", "paper-qwen7b"):
        settings = settings_of(name)
        assert not settings.trust_remote_code
        assert settings.safetensors_only


def test_under_unsloth_the_pad_token_is_not_the_end(tokenizer):
    """Its mask of a completion is "not the pad token": the end would be neither rewarded nor unlearnt."""
    loading.check_padding(tokenizer)
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    with pytest.raises(ValueError, match="pad_token of its own, or set backend to transformers"):
        loading.check_padding(same)
