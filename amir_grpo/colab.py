"""Install the package into a running kernel, such as Colab's, and keep the torch that is there; say what to expect.

Nothing but the standard library and packaging is imported: this runs before the package's dependencies are there.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Kept where their versions are within the project's bounds: what is large and built for the machine's driver, ...
_TORCH = ("torch", "torchvision", "torchaudio", "triton")
# ... what the running kernel speaks through, and what it is likely to have imported.
_KERNEL = ("ipykernel", "ipython", "jupyter_client", "tornado", "pyzmq", "numpy", "pandas")


# What all notebooks of a profile take, one after the other. Only the sandbox's was measured.
_EXPECTED = {
    "sandbox": "a GPU is not needed; all notebooks together take about 6 minutes on 2 cores",
    "colab-t4": "Qwen2.5-0.5B on GSM8K, on a T4; by arithmetic 2 to 4 hours, and not tried on a T4 yet",
}


def introduce() -> None:
    """On Colab, say which device there is, and how long the profiles take; elsewhere say nothing."""
    if "google.colab" in sys.modules:
        print(introduction(_gpu()))


def introduction(gpu: str | None) -> str:
    """The device, and each profile of the form with what it takes.

    Args:
        gpu: Its name; None where there is none.
    """
    lines = [f"Device: {gpu or 'no GPU (for colab-t4: Runtime → Change runtime type → T4)'}. Choose a profile below:"]
    return "\n".join([*lines, *(f"  {profile:<9} {what}" for profile, what in _EXPECTED.items())])


def install(clone: Path) -> None:
    """Install a clone, editable, with the extra gpu where there is an NVIDIA GPU; restart the kernel only if needed.

    After a restart the package is there, and the notebooks' first cell has nothing to install: there is no second one.

    Raises:
        subprocess.CalledProcessError: If the installation fails; its output is above.
        SystemExit: If a package that this kernel has imported was replaced, after the kernel was told to restart.
    """
    extra = "[gpu]" if shutil.which("nvidia-smi") else ""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as constraints:
        constraints.write("\n".join(kept(clone)) + "\n")
    # uv, which Colab brings, needs a fraction of pip's time
    uv = shutil.which("uv")
    tool = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    with _ticking(f"Installing amir-grpo{extra} and what it needs, about {3 if extra else 1} minutes"):
        subprocess.run(
            [*tool, "--quiet", "--constraint", constraints.name, "--editable", f"{clone}{extra}"], check=True
        )
    Path(constraints.name).unlink()
    replaced = imported_before()
    if replaced:
        _restart(replaced)


def kept(clone: Path, installed: Mapping[str, str] | None = None) -> list[str]:
    """Constraints that keep this kernel's torch and the packages that belong to it, if within the project's bounds, and each
    of those that the kernel itself runs on.

    Args:
        clone: Holds pyproject.toml.
        installed: Versions by package; None for those of this kernel.
    """
    from packaging.requirements import Requirement

    project = tomllib.loads((clone / "pyproject.toml").read_text())["project"]
    bounds = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    version_of = _version if installed is None else installed.get
    there = {name: version for name in (*_TORCH, *_KERNEL) if (version := version_of(name))}
    fit = {name for name, version in there.items() if name not in bounds or version in bounds[name]}
    if "torch" not in fit:
        fit -= set(_TORCH)
    return [f"{name}=={version}" for name, version in there.items() if name in fit]


@contextmanager
def _ticking(what: str) -> Iterator[None]:
    """Show on one line what is going on, and for how many seconds, while the block runs."""
    started, ended = time.monotonic(), threading.Event()

    def tick() -> None:
        while not ended.wait(1):
            print(f"\r{what}: {time.monotonic() - started:.0f} s", end="", flush=True)

    print(what, end="", flush=True)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        ended.set()
        ticker.join()
        print(f"\r{what}: {time.monotonic() - started:.0f} s")


def _gpu() -> str | None:
    """The name of the first NVIDIA GPU; None without one."""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def imported_before() -> list[str]:
    """Packages that this kernel has imported in a version other than the one installed now."""
    imported = {name: getattr(module, "__version__", None) for name, module in sys.modules.items() if "." not in name}
    return [
        f"{name} {before} → {now}"
        for name, before in sorted(imported.items())
        if isinstance(before, str) and (now := _version(name)) and now != before
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _restart(replaced: list[str]) -> None:
    print(
        f"Installed. The kernel restarts, since it holds older versions: {', '.join(replaced)}. Press Run all again."
    )
    from IPython import get_ipython

    kernel = get_ipython()
    if kernel is not None and getattr(kernel, "kernel", None) is not None:
        kernel.kernel.do_shutdown(restart=True)
    raise SystemExit("Press Run all again.")
