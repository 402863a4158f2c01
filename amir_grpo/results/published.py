"""The paper's tables (arXiv 2601.03661), and the sizes of its benchmarks."""

from pathlib import Path

import pandas as pd

from amir_grpo.choices import check_names
from amir_grpo.system.files import shipped

PUBLISHED = {"table1": "table1.csv", "coverage": "coverage.csv", "margin": "margin.csv"}


def published_table(name: str, folder: Path | str | None = None) -> pd.DataFrame:
    """One of the paper's tables: "table1", "coverage" or "margin" (arXiv 2601.03661; see the folder's README).

    `folder` holds them; None for those that come with the package. Raises ValueError for another name and
    FileNotFoundError where the folder does not hold it.
    """
    check_names("published table", [name], PUBLISHED)
    path = Path(folder or shipped("data/published")) / PUBLISHED[name]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist.\nGive a folder that holds {PUBLISHED[name]}, or none for the package's own."
        )
    return pd.read_csv(path)


def published_sizes(folder: Path | str | None = None) -> dict[str, int]:
    """Number of problems of each published benchmark, by the names of the published table."""
    sizes = pd.read_csv(Path(folder or shipped("data/published")) / "sizes.csv")
    return dict(zip(sizes["benchmark"], sizes["problems"], strict=True))
