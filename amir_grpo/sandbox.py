r"""The embedded default: arithmetic chains, their tokenizer and a tiny base policy, all made here from a seed.

A chain is a sum such as ``7+8-5``; its answer is wanted in the paper's format,
``<think>7+8=15\n15-5=10</think><answer>\boxed{10}</answer>``. The base policy is a causal LM of 0.3M parameters that
was shown careful, hasty and rambling solutions of such chains. It is right some of the time, and there is
something for a policy-gradient method to choose between: how to work, and whether to keep to the format.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from amir_grpo.files import whole_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Family:
    """A family of arithmetic chains over the numbers 1 to 9."""

    numbers: int
    about: str


FAMILIES: dict[str, Family] = {
    "chain3": Family(3, "three numbers"),
    "chain4": Family(4, "four numbers"),
    "chain5": Family(5, "five numbers, the longest seen in training"),
    "chain6": Family(6, "six numbers, longer than any seen in training"),
}
TRAINED_ON = ("chain3", "chain4", "chain5")
# A quarter of all chains is kept for evaluation: no warm-up and no rollout ever sees one of them.
_HELD_OUT_ONE_IN = 4
_WARMUP_CHAINS = 6000


@dataclass(frozen=True)
class SandboxSpec:
    """Everything that the base policy is made from; its hash names the cached copy.

    Attributes:
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


# --- problems -----------------------------------------------------------------------------------------------------


def chain_answer(chain: str) -> int:
    """The value of a chain of additions and subtractions, such as ``"7+8-5"``."""
    return sum(int(term) for term in re.findall(r"[+-]?\d+", chain))


def _is_held_out(chain: str) -> bool:
    return zlib.crc32(chain.encode()) % _HELD_OUT_ONE_IN == 0


def _random_chain(rng: random.Random, family: Family) -> str:
    terms = [rng.randint(1, 9) for _ in range(family.numbers)]
    return str(terms[0]) + "".join(rng.choice("+-") + str(term) for term in terms[1:])


def chains(names: tuple[str, ...], held_out: bool, seed: int) -> Iterator[str]:
    """Distinct random chains of the named families in turn, held out for evaluation or not; ends when none is left."""
    rng = random.Random(f"{'-'.join(names)}/{held_out}/{seed}")
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        for name in names:
            chain = _random_chain(rng, FAMILIES[name])
            if _is_held_out(chain) != held_out or chain in seen:
                misses += 1
                continue
            misses = 0
            seen.add(chain)
            yield chain


def load_sandbox(name: str, limit: int, seed: int = 0) -> Dataset:
    """A sandbox family as an evaluation set, or ``"sandbox"``, the training set over the families trained on.

    Args:
        name: One of `FAMILIES`, or "sandbox".
        limit: Number of problems, all distinct. Families are finite: at most as many as there are are returned.
        seed: Which problems.

    Returns:
        The record shape of `amir_grpo.problems`: id, question, answer (list of strings), prompt (chat messages).

    Raises:
        ValueError: If the name is neither.
    """
    from datasets import Dataset

    if name != "sandbox" and name not in FAMILIES:
        raise ValueError(f"Unknown sandbox family {name!r}: choose one of {', '.join(['sandbox', *FAMILIES])}.")
    names = TRAINED_ON if name == "sandbox" else (name,)
    rows = []
    for index, chain in enumerate(islice(chains(names, held_out=name != "sandbox", seed=seed), limit)):
        rows.append(
            {
                "id": f"{name}-{index:05d}",
                "question": chain,
                "answer": [str(chain_answer(chain))],
                "prompt": [{"role": "user", "content": chain}],
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


def build_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of one token a character and one a tag, with a chat template; text survives the round trip."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        token: index for index, token in enumerate([*_SPECIAL, *_UNITS, *_CHARACTERS, *map(str, range(10, 100))])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = "|".join(re.escape(unit) for unit in _UNITS) + r"|[1-9]\d|[\s\S]"
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


def _untrained_policy(spec: SandboxSpec, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    # Llama, not Qwen2: AutoTokenizer replaces the tokenizer of a folder whose config says qwen2 by Qwen2's own.
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
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
    return LlamaForCausalLM(config)


def warmup_examples(spec: SandboxSpec, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Tokenised chains with solutions, in the order of the warm-up; labels on the solutions only."""
    rng = random.Random(f"warm-up/{spec.seed}")
    shown = list(islice(chains(TRAINED_ON, held_out=False, seed=spec.seed), _WARMUP_CHAINS))
    start, middle, end = (
        tokenizer.encode(text) for text in ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
    )
    sequences = spec.warmup_steps * spec.warmup_batch_size
    examples = []
    for index in range(sequences):
        chain = rng.choice(shown)
        text = careful_solution(chain) if index < spec.careful_first * sequences else solution(chain, rng, spec)
        prompt = start + tokenizer.encode(chain) + middle
        completion = tokenizer.encode(text) + end
        examples.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return examples


def make_base_policy(spec: SandboxSpec, folder: Path) -> None:
    """Warm up the base policy by supervised learning and save it with its tokenizer into `folder`."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments, set_seed

    from amir_grpo.policy import quiet

    set_seed(spec.seed)
    tokenizer = build_tokenizer()
    policy = _untrained_policy(spec, tokenizer)
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
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(warmup_examples(spec, tokenizer)),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    with quiet():
        policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def base_policy(spec: SandboxSpec, cache: Path) -> Path:
    """Folder of the base policy made from `spec`, made now unless `cache` holds it already."""
    folder = cache / f"base-{spec.fingerprint()}"
    if not folder.exists():
        with whole_folder(folder) as beside:
            make_base_policy(spec, beside)
    return folder
