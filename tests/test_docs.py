"""README, CONTRIBUTING and the pages of docs/: their links lead somewhere, and their code blocks run.

A block that cannot run here as it stands runs as far as a CPU can: a tiny policy takes the place of a model of the Hub, the
sandbox's problems that of a data set, and a setting or two makes it short. Commands for other profiles than the sandbox's
are parsed, and their settings checked.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import amir_grpo
from amir_grpo import cli, problems
from amir_grpo.options import parse
from amir_grpo.policies import smollm2
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.settings import FIELDS, PROFILES, settings_of

ROOT = Path(__file__).parents[1]
# running.md first: it trains
PATTERNS = ("docs/running.md", "*.md", ".github/*.md", "docs/*.md")
PAGES = list(dict.fromkeys(path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))))
MAKE_TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def blocks(*languages):
    """Yield the code blocks of all pages, as text by the place where it begins."""
    for path in PAGES:
        page = path.read_text()
        for match in re.finditer(r"^```([^`\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            if match[1] in languages:
                yield f"{path.relative_to(ROOT).as_posix()}:{page[: match.start()].count(chr(10)) + 1}", match[2]


# Every command line once, with the block where it stands first.
COMMANDS = {}
for place, text in blocks("", "bash", "console"):
    for line in text.splitlines():
        if words := tuple(shlex.split(line.removeprefix("$ "), comments=True)):
            COMMANDS.setdefault(words, place)


# --- links --------------------------------------------------------------------------------------------------------


def anchors(path):
    """What GitHub and MyST make of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        own = re.search(r"amir-grpo/amir-grpo/(?:blob/)?main(?:/|\?labpath=)(.+)", target)
        if own:  # on GitHub, Colab, Kaggle and Binder
            assert (ROOT / own[1].replace("%2F", "/")).exists(), f"{page.name} links to {target}"
        elif not re.match(r"https?:|mailto:", target):
            name, _, anchor = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            assert there.exists(), f"{page.name} links to {target}, which is not there"
            assert not anchor or anchor in anchors(there), f"{page.name}: no heading makes {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(page):
    folders = "amir_grpo|benchmarks|configs|data|figures|notebooks|tests|tools|docs|[.]ci|[.]github"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text()):
        assert (ROOT / name).exists() or "docs/_build" in name, f"{page.name} names {name}, which is not there"


# --- Python -------------------------------------------------------------------------------------------------------


# a training of two steps of 8 completions on a CPU
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "optim": "sgd",
}


@pytest.mark.parametrize(("place", "text"), [pytest.param(*block, id=block[0]) for block in blocks("python")])
def test_python_block_runs(place, text, base, tmp_path, monkeypatch):
    if text.startswith(("from verl", "from swift", "from openrlhf")):
        pytest.skip("tests/test_frameworks.py runs it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(problems, "load_problems", lambda name, split: load_sandbox("sandbox", 16))
    text = text.replace('"Qwen/Qwen2.5-0.5B-Instruct"', repr(str(base)))
    text = re.sub(r'AmirGRPOConfig\(\s*"out"', 'AmirGRPOConfig("out", **small', text)
    names = {"small": SMALL, "__name__": "block"}
    exec(compile(text, place, "exec"), names)
    if "trainer.train()" in text:
        log = names["trainer"].state.log_history
        assert any("preference/pairs" in row for row in log), "no preference term was logged"
        assert names["trainer"].state.global_step == SMALL["max_steps"]
    if "save_model" in text:
        assert list(tmp_path.glob("out/**/adapter_model.safetensors"))


# --- commands -----------------------------------------------------------------------------------------------------


def check_command(words):
    """See that a command line names what there is: files, extras, targets, settings."""
    program, *rest = words[1:] if re.fullmatch(r"[A-Z_]+=\S+", words[0]) else words
    program = program.removeprefix(".venv/bin/")
    assert program in ("make", "papermill", "pip", "pytest", "python", "accelerate", "docker"), (
        "not known to this test"
    )
    for word in rest:
        if re.match(r"(notebooks|configs|tests|benchmarks)/|requirements\.lock", word):
            assert (ROOT / word.partition("::")[0]).exists(), word
        if extras := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(EXTRAS)
    if program == "make":
        assert rest[0] in MAKE_TARGETS
    elif program == "papermill":
        given = dict(zip(rest[3::3], rest[4::3], strict=True))
        assert set(rest[2::3]) <= {"-p"}
        settings_of(given.pop("profile", "sandbox"), json.loads(given.pop("overrides", "{}")))
        assert set(given) <= {"method", "run_dir"}
    elif rest[:2] == ["download", "--no-deps"]:
        assert rest[2] == smollm2.REQUIREMENT


def own_words(words):
    """Return the words after `-m amir_grpo`; none of another command."""
    joined = shlex.join(words)
    return shlex.split(joined.partition(" -m amir_grpo ")[2])


def test_commands_name_what_there_is():
    for words, place in COMMANDS.items():
        line = shlex.join(words)
        try:
            check_command(words)
            if (own := own_words(words)) and own[0] not in ("--help", "verify") and "--help" not in own:
                options = parse(own[0], cli.COMMANDS[own[0]], own[1:])
                profile = "sandbox" if options.get("profile") in (None, "auto") else options["profile"]
                changed = {name: value for name, value in options.items() if name in FIELDS}
                if own[0] == "evaluate":  # where a benchmark may stand for a training set
                    known = (*problems.BENCHMARKS, *settings_of(profile).evaluation.benchmarks)
                    assert changed.pop("dataset_name", known[0]) in known
                settings_of(profile, changed)
        except (AssertionError, ValueError, SystemExit, OSError, TypeError, LookupError) as error:
            raise AssertionError(f"{place}: {line}\n{error}") from error


READERS = ("compare", "doctor")


def of_the_sandbox(words):
    command, *words = words
    if command in READERS:
        return all(word.startswith("runs/sandbox") for word in words)
    if command in ("--help", "verify"):
        return True
    given = words[words.index("--profile") + 1] if "--profile" in words else "sandbox"
    slow = command in ("reproduce", "evidence", "plan") and "--help" not in words
    return given == "sandbox" and not slow


def test_commands_on_the_sandbox_run(runs, tiny_settings, tmp_path, monkeypatch, capsys):
    """In a folder that is no clone, as of an installed package; with a tiny policy, a step and two problems a benchmark."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".cache").symlink_to(runs / ".cache")
    monkeypatch.chdir(tmp_path)
    short = []
    tiniest = {"max_steps": 2, "per_device_train_batch_size": 8, "eval_limit": 2}
    for name, value in (tiny_settings | tiniest).items():
        short += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    # what reads a run comes last
    own = {tuple(own_words(words)): place for words, place in COMMANDS.items() if own_words(words)}
    for arguments, place in sorted(own.items(), key=lambda item: item[0][0] in READERS):
        words = list(arguments)
        if not of_the_sandbox(words):
            continue
        if words[0] == "verify":
            for folder in words[1:]:
                if not Path(folder).exists():
                    shutil.copytree("runs/sandbox", folder)
        elif "--help" not in words and words[0] not in ("export", "notebooks", *READERS):
            words += short
        try:
            cli.main(words)
        except SystemExit as end:
            if end.code:
                raise AssertionError(f"{place}: {shlex.join(arguments)}\n{capsys.readouterr().err}") from end


# --- the site -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, built as by `make docs`."""
    pytest.importorskip("furo", reason="needs the extra docs: make docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs", folder]
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=os.environ | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.long
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert all(re.search("badge|open-in-kaggle", address) for address in loaded), f"{page.name} loads {loaded}"
    assert "<math" in (site / "method.html").read_text()
    assert "preference_weights" in (site / "api.html").read_text()
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.stem for path in (site / "notebooks").glob("*.html")} == notebooks
    assert all(name in (site / "running.html").read_text() for name in PROFILES)


@pytest.mark.browser
def test_a_reader_searches_the_site_and_follows_the_first_notebook(site):
    """From its files, without a network: wide and narrow, light and dark."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")
    folder = ROOT / "runs" / "screenshots"
    names = ("chromium", "chromium-browser", "google-chrome")
    system = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as started:
        page = started.chromium.launch(executable_path=system, args=["--no-sandbox"]).new_page()
        page.context.set_offline(True)
        page.goto((site / "index.html").as_uri())
        page.locator('input[name="q"]').first.fill("advantage")
        page.keyboard.press("Enter")
        page.locator('ul.search li a[href*="method.html"]').first.wait_for()  # results come one by one
        page.goto("about:blank")
        errors = []  # from here on: a search among files cannot fetch its results' first lines
        page.on("pageerror", lambda error: errors.append(str(error)))
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 1000})
            page.emulate_media(color_scheme=scheme)
            for name in sorted(
                path.stem for path in site.glob("*.html") if path.stem not in ("genindex", "py-modindex", "search")
            ):
                page.goto((site / f"{name}.html").as_uri())
                taken, room = page.evaluate(
                    "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
                )
                assert taken <= room, f"a formula or table is wider than {name}"
                page.screenshot(path=folder / f"docs-{name}-{width}-{scheme}.png")
        page.goto((site / "method.html").as_uri())
        page.locator("math").nth(20).wait_for(state="attached")
        page.set_viewport_size({"width": 1280, "height": 1000})  # which shows the table of contents
        page.goto((site / "index.html").as_uri())
        page.locator('a[href*="01_train"]').first.click(force=True)
        page.locator(".cell_output table").first.wait_for(state="attached")
        assert not errors


# --- version and templates ----------------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = [yaml.safe_load((ROOT / name).read_text()) for name in ("CITATION.cff", ".zenodo.json", "codemeta.json")]
    assert {amir_grpo.__version__, *(record["version"] for record in said)} == {version}
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    titles = {record.get("title", record.get("name")) for record in said}
    assert len(titles) == 1
    assert said[1]["creators"] == [{"name": said[0]["authors"][0]["name"]}]
