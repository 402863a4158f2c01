"""The kept results of a study: one small file per run, read back and arranged for `inference.compare`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amir_grpo.metrics import pass_at_k
from amir_grpo.sandbox.problems import TRAINED_ON
from amir_grpo.settings import RunSettings
from amir_grpo.study.arms import BASE
from amir_grpo.study.inference import Comparison, compare
from amir_grpo.study.plan import Plan, check_frozen, is_pilot
from amir_grpo.system.files import atomic_write, shipped
from amir_grpo.system.provenance import to_json

TABLES = ("problems", "rollouts", "richness", "boundary", "completions")
TRAINED, LONGER = "trained lengths", "longer problems"
NAMES = ["regime", "arm", "seed", "base"]
Run = tuple[int, int]  # base policy and seed
Scores = Mapping[Run, NDArray[np.float64] | float]  # for each run, one number per problem, or a single one
_RECORD = "run.json"
_TIME = (1980, 1, 1, 0, 0, 0)  # of every member, so that bytes depend only on the results
# What all runs of a study share: its name, the profile, and what they are evaluated on.
_SHARED = ("study", "profile", "model_name", "benchmarks", "eval_limit", "eval_seed", "num_samples")
_PROBLEM = ["benchmark", "problem"]


@dataclass(frozen=True)
class KeptRun:
    """The kept results of one run: its record (study, regime, arm, method, seed, base, profile, all settings, digests,
    seconds of CPU time, provenance), and its tables by their names in `TABLES`; the base policy has fewer."""

    record: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]


def keep_run(path: Path, kept: KeptRun) -> None:
    """Write a run's results as a zip of CSV tables and a record, whole or not at all; numbers to 5 significant digits.

    The same results give the same bytes.
    """

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w") as file:
            for name, table in kept.tables.items():
                text = table.to_csv(index=False, float_format="%.5g", lineterminator="\n")
                file.writestr(zipfile.ZipInfo(f"{name}.csv", _TIME), text, zipfile.ZIP_DEFLATED, 9)
            file.writestr(zipfile.ZipInfo(_RECORD, _TIME), to_json(dict(kept.record)), zipfile.ZIP_DEFLATED, 9)

    atomic_write(path, write)


def read_run(path: Path) -> KeptRun:
    """Read the results that `keep_run` has written.

    Raises:
        ValueError: If the file holds something else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            record = json.loads(file.read(_RECORD))
            names = [name for name in file.namelist() if name.endswith(".csv")]
            tables = {Path(name).stem: pd.read_csv(io.BytesIO(file.read(name))) for name in names}
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a run's results ({type(error).__name__}: {error}).\nDelete it, and it is made again."
        ) from error
    return KeptRun(record, tables)


@dataclass(frozen=True)
class StudyResults:
    """The kept results of a study.

    Attributes:
        runs: One row per run: regime, arm, method, seed, base, path.
        tables: By their names in `TABLES`: the tables of all runs in one, with the columns `NAMES` in front. Every run
            has the same problems in the same order.
        benchmarks: Names of the benchmarks by group, `TRAINED` or `LONGER`.
        samples: Completions per problem.
    """

    name: str
    runs: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    benchmarks: dict[str, list[str]]
    samples: int

    def has(self, *paths: str) -> bool:
        """Return whether the arms, given as `regime/arm`, have a run of the same base policy and seed."""
        return bool(set.intersection(*(self._runs_of.get(path, set()) for path in paths)))

    @cached_property
    def _runs_of(self) -> dict[str, set[Run]]:
        return {path: set(zip(rows["base"], rows["seed"], strict=True)) for path, rows in self.runs.groupby("path")}

    @cached_property
    def _parts(self) -> dict[str, dict[tuple[str, str], pd.DataFrame]]:
        return {name: dict(iter(table.groupby(["regime", "arm"]))) for name, table in self.tables.items()}

    def part(self, name: str, path: str) -> pd.DataFrame:
        """Return an arm's rows of a table, none if no run has the table. Do not change them."""
        return self._parts.get(name, {}).get(
            tuple(path.split("/")), pd.DataFrame(columns=[*NAMES, "benchmark", "correct"])
        )

    def by_run(self, name: str, path: str) -> dict[Run, pd.DataFrame]:
        """Return the rows of a table by (base, seed) of the arm's runs."""
        return dict(iter(self.part(name, path).groupby(["base", "seed"])))

    def solved(self, path: str, group: str = TRAINED, k: int = 1) -> dict[Run, NDArray[np.float64]]:
        """Return pass@k of every problem of a group of benchmarks, as fractions, by (base, seed)."""
        table = self.part("problems", path)
        table = table[table["benchmark"].isin(self.benchmarks[group])]
        runs = table["correct"].groupby([table["base"], table["seed"]])
        return {run: pass_at_k(correct.to_numpy(), self.samples, k) for run, correct in runs}


@dataclass(frozen=True)
class Studies:
    """The available studies, in order of precedence; two arms are compared in the first that has both."""

    ordered: tuple[StudyResults, ...]

    @property
    def main(self) -> StudyResults:
        """The first study, which takes precedence."""
        return self.ordered[0]

    def first(self, *paths: str) -> StudyResults | None:
        """Return the first study that has the arms; None if none has."""
        return next((study for study in self.ordered if study.has(*paths)), None)


def kept_studies(plan: Plan, results: Path | None = None) -> Studies:
    """Read the studies kept in data/results, or another folder: the pilot, preceded by the complete arms of the
    confirmation once a test of the plan has all its runs."""
    folder = results or shipped("data/results")
    pilot = load_study(folder / "pilot")
    if not any((folder / "confirmation").glob("*.zip")):
        return Studies((pilot,))
    confirmation = complete_arms(load_study(folder / "confirmation"), plan)
    return Studies((confirmation, pilot) if any(confirmation.has(*test.pair) for test in plan.tests) else (pilot,))


def studies_in(folder: Path, plan: Plan) -> Studies:
    """Read one folder's study as the only one."""
    study = complete_arms(load_study(folder), plan)
    if not len(study.runs):
        raise ValueError(f"No arm of the confirmation in {folder} has all its runs yet, and nothing is read before.")
    return Studies((study,))


def complete_arms(study: StudyResults, plan: Plan) -> StudyResults:
    """Return a confirmation without the arms that lack runs of its frozen plan; return a pilot as it is."""
    if is_pilot(study.name):
        return study
    check_frozen(plan)
    made = study.runs[study.runs["method"] != BASE].groupby("path").size()
    complete = [path for path, runs in made.items() if runs >= len(plan.run_grid(study.name, path)) > 0]
    if complete:
        complete += study.runs.loc[study.runs["method"] == BASE, "path"].unique().tolist()
    tables = {
        name: table[(table["regime"] + "/" + table["arm"]).isin(complete)].reset_index(drop=True)
        for name, table in study.tables.items()
    }
    runs = study.runs[study.runs["path"].isin(complete)].reset_index(drop=True)
    return replace(study, runs=runs, tables=tables)


def load_study(folder: Path) -> StudyResults:
    """Read the results of one study in a folder, one file per run."""
    kept = [read_run(path) for path in sorted(folder.glob("*.zip"))]
    if not kept:
        raise FileNotFoundError(
            f"{folder} holds no results of a study: `make evidence` makes them, and a clone of the project has them."
        )
    return study_of(kept)


def study_of(kept: Sequence[KeptRun]) -> StudyResults:
    """Combine the results of a study's runs, all evaluated on the same problems with equal numbers of completions."""
    defaults = RunSettings().flat()
    facts = [{**defaults, **run.record["settings"], **run.record} for run in kept]
    for run, fact in zip(kept, facts, strict=True):
        differing = [name for name in _SHARED if fact[name] != facts[0][name]]
        if not run.tables["problems"][_PROBLEM].equals(kept[0].tables["problems"][_PROBLEM]):
            differing.append("problems")
        if differing:
            a, b = (f"{each['regime']}/{each['arm']}, seed {each['seed']}" for each in (facts[0], fact))
            raise ValueError(f"{a}, and {b}, differ in {differing[0]}: keep them in folders of their own.")
    runs = pd.DataFrame([{column: run.record[column] for column in (*NAMES, "method")} for run in kept])
    runs["path"] = runs["regime"] + "/" + runs["arm"]
    tables = {}
    for kind in TABLES:
        having = [run for run in kept if kind in run.tables and len(run.tables[kind])]
        if having:
            keys = [tuple(run.record[name] for name in NAMES) for run in having]
            table = pd.concat([run.tables[kind] for run in having], keys=keys, names=NAMES)
            tables[kind] = table.reset_index(level=NAMES).reset_index(drop=True)
    found, trained = tables["problems"]["benchmark"].unique(), TRAINED_ON[facts[0]["dataset_name"]]
    groups = {TRAINED: [b for b in found if b in trained], LONGER: [b for b in found if b not in trained]}
    return StudyResults(facts[0]["study"], runs, tables, groups, facts[0]["num_samples"])


def shared_runs(*arms: Collection[Run]) -> list[Run]:
    """Return the runs that all arms have, by (base, seed), sorted."""
    return sorted(set.intersection(*map(set, arms)))


def compared(new: Scores, old: Scores) -> Comparison:
    """Compare two arms, by `compare`, on the runs that both have."""
    keys = shared_runs(new, old)
    if not keys:
        raise ValueError("The two arms have no run of the same base policy and seed: make more runs.")
    bases = sorted({base for base, _ in keys})
    return compare([[np.atleast_1d(new[key] - old[key]) for key in keys if key[0] == base] for base in bases])


def level(values: Mapping[Run, float]) -> Comparison:
    """Return the mean of one number per run, with its interval, as the gain over 0."""
    return compared(values, dict.fromkeys(values, 0.0))
