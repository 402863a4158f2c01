"""Stand-ins for the tiny policies and data sets of TRL's tests, which lie on the Hub: same names, made here.

The policies have two layers and random weights, and one tokenizer for all, with a small vocabulary of its own. TRL's tests
spell some completions out by their numbers in Qwen's vocabulary: `renumbered` writes them in ours.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ORGANISATION = "trl-internal-testing"
_COMMIT = "0" * 40
_VOCABULARY = 1024
_END = "<|im_end|>"
# what Qwen's numbers stand for in the tests; below 256 they are the bytes, in GPT-2's order
_SPECIAL = {
    151643: "<|endoftext|>",
    151644: "<|im_start|>",
    151645: _END,
    151657: "<tool_call>",
    151658: "</tool_call>",
    151667: "<think>",
    151668: "</think>",
}
_SPELT_OUT = {
    293: " b",
    314: " {",
    330: ' "',
    397: ">\n",
    411: "out",
    450: "dec",
    497: '",',
    522: "</",
    606: "name",
    788: '":',
    894: " any",
    927: "sh",
    944: "'t",
    1318: "text",
    1414: " know",
    1513: " don",
    2765: " won",
    4913: '{"',
    5212: ' {"',
    5392: " tool",
    6023: "hi",
    6659: "call",
    7692: "async",
    9520: "step",
    11248: "}}\n",
    13477: "rement",
    14172: "tool",
    16252: " increment",
    16370: "arguments",
    17453: "Done",
    22785: "_tool",
    35744: "increment",
    64648: "multiply",
    93054: "_multiply",
    95642: '"}}\n',
}
_SIZES = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_HYBRID = {
    "layers_block_type": ["mamba", "attention", "moe"],
    "hidden_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 4,
    "mamba_n_groups": 1,
    "ssm_state_size": 4,
    "chunk_size": 8,
    "use_mamba_kernels": False,
    "n_routed_experts": 4,
    "moe_shared_expert_intermediate_size": 32,
}
# by name on the Hub: class of the policy, what its configuration has beside _SIZES, the chat template
_POLICIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "tiny-Qwen2ForCausalLM-2.5": ("Qwen2ForCausalLM", {}, "qwen2_5"),
    "tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", {"head_dim": 8}, "qwen3"),
    "tiny-Qwen3MoeForCausalLM": ("Qwen3MoeForCausalLM", {"num_experts": 4, "head_dim": 8, **_EXPERTS}, "qwen3"),
    "tiny-Cohere2ForCausalLM": ("Cohere2ForCausalLM", {"logit_scale": 1.0}, "qwen2_5"),
    "tiny-Gemma2ForCausalLM": ("Gemma2ForCausalLM", {"head_dim": 8}, "qwen2_5"),
    "tiny-Glm4MoeForCausalLM": ("Glm4MoeForCausalLM", {"n_routed_experts": 4, "head_dim": 8, **_EXPERTS}, "qwen2_5"),
    "tiny-GptOssForCausalLM": ("GptOssForCausalLM", {"num_local_experts": 4, "head_dim": 8, **_EXPERTS}, "qwen2_5"),
    "tiny-LlamaForCausalLM-3.2": ("LlamaForCausalLM", {}, "qwen2_5"),
    "tiny-MistralForCausalLM-0.2": ("MistralForCausalLM", {}, "qwen2_5"),
    "tiny-NemotronHForCausalLM-nano": ("NemotronHForCausalLM", _HYBRID | _EXPERTS, "qwen2_5"),
    "tiny-RemoteForCausalLM": ("LlamaForCausalLM", {}, "qwen2_5"),
    "tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", {"num_labels": 1}, "qwen2_5"),
    "tiny-Qwen2ForSequenceClassification-2.5": ("Qwen2ForSequenceClassification", {"num_labels": 1}, "qwen2_5"),
    "tiny-Qwen3ForSequenceClassification": (
        "Qwen3ForSequenceClassification",
        {"num_labels": 1, "head_dim": 8},
        "qwen3",
    ),
}
_REMOTE_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class RemoteConfig(LlamaConfig):
    model_type = "remote"


class RemoteForCausalLM(LlamaForCausalLM):
    config_class = RemoteConfig
"""


def make_policies(hub: Path) -> None:
    """Fill a cache of the Hub (``$HF_HOME/hub``) with the stand-ins, so that their names load without a network."""
    tokenizer = make_tokenizer()
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    for name, (class_name, more, template) in _POLICIES.items():
        place = hub / f"models--{ORGANISATION}--{name}"
        folder = place / "snapshots" / _COMMIT
        folder.mkdir(parents=True, exist_ok=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(_COMMIT)
        torch.manual_seed(0)
        policy_class = getattr(transformers, class_name)
        policy_class(policy_class.config_class(**(_SIZES | ends | more))).save_pretrained(folder)
        tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text()
        tokenizer.save_pretrained(folder)
        if "Remote" in name:
            config = json.loads((folder / "config.json").read_text())
            kinds = {"AutoConfig": "RemoteConfig", "AutoModelForCausalLM": "RemoteForCausalLM"}
            config |= {"model_type": "remote", "architectures": ["RemoteForCausalLM"]}
            config["auto_map"] = {auto: f"remote.{kind}" for auto, kind in kinds.items()}
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "remote.py").write_text(_REMOTE_CODE)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, made from the text of TRL's trainer, with a token of its own for all that the tests spell out."""
    text = Path(inspect.getfile(trl.GRPOTrainer)).read_text()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pieces = _VOCABULARY - len(_SPECIAL) - len(_SPELT_OUT) - 1
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    )
    marks = [AddedToken(mark, special=mark.startswith("<|"), normalized=False) for mark in _SPECIAL.values()]
    spelt_out = [AddedToken(text, normalized=False) for text in _SPELT_OUT.values()]
    tokenizer.add_tokens([*marks, AddedToken("<|finetune_right_pad_id|>", special=True), *spelt_out])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token="<|endoftext|>", padding_side="left"
    )


def renumbered(source: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """TRL's test with the completions that it spells out, up to their end token, in the numbers of `tokenizer`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (ord(c) > 255, ord(c)))  # GPT-2's order
    texts = _SPECIAL | _SPELT_OUT

    def ours(match: re.Match[str]) -> str:
        number = int(match[0])
        return str(tokenizer.convert_tokens_to_ids(letters[number] if number < len(letters) else texts[number]))

    lines = source.splitlines(keepends=True)
    end = next(number for number, text in _SPECIAL.items() if text == _END)
    return "".join(
        re.sub(r"\[.*?\]", lambda ids: re.sub(r"\d+", ours, ids[0]), line)
        if str(end) in line and not line.lstrip().startswith("#")
        else line
        for line in lines
    )


def loader(otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """A `datasets.load_dataset` that knows a small zen: 4 prompts and 2 held out, in place of 17 and 2, to save time.

    Args:
        otherwise: Loads all other sets.
    """

    def load_dataset(path: str, name: str | None = None, split: str | None = None, streaming: bool = False, **more):
        if path != f"{ORGANISATION}/zen":
            return otherwise(path, name, split=split, streaming=streaming, **more)
        texts = [f"{n} and {n + 1} are together" for n in range(6)]
        if name == "conversational_prompt_only":
            texts = [[{"role": "user", "content": text}] for text in texts]
        sets = {"train": Dataset.from_dict({"prompt": texts[:4]}), "test": Dataset.from_dict({"prompt": texts[4:]})}
        if streaming:
            streams: dict[str, IterableDataset] = {key: part.to_iterable_dataset() for key, part in sets.items()}
            return streams[split] if split else IterableDatasetDict(streams)
        return sets[split] if split else DatasetDict(sets)

    return load_dataset
