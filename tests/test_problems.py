"""Problems: rows in the Hub's own columns, written here and read through the mirror and through a stand-in Hub."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from amir_grpo import problems
from amir_grpo.problems import (
    BASE_PROMPT,
    BENCHMARKS,
    CALIBRATED_PROMPT,
    TRAINING_SETS,
    fingerprint,
    load_problems,
)
from amir_grpo.sandbox.problems import FAMILIES
from amir_grpo.system import network

REAL = Path(__file__).parents[2] / "shared" / "benchmarks"
needs_benchmarks = pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/benchmarks, which is not here")

# name and split, a row as the Hub has it, the answers
ROWS = [
    ("gsm8k test", {"question": "?", "answer": "1000 + 125 = <<1000+125=1125>>1125\n#### 1,125"}, ["1125"]),
    ("gsm8k train", {"question": "How far?", "answer": "#### no\n#### -3.5"}, ["-3.5"]),
    ("math500 test", {"problem": "Find $x$.", "answer": r"\frac{14}{3}", "level": 3}, [r"\frac{14}{3}"]),
    ("aime25 test", {"problem": "Find $b$.", "answer": "70"}, ["70"]),
    ("amc23 test", {"id": "../../etc/passwd", "question": "Find $y$.", "answer": "27"}, ["27"]),
    ("olympiadbench train", {"question": "Find all.", "final_answer": ["$69$,$84$"], "unit": None}, ["$69$,$84$"]),
    ("minervamath test", {"question": "Luminosity?", "answer": "I(0) e^{-t}\n"}, ["I(0) e^{-t}"]),
    ("aquarat test", {"question": "?", "options": ["A)21", "B) 2", "C)C)59", "D)$7"], "correct": "C"}, ["C", "59"]),
    ("livemathbench test", {"question": "What is $a$?", "answer": r"$\frac{1}{2}$"}, [r"\frac{1}{2}"]),
    ("livemathbench test", {"question": "What is $a$?", "answer": "$$7$$"}, ["7"]),
    (
        "math train",
        {"problem": "?", "solution": r"\boxed{1}, so $\boxed{\frac{\sqrt{3}}{2}}$."},
        [r"\frac{\sqrt{3}}{2}"],
    ),
    ("math train", {"problem": "?", "solution": r"It is \boxed{\left\{1,2\right\}}."}, [r"\left\{1,2\right\}"]),
    ("math train", {"problem": "Solve.", "solution": r"Thus $\boxed 7$."}, ["7"]),
    ("math train", {"problem": "Solve.", "solution": r"Thus \fbox{x}."}, ["x"]),
    ("dapo_math train", {"prompt": "In triangle $ABC$ …", "solution": "34", "ability": "MATH"}, ["34"]),
]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv(problems.MIRROR_VARIABLE, raising=False)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(folder, name, split, *rows, content=b"", ending=".jsonl"):
    path = folder / name / f"{split}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or lines(*rows))
    return path


def one_error(error, *parts):
    message = str(error.value)
    assert len(message.splitlines()) <= 3
    for part in parts:
        assert str(part) in message


@pytest.mark.parametrize(("place", "row", "answers"), ROWS)
def test_a_row_of_each_set(tmp_path, place, row, answers):
    name, split = place.split()
    path = write(tmp_path, name, split, row)
    dataset = load_problems(name, split, mirror=tmp_path)
    question = next(row[column] for column in ("question", "problem", "prompt") if column in row)
    if name == "aquarat":
        question += "\n\nOptions:\nA) 21\nB) 2\nC) 59\nD) $7"
    assert dataset[0] == {
        "id": f"{name}-{split}-00000",
        "question": question,
        "answer": answers,
        "prompt": [{"role": "system", "content": BASE_PROMPT}, {"role": "user", "content": question}],
    }
    assert str(path) in dataset.info.description
    assert dataset.features == load_problems("chain3", limit=2).features


def test_every_set_is_covered_here():
    splits = [f"{entry.name} {entry.split}" for entry in (*BENCHMARKS.values(), *TRAINING_SETS.values())]
    assert {place for place, *_ in ROWS} == {*splits}


def test_calibration_changes_the_prompt_only(tmp_path):
    write(tmp_path, "amc23", "test", {"question": "Find $y$.", "answer": "27"})
    plain, calibrated = (load_problems("amc23", mirror=tmp_path, calibration=c)[0] for c in (False, True))
    assert calibrated.pop("prompt")[0]["content"] == CALIBRATED_PROMPT
    assert plain.pop("prompt")[0]["content"] == BASE_PROMPT
    assert plain == calibrated


def test_the_prompts_show_the_format_that_is_rewarded():
    from amir_grpo.rewards import has_format

    for prompt, calibration in ((BASE_PROMPT, False), (CALIBRATED_PROMPT, True)):
        shown = prompt[prompt.index("<think>") :].replace("the probability, such as 0.8", "0.8")
        assert has_format(shown, calibration)
        assert "\\\n" not in prompt


def test_limit_takes_the_first(tmp_path):
    write(tmp_path, "amc23", "test", *({"question": f"{i}?", "answer": str(i)} for i in range(5)))
    few = load_problems("amc23", limit=2, mirror=tmp_path)
    assert few["question"] == ["0?", "1?"]
    assert len(load_problems("amc23", limit=99, mirror=tmp_path)) == 5
    with pytest.raises(ValueError, match="at least 1"):
        load_problems("amc23", limit=0, mirror=tmp_path)


def test_the_environment_names_the_mirror_and_the_argument_goes_first(tmp_path, monkeypatch):
    write(tmp_path / "a", "amc23", "test", {"question": "a?", "answer": "1"})
    write(tmp_path / "b", "amc23", "test", {"question": "b?", "answer": "1"})
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path / "a"))
    assert load_problems("amc23")["question"] == ["a?"]
    assert load_problems("amc23", mirror=tmp_path / "b")["question"] == ["b?"]


def test_sandbox_families():
    family = next(iter(FAMILIES))
    assert load_problems(family, limit=5)[:] == load_problems(family)[:5]
    assert len(load_problems("sandbox", limit=7)) == 7
    for arguments in ({"split": "test"}, {"calibration": True}):
        with pytest.raises(ValueError, match="made on the spot"):
            load_problems(family, **arguments)


# --- the Hub ------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub, which is not asked in tests; it remembers what was asked of it."""
    asked = []

    def load_dataset(path, name=None, *, split, revision):
        asked.append((path, name, split, revision))
        dataset = Dataset.from_list([{"question": "Find $y$.", "answer": "27"}])
        dataset.info.download_checksums = {f"hf://datasets/{path}@{COMMIT}/data/test.parquet": {"num_bytes": 1}}
        return dataset

    monkeypatch.setattr(problems, "load_dataset", load_dataset)
    monkeypatch.setattr(network, "hub_answers", lambda: True)
    return asked


def test_the_hub_and_a_mirror_give_the_same_problems(hub, tmp_path):
    write(tmp_path, "amc23", "test", {"question": "Find $y$.", "answer": "27"})
    ours, mirrored = load_problems("amc23"), load_problems("amc23", mirror=tmp_path)
    assert ours[:] == mirrored[:]
    assert fingerprint(ours) == fingerprint(mirrored)
    assert hub == [("math-ai/amc23", None, "test", "80815d37005feb82cd7f8fbc6901d5d3eff43057")]


@pytest.mark.parametrize("entry", {**BENCHMARKS, **TRAINING_SETS}.values(), ids=lambda entry: entry.name)
def test_revisions_are_commits(entry):
    unknown = entry.name == "livemathbench"  # as the module says
    assert entry.revision == "main" if unknown else re.fullmatch("[0-9a-f]{40}", entry.revision)


def test_revisions_are_passed_on_and_the_commit_is_recorded(hub):
    dataset = load_problems("amc23", revision="v1")
    assert hub == [("math-ai/amc23", None, "test", "v1")]
    assert dataset.info.description == f"amc23, test split, from math-ai/amc23 at revision v1, commit {COMMIT}"


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), FileNotFoundError("Couldn't find it")])
def test_no_network_names_the_way_out(monkeypatch, error):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(problems, "load_dataset", load_dataset)
    monkeypatch.setattr(network, "hub_answers", lambda: True)
    with pytest.raises(ConnectionError) as raised:
        load_problems("olympiadbench")
    one_error(raised, "Hothan/OlympiadBench (OE_TO_maths_en_COMP)", "AMIR_GRPO_DATA", "olympiadbench/train.jsonl")


def test_fingerprint_depends_on_every_column_and_the_order(tmp_path):
    rows = [{"question": "a?", "answer": "1"}, {"question": "b?", "answer": "2"}]
    seen = []
    for variant in (rows, rows[::-1], rows[:1], [rows[0], {**rows[1], "answer": "3"}]):
        write(tmp_path, "amc23", "test", *variant)
        seen += [fingerprint(load_problems("amc23", mirror=tmp_path, calibration=wanted)) for wanted in (False, True)]
    assert len({*seen}) == len(seen) == 8
    assert all(len(digest) == 16 for digest in seen)


# --- errors -------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError) as raised:
        load_problems("math50")
    one_error(raised, "'math50'", "Did you mean 'math500'?", "olympiadbench", "sandbox", *FAMILIES)


LINES = ['{"question": "Find $y$.", "answer": "27"}', '{"question": "¿Cuánto?", "answer": "3"}']


@pytest.mark.parametrize(
    "content",
    [
        ("\ufeff" + "\n".join(LINES)).encode(),
        ("\r\n".join(LINES) + "\r\n").encode(),
        ("\n\n".join(LINES) + "\n\n").encode(),
        gzip.compress("\n".join(LINES).encode()),
        gzip.compress(("\ufeff" + "\r\n".join(LINES)).encode()),
    ],
    ids=["byte-order mark", "CRLF", "blank lines", "gzip", "gzip of both"],
)
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_mirror_is_read_as_other_programs_write_it(tmp_path, content, ending):
    write(tmp_path, "amc23", "test", content=content, ending=ending)
    found = load_problems("amc23", mirror=tmp_path)
    assert found["question"] == ["Find $y$.", "¿Cuánto?"]
    assert found["answer"] == [["27"], ["3"]]


def with_answer(name, value):
    """A row of a set with another answer."""
    column = {"dapo_math": "solution", "olympiadbench": "final_answer"}.get(name, "answer")
    return {**GOOD[name], column: value}


def default_split(name):
    return (BENCHMARKS.get(name) or TRAINING_SETS[name]).split


NUMBERS = [("amc23", 27, ["27"]), ("aime25", 70, ["70"]), ("amc23", 27.0, ["27"]), ("math500", -0.5, ["-0.5"])]
NUMBERS += [("dapo_math", 34, ["34"]), ("minervamath", 1e-07, ["1e-07"]), ("livemathbench", 7, ["7"])]
# a list means several right answers where the set says so
NUMBERS += [("olympiadbench", 3, ["3"]), ("olympiadbench", ["69", 84], ["69", "84"]), ("olympiadbench", ["2"], ["2"])]


@pytest.mark.parametrize(("name", "value", "answers"), NUMBERS)
def test_a_number_is_an_answer(tmp_path, name, value, answers):
    write(tmp_path, name, default_split(name), with_answer(name, value))
    assert load_problems(name, mirror=tmp_path)["answer"][0] == answers


GOOD = {place.split()[0]: row for place, row, _ in ROWS}
SINGLE = ("amc23", "aime25", "math500", "minervamath", "dapo_math", "livemathbench")
WRONG = [True, float("nan"), float("inf"), {"value": 27}, ["27", None], [True], [[1]]]
NO_ANSWER = [(name, with_answer(name, value)) for name in (*SINGLE, "olympiadbench") for value in WRONG]
NO_ANSWER += [(name, with_answer(name, ["27"])) for name in SINGLE]
NO_ANSWER += [
    ("gsm8k", {"question": "q", "answer": "no hashes"}),
    ("gsm8k", {"question": "q", "answer": "#### "}),
    ("gsm8k", {"question": "q", "answer": None}),
    ("gsm8k", {"question": "q"}),
    ("amc23", {"question": "q", "answer": None}),
    ("amc23", {"question": "q", "answer": " "}),
    ("olympiadbench", {"question": "q", "final_answer": []}),
    ("olympiadbench", {"question": "q", "final_answer": None}),
    ("aquarat", {"question": "q", "options": ["A)1"], "correct": "B"}),
    ("livemathbench", {"question": "q", "answer": "$$"}),
    ("math", {"problem": "q", "solution": "no box"}),
    ("math", {"problem": "q", "solution": r"cut \boxed{1"}),
    ("dapo_math", {"prompt": "q", "solution": None}),
]
REFUSED = [(name, lines(GOOD[name], row), ["row 2", "no answer"]) for name, row in NO_ANSWER]
REFUSED += [
    ("amc23", gzip.compress("\n".join(LINES * 99).encode())[:-9], ["damaged"]),
    ("amc23", b"\x1f\x8b" + b"x" * 30, ["damaged"]),
    ("amc23", LINES[0].encode() + b'\n{"question": "\xff"}', ["row 2", "not UTF-8"]),
    ("amc23", "\n".join(LINES).encode("utf-16"), ["row 1", "not UTF-8"]),
    ("amc23", b'{"question": ' + b"[" * 99999, ["row 1", "not a line of JSON"]),
    ("amc23", b'{"question": 5, "answer": "1"}', ["row 1", "no question", "5 is not a text"]),
    ("amc23", b'{"question": "\\ud800", "answer": "1"}', ["row 1", "half of a surrogate pair"]),
    ("amc23", LINES[0].encode() + b"\n{", ["row 2", "not a line of JSON"]),
    ("amc23", LINES[0].encode() + b"\n[1]", ["row 2", "not a JSON object"]),
    ("amc23", LINES[0].encode() + b'\n{"answer": "1"}', ["row 2", "no question"]),
]


@pytest.mark.parametrize(("name", "content", "reasons"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_that_cannot_be_read_and_a_row_without_an_answer_are_named(tmp_path, name, content, reasons):
    path = write(tmp_path, name, default_split(name), content=content)
    with pytest.raises(ValueError) as raised:
        load_problems(name, mirror=tmp_path)
    one_error(raised, path, *reasons)


def test_without_a_network_a_benchmark_is_refused_in_five_seconds():
    """In a process that a proxy, which is not there, keeps from the Hub; what counts is the waiting before a next try."""
    script = "import time; from amir_grpo.problems import load_problems; waits = []; time.sleep = waits.append\n"
    script += "try: load_problems('amc23')\nexcept ConnectionError as e: print(sum(waits), e)"
    proxies = dict.fromkeys(("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"), "http://127.0.0.1:9")
    environment = {k: v for k, v in os.environ.items() if k not in ("AMIR_GRPO_DATA", "HF_HUB_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment | proxies, capture_output=True, text=True, check=True
    )
    seconds, _, message = done.stdout.partition(" ")
    assert float(seconds) < 5
    assert "math-ai/amc23" in message
    assert "AMIR_GRPO_DATA" in message


def test_a_missing_mirror_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        load_problems("gsm8k", "validation", mirror=tmp_path)
    path = tmp_path / "gsm8k" / "validation.jsonl"
    one_error(raised, path, "load_dataset('openai/gsm8k', 'main', split='validation')", "AMIR_GRPO_DATA")


# --- the real benchmarks ------------------------------------------------------------------------------------------

SIZES = {"gsm8k": 1319, "math500": 500, "aime25": 30, "amc23": 40, "olympiadbench": 675}
SIZES |= {"minervamath": 272, "aquarat": 254}


@needs_benchmarks
@pytest.mark.parametrize("name", SIZES)
def test_the_real_benchmarks_load_whole(name):
    dataset = load_problems(name, mirror=REAL)
    assert len(dataset) == SIZES[name] == len({*dataset["id"]})
    for row in dataset:
        assert row["question"].strip()
        assert all(answer == answer.strip() != "" for answer in row["answer"])
        assert len(row["answer"]) == (2 if name == "aquarat" else 1)


@needs_benchmarks
@pytest.mark.parametrize(("split", "size"), [("train", 7473), ("test", 1319)])
def test_gsm8k_answers_are_plain_numbers(split, size):
    assert len([float(answer) for (answer,) in load_problems("gsm8k", split, mirror=REAL)["answer"]]) == size
