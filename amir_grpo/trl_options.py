"""The options of the trainer's configuration that are not settings of a run, such as temperature or top_k.

They are read from the source of TRL and transformers, since importing these takes seconds and must wait for Unsloth.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import operator
from pathlib import Path
from typing import Any

_SOURCES = {
    "TrainingArguments": ("transformers", "training_args.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "GRPOConfig": ("trl", "trainer/grpo_config.py"),
    "AmirGRPOConfig": ("amir_grpo", "trainer.py"),
}
# A run sets these from its settings and the hardware.
_MADE = {"output_dir", "bf16", "fp16", "use_cpu", "warmup_steps", "save_strategy", "reward_weights"}
_KINDS = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "None": None}


@functools.cache
def trainer_options() -> dict[str, Any]:
    """Return the types of `AmirGRPOConfig`'s options by name, including TRL's; Any for a library's class."""
    options: dict[str, Any] = {}
    for class_name, (package, module) in _SOURCES.items():
        source = Path(importlib.util.find_spec(package).origin).parent / module
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                declared = [line for line in node.body if isinstance(line, ast.AnnAssign)]
                options |= {line.target.id: _kind(ast.unparse(line.annotation)) for line in declared}
    return {name: kind for name, kind in options.items() if name not in _MADE and name[0] != "_"}


def _kind(annotation: str) -> Any:
    names = annotation.split(" | ")
    if not set(names) <= set(_KINDS):
        return Any
    return functools.reduce(operator.or_, [_KINDS[name] for name in names])
