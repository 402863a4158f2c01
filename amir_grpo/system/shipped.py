"""How the package was installed, and what comes with it: a wheel holds tables and notebooks inside, a clone beside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_INSIDE = "shipped"  # where setup.py puts them in a wheel


def shipped(name: str) -> Path:
    """A folder that comes with the package, to be read only.

    Args:
        name: "data/published", "data/results" or "notebooks".

    Raises:
        FileNotFoundError: If it is not there, with how to get it.
    """
    for root in (_PACKAGE / _INSIDE, _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"{name} did not come with the package in {_PACKAGE}.\n"
        "Install its wheel (pip install amir-grpo), or a clone (pip install -e .)."
    )


def install_command(extra: str) -> str:
    """The command that adds an optional part, by its name in pyproject.toml, to a package from a wheel or from a clone."""
    return f"pip install 'amir-grpo[{extra}]'" if (_PACKAGE / _INSIDE).is_dir() else f"pip install -e '.[{extra}]'"
