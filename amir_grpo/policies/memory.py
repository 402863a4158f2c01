"""Give back memory that nothing uses any more."""

from __future__ import annotations

import gc

import torch


def free_memory() -> None:
    """Collect unreachable cycles, and return PyTorch's cached blocks to the GPU, for vLLM and other processes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
