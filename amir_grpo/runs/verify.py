"""Compare the results of two runs, or of a run with those that the package keeps, from cause to effect."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from amir_grpo.choices import METHODS
from amir_grpo.runs.opening import NO_EFFECT
from amir_grpo.settings import differences
from amir_grpo.system.files import atomic_write, sha256_of, write_text
from amir_grpo.system.provenance import read_config, read_json, record_of, to_json

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run

# Numbers of a training or a table that differ by less, relative or absolute, count as equal: processors round
# differently in float64, but by less than this.
TOLERANCE = 1e-10
TABLES = ("main", "coverage", "margins", "margin_summary", "policies", "comparisons")
LOG_COLUMNS = ["method", "step", "completions", "reward", "reward_std", "preference/share"]
# Columns of the log that hold durations and rates.
_TIMES = ["step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"]


def first_difference(a: Path, b: Path) -> str | None:
    """Name the first difference between two run folders; None if everything that is compared is equal.

    The order is that of a run: settings, problems, base policy, rollouts, logs and adapters of the training,
    completions, scores, tables, figures. Numbers in the log and in the record of the rollouts (rewards, advantages,
    losses, gradient norms) may differ by 1e-10, relative or absolute; everything else must match exactly.
    Times, provenance and pages are not compared.

    Raises:
        FileNotFoundError: If one of them is not a run folder, or neither holds a result.
        ValueError: If a configuration or a record of one of them cannot be read.
    """
    settings = [read_config(folder)["settings"] for folder in (a, b)]
    for name, (old, new) in differences(*settings).items():
        return f"setting {name}: {old!r} and {new!r}"
    names = [
        (same, name)
        for pattern, same in _PARTS
        for name in sorted({path.relative_to(folder) for folder in (a, b) for path in folder.glob(pattern)})
    ]
    if not names:
        raise FileNotFoundError(f"{a} and {b} hold nothing yet that could be compared.\nRun them first.")
    for same, name in names:
        missing = [folder for folder in (a, b) if not (folder / name).exists()]
        if difference := f"not in {missing[0]}" if missing else same(a / name, b / name):
            return f"{name}: {difference}"
    return None


def keep_results(run: Run, folder: Path) -> None:
    """Write what the package keeps of a complete run: tables, a digest of the completions, logs, and provenance."""
    for name, table in _results(run).items():
        atomic_write(folder / f"{name}.csv", partial(table.to_csv, index=False))
    write_text(folder / "provenance.json", to_json(record_of(run.folder)))


def compared_with_kept(run: Run, kept: Path) -> str | None:
    """Say in a line or two whether a complete run gives the results that `keep_results` has kept for its profile.

    Returns:
        None if nothing is kept for the profile.
    """
    if not (kept / "provenance.json").is_file():
        return None
    old, new = read_json(kept / "provenance.json"), record_of(run.folder)
    if old["profile"] != new["profile"]:
        return None
    changed = {
        name: values for name, values in differences(old["settings"], new["settings"]).items() if name not in NO_EFFECT
    }
    if changed:
        name, (there, here) = next(iter(changed.items()))
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return (
            f"Not compared with the published results of this package, made with another {name} "
            f"(there {there!r}, here {here!r}){more}."
        )
    results = _results(run)
    for name, table in results.items():
        if difference := table_difference(pd.read_csv(kept / f"{name}.csv"), table, TOLERANCE):
            return (
                "Not equal to the published results of this package. First difference (there and here): "
                f"{name}.csv: {difference}\n{_explanation(old['provenance'], new['provenance'])}"
            )
    drawn = results["completions"]["completions"].sum()
    return (
        f"Equal to the published results of this package: {len(TABLES)} tables, the logs of both trainings and {drawn:,} "
        "completions."
    )


def completion_digests(run: Run) -> pd.DataFrame:
    """Digest the completions of a run: columns policy, benchmark, completions, sha256.

    The digest covers the samples in order, then the greedy completions: for each, the number of its tokens, their ids,
    and whether it is correct.
    """
    drawn = pd.concat([run.samples(), run.samples(greedy=True)])
    rows = []
    for (policy, benchmark), part in drawn.groupby(["policy", "benchmark"], sort=False):
        digest = hashlib.sha256()
        for ids, correct in zip(part["completion_ids"], part["correct"], strict=True):
            digest.update(np.array([len(ids), *ids, correct], dtype="<i8").tobytes())
        row = {"policy": policy, "benchmark": benchmark}
        rows.append(row | {"completions": len(part), "sha256": digest.hexdigest()})
    return pd.DataFrame(rows)


def table_difference(a: pd.DataFrame, b: pd.DataFrame, tolerance: float = 0.0) -> str | None:
    """Describe the first difference between two tables; None if there is none. Times and column order do not count.

    Args:
        a, b: The tables.
        tolerance: Numbers that differ by less, relative or absolute, count as equal.
    """
    a, b = (table.drop(columns=_TIMES, errors="ignore") for table in (a, b))
    if set(a.columns) != set(b.columns):
        return f"columns {', '.join(a.columns)} and {', '.join(b.columns)}"
    try:
        pd.testing.assert_frame_equal(a, b, check_like=True, check_dtype=False, rtol=tolerance, atol=tolerance)
    except AssertionError as error:
        said = " ".join(str(error).split())
        place = re.search(r'column name="(.+?)".* At positional index (\d+), first diff: (.*)', said)
        return f"column {place[1]}, row {place[2]}: {place[3][:120]}" if place else said[:200]
    return None


def _results(run: Run) -> dict[str, pd.DataFrame]:
    """Return the tables that are compared with the kept ones, from cause to effect."""
    tables = {name: pd.read_csv(run.folder / "tables" / f"{name}.csv") for name in TABLES}
    tables["margins"] = tables["margins"].round(6)
    return {"log": run.logs()[LOG_COLUMNS], "completions": completion_digests(run)} | tables


def _explanation(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the differences between two provenances that may change numbers; if there are none, the two commits."""
    there, here = (
        p["packages"] | {"Python": p["python"], "platform": p["platform"], "CPU": p.get("cpu")} for p in (old, new)
    )
    told = [f"{name} {value} (here {here[name]})" for name, value in there.items() if here.get(name, value) != value]
    if told:
        return f"A possible reason: the published ones were made with {', '.join(told)}."
    return f"Only the code differs: commit {old['commit']} there, {new['commit']} here."


def _same_bytes(a: Path, b: Path) -> str | None:
    hashes = [sha256_of(path)[:12] for path in (a, b)]
    return None if hashes[0] == hashes[1] else f"contents {hashes[0]} and {hashes[1]}"


def _same_problems(a: Path, b: Path) -> str | None:
    prints = [read_json(path, ["fingerprint"])["fingerprint"] for path in (a, b)]
    return None if prints[0] == prints[1] else f"fingerprints {prints[0]} and {prints[1]}"


def _same_table(a: Path, b: Path, tolerance: float = 0.0) -> str | None:
    read = pd.read_parquet if a.suffix == ".parquet" else pd.read_csv
    return table_difference(read(a), read(b), tolerance)


_almost_same_table = partial(_same_table, tolerance=TOLERANCE)


# Patterns of files in the order in which they are made, and the function that compares two: None if they are equal.
_PARTS: tuple[tuple[str, Callable[[Path, Path], str | None]], ...] = (
    ("problems/*.json", _same_problems),
    ("base/*.safetensors", _same_bytes),
    *((f"{method}/rollouts.parquet", _almost_same_table) for method in METHODS),
    *((f"{method}/log.csv", _almost_same_table) for method in METHODS),
    *((f"{method}/*.safetensors", _same_bytes) for method in METHODS),
    ("samples/*/*.parquet", _same_table),
    ("scores/*.parquet", _same_table),
    ("tables/*.csv", _same_table),
    ("figures/[!.]*.svg", _same_bytes),  # PNGs name their commit; files that start with a dot are left by killed runs
)
