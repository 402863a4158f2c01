"""Compare two runs from cause to effect, and name the first difference."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from amir_grpo.choices import METHODS
from amir_grpo.settings import differences
from amir_grpo.system.provenance import read_config, read_json

# Numbers of a training that differ by less, relative or absolute, count as the same: another processor rounds so in
# float64.
TOLERANCE = 1e-10
# A pattern of files, and what compares two of them: None where they are the same, else what differs.
Part = tuple[str, Callable[[Path, Path], str | None]]
# Of the log: how long something took, or how much memory it had.
_TIMES = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")


def first_difference(a: Path, b: Path) -> str | None:
    """The first difference between two run folders; None if everything that is compared is equal.

    In the order in which they are made: settings, problems, base policy, rollouts, logs and adapters of the training,
    completions, scores, tables, figures. The numbers in the log and in the record of the rollouts (rewards, advantages,
    losses, gradients' norms) may differ by 1e-10, relative or absolute, all else not at all: completions and their
    log-probabilities, adapters, tables, figures. Times, provenance and the report, which holds both, are not compared.

    Raises:
        FileNotFoundError: If one of them is not a run folder, or neither holds a result.
        ValueError: If a configuration or a record of one of them cannot be read.
    """
    return next(_differences(a, b), None)


def _differences(a: Path, b: Path) -> Iterator[str]:
    settings = [read_config(folder)["settings"] for folder in (a, b)]
    for name, (old, new) in differences(*settings).items():
        yield f"setting {name}: {old!r} and {new!r}"
    if not (yield from differing_files(a, b, _PARTS)):
        raise FileNotFoundError(f"{a} and {b} hold nothing yet that could be compared.\nRun them first.")


def differing_files(a: Path, b: Path, parts: Sequence[Part]) -> Generator[str, None, int]:
    """What differs between the files of two folders, in the order of `parts`; returns how many names were compared."""
    compared = 0
    for pattern, same in parts:
        names = [sorted(path.relative_to(folder) for path in folder.glob(pattern)) for folder in (a, b)]
        for name in sorted({*names[0], *names[1]}):
            compared += 1
            for folder, there in zip((a, b), names, strict=True):
                if name not in there:
                    yield f"{name}: not in {folder}"
                    break
            else:
                difference = same(a / name, b / name)
                if difference:
                    yield f"{name}: {difference}"
    return compared


def _same_bytes(a: Path, b: Path) -> str | None:
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in (a, b)]
    return None if hashes[0] == hashes[1] else f"contents {hashes[0]} and {hashes[1]}"


def _same_problems(a: Path, b: Path) -> str | None:
    prints = [read_json(path, ["fingerprint"])["fingerprint"] for path in (a, b)]
    return None if prints[0] == prints[1] else f"fingerprints {prints[0]} and {prints[1]}"


def _almost_same_table(a: Path, b: Path) -> str | None:
    return same_table(a, b, TOLERANCE)


def same_table(a: Path, b: Path, tolerance: float = 0.0, names: Sequence[str] = ()) -> str | None:
    """What differs first between two tables, None where nothing does; times are no difference.

    Args:
        a, b: CSV or Parquet files.
        tolerance: Numbers that differ by less, relative or absolute, are the same.
        names: Columns that name a row, where its number says less.
    """
    read = pd.read_parquet if a.suffix == ".parquet" else pd.read_csv
    one, other = (read(path) for path in (a, b))
    one, other = (table.drop(columns=[c for c in _TIMES if c in table]) for table in (one, other))
    if list(one.columns) != list(other.columns):
        return f"columns {', '.join(one.columns)} and {', '.join(other.columns)}"
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} rows"
    for column in one.columns:
        left, right = one[column], other[column]
        unequal = [not _equal(x, y, tolerance) for x, y in zip(left, right, strict=True)]
        if any(unequal):
            row = int(np.argmax(unequal))
            named = ", ".join(str(one[name].iloc[row]) for name in names) or row
            return f"column {column}, row {named}: {_short(left.iloc[row])} and {_short(right.iloc[row])}"
    return None


def _equal(x: object, y: object, tolerance: float) -> bool:
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return np.array_equal(x, y)
    if tolerance and isinstance(x, float) and isinstance(y, float):
        return math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance) or (pd.isna(x) and pd.isna(y))
    return x == y or (pd.isna(x) and pd.isna(y))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


# What is compared, in the order in which it is made.
_PARTS: tuple[Part, ...] = (
    ("problems/*.json", _same_problems),
    ("base/*.safetensors", _same_bytes),
    *((f"{method}/rollouts.parquet", _almost_same_table) for method in METHODS),
    *((f"{method}/log.csv", _almost_same_table) for method in METHODS),
    *((f"{method}/*.safetensors", _same_bytes) for method in METHODS),
    ("samples/*/*.parquet", same_table),
    ("scores/*.parquet", same_table),
    ("tables/*.csv", same_table),
    ("figures/[!.]*", _same_bytes),  # files that begin with a dot are left over from killed processes
)
