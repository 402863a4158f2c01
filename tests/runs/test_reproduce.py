import json

import pytest

from amir_grpo.runs import reproduce


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


def test_the_error_of_a_cell_is_told_with_its_place(notebook):
    executed = write_executed(notebook, "lambda_reg is -1; it must be at least 0.\nmore\neven more")
    error = reproduce._failure("00_base_policy", executed, "papermill's own output")
    assert str(error) == f"lambda_reg is -1; it must be at least 0.\nmore\nSee {executed}."
    assert error.mendable
