"""What the package keeps of a run as its published results, and whether another run gives the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from amir_grpo.choices import METHODS, POLICIES
from amir_grpo.runs.verify import TOLERANCE, Part, differing_files, same_table
from amir_grpo.settings import differences
from amir_grpo.system.files import atomic_write, write_text
from amir_grpo.system.provenance import read_json, record_of, to_json

TABLES = ("main", "coverage", "margins", "margin_summary", "policies", "comparisons")
LOG_COLUMNS = ["method", "step", "completions", "reward", "reward_std", "preference/share"]

# From the cause to the effect.
_PARTS: tuple[Part, ...] = (
    ("log.csv", partial(same_table, tolerance=TOLERANCE)),
    ("completions.csv", partial(same_table, names=("policy", "benchmark"))),
    *((f"{name}.csv", partial(same_table, tolerance=TOLERANCE)) for name in TABLES),
)


def keep(run_folder: Path, results: Path) -> None:
    """Copy a run's tables, the columns of its logs that are drawn, and its provenance into `results`.

    Of the completions it keeps a digest per policy and benchmark, in completions.csv.

    Raises:
        FileNotFoundError: If the run is not complete.
    """
    tables = {name: pd.read_csv(run_folder / "tables" / f"{name}.csv") for name in TABLES}
    tables["margins"] = tables["margins"].round(6)
    tables["log"] = pd.concat([pd.read_csv(run_folder / method / "log.csv") for method in METHODS])[LOG_COLUMNS]
    tables["completions"] = completion_digests(run_folder)
    for name, table in tables.items():
        atomic_write(results / f"{name}.csv", partial(table.to_csv, index=False))
    write_text(results / "provenance.json", to_json(record_of(run_folder)))


def completion_digests(run_folder: Path) -> pd.DataFrame:
    """The completions of a run as digests: columns policy, benchmark, completions, sha256.

    The digest goes over the samples in their order, then the greedy completions: of each the number of its tokens, their
    ids, and whether it is correct.

    Raises:
        FileNotFoundError: If a policy has not been evaluated on one of the run's benchmarks.
    """
    rows = []
    for policy in POLICIES:
        for benchmark in read_json(run_folder / "config.json")["settings"]["benchmarks"]:
            paths = [run_folder / "samples" / policy / f"{benchmark}{kind}.parquet" for kind in ("", ".greedy")]
            drawn = pd.concat([pd.read_parquet(path, columns=["completion_ids", "correct"]) for path in paths])
            digest = hashlib.sha256()
            for ids, correct in zip(drawn["completion_ids"], drawn["correct"], strict=True):
                digest.update(np.array([len(ids), *ids, correct], dtype="<i8").tobytes())
            row = {"policy": policy, "benchmark": benchmark}
            rows.append(row | {"completions": len(drawn), "sha256": digest.hexdigest()})
    return pd.DataFrame(rows)


def compared_with_kept(run_folder: Path, kept: Path) -> str | None:
    """Whether a run gives the results that the package keeps of its profile, said in a line or a few.

    None where nothing is kept of the profile; one line where the settings are not those of the kept run.

    Args:
        run_folder: A complete run.
        kept: The kept results, as of `keep`.
    """
    if not (kept / "provenance.json").is_file():
        return None
    old, new = read_json(kept / "provenance.json"), record_of(run_folder)
    if old["profile"] != new["profile"]:
        return None
    settings = differences(old["settings"], new["settings"])
    changed = [f"{name} (there {a!r}, here {b!r})" for name, (a, b) in settings.items()]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"Not compared with the published results of this package, made with another {changed[0]}{more}."
    with TemporaryDirectory() as there:
        keep(run_folder, Path(there))
        difference = next(differing_files(kept, Path(there), _PARTS), None)
        drawn = int(pd.read_csv(Path(there) / "completions.csv")["completions"].sum())
    if difference is None:
        return (
            f"Equal to the published results of this package: {len(TABLES)} tables, the logs of both trainings and "
            f"{drawn:,} completions."
        )
    return (
        "Not equal to the published results of this package. First difference (there and here): "
        f"{difference}\n{_explanation(old['provenance'], new['provenance'])}"
    )


def _explanation(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two provenances and may change numbers; where nothing does, the code is what is left."""
    made = [
        {**p["packages"], "Python": p["python"], "platform": p["platform"], "CPU": p.get("cpu")} for p in (old, new)
    ]
    names = [name for name in made[0] if name in made[1] and made[0][name] != made[1][name]]
    if names:
        told = [f"{name} {made[0][name] or 'unknown'} (here {made[1][name] or 'unknown'})" for name in names]
        return f"What may explain it: the published ones were made with {', '.join(told)}."
    commits = [
        f"{(p['commit'] or 'unknown')[:12]}{' with uncommitted changes' if p['uncommitted_changes'] else ''}"
        for p in (old, new)
    ]
    return (
        "Packages, platform and kind of CPU are the same, so that the code is what may explain it: commit "
        f"{commits[0]} there, {commits[1]} here."
    )
