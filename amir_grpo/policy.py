"""Load a policy and its tokenizer: transformers, with PEFT adapters, in 4 bits where asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars for weights, which say nothing of interest within a run."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _said(what: str, name: str) -> Iterator[None]:
    """Turns the many errors of loading into one that names the policy and the way out.

    Raises:
        OSError: If the block fails to load.
    """
    try:
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


def device() -> torch.device:
    """Where policies run: the first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype() -> torch.dtype:
    """float32 on a CPU; bfloat16 on a GPU that has it, else float16."""
    if device().type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a Hub id or folder, padding on the left as generation needs it.

    Raises:
        OSError: If it cannot be loaded.
        ValueError: If it has no chat template: problems are posed as chat messages.
    """
    from transformers import AutoTokenizer

    with _said("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    if tokenizer.chat_template is None:
        raise ValueError(f"The tokenizer of {name} has no chat template: take an instruction-tuned policy.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(name: str, adapter: Path | None = None, load_in_4bit: bool = False) -> PreTrainedModel:
    """The policy of a Hub id or folder, with a trained LoRA adapter on top where one is given.

    Weights are read from safetensors only, and no code that comes with them is run.

    Args:
        name: Hub id or folder of the base policy.
        adapter: Folder of a PEFT adapter.
        load_in_4bit: Quantise the base to 4 bits (NF4) with bitsandbytes; needs a GPU.

    Raises:
        ValueError: If 4 bits are asked for without a GPU.
        FileNotFoundError: If the adapter folder holds no adapter.
        OSError: If the policy or its adapter cannot be loaded, such as an adapter of another base.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = None
    if load_in_4bit:
        if device().type == "cpu":
            raise ValueError("load_in_4bit needs an NVIDIA GPU, and none is visible: set load_in_4bit to False.")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute_dtype(),
            bnb_4bit_use_double_quant=True,
        )
    for part in ("adapter_config.json", "adapter_model.safetensors") if adapter is not None else ():
        if not (Path(adapter) / part).is_file():  # PEFT would take a pickle in place of the latter
            raise FileNotFoundError(f"{adapter} holds no {part}: it is not a folder that training has saved.")
    with quiet(), _said("policy", name):
        policy = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=compute_dtype(),
            device_map={"": device()},
            quantization_config=quantization,
            use_safetensors=True,
            trust_remote_code=False,
        )
    if adapter is not None:
        from peft import PeftModel

        with _said("adapter", str(adapter)):
            policy = PeftModel.from_pretrained(policy, str(adapter), use_safetensors=True)
        if not load_in_4bit:  # one matrix instead of three; 4-bit weights would lose precision by it
            policy = policy.merge_and_unload()
    return policy


def lora_config(rank: int, alpha: int) -> LoraConfig:
    """LoRA on all linear projections of attention and MLP, without dropout, as published."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(LORA_TARGETS), task_type="CAUSAL_LM"
    )
