"""The notebooks as users run them: all of them by `reproduce` at the smoke profile, and each alone by papermill.

In the suite `reproduce` runs them in this process; `make test-long` runs the whole command from a wheel.
"""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from amir_grpo import cli
from amir_grpo.runs import reproduce
from amir_grpo.runs.run import open_run
from amir_grpo.system.cluster import submitting
from amir_grpo.system.progress import REPORT_TO
from tests.cells import executed, run_cells
from tests.conftest import WARMUP_STEPS
from tools import gallery

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
READ_EVIDENCE = ("06_claims", "07_ablations", "08_regimes", "09_family", "10_language_model")  # they need no run
# one worker of xdist, so that what the module shares is made once
pytestmark = pytest.mark.xdist_group("notebooks")

SMALL = f"--max_steps 2 --sandbox_warmup_steps {WARMUP_STEPS} --eval_limit 4 --per_device_train_batch_size 16".split()
OVERRIDES = {name.lstrip("-"): int(value) for name, value in zip(SMALL[::2], SMALL[1::2], strict=True)}

SECRETS = {
    "HF_TOKEN": "hf_PlantedSecretOfTheTestSuite00",
    "WANDB_API_KEY": "planted0wandb0key0000000000000000000000",
    "AWS_SECRET_ACCESS_KEY": "PlantedAwsSecretOfTheTestSuite",
    "MY_PRIVATE_SETTING": "planted-private-value-of-the-test-suite",
}


def run(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | SECRETS | environment, capture_output=True, text=True)


def test_committed_notebooks_are_tidy_so_that_a_difference_means_something(tmp_path):
    folder = shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    first = folder / "06_claims.ipynb"
    text = first.read_text()
    assert text.count("T_00001") > 10
    # a table drawn anew before others that have been tidied
    text = text.replace("T_00001", "T_3fa9c").replace("T_00002", "T_00001")
    first.write_text(text.replace("Styler>", "Styler at 0x7f2bf11b29d0>"))
    gallery.tidy(folder)
    for path in NOTEBOOKS:
        assert (folder / path.name).read_text() == path.read_text(), path.name


def execute_here(notebook):
    """In place of papermill and a kernel."""
    path = notebook.run_folder / "notebooks" / f"{notebook.label}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(executed(notebook.path, **notebook.parameters), path)
    return 0.0


def reproduce_here(command):
    """The command in this process, its notebooks too; what it prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for name, secret in SECRETS.items():
            patch.setenv(name, secret)
        patch.setattr(reproduce, "_execute", execute_here)
        patch.setattr(reproduce, "submitting", lambda *_, **__: submitting(1))
        cli.main([str(word) for word in command])
    return printed.getvalue()


@pytest.fixture(scope="module", params=["here", pytest.param("from a wheel", marks=pytest.mark.long)])
def reproduced(request, tmp_path_factory):
    """A run folder filled by `reproduce --profile smoke`, and what it printed.

    In this process it finds the tiny base policy. From a wheel alone it runs in an empty folder, makes its own, and each
    notebook has a kernel to itself.
    """
    empty = tmp_path_factory.mktemp("runs")
    folder = empty / "smoke run"  # the space is on purpose
    command = "reproduce", "--profile", "smoke", "--run_dir", folder, *SMALL
    if request.param == "here":
        shutil.copytree(request.getfixturevalue("runs") / ".cache", empty / ".cache")
        return folder, reproduce_here(command)
    installed = request.getfixturevalue("installed")
    done = run("amir_grpo", *command, cwd=empty, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook_is_executed_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].source.startswith("# ")
    assert "colab.research.google.com" in notebook.cells[0].source
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert all(cell.execution_count for cell in code), "not executed: make notebooks"
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert max(len(cell.source.splitlines()) for cell in code) <= 36, "no place for more than a lesson"
    assert sum(len(cell.source.splitlines()) <= 20 for cell in code) >= 0.8 * len(code)
    assert path.stat().st_size < 700_000
    text = path.read_text()
    assert not re.search(r"Warning|Traceback|\\u001b", text), "shows a warning or terminal colours"
    assert all(said.startswith("No answer yet. Hint: ") for said in checked(notebook))


def test_reproduce_fills_the_run_folder(reproduced):
    folder, printed = reproduced
    for name in ("main", "coverage", "margin", "comparisons", "main_published", "coverage_published"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000
        assert (folder / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    for name in ("main", "coverage", "margins", "margin_summary", "policies", "comparisons"):
        assert len(pd.read_csv(folder / "tables" / f"{name}.csv")) or name.startswith("margin")
    for method in ("grpo", "amir_grpo"):
        assert (folder / method / "adapter_model.safetensors").is_file()
        assert len(pd.read_csv(folder / method / "log.csv")) == 2
    assert (
        len(list((folder / "notebooks").glob("*.ipynb"))) == len(NOTEBOOKS) - len(READ_EVIDENCE) + 1
    )  # 01_train for each method
    main = pd.read_csv(folder / "tables" / "main.csv")
    for benchmark in main["benchmark"].unique():
        assert benchmark in printed
    for what in ("figures", "tables", "notebooks", "run.html"):
        assert str(folder / what) in printed


def test_samples_are_one_row_a_completion_and_the_table_agrees_with_them(reproduced):
    folder, _ = reproduced
    main = pd.read_csv(folder / "tables" / "main.csv").set_index(["benchmark", "k"])
    for policy in ("base", "grpo", "amir_grpo"):
        for path in (folder / "samples" / policy).glob("*.parquet"):
            rows = pd.read_parquet(path)
            if path.stem.endswith(".greedy"):
                assert len(rows) == 4
                continue
            # pass@1 is the share of right completions
            assert main.loc[(path.stem, 1), policy] == pytest.approx(100 * rows["correct"].mean())


def test_no_secret_of_the_environment_is_in_any_output(reproduced):
    """Every file of the run folder is searched for the values that were planted."""
    folder, printed = reproduced
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        content = path.read_bytes()
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{path} holds the value of {name}"
    assert not [name for name, secret in SECRETS.items() if secret in printed]


def outputs_of(path):
    """What each cell of an executed notebook shows, in the order of the cells; papermill's own cell is left out.

    Progress bars are, too: they hold times.
    """
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    shown = []
    for cell in cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            assert not cell.outputs
            continue
        outputs = []
        for output in cell.outputs:
            if output.output_type == "stream":
                text = "\n".join(line for line in output.text.splitlines() if not re.search(r"\d%\|.*\|", line))
                outputs += [("text", text.strip())] if text.strip() else []
            else:
                outputs += sorted(output.data.items())
        shown.append((cell.source, outputs))
    return shown


def assert_shows_the_same(executed, committed):
    """Texts and tables to the letter; figures by size and colour of the pixels, which may differ at the edges of letters."""
    gallery.tidy(executed.parent)
    new, old = outputs_of(executed), outputs_of(committed)
    assert [source for source, _ in new] == [source for source, _ in old]
    assert sum(len(outputs) for _, outputs in new) > 3
    for (source, now), (_, before) in zip(new, old, strict=True):
        where = f"{committed.name} no longer shows what is committed (make publish), after:\n{source[-300:]}"
        assert [kind for kind, _ in now] == [kind for kind, _ in before], where
        for (kind, content), (_, kept) in zip(now, before, strict=True):
            if kind == "image/png":
                pixels = [imread(io.BytesIO(base64.b64decode(picture)), format="png") for picture in (content, kept)]
                sizes = [picture.shape for picture in pixels]
                assert sizes[0] == sizes[1], where
                distance = float(np.abs(pixels[0] - pixels[1]).mean())
                assert distance < 0.002, where
            else:
                assert content == kept, where


@pytest.mark.long
@pytest.mark.parametrize("name", READ_EVIDENCE)
def test_notebooks_of_the_evidence_show_what_is_committed(name, tmp_path):
    out = tmp_path / f"{name}.ipynb"
    done = run("papermill", f"notebooks/{name}.ipynb", out, "-k", "python3")
    assert done.returncode == 0, done.stderr[-2000:]
    assert_shows_the_same(out, ROOT / "notebooks" / out.name)


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_a_fresh_run_shows_what_is_committed(tmp_path):
    """The default profile from its beginning to its page, then each notebook as it was committed: from what is there."""
    folder = tmp_path / "sandbox"
    done = run("amir_grpo", "reproduce", "--profile", "sandbox", "--run_dir", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    for path in NOTEBOOKS:
        if path.stem not in READ_EVIDENCE:
            out = tmp_path / "again" / path.stem / path.name
            out.parent.mkdir(parents=True)
            given = "-p", "profile", "sandbox", "-p", "run_dir", folder
            done = run("papermill", path, out, *given, "-k", "python3", cwd=ROOT / "notebooks")
            assert done.returncode == 0, done.stderr[-2000:]
            assert_shows_the_same(out, path)


def test_a_notebook_of_the_evidence_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results of a study: `make evidence` makes them"):
        run_cells("06_claims", results_dir=str(tmp_path))


def test_evaluate_repeats_no_stage_and_makes_the_tables_of_the_notebook(reproduced):
    folder, _ = reproduced
    shown = {name: pd.read_csv(folder / "tables" / f"{name}.csv") for name in ("policies", "comparisons")}
    kept = [*folder.glob("samples/*/*.parquet"), *folder.glob("*/adapter_model.safetensors"), *folder.glob("scores/*")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    cli.main(["evaluate", "--profile", "smoke", "--run_dir", str(folder), *SMALL])
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    for name, table in shown.items():
        pd.testing.assert_frame_equal(pd.read_csv(folder / "tables" / f"{name}.csv"), table)


def test_what_fails_in_a_notebook_is_said_in_three_lines(reproduced, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(reproduced[0], tmp_path / "run")
    (folder / "samples" / "grpo" / "chain7.parquet").write_bytes(b"half")
    monkeypatch.setattr(reproduce, "_STAGES", [[("04_coverage", {})]])  # the quickest
    monkeypatch.setattr(reproduce, "submitting", lambda *_, **__: submitting(1))
    monkeypatch.setenv(REPORT_TO, "")  # which is set for the notebook's kernel, here for all that follows
    with pytest.raises(SystemExit) as caught:
        cli.main(["reproduce", "--profile", "smoke", "--run_dir", str(folder), *SMALL])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"{folder / 'samples' / 'grpo' / 'chain7.parquet'} cannot be read" in said
    assert "Delete it" in said
    assert f"See {folder / 'notebooks' / '04_coverage.ipynb'}." in said
    assert len(said.strip().splitlines()) <= 3, said


SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.py"))


def checked(notebook):
    return [cell.outputs[0].text for cell in notebook.cells if "check" in cell.metadata.get("tags", ())]


@pytest.mark.long
@pytest.mark.parametrize("reproduced", ["here"], indirect=True)
@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_exercises_are_solved_by_their_solutions_and_stop_no_one_without(reproduced, solution, tmp_path):
    folder = shutil.copytree(reproduced[0], tmp_path / "run", ignore=shutil.ignore_patterns("notebooks"))
    tables = {path: path.read_bytes() for path in folder.glob("tables/*.csv")}
    as_shipped = ROOT / "notebooks" / f"{solution.stem}.ipynb"
    notebook = nbformat.read(as_shipped, as_version=4)
    exercises = [cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", ())]
    blocks = re.split(r"^# %% \d+$", solution.read_text(), flags=re.MULTILINE)[1:]
    assert 2 <= len(exercises) == len(blocks) <= 3
    for cell, block in zip(exercises, blocks, strict=True):
        cell.source = block
    nbformat.write(notebook, tmp_path / as_shipped.name)
    solved = executed(tmp_path / as_shipped.name, profile="smoke", run_dir=str(folder))
    assert checked(solved) == ["Right.\n"] * len(blocks)
    assert {path: path.read_bytes() for path in folder.glob("tables/*.csv")} == tables


def test_a_slider_of_the_lesson_redraws_its_picture(tmp_path):
    pytest.importorskip("ipywidgets", reason="needs the extra notebooks")
    lesson = nbformat.read(ROOT / "notebooks" / "01_train.ipynb", as_version=4)
    place = next(n for n, cell in enumerate(lesson.cells) if "FloatLogSlider" in cell.source)
    move = "before = bytes(picture.value)\nsliders[0].value = 3\nprint(before[:4], before != bytes(picture.value))"
    lesson.cells = [*lesson.cells[: place + 1], nbformat.v4.new_code_cell(move)]
    nbformat.write(lesson, tmp_path / "lesson.ipynb")
    (shown,) = executed(tmp_path / "lesson.ipynb", profile="smoke", run_dir=str(tmp_path / "run")).cells[-1].outputs
    assert shown.text == "b'\\x89PNG' True\n"


def test_an_unknown_setting_is_refused_in_a_notebook(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown setting 'max_step'\. Did you mean 'max_steps'\?"):
        run_cells("01_train", profile="smoke", run_dir=str(tmp_path / "run"), overrides={"max_step": 2})
    assert not (tmp_path / "run").exists()


def assert_trained_the_same(folder, alone):
    """Same base policy, seed, data order and settings: the training is the one of `reproduce`, number by number."""
    columns = ["step", "reward", "loss", "grad_norm", "completions/mean_length"]
    logs = [pd.read_csv(run / "grpo" / "log.csv")[columns] for run in (alone, folder)]
    pd.testing.assert_frame_equal(*logs, check_exact=True)


def test_a_method_trained_alone_is_trained_the_same(reproduced):
    folder, _ = reproduced  # its base policy is in the cache beside it
    alone = open_run("smoke", folder.parent / "alone", OVERRIDES)
    alone.train("grpo")
    assert_trained_the_same(folder, alone.folder)


@pytest.mark.long
@pytest.mark.parametrize("reproduced", ["from a wheel"], indirect=True)
def test_train_alone_with_papermill_from_the_notebooks_folder(reproduced, tmp_path):
    folder, _ = reproduced
    done = run(
        "papermill",
        "01_train.ipynb",
        tmp_path / "out.ipynb",
        *("-p", "method", "grpo", "-p", "profile", "smoke", "-p", "run_dir", folder.parent / "by papermill"),
        *("-p", "overrides", json.dumps(OVERRIDES), "-k", "python3"),
        cwd=ROOT / "notebooks",
    )
    assert done.returncode == 0, done.stderr
    assert_trained_the_same(folder, folder.parent / "by papermill")
