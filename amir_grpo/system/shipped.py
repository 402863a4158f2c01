"""Files that come with the package: tables and notebooks. A wheel holds them inside the package, a clone beside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """A folder that comes with the package, to be read only.

    Args:
        name: "data/published", "data/results" or "notebooks".

    Raises:
        FileNotFoundError: If it is not there, with how to get it.
    """
    for root in (_PACKAGE / "shipped", _PACKAGE.parent):  # as setup.py puts them into a wheel; a clone
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"{name} did not come with the package in {_PACKAGE}.\n"
        "Install its wheel (pip install amir-grpo), or a clone (pip install -e .)."
    )
