"""The runs of a study, and how each is made: train, evaluate, measure, keep the small results, delete the rest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from amir_grpo.choices import check_names
from amir_grpo.policies.source import PolicySource
from amir_grpo.runs.opening import NO_EFFECT
from amir_grpo.runs.run import Run, open_run
from amir_grpo.sandbox.problems import TRAINED_ON
from amir_grpo.settings import RunSettings, differences, settings_of
from amir_grpo.study import measures
from amir_grpo.study.arms import ARMS, BASE, OWN_STUDIES, PROFILE, Arm
from amir_grpo.study.kept import KeptRun, keep_run, read_run
from amir_grpo.study.plan import Plan, is_pilot
from amir_grpo.system.cluster import Cluster, run_jobs, submitting, visible_gpus
from amir_grpo.system.locks import locked
from amir_grpo.system.provenance import provenance

PROBLEMS = 400  # per benchmark


# --- which runs, in which order -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyRun:
    """One run of a study, as a value that can be sent to a worker process.

    `base` is the number of the base policy, `folder` holds the run folders, and `overrides` are changes to all runs.
    """

    study: str
    arm: Arm
    seed: int
    base: int
    folder: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    profile: str = PROFILE

    @property
    def name(self) -> str:
        """`<regime>.<arm>.seed<k>`, which names its folder and the file with its results."""
        return f"{self.arm.regime}.{self.arm.name}.seed{self.seed}"

    @property
    def label(self) -> str:
        """Name of the run in messages."""
        return f"{self.arm.path}, seed {self.seed}"

    def kept_in(self, results: Path) -> Path:
        """Return the file with the results of the run."""
        return results / f"{self.name}.zip"

    @property
    def settings(self) -> RunSettings:
        """All settings of the run; it keeps a checkpoint half way through the training."""
        seeds = {"seed": self.seed, "base_seed": self.base, "eval_limit": PROBLEMS}
        changes = {**seeds, **self.arm.changes, **self.overrides}
        half = -(-settings_of(self.profile, changes).train.max_steps // 2)
        return settings_of(self.profile, changes | {"save_steps": half, "save_total_limit": None})

    def open(self) -> Run:
        """Open the run folder, passing every setting, so that none comes from an existing folder."""
        return open_run(self.profile, self.folder / self.name, self.settings.flat())


def arms_in_order(plan: Plan, study: str) -> list[str]:
    """Return a study's trained arms, `regime/arm`: the plan's, tested ones first, then a pilot's exploratory ones."""
    tested = [path for test in plan.tests for path in reversed(test.pair) if path in plan.planned]
    mine = (arm for arm in ARMS.values() if arm.method != BASE and arm.regime not in OWN_STUDIES)
    explored = [arm.path for arm in mine] if is_pilot(study) else []
    return list(dict.fromkeys([*tested, *plan.planned, *explored]))


def runs_in_order(
    plan: Plan,
    study: str,
    folder: Path,
    arms: Collection[str] = (),
    seeds: Collection[int] = (),
    overrides: Mapping[str, Any] | None = None,
    profile: str | None = None,
) -> list[StudyRun]:
    """Return every run of a study: the base policies, then seed by seed all arms.

    So wherever a study is stopped, all arms have the same runs, except for one seed. Each base policy comes once, with
    its first seed.

    Args:
        arms, seeds: Only these, and the base policies that they need. Empty: all.
        overrides, profile: On top of the plan's settings, and in place of its profile.

    Raises:
        ValueError: If the study has no such arm or seed; lists those that it has.
    """
    check_names("study", [study], plan.runs.first_seed)
    untrained = f"{plan.regimes[0].name}/{BASE}"
    grids = {path: plan.run_grid(study, path) for path in arms_in_order(plan, study)}
    check_names("arm", arms, [untrained, *grids])
    longest = max(grids.values(), key=len)
    check_names("seed", map(str, seeds), [str(seed) for _, seed in longest])
    chosen = [(base, seed) for base, seed in longest if not seeds or seed in seeds]
    bases = {base for base, _ in chosen}
    runs = [(untrained, base, seed) for base, seed in longest[: plan.runs.base_policies] if base in bases]
    wanted = [path for path in grids if not arms or path in arms]
    runs += [(path, *place) for place in chosen for path in wanted if place in grids[path]]
    common = folder, {**plan.settings, **(overrides or {})}, profile or plan.profile
    return [StudyRun(study, ARMS[path], seed, base, *common) for path, base, seed in runs]


def single_run(runs: Sequence[StudyRun], name: str) -> StudyRun:
    """Return the run of a study with the name `regime/arm/seed`.

    Raises:
        ValueError: If there is none.
    """
    found = [run for run in runs if f"{run.arm.path}/{run.seed}" == name]
    if not found:
        first, last = (f"{runs[place].arm.path}/{runs[place].seed}" for place in (0, -1))
        raise ValueError(f"There is no run {name!r}: give regime/arm/seed of the study's, from {first} to {last}.")
    return found[0]


# --- making them ----------------------------------------------------------------------------------------------------


def make_runs(runs: Sequence[StudyRun], results: Path, workers: int | Cluster = 0) -> None:
    """Make every run whose results are not kept yet, in order, with progress and time left.

    An interrupted run continues where it stopped. Its folder is deleted once its results are kept, except for base
    policies, on whose completions other runs are measured, and completions, rollouts and adapters of a confirmation.

    Args:
        runs: Runs of one study and one folder, in the order of `runs_in_order`.
        results: Folder for the results, one file per run.
        workers: Processes; 0: one per usable GPU, or else per core; 1: this one. Or a cluster, for a job per run.

    Raises:
        ValueError: If kept results were made with other settings.
    """
    for run in runs:
        check_kept(run, results)
    if not isinstance(workers, Cluster):
        workers = min(workers, len(runs))
    bases = {run.base: run for run in runs if run.arm.method == BASE}
    waiting = [run for run in runs if not run.kept_in(results).exists()]
    needed = {run.base for run in waiting}
    with locked(runs[0].folder, "study"), submitting(workers, visible_gpus(runs[0].settings.policy.device)) as submit:
        for run in runs:  # killed between keeping its results and deleting its folder
            if run not in waiting:
                _delete_folder(run)
        run_jobs("base policies", _Make(results), [run for base, run in bases.items() if base in needed], submit)
        run_jobs("runs", _Make(results, bases), [run for run in waiting if run.arm.method != BASE], submit)


@dataclass(frozen=True)
class _Make:
    """A function that makes a run and keeps its results, as a value that can be sent to a worker process."""

    results: Path
    bases: Mapping[int, StudyRun] = field(default_factory=dict)

    def __call__(self, run: StudyRun) -> None:
        path = run.kept_in(self.results)
        if not path.exists():
            keep_run(path, make_run(run, self.bases.get(run.base)))
        elif run.arm.method == BASE and _differing(path, run):  # others are measured on its completions
            raise ValueError(f"{path} is of other completions than {run.label} has now: give another results folder.")
        _delete_folder(run)


def _delete_folder(run: StudyRun) -> None:
    """Delete the folder of a training in a pilot; in a confirmation, keep what a release holds (`make asset`)."""
    if run.arm.method != BASE:
        folder = run.folder / run.name
        parts = [folder] if is_pilot(run.study) else [folder / "base", folder / run.arm.method / "checkpoints"]
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)


def check_kept(run: StudyRun, results: Path) -> None:
    """Check that the kept results of a run, if any, were made with its settings.

    Raises:
        ValueError: If they were not.
    """
    path = run.kept_in(results)
    if not path.exists():
        return
    record = read_run(path).record
    facts = {name: (record[name], value) for name, value in (("study", run.study), ("profile", run.profile))}
    for name, (was, is_now) in {**facts, **differences(record["settings"], run.settings)}.items():
        if was != is_now and name not in NO_EFFECT:
            raise ValueError(
                f"{path} was made with {name}={was!r}, and {run.arm.path} has {is_now!r} now.\n"
                "Delete it, and it is made again, or give another folder for the results."
            )


def _train_and_draw(run: StudyRun) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str], dict[str, float]]:
    """Train one run and draw its completions, reading the parts that are complete.

    Returns:
        Samples, greedy completions, the digests of completions and weights, and seconds of CPU time by activity.
    """
    opened, method = run.open(), run.arm.method
    times = [time.process_time()]
    if method != BASE:
        opened.train(method)
    times.append(time.process_time())
    samples, greedy = opened.samples([method]), opened.samples([method], greedy=True)
    times.append(time.process_time())
    weights = PolicySource(opened.base(), None if method == BASE else opened.folder / method).weights_hash()
    seconds = dict(zip(("training", "evaluation"), np.diff(times).tolist(), strict=True))
    return samples, greedy, {"completions": measures.digest_of(samples), "weights": weights}, seconds


def make_run(run: StudyRun, base: StudyRun | None = None) -> KeptRun:
    """Train, evaluate and measure one run, reading the parts that are complete.

    Args:
        base: The run of its base policy, on whose completions it is measured; None for that run itself.
    """
    samples, greedy, digests, seconds = _train_and_draw(run)
    opened, method, before = run.open(), run.arm.method, time.process_time()
    tables = {"problems": measures.problem_counts(samples, greedy)}
    if opened.settings.policy.is_sandbox:
        tables["boundary"] = _boundary(opened, method, (base or run).open())
    else:  # drawing them again takes too long, and people can read them
        tables["completions"] = samples[["benchmark", "problem_id", "sample", "correct", "tokens", "text"]]
    if method != BASE:
        from amir_grpo.runs.training import steps_per_rollout  # imports TRL, which has to come after the backend

        rollouts = pd.read_parquet(opened.folder / method / "rollouts.parquet")
        steps = steps_per_rollout(opened.settings)
        tables["rollouts"] = measures.rollout_summary(rollouts, opened.train(method), steps)
        tables["richness"] = measures.richness_by_window(rollouts, steps)
    seconds |= {"measuring": time.process_time() - before}
    record = {"study": run.study, "regime": run.arm.regime, "arm": run.arm.name, "method": method, "seed": run.seed}
    record |= {"base": run.base, "profile": run.profile, "settings": run.settings.flat(), "digests": digests}
    record |= {"seconds": {what: round(value, 1) for what, value in seconds.items()}}
    made_with = provenance()
    record |= {name: made_with[name] for name in ("python", "commit", "uncommitted_changes", "packages")}
    return KeptRun(record, tables)


def compare_with_kept(run: StudyRun, results: Path) -> list[str]:
    """Make one run again in a temporary folder; return which of completions and weights differ from the kept ones.

    Raises:
        FileNotFoundError: If no results of it are kept.
        ValueError: If the kept results were made with other settings.
    """
    path = run.kept_in(results)
    if not path.exists():
        raise FileNotFoundError(f"Nothing is kept of {run.label}: there is no {path}.")
    check_kept(run, results)
    with TemporaryDirectory() as folder:
        return _differing(path, replace(run, folder=Path(folder)))


def _differing(path: Path, run: StudyRun) -> list[str]:
    """Train a run and draw its completions, and name the digests that differ from the kept ones."""
    kept = read_run(path).record["digests"]
    return [name for name, digest in _train_and_draw(run)[2].items() if kept[name] != digest]


def _boundary(opened: Run, method: str, base: Run) -> pd.DataFrame:
    """Return `boundary_scores` of the base policy (step 0), or of a training half way and at its end."""
    from amir_grpo.policies.loading import load_policy, load_tokenizer
    from amir_grpo.policies.sampling import tokenize_prompts

    s = base.settings
    benchmarks = [name for name in s.evaluation.benchmarks if name in TRAINED_ON[s.data.dataset_name]]
    shared = measures.mixed_completions(base.samples([BASE], benchmarks))
    tokenizer = load_tokenizer(base.base(), s.policy.trust_remote_code)
    prompts: dict[str, list[int]] = {}
    for benchmark in benchmarks:
        prompts |= tokenize_prompts(tokenizer, base.problems(benchmark))
    asked = [prompts[problem] for problem in shared["problem_id"]]
    steps: dict[int, Path | None] = {0: None}
    if method != BASE:
        checkpoints = (opened.folder / method / "checkpoints").glob("checkpoint-*")
        found = {int(path.name.rpartition("-")[2]): path for path in checkpoints}
        steps = dict(sorted((found | {opened.settings.train.max_steps: opened.folder / method}).items()))
    frames = []
    for step, adapter in steps.items():
        policy = load_policy(opened.base(), adapter, opened.settings.policy)
        scores = measures.tempered_scores(policy, asked, shared["completion_ids"].tolist())
        frames.append(measures.boundary_scores(shared, *scores).assign(step=step))
    return pd.concat(frames, ignore_index=True)
