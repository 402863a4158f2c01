"""The sandbox's base policies: some come with the package, the others are made when first needed, and cached.

    base_policies/<number>/ a policy in float32 with its tokenizer, and recipe.json: what it was made from and with, and
                            the SHA-256 of its files

The package's policies give the same numbers on every machine; any other warm-up depends on the processor and the
versions of libraries. `python -m amir_grpo.sandbox.base` remakes the package's, in minutes each on two cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from amir_grpo.choices import SANDBOX
from amir_grpo.sandbox.policy import SPECS, SandboxSpec, make_base_policy
from amir_grpo.system.files import atomic_folder, first_damaged, hashes, write_checksums, write_text
from amir_grpo.system.processes import run_alone, world_size
from amir_grpo.system.provenance import provenance, read_json, to_json

PACKAGED = Path(__file__).with_name("base_policies")
# The seeds of their warm-ups, by number. How much arithmetic a warm-up learns is chance, and GRPO ends about where the
# careful solutions of its base policy are. Of the seeds 0 to 8, these six give the base policies that are right least
# often on the lengths of the training (15 to 20 %; the others 22 to 24 %): they are alike and leave room for a gain.
# None was chosen by the outcome of a training.
WARMUP_SEEDS = (1, 2, 3, 4, 6, 8)
_RECIPE = "recipe.json"


def warmup_seed(base_seed: int) -> int:
    """Return the seed of the warm-up that makes a base policy: one of `WARMUP_SEEDS`, or else the number itself.

    Base policies from 9 on belong to the study's second plan, and are added to the package as they are made.
    """
    return WARMUP_SEEDS[base_seed] if base_seed < len(WARMUP_SEEDS) else base_seed


def _number(seed: int) -> int:
    """Return the base policy that a warm-up seed makes, as `warmup_seed` does the other way."""
    return WARMUP_SEEDS.index(seed) if seed in WARMUP_SEEDS else seed


def base_policy(spec: SandboxSpec, cache: Path) -> Path:
    """Return the folder of a base policy: the package's own, or the one in `cache`, which is made if it is missing.

    Raises:
        ValueError: If a file of the package's own is not the published one.
    """
    packaged = PACKAGED / str(_number(spec.seed))
    if (packaged / _RECIPE).is_file() and read_json(packaged / _RECIPE)["spec"] == json.loads(_json(spec)):
        check_files(packaged)
        return packaged
    folder = cache / f"base-{spec.fingerprint()}"
    if world_size() == 1:
        made_once(folder, lambda beside: make_base_policy(spec, beside))
    elif not folder.exists():  # here, its training would wait for the other processes
        run_alone("amir_grpo.sandbox.base", _json(spec), str(cache))
    return folder


def made_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder, unless it exists and its files are intact."""
    damaged = first_damaged(folder)
    if folder.exists() and not damaged:
        return
    if damaged:
        print(f"{folder / damaged} is damaged: its SHA-256 has changed. Making the base policy again.", flush=True)
    with atomic_folder(folder, replace=damaged is not None) as beside:
        make(beside)
        write_checksums(beside)


def make_packaged(spec: SandboxSpec, out: Path = PACKAGED, seeds: Sequence[int] = WARMUP_SEEDS) -> None:
    """Make the base policies of the package with their recipes, replacing existing ones."""
    for seed in seeds:
        own = replace(spec, seed=seed)
        with atomic_folder(out / str(_number(seed)), replace=True) as beside:
            make_base_policy(own, beside)
            record = {"spec": asdict(own), "sha256": hashes(beside.iterdir()), "provenance": provenance()}
            write_text(beside / _RECIPE, to_json(record))


def check_files(folder: Path) -> None:
    """Compare the files of a base policy with the hashes in its recipe.

    Raises:
        ValueError: If one differs or is missing.
    """
    recorded = read_json(folder / _RECIPE)["sha256"]
    name = first_damaged(folder, recorded)
    if name:
        state = "has changed" if (folder / name).is_file() else "is missing"
        raise ValueError(
            f"{folder / name} {state}: its SHA-256 should be {recorded[name][:12]}…\n"
            "Restore the file (git checkout, or install the package again)."
        )


def _json(spec: SandboxSpec) -> str:
    return json.dumps(asdict(spec))


def main(arguments: list[str]) -> None:
    """Make the package's base policies; given a spec (JSON) and a cache, make only that one, as `base_policy` does."""
    if not arguments:
        make_packaged(SPECS[SANDBOX])
        return
    fields = json.loads(arguments[0])
    base_policy(SandboxSpec(**fields | {"shown": tuple(fields["shown"])}), Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
