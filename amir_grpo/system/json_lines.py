"""Files with a JSON object in each line, as programs and editors leave them: packed by gzip, with a byte-order mark, with
Windows' line ends or blank lines."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_GZIP = b"\x1f\x8b"


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The object of each line that is not blank.

    Raises:
        ValueError: If a line is no JSON object or no UTF-8, or a packed file is damaged; names the file and the row.
    """
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    number = 0
    try:
        with (gzip.open if packed else open)(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield _object(text, path, number)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}, after row {number}: the packed file is damaged ({error}).\nWrite it again."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, row {number}: not UTF-8 ({error.reason} at byte {error.start} of the row).\nWrite it as UTF-8."
        ) from error


def _object(text: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise ValueError(f"{path}, row {number}: not a line of JSON ({error}).") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}, row {number}: not a JSON object.")
    return row
