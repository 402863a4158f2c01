"""Load a policy and its tokenizer: with transformers and PEFT, or with Unsloth for training; in 4 bits on request."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from amir_grpo.policies.float64 import compute_in_float64
from amir_grpo.policies.source import ADAPTER_FILES, EMBEDDINGS
from amir_grpo.settings import PolicySettings, RunSettings
from amir_grpo.system.files import install_command
from amir_grpo.system.network import hub_or_cache
from amir_grpo.system.progress import quiet

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Prepended to a chat template that takes no system message, which then becomes the start of the first user message.
_FOLD = (
    "{%- if messages[1:] and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' -%}"
    "{%- set told = messages[0]['content'] + '\\n\\n' + messages[1]['content'] -%}"
    "{%- set messages = [{'role': 'user', 'content': told}] + messages[2:] -%}"
    "{%- endif -%}"
)


@contextmanager
def explain_loading_error(what: str, name: str) -> Iterator[None]:
    """Turn the many errors of loading into an OSError that says what could not be loaded, and how to fix it.

    Without a network, the error comes within seconds.
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


def device(settings: PolicySettings = PolicySettings()) -> torch.device:
    """Return the device for policies: this process's GPU (number LOCAL_RANK, or the first), Apple's, or the CPU."""
    if settings.device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    # Apple's GPU has no float64
    apple = settings.device != "cpu" and settings.dtype == "auto" and torch.backends.mps.is_available()
    return torch.device("mps" if apple else "cpu")


def compute_dtype(settings: PolicySettings = PolicySettings()) -> torch.dtype:
    """Return the precision to compute in: for auto, bfloat16 (float16 if unsupported) on NVIDIA GPUs, else float32."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    if device(settings).type != "cuda":
        return torch.float32
    # a T4 reports bfloat16 as supported, but emulates it
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def check_hardware(settings: RunSettings, evaluation: bool = False) -> None:
    """Check, before anything is loaded, the hardware, packages and settings that a training (and evaluation) requires.

    Raises:
        ValueError: If one is missing, or two conflict; the message gives the install command or the setting to change.
    """
    policy, train = settings.policy, settings.train
    by_vllm = evaluation and settings.evaluation.eval_engine == "vllm"
    if policy.load_in_4bit:
        _need("load_in_4bit=True", "bitsandbytes", "gpu", "load_in_4bit to False")
    if "8bit" in train.optim:
        _need(f"optim={train.optim}", "bitsandbytes", "gpu", "optim to adamw_torch")
    if train.use_vllm:
        _need("use_vllm=True", "vllm", "vllm", "use_vllm to False")
    if by_vllm:
        _need("eval_engine=vllm", "vllm", "vllm", "eval_engine to transformers")
    if train.report_to != "none" and importlib.util.find_spec(train.report_to) is None:
        raise ValueError(
            f"report_to={train.report_to} needs {train.report_to}: pip install {train.report_to}. "
            "Or set report_to to none."
        )
    _check_sharding(policy.load_in_4bit, train.optim)
    whole = [name for name in policy.lora_targets if name in EMBEDDINGS]
    if whole and (train.use_vllm or by_vllm):
        raise ValueError(
            f"lora_targets={','.join(whole)}: vLLM takes no adapter there.\n"
            "Leave it out of lora_targets, or draw by transformers: use_vllm to False, eval_engine to transformers."
        )
    if "gemma-3" in policy.model_name.lower() and compute_dtype(policy) == torch.float16:
        raise ValueError(
            f"{policy.model_name} overflows in float16, and this GPU has no bfloat16.\n"
            "Take another model_name (the profile colab-t4 is made for such a card), or a newer GPU."
        )


def _need(what: str, package: str, extra: str, instead: str) -> None:
    if device().type != "cuda":
        raise ValueError(
            f"{what} needs an NVIDIA GPU, and none is visible: set {instead}.\n{explain_invisible_gpu()}".strip()
        )
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{what} needs {package}: {install_command(extra)}. Or set {instead}.")


def _check_sharding(load_in_4bit: bool, optim: str) -> None:
    """Refuse settings that cannot be sharded over several GPUs in the way that `accelerate launch` has chosen."""
    fsdp, deepspeed = _sharded_by()
    zero3 = deepspeed and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
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


def is_sharded() -> bool:
    """Return whether FSDP or DeepSpeed places the weights, according to `accelerate launch`."""
    return any(_sharded_by())


def _sharded_by() -> tuple[bool, bool]:
    """Return whether FSDP is in use, and whether DeepSpeed is."""
    fsdp, deepspeed = (os.environ.get(f"ACCELERATE_USE_{name}", "") for name in ("FSDP", "DEEPSPEED"))
    return fsdp.lower() == "true", deepspeed.lower() == "true"


def explain_invisible_gpu() -> str:
    """Return advice if this machine has an NVIDIA GPU that torch does not see, else an empty string."""
    if torch.cuda.is_available() or shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ""
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs only"
    return (
        f"This machine has nvidia-smi, but torch {torch.__version__} sees no GPU, and {built}: the CPU is used. "
        "Install a torch that fits the driver (the first lines of nvidia-smi name its CUDA version)."
    )


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hub id or folder, with the padding on the left that generation requires.

    If its chat template refuses or drops a system message, the template is changed to put the instructions before the
    question in the user's message. `instructions_in` reports this, and the tokenizer is saved with the change.

    Raises:
        OSError: If it cannot be loaded.
        ValueError: If it has no chat template that shows the instructions and the question of a problem.
    """
    from transformers import AutoTokenizer

    with explain_loading_error("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=trust_remote_code)
    if tokenizer.chat_template is None:
        raise ValueError(f"The tokenizer of {name} has no chat template: use an instruction-tuned policy.")
    if not _tells_instructions(tokenizer):
        tokenizer.chat_template = _FOLD + tokenizer.get_chat_template()
        if not _tells_instructions(tokenizer):
            raise ValueError(
                f"The chat template of {name} shows no instructions, neither from the system nor from the user.\n"
                "Correct its tokenizer's chat_template, or use another policy."
            )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def instructions_in(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the role of the message with the instructions: system, or user if there is no system role."""
    return "user" if tokenizer.get_chat_template().startswith(_FOLD) else "system"


def _tells_instructions(tokenizer: PreTrainedTokenizerBase) -> bool:
    parts = {"system": "instructions 271", "user": "question 828"}
    messages = [{"role": role, "content": content} for role, content in parts.items()]
    try:
        told = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:  # a template is arbitrary code, which can fail in many ways
        return False
    return all(content in told for content in parts.values())


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if completions end with the pad token, which Unsloth's trainer would leave out of the loss."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"backend=unsloth would not train the end token {tokenizer.eos_token!r}, since it is also the pad token.\n"
            "Give the policy's tokenizer a pad_token of its own, or set backend to transformers."
        )


def load_policy(
    name: str, adapter: Path | None = None, settings: PolicySettings = PolicySettings()
) -> PreTrainedModel:
    """Load the policy of a Hub id or folder, with a trained LoRA adapter on top if one is given.

    In float32 and float64 the adapter is merged into the weights. In 16 or 4 bits it stays separate: its changes are
    less than half the spacing of bfloat16 numbers, so merging would round most of them away.

    Args:
        name: Hub id or folder of the base policy.
        adapter: Folder of a PEFT adapter, saved by either backend.
        settings: Quantisation, precision, device, and what is trusted.

    Raises:
        ValueError: If 4 bits are requested without a GPU or bitsandbytes, or float64 for an unsupported architecture.
        FileNotFoundError: If the adapter folder holds no adapter.
        OSError: If the policy or its adapter cannot be loaded, for example an adapter of another base.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = None
    if settings.load_in_4bit:
        _need("load_in_4bit=True", "bitsandbytes", "gpu", "load_in_4bit to False")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute_dtype(settings),
            bnb_4bit_use_double_quant=True,
        )
    wanted = ADAPTER_FILES if adapter is not None else ()
    for part in wanted if settings.safetensors_only else wanted[:1]:
        if not (Path(adapter) / part).is_file():  # without safetensors, PEFT would load a pickle
            raise FileNotFoundError(f"{adapter} holds no {part}: it is not a folder that training has saved.")
    with quiet(), explain_loading_error("policy", name):
        policy = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=compute_dtype(settings),
            device_map=None if is_sharded() else {"": device(settings)},
            quantization_config=quantization,
            use_safetensors=settings.safetensors_only or None,
            trust_remote_code=settings.trust_remote_code,
        )
    if settings.dtype == "float64":
        compute_in_float64(policy)
    if adapter is not None:
        from peft import PeftModel

        with explain_loading_error("adapter", str(adapter)):
            policy = PeftModel.from_pretrained(policy, str(adapter), use_safetensors=settings.safetensors_only or None)
        exact = policy.dtype in (torch.float32, torch.float64)
        if exact and not settings.load_in_4bit:  # one matrix product instead of three
            _untie(policy.get_base_model())
            policy = policy.merge_and_unload()
    return policy


def merged_policy(name: str, adapter: Path, settings: PolicySettings = PolicySettings()) -> PreTrainedModel:
    """Load a policy with its adapter merged, for an export: like `load_policy`, but in float32 and on the CPU."""
    exact = {"load_in_4bit": False, "dtype": "float32", "device": "cpu"}
    return load_policy(name, adapter, settings.model_copy(update=exact))


def _untie(policy: PreTrainedModel) -> None:
    """Give the output layer its own weights if it shares the embedding's and an adapter changes one of the two."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    layers = [policy.get_output_embeddings(), policy.get_input_embeddings()]
    if any(isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) for layer in layers):
        inner = (getattr(layer, "original_module", getattr(layer, "base_layer", layer)) for layer in layers)
        head, embedding = inner
        if head.weight is embedding.weight:
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        policy.config.tie_word_embeddings = policy.config.get_text_config().tie_word_embeddings = False


def load_by_unsloth(name: str, settings: PolicySettings, gradient_checkpointing: bool, seed: int) -> PeftModel:
    """Load a policy with a fresh LoRA adapter, drawn from `seed`, using Unsloth, which `start_backend` has imported.

    Raises:
        OSError: If the policy cannot be loaded.
        ValueError: If Unsloth would not do what the settings ask for.
    """
    from unsloth import FastLanguageModel

    if whole := [name for name in settings.lora_targets if name in EMBEDDINGS]:
        raise ValueError(
            f"lora_targets={','.join(whole)}: Unsloth would train the whole layer there, with no adapter.\n"
            "Leave it out of lora_targets, or set backend to transformers."
        )
    checkpointing = "unsloth" if gradient_checkpointing else False
    with quiet(), explain_loading_error("policy", name):
        policy, _ = FastLanguageModel.from_pretrained(
            name,
            max_seq_length=settings.max_seq_length,
            dtype=compute_dtype(settings),
            load_in_4bit=settings.load_in_4bit,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=settings.safetensors_only or None,
            use_gradient_checkpointing=checkpointing,
            use_exact_model_name=True,
        )
    if settings.load_in_4bit and not getattr(policy, "is_loaded_in_4bit", False):
        raise ValueError(
            f"load_in_4bit=True: Unsloth has loaded {name} in 16 bits, since bitsandbytes does not work here.\n"
            "Reinstall it (python -m bitsandbytes says what is wrong), or set load_in_4bit to False."
        )
    policy = FastLanguageModel.get_peft_model(
        policy,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=sorted(settings.lora_targets),
        use_gradient_checkpointing=checkpointing,
        random_state=seed,
        max_seq_length=settings.max_seq_length,
    )
    policy.generation_config.max_length = None  # Unsloth sets it; every rollout would warn about two lengths
    return policy


def keep_trained_weights_in_float32(policy: torch.nn.Module) -> None:
    """Cast the trained weights to float32, including those that TRL has made bfloat16, as it does for a 4-bit policy.

    In bfloat16 small steps would be rounded away, and float16's loss scaler cannot unscale gradients in 16 bits.
    """
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def lora_config(settings: PolicySettings, policy: torch.nn.Module | None = None) -> LoraConfig:
    """Configure LoRA without dropout, as published; a vision tower of `policy` gets none, since no image is shown."""
    from peft import LoraConfig

    sees = policy is not None and any("vision_tower" in name for name, _ in policy.named_modules())
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(settings.lora_targets),
        exclude_modules=r".*vision_tower.*" if sees else None,
        task_type="CAUSAL_LM",
    )
