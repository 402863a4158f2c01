"""A notebook-first reproduction of AMIR-GRPO (arXiv 2601.03661)."""

__version__ = "0.1.0"
