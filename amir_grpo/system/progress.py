"""Progress bars: on the terminal's error stream, in a notebook on its output, where errors alone are shown in red."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars for weights while the block runs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
