r"""The embedded sandboxes: arithmetic problems, their tokenizer and a base policy, all made here from a seed.

A chain is a sum such as ``7+8-5``; its answer is wanted in the paper's format,
``<think>7+8=15\n15-5=10</think><answer>\boxed{10}</answer>``. The base policy is a causal LM of 0.3M parameters that
was shown careful, hasty and rambling solutions of such chains. It is right some of the time, and there is
something for a policy-gradient method to choose between: how to work, and whether to keep to the format.

The large sandbox is one size up, for a GPU: a policy of 26M parameters, longer chains, and chains told as word problems.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from amir_grpo.system.files import atomic_folder
from amir_grpo.system.processes import run_alone, world_size

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import LlamaConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Family:
    """A family of arithmetic chains over the numbers 1 to 9; told in words, no partial sum is below 0."""

    numbers: int
    about: str
    words: bool = False


FAMILIES: dict[str, Family] = {
    "chain3": Family(3, "three numbers"),
    "chain4": Family(4, "four numbers"),
    "chain5": Family(5, "five numbers, the longest seen in training"),
    "chain6": Family(6, "six numbers, longer than any seen in training"),
}
TRAINED_ON = ("chain3", "chain4", "chain5")
LARGE_FAMILIES: dict[str, Family] = {
    "chain7": Family(7, "seven numbers"),
    "chain9": Family(9, "nine numbers, longer than any seen in training"),
    "words3": Family(3, "three numbers in words", words=True),
    "words4": Family(4, "four numbers in words", words=True),
    "words6": Family(6, "six numbers in words, longer than any seen in training", words=True),
}
ALL_FAMILIES = FAMILIES | LARGE_FAMILIES
# A quarter of all chains is kept for evaluation: no warm-up and no rollout ever sees one of them.
_HELD_OUT_ONE_IN = 4
_WARMUP_CHAINS = 6000


@dataclass(frozen=True)
class SandboxSpec:
    """Everything that the base policy is made from; its hash names the cached copy.

    Attributes:
        trained_on: Families of the warm-up.
        seed: Seed of the weights, of the solutions shown and of their order.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: Shape of the Llama.
        warmup_steps, warmup_batch_size, warmup_learning_rate: The supervised warm-up.
        careful_first: Share of the warm-up, at its start, that shows careful solutions only. Arithmetic is learnt
            there; the mixture that follows teaches the other habits.
        careful, hasty, rambling: Shares of the three kinds of solution in the mixture. They add up to 1.
        hasty_right: How often a hasty solution happens to be right.
        slip: How often a rambling solution gets a line wrong.
        no_answer: How often a rambling solution ends without an answer block.
    """

    trained_on: tuple[str, ...] = TRAINED_ON
    seed: int = 0
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 192
    warmup_steps: int = 2000
    warmup_batch_size: int = 32
    warmup_learning_rate: float = 5e-3
    careful_first: float = 0.65
    careful: float = 0.35
    hasty: float = 0.4
    rambling: float = 0.25
    hasty_right: float = 0.35
    slip: float = 0.2
    no_answer: float = 0.4

    def fingerprint(self) -> str:
        """Hash of the settings and of this module's source, 12 hexadecimal digits."""
        source = Path(__file__).read_bytes()
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode() + source).hexdigest()[:12]

    @property
    def words(self) -> bool:
        """Whether problems are told in words, too."""
        return any(ALL_FAMILIES[name].words for name in self.trained_on)


# By the name that settings give as model_name and dataset_name.
SANDBOXES: dict[str, SandboxSpec] = {
    "sandbox": SandboxSpec(),
    "sandbox-large": SandboxSpec(
        trained_on=("chain5", "chain7", "words3", "words4"),
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        intermediate_size=1408,
        warmup_steps=6000,
        warmup_batch_size=64,
        warmup_learning_rate=1e-3,
    ),
}


# --- problems -----------------------------------------------------------------------------------------------------


def chain_answer(chain: str) -> int:
    """The value of a chain of additions and subtractions, such as ``"7+8-5"``."""
    return sum(int(term) for term in re.findall(r"[+-]?\d+", chain))


def _is_held_out(chain: str) -> bool:
    return zlib.crc32(chain.encode()) % _HELD_OUT_ONE_IN == 0


def _random_chain(rng: random.Random, family: Family) -> str:
    while True:
        terms = [rng.randint(1, 9) for _ in range(family.numbers)]
        chain = str(terms[0]) + "".join(rng.choice("+-") + str(term) for term in terms[1:])
        if not family.words or all(total >= 0 for _, total in _steps(chain)):
            return chain


_NAMES = ("Mia", "Tom", "Ana", "Ben", "Zoe", "Leo")
_ITEMS = ("apples", "books", "coins", "stamps", "shells", "cards")
_MORE, _LESS = ("buys", "finds", "gets"), ("loses", "sells", "gives away")
_WORDS = (*_NAMES, *_ITEMS, *_MORE, *"loses sells gives away has more How many does have".split())


def word_problem(chain: str) -> str:
    """A chain told in words, always in the same ones: ``7+8-5`` as "Mia has 7 apples. Mia buys 8 more. …"."""
    rng = random.Random(f"words/{chain}")
    name, item = rng.choice(_NAMES), rng.choice(_ITEMS)
    first, *rest = re.findall(r"[+-]?\d+", chain)
    told = [f"{name} has {first} {item}."]
    for term in rest:
        told.append(
            f"{name} {rng.choice(_MORE)} {term[1:]} more."
            if term[0] == "+"
            else f"{name} {rng.choice(_LESS)} {term[1:]}."
        )
    return " ".join([*told, f"How many {item} does {name} have?"])


def question_of(chain: str, name: str) -> str:
    """A chain as the question of a family: itself, or told in words."""
    return word_problem(chain) if ALL_FAMILIES[name].words else chain


def chains(names: tuple[str, ...], held_out: bool, seed: int) -> Iterator[str]:
    """As `named_chains`, without the names."""
    return (chain for _, chain in named_chains(names, held_out, seed))


def named_chains(names: tuple[str, ...], held_out: bool, seed: int) -> Iterator[tuple[str, str]]:
    """Distinct random (family, chain) of the named families in turn, held out for evaluation or not, until none is left.

    A chain is held out in words and in figures alike, and is told only once.
    """
    rng = random.Random(f"{'-'.join(names)}/{held_out}/{seed}")
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        for name in names:
            chain = _random_chain(rng, ALL_FAMILIES[name])
            if _is_held_out(chain) != held_out or chain in seen:
                misses += 1
                continue
            misses = 0
            seen.add(chain)
            yield name, chain


def load_sandbox(name: str, limit: int, seed: int = 0) -> Dataset:
    """A sandbox family as an evaluation set, or a sandbox's training set over the families that it is trained on.

    Args:
        name: One of `ALL_FAMILIES` or of `SANDBOXES`.
        limit: Number of problems, all distinct. Families are finite: at most as many as there are are returned.
        seed: Which problems.

    Returns:
        The record shape of `amir_grpo.problems`: id, question, answer (list of strings), prompt (chat messages).

    Raises:
        ValueError: If the name is neither.
    """
    from datasets import Dataset

    if name not in SANDBOXES and name not in ALL_FAMILIES:
        raise ValueError(f"Unknown sandbox family {name!r}: choose one of {', '.join([*SANDBOXES, *ALL_FAMILIES])}.")
    names = SANDBOXES[name].trained_on if name in SANDBOXES else (name,)
    rows = []
    for index, (family, chain) in enumerate(islice(named_chains(names, name not in SANDBOXES, seed), limit)):
        question = question_of(chain, family)
        rows.append(
            {
                "id": f"{name}-{index:05d}",
                "question": question,
                "answer": [str(chain_answer(chain))],
                "prompt": [{"role": "user", "content": question}],
            }
        )
    return Dataset.from_list(rows)


# --- solutions shown in the warm-up -------------------------------------------------------------------------------


def _steps(chain: str) -> list[tuple[str, int]]:
    """The partial sums of a chain, ``[("7+8", 15), ("15-5", 10)]``."""
    first, *rest = re.findall(r"[+-]?\d+", chain)
    total, steps = int(first), []
    for term in rest:
        steps.append((f"{total}{term}", total + int(term)))
        total += int(term)
    return steps


def _answer_block(value: int) -> str:
    return rf"<answer>\boxed{{{value}}}</answer>"


def _off(rng: random.Random, value: int) -> int:
    return value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))


def careful_solution(chain: str) -> str:
    """The solution that adds up term by term, always right and in format."""
    lines = [f"{left}={right}" for left, right in _steps(chain)]
    return f"<think>{chr(10).join(lines)}</think>{_answer_block(chain_answer(chain))}"


def solution(chain: str, rng: random.Random, spec: SandboxSpec) -> str:
    """One solution of a chain, of a kind drawn from the mixture of `spec`; not always right, not always in format."""
    (kind,) = rng.choices(("careful", "hasty", "rambling"), (spec.careful, spec.hasty, spec.rambling))
    value = chain_answer(chain)
    if kind == "careful":
        return careful_solution(chain)
    if kind == "hasty":
        guess = value if rng.random() < spec.hasty_right else _off(rng, value)
        return f"<think>{chain}={guess}</think>{_answer_block(guess)}"
    # Rambling: partial sums with slips that later lines build on, each line said once or twice.
    first, *rest = re.findall(r"[+-]?\d+", chain)
    total, lines = int(first), []
    for term in rest:
        right = total + int(term)
        stated = _off(rng, right) if rng.random() < spec.slip else right
        lines += [f"{total}{term}={stated}"] * rng.choice((1, 2, 2))
        total = stated
    think = f"<think>hmm\n{chr(10).join(lines)}</think>"
    return think + (f"{total}" if rng.random() < spec.no_answer else _answer_block(total))


# --- tokenizer and policy -----------------------------------------------------------------------------------------

_SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<unk>")
_UNITS = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "system", "user", "assistant", "hmm")
_CHARACTERS = "0123456789+-=*/()?.,: \n"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(words: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer of one token a character and one a tag, with a chat template; text survives the round trip.

    Args:
        words: Also one token for each word of `word_problem`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # the longest first: a pattern takes the first alternative that fits
    units = [*_UNITS, *(sorted(_WORDS, key=len, reverse=True) if words else ())]
    tokens = [*_SPECIAL, *_UNITS, *_CHARACTERS, *map(str, range(10, 100)), *(_WORDS if words else ())]
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
    """The shape of the base policy."""
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
    shown = list(islice(named_chains(spec.trained_on, held_out=False, seed=spec.seed), _WARMUP_CHAINS))
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


_WARMUP_THREADS = 2  # sums are rounded by how many threads share them: two on every machine


def make_base_policy(spec: SandboxSpec, folder: Path) -> None:
    """Warm up the base policy by supervised learning and save it with its tokenizer into `folder`."""
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

    from amir_grpo.policies.loading import quiet

    set_seed(spec.seed)
    tokenizer = build_tokenizer(spec.words)
    policy = LlamaForCausalLM(untrained_config(spec, tokenizer))
    small = spec.hidden_size <= 128  # a GPU would be slower, and another machine's weights differ
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
        policy.save_pretrained(folder)
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


def base_policy(spec: SandboxSpec, cache: Path) -> Path:
    """Folder of the base policy made from `spec`, made now unless `cache` holds it already."""
    folder = cache / f"base-{spec.fingerprint()}"
    if not folder.exists() and world_size() > 1:  # where its training would wait for the other processes
        run_alone("amir_grpo.sandbox.policy", json.dumps(asdict(spec)), str(cache))
    elif not folder.exists():
        with atomic_folder(folder) as beside:
            make_base_policy(spec, beside)
    return folder


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    base_policy(SandboxSpec(**fields | {"trained_on": tuple(fields["trained_on"])}), Path(sys.argv[2]))
