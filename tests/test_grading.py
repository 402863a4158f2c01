r"""Grading: against math-verify itself, the golds of the benchmarks, and text that means harm.

`AMIR_GRPO_ALL_GOLDS=1` grades every gold of the larger benchmarks through math-verify instead of a sample.
"""

import logging
import multiprocessing
import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from math_verify import parse, verify

from amir_grpo import grading
from amir_grpo.answers import plain_text
from amir_grpo.grading import Grader, grade_many, is_correct
from amir_grpo.problems import load_problems

# one worker of xdist, so that there is one grader
pytestmark = pytest.mark.xdist_group("grading")
HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "shared" / "benchmarks"
ALL_GOLDS = bool(os.environ.get("AMIR_GRPO_ALL_GOLDS"))
needs_benchmarks = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs ../shared/benchmarks, which is not here")


def boxed(answer):
    return rf"<think>…</think><answer>\boxed{{{answer}}}</answer>"


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=2) as grader:
        grader.grade([boxed(r"\sqrt{2}"), boxed(r"\sqrt{3}")], ["5", "5"])  # started and warm
        yield grader


# --- single cases ------------------------------------------------------------------------------------------------------


def rows_of(name):
    return [line.split("\t") for line in (HERE / name).read_text(encoding="utf-8").splitlines()[1:]]


def test_what_is_decided_by_notation_and_what_math_verify_compares(grader):
    rows = rows_of("decided_cases.tsv")
    grades = grader.grade([boxed(answer) for answer, *_ in rows], [gold for _, gold, *_ in rows])
    assert [row for row, grade in zip(rows, grades, strict=True) if bool(grade) is not (row[-1] == "yes")] == []
    assert not any(grade.limit for grade in grades)


# --- the kinds of answers and golds that public bug reports brought up ------------------------------------------------


def cases():
    """The lines of grading_cases.tsv by kind; <U+200B> stands for the character."""
    rows = rows_of("grading_cases.tsv")
    return {kind: [row[1:] for row in rows if row[0] == kind] for kind in dict.fromkeys(row[0] for row in rows)}


def written(text):
    return re.sub(r"<U\+(....)>", lambda match: chr(int(match[1], 16)), text)


@pytest.mark.parametrize("kind", cases())
def test_a_kind_of_answers(grader, kind):
    form = str if kind == "boxes" else r"\boxed{{{}}}".format
    rows = [(form(written(answer)), written(gold), right == "yes") for answer, gold, right, _ in cases()[kind]]
    assert {right for _, _, right in rows} == {True, False}
    for others in ([], ["qqq"]):  # any other gold beside it changes nothing
        grades = grader.grade([completion for completion, _, _ in rows], [[*others, gold] for _, gold, _ in rows])
        assert [row for row, grade in zip(rows, grades, strict=True) if bool(grade) is not row[2]] == []


def test_the_docs_say_how_many_cases_math_verify_judges_correctly():
    total = agreed = 0
    for kind, rows in cases().items():
        form = str if kind == "boxes" else r"\boxed{{{}}}".format
        for answer, gold, right, _ in rows:
            says = verify(parse(rf"\boxed{{{written(gold)}}}"), parse(form(written(answer))))
            total, agreed = total + 1, agreed + (says is (right == "yes"))
    page = (Path(__file__).parents[1] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    assert f"Of [{total} cases]" in page
    assert f"alone judges {agreed} correctly;" in page


def test_any_of_several_answers_is_right(grader):
    completions = [boxed("C"), boxed("59"), boxed("C) 59"), boxed("B"), boxed("60")]
    assert [*map(bool, grader.grade(completions, [["C", "59"]] * 5))] == [True, True, True, False, False]
    assert grader.grade([boxed("5")], [[]])[0].correct is False


def test_only_the_completion_counts():
    assert is_correct(boxed("7"), "7") is True
    assert is_correct(r"\boxed{\frac{14}{2}}", ["6", "7"]) is True
    assert is_correct("7", "7") is False


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="2 completions cannot be graded against 1 answers"):
        grade_many(["", ""], ["5"])
    with pytest.raises(ValueError, match="at least one worker"):
        Grader(0)
    with pytest.raises(ValueError, match="at least one worker"):
        grade_many([boxed(1)], ["1"], workers=0)
    assert grade_many([], []) == []


# --- the golds of the benchmarks ----------------------------------------------------------------------------------

SETS = ("gsm8k", "math500", "aime25", "amc23", "olympiadbench", "minervamath")


def golds(name):
    return [answers[0] for answers in load_problems(name, mirror=BENCHMARKS)["answer"]]


@needs_benchmarks
@pytest.mark.parametrize("name", SETS)
def test_every_gold_is_right_against_itself(grader, name):
    values = golds(name)
    for form in (boxed, "<answer>{}</answer>".format, r"So it is \boxed{{{}}}.".format):
        grades = grader.grade([form(value) for value in values], values)
        assert [value for value, grade in zip(values, grades, strict=True) if not grade] == []


def sample(values, size):
    return values if ALL_GOLDS else random.Random(0).sample(values, min(size, len(values)))


@needs_benchmarks
@pytest.mark.parametrize(("name", "size"), [("math500", 100), ("olympiadbench", 100), ("minervamath", 60)])
def test_golds_are_right_against_themselves_by_math_verify(grader, name, size):
    values = sample(sorted({*golds(name)}), size)
    # straight to the workers, past what is decided by notation
    verdicts = grader._compare([(value, (value,)) for value in values])
    assert [value for value, verdict in zip(values, verdicts, strict=True) if verdict is not True] == []


# Pairs of different notation and the same value: right to take one for the other.
SAME_VALUE = {("x=5", "5"), ("$k=3$", "3")}


@needs_benchmarks
@pytest.mark.parametrize(("name", "size"), zip(SETS, (1319, 200, 30, 40, 150, 60), strict=True))
def test_golds_are_wrong_against_those_of_other_problems(grader, name, size):
    values = sample(golds(name), size)
    pairs = [
        (answer, gold)
        for shift in ((1, 7, 31) if ALL_GOLDS else (1,))
        for answer, gold in zip(values[shift:] + values[:shift], values, strict=True)
        if plain_text(answer) != plain_text(gold)
    ]
    grades = grader.grade([boxed(answer) for answer, _ in pairs], [gold for _, gold in pairs])
    taken = {pair for pair, grade in zip(pairs, grades, strict=True) if grade}
    assert taken <= SAME_VALUE


@needs_benchmarks
def test_multiple_choice_by_letter_or_value(grader):
    answers = load_problems("aquarat", mirror=BENCHMARKS)["answer"]
    for index in (0, 1):
        assert all(grader.grade([boxed(answer[index]) for answer in answers], answers))
    assert all(grader.grade([boxed(f"{letter}) {value}") for letter, value in answers], answers))
    others = [boxed("ABCDE"[("ABCDE".index(letter) + 1) % 5]) for letter, _ in answers]
    assert not any(grader.grade(others, answers))


# --- text that means harm -----------------------------------------------------------------------------------------

HOSTILE = {
    "tower of powers": r"9^{9^{9^9}}",
    "factorial": "9999999999!",
    "power of a sum": "(x+y+z+1)^{500}",
    "braces": "{" * 1990,
    "long": "1+" * 50_000 + "1",
    "python tower": "9**9**9**9",
    "NUL": "\0\0 5\0",
    "surrogates": "\ud800 5 \udfff",
    "newlines": "5\n[true]\ntrue\n",
    "quotes": '"]\ntrue',
}
UNSTOPPED = {"python tower", "NUL", "surrogates", "newlines", "quotes"}
COSTLY = {"factorial", "power of a sum"}  # stopped as a tower of powers is


@pytest.mark.timeout(600)  # each ends after 2 s of CPU time, or 20 s whatever it does
@pytest.mark.parametrize("names", [HOSTILE.keys() - COSTLY, pytest.param(HOSTILE.keys(), marks=pytest.mark.long)])
def test_hostile_answers_are_wrong_in_bounded_time(grader, caplog, names):
    texts = {name: text for name, text in HOSTILE.items() if name in names}
    with caplog.at_level(logging.WARNING, logger="amir_grpo.grading"):
        grades = grader.grade([boxed(text) for text in texts.values()], [r"\frac{\sqrt 2}{2}"] * len(texts))
    assert not any(grades)
    limits = {name: grade.limit for name, grade in zip(texts, grades, strict=True)}
    assert {name for name, limit in limits.items() if limit is None} == UNSTOPPED
    assert limits["long"] == "length"
    assert {limits[name] for name in limits.keys() - UNSTOPPED - {"long"}} <= {"time", "memory", "crash"}
    assert f"{len(texts) - len(UNSTOPPED)} graded as wrong because they hit a limit" in caplog.text
    assert grader.grade([boxed(r"\sqrt{8}")], [r"2\sqrt{2}"])[0].correct  # the grader is none the worse


@pytest.mark.timeout(600)  # measured: 0.01 to 3 s each, and days for what would be quadratic
@pytest.mark.parametrize("size", [1_000_000, pytest.param(10_000_000, marks=pytest.mark.long)])
def test_megabytes_of_anything_are_read_in_linear_time(size):
    texts = [
        "{" * size,
        r"\boxed" + "{" * size,
        r"\boxed{" + "{}" * (size // 2),
        r"\boxed{" * (size // 7),
        "<answer>" * (size // 8),
        "<answer>" + "{" * size + "</answer>",
    ]
    assert not any(grade_many(texts, ["5"] * len(texts)))


CODE = [
    "__import__('os').system('touch {path}')",
    "__import__('pathlib').Path('{path}').touch()",
    r"\text{{__import__('os').system('touch {path}')}}",
    "().__class__.__base__.__subclasses__()",
    "5; open('{path}', 'w')",
    "1 + open('{path}', 'w').write('x')",
    r"\operatorname{{exec}}(open('{path}','w'))",
    "[x for x in [open('{path}','w')]]",
    r"\input{{|touch {path}}}",
    r"\write18{{touch {path}}}",
    "lambda: open('{path}', 'w')",
    "`touch {path}` $(touch {path})",
]


def test_no_code_is_executed(grader, tmp_path):
    target = tmp_path / "touched"
    answers = [code.format(path=target) for code in CODE]
    for form in (boxed, "<answer>{}</answer>".format):
        assert not any(grader.grade([form(answer) for answer in answers], ["7"] * len(answers)))
    assert not target.exists()


IN_WORKER = """
import sys
from amir_grpo import _grading_worker as worker
worker._limit_process(2**30)
print(sorted({"torch", "trl", "numpy"} & {*sys.modules}))
for code in sys.argv[1:]:
    try:
        print(eval(code) and "done")
    except (PermissionError, MemoryError) as error:
        print(type(error).__name__)
"""


def test_even_code_that_ran_could_do_little_and_a_worker_imports_no_torch(tmp_path):
    target = tmp_path / "touched"
    refused = [f"open({str(target)!r}, 'w')", f"__import__('os').system('touch {target}')", "__import__('os').fork()"]
    program = [sys.executable, "-c", IN_WORKER, *refused, "bytearray(100 << 20)", "bytearray(2 << 30)"]
    said = subprocess.run(program, capture_output=True, text=True, timeout=600).stdout.splitlines()
    assert said[:5] == ["[]", *["PermissionError"] * 3, "done"]
    assert said[5:] == ["MemoryError"] or sys.platform != "linux"  # elsewhere the address space is not limited
    assert not target.exists()


@pytest.mark.parametrize(
    ("end", "limit"),
    [
        ("raise MemoryError", "memory"),
        ("os.kill(os.getpid(), 9)", "memory"),
        ("os.kill(os.getpid(), signal.SIGPROF)", "time"),
        ("os._exit(3)", "crash"),
    ],
)
def test_how_a_worker_ended_says_what_it_was_short_of(end, limit):
    worker = grading._Worker()
    program = [sys.executable, "-c", f"import os, signal; input(); {end}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    worker._process = subprocess.Popen(program, **pipes)
    assert worker.compare("x", ("y",)) == limit


# --- workers ------------------------------------------------------------------------------------------------------


def test_ordinary_rewards_start_no_process(monkeypatch):
    monkeypatch.setattr(grading._Worker, "compare", None)
    assert sum(map(bool, Grader(workers=1).grade([boxed(i % 7) for i in range(128)], ["3"] * 128))) == 18


def test_of_ordinary_completions_few_are_compared_by_math_verify_and_each_pair_once(monkeypatch):
    """It takes milliseconds for each; the rest is decided by notation, thousands a second."""
    draw, asked, pairs = random.Random(0), [], []
    forms = ["{}", "{}", r"\frac{{{}}}{{7}}", r"{}\sqrt{{3}}", "({}, -2)"]
    for _ in range(250):  # problems of MATH's kind, eight completions each: half right, few different wrong answers
        gold, *wrong = map(draw.choice(forms).format, draw.sample(range(2, 500), 3))
        pairs += [(boxed(gold if draw.random() < 0.5 else draw.choice(wrong)), gold) for _ in range(8)]
    monkeypatch.setattr(grading._Worker, "compare", lambda self, *pair: asked.append(pair) or False)
    with Grader(workers=1) as counting:
        for _ in range(2):
            counting.grade(*zip(*pairs, strict=True))
    assert 0 < len(asked) < 0.2 * len(pairs)
    assert len(asked) == len(set(asked))


def test_a_worker_that_died_or_was_closed_is_replaced():
    with Grader(workers=1) as lone:
        assert lone.grade([boxed(r"\sqrt{8}")], [r"2\sqrt{2}"])[0]
        process = lone._idle[0]._process
        process.kill()
        process.wait()
        assert lone.grade([boxed(r"\sqrt{12}")], [r"2\sqrt{3}"])[0]
        process = lone._idle[0]._process
        lone.close()
        assert process.poll() is not None
        assert lone.grade([boxed(r"\sqrt{18}")], [r"3\sqrt{2}"])[0]


def test_threads_share_a_grader(grader):
    def work(index):
        pairs = [(boxed(rf"\sqrt{{{k * k * index}}}"), rf"{k}\sqrt{{{index}}}") for k in range(2, 6)]
        return all(grader.grade(*zip(*pairs, strict=True)))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, (2, 3, 5, 7)))


def grade_in_child(grader, connection):
    connection.send([bool(grade) for grade in grader.grade([boxed(r"\sqrt{18}")], [r"3\sqrt{2}"])])
    grader.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_process_gets_workers_of_its_own(grader):
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=grade_in_child, args=(grader, there))
    child.start()
    assert here.poll(600)
    assert here.recv() == [True]
    child.join(600)
    assert child.exitcode == 0
    assert grader.grade([boxed(r"\sqrt{50}")], [r"5\sqrt{2}"])[0]


def test_a_script_without_a_main_guard(tmp_path):
    """Workers are no forks and do not run the main module again; they end with the script, and nothing imports torch."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(grading.__file__).parents[1])!r})\n"
        "from amir_grpo import grading\n"
        "print('once')\n"
        rf"right = grading.is_correct(r'\boxed{{\sqrt{{8}}}}', r'2\sqrt{{2}}')"
        "\nprint(right, grading._shared_grader(2)._idle[-1]._process.pid)\n"
        "print('torch' in sys.modules, 'sympy' in sys.modules)\n"
    )
    # a module of the working directory must not get into the workers
    (tmp_path / "sympy.py").write_text("raise SystemExit('imported from the working directory')")
    run = subprocess.run([sys.executable, "-P", script], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    first, verdict, imports = run.stdout.splitlines()
    assert first == "once"
    assert verdict.startswith("True ")
    assert imports == "False False"
    with pytest.raises(ProcessLookupError):
        os.kill(int(verdict.split()[1]), 0)


def test_a_worker_that_cannot_start_says_so(monkeypatch):
    monkeypatch.setattr(grading.sys, "executable", "/bin/false")
    with Grader(workers=1) as lone, pytest.raises(RuntimeError, match="could not be started"):
        lone.grade([boxed(r"\sqrt{2}")], [r"\sqrt{3}"])
