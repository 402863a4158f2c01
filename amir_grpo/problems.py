r"""Benchmarks and training sets: one registry, one record shape, from the Hugging Face Hub or a local mirror.

Every problem has the columns

- ``id``: string, unique in its set and stable from load to load,
- ``question``: string,
- ``answer``: list of strings, any of which is right,
- ``prompt``: list of chat messages, the system prompt and the question.

``answer`` is a list even for a single answer, so that the column has the same Arrow type in every set. If a problem
asks for several values at once, one string holds them, such as ``"3, 5"``.

Revisions are pinned to commits, so that later changes of a data set have no effect here; only LiveMathBench, whose
commit we do not know, is read at ``"main"``. To read another revision, give `load_problems` a ``revision``, and record
`fingerprint`, which depends only on the problems.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, load_dataset

from amir_grpo.answers import gold_answers, last_boxed
from amir_grpo.choices import check_names
from amir_grpo.sandbox.problems import ALL_FAMILIES, TRAINED_ON, load_sandbox
from amir_grpo.system.files import json_lines
from amir_grpo.system.network import hub_or_cache

MIRROR_VARIABLE = "AMIR_GRPO_DATA"

BASE_PROMPT = r"""You solve problems in mathematics. Reason step by step first, then state the final answer once,
inside \boxed{}. Keep exactly to this format:
<think>your reasoning</think>
<answer>\boxed{the final answer}</answer>"""

CALIBRATED_PROMPT = r"""You solve problems in mathematics. Reason step by step first, then state the final answer once,
inside \boxed{}. Then examine how sure you can be of it, and state the probability that it is right as a number from
0 to 1. Keep exactly to this format:
<think>your reasoning</think>
<answer>\boxed{the final answer}</answer>
<analysis>what speaks for and against the answer</analysis>
<confidence>the probability, such as 0.8</confidence>"""

_FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "answer": [Value("string")],
        "prompt": [{"role": Value("string"), "content": Value("string")}],
    }
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ProblemSet:
    """A set of problems on the Hub, and how to read its rows.

    `name`: its name in this registry and its folder in a mirror. `config`: None if the repository has only one.
    `revision`: commit, tag or branch. `split`: the default split. `question` and `answers` read a row; empty strings
    or an empty list mean that it has no answer.
    """

    name: str
    hub_id: str
    config: str | None
    revision: str
    split: str
    question: Callable[[Row], str]
    answers: Callable[[Row], list[str]]


def load_problems(
    name: str,
    split: str | None = None,
    limit: int | None = None,
    calibration: bool = False,
    *,
    seed: int = 0,
    shots: int = 0,
    mirror: Path | None = None,
    revision: str | None = None,
) -> Dataset:
    """Load a benchmark or training set, with the columns that the module describes.

    Args:
        name: A name in `BENCHMARKS` or `TRAINING_SETS`, or one of the sandbox. ``"gsm8k"`` is both, and by default the
            benchmark.
        split: Split of the set, by default the registry's.
        limit: Number of problems to take from the start of the set, by default all. The sandbox draws them, by default
            as many as its profile has.
        calibration: Whether the prompt asks for a stated confidence.
        seed: Seed of the sandbox's problems; other sets ignore it.
        shots: Number of worked examples at the start of each prompt, for the sandbox only.
        mirror: Folder with ``<name>/<split>.jsonl``, or ``.jsonl.gz``, with the Hub's columns. By default the folder
            that the environment variable ``AMIR_GRPO_DATA`` names; without either, the Hub.
        revision: Commit, tag or branch on the Hub, by default the registry's.

    Returns:
        The problems; ``info.description`` says where they came from, with the commit if the Hub gives it.

    Raises:
        ValueError: If the set is unknown or empty, the limit is not positive, a row has no question or no answer, or
            the set has no such split, prompt or worked examples.
        FileNotFoundError: If the mirror does not hold the split.
        ConnectionError: If the Hub cannot be reached or does not hold the set.
    """
    check_names("set of problems", [name], sorted({*BENCHMARKS, *TRAINING_SETS, *ALL_FAMILIES, *TRAINED_ON}))
    if limit is not None and limit < 1:
        raise ValueError(f"The limit must be at least 1, not {limit}.")
    if name in TRAINED_ON or name in ALL_FAMILIES:
        if split not in (None, *(["train"] if name in TRAINED_ON else [])) or calibration:
            raise ValueError(f"{name!r} is made on the spot: it has no splits and no calibrated prompt.")
        return load_sandbox(name, limit, seed, shots)
    if shots:
        raise ValueError(f"shots is {shots}, and {name} has no worked examples: set shots to 0, or use stories.")
    entry = BENCHMARKS.get(name) or TRAINING_SETS[name]
    entry = replace(entry, revision=revision or entry.revision, split=split or entry.split)
    rows, source = _rows(entry, mirror or os.environ.get(MIRROR_VARIABLE))
    records = list(_records(rows, entry, source, limit, CALIBRATED_PROMPT if calibration else BASE_PROMPT))
    if not records:
        raise ValueError(f"{source} holds no problems.\nPut the {entry.split} split of {entry.hub_id} there.")
    dataset = Dataset.from_list(records, features=_FEATURES)
    dataset.info.description = f"{name}, {entry.split} split, from {source}"
    return dataset


def fingerprint(dataset: Dataset) -> str:
    """Hash the problems into 16 hexadecimal digits: the same from the Hub and from a mirror, on every machine."""
    digest = hashlib.sha256()
    for row in dataset:
        record = [row[column] for column in _FEATURES]
        digest.update(json.dumps(record, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


# --- sources ------------------------------------------------------------------------------------------------------


def _rows(entry: ProblemSet, folder: str | Path | None) -> tuple[Iterable[Row], str]:
    """Return the rows of a set and their source: a mirror in `folder` if one is given, else the Hub."""
    if not folder:
        return _hub_rows(entry)
    path = Path(folder) / entry.name / f"{entry.split}.jsonl"
    for there in (path, path.with_name(f"{path.name}.gz")):
        if there.is_file():
            return json_lines(there), str(there)
    arguments = ", ".join(repr(part) for part in (entry.hub_id, entry.config) if part)
    raise FileNotFoundError(
        f"The mirror has no {path}.\n"
        f"Write it on a machine with a network: load_dataset({arguments}, split={entry.split!r}).to_json(...),\n"
        f"or unset {MIRROR_VARIABLE} to load from the Hub."
    )


def _hub_rows(entry: ProblemSet) -> tuple[Iterable[Row], str]:
    where = f"{entry.hub_id}{f' ({entry.config})' if entry.config else ''} at revision {entry.revision}"
    try:
        with hub_or_cache():
            rows = load_dataset(entry.hub_id, entry.config, split=entry.split, revision=entry.revision)
    except OSError as error:
        cause = str(error).strip().split("\n")[0][:200]
        raise ConnectionError(
            f"{where} could not be loaded from the Hub: {cause}\n"
            f"Without a network, set {MIRROR_VARIABLE} to a folder that holds {entry.name}/{entry.split}.jsonl."
        ) from error
    # the URLs of downloaded files name the commit, as in hf://datasets/a/b@<commit>/…
    commits = set(re.findall(r"@([0-9a-f]{40})/", " ".join(map(str, rows.info.download_checksums or ()))))
    return rows, f"{where}, commit {commits.pop()}" if len(commits) == 1 else where


def _records(
    rows: Iterable[Row], entry: ProblemSet, source: str, limit: int | None, system_prompt: str
) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(itertools.islice(rows, limit)):
        where = f"{source}, row {number + 1}"
        question = _read(entry.question, row, f"{where}: no question")
        answers = [answer.strip() for answer in _read(entry.answers, row, f"{where}: no answer")]
        if any("\ud800" <= c <= "\udfff" for text in (question, *answers) for c in text):
            raise ValueError(f"{where}: holds half of a surrogate pair.\nCorrect the row.")
        if not question.strip():
            raise ValueError(f"{where}: no question.")
        if not answers or not all(answers):
            raise ValueError(f"{where}: no answer.\nCorrect or remove the row; its columns: {list(row)}.")
        yield {
            "id": f"{entry.name}-{entry.split}-{number:05d}",
            "question": question,
            "answer": answers,
            "prompt": [{"role": "system", "content": system_prompt}, {"role": "user", "content": question}],
        }


def _read(reader: Callable[[Row], Any], row: Row, lacking: str) -> Any:
    try:
        return reader(row)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        message = f"{lacking} ({type(error).__name__}: {error}).\nIt needs the Hub's columns; the row has {list(row)}."
        raise ValueError(message) from None


# --- reading the rows ---------------------------------------------------------------------------------------------


def _text(column: str) -> Callable[[Row], str]:
    def read(row: Row) -> str:
        if not isinstance(row[column], str):
            raise TypeError(f"{repr(row[column])[:40]} is not a text")
        return row[column]

    return read


def _one(column: str) -> Callable[[Row], list[str]]:
    """Read a text or a number; refuse a list, since it is unclear whether all or any of its items are wanted."""

    def read(row: Row) -> list[str]:
        if isinstance(row[column], Sequence) and not isinstance(row[column], str):
            raise TypeError(f"{repr(row[column])[:40]} is a list; the set has one answer a row")
        return gold_answers(row[column])

    return read


def _after_hashes(row: Row) -> list[str]:
    """Read the answer of GSM8K: the text after ``####``, without thousands separators."""
    _, hashes, answer = row["answer"].rpartition("####")
    return [answer.replace(",", "")] if hashes else []


def _without_dollars(row: Row) -> list[str]:
    return [answer.strip().strip("$") for answer in _one("answer")(row)]


def _boxed(row: Row) -> list[str]:
    r"""Read the answer of MATH: the last ``\boxed{...}`` or ``\fbox{...}`` of the solution, or one without braces."""
    solution = row["solution"].replace("\\fbox", "\\boxed")
    _, command, after = solution.rpartition("\\boxed")
    if not command:
        return []
    if not after.lstrip().startswith("{"):
        return [after.lstrip().split("$")[0].rstrip(" .")]
    content = last_boxed(solution)
    return [] if content is None else [content]


# Some rows carry the label twice: "A)A)59".
_OPTION = re.compile(r"\s*(?P<letter>[A-E])\s*\)\s*(?:(?P=letter)\s*\)\s*)?(?P<value>.*)", re.DOTALL)


def _options(row: Row) -> list[tuple[str, str]]:
    matches = [_OPTION.fullmatch(option) for option in row["options"]]
    return [(match["letter"], match["value"].strip()) for match in matches if match]


def _with_options(row: Row) -> str:
    options = "\n".join(f"{letter}) {value}" for letter, value in _options(row))
    return f"{row['question']}\n\nOptions:\n{options}"


def _letter_and_value(row: Row) -> list[str]:
    """Read the answers of AQuA-RAT: the letter of the right option, and its value unless the option is empty."""
    letter = row["correct"].strip()
    value = dict(_options(row)).get(letter)
    if value is None:
        return []
    return [letter, value] if value else [letter]


# --- the registry -------------------------------------------------------------------------------------------------

# Copies of competition_math with all 12,500 problems in one split include MATH-500; this train split does not.
_SETS = """
gsm8k          openai/gsm8k                      main                 740312add88f781978c0658806c59bc2815b9866  test
math500        HuggingFaceH4/MATH-500            -                    6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be  test
aime25         math-ai/aime25                    -                    563bb8404243c5f09de6ec262f2db674fe5bce9b  test
olympiadbench  Hothan/OlympiadBench              OE_TO_maths_en_COMP  91184b52131e7fc9455fef848035173aea8cc01a  train
amc23          math-ai/amc23                     -                    80815d37005feb82cd7f8fbc6901d5d3eff43057  test
minervamath    math-ai/minervamath               -                    ee46ddc498933b1977577953250ca5c66be64f96  test
aquarat        deepmind/aqua_rat                 raw                  33301c6a050c96af81f63cad5562cb5363e88971  test
livemathbench  opencompass/LiveMathBench         v202412_AMC_en       main                                      test
math           DigitalLearningGmbH/MATH-lighteval default             0530c78699ea5e8eb5530600900e1f328b48acad  train
dapo_math      open-r1/DAPO-Math-17k-Processed   en                   31dd309567e3da778038cc87d868b6097a3ccf68  train
"""
# How to read the question and the right answers if they are not in the columns question and answer.
_QUESTIONS = {name: _text("problem") for name in ("math500", "aime25", "math")}
_QUESTIONS |= {"aquarat": _with_options, "dapo_math": _text("prompt")}
_ANSWERS = {"gsm8k": _after_hashes, "aquarat": _letter_and_value, "livemathbench": _without_dollars, "math": _boxed}
_ANSWERS |= {"dapo_math": _one("solution"), "olympiadbench": lambda row: gold_answers(row["final_answer"])}


def _registry() -> Iterator[ProblemSet]:
    for line in _SETS.strip().splitlines():
        name, hub_id, config, *where = line.split()
        readers = _QUESTIONS.get(name, _text("question")), _ANSWERS.get(name, _one("answer"))
        yield ProblemSet(name, hub_id, None if config == "-" else config, *where, *readers)


BENCHMARKS = {entry.name: entry for entry in _registry()}
TRAINING_SETS = {name: replace(BENCHMARKS[name], split="train") for name in ("gsm8k", "math", "dapo_math")}
del BENCHMARKS["math"], BENCHMARKS["dapo_math"]
