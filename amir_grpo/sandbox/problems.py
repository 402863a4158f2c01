r"""Problems that are made on the spot: arithmetic chains in figures, in a few words, or as stories in plain English.

A chain is a sum such as ``7+8-5``, worked from left to right; its answer is expected in the paper's format,
``<think>7+8=15\n15-5=10</think><answer>\boxed{10}</answer>``. Stories also have products, and are for language models.
A seed determines everything.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from amir_grpo.choices import SANDBOX, SANDBOX_LARGE, SANDBOX_MEDIUM, STORIES, check_names
from amir_grpo.settings import PROFILES

if TYPE_CHECKING:
    from datasets import Dataset

Messages = list[dict[str, str]]


class Family(NamedTuple):
    """Arithmetic chains of a given length. In words, no partial result is below 0; a story also has products, larger
    numbers, and partial results from 1 to 99."""

    numbers: int
    words: bool = False
    story: bool = False


FAMILIES: dict[str, Family] = {f"chain{numbers}": Family(numbers) for numbers in range(3, 9)}
ALL_FAMILIES: dict[str, Family] = (
    FAMILIES
    | {"chain9": Family(9)}
    | {f"words{numbers}": Family(numbers, words=True) for numbers in (3, 4, 6)}
    | {f"story{steps}": Family(steps + 1, words=True, story=True) for steps in (1, 2, 3)}
)
# The families of each training set, by the value of dataset_name. Longer ones are only evaluated.
TRAINED_ON: dict[str, tuple[str, ...]] = {
    SANDBOX: ("chain6", "chain7"),
    SANDBOX_MEDIUM: ("chain6", "chain7"),
    SANDBOX_LARGE: ("chain5", "chain7", "words3", "words4"),
    STORIES: ("story1", "story2"),
}
# A quarter of all chains is kept for evaluation: no warm-up or rollout ever sees one.
_HELD_OUT_ONE_IN = 4


def load_sandbox(name: str, limit: int | None = None, seed: int = 0, shots: int = 0) -> Dataset:
    """Load a family as a benchmark, or a training set of several families.

    Args:
        name: One of `ALL_FAMILIES` or of `TRAINED_ON`.
        limit: Number of problems, all distinct; None for as many as in profile sandbox. A small family may have fewer.
        seed: Seed of the problems.
        shots: Number of worked examples at the start of each prompt, as earlier turns of the conversation.

    Returns:
        The record shape of `amir_grpo.problems`: id, question, answer (list of strings), prompt (chat messages).

    Raises:
        ValueError: If the name is unknown.
    """
    from datasets import Dataset

    check_names("sandbox family", [name], [*TRAINED_ON, *ALL_FAMILIES])
    training = name in TRAINED_ON
    limit = limit or PROFILES[SANDBOX]["dataset_limit" if training else "eval_limit"]
    names = TRAINED_ON[name] if training else (name,)
    # a seed that no training has: an example is trained on only if it is drawn twice
    examples = list(islice(named_chains(names, held_out=False, seed=-1), shots))
    chains = islice(named_chains(names, held_out=not training, seed=seed), limit)
    rows = [
        {"id": f"{name}-{index:05d}", "question": question_of(chain, family), "answer": [str(chain_answer(chain))]}
        | {"prompt": prompt_of(chain, family, examples)}
        for index, (family, chain) in enumerate(chains)
    ]
    return Dataset.from_list(rows)


def prompt_of(chain: str, name: str, examples: Sequence[tuple[str, str]] = ()) -> Messages:
    """Return chat messages that pose a chain of a family, after worked examples given as (family, chain) pairs."""
    # any system message keeps a chat template from writing its own, longer one
    messages = [{"role": "system", "content": "Solve."}] if ALL_FAMILIES[name].story else []
    for family, example in examples:
        messages.append({"role": "user", "content": question_of(example, family)})
        messages.append({"role": "assistant", "content": careful_solution(example)})
    return [*messages, {"role": "user", "content": question_of(chain, name)}]


# --- chains -------------------------------------------------------------------------------------------------------

_TERMS = re.compile(r"[-+*]?\d+")


def chain_answer(chain: str) -> int:
    """Compute the value of a chain, such as ``"7+8-5"``, from left to right."""
    return _steps(chain)[-1][1]


def named_chains(names: tuple[str, ...], held_out: bool, seed: int) -> Iterator[tuple[str, str]]:
    """Yield distinct random (family, chain) pairs of the named families in turn, until no new one is found.

    `held_out`: whether to yield the chains kept for evaluation, which are the same in words and in figures.
    """
    rng = random.Random(f"{'-'.join(names)}/{held_out}/{seed}")
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        for name in names:
            chain = _random_chain(rng, ALL_FAMILIES[name])
            misses += 1
            if (zlib.crc32(chain.encode()) % _HELD_OUT_ONE_IN == 0) == held_out and chain not in seen:
                misses = 0
                seen.add(chain)
                yield name, chain


def _random_chain(rng: random.Random, family: Family) -> str:
    while True:
        if family.story:
            signs = [rng.choice("+-*") for _ in range(family.numbers - 1)]
            rest = (sign + str(rng.randint(2, 5 if sign == "*" else 20)) for sign in signs)
            chain = str(rng.randint(2, 30)) + "".join(rest)
            if all(0 < result < 100 for _, result in _steps(chain)):
                return chain
            continue
        terms = [rng.randint(1, 9) for _ in range(family.numbers)]
        chain = str(terms[0]) + "".join(rng.choice("+-") + str(term) for term in terms[1:])
        if not family.words or all(result >= 0 for _, result in _steps(chain)):
            return chain


def _steps(chain: str) -> list[tuple[str, int]]:
    """Return the partial results of a chain, ``[("7+8", 15), ("15-5", 10)]``."""
    first, *rest = _TERMS.findall(chain)
    result, steps = int(first), []
    for term in rest:
        before = result
        result = before * int(term[1:]) if term[0] == "*" else before + int(term)
        steps.append((f"{before}{term}", result))
    return steps


# --- chains in words ----------------------------------------------------------------------------------------------

_NAMES = ("Mia", "Tom", "Ana", "Ben", "Zoe", "Leo")
_ITEMS = ("apples", "books", "coins", "stamps", "shells", "cards")
_MORE, _LESS = ("buys", "finds", "gets"), ("loses", "sells", "gives away")
# Every word of a word problem without products: the sandbox's tokenizer has a token for each.
WORDS = (*_NAMES, *_ITEMS, *_MORE, *"loses sells gives away has more How many does have".split())


def question_of(chain: str, name: str) -> str:
    """Return a chain as the question of a family: unchanged, or told in words."""
    return word_problem(chain) if ALL_FAMILIES[name].words else chain


def word_problem(chain: str) -> str:
    """Tell a chain in words, the same each time: ``7+8-5`` as "Mia has 7 apples. Mia buys 8 more. …"."""
    rng = random.Random(f"words/{chain}")
    name, item = rng.choice(_NAMES), rng.choice(_ITEMS)
    first, *rest = _TERMS.findall(chain)
    told = [f"{name} has {first} {item}."]
    for place, term in enumerate(rest):
        sign, number = term[0], term[1:]
        if sign == "*" and place == 0:
            told = [f"{name} buys {number} packs of {first} {item}."]
        elif sign == "*":
            told.append(f"Then the {item} grow to {number} times as many.")
        elif sign == "+":
            told.append(f"{name} {rng.choice(_MORE)} {number} more.")
        else:
            told.append(f"{name} {rng.choice(_LESS)} {number}.")
    return " ".join([*told, f"How many {item} does {name} have?"])


# --- solutions shown in the warm-up -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Habits:
    """The mixture of solutions that a warm-up shows: shares of the three kinds, how often a hasty one happens to be right,
    and how often a rambling one gets a line wrong (slip) or ends without an answer block."""

    careful: float = 0.25
    hasty: float = 0.45
    rambling: float = 0.3
    hasty_right: float = 0.35
    slip: float = 0.2
    no_answer: float = 0.4


def careful_solution(chain: str) -> str:
    """Return the solution that works term by term, always right and in format."""
    lines = [f"{left}={right}" for left, right in _steps(chain)]
    return f"<think>{chr(10).join(lines)}</think>{_answer_block(chain_answer(chain))}"


def solution(chain: str, rng: random.Random, habits: Habits) -> str:
    """Draw one solution of a sum, of a kind drawn from `habits`; not always right, not always in format."""
    (kind,) = rng.choices(("careful", "hasty", "rambling"), (habits.careful, habits.hasty, habits.rambling))
    value = chain_answer(chain)
    if kind == "careful":
        return careful_solution(chain)
    if kind == "hasty":
        guess = value if rng.random() < habits.hasty_right else _off(rng, value)
        return f"<think>{chain}={guess}</think>{_answer_block(guess)}"
    # Rambling: partial sums with slips that later lines build on, each line written once or twice.
    first, *rest = _TERMS.findall(chain)
    total, lines = int(first), []
    for term in rest:
        right = total + int(term)
        stated = _off(rng, right) if rng.random() < habits.slip else right
        lines += [f"{total}{term}={stated}"] * rng.choice((1, 2, 2))
        total = stated
    think = f"<think>hmm\n{chr(10).join(lines)}</think>"
    return think + (f"{total}" if rng.random() < habits.no_answer else _answer_block(total))


def _answer_block(value: int) -> str:
    return rf"<answer>\boxed{{{value}}}</answer>"


def _off(rng: random.Random, value: int) -> int:
    return value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
