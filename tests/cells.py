"""A notebook in this process, which has imported everything: papermill and a kernel take seconds to begin."""

from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output
from matplotlib import rc_context
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from papermill.translators import PythonTranslator
from traitlets.config import Config

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


class _Shell(InteractiveShell):
    """Shows figures as a kernel does, and has no windows."""

    def enable_gui(self, gui=None):
        """Leave out what only windows need."""


def executed(path: Path, **parameters) -> NotebookNode:
    """Run a notebook with parameters, as papermill injects them: a copy that holds its outputs. A cell's error is raised."""
    notebook = nbformat.read(path, as_version=4)
    first = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    source = PythonTranslator.codify(parameters, "Parameters")
    notebook.cells.insert(first + 1, new_code_cell(source, metadata={"tags": ["injected-parameters"]}))
    shell = _Shell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.run_line_magic("matplotlib", "inline")
    select_figure_formats(shell, {"png"})
    try:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                with rc_context(), shell.display_trap, capture_output() as shown:
                    result = shell.run_cell(cell.source, store_history=True)
                result.raise_error()
                cell.outputs = [new_output("stream", text=shown.stdout)] if shown.stdout else []
                cell.outputs += [new_output("display_data", output.data) for output in shown.outputs]
    finally:
        _Shell.clear_instance()
    return notebook


def run_cells(name: str, **parameters) -> tuple[list[NotebookNode], str]:
    """Run one of the project's notebooks: the data of each output by its type, and all that the cells print."""
    cells = [cell for cell in executed(NOTEBOOKS / f"{name}.ipynb", **parameters).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    return [output.data for output in outputs if "data" in output], printed


SHOWING = ("02_evaluate", "03_main_figure", "04_coverage", "05_margin")


def show_results(folder: Path) -> None:
    """Execute the notebooks that show a run's results into its folder, which gets their tables and figures."""
    (folder / "notebooks").mkdir(exist_ok=True)
    for name in SHOWING:
        nbformat.write(
            executed(NOTEBOOKS / f"{name}.ipynb", run_dir=str(folder)), folder / "notebooks" / f"{name}.ipynb"
        )
