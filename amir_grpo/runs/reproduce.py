"""Run the whole experiment by executing the notebooks in order, headlessly."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amir_grpo.choices import METHODS, POLICIES
from amir_grpo.results.formatting import rounded
from amir_grpo.runs.kept import compared_with_kept
from amir_grpo.runs.locations import kept_results, notebooks_folder
from amir_grpo.runs.run import Run
from amir_grpo.runs.showing import results_of, write_report
from amir_grpo.settings import RunSettings
from amir_grpo.system.cluster import Cluster
from amir_grpo.system.executors import executor_of, visible_gpus
from amir_grpo.system.locks import locked
from amir_grpo.system.provenance import read_json

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


# Jupyter chooses a kernel's ports before the kernel opens them, and another program may be quicker: nothing has run then.
_KERNEL_STARTS = 3
_NOT_STARTED = "Kernel died before replying to kernel_info"


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


def reproduce_run(run: Run, overrides: Mapping[str, Any], cluster: Cluster | None = None) -> None:
    """Execute the notebooks into the run folder, write the report, and print the main table and where everything is.

    It ends by saying whether the results are those that the package keeps of this profile, where the settings are.

    What is complete in the run folder is read, not repeated. Notebooks that do not need one another run side by side: on a
    CPU, on GPUs of their own where there are several, or as jobs of a cluster.

    Args:
        run: The run.
        overrides: Settings that were given, for the notebooks to be given again.
        cluster: Executes each notebook as a job; None: this machine does.

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
        with _executor(run, cluster) as (executor, gpus):
            executor.submit(_check, _Check(run.folder, run.profile, run.settings)).result()
            print(_announcement(run.folder / "notebooks"), flush=True)
            for stage in _STAGES:
                _execute_stage(
                    [
                        _Notebook(folder / f"{name}.ipynb", run.folder, parameters | own, tuple(gpus[n :: len(stage)]))
                        for n, (name, own) in enumerate(stage)
                    ],
                    executor,
                    one_by_one=len(gpus) == 1,
                )
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


def _announcement(folder: Path) -> str:
    """What is about to happen in `folder`: a command that goes on where another stopped executes every notebook again."""
    before = len(list(folder.glob("*.ipynb")))
    again = f", {before} of them again (what was trained, drawn and scored is read, not repeated)" if before else ""
    return f"Executing the notebooks into {folder}{again}:"


def _execute_stage(notebooks: list[_Notebook], executor: Executor, one_by_one: bool) -> None:
    """Execute notebooks that do not need one another, and say how long each took."""
    waiting = {}
    for notebook in notebooks:
        future = executor.submit(_execute, notebook)
        waiting[future] = notebook
        if one_by_one:
            future.result()
    for future in as_completed(waiting):
        print(f"{waiting[future].label:<20} {future.result():4.0f} s", flush=True)


@contextmanager
def _executor(run: Run, cluster: Cluster | None) -> Iterator[tuple[Executor, list[str]]]:
    """What executes the notebooks, and the GPUs that those of a stage may share out."""
    if cluster is not None:
        with executor_of(cluster) as executor:
            yield executor, []
        return
    gpus = visible_gpus(run.settings.policy.device)
    with ThreadPoolExecutor(len(gpus) or min(2, os.cpu_count() or 1)) as executor:
        yield executor, gpus


@dataclass(frozen=True)
class _Check:
    """A run to be checked before its notebooks, as a value that travels to another machine."""

    folder: Path
    profile: str
    settings: RunSettings
    label: str = "run"


def _check(what: _Check) -> None:
    Run(what.folder, what.profile, what.settings).check()


@dataclass(frozen=True)
class _Notebook:
    """A notebook to be executed, as a value that travels to another machine.

    Attributes:
        path: The notebook.
        run_folder: Gets the executed one, under notebooks/.
        parameters: As papermill injects them.
        gpus: Those that it sees; none for all that this process sees.
    """

    path: Path
    run_folder: Path
    parameters: dict[str, Any]
    gpus: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name of the executed notebook."""
        return "_".join([self.path.stem, *([self.parameters["method"]] if "method" in self.parameters else [])])


def _execute(notebook: _Notebook) -> float:
    """Execute a notebook, again where its kernel has not started; the seconds that it took."""
    out = notebook.run_folder / "notebooks" / f"{notebook.label}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)  # the error of an earlier attempt is not that of this one
    started = time.perf_counter()
    for _ in range(_KERNEL_STARTS):
        done = _papermill(notebook, out)
        if not done.returncode:
            return time.perf_counter() - started
        if _NOT_STARTED not in done.stderr:
            break
    raise _failure(notebook.path.stem, out, done.stderr)


def _papermill(notebook: _Notebook, out: Path) -> subprocess.CompletedProcess[str]:
    import yaml

    return subprocess.run(
        [
            sys.executable,
            "-c",
            _PAPERMILL,
            str(notebook.path),
            str(out),
            "--parameters_yaml",
            yaml.safe_dump(notebook.parameters),
            "--cwd",
            str(notebook.path.parent),
            "--kernel",
            "python3",
            "--no-progress-bar",
            "--start-timeout",
            "600",
        ],
        env=os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(notebook.gpus)} if notebook.gpus else {}),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _failure(name: str, notebook: Path, errors: str) -> NotebookError:
    """The error of a failed notebook: that of its cell, or the end of papermill's output where the kernel has died."""
    try:
        cells = read_json(notebook, ["cells"])["cells"]
    except (OSError, ValueError):  # papermill was killed before it had written it, or while it did
        cells = []
    raised = [o for cell in cells for o in cell.get("outputs", ()) if o["output_type"] == "error"]
    if not raised:
        return NotebookError(f"{name} has failed: {' '.join(errors.split())[-300:]}\nSee {notebook}.")
    error = raised[0]
    lines = [line for line in error["evalue"].splitlines() if line.strip()][:2] or [error["ename"]]
    return NotebookError("\n".join([*lines, f"See {notebook}."]), error["ename"])
