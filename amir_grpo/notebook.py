"""Helpers for notebooks: install what the package needs, as on Colab; show tables and figures; check exercises."""

from __future__ import annotations

import html
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_version

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Image
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

# Kept if their versions are within the package's bounds: large packages, built for the machine's driver, ...
_TORCH = ("torch", "torchvision", "torchaudio", "triton")
# ... and packages that the running kernel works with or has probably imported.
_KERNEL = ("ipykernel", "ipython", "jupyter-client", "tornado", "pyzmq", "numpy", "pandas")

# Times of all notebooks of a profile, one after the other. Only the sandbox's was measured.
_EXPECTED = """
  sandbox   needs no GPU; all notebooks together take about 6 minutes on 2 cores
  colab-t4  Qwen2.5-0.5B on GSM8K, on a T4; an estimated 2 to 4 hours, not tried on a T4 yet
Each notebook has its own machine: mount your Drive (folder icon) in each, or 02 to 05 train again."""


def set_up() -> None:
    """Install what the package needs if it is missing; on Colab, print the device and how long the profiles take."""
    if importlib.util.find_spec("trl") is None:
        install()
    if "google.colab" in sys.modules:
        device = _gpu() or "no GPU (for colab-t4: Runtime → Change runtime type → T4)"
        print(f"Device: {device}. Choose a profile below:{_EXPECTED}")


def install() -> None:
    """Install what the package needs, with the extra gpu on an NVIDIA GPU; restart the kernel only if needed.

    Raises:
        subprocess.CalledProcessError: If the installation fails; its output is printed.
        SystemExit: If a package that this kernel has imported was replaced, after asking the kernel to restart.
    """
    gpu = _gpu()
    print(f"Installing what amir-grpo needs, about {3 if gpu else 1} minutes …", flush=True)
    # uv, which Colab has, takes a fraction of pip's time
    uv = shutil.which("uv")
    tool = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "kept.txt"
        constraints.write_text("\n".join(kept(_installed())) + "\n")
        needed = requirements("gpu" if gpu else "")
        subprocess.run([*tool, "--quiet", "--constraint", str(constraints), *needed], check=True)
    if replaced := imported_before():
        print(f"The kernel restarts, as it holds older versions: {', '.join(replaced)}. Press Run all again.")
        from IPython import get_ipython

        if (shell := get_ipython()) is not None and getattr(shell, "kernel", None) is not None:
            shell.kernel.do_shutdown(restart=True)
        raise SystemExit("Press Run all again.")


def requirements(extra: str = "") -> list[str]:
    """List the declared dependencies of the package, and of an extra if one is given, in pip's form."""
    declared = map(Requirement, importlib.metadata.requires("amir-grpo") or [])
    return [f"{r.name}{r.specifier}" for r in declared if r.marker is None or r.marker.evaluate({"extra": extra})]


def kept(installed: dict[str, str]) -> list[str]:
    """Return constraints that keep torch's and the kernel's installed versions if they are within the bounds."""
    bounds = {r.name: r.specifier for r in map(Requirement, requirements())}
    there = {name: installed[name] for name in (*_TORCH, *_KERNEL) if name in installed}
    fit = {name: version for name, version in there.items() if version in bounds.get(name, SpecifierSet())}
    return [f"{name}=={version}" for name, version in fit.items() if "torch" in fit or name not in _TORCH]


def imported_before() -> list[str]:
    """List packages that this kernel has imported in another version than is now installed."""
    now, found = _installed(), []
    for name, module in sorted(sys.modules.items()):
        before, there = getattr(module, "__dict__", {}).get("__version__"), now.get(name.replace("_", "-"))
        if isinstance(before, str) and there and canonicalize_version(before) != canonicalize_version(there):
            found.append(f"{name} {before} → {there}")
    return found


def _installed() -> dict[str, str]:
    """Return the installed versions by package, with - in its name."""
    return {re.sub("[-_.]+", "-", d.name).lower(): d.version for d in importlib.metadata.distributions() if d.name}


def _gpu() -> str | None:
    """Return the name of the first NVIDIA GPU; None without one."""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


# --- output of cells ----------------------------------------------------------------------------------------------


def show(figure: Figure, width: int = 680) -> Image:
    """Show a figure as the output of a cell, `width` pixels wide."""
    from IPython.display import Image

    from amir_grpo.results.style import png

    return Image(png(figure, dpi=160), width=width)


def show_table(table: pd.DataFrame, caption: str = "", digits: int = 2) -> Styler:
    """Show a table as the output of a cell: policies by name, numbers rounded, p-values as text.

    Texts and caption may be untrusted: they are escaped, their mathematics is not typeset, and line breaks are kept.
    """
    from amir_grpo.results.style import p_text
    from amir_grpo.results.tables import named

    table = named(table).map(lambda value: visible(value) if isinstance(value, str) else value)
    texts = list(table.columns.difference(table.select_dtypes("number").columns, sort=False))
    p_values = {column: lambda p: html.escape(p_text(p)) for column in table if str(column).startswith("p_")}
    style = table.style.hide(axis="index").format(p_values, precision=digits, escape="html")
    style = style.set_table_attributes('class="tex2jax_ignore mathjax_ignore"').set_properties(
        subset=texts, **{"text-align": "left", "white-space": "pre-wrap", "max-width": "36em"}
    )
    left = {"selector": "caption", "props": "text-align: left; white-space: pre-wrap; font-weight: bold"}
    return style.set_caption(html.escape(visible(caption))).set_table_styles([left]) if caption else style


def check(answer: Any, right: Any, hint: str) -> None:
    """Print whether the answer to an exercise is right, to one percent, or else a hint. No answer stops a notebook.

    Args:
        answer: A number or several, None or ... if there is none yet; or a function that returns it.
        right: The right answer.
        hint: The hint.
    """
    import numpy as np

    try:
        given = np.asarray(answer() if callable(answer) else answer)
        if given.dtype == object:
            said = "No answer yet."
        elif given.shape == np.shape(right) and np.allclose(given, right, rtol=0.01, equal_nan=True):
            print("Right.")
            return
        else:
            said = f"{given} is not it."
    except Exception as error:  # raised by the reader's code
        said = f"Your code fails: {type(error).__name__}: {error}."
    print(f"{said} Hint: {hint}")


def visible(text: str) -> str:
    """Make control characters (ANSI codes, NULs) and lone surrogates of untrusted text visible; keep line breaks."""
    return "".join(c if c.isprintable() or c in "\n\t\u00a0" else "\ufffd" for c in text)
