"""The paper's tables (arXiv 2601.03661), and the sizes of its benchmarks."""

from pathlib import Path

import pandas as pd

PUBLISHED = {"table1": "table1.csv", "coverage": "coverage.csv", "margin": "margin.csv"}
PUBLISHED_FOLDER = Path(__file__).parents[2] / "data" / "published"


def published_table(name: str, folder: Path | str = PUBLISHED_FOLDER) -> pd.DataFrame:
    """One of the paper's tables: "table1", "coverage" or "margin" (arXiv 2601.03661; see the folder's README).

    Raises ValueError for another name and FileNotFoundError where the folder is not there, as it is a part of the
    repository and not of the installed package.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published table {name!r}: choose one of {', '.join(PUBLISHED)}.")
    path = Path(folder) / PUBLISHED[name]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: the published tables are in the repository's data/published.\n"
            "Clone the repository and install from it (pip install -e .), or give that folder as `folder`."
        )
    return pd.read_csv(path)


def published_sizes(folder: Path | str = PUBLISHED_FOLDER) -> dict[str, int]:
    """Number of problems of each published benchmark, by the names of the published table."""
    sizes = pd.read_csv(Path(folder) / "sizes.csv")
    return dict(zip(sizes["benchmark"], sizes["problems"], strict=True))
