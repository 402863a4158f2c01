"""Where a policy's weights are: a Hub id, a folder, or an adapter on top of either. Nothing is loaded here."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from amir_grpo.system.files import atomic_write, user_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
EMBEDDINGS = ("lm_head", "embed_tokens")  # the layers that may share their weights
# The files that, with the adapter, are needed to load a trained policy elsewhere.
_TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens*", "added_tokens*", "vocab*", "merges*")


@dataclass(frozen=True)
class PolicySource:
    """A policy that can be loaded.

    Attributes:
        base: Hub id or folder of the base policy.
        adapter: Folder of a PEFT adapter; None for the base itself.
    """

    base: str
    adapter: Path | None = None

    def lora_rank(self) -> int:
        """Return the largest rank in the adapter; 0 without an adapter or a stated rank."""
        config = _adapter_config(self.adapter) if self.adapter else {}
        return max(config.get("r") or 0, 0, *(config.get("rank_pattern") or {}).values())

    def weights_hash(self) -> str:
        """Return a hash of the adapter's weights, or of the base's without an adapter: 8 hexadecimal digits.

        Files are hashed by content, or by size and time of change if larger than 1 GB; a base on the Hub by its name.
        """
        folder = self.adapter or Path(self.base)
        digest = hashlib.sha256()
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("*model*.bin")]) if folder.is_dir() else []
        for path in files:
            stat = path.stat()
            large = stat.st_size > 1e9
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode() if large else path.read_bytes())
        if not files:
            digest.update(self.base.encode())
        return digest.hexdigest()[:8]


def adapted_embeddings(adapter: Path) -> list[str]:
    """Return which of the embedding and output layers, which may share weights, an adapter changes or contains."""
    config = _adapter_config(adapter)
    targets, whole = config.get("target_modules") or [], config.get("modules_to_save") or []
    return [layer for layer in EMBEDDINGS if layer in targets or layer in whole]  # targets may be a regex


def find_policy(where: str) -> PolicySource:
    """Find the policy in a folder that training or transformers has saved, or on the Hub.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no policy, or the base of its adapter is missing.
        ValueError: If an adapter does not name its base.
    """
    folder = user_path(where)
    if (folder / ADAPTER_FILES[0]).is_file():
        base = _adapter_config(folder)["base_model_name_or_path"]
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise FileNotFoundError(
                f"The adapter in {folder} was trained on {base}, which does not exist.\n"
                "Put that policy back, or correct base_model_name_or_path in adapter_config.json."
            )
        return PolicySource(base, folder)
    if (folder / "config.json").is_file():
        return PolicySource(str(folder))
    if folder.exists():
        raise FileNotFoundError(
            f"{folder} is not a policy: it holds neither adapter_config.json nor config.json.\n"
            "Give the folder that `amir_grpo train` wrote, or a model saved by transformers."
        )
    if _HUB_ID.fullmatch(where) and not folder.parent.exists():
        return PolicySource(where)
    raise FileNotFoundError(
        f"There is no policy {where!r}: it is neither a folder nor a Hub id of the form organisation/name.\n"
        "Give the folder that `amir_grpo train` wrote, a model saved by transformers, or a Hub id."
    )


def _adapter_config(folder: Path) -> dict[str, Any]:
    path = Path(folder) / ADAPTER_FILES[0]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base, rank, ranks = (config.get(name) for name in ("base_model_name_or_path", "r", "rank_pattern"))
        if not isinstance(base, str) or not isinstance(rank or 0, int) or not isinstance(ranks or {}, dict):
            raise TypeError
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not name the base and the rank of its adapter.\n"
            "Give a folder that PEFT or `amir_grpo train` has saved."
        ) from error
    return config


def named_policies(words: Iterable[str]) -> dict[str, PolicySource]:
    """Find policies by name, from words such as ``runs/a/grpo`` (named after the folder) or ``mine=runs/a/grpo``.

    Raises:
        ValueError: If two have the same name, or a name cannot be used for a folder.
        FileNotFoundError: As raised by `find_policy`.
    """
    found: dict[str, PolicySource] = {}
    for word in words:
        name, equals, where = word.partition("=")
        if not equals:
            where, name = word, user_path(word).name
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name for a policy: use letters, digits, '.', '_' and '-'.")
        if name in found:
            raise ValueError(f"Two policies are named {name!r}: tell them apart, as in first=… second={where}.")
        found[name] = find_policy(where)
    return found


def copy_policy(source: Path, folder: Path, adapter: bool = True) -> None:
    """Copy a trained policy's tokenizer and, unless `adapter` is False, its adapter; each file whole or not at all.

    Raises:
        FileNotFoundError: If the adapter is wanted and `source` holds none.
    """
    names = [source / name for name in ADAPTER_FILES] if adapter else []
    for path in (*names, *(path for pattern in _TOKENIZER_FILES for path in sorted(source.glob(pattern)))):
        atomic_write(folder / path.name, partial(shutil.copy2, path))
