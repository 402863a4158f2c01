"""GPUs by the memory that a process can allocate, and the one that this process sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        memory: Memory that a process can allocate, GiB.
        bf16: Whether it computes in bfloat16, else in float16.
    """

    name: str
    memory: float
    bf16: bool = True


_KNOWN = {"T4": 14.6, "L4": 22.0, "A100-40GB": 39.4, "A100-80GB": 79.2, "H100": 79.2, "H200": 139.8}
CARDS = {name: Card(name, memory, bf16=name != "T4") for name, memory in _KNOWN.items()}


def card_here() -> Card | None:
    """Look at the GPU of this process; None without one."""
    if not torch.cuda.is_available():
        return None
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB
    return Card(name, memory, torch.cuda.is_bf16_supported(including_emulation=False))


def cards_here() -> dict[str, Card]:
    """Name the GPU of this process or, without one, all known cards."""
    here = card_here()
    return {here.name: here} if here else CARDS
