"""What changed between two versions of Unsloth in the functions that the preference term relies on.

    pip download --no-deps unsloth==… unsloth_zoo==… -d OLD      (and the same for NEW)
    python tools/unsloth_diff.py OLD NEW

OLD and NEW are folders with the wheels of both packages, or with what they hold. Comments and formatting do not count. Exit
code 1 where something changed: run `.ci/gpu-on-cpu` with the new version before it is pinned.
"""

from __future__ import annotations

import ast
import difflib
import sys
import zipfile
from pathlib import Path

# By file: functions and classes whose behaviour the trainer, κ or the backend assumes.
RELIED_ON = {
    "unsloth_zoo/rl_replacements.py": (
        "grpo_compute_loss",  # how each loss type normalises: κ
        "grpo_accumulated_loss",
        "UnslothEfficientGRPO",
        "left_pack_padding",  # where a completion stands in old and reference log-probabilities
        "calculate_pad_tokens_in_prompt",
        "create_completion_attention_mask",
    ),
    "unsloth/models/rl_replacements.py": (
        "grpo_trainer__prepare_inputs",
        "grpo_trainer__generate_and_score_completions",
        "grpo_trainer__get_per_token_logps_and_entropies",
        "grpo_trainer_compute_loss",
    ),
    "unsloth/models/rl.py": ("patch_functions", "_patch_trl_rl_trainers_impl"),
}


def sources(folder: Path) -> dict[str, str]:
    """The text of every file of `RELIED_ON`, from wheels in the folder or from the folder itself.

    Raises:
        FileNotFoundError: If one is in neither.
    """
    found = {name: (folder / name).read_text() for name in RELIED_ON if (folder / name).is_file()}
    for wheel in sorted(folder.glob("unsloth*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            found |= {name: archive.read(name).decode() for name in RELIED_ON if name in archive.namelist()}
    missing = [name for name in RELIED_ON if name not in found]
    if missing:
        raise FileNotFoundError(f"{folder} holds neither {missing[0]} nor a wheel with it: pip download --no-deps.")
    return found


def statements(source: str, name: str) -> list[str] | None:
    """A function or class without comments and formatting, line by line; None where there is none."""
    for node in ast.parse(source).body:
        if getattr(node, "name", None) == name:
            return ast.unparse(node).splitlines()
    return None


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Unified differences of what is relied on; empty where nothing changed."""
    lines: list[str] = []
    for file, names in RELIED_ON.items():
        for name in names:
            before, after = statements(old[file], name), statements(new[file], name)
            if before is None or after is None:
                lines.append(f"{file}: {name} is {'gone' if after is None else 'new'}")
            lines += difflib.unified_diff(before or [], after or [], f"old {name}", f"new {name}", lineterm="", n=2)
    return lines


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    changed = differences(*(sources(Path(folder)) for folder in sys.argv[1:]))
    print("\n".join(changed) or "Nothing that is relied on changed.")
    raise SystemExit(bool(changed))


if __name__ == "__main__":
    main()
