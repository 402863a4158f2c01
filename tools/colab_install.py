"""What installing the package would replace on a Colab machine, by the list of its packages.

    curl -O https://raw.githubusercontent.com/googlecolab/backend-info/main/pip-freeze.gpu.txt
    python -m tools.colab_install pip-freeze.gpu.txt [gpu]

The first cell of a notebook installs by uv: what is installed stays where it fits. So does this, and installs nothing: `uv
pip compile` takes the machine's versions where they fit, under the constraints that the first cell gives. It needs uv and a
network. Exit code 1 where something is replaced that the running kernel holds or that is built for the machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from amir_grpo.notebook import kept

ROOT = Path(__file__).parents[1]
PYTHON = "3.13"  # Colab's since August 2026
# What must stay: the kernel runs on it, or has it imported, or it is built for the machine's driver.
STAYS = ("ipykernel", "ipython", "tornado", "jupyter-client", "pyzmq", "numpy", "pandas", "torch")
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s+;]+)")


def versions(listing: str) -> dict[str, str]:
    """Versions by normalised name, from what `pip freeze` prints; without local parts such as +cu128, which PyPI lacks."""
    pins = (_PIN.match(line) for line in listing.splitlines())
    return {re.sub(r"[-_.]+", "-", pin[1]).lower(): pin[2] for pin in pins if pin}


def resolved(installed: dict[str, str], extra: str = "") -> dict[str, str]:
    """What would be there of the package's dependencies after its installation.

    Args:
        installed: Versions of the machine.
        extra: An extra of pyproject.toml.

    Raises:
        RuntimeError: If there is no solution, with uv's explanation.
    """
    with tempfile.TemporaryDirectory() as folder:
        constraints, pins = Path(folder) / "kept.txt", Path(folder) / "pins.txt"
        constraints.write_text("\n".join(kept(installed)) + "\n")
        pins.write_text("".join(f"{name}=={version}\n" for name, version in installed.items()))
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", str(ROOT / "pyproject.toml")]
        command += ["--python-version", PYTHON, "--python-platform", "x86_64-manylinux_2_28"]
        command += ["--constraint", str(constraints), "--output-file", str(pins)]
        done = subprocess.run(command + (["--extra", extra] if extra else []), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        after = versions(pins.read_text())
        # CUDA's own libraries come with the machine's torch
        return {name: version for name, version in after.items() if not name.startswith(("nvidia-", "cuda-"))}


def replaced(installed: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Packages that are there in another version afterwards: before and after."""
    shared = [name for name in after if name in installed]
    return {name: (installed[name], after[name]) for name in shared if installed[name] != after[name]}


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    installed = versions(Path(sys.argv[1]).read_text())
    try:
        after = resolved(installed, *sys.argv[2:])
    except RuntimeError as error:
        raise SystemExit(f"It cannot be installed there: {error}") from error
    changes = replaced(installed, after)
    for name, (old, new) in changes.items():
        print(f"replaced: {name} {old} → {new}")
    print(f"added: {', '.join(f'{n} {v}' for n, v in after.items() if n not in installed) or 'nothing'}")
    print(f"kept: {', '.join(f'{name} {after[name]}' for name in STAYS if name in after and name not in changes)}")
    raise SystemExit(any(name in changes for name in STAYS))


if __name__ == "__main__":
    main()
