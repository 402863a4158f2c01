"""As users meet it: every notebook in a real JupyterLab in a real Chromium, Run all; and the page of a run, offline.

`make test-browser` runs these and installs what they need. Screenshots go to runs/screenshots.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from amir_grpo.runs.reproduce import write_page

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
READ_EVIDENCE = ("06_claims", "07_ablations", "08_regimes", "09_family")
BARS = ("00_base_policy", "01_train", "02_evaluate")  # notebooks in which work is done, and shown
MINUTES = 4


@pytest.fixture(scope="session")
def screenshots():
    folder = ROOT / "runs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    system = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=system, args=["--no-sandbox", "--disable-quic"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """What a clone holds for the notebooks, at the smoke profile; the project's own notebooks stay as they are."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("amir_grpo", "data", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
                cell["source"] = re.sub(r'^profile = "[^"]*"', 'profile = "smoke"', "".join(cell["source"]))
        path.write_text(json.dumps(notebook))
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
    options = (
        f"--no-browser --port={port} --IdentityProvider.token= --expose-app-in-browser --ServerApp.allow_root=True"
    )
    command = [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={clone}"]
    log = (home / "log").open("w")
    server = subprocess.Popen(command, env=environment, cwd=clone, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api/status", timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    else:
        raise RuntimeError((home / "log").read_text()[-2000:])
    yield address
    server.terminate()
    server.wait(20)


STATE = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  if (!panel || !panel.sessionContext || !panel.content) return null;
  const cells = panel.content.widgets.filter(cell => cell.model.type === 'code');
  const kernel = panel.sessionContext.session && panel.sessionContext.session.kernel;
  return {
    status: kernel ? kernel.status : 'none',
    cells: cells.length,
    run: cells.filter(cell => cell.model.executionCount).length,
    outputs: cells.map(cell => cell.model.outputs.toJSON()),
  };
}"""


def open_notebook(page, lab, name):
    """Open a notebook and wait for its kernel."""
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset")
    page.wait_for_function(
        "() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.content?.widgets?.length"
    )
    page.wait_for_function(f"() => {{ const s = ({STATE})(); return s && s.status === 'idle'; }}", timeout=60_000)


def run_all(page, lab, name):
    """Open a notebook and run all of it; the outputs of its code cells."""
    open_notebook(page, lab, name)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    deadline = time.monotonic() + 60 * MINUTES
    while time.monotonic() < deadline:
        state = page.evaluate(STATE)
        errors = [o for cell in state["outputs"] for o in cell if o["output_type"] == "error"]
        assert not errors, errors[0].get("evalue")
        if state["run"] == state["cells"] and state["status"] == "idle":
            return state["outputs"]
        time.sleep(0.5)
    raise TimeoutError(f"{name}: {state['run']} of {state['cells']} cells after {MINUTES} minutes")


STOP = ".jp-NotebookPanel-toolbar [data-command='notebook:interrupt-kernel']"


def test_a_notebook_stopped_by_the_button_goes_on_by_run_all(browser, lab, clone):
    """In the middle of a training, in a run folder of its own."""
    notebook = json.loads((clone / "notebooks" / "01_train.ipynb").read_text())
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            text = "".join(cell["source"]).replace('run_dir = ""', 'run_dir = "../runs/stopped"')
            cell["source"] = re.sub(r"(?m)^overrides = {}", 'overrides = {"max_steps": 12, "save_steps": 1}', text)
    (clone / "notebooks" / "stopped.ipynb").write_text(json.dumps(notebook))
    run = clone / "runs" / "stopped" / "amir_grpo"
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    try:
        open_notebook(page, lab, "stopped")
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        deadline = time.monotonic() + 60 * MINUTES
        while not list(run.glob("checkpoints/*/rollouts.parquet")):
            assert time.monotonic() < deadline, page.evaluate(STATE)
            time.sleep(0.1)
        page.locator(STOP).first.click()
        page.wait_for_function(f"() => ({STATE})().status === 'idle'", timeout=60_000)
        errors = [o for cell in page.evaluate(STATE)["outputs"] for o in cell if o["output_type"] == "error"]
        assert [error["ename"] for error in errors] == ["KeyboardInterrupt"]
        assert not (run / "stage.json").exists(), "it was stopped"
        kept = len(list(run.glob("checkpoints/*/rollouts.parquet")))
        outputs = run_all(page, lab, "stopped")
        texts = ["".join(o["text"]) for cell in outputs for o in cell if o["output_type"] == "stream"]
        assert any("12/12" in text for text in texts)
        assert not any("| 0/12" in text for text in texts), f"it went on from one of {kept} checkpoints"
    finally:
        page.close()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_run_all_in_jupyterlab(browser, lab, screenshots, name):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    try:
        outputs = run_all(page, lab, name)
        streams = [o for cell in outputs for o in cell if o["output_type"] == "stream"]
        texts = ["".join(o["text"]) for o in streams]
        assert not [text for o, text in zip(streams, texts, strict=True) if o["name"] == "stderr"], "shown in red"
        if name in BARS:
            assert any("100%" in text for text in texts), "no progress bar was drawn to its end"
        assert not [text for text in texts if "Traceback" in text or "Warning" in text]
        drawn = [number for number, cell in enumerate(outputs) if any("image/png" in o.get("data", {}) for o in cell)]
        if name[:2] in ("01", "03", "04", "05", "06", "07"):
            assert drawn, "shows no figure"
        for number in drawn:
            page.evaluate(
                """number => { const content = window.jupyterapp.shell.currentWidget.content;
                const codes = content.widgets.filter(cell => cell.model.type === 'code');
                content.scrollToItem(content.widgets.indexOf(codes[number])); }""",
                number,
            )
            page.wait_for_timeout(400)
        if drawn:
            figure = page.locator(".jp-RenderedImage img").first
            figure.scroll_into_view_if_needed()
            box = figure.bounding_box()
            assert box["width"] > 100
            assert box["height"] > 50
            assert figure.evaluate("image => image.complete && image.naturalWidth > 100")
        page.screenshot(path=screenshots / f"{name}.png")
    finally:
        page.close()


def test_a_slider_of_the_lesson_redraws_its_picture(browser, lab, screenshots):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    try:
        run_all(page, lab, "01_train")
        page.evaluate(
            """() => { const content = window.jupyterapp.shell.currentWidget.content;
            const cell = content.widgets.find(cell => cell.model.sharedModel.source.includes('FloatLogSlider'));
            content.scrollToItem(content.widgets.indexOf(cell)); }"""
        )
        picture = page.locator("img.widget-image").first
        handle = page.locator(".widget-hslider .noUi-handle").first  # of λ
        handle.scroll_into_view_if_needed()
        before, box = picture.get_attribute("src"), handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y, steps=5)
        page.mouse.up()
        page.wait_for_function("before => document.querySelector('img.widget-image').src !== before", arg=before)
        assert float(page.locator(".widget-hslider .widget-readout").first.inner_text()) > 0.01
        page.screenshot(path=screenshots / "sliders.png")
    finally:
        page.close()


def test_the_page_of_a_run_is_read_offline(browser, screenshots, tmp_path):
    """Made of the committed notebooks; without a network its figures and tables are there."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    path = write_page(tmp_path, NOTEBOOKS[:6])
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.context.set_offline(True)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    figures = page.locator("img[src^='data:']")  # all but the badges
    assert figures.count() >= 10
    for number in range(figures.count()):
        assert figures.nth(number).evaluate("image => image.complete && image.naturalWidth > 100")
    assert page.locator("table").count() >= 10
    assert not errors
    page.screenshot(path=screenshots / "run.png", full_page=True)
    page.close()
