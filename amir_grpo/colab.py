"""Stand-in for `amir_grpo.notebook`, until no notebook imports it."""

from pathlib import Path

from amir_grpo.notebook import install as _install
from amir_grpo.notebook import set_up as introduce

__all__ = ["install", "introduce"]


def install(clone: Path) -> None:
    """Install what the package needs."""
    _install()
