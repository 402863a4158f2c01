"""Child processes that do not outlive their parent, and the processes of one training."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1  # of prctl: the signal for when the parent ends
# what a launcher sets for each of several processes
_OF_SEVERAL = "RANK LOCAL_RANK GROUP_RANK ROLE_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()


def die_with_parent() -> None:
    """Have the system end this process when the thread that started it ends, however that ends. Linux only.

    Elsewhere a child that has lost its parent works on; what it holds is still locked, and a restart says so.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def work_for_parent() -> None:
    """What a worker process does first: end with its parent, and leave a terminal's Ctrl-C to it."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def world_size() -> int:
    """How many processes train together, as `accelerate launch` and `torchrun` say."""
    return _number_in("WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this is the process that writes, of those that train together."""
    return _number_in("RANK", 0) == 0


def _number_in(variable: str, default: int) -> int:
    value = os.environ.get(variable, str(default))
    if not value.isdecimal():
        raise ValueError(
            f"The environment's {variable} is {value!r}; torchrun and accelerate set it to a number. Unset it."
        )
    return int(value)


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run the block before the others do, so that they find what it has made."""
    if world_size() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def run_alone(module: str, *arguments: str) -> None:
    """Run a module in a process of its own, without the environment that makes it one of several.

    Raises:
        RuntimeError: If it fails, with the end of its error output.
    """
    several = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_")
    environment = {k: v for k, v in os.environ.items() if k not in _OF_SEVERAL and not k.startswith(several)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} has failed: {' '.join(done.stderr.split())[-500:]}")


def wait_for_everyone() -> None:
    """Wait until all processes of the training are here."""
    if world_size() > 1:
        _state().wait_for_everyone()


def is_loss_of_another(error: RuntimeError) -> bool:
    """Whether a training of several processes has failed because another of them has ended."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # torch's, which is not imported for this
    return world_size() > 1 and ("DistError" in kinds or "gloo" in str(error) or "closed by peer" in str(error))


def leave_process_group() -> None:
    """End this process's part in a distributed training: exiting inside the group may abort and take the others along."""
    if world_size() > 1:
        wait_for_everyone()
        _state().destroy_process_group()


def _state():
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
