"""Load a policy and its tokenizer: by transformers with PEFT, or by Unsloth for training; in 4 bits where asked for."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from amir_grpo.choices import LORA_TARGETS
from amir_grpo.policies.float64 import compute_in_float64
from amir_grpo.policies.source import ADAPTER_FILES, Loading
from amir_grpo.system.network import hub_or_cache
from amir_grpo.system.progress import quiet
from amir_grpo.system.shipped import install_command

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def explain_loading_error(what: str, name: str) -> Iterator[None]:
    """Turn the many errors of loading into one that names the policy and the way out, within seconds without a network.

    Args:
        what: What is loaded, for the message: "policy", "tokenizer".
        name: Hub id or folder.

    Raises:
        OSError: If the block fails to load.
    """
    try:
        with nullcontext() if Path(name).exists() else hub_or_cache():
            yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        out = (
            "Give a folder that transformers or PEFT has saved: configuration, safetensors and tokenizer."
            if Path(name).exists()
            else "Check the name, the network and the login (hf auth login); without a network give a folder."
        )
        raise OSError(f"The {what} of {name} cannot be loaded: {cause}\n{out}") from error


def free_memory() -> None:
    """Collect unreachable cycles, and return PyTorch's cached blocks to the GPU, for vLLM and other processes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device(loading: Loading = Loading()) -> torch.device:
    """Where policies run: this process's GPU, the first unless it is one of several, else the CPU."""
    if loading.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def compute_dtype(loading: Loading = Loading()) -> torch.dtype:
    """The dtype that is asked for; for auto float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    if loading.dtype != "auto":
        return getattr(torch, loading.dtype)
    if device(loading).type == "cpu":
        return torch.float32
    # a T4 reports bfloat16 as supported, but emulates it
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def check_hardware(
    load_in_4bit: bool, optim: str, report_to: str = "none", use_vllm: bool = False, eval_engine: str = "transformers"
) -> None:
    """Check, before anything is loaded, that what the settings ask for is installed and has the GPU that it needs.

    Raises:
        ValueError: If not; the message gives the install command or the setting to change.
    """
    for name, value, package, extra, instead in (
        ("load_in_4bit", load_in_4bit, load_in_4bit and "bitsandbytes", "gpu", "False"),
        ("optim", optim, "8bit" in optim and "bitsandbytes", "gpu", "adamw_torch"),
        ("use_vllm", use_vllm, use_vllm and "vllm", "vllm", "False"),
        ("eval_engine", eval_engine, eval_engine == "vllm" and "vllm", "vllm", "transformers"),
    ):
        if package and device().type != "cuda":
            raise ValueError(f"{name}={value} needs an NVIDIA GPU, and none is visible: set {name} to {instead}.")
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(f"{name}={value} needs {package}: {install_command(extra)}. Or set {name} to {instead}.")
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise ValueError(
            f"report_to={report_to} needs {report_to}: pip install {report_to}. Or set report_to to none."
        )


def check_sharding(load_in_4bit: bool, optim: str) -> None:
    """Refuse what cannot be sharded over several GPUs, as `accelerate launch` says that it will be.

    Raises:
        ValueError: If so, with the setting to change.
    """
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    zero3 = _by_deepspeed() and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    if fsdp and "8bit" in optim:
        raise ValueError(
            f"optim={optim} cannot update weights that FSDP has sharded: bitsandbytes does not support it.\n"
            "Set optim to adamw_torch_fused."
        )
    if load_in_4bit and (fsdp or zero3):
        raise ValueError(
            f"load_in_4bit=True cannot be sharded over GPUs by {'FSDP' if fsdp else 'ZeRO 3'}: set load_in_4bit to False, "
            "or use configs/accelerate/ddp.yaml."
        )


def explain_invisible_gpu() -> str:
    """What to do where this machine has an NVIDIA GPU that torch does not see; empty where all is well."""
    if torch.cuda.is_available() or shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ""
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs alone"
    return (
        f"This machine has nvidia-smi, but torch {torch.__version__} sees no GPU, and {built}: the CPU is used. "
        "Install a torch that fits the driver (the first lines of nvidia-smi name its CUDA version)."
    )


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Tokenizer of a Hub id or folder, padding on the left as generation needs it.

    Raises:
        OSError: If it cannot be loaded.
        ValueError: If it has no chat template: problems are posed as chat messages.
    """
    from transformers import AutoTokenizer

    with explain_loading_error("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=trust_remote_code)
    if tokenizer.chat_template is None:
        raise ValueError(f"The tokenizer of {name} has no chat template: use an instruction-tuned policy.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse what Unsloth's trainer would take for padding: it finds a completion's end by the pad token alone.

    Raises:
        ValueError: If completions end with the pad token; the end would be left out of the loss.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"backend=unsloth takes the end token {tokenizer.eos_token!r} for padding, since it is the pad token, too, and "
            "would not train the end.\nGive the policy's tokenizer a pad_token of its own, or set backend to transformers."
        )


def load_policy(name: str, adapter: Path | None = None, loading: Loading = Loading()) -> PreTrainedModel:
    """The policy of a Hub id or folder, with a trained LoRA adapter on top where one is given.

    In float32 and float64 the adapter is merged into the weights. In 16 or 4 bits it stays apart: what training has moved
    is less than half a step of bfloat16's grid, and merging would round most of it away.

    Args:
        name: Hub id or folder of the base policy.
        adapter: Folder of a PEFT adapter, saved by either backend.
        loading: In 4 bits or not, what is trusted, in what precision and where.

    Raises:
        ValueError: If 4 bits are asked for without a GPU or bitsandbytes, or float64 of an architecture that cannot.
        FileNotFoundError: If the adapter folder holds no adapter.
        OSError: If the policy or its adapter cannot be loaded, such as an adapter of another base.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = None
    if loading.in_4bit:
        check_hardware(True, "")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute_dtype(loading),
            bnb_4bit_use_double_quant=True,
        )
    wanted = ADAPTER_FILES if adapter is not None else ()
    for part in wanted if loading.safetensors_only else wanted[:1]:
        if not (Path(adapter) / part).is_file():  # PEFT would take a pickle in place of the latter
            raise FileNotFoundError(f"{adapter} holds no {part}: it is not a folder that training has saved.")
    with quiet(), explain_loading_error("policy", name):
        policy = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=compute_dtype(loading),
            device_map=None if is_sharded() else {"": device(loading)},
            quantization_config=quantization,
            use_safetensors=loading.safetensors_only or None,
            trust_remote_code=loading.trust_remote_code,
        )
    if loading.dtype == "float64":
        compute_in_float64(policy)
    if adapter is not None:
        from peft import PeftModel

        with explain_loading_error("adapter", str(adapter)):
            policy = PeftModel.from_pretrained(policy, str(adapter), use_safetensors=loading.safetensors_only or None)
        if policy.dtype in (torch.float32, torch.float64) and not loading.in_4bit:  # one product instead of three
            _untie(policy.get_base_model())
            policy = policy.merge_and_unload()
    return policy


def merged_policy(name: str, adapter: Path, loading: Loading = Loading()) -> PreTrainedModel:
    """The whole policy with its adapter merged, for an export: in float32, on the CPU. Else as `load_policy`."""
    return load_policy(name, adapter, replace(loading, in_4bit=False, dtype="float32", device="cpu"))


def _untie(policy: PreTrainedModel) -> None:
    """Give the output layer weights of its own if it shares the embedding's and an adapter changes one of the two."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    layers = policy.get_output_embeddings(), policy.get_input_embeddings()
    if not any(isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) for layer in layers):
        return
    head, embedding = (
        layer.original_module
        if isinstance(layer, AuxiliaryTrainingWrapper)
        else layer.get_base_layer()
        if isinstance(layer, BaseTunerLayer)
        else layer
        for layer in layers
    )
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    policy.config.tie_word_embeddings = policy.config.get_text_config().tie_word_embeddings = False


def is_sharded() -> bool:
    """Whether FSDP or DeepSpeed place the weights, according to `accelerate launch`."""
    return _by_deepspeed() or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _by_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def load_by_unsloth(
    name: str, loading: Loading, lora: LoraConfig, max_seq_length: int, gradient_checkpointing: bool, seed: int
) -> PeftModel:
    """The policy with a fresh LoRA adapter, from Unsloth's FastLanguageModel; `amir_grpo.policies.backend` has imported it.

    Args:
        name: Hub id or folder of the base policy; Unsloth does not replace it with a copy of its own.
        loading: In 4 bits or not, and what is trusted.
        lora: The adapter's rank, alpha and targets.
        max_seq_length: Longest prompt and completion together, in tokens.
        gradient_checkpointing: Recompute activations, in Unsloth's own way.
        seed: Seed of the adapter's initial weights.

    Raises:
        OSError: If the policy cannot be loaded.
        ValueError: If Unsloth cannot do what is asked for, and would do something else.
    """
    from unsloth import FastLanguageModel

    if whole := sorted({"lm_head", "embed_tokens"} & set(lora.target_modules)):
        raise ValueError(
            f"lora_targets={','.join(whole)}: Unsloth would train the whole layer there, with no adapter.\n"
            "Leave it out of lora_targets, or set backend to transformers."
        )

    checkpointing = "unsloth" if gradient_checkpointing else False
    with quiet(), explain_loading_error("policy", name):
        policy, _ = FastLanguageModel.from_pretrained(
            name,
            max_seq_length=max_seq_length,
            dtype=compute_dtype(loading),
            load_in_4bit=loading.in_4bit,
            trust_remote_code=loading.trust_remote_code,
            use_safetensors=loading.safetensors_only or None,
            use_gradient_checkpointing=checkpointing,
            use_exact_model_name=True,
        )
    if loading.in_4bit and not getattr(policy, "is_loaded_in_4bit", False):
        raise ValueError(
            f"load_in_4bit=True: Unsloth has loaded {name} in 16 bits, since bitsandbytes does not work here.\n"
            "Reinstall it (python -m bitsandbytes says what is wrong), or set load_in_4bit to False."
        )
    return FastLanguageModel.get_peft_model(
        policy,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=sorted(lora.target_modules),
        use_gradient_checkpointing=checkpointing,
        random_state=seed,
        max_seq_length=max_seq_length,
    )


def keep_trained_weights_in_float32(policy: torch.nn.Module) -> None:
    """Cast the trained weights to float32, also where TRL has made them bfloat16, as it does with those of a 4-bit policy.

    In bfloat16, steps at a small learning rate would be rounded away; and where the policy computes in float16, the loss
    scaler cannot unscale gradients in 16 bits.
    """
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def lora_config(
    rank: int, alpha: int, targets: Iterable[str] = LORA_TARGETS, policy: torch.nn.Module | None = None
) -> LoraConfig:
    """LoRA without dropout, as published: by default on all linear projections of attention and MLP.

    Args:
        rank: Rank of the adapter.
        alpha: The adapter's scale is alpha / rank.
        targets: Names of the projections that get an adapter.
        policy: The policy that gets the adapter. A vision tower gets none, since no image is shown.
    """
    from peft import LoraConfig

    sees = policy is not None and any("vision_tower" in name for name, _ in policy.named_modules())
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        exclude_modules=r".*vision_tower.*" if sees else None,
        task_type="CAUSAL_LM",
    )
