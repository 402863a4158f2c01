"""The sandbox's base policies: some come with the package, all others are made on the spot and cached.

    base_policies/<number>/ a policy in float32 with its tokenizer, and recipe.json: what it was made from and with, and
                            the SHA-256 of its files

Those of the package give the same numbers on every machine; a warm-up of one's own depends on the processor and on the
versions of the libraries.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from amir_grpo.sandbox.policy import SandboxSpec, make_base_policy
from amir_grpo.system.checksums import first_damaged, hashes, write_checksums
from amir_grpo.system.files import atomic_folder, write_text
from amir_grpo.system.processes import run_alone, world_size
from amir_grpo.system.provenance import provenance, read_json, to_json

PACKAGED = Path(__file__).with_name("base_policies")
# The seeds of their warm-ups, by number. How far a warm-up gets with arithmetic is chance, and GRPO ends about where the
# careful solutions of its base are. Of the seeds 0 to 8 these are the six whose bases are right least often on the
# lengths of the training (15 to 20 %; the others 22 to 24 %): they are alike and leave room. None was chosen by what a
# training made of it.
WARMUP_SEEDS = (1, 2, 3, 4, 6, 8)
_RECIPE = "recipe.json"


def base_policy(spec: SandboxSpec, cache: Path) -> Path:
    """Folder of the base policy of `spec`: the package's own, or the one in `cache`, made now unless it is there.

    Raises:
        ValueError: If a file of the package's own is not the one that was published.
    """
    if spec.seed in WARMUP_SEEDS:
        packaged = PACKAGED / str(WARMUP_SEEDS.index(spec.seed))
        if _is_made_from(packaged, spec):
            check_files(packaged)
            return packaged
    folder = cache / f"base-{spec.fingerprint()}"
    damaged = first_damaged(folder) if world_size() == 1 else None
    if folder.exists() and not damaged:
        return folder
    if world_size() > 1:  # where its training would wait for the other processes
        run_alone("amir_grpo.sandbox.make", "--spec", json.dumps(asdict(spec)), "--cache", str(cache))
        return folder
    if damaged:
        print(f"{folder / damaged} is damaged: its SHA-256 has changed. Making the base policy again.", flush=True)
    with atomic_folder(folder, replace=damaged is not None) as beside:
        make_base_policy(spec, beside)
        write_checksums(beside)
    return folder


def make_with_recipe(spec: SandboxSpec, folder: Path) -> None:
    """Make a base policy and save it into `folder`, with its recipe beside it; one that is there is replaced in the end."""
    with atomic_folder(folder, replace=True) as beside:
        make_base_policy(spec, beside)
        record = {"spec": asdict(spec), "sha256": hashes(beside.iterdir()), "provenance": provenance()}
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


def _is_made_from(folder: Path, spec: SandboxSpec) -> bool:
    wanted = json.loads(json.dumps(asdict(spec)))  # tuples as lists
    return (folder / _RECIPE).is_file() and read_json(folder / _RECIPE)["spec"] == wanted
