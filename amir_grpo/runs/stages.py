"""The files of a stage in a run folder, with records of when and how they were made, and their checksums."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.lib import ArrowException

from amir_grpo.system.files import atomic_write, first_damaged, write_text
from amir_grpo.system.provenance import now, provenance, read_json, to_json


def read_table(path: Path, columns: Iterable[str] = (), numbers: Iterable[str] = ()) -> pd.DataFrame:
    """Read a Parquet or CSV file of a run folder.

    Args:
        path: The file.
        columns: Columns that it must have.
        numbers: Columns that it must have and that must hold numbers.

    Raises:
        ValueError: If it cannot be read or lacks a column: something other than this package has changed it.
    """
    try:
        checked = partial(pd.read_parquet, page_checksum_verification=True)
        table = (checked if path.suffix == ".parquet" else pd.read_csv)(path)
        missing = [column for column in (*columns, *numbers) if column not in table]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        table = table.assign(**{column: pd.to_numeric(table[column]) for column in numbers})
    except (ValueError, TypeError, OSError, ArrowException) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        raise ValueError(
            f"{path} cannot be read ({cause}).\nDelete it, and it is made again; other complete results are kept."
        ) from error
    return table


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a Parquet file of a run folder, with checksums by which `read_table` detects changed bytes."""
    atomic_write(path, lambda part: table.to_parquet(part, write_page_checksum=True))


def write_stage(path: Path, started: str, **more: Any) -> None:
    """Record when and how a result was made; call it before writing the result, so that none lacks its record.

    Args:
        path: The record, JSON.
        started: Time in UTC, from `amir_grpo.system.provenance.now`.
        **more: Further entries.
    """
    write_text(path, to_json({"started": started, "ended": now(), **more, "provenance": provenance()}))


def check_trained(folder: Path) -> None:
    """Check that no file of a complete training has changed.

    Raises:
        ValueError: If one has; the message says how to repair it.
    """
    stage = folder / "stage.json"
    recorded = read_json(stage).get("sha256") if stage.exists() else None
    if isinstance(recorded, dict) and (damaged := first_damaged(folder, recorded)):
        raise ValueError(
            f"{folder / damaged} is damaged or missing.\n"
            f"Restore it, or delete {stage}: the training ends again, from its last checkpoint if there is one."
        )
