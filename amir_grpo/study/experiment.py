"""Make the runs of a study: train, evaluate, measure, keep the small results, and throw the rest away."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from amir_grpo.policies.source import PolicySource
from amir_grpo.runs.opening import NO_EFFECT
from amir_grpo.runs.run import Run
from amir_grpo.sandbox.problems import TRAINED_ON
from amir_grpo.settings import differences
from amir_grpo.study.kept_runs import KeptRun, keep_run, read_run
from amir_grpo.study.regimes import BASE
from amir_grpo.study.schedule import StudyRun
from amir_grpo.study.summaries import digest_of, length_table, problem_table, richness_table, rollout_table
from amir_grpo.system.cluster import Cluster
from amir_grpo.system.locks import locked
from amir_grpo.system.provenance import provenance
from amir_grpo.system.workers import run_jobs, submitting, visible_gpus


def make_runs(runs: Sequence[StudyRun], results: Path, workers: int | Cluster = 0) -> None:
    """Make every run whose results are not kept yet, in order, with progress and time left.

    A run that is interrupted goes on where it stopped. Its folder is deleted when its results are kept; those of the base
    policies stay, since other runs are measured on their completions.

    Args:
        runs: Of one study and one folder, those of the base policies first, as `runs_in_order` has them.
        results: Gets one file per run.
        workers: Number of processes; 0: one per GPU that the runs may use, or else per core, 1: this one. Or a cluster: each
            run is a job.

    Raises:
        ValueError: If results are kept that were made with other settings.
    """
    for run in runs:
        check_kept(run, results)
    if not isinstance(workers, Cluster):
        workers = min(workers, len(runs))
    bases = {run.base: run for run in runs if run.arm.method == BASE}
    waiting = [run for run in runs if not path_of(run, results).exists()]
    needed = {run.base for run in waiting}
    with locked(runs[0].folder, "study"), submitting(workers, visible_gpus(runs[0].settings.policy.device)) as submit:
        for run in runs:  # killed between keeping its results and deleting its folder
            if run not in waiting:
                _throw_away(run)
        run_jobs("base policies", _Make(results), [run for base, run in bases.items() if base in needed], submit)
        trained = [run for run in waiting if run.arm.method != BASE]
        run_jobs("runs", _Make(results, bases), trained, submit)


@dataclass(frozen=True)
class _Make:
    """Makes a run and keeps its results; a value that travels to a worker process."""

    results: Path
    bases: Mapping[int, StudyRun] = field(default_factory=dict)

    def __call__(self, run: StudyRun) -> None:
        path = path_of(run, self.results)
        if not path.exists():
            keep_run(path, make_run(run, self.bases.get(run.base)))
        elif run.arm.method == BASE and _differing(
            path, _train_and_draw(run)
        ):  # others are measured on its completions
            raise ValueError(f"{path} is of other completions than {run.label} has now: give another results folder.")
        _throw_away(run)


def _throw_away(run: StudyRun) -> None:
    """Delete the folder of a training."""
    if run.arm.method != BASE:
        shutil.rmtree(run.folder / run.name, ignore_errors=True)


def path_of(run: StudyRun, results: Path) -> Path:
    """The file with the results of a run."""
    return results / f"{run.name}.zip"


def check_kept(run: StudyRun, results: Path) -> None:
    """Check that results that are kept of a run were made with its settings.

    Raises:
        ValueError: If they were not.
    """
    path = path_of(run, results)
    if not path.exists():
        return
    record = read_run(path).record
    facts = {name: (record[name], value) for name, value in (("study", run.study), ("profile", run.profile))}
    changed = differences(record["settings"], run.settings)
    for name, (was, is_now) in {**facts, **changed}.items():
        if was != is_now and name not in NO_EFFECT:
            raise ValueError(
                f"{path} was made with {name}={was!r}, and {run.arm.path} has {is_now!r} now.\n"
                "Delete it, and it is made again, or give another folder for the results."
            )


@dataclass(frozen=True)
class _Drawn:
    """A run that is trained and whose completions are drawn; seconds of CPU time by what they went into."""

    opened: Run
    samples: pd.DataFrame
    greedy: pd.DataFrame
    seconds: dict[str, float]
    digests: dict[str, str]


def _train_and_draw(run: StudyRun) -> _Drawn:
    """Train one run and draw its completions, or read what is complete of it."""
    opened, method = run.open(), run.arm.method
    before, seconds = time.process_time(), {}
    if method != BASE:
        opened.train(method)
    seconds["training"], before = time.process_time() - before, time.process_time()
    samples, greedy = opened.samples([method]), opened.samples([method], greedy=True)
    seconds["evaluation"] = time.process_time() - before
    adapter = None if method == BASE else opened.folder / method
    weights = PolicySource(opened.base(), adapter).weights_hash()
    return _Drawn(opened, samples, greedy, seconds, {"completions": digest_of(samples), "weights": weights})


def make_run(run: StudyRun, base: StudyRun | None = None) -> KeptRun:
    """Train and evaluate one run, or read what is complete of it, and measure it.

    Args:
        base: The run of its base policy, whose completions it is measured on; None for that run itself.
    """
    drawn, method = _train_and_draw(run), run.arm.method
    opened, before = drawn.opened, time.process_time()
    tables = {"problems": problem_table(drawn.samples, drawn.greedy)}
    tables["boundary"] = _boundary(opened, method, (base or run).open())
    if method != BASE:
        from amir_grpo.runs.training import steps_per_rollout  # imports TRL, which has to come after the backend

        rollouts = pd.read_parquet(opened.folder / method / "rollouts.parquet")
        steps = steps_per_rollout(opened.settings)
        tables["rollouts"] = rollout_table(rollouts, opened.train(method), steps)
        tables["richness"] = richness_table(rollouts, steps)
        tables["lengths"] = length_table(rollouts)
    seconds = drawn.seconds | {"measuring": time.process_time() - before}
    return KeptRun(_record(run, drawn.digests, seconds), tables)


def compare_with_kept(run: StudyRun, results: Path) -> list[str]:
    """Make one run again, in a folder of its own that is deleted afterwards, and compare it with what is kept.

    Args:
        run: Its own folder is not used.
        results: Holds what is kept; nothing of it changes.

    Returns:
        What differs: completions (the samples, token by token), weights (of the policy), or neither.

    Raises:
        FileNotFoundError: If nothing is kept of it.
        ValueError: If what is kept was made with other settings.
    """
    path = path_of(run, results)
    if not path.exists():
        raise FileNotFoundError(f"Nothing is kept of {run.label}: there is no {path}.")
    check_kept(run, results)
    with TemporaryDirectory() as folder:
        return _differing(path, _train_and_draw(replace(run, folder=Path(folder))))


def _differing(path: Path, drawn: _Drawn) -> list[str]:
    """Names of the digests that are not those that are kept."""
    kept = read_run(path).record["digests"]
    return [name for name, digest in drawn.digests.items() if kept[name] != digest]


def _record(run: StudyRun, digests: dict[str, str], seconds: dict[str, float]) -> dict[str, Any]:
    made_with = provenance()
    return {
        "study": run.study,
        "regime": run.arm.regime,
        "arm": run.arm.name,
        "method": run.arm.method,
        "seed": run.seed,
        "base": run.base,
        "profile": run.profile,
        "settings": run.settings.flat(),
        "digests": digests,
        "seconds": {what: round(value, 1) for what, value in seconds.items()},
        **{name: made_with[name] for name in ("python", "commit", "uncommitted_changes", "packages")},
    }


def _boundary(opened: Run, method: str, base: Run) -> pd.DataFrame:
    """`boundary_table` for the base policy (step 0), or for the checkpoint half way and the end of a training."""
    from amir_grpo.policies.loading import load_policy, load_tokenizer
    from amir_grpo.policies.sampling import tokenize_prompts
    from amir_grpo.study.shared_scores import boundary_table, mixed_completions, tempered_scores

    s = base.settings
    benchmarks = [name for name in s.evaluation.benchmarks if name in TRAINED_ON[s.policy.model_name]]
    shared = mixed_completions(base.samples([BASE], benchmarks))
    tokenizer = load_tokenizer(base.base(), s.policy.trust_remote_code)
    prompts: dict[str, list[int]] = {}
    for benchmark in benchmarks:
        prompts |= tokenize_prompts(tokenizer, base.problems(benchmark))
    asked = [prompts[problem] for problem in shared["problem_id"]]
    frames = []
    for step, adapter in _policies(opened, method).items():
        policy = load_policy(opened.base(), adapter, opened.settings.policy)
        scores = tempered_scores(policy, asked, shared["completion_ids"].tolist())
        frames.append(boundary_table(shared, *scores).assign(step=step))
    return pd.concat(frames, ignore_index=True)


def _policies(opened: Run, method: str) -> dict[int, Path | None]:
    """Where the policies of a run are, by optimizer step."""
    if method == BASE:
        return {0: None}
    found = {
        int(path.name.rpartition("-")[2]): path
        for path in (opened.folder / method / "checkpoints").glob("checkpoint-*")
    }
    return dict(sorted((found | {opened.settings.train.max_steps: opened.folder / method}).items()))
