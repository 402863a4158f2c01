"""The tables in docs/ that are computed, as Markdown between two comments: `python -m tools.gallery` writes them.

A comment says what the table is made of, and is seen by nobody who reads the page:

    <!-- table data/results/tests.csv      a CSV file of the project; each line is a column:
    test | test                            its name in the file | its heading | its format
    gain | gain | {:+.2f}
    -->

The table follows, up to `<!-- end of table -->`. More than `LONG_TABLE` rows are folded away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

LONG_TABLE = 16  # rows
_TABLE = re.compile(r"(<!-- table (\S+)\n(.*?)-->\n).*?(<!-- end of table -->)", re.DOTALL)


def with_tables(page: str, root: Path) -> str:
    """A page with each of its tables as it is computed now.

    Args:
        page: Markdown.
        root: The folder that the paths of CSV files begin at.

    Raises:
        ValueError: If a table does not end, or names a column that its file does not have.
    """

    def computed(found: re.Match[str]) -> str:
        head, source, columns, end = found.groups()
        return f"{head}\n{_kept(root / source, columns.splitlines())}\n\n{end}"

    if len(re.findall(r"^<!-- table ", page, re.MULTILINE)) != page.count("<!-- end of table -->"):
        raise ValueError("a computed table does not end: put <!-- end of table --> below it.")
    return _TABLE.sub(computed, page)


def _kept(path: Path, columns: Sequence[str]) -> str:
    parts = [[part.strip() for part in column.split("|")] for column in columns]
    table = pd.read_csv(path)
    if missing := [name for name, *_ in parts if name not in table]:
        raise ValueError(f"{path.name} has no column {missing[0]}. It has {', '.join(table)}.")
    rows = [
        ["–" if pd.isna(row[name]) else _text(row[name], *form) for name, _, *form in parts]
        for row in table.to_dict("records")
    ]
    return _markdown([heading for _, heading, *_ in parts], rows)


def _text(value: object, form: str = "{}") -> str:
    text = form.format(value)
    return text if isinstance(value, str) else text.replace("-", "−")


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    if len(rows) <= LONG_TABLE:
        return table
    return f"<details><summary>All {len(rows)} rows</summary>\n\n{table}\n\n</details>"
