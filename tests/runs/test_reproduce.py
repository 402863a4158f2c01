import json
import pickle
import sys
from concurrent.futures import Future
from contextlib import nullcontext

import nbformat
import pytest

from amir_grpo.runs import reproduce
from amir_grpo.runs.run import open_run


@pytest.fixture
def notebook(tmp_path):
    return reproduce._Notebook(tmp_path / "00_base_policy.ipynb", tmp_path / "run", {})


def write_executed(notebook, error):
    """What papermill leaves of a notebook whose cell has raised."""
    output = {"output_type": "error", "ename": "ValueError", "evalue": error, "traceback": []}
    path = notebook.run_folder / "notebooks" / "00_base_policy.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "outputs": [output]}]}))
    return path


def test_notebooks_that_are_executed_again_are_announced(notebook):
    folder = notebook.run_folder / "notebooks"
    assert reproduce._announcement(folder) == f"Executing the notebooks into {folder}:"
    write_executed(notebook, "an earlier error")
    assert ", 1 of them again (what was trained" in reproduce._announcement(folder)


def test_an_error_of_an_earlier_attempt_is_not_reported_again(notebook, monkeypatch):
    executed = write_executed(notebook, "an earlier error")
    monkeypatch.setattr(reproduce, "_PAPERMILL", "raise SystemExit('the kernel has died')")
    with pytest.raises(reproduce.NotebookError, match=r"has failed: the kernel has died") as caught:
        reproduce._execute(notebook)
    assert caught.value.kind is None
    assert not executed.exists()


@pytest.mark.parametrize(
    ("failures", "message", "starts"),
    [
        (2, "Kernel died before replying to kernel_info", 3),
        (3, "Kernel died before replying to kernel_info", 3),
        (1, "Kernel died", 1),
    ],
)
def test_a_kernel_that_does_not_start_is_started_again(notebook, monkeypatch, failures, message, starts):
    log = notebook.run_folder / "starts"
    says = f"{message}' if len(done) < {failures} else 0"
    count = f"from pathlib import Path; log = Path({str(log)!r}); done = log.read_text() if log.exists() else ''; "
    monkeypatch.setattr(reproduce, "_PAPERMILL", f"{count}log.write_text(done + '.'); raise SystemExit('{says})")
    with pytest.raises(reproduce.NotebookError, match=r"Kernel died") if failures == starts else nullcontext():
        reproduce._execute(notebook)
    assert len(log.read_text()) == starts


@pytest.mark.long
def test_a_kernel_that_dies_at_its_start_says_what_is_looked_for(notebook, tmp_path, monkeypatch):
    """A real one, whose first process ends at once."""
    spec = {"argv": [sys.executable, str(tmp_path / "kernel.py"), "{connection_file}"], "display_name": "mortal"}
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))
    (tmp_path / "kernel.py").write_text(
        f"from pathlib import Path; log = Path({str(tmp_path / 'starts')!r}); first = not log.exists(); log.touch()\n"
        "if first: raise SystemExit('Address already in use')\n"
        "import sys; sys.argv = [sys.argv[0], '-f', sys.argv[1]]\n"
        "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()\n"
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    cells = [nbformat.v4.new_code_cell("1 + 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook.path)
    reproduce._execute(notebook)
    executed = nbformat.read(notebook.run_folder / "notebooks" / notebook.path.name, as_version=4)
    assert executed.cells[-1].outputs[0]["data"]["text/plain"] == "2"
    assert (tmp_path / "starts").exists()


def test_the_error_of_a_cell_is_told_with_its_place(notebook):
    executed = write_executed(notebook, "lambda_reg is -1; it must be at least 0.\nmore\neven more")
    error = reproduce._failure("00_base_policy", executed, "papermill's own output")
    assert str(error) == f"lambda_reg is -1; it must be at least 0.\nmore\nSee {executed}."
    assert error.mendable


def test_a_notebook_that_was_cut_off_hides_no_error(notebook):
    executed = write_executed(notebook, "")
    executed.write_text(executed.read_text()[:20])
    error = reproduce._failure("00_base_policy", executed, "No space left on device")
    assert str(error) == f"00_base_policy has failed: No space left on device\nSee {executed}."


def test_the_check_of_a_run_is_a_value(tmp_path, monkeypatch):
    """Who starts again compares it with the job that an earlier command has left in the queue."""
    calls = []

    class Queue:
        def submit(self, *call):
            calls.append(call)
            raise InterruptedError

    monkeypatch.setattr(reproduce, "_executor", lambda run, cluster: nullcontext((Queue(), [])))
    with pytest.raises(InterruptedError):
        reproduce.reproduce_run(open_run("smoke", tmp_path / "run"), {})
    assert [pickle.loads(pickle.dumps(call)) for call in calls] == calls


@pytest.mark.parametrize(
    ("gpus", "training"), [([], [(), ()]), (["5"], [("5",), ()]), (["0", "3", "7"], [("0", "7"), ("3",)])]
)
def test_notebooks_that_run_side_by_side_share_out_the_gpus(tmp_path, monkeypatch, gpus, training):
    work = []

    class Queue:
        def submit(self, do, what):
            work.append(what)
            done = Future()
            done.set_result(0.0)
            return done

    def shown(run):
        raise InterruptedError

    monkeypatch.setattr(reproduce, "_executor", lambda run, cluster: nullcontext((Queue(), gpus)))
    monkeypatch.setattr(reproduce, "results_of", shown)
    with pytest.raises(InterruptedError):
        reproduce.reproduce_run(open_run("smoke", tmp_path / "run"), {})
    seen = {notebook.label: notebook.gpus for notebook in work[1:]}
    assert [seen["01_train_grpo"], seen["01_train_amir_grpo"]] == training
    assert seen["02_evaluate"] == tuple(gpus), "alone, it has all"
