import os
import shutil
from contextlib import nullcontext

import nbformat
import papermill
import pytest

from amir_grpo.runs import reproduce
from amir_grpo.runs.run import open_run
from amir_grpo.runs.verify import keep_results
from amir_grpo.system.cluster import submitting
from amir_grpo.system.files import shipped
from amir_grpo.system.progress import REPORT_TO


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Writes a notebook of one cell, to be executed in this process."""
    monkeypatch.setenv(REPORT_TO, "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def write(source="1 + 1", **more):
        path = tmp_path / "00_base_policy.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
        return reproduce._Notebook(path, tmp_path / "run", {}, **more)

    return write


def executed(notebook):
    return nbformat.read(notebook.run_folder / "notebooks" / "00_base_policy.ipynb", as_version=4)


def test_a_notebook_is_executed_with_its_gpus_and_a_place_for_its_progress(notebook):
    source = (
        f"import os; os.system('echo noise >&2'); print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['{REPORT_TO}'])"
    )
    piece = notebook(source, gpus=("3", "5"))
    assert reproduce._execute(piece) > 0
    report = piece.run_folder / ".progress" / "00_base_policy"
    (output,) = [o for o in executed(piece).cells[-1].outputs if o.get("name") == "stdout"]
    assert output["text"] == f"3,5 {report}\n"
    assert not report.exists(), "it is complete"


def test_the_error_of_a_cell_is_told_with_its_place(notebook):
    piece = notebook("raise ValueError('lambda_reg is -1; it must be at least 0.\\nmore\\neven more')")
    with pytest.raises(ValueError, match="lambda_reg is -1") as caught:
        reproduce._execute(piece)
    place = piece.run_folder / "notebooks" / "00_base_policy.ipynb"
    assert str(caught.value) == f"lambda_reg is -1; it must be at least 0.\nmore\nSee {place}."
    with pytest.raises(reproduce.NotebookError, match="list index out of range"):
        reproduce._execute(notebook("[][0]"))


@pytest.mark.parametrize(
    ("failures", "message", "starts"),
    [
        (2, "Kernel died before replying to kernel_info", 3),
        (3, "Kernel died before replying to kernel_info", 3),
        (1, "Kernel died", 1),
    ],
)
def test_a_kernel_that_does_not_start_is_started_again(notebook, monkeypatch, failures, message, starts):
    begun = []

    def execute(*arguments, **options):
        begun.append(arguments)
        if len(begun) <= failures:
            raise RuntimeError(message)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    failing = pytest.raises(reproduce.NotebookError, match=f"00_base_policy has failed: {message}\nSee ")
    with failing if failures == starts else nullcontext():
        reproduce._execute(notebook())
    assert len(begun) == starts


def test_the_page_holds_the_notebooks_in_their_order(tmp_path):
    widget = nbformat.v4.new_output("display_data", {reproduce._WIDGET: {}, "text/plain": "a slider"})
    for name in ("b", "a"):
        shown = nbformat.v4.new_output("stream", text=f"the output of {name}")
        cell = nbformat.v4.new_code_cell(f"print('{name}')", outputs=[shown, widget])
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebooks" / f"{name}.ipynb")
    page = reproduce.write_page(tmp_path, ["b", "a"]).read_text()
    assert page.index("the output of b") < page.index("the output of a")
    assert 'href="#cell-id=b-0"' in page
    assert 'id="cell-id=b-0"' in page
    assert "a slider" not in page


@pytest.mark.parametrize(
    ("gpus", "training"), [([], [(), ()]), (["5"], [("5",), ()]), (["0", "3", "7"], [("0", "7"), ("3",)])]
)
@pytest.mark.xdist_group("complete run")
def test_reproduce_shares_out_the_gpus_and_ends_with_the_comparison(
    complete_run, tmp_path, monkeypatch, capsys, gpus, training
):
    seen = {}

    def execute(notebook):
        (notebook.run_folder / "notebooks").mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(), notebook.run_folder / "notebooks" / f"{notebook.label}.ipynb")
        seen[notebook.label] = notebook.gpus
        return 2.0

    def in_this_process(number, apart):
        assert (number, apart) == (min(2, len(gpus) or os.cpu_count()), True)
        return submitting(1)

    copy = shutil.copytree(complete_run.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("notebooks"))
    keep_results(complete_run, tmp_path / "kept" / "sandbox")
    monkeypatch.setattr(reproduce, "submitting", in_this_process)
    monkeypatch.setattr(reproduce, "_execute", execute)
    monkeypatch.setattr(reproduce, "visible_gpus", lambda _: gpus)
    places = {"notebooks": shipped("notebooks"), "data/results": tmp_path / "kept"}
    monkeypatch.setattr(reproduce, "shipped", places.__getitem__)
    reproduce.reproduce_run(open_run(run_dir=copy), {})
    assert [seen["01_train_grpo"], seen["01_train_amir_grpo"]] == training
    assert seen["02_evaluate"] == tuple(gpus), "alone, it has all"
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"Executing the notebooks into {copy / 'notebooks'} (")
    assert out[1] == "1/7  00_base_policy          2 s"
    assert out[-1].startswith("Equal to the published results of this package: 6 tables")
    assert len((copy / "reproduce.log").read_text().splitlines()) == 8
