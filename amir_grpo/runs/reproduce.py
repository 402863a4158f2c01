"""Run the whole experiment by executing the notebooks in order, headlessly."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amir_grpo.choices import METHODS, POLICIES
from amir_grpo.results.formatting import rounded
from amir_grpo.runs.kept import compared_with_kept
from amir_grpo.runs.locations import kept_results, notebooks_folder
from amir_grpo.runs.showing import results_of, write_report
from amir_grpo.system.locks import locked
from amir_grpo.system.provenance import read_json

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run

# (notebook, parameters); those of one line may run side by side
_STAGES: list[list[tuple[str, dict[str, Any]]]] = [
    [("00_base_policy", {})],
    [("01_train", {"method": method}) for method in METHODS],
    [("02_evaluate", {})],
    [("03_main_figure", {}), ("04_coverage", {})],
    [("05_margin", {})],
]


# A kernel ends with its papermill, and papermill with this process: nothing works on behind a restart's back.
_PAPERMILL = (
    "from amir_grpo.system.processes import die_with_parent; die_with_parent(); "
    "import runpy; runpy.run_module('papermill', run_name='__main__')"
)


class NotebookError(RuntimeError):
    """A notebook has failed; the message is that of its error, as it stands in the notebook, and where that is.

    Attributes:
        kind: Name of the error's class; None where the kernel died.
    """

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def mendable(self) -> bool:
        """Whether it is of those errors by which the package refuses input, rather than one of its own."""
        known = getattr(builtins, self.kind or "", RuntimeError)
        return self.kind == "Busy" or issubclass(known, (ValueError, OSError, MemoryError))


def reproduce_run(run: Run, overrides: Mapping[str, Any]) -> None:
    """Execute the notebooks into the run folder, write the report, and print the main table and where everything is.

    It ends by saying whether the results are those that the package keeps of this profile, where the settings are.

    What is complete in the run folder is read, not repeated. On a CPU, notebooks that do not need one another run side
    by side.

    Raises:
        FileNotFoundError: If the notebooks are not there.
        ValueError, OSError: If something that a later stage needs is not there, before the first begins.
        NotebookError: If a notebook fails.
        Busy: If another process reproduces into the same folder.
    """
    folder = notebooks_folder()
    started = time.perf_counter()
    parameters = {"profile": run.profile, "run_dir": str(run.folder), "overrides": dict(overrides)}
    with locked(run.folder, "reproduce"):
        run.check()
        print(f"Executing the notebooks into {run.folder / 'notebooks'}:", flush=True)
        for stage in _STAGES:
            with ThreadPoolExecutor(_side_by_side()) as pool:
                list(pool.map(lambda job: _execute(folder, run.folder, job[0], parameters | job[1]), stage))
        results = results_of(run)
        page = write_report(run, results)
    shown = results.main[["benchmark", "k", *POLICIES, "gain", "gain_low", "gain_high", "p_holm"]]
    print(
        f"\nDone in {time.perf_counter() - started:.0f} s. pass@k in percent, gain in points with its 95 % interval:\n"
    )
    print(rounded(shown).to_string(index=False))
    print(f"\n{results.sentence}\n")
    for what in ("figures", "tables", "notebooks"):
        print(f"{what + ':':<11}{run.folder / what}")
    print(f"{'report:':<11}{page}")
    if comparison := compared_with_kept(run, results, kept_results(run.profile)):
        print(f"\n{comparison}")


def _side_by_side() -> int:
    import torch

    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def _execute(notebooks: Path, run_folder: Path, name: str, parameters: dict[str, Any]) -> None:
    import yaml

    label = "_".join([name, *([parameters["method"]] if "method" in parameters else [])])
    out = run_folder / "notebooks" / f"{label}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _PAPERMILL,
            str(notebooks / f"{name}.ipynb"),
            str(out),
            "--parameters_yaml",
            yaml.safe_dump(parameters),
            "--cwd",
            str(notebooks),
            "--kernel",
            "python3",
            "--no-progress-bar",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise _failure(name, out, done.stderr)
    print(f"{label:<20} {time.perf_counter() - started:4.0f} s", flush=True)


def _failure(name: str, notebook: Path, errors: str) -> NotebookError:
    """The error of a failed notebook: that of its cell, or the end of papermill's output where the kernel has died."""
    cells = read_json(notebook)["cells"] if notebook.is_file() else []
    raised = [o for cell in cells for o in cell.get("outputs", ()) if o["output_type"] == "error"]
    if not raised:
        return NotebookError(f"{name} has failed: {' '.join(errors.split())[-300:]}\nSee {notebook}.")
    error = raised[0]
    lines = [line for line in error["evalue"].splitlines() if line.strip()][:2] or [error["ename"]]
    return NotebookError("\n".join([*lines, f"See {notebook}."]), error["ename"])
