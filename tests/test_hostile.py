"""Untrusted text: what a policy or a data set says reaches no interpreter, no path and no output as anything but text."""

import json
import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from amir_grpo import cli, notebook
from amir_grpo import problems as problem_sets
from amir_grpo.policies import sampling
from amir_grpo.runs.reproduce import write_page
from amir_grpo.runs.run import open_run
from tests.cells import SHOWING, run_cells, show_results

# one worker of xdist, so that what the module shares is made once
pytestmark = pytest.mark.xdist_group("hostile")
HOSTILE = [
    "<script>alert(1)</script><think>x</think><answer>\\boxed{2}</answer>",
    "<img src=x onerror=alert(1)>",
    "</pre></td></table><iframe src='//evil'></iframe>",
    "$\\href{javascript:alert(1)}{x}$ \\(\\unicode{x3c}script\\)",
    "[click](javascript:alert(1)) ![x](http://evil/x.png)",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00 \u202egnp.exe \u2066\u202a\u200f\x85\x90",
    '=HYPERLINK("http://evil") +1+1 @SUM(A1)',
    "{{ 7*7 }} {% for x in range(9) %}{% endfor %} __import__('os').system('touch pwned')",
]


def answers(engine, problems, num_samples, **options):
    """In place of sampling: hostile completions."""
    for problem in problems["id"]:
        texts = [HOSTILE[n % len(HOSTILE)] for n in range(num_samples)]
        yield pd.DataFrame(
            {
                "problem_id": problem,
                "sample": range(num_samples),
                "text": texts,
                "completion_ids": [[5, 6]] * num_samples,
                "tokens": 2,
                "finish_reason": "stop",
                "logprob": -1.0,
            }
        )


@pytest.fixture
def hostile_problems(monkeypatch):
    """Hostile questions, and hostile answers beside the right ones, under prompts that the tiny policy can read."""
    plain = problem_sets.load_sandbox

    def load_sandbox(*arguments):
        def spoil(row, number):
            text = HOSTILE[number % len(HOSTILE)].replace("\x00", "")
            return {"question": text, "answer": [*row["answer"], text]}

        return plain(*arguments).map(spoil, with_indices=True)

    monkeypatch.setattr(problem_sets, "load_sandbox", load_sandbox)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# what a browser would run or fetch of the hostile texts
ACTIVE = re.compile(
    r"""<script>alert|<iframe|<img src=x|<[^>&]*\s(onerror=|(src|href)=.?((https?:)?//evil|javascript:))"""
)


def is_inert_page(path):
    page = path.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page, "the hostile completions are on the page"
    assert not ACTIVE.search(page), ACTIVE.search(page)[0]
    assert not CONTROL.search(page)


def is_inert_picture(path):
    tree = ElementTree.parse(path)
    kinds = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert not kinds & {"script", "foreignObject", "image"}


def is_inert_table(path):
    assert not CONTROL.search(path.read_text(encoding="utf-8"))
    table = pd.read_csv(path)
    for column in table.select_dtypes(exclude="number"):
        assert not table[column].dropna().str.match(r"[=+\-@\t]").any(), column


def is_inert_text(path):
    text = path.read_text(encoding="utf-8")
    assert not CONTROL.search(text)
    assert not re.search(r"<script|<iframe|<img|\]\(javascript:", text)


def is_json(path):
    text = path.read_text(encoding="utf-8")
    assert not CONTROL.search(text), "escaped, as JSON wants it"
    for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
        json.loads(line)


def is_for_programs(path):
    """Nothing that a person, a browser or a spreadsheet opens."""


# by ending, every kind of file that a run, an export or a comparison leaves: a new kind has to be added
OUTLETS = {
    ".html": is_inert_page,
    ".ipynb": is_json,
    ".svg": is_inert_picture,
    ".csv": is_inert_table,
    ".md": is_inert_text,
    ".json": is_json,
    ".jsonl": is_json,
    **dict.fromkeys(
        (".png", ".parquet", ".safetensors", ".pt", ".pth", ".bin", ".jinja", ".lock", ""), is_for_programs
    ),
}


def test_every_outlet_shows_hostile_text_as_text(runs, tiny_settings, hostile_problems, tmp_path, monkeypatch, capsys):
    """Everything that is written and printed from training to export, found by looking at what is there."""
    monkeypatch.setattr(sampling, "draw_batches", answers)
    hostile = open_run("sandbox", runs / "every outlet", tiny_settings | {"benchmarks": ["chain3"], "eval_limit": 8})
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    show_results(hostile.folder)
    write_page(hostile.folder, SHOWING)
    cli.main(["export", "--run_dir", str(hostile.folder), "--merged", "--out", str(tmp_path / "merged")])
    cli.main(["export", "--run_dir", str(hostile.folder), "--results", str(tmp_path / "results")])
    cli.main(["evaluate", "--run_dir", str(hostile.folder)])
    printed = "".join(capsys.readouterr())
    assert not CONTROL.search(printed.replace("\r", "")), "the terminal"
    assert set(hostile.samples(["base"])["text"]) == set(HOSTILE)
    assert not list(here.iterdir()), "nothing that a completion says is run"
    files = [path for folder in (hostile.folder, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= set(OUTLETS)
    assert {".html", ".svg", ".csv", ".md", ".json", ".jsonl"} <= {path.suffix for path in files}
    for path in files:
        OUTLETS[path.suffix](path)
        assert re.fullmatch(r"[\w.()=+-]+", path.name), "no text becomes a name"


def test_tables_with_texts_show_them_as_text():
    html = notebook.show_table(pd.DataFrame({"text": HOSTILE, "n": 1.0}), caption=HOSTILE[0]).to_html()
    assert "<script" not in html
    assert "<img" not in html
    assert "<iframe" not in html
    assert "\x1b" not in html
    assert "\x00" not in html
    assert re.search(r'<table[^>]*class="tex2jax_ignore mathjax_ignore"', html), "mathematics is not typeset"


def test_visible_keeps_text_and_lines():
    assert notebook.visible("7+8=15\n\tö 数 🙂") == "7+8=15\n\tö 数 🙂"
    assert notebook.visible("a\x1b[31mb\x00\ud800") == "a�[31mb��"


def mirror(folder, *rows):
    path = folder / "amc23" / "test.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_notebook_that_shows_problems_shows_them_as_text(base, tmp_path, monkeypatch):
    questions = [text.replace("\x00", "") for text in HOSTILE]
    gsm8k = tmp_path / "mirror" / "gsm8k"
    gsm8k.mkdir(parents=True)
    rows = [{"question": text, "answer": "#### 2"} for text in questions]
    (gsm8k / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mirror(tmp_path / "mirror", *({"question": text, "answer": "<b>2</b>"} for text in questions))
    settings = {"model_name": str(base), "dataset_name": "gsm8k", "benchmarks": ["amc23"], "num_samples": 2, "ks": [1]}
    monkeypatch.setenv("AMIR_GRPO_DATA", str(tmp_path / "mirror"))
    data, printed = run_cells(
        "00_base_policy", profile="smoke", run_dir=str(tmp_path / "run"), overrides=settings | {"eval_limit": 3}
    )
    pages = [output.get("text/html", "") for output in data]
    assert any("&lt;script&gt;alert(1)" in page for page in pages), "the hostile problems are shown"
    for page in pages:
        assert not re.search(r"<script|<iframe|<img|<b>", page)
    assert "<script>alert(1)" in printed, "so is the first prompt, as plain text"
    assert "\x1b" not in printed
