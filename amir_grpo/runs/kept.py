"""What the package keeps of a run as its published results, and whether another run gives the same results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from amir_grpo.runs.opening import NO_EFFECT
from amir_grpo.runs.verify import TOLERANCE, Part, differing_files, same_table
from amir_grpo.settings import differences
from amir_grpo.system.files import atomic_write, write_text
from amir_grpo.system.provenance import read_json, record_of, to_json

if TYPE_CHECKING:
    from amir_grpo.results.run_results import RunResults
    from amir_grpo.runs.run import Run

TABLES = ("main", "coverage", "margins", "margin_summary", "policies", "comparisons")
LOG_COLUMNS = ["method", "step", "completions", "reward", "reward_std", "preference/share"]

# From the cause to the effect.
_PARTS: tuple[Part, ...] = (
    ("log.csv", partial(same_table, tolerance=TOLERANCE)),
    ("completions.csv", partial(same_table, names=("policy", "benchmark"))),
    *((f"{name}.csv", partial(same_table, tolerance=TOLERANCE)) for name in TABLES),
)


def keep_results(run: Run, results: RunResults, folder: Path) -> None:
    """Write what is kept of a run: its tables, the columns of its logs that are drawn, and its provenance.

    Of the completions that is a digest per policy and benchmark, in completions.csv.

    Args:
        run: A complete run.
        results: What it shows.
        folder: Gets the files.
    """
    tables = {name: getattr(results, name) for name in TABLES}
    tables["margins"] = tables["margins"].round(6)
    tables["log"] = results.logs[LOG_COLUMNS]
    tables["completions"] = completion_digests(results)
    for name, table in tables.items():
        atomic_write(folder / f"{name}.csv", partial(table.to_csv, index=False))
    write_text(folder / "provenance.json", to_json(record_of(run.folder)))


def completion_digests(results: RunResults) -> pd.DataFrame:
    """The completions of a run as digests: columns policy, benchmark, completions, sha256.

    The digest goes over the samples in their order, then the greedy completions: of each the number of its tokens, their
    ids, and whether it is correct.
    """
    drawn = pd.concat([results.samples, results.greedy])
    rows = []
    for (policy, benchmark), part in drawn.groupby(["policy", "benchmark"], sort=False):
        digest = hashlib.sha256()
        for ids, correct in zip(part["completion_ids"], part["correct"], strict=True):
            digest.update(np.array([len(ids), *ids, correct], dtype="<i8").tobytes())
        row = {"policy": policy, "benchmark": benchmark}
        rows.append(row | {"completions": len(part), "sha256": digest.hexdigest()})
    return pd.DataFrame(rows)


def compared_with_kept(run: Run, results: RunResults, kept: Path) -> str | None:
    """Whether a run gives the results that the package keeps of its profile, in a line or a few.

    None where nothing is kept of the profile; one line where settings that can change results are not those of the kept
    run.

    Args:
        run: A complete run.
        results: What it shows.
        kept: The kept results, as `keep_results` wrote them.
    """
    if not (kept / "provenance.json").is_file():
        return None
    old, new = read_json(kept / "provenance.json"), record_of(run.folder)
    if old["profile"] != new["profile"]:
        return None
    changed = [
        f"{name} (there {a!r}, here {b!r})"
        for name, (a, b) in differences(old["settings"], new["settings"]).items()
        if name not in NO_EFFECT
    ]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"Not compared with the published results of this package, made with another {changed[0]}{more}."
    with TemporaryDirectory() as there:
        keep_results(run, results, Path(there))
        difference = next(differing_files(kept, Path(there), _PARTS), None)
    if difference is None:
        return (
            f"Equal to the published results of this package: {len(TABLES)} tables, the logs of both trainings and "
            f"{len(results.samples) + len(results.greedy):,} completions."
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
        return f"A possible reason: the published ones were made with {', '.join(told)}."
    commits = [
        f"{(p['commit'] or 'unknown')[:12]}{' with uncommitted changes' if p['uncommitted_changes'] else ''}"
        for p in (old, new)
    ]
    return (
        "Packages, platform and kind of CPU are the same, so that the code may be the reason: commit "
        f"{commits[0]} there, {commits[1]} here."
    )
