"""Install the package into a running kernel, such as Colab's, and keep the torch that is there.

Nothing but the standard library and packaging is imported: this runs before the package's dependencies are there.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

# Kept where their versions are within the project's bounds: what is large and built for the machine's driver, ...
_TORCH = ("torch", "torchvision", "torchaudio", "triton")
# ... what the running kernel speaks through, and what it is likely to have imported.
_KERNEL = ("ipykernel", "ipython", "jupyter_client", "tornado", "pyzmq", "numpy", "pandas")


def install(clone: Path) -> None:
    """Install a clone, editable, with the extra gpu where there is an NVIDIA GPU; restart the kernel only if needed.

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
    subprocess.run([*tool, "--quiet", "--constraint", constraints.name, "--editable", f"{clone}{extra}"], check=True)
    Path(constraints.name).unlink()
    replaced = imported_before()
    if replaced:
        _restart(replaced)


def kept(clone: Path) -> list[str]:
    """Constraints that keep this kernel's torch and the packages that belong to it, if within the project's bounds, and each
    of those that the kernel itself runs on."""
    from packaging.requirements import Requirement

    project = tomllib.loads((clone / "pyproject.toml").read_text())["project"]
    bounds = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    there = {name: version for name in (*_TORCH, *_KERNEL) if (version := _version(name))}
    fit = {name for name, version in there.items() if name not in bounds or version in bounds[name]}
    if "torch" not in fit:
        fit -= set(_TORCH)
    return [f"{name}=={version}" for name, version in there.items() if name in fit]


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
