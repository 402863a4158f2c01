"""Finished runs, read for the page that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from amir_grpo.choices import METHODS
from amir_grpo.results.comparison_report import FinishedRun, render_comparison
from amir_grpo.system.files import write_text
from amir_grpo.system.provenance import read_config, read_json

_SAMPLE_COLUMNS = ["policy", "benchmark", "problem_id", "sample", "correct"]


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write the page that compares runs, one self-contained file; returns its path.

    Raises:
        ValueError: If there are fewer than two runs, or one is given twice.
        FileNotFoundError: If one of them is not a run folder, or has not been evaluated, with the command that does it.
    """
    if len(folders) < 2:
        raise ValueError(
            f"report compares two runs or more, and got {len(folders)}: amir_grpo report runs/a runs/b.\n"
            "The page of a single run is written by amir_grpo figures --run_dir runs/a."
        )
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise ValueError(f"{twice} is given twice: give each run once.")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.parts[-2:]) for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = [_read(folder, name) for folder, name in zip(folders, names, strict=True)]
    return write_text(out, render_comparison(runs))


def _read(folder: Path, name: str) -> FinishedRun:
    record = read_config(folder)
    if not (folder / "tables" / "main.csv").is_file():
        raise FileNotFoundError(
            f"{folder} has no tables/main.csv: it has not been evaluated.\nRun amir_grpo figures --run_dir {folder}."
        )
    problems = [read_json(path, ("set", "fingerprint")) for path in sorted(folder.glob("problems/*.json"))]
    main = pd.read_csv(folder / "tables" / "main.csv")
    paths = [
        folder / "samples" / method / f"{name}.parquet" for method in METHODS for name in main["benchmark"].unique()
    ]
    logs = [pd.read_csv(folder / method / "log.csv") for method in METHODS]
    return FinishedRun(
        name=name,
        profile=record["profile"],
        settings=record["settings"],
        provenance=record["provenance"],
        problems={found["set"]: found["fingerprint"] for found in problems},
        main=main,
        log=pd.concat(logs, ignore_index=True),
        samples=pd.concat([pd.read_parquet(path, columns=_SAMPLE_COLUMNS) for path in paths], ignore_index=True),
    )
