"""Policies that compute in float64 from end to end, and are saved in float32.

Processors and builds of the math libraries differ in their rounding. In float64 it differs in the 16th digit, which
changes no drawn token, and no weight once it is rounded to float32. But transformers computes norms and rotary
positions in float32 whatever the policy's dtype, which would bring the difference back to the 7th digit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amir_grpo.system.files import atomic_write

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_KNOWN = ("llama", "qwen2")  # architectures whose norms and rotary positions are those below


class _Rotary(nn.Module):
    """Rotary positions in float64, as in Llama: the two halves of a head rotate together."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
        self.register_buffer("inv_freq", config.rope_parameters["rope_theta"] ** -exponents, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of positions (N, T): (N, T, size of a head) each."""
        angles = position_ids[..., None].double() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def device_for_float64(device: torch.device) -> torch.device:
    """Return the device to compute on in float64: `device`, or the CPU for Apple's GPU, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def compute_in_float64(policy: PreTrainedModel) -> None:
    """Make a policy that was loaded in float64 compute in float64 throughout.

    Raises:
        ValueError: If the parts that its architecture computes in float32 are not known here.
    """
    config = policy.config
    if config.model_type not in _KNOWN or config.rope_parameters["rope_type"] != "default":
        raise ValueError(
            f"dtype=float64 supports policies of type {' and '.join(_KNOWN)} with plain rotary positions; this one is "
            f"{config.model_type}, parts of which transformers computes in float32.\nSet dtype to auto."
        )
    for name, module in list(policy.named_modules()):
        parent, _, own = name.rpartition(".")
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(module.weight.shape, module.variance_epsilon, device="meta")
            norm.weight = module.weight
            setattr(policy.get_submodule(parent), own, norm)
        elif type(module).__name__.endswith("RotaryEmbedding"):
            setattr(policy.get_submodule(parent), own, _Rotary(config).to(policy.device))


@contextmanager
def merged_adapters(policy: nn.Module) -> Iterator[None]:
    """Merge a policy's LoRA adapters into its weights during the block: one product per matrix instead of three.

    In float64 the merged policy draws the same tokens, in float32 almost always. In 16 bits most of an adapter would
    be rounded away, so it stays separate. The original weights are put back, not recomputed: nothing drifts.
    """
    owners = Counter(id(weight) for m in policy.modules() for weight in m.parameters(recurse=False))
    layers = [m for m in policy.modules() if isinstance(m, LoraLayer) and not m.merged]
    layers = [layer for layer in layers if layer.get_base_layer().weight.dtype in (torch.float64, torch.float32)]
    layers = [layer for layer in layers if owners[id(layer.get_base_layer().weight)] == 1]  # else two would change
    before = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer in layers:
            layer.merge(safe_merge=True)  # into a copy
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.get_base_layer().weight.data = weight
            layer.merged_adapters.clear()


def round_to_float32(path: Path) -> None:
    """Round the float64 weights of a safetensors file in place; a file without any stays unchanged."""
    weights = load_file(path)
    if any(weight.dtype == torch.float64 for weight in weights.values()):
        rounded = {n: w.float() if w.dtype == torch.float64 else w for n, w in weights.items()}
        atomic_write(path, lambda part: save_file(rounded, part, metadata={"format": "pt"}))
