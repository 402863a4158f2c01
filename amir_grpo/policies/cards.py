"""GPUs by their data sheets, and the one that this process sees."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU, by its data sheet.

    Attributes:
        memory: Memory that a process can allocate, GiB.
        tflops: Speed of dense 16-bit matrix products, 10^12 operations per second.
        bandwidth: Memory bandwidth, GB per second.
        bf16: Whether it computes in bfloat16, else in float16.
    """

    name: str
    memory: float
    tflops: float
    bandwidth: float
    bf16: bool = True


CARDS = {
    card.name: card
    for card in (
        Card("T4", 14.6, 65, 320, bf16=False),
        Card("L4", 22.0, 121, 300),
        Card("A100-40GB", 39.4, 312, 1555),
        Card("A100-80GB", 79.2, 312, 2039),
        Card("H100", 79.2, 989, 3350),
        Card("H200", 139.8, 989, 4800),
    )
}


def card_here() -> Card | None:
    """The GPU of this process, None without one. Its speed is that of the known card of its name, or of similar memory."""
    if not torch.cuda.is_available():
        return None
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB
    words = re.split(r"[\s-]+", name)  # an L40S is no L4
    known = [card for card in CARDS.values() if card.name.split("-")[0] in words]
    like = min(known or CARDS.values(), key=lambda card: abs(card.memory - memory))
    return Card(name, memory, like.tflops, like.bandwidth, torch.cuda.is_bf16_supported(including_emulation=False))


def cards_here() -> dict[str, Card]:
    """The GPU of this process or, without one, all known cards."""
    here = card_here()
    return {here.name: here} if here else CARDS
