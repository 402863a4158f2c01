"""As users meet it: every notebook in a real JupyterLab in a real Chromium, Run all; and the page of a run, offline.

`make test-browser` runs these and installs what they need. Screenshots go to runs/screenshots.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from nbconvert.preprocessors import ClearOutputPreprocessor

from amir_grpo.runs.reproduce import write_page

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
BARS = ("00_base_policy", "01_train", "02_evaluate")  # notebooks in which work is done, and shown
MINUTES = 4
SCREENSHOTS = ROOT / "runs" / "screenshots"


@pytest.fixture(scope="module")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    system = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=system, args=["--no-sandbox", "--disable-quic"])


@pytest.fixture
def page(chromium):
    page = chromium.new_page(viewport={"width": 1280, "height": 1000})
    yield page
    page.close()


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """What a clone holds for the notebooks, at the smoke profile; the project's own notebooks stay as they are."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("amir_grpo", "data", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "notebooks").glob("*.ipynb"):
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, as_version=4), {})
        path.write_text(nbformat.writes(notebook).replace('profile = \\"sandbox\\"', 'profile = \\"smoke\\"'))
    return folder


@pytest.fixture(scope="session")
def lab(clone, tmp_path_factory):
    """Address of a JupyterLab over the clone, with settings of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("jupyter")
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = os.environ | {name: str(home / name) for name in names} | {"OMP_NUM_THREADS": "1"}
    options = f"--no-browser --port={port} --IdentityProvider.token= --expose-app-in-browser --allow-root"
    command = [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={clone}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=clone, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/api/status", timeout=2)
            break
        assert server.poll() is None, (home / "log").read_text()[-2000:]
        time.sleep(0.5)
    yield address
    server.terminate()
    server.wait(20)


STATE = """() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  const cells = (panel?.content?.widgets || []).filter(cell => cell.model.type === 'code');
  return {
    idle: cells.length > 0 && panel.sessionContext?.session?.kernel?.status === 'idle',
    done: cells.every(cell => cell.model.executionCount),
    outputs: cells.flatMap(cell => cell.model.outputs.toJSON()),
  };
}"""


IDLE = f"() => ({STATE})().idle"
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
STOP = ".jp-NotebookPanel-toolbar [data-command='notebook:interrupt-kernel']"


def errors_in(outputs):
    return [output["ename"] for output in outputs if output["output_type"] == "error"]


def run_all(page, lab, name):
    """Open a notebook, wait for its kernel, and run all of it; the outputs of its code cells."""
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset")
    page.wait_for_function(IDLE, timeout=60_000)
    page.evaluate(RUN_ALL)
    return outputs_of(page)


def outputs_of(page):
    deadline = time.monotonic() + 60 * MINUTES
    while time.monotonic() < deadline:
        state = page.evaluate(STATE)
        if state["idle"] and (state["done"] or errors_in(state["outputs"])):
            return state["outputs"]
        time.sleep(0.5)
    raise TimeoutError(f"not at its end after {MINUTES} minutes: {state['outputs'][-1:]}")


def texts_of(outputs, name="stdout"):
    return ["".join(output["text"]) for output in outputs if output.get("name") == name]


def test_a_notebook_stopped_by_the_button_goes_on_by_run_all(page, lab, clone):
    """In the middle of a training, in a run folder of its own."""
    notebook = (clone / "notebooks" / "01_train.ipynb").read_text()
    notebook = notebook.replace('run_dir = \\"\\"', 'run_dir = \\"../runs/stopped\\"')
    notebook = notebook.replace("overrides = {}", 'overrides = {\\"max_steps\\": 12, \\"save_steps\\": 1}')
    (clone / "notebooks" / "stopped.ipynb").write_text(notebook)
    run = clone / "runs" / "stopped" / "amir_grpo"
    page.goto(f"{lab}/lab/tree/notebooks/stopped.ipynb?reset")
    page.wait_for_function(IDLE, timeout=60_000)
    page.evaluate(RUN_ALL)
    deadline = time.monotonic() + 60 * MINUTES
    while not list(run.glob("checkpoints/*/rollouts.parquet")):
        assert time.monotonic() < deadline, page.evaluate(STATE)
        time.sleep(0.1)
    page.locator(STOP).first.click()
    assert errors_in(outputs_of(page)) == ["KeyboardInterrupt"]
    assert not (run / "stage.json").exists(), "it was stopped"
    outputs = run_all(page, lab, "stopped")
    assert errors_in(outputs) == []
    assert any("12/12" in text for text in texts_of(outputs))
    assert not any("| 0/12" in text for text in texts_of(outputs)), "it began anew"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_run_all_in_jupyterlab(page, lab, name):
    outputs = run_all(page, lab, name)
    assert errors_in(outputs) == texts_of(outputs, "stderr") == [], "shown in red"
    texts = texts_of(outputs)
    assert name not in BARS or any("100%" in text for text in texts), "no progress bar was drawn to its end"
    assert not [text for text in texts if "Traceback" in text or "Warning" in text]
    drawn = any("image/png" in output.get("data", {}) for output in outputs)
    assert drawn or name in ("00_base_policy", "02_evaluate"), "shows no figure"
    # all of it as pictures, a screen each
    cells = page.locator(".jp-NotebookPanel .jp-WindowedPanel-outer").first
    top, screen = 0, 0
    while top < cells.evaluate("panel => panel.scrollHeight"):
        cells.evaluate("(panel, top) => { panel.scrollTop = top; }", top)
        page.wait_for_timeout(400)
        page.screenshot(path=SCREENSHOTS / f"{name}-{screen:02d}.png")
        for figure in page.locator(".jp-RenderedImage img").all():
            assert figure.evaluate("image => image.complete && image.naturalWidth > 100 && image.clientHeight > 50")
        top, screen = top + 850, screen + 1


def test_the_page_of_a_run_is_read_offline(page, tmp_path):
    """Made of the committed notebooks; without a network its figures and tables are there."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    path = write_page(tmp_path, NOTEBOOKS[:6])
    page.context.set_offline(True)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    figures = page.locator("img[src^='data:']").all()  # all but the badges
    assert len(figures) >= 10
    assert all(figure.evaluate("image => image.complete && image.naturalWidth > 100") for figure in figures)
    assert page.locator("table").count() >= 10
    assert not errors
    page.screenshot(path=SCREENSHOTS / "run.png", full_page=True)
