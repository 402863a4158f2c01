"""Give back memory that is held for nothing."""

from __future__ import annotations

import gc

import torch


def free_memory() -> None:
    """Collect what refers to itself alone, and hand the GPU's cached blocks back: vLLM and other processes count them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
