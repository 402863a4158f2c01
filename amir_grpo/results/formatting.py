"""Stand-in, until nobody imports it: these names are those of style and tables."""

from amir_grpo.results.style import p_text, signed, with_interval
from amir_grpo.results.tables import rounded, wide_summary

__all__ = ["LONG_TABLE", "p_text", "rounded", "signed", "so_many_are", "wide_summary", "with_interval"]
LONG_TABLE = 16


def so_many_are(number: int) -> str:
    """A number of things as the subject of a sentence: none is, 1 is, 2 are."""
    return f"{number or 'none'} {'are' if number > 1 else 'is'}"
