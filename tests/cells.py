"""A notebook in this process, which has imported everything: papermill and a kernel take seconds to begin."""

from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.translators import PythonTranslator
from traitlets.config import Config

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run_cells(name, **parameters):
    """Run a notebook with parameters, as papermill would inject them; the error of a cell is raised.

    Returns:
        What the cells show: the data of each output by its type, and all that they print.
    """
    injected, data, printed = PythonTranslator.codify(parameters, "Parameters"), [], ""
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    try:
        for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
            if cell.cell_type != "code":
                continue
            for source in (cell.source, *([injected] if "parameters" in cell.metadata.get("tags", []) else [])):
                with shell.display_trap, capture_output() as shown:
                    result = shell.run_cell(source, store_history=True)
                result.raise_error()
                data += [output.data for output in shown.outputs]
                printed += shown.stdout
    finally:
        InteractiveShell.clear_instance()
    return data, printed
