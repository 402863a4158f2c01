"""Unsloth's code for GPUs on a machine without one: a stated T4, Triton's interpreter, bitsandbytes' kernels for CPUs.

`start` imports Unsloth so that it takes the machine for one with a Tesla T4: its loader, its Triton kernels and the trainer
that it generates run as they are. What only a card has is exchanged: memory figures, devices (a tensor that is asked for on
"cuda" is made on the CPU), autocast and loss scaler (the CPU's), the kernel that unpacks 4 bits (bitsandbytes' for CPUs).
CUDA's kernels themselves, torch.compile, and real memory and time are not seen.

It changes torch for good, so that it is for a process of its own: unsloth_trainer.py is.
"""

import functools
import os
import sys
from types import ModuleType, SimpleNamespace

os.environ |= {"UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1"}
os.environ |= {"UNSLOTH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch
from torch.overrides import TorchFunctionMode

T4 = SimpleNamespace(name="Tesla T4", total_memory=int(14.56 * 2**30), major=7, minor=5, multi_processor_count=40)


def start(autocast: bool) -> ModuleType:
    """Import Unsloth as on a T4; return it. Without autocast a policy in float32 computes in it throughout."""
    torch.set_num_threads(1)
    _state_card()
    if autocast:
        _use_autocast_of_cpu()
    import unsloth
    from unsloth.models import llama, rl
    from unsloth.trainer import _patch_trl_trainer

    def build(cache, index):  # as the original, on the CPU; it files the tables under the device's index
        size = cache.current_rope_size
        with cache._rope_build_mode():
            options = {"device": torch.device("cpu:0"), "dtype": cache._rope_cache_dtype}
            cache._set_cos_sin_cache(seq_len=cache._rope_cache_rows(), **options)
        cache.current_rope_size = size
        cache._rope_cache_versions[index] = cache._rope_cache_version
        cache._mark_rope_build(index)

    llama._PerDeviceRopeCache._build_rope_cache = build
    # what the import leaves out under UNSLOTH_ALLOW_CPU: TRL is rewritten
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    rl.PatchFastRL(FastLanguageModel=llama.FastLlamaModel)
    _patch_trl_trainer()
    load = unsloth.FastLanguageModel.from_pretrained
    unsloth.FastLanguageModel.from_pretrained = staticmethod(functools.partial(load, device_map="cpu"))
    _unpack_4_bits_by_cpu()
    _OnCPU().__enter__()  # for the rest of the process
    return unsloth


def _state_card() -> None:
    """Answer what is asked of CUDA as a T4 would; `is_available` stays False, so that nothing is sent there."""
    cuda = torch.cuda
    torch._C._cuda_getCurrentRawStream = lambda index: 0
    cuda.device_count, cuda.current_device = lambda: 1, lambda: 0
    cuda.get_device_properties, cuda.get_device_name = lambda *_: T4, lambda *_: T4.name
    cuda.get_device_capability = lambda *_: (T4.major, T4.minor)
    cuda.is_bf16_supported = lambda including_emulation=True: False
    cuda.mem_get_info = lambda *_: (T4.total_memory, T4.total_memory)
    for name in ("max_memory_reserved", "memory_reserved", "memory_allocated", "max_memory_allocated"):
        setattr(cuda, name, lambda *_: 0)
    cuda.empty_cache = cuda.synchronize = lambda *_: None


class _OnCPU(TorchFunctionMode):
    """Puts on the CPU what is asked for on a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = {
            k: torch.device("cpu") if k == "device" and isinstance(v, int) else v for k, v in (kwargs or {}).items()
        }
        return function(*map(_cpu, args), **{name: _cpu(value) for name, value in kwargs.items()})


def _cpu(value):
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


def _use_autocast_of_cpu() -> None:
    """Let CUDA's autocast be the CPU's, and accelerate scale the loss of float16 there."""
    import accelerate

    def on_cpu(device="cuda"):
        return "cpu" if device in (None, "cuda") else device

    begin, set_up = torch.autocast.__init__, accelerate.Accelerator.__init__
    torch.autocast.__init__ = lambda self, device_type, *a, **k: begin(self, on_cpu(device_type), *a, **k)
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        setattr(torch, name, functools.partial(lambda f, device="cuda": f(on_cpu(device)), getattr(torch, name)))
    for name in ("custom_fwd", "custom_bwd"):
        original = getattr(torch.amp, name)

        def custom(function=None, *, device_type="cuda", original=original, **options):
            options["device_type"] = "cpu"
            return functools.partial(original, **options) if function is None else original(function, **options)

        setattr(torch.amp, name, custom)

    @functools.wraps(set_up)
    def scaling(accelerator, *args, **kwargs):
        set_up(accelerator, *args, **kwargs)
        if accelerator.state.mixed_precision == "fp16":
            accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")

    accelerate.Accelerator.__init__ = scaling


def _unpack_4_bits_by_cpu() -> None:
    """Put bitsandbytes' kernel for CPUs in place of CUDA's, wherever Unsloth has imported it."""
    import bitsandbytes.nn.modules
    import unsloth.kernels.utils
    import unsloth.models.loader

    # where a CPU has bfloat16, version 0.50.2 repacks a layer in an evaluation for good
    bitsandbytes.nn.modules.has_avx512bf16 = lambda: False

    def unpack(weight, quant_state=None, out=None, use_global_buffer=False, dtype=None):
        if quant_state is None:
            return weight
        unpacked = bitsandbytes.functional.dequantize_4bit(weight, quant_state)
        return unpacked if out is None else out.copy_(unpacked)

    theirs = unsloth.kernels.utils.fast_dequantize
    for module in list(sys.modules.values()):
        if module.__name__.startswith("unsloth") and getattr(module, "fast_dequantize", None) is theirs:
            module.fast_dequantize = unpack
    unsloth.models.loader.ALLOW_BITSANDBYTES = True
