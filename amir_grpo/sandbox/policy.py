"""The sandbox's policies: their shape, their tokenizer, and the supervised warm-up that makes a base policy.

The base policy of `sandbox` is a causal LM of 0.1M parameters that was shown careful, hasty and rambling solutions of
arithmetic chains. It is right some of the time, and there is something for a policy-gradient method to choose between:
how to work, and whether to keep to the format. `sandbox-medium` is the same with 1M parameters, which no package brings:
to see whether a finding depends on the size. `sandbox-large` is for a GPU: a policy of 26M parameters, longer chains, and
chains told as word problems.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from amir_grpo.choices import SANDBOX, SANDBOX_LARGE, SANDBOX_MEDIUM
from amir_grpo.sandbox.problems import (
    ALL_FAMILIES,
    TRAINED_ON,
    WORDS,
    Habits,
    careful_solution,
    named_chains,
    question_of,
    solution,
)
from amir_grpo.settings import FIELDS, PROFILES

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class SandboxSpec(Habits):
    """Everything that a base policy is made from, beside the habits of the solutions that it is shown.

    Attributes:
        shown: Families of the warm-up: those of the training, two easier ones, and the longer one that is reported apart.
        seed: Seed of the weights, of the solutions shown and of their order.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: Shape of the Llama.
        warmup_steps, warmup_batch_size, warmup_learning_rate: The supervised warm-up.
        warmup_chains: Distinct chains of the warm-up.
        careful_first: Share of the warm-up, at its start, that shows careful solutions only. Arithmetic is learnt
            there; the mixture that follows teaches the other habits.
    """

    shown: tuple[str, ...] = ("chain4", "chain5", *TRAINED_ON[SANDBOX], "chain8")
    seed: int = 0
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 192
    warmup_steps: int = FIELDS["sandbox_warmup_steps"].default
    warmup_batch_size: int = 16
    warmup_learning_rate: float = 5e-3
    warmup_chains: int = 6000
    careful_first: float = 0.4

    def fingerprint(self) -> str:
        """Hash of the settings and of the code that uses them, without its comments: 12 hexadecimal digits."""
        here = Path(__file__)
        code = "".join(_code(path) for path in (here, here.with_name("problems.py")))
        return hashlib.sha256((json.dumps(asdict(self), sort_keys=True) + code).encode()).hexdigest()[:12]

    @property
    def words(self) -> bool:
        """Whether problems are told in words, too."""
        return any(ALL_FAMILIES[name].words for name in self.shown)


def _code(path: Path) -> str:
    """The statements of a module, without comments and docstrings: those change no policy."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


# By the name that settings give as model_name and dataset_name.
SPECS: dict[str, SandboxSpec] = {
    SANDBOX: SandboxSpec(),
    SANDBOX_MEDIUM: SandboxSpec(
        hidden_size=160,
        num_hidden_layers=3,
        intermediate_size=480,
        warmup_steps=PROFILES[SANDBOX_MEDIUM]["sandbox_warmup_steps"],
        warmup_learning_rate=1.2e-3,
    ),
    SANDBOX_LARGE: SandboxSpec(
        shown=TRAINED_ON[SANDBOX_LARGE],
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        intermediate_size=1408,
        warmup_steps=PROFILES[SANDBOX_LARGE]["sandbox_warmup_steps"],
        warmup_batch_size=64,
        warmup_learning_rate=1e-3,
    ),
}


_SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<unk>")
_UNITS = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "system", "user", "assistant", "hmm")
_CHARACTERS = "0123456789+-=*/()?.,: \n"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(words: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer of one token per character and one per tag, with a chat template; text survives the round trip.

    Args:
        words: Also one token for each word of `word_problem`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # the longest first: a pattern takes the first alternative that fits
    units = [*_UNITS, *(sorted(WORDS, key=len, reverse=True) if words else ())]
    tokens = [*_SPECIAL, *_UNITS, *_CHARACTERS, *map(str, range(10, 100)), *(WORDS if words else ())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = "|".join(re.escape(unit) for unit in units) + r"|[1-9]\d|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def untrained_config(spec: SandboxSpec, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The architecture and size of a base policy."""
    # Llama, not Qwen2: AutoTokenizer replaces the tokenizer of a folder whose config says qwen2 by Qwen2's own.
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_hidden_layers,
        num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_attention_heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def warmup_examples(spec: SandboxSpec, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Tokenised chains with solutions, in the order of the warm-up; labels on the solutions only."""
    rng = random.Random(f"warm-up/{spec.seed}")
    shown = list(islice(named_chains(spec.shown, held_out=False, seed=spec.seed), spec.warmup_chains))
    start, middle, end = (
        tokenizer.encode(text) for text in ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
    )
    sequences = spec.warmup_steps * spec.warmup_batch_size
    examples = []
    for index in range(sequences):
        family, chain = rng.choice(shown)
        text = careful_solution(chain) if index < spec.careful_first * sequences else solution(chain, rng, spec)
        prompt = start + tokenizer.encode(question_of(chain, family)) + middle
        completion = tokenizer.encode(text) + end
        examples.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return examples


_WARMUP_THREADS = 1  # how sums are rounded depends on how many threads share them: one on every machine


def make_base_policy(spec: SandboxSpec, folder: Path) -> None:
    """Warm up a base policy by supervised learning and save it, in float32, with its tokenizer into `folder`."""
    import torch
    from datasets import Dataset
    from transformers import (
        DataCollatorForSeq2Seq,
        LlamaForCausalLM,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from amir_grpo.system.progress import quiet

    set_seed(spec.seed)
    tokenizer = build_tokenizer(spec.words)
    policy = LlamaForCausalLM(untrained_config(spec, tokenizer))
    small = spec.hidden_size <= 256  # a GPU would be slower, and another machine's weights differ
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=policy,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=spec.warmup_steps,
                per_device_train_batch_size=spec.warmup_batch_size,
                train_sampling_strategy="sequential",
                learning_rate=spec.warmup_learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0.05,
                adam_beta2=0.98,
                weight_decay=0.01,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                seed=spec.seed,
                use_cpu=small or not torch.cuda.is_available(),
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(warmup_examples(spec, tokenizer)),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        with _threads(_WARMUP_THREADS if small else torch.get_num_threads()):
            trainer.train()
    with quiet():
        policy.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
