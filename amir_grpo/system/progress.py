"""Progress bars: on the terminal's error stream, in a notebook on its output, where errors alone are shown in red."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar with its options, written where it does not look like an error."""
    return tqdm(file=sys.stdout if _in_notebook() else sys.stderr, **options)


def _in_notebook() -> bool:
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return get_ipython() is not None
