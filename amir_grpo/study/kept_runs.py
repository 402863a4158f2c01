"""The results of one run in one small file: a zip of CSV tables and a record, the same bytes for the same results."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from amir_grpo.system.files import atomic_write
from amir_grpo.system.provenance import to_json

TABLES = ("problems", "rollouts", "richness", "lengths", "boundary")
_RECORD = "run.json"
_TIME = (1980, 1, 1, 0, 0, 0)  # of every member, so that bytes depend on results alone


@dataclass(frozen=True)
class KeptRun:
    """What is kept of a run.

    Attributes:
        record: What was run: study, regime, arm, method, seed, base, profile, all settings, digests, seconds of CPU time,
            provenance.
        tables: By name, of `TABLES`; the base policy has fewer.
    """

    record: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]


def keep_run(path: Path, kept: KeptRun) -> None:
    """Write a run's results, whole or not at all; numbers to 5 significant digits."""

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            for name, table in kept.tables.items():
                text = table.to_csv(index=False, float_format="%.5g", lineterminator="\n")
                file.writestr(zipfile.ZipInfo(f"{name}.csv", _TIME), text, zipfile.ZIP_DEFLATED, 9)
            file.writestr(zipfile.ZipInfo(_RECORD, _TIME), to_json(dict(kept.record)), zipfile.ZIP_DEFLATED, 9)

    atomic_write(path, write)


def read_run(path: Path) -> KeptRun:
    """The results that `keep_run` has written.

    Raises:
        ValueError: If the file holds something else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            record = json.loads(file.read(_RECORD))
            names = [name for name in file.namelist() if name.endswith(".csv")]
            tables = {Path(name).stem: pd.read_csv(io.BytesIO(file.read(name))) for name in names}
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a run's results ({type(error).__name__}: {error}).\nDelete it, and it is made again."
        ) from error
    return KeptRun(record, tables)
