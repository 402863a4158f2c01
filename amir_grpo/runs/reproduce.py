"""Run the whole experiment by executing the notebooks in order, headlessly."""

from __future__ import annotations

import builtins
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from amir_grpo.choices import METHODS, POLICIES
from amir_grpo.runs.opening import CONSENTS
from amir_grpo.runs.run import Run
from amir_grpo.runs.verify import compared_with_kept
from amir_grpo.system.cluster import Cluster, results_of, submitting, visible_gpus
from amir_grpo.system.files import shipped, write_text
from amir_grpo.system.locks import Busy, locked
from amir_grpo.system.progress import REPORT_TO, reports_shown

# (notebook, parameters); those on one line may run side by side
_STAGES: list[list[tuple[str, dict[str, Any]]]] = [
    [("00_base_policy", {})],
    [("01_train", {"method": method}) for method in METHODS],
    [("02_evaluate", {})],
    [("03_main_figure", {}), ("04_coverage", {})],
    [("05_margin", {})],
]
# Jupyter chooses a kernel's ports before the kernel opens them; if another program takes one first, nothing has run.
_KERNEL_STARTS = 3
_NOT_STARTED = "Kernel died before replying to kernel_info"
_WIDGET = "application/vnd.jupyter.widget-view+json"
_REPORTS = ".progress"  # in the run folder: a file for each notebook that is being executed


class NotebookError(RuntimeError):
    """The failure of a notebook, with the message of its error and the file to look into."""


def reproduce_run(run: Run, overrides: Mapping[str, Any], cluster: Cluster | None = None) -> None:
    """Execute the notebooks into the run folder, with progress, write their page, and print the main table.

    Complete stages of the run folder are read, not repeated. Independent notebooks run side by side: on a CPU, on
    separate GPUs if there are several, or as jobs of a cluster. Finally, the results are compared with those that the
    package keeps for this profile, if the settings are the same.

    Args:
        run: The run.
        overrides: Settings that were given. The folder has them all, except consents, which are passed on from here.
        cluster: Executes each notebook as a job; None for this machine.

    Raises:
        ValueError, OSError: If a stage lacks a requirement (before the first begins), or a notebook rejects its input.
        NotebookError: If a notebook fails for another reason.
        Busy: If another process reproduces into the same folder.
    """
    folder, started = shipped("notebooks"), time.perf_counter()
    consents = {name: overrides[name] for name in CONSENTS if name in overrides}
    parameters = {"profile": run.profile, "run_dir": str(run.folder), "overrides": consents}
    gpus = [] if cluster else visible_gpus(run.settings.policy.device)
    stages = [
        [
            _Notebook(folder / f"{name}.ipynb", run.folder, parameters | own, tuple(gpus[n :: len(stage)]))
            for n, (name, own) in enumerate(stage)
        ]
        for stage in _STAGES
    ]
    labels = [notebook.label for stage in stages for notebook in stage]
    with locked(run.folder, "reproduce"):
        if not cluster:  # whose machines may have what this one lacks
            run.check()
        number = min(2, len(gpus) or os.cpu_count() or 1)
        reports = reports_shown(run.folder / _REPORTS, run.folder / "reproduce.log")
        with submitting(cluster or number, apart=True) as submit, reports as say:
            say(f"Executing the notebooks into {run.folder / 'notebooks'} (what is complete is read, not repeated):")
            for stage in stages:
                for notebook, seconds in results_of(_execute, stage, submit):
                    number = labels.index(notebook.label) + 1
                    say(f"{number}/{len(labels)}  {notebook.label:<20} {seconds:4.0f} s")
    page = write_page(run.folder, labels)
    shown = pd.read_csv(run.folder / "tables" / "main.csv")
    shown = shown[["benchmark", "k", *POLICIES, "gain", "gain_low", "gain_high", "p_holm"]]
    print(
        f"\nDone in {time.perf_counter() - started:.0f} s. pass@k in percent, gain in points with its 95 % interval:\n"
    )
    print(shown.round({"p_holm": 3} | dict.fromkeys(shown.columns[2:-1], 1)).to_string(index=False))
    print()
    for what in ("figures", "tables", "notebooks"):
        print(f"{what + ':':<11}{run.folder / what}")
    print(f"{'page:':<11}{page}")
    if comparison := compared_with_kept(run, shipped("data/results") / run.profile):
        print(f"\n{comparison}")


def write_page(folder: Path, labels: Iterable[str]) -> Path:
    """Combine the executed notebooks of a run folder, in the order of `labels`, into an HTML page; return its path."""
    import nbformat
    from nbconvert import HTMLExporter

    notebooks = {label: nbformat.read(folder / "notebooks" / f"{label}.ipynb", as_version=4) for label in labels}
    contents = "\n".join(f"- [{label}](#cell-id={label}-0)" for label in notebooks)
    cells = [nbformat.v4.new_markdown_cell(f"# {folder.name}\n\n{contents}", id="contents")]
    for label, notebook in notebooks.items():
        for number, cell in enumerate(notebook.cells):
            cell.id = f"{label}-{number}"
            if "outputs" in cell:  # a widget would need a kernel
                cell.outputs = [output for output in cell.outputs if _WIDGET not in output.get("data", {})]
            cells.append(cell)
    page = nbformat.v4.new_notebook(cells=cells, metadata={"title": folder.name})
    exporter = HTMLExporter(require_js_url="", jquery_url="")
    return write_text(folder / "run.html", exporter.from_notebook_node(page)[0])


@dataclass(frozen=True)
class _Notebook:
    """A notebook to execute, with papermill's parameters and its GPUs (none: all); other processes can receive it."""

    path: Path
    run_folder: Path
    parameters: dict[str, Any]
    gpus: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name of the executed notebook."""
        return "_".join([self.path.stem, *([self.parameters["method"]] if "method" in self.parameters else [])])


def _execute(notebook: _Notebook) -> float:
    """Execute a notebook, again if its kernel has not started, and return the seconds that it took."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    started = time.perf_counter()
    out = notebook.run_folder / "notebooks" / f"{notebook.label}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    with _reporting(notebook, out.with_suffix(".log")):
        for start in range(_KERNEL_STARTS):
            try:
                papermill.execute_notebook(
                    notebook.path,
                    out,
                    notebook.parameters,
                    cwd=notebook.path.parent,
                    kernel_name="python3",
                    progress_bar=False,
                    start_timeout=600,
                )
                break
            except PapermillExecutionError as error:
                lines = [line for line in error.evalue.splitlines() if line.strip()][:2] or [error.ename]
                kind = Busy if error.ename == "Busy" else getattr(builtins, error.ename, RuntimeError)
                refused = issubclass(kind, (ValueError, OSError, MemoryError, Busy))  # raised for rejected input
                raise (ValueError if refused else NotebookError)("\n".join([*lines, f"See {out}."])) from None
            except RuntimeError as error:
                if _NOT_STARTED not in str(error) or start == _KERNEL_STARTS - 1:
                    raise NotebookError(
                        f"{notebook.label} has failed: {error}\nSee {out.with_suffix('.log')}."
                    ) from None
    return time.perf_counter() - started


@contextmanager
def _reporting(notebook: _Notebook, log: Path) -> Iterator[None]:
    """Give the notebook's kernel its GPUs and a file for its progress, and log what it writes outside its cells."""
    report = notebook.run_folder / _REPORTS / notebook.label
    write_text(report, "")
    os.environ[REPORT_TO] = str(report)
    if notebook.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(notebook.gpus)
    errors = os.dup(2)
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(errors, 2)
        os.close(errors)
        report.unlink(missing_ok=True)
        if log.exists() and log.stat().st_size == 0:
            log.unlink()
