"""The runs behind the claims: every arm of every comparison, over several training seeds, in parallel and resumable.

An arm is one method under some settings; its runs differ in the training seed alone. A run is an ordinary run folder,
`<folder>/<arm>.seed<k>`, so that what is complete is not repeated and everything that works on a run works on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from amir_grpo.policies.source import Loading
from amir_grpo.runs.run import Run, open_run
from amir_grpo.sandbox.policy import SANDBOXES
from amir_grpo.system.files import atomic_write, write_text
from amir_grpo.system.locks import locked
from amir_grpo.system.processes import die_with_parent
from amir_grpo.system.provenance import read_json, to_json

PROFILE = "sandbox"
TRAINED, LONGER = "trained lengths", "longer problems"

# Two optimizer steps a rollout, so that importance ratios leave 1: with one, every clipping rule and GSPO are GRPO.
_TWO_STEPS = {
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "max_steps": 200,
}
# Where the preference is to matter: 30 % of the update, a hundred times what the published λ makes of it.
_SHARE = {"lambda_schedule": "share", "preference_share": 0.3}
# Checkpoints show how a policy got to where it is; they change nothing about it.
_KEEP_CHECKPOINTS = {"save_steps": 25, "save_total_limit": None}


@dataclass(frozen=True)
class Arm:
    """One method under some settings.

    Attributes:
        name: Name of the arm, in folders and tables.
        method: grpo or amir_grpo.
        about: What it is, for tables and figures.
        against: The arm that it is compared with, None where it is a reference itself.
        seeds: Number of training seeds, 0 to seeds - 1.
        changes: Settings that differ from the profile's.
    """

    name: str
    method: str
    about: str
    against: str | None = "grpo"
    seeds: int = 3
    changes: dict[str, Any] = field(default_factory=dict)


def _variant(name: str, about: str, changes: dict[str, Any]) -> list[Arm]:
    """A variant of GRPO with two optimizer steps a rollout, without and with the preference term."""
    changes = _TWO_STEPS | changes
    return [
        Arm(f"two-step-{name}", "grpo", about, None, changes=changes),
        Arm(f"two-step-{name}-amir", "amir_grpo", f"{about} + preference", f"two-step-{name}", changes=changes),
    ]


def _group_size(size: int) -> list[Arm]:
    changes = {"num_generations": size}
    return [
        Arm(f"group-{size}", "grpo", f"GRPO, G = {size}", None, changes=changes),
        Arm(f"group-{size}-amir", "amir_grpo", f"AMIR-GRPO, G = {size}", f"group-{size}", changes=changes),
    ]


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in [
        Arm("grpo", "grpo", "GRPO", None, 5, _KEEP_CHECKPOINTS),
        Arm("amir_grpo", "amir_grpo", "AMIR-GRPO", "grpo", 5, _KEEP_CHECKPOINTS),
        Arm("linear", "amir_grpo", "wins − losses", "amir_grpo", 5, {"pair_loss": "linear"}),
        Arm("share-0.3", "amir_grpo", "share 0.3", "grpo", 5, _SHARE | _KEEP_CHECKPOINTS),
        Arm(
            "share-0.3-linear",
            "amir_grpo",
            "share 0.3, wins − losses",
            "share-0.3",
            5,
            _SHARE | {"pair_loss": "linear"},
        ),
        *_variant("grpo", "GRPO", {}),
        *_variant("dr_grpo", "Dr. GRPO", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        *_variant(
            "dapo", "DAPO's loss", {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True}
        ),
        *_variant("gspo", "GSPO", {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}),
        Arm("share-0.1", "amir_grpo", "share 0.1", changes=_SHARE | {"preference_share": 0.1}),
        Arm("share-0.6", "amir_grpo", "share 0.6", changes=_SHARE | {"preference_share": 0.6}),
        Arm("schedule-published", "amir_grpo", "published λ schedule", changes={"lambda_schedule": "published"}),
        *_group_size(4),
        *_group_size(16),
        Arm("delta-0", "amir_grpo", "share 0.3, δ = 0", against="share-0.3", changes=_SHARE | {"reward_margin": 0.0}),
        Arm(
            "delta-2",
            "amir_grpo",
            "share 0.3, δ = 2 (published)",
            against="share-0.3",
            changes=_SHARE | {"reward_margin": 2.0},
        ),
        Arm("beta-1", "amir_grpo", "share 0.3, β = 1", against="share-0.3", changes=_SHARE | {"beta_dpo": 1.0}),
        Arm("beta-10", "amir_grpo", "share 0.3, β = 10", against="share-0.3", changes=_SHARE | {"beta_dpo": 10.0}),
        Arm(
            "pairs-topk",
            "amir_grpo",
            "share 0.3, best against the rest",
            against="share-0.3",
            changes=_SHARE | {"pair_mining": "topk"},
        ),
        Arm(
            "pairs-capped",
            "amir_grpo",
            "share 0.3, 4 pairs a group",
            against="share-0.3",
            changes=_SHARE | {"max_pairs_per_group": 4},
        ),
        Arm(
            "reference",
            "amir_grpo",
            "share 0.3, with reference policy",
            against="share-0.3",
            changes=_SHARE | {"ref_free": False},
        ),
    ]
}


def with_what_they_are_compared_to(names: Iterable[str]) -> list[Arm]:
    """The named arms, and those that they are compared with, in the order of `ARMS`."""
    wanted, waiting = set(), ["grpo", *names]
    while waiting:
        arm = ARMS[waiting.pop()]
        wanted.add(arm.name)
        if arm.against:
            waiting.append(arm.against)
    return [arm for arm in ARMS.values() if arm.name in wanted]


def runs(arms: Iterable[Arm] = tuple(ARMS.values())) -> list[tuple[Arm, int]]:
    """Every run of the arms, as (arm, seed): the arms with the most seeds first, then seed by seed, so that a part of
    them already holds every comparison."""
    pairs = [(arm, seed) for arm in arms for seed in range(arm.seeds)]
    return sorted(pairs, key=lambda pair: 0 if pair[0].seeds > 3 else 1 + pair[1])


def open_arm(
    folder: Path, arm: Arm, seed: int, overrides: dict[str, Any] | None = None, profile: str = PROFILE
) -> Run:
    """The run folder of one arm and seed.

    Args:
        folder: Holds the run folders of all arms, and the base policy that they share.
        overrides: Changes to all arms, such as fewer steps for a test.
        profile: What the arms change; arms that set a batch size suit "sandbox" alone.
    """
    return open_run(profile, folder / f"{arm.name}.seed{seed}", arm.changes | {"seed": seed} | (overrides or {}))


def reproduce(
    folder: Path,
    arms: Iterable[Arm] = tuple(ARMS.values()),
    overrides: dict[str, Any] | None = None,
    workers: int = 0,
    profile: str = PROFILE,
) -> dict[str, pd.DataFrame]:
    """Train, evaluate and score every run of the arms that is not complete, side by side, with progress and time left.

    Args:
        folder, overrides, profile: As in `open_arm`.
        arms: Among them "grpo", whose runs hold the base policy's completions.
        workers: Processes; 0 is one a core, 1 this one.

    Returns:
        The tables of `collect`.
    """
    arms, overrides = tuple(arms), overrides or {}
    jobs = [(folder, arm, seed, overrides, profile) for arm, seed in runs(arms)]
    with locked(folder, "evidence"):
        _work(jobs, workers)
    return collect(folder, arms, overrides, profile)


def _work(jobs: list[tuple], workers: int) -> None:
    open_arm(*jobs[0]).base()  # made once, before the workers would each make it
    tracked = [job for job in jobs if job[1].changes.get("save_total_limit", 0) is None]
    weighed = [job for job in jobs if job[1].name in ("grpo", "amir_grpo")]
    with _workers(workers) as pool:
        _each("training", _train, [job for job in jobs if not open_arm(*job).is_trained(job[1].method)], pool)
        _each("evaluating", _evaluate, [job for job in jobs if not _is_evaluated(open_arm(*job), job[1])], pool)
        _each("scoring", _score, [job for job in tracked if not (open_arm(*job).folder / _SCORES).exists()], pool)
        _each("weighing", _weigh, [job for job in weighed if not (open_arm(*job).folder / _WEIGHTS).exists()], pool)


_SCORES, _WEIGHTS = "scores/shared.parquet", "scores/weights.csv"


def _train(*job: Any) -> None:
    open_arm(*job).train(job[1].method)


def _policies(arm: Arm) -> list[str]:
    """Which policies a run of the arm draws completions from: its own; those of GRPO also the base's."""
    return ["base", arm.method] if arm.name == "grpo" else [arm.method]


def _evaluate(*job: Any) -> None:
    open_arm(*job).samples(_policies(job[1]))


def _is_evaluated(run: Run, arm: Arm) -> bool:
    wanted = [f"{b}{greedy}.parquet" for b in run.settings.benchmarks for greedy in ("", ".greedy")]
    return all((run.folder / "samples" / policy / name).exists() for policy in _policies(arm) for name in wanted)


def _score(folder: Path, arm: Arm, seed: int, overrides: dict[str, Any], profile: str) -> None:
    """Margins of the base policy's completions, which all policies of a seed share, at every checkpoint of a run."""
    run = open_arm(folder, arm, seed, overrides, profile)
    shared = open_arm(folder, ARMS["grpo"], seed, overrides, profile).samples(["base"])
    right = shared.groupby(["benchmark", "problem_id"])["correct"].transform("mean")
    shared = shared[(right > 0) & (right < 1)].reset_index(drop=True)
    frames = [_margins(shared, shared["logprob"]).assign(step=0)]
    for checkpoint in (run.folder / arm.method / "checkpoints").glob("checkpoint-*"):
        scores = pd.Series(run.logprobs(checkpoint, shared))
        frames.append(_margins(shared, scores).assign(step=int(checkpoint.name.split("-")[1])))
    rows = pd.concat(frames, ignore_index=True).sort_values("step", kind="stable", ignore_index=True)
    atomic_write(run.folder / _SCORES, rows.to_parquet)


def _margins(samples: pd.DataFrame, logprob: pd.Series) -> pd.DataFrame:
    """Per problem: margin (nats a token) and accuracy, the share of its right/wrong pairs that are ranked right."""
    per_token = logprob / samples["tokens"].clip(lower=1)
    rows = []
    for (benchmark, problem), part in samples.assign(l=per_token).groupby(["benchmark", "problem_id"], sort=False):
        right, wrong = part.loc[part["correct"], "l"].to_numpy(), part.loc[~part["correct"], "l"].to_numpy()
        accuracy = (right[:, None] > wrong[None, :]).mean()
        rows.append((benchmark, problem, right.mean() - wrong.mean(), accuracy))
    return pd.DataFrame(rows, columns=["benchmark", "problem_id", "margin", "accuracy"])


def _weigh(folder: Path, arm: Arm, seed: int, overrides: dict[str, Any], profile: str) -> None:
    """How near the preference weights of a rollout come to wins minus losses, before and after training, for some β."""
    import torch

    from amir_grpo.policies.engines import load_engine
    from amir_grpo.policies.sampling import sample
    from amir_grpo.preference import mine_pairs, preference_weights
    from amir_grpo.rewards import reward_functions

    run = open_arm(folder, arm, seed, overrides, profile)
    s = run.settings
    problems = run.training_problems()
    problems = problems.select(range(min(64, len(problems))))
    answers = dict(zip(problems["id"], problems["answer"], strict=True))
    rows = []
    for when, adapter in (("before", None), ("after", run.folder / arm.method)):
        engine = load_engine("transformers", run.base(), adapter, Loading())
        drawn = sample(
            engine,
            problems,
            s.num_generations,
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=s.max_completion_length,
            seed=s.seed,
            token_budget=s.eval_token_budget,
        )
        texts, golds = drawn["text"].tolist(), [answers[problem] for problem in drawn["problem_id"]]
        scores = [function(completions=texts, answer=golds) for function in reward_functions()]
        rewards = torch.tensor(scores).sum(dim=0)
        logps = torch.tensor((drawn["logprob"] / drawn["tokens"].clip(lower=1)).to_numpy())
        pairs = mine_pairs(rewards, s.num_generations, s.reward_margin)
        linear = preference_weights(logps, pairs, 1.0, pair_loss="linear").numpy()
        right = torch.tensor(scores[0]).view(-1, s.num_generations)
        centred = (right - right.mean(dim=1, keepdim=True)).flatten().numpy()
        for beta in (s.beta_dpo, 1.0, 10.0):
            weights = preference_weights(logps, pairs, beta).numpy()
            row = {"policy": when, "beta": beta, "pairs": len(pairs.chosen), "completions": len(rewards)}
            row["wins_minus_losses"] = _correlation(weights, linear)
            rows.append(row | {"centred_correctness": _correlation(weights, centred)})
    table = pd.DataFrame(rows)
    atomic_write(run.folder / _WEIGHTS, lambda part: table.to_csv(part, index=False))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


class _Here(Executor):
    """Runs each job at once, in this process."""

    def submit(self, do, /, *arguments, **keywords):
        done: Future = Future()
        done.set_result(do(*arguments, **keywords))
        return done


@contextmanager
def _workers(number: int) -> Iterator[Executor]:
    """Processes without progress bars, since the bar of the whole is this one's; one worker is this process itself."""
    if number == 1:
        yield _Here()
        return
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported
    try:
        with ProcessPoolExecutor(number or os.cpu_count(), get_context("spawn"), die_with_parent) as pool:
            yield pool
    finally:
        os.environ.pop("TQDM_DISABLE")
        if before is not None:
            os.environ["TQDM_DISABLE"] = before


def _each(what: str, do: Callable[..., None], jobs: list[tuple], pool: Executor) -> None:
    """Do every job, side by side; what fails stops what has not begun, and is raised."""
    if not jobs:
        return
    with tqdm(total=len(jobs), desc=what, unit="run", smoothing=0) as progress:
        waiting = {}
        try:
            for job in jobs:
                waiting[pool.submit(do, *job)] = job
            for done in as_completed(waiting):
                done.result()
                _, arm, seed, *_ = waiting[done]
                progress.set_postfix_str(f"{arm.name}, seed {seed}", refresh=False)
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# --- the tables that are kept -------------------------------------------------------------------------------------

LENGTH_BINS = (0, 16, 20, 24, 28, 32, 40, 52, 65)
_LOG = {
    "reward": "reward",
    "preference/pairs": "pairs",
    "preference/share": "share",
    "preference/lambda": "lambda_reg",
    "preference/accuracy": "accuracy",
    "completions": "completions",
}


def collect(
    folder: Path,
    arms: Iterable[Arm] = tuple(ARMS.values()),
    overrides: dict[str, Any] | None = None,
    profile: str = PROFILE,
) -> dict[str, pd.DataFrame]:
    """The evidence as small tables, read from complete runs.

    Returns:
        - correct: arm, seed, benchmark, problem (its number), correct (of n samples), samples (n), greedy (0 or 1), one
          row a problem of every run; the base policy is an arm of its own.
        - training: arm, seed, step, group_size, reward, pairs, share, lambda_reg, accuracy, completions, tokens_right and
          tokens_wrong (mean lengths of the right and the wrong completions of the step), one row a step.
        - pressure: arm, seed, correct, tokens (lower end of the bin of `LENGTH_BINS`), length (mean), completions,
          token_weight (mean), and bonus_share (Σ|bonus| / (Σ|advantage| + Σ|bonus|)), one row a bin of rollout lengths.
        - margins: arm, seed, step, benchmark, problem, margin, accuracy on the base policy's completions.
        - weights: arm, seed, policy (before or after training), beta, pairs, completions, wins_minus_losses and
          centred_correctness (correlations with the preference weights).
        - settings: arm, about, method, against, seeds, and what the arm changes.
        - benchmarks: benchmark, group (`TRAINED` or `LONGER`) and model.
    """
    arms, overrides = tuple(arms), overrides or {}
    found: dict[str, list[pd.DataFrame]] = {
        name: [] for name in ("correct", "training", "pressure", "margins", "weights")
    }
    for arm, seed in runs(arms):
        run = open_arm(folder, arm, seed, overrides, profile)
        names = {"arm": arm.name, "seed": seed}
        for policy in _policies(arm):
            found["correct"].append(
                _correct(run, policy).assign(**names | ({"arm": "base"} if policy == "base" else {}))
            )
        rollouts = pd.read_parquet(run.folder / arm.method / "rollouts.parquet")
        found["training"].append(_training(run, arm, rollouts).assign(**names))
        found["pressure"].append(_pressure(rollouts).assign(**names))
        if (run.folder / _SCORES).exists():
            margins = pd.read_parquet(run.folder / _SCORES)
            margins["problem"] = _number(margins.pop("problem_id"))
            found["margins"].append(margins.assign(**names))
        if (run.folder / _WEIGHTS).exists():
            found["weights"].append(pd.read_csv(run.folder / _WEIGHTS).assign(**names))
    tables = {name: _first(pd.concat(frames, ignore_index=True)) for name, frames in found.items() if frames}
    settings = [
        {
            "arm": arm.name,
            "about": arm.about,
            "method": arm.method,
            "against": arm.against or "",
            "seeds": arm.seeds,
            "changes": json.dumps({k: v for k, v in arm.changes.items() if k not in _KEEP_CHECKPOINTS}),
        }
        for arm in arms
    ]
    trained_on = SANDBOXES[run.settings.model_name].trained_on
    benchmarks = [
        {"benchmark": name, "group": TRAINED if name in trained_on else LONGER, "model": run.settings.model_name}
        for name in run.settings.benchmarks
    ]
    return tables | {"settings": pd.DataFrame(settings), "benchmarks": pd.DataFrame(benchmarks)}


def _first(table: pd.DataFrame) -> pd.DataFrame:
    names = ["arm", "seed"]
    return table[[*names, *(column for column in table.columns if column not in names)]]


def _correct(run: Run, policy: str) -> pd.DataFrame:
    key = ["benchmark", "problem_id"]
    counts = run.samples([policy]).groupby(key, sort=False)["correct"].agg(correct="sum", samples="size")
    greedy = run.samples([policy], greedy=True).set_index(key)["correct"].astype(int).rename("greedy")
    table = counts.join(greedy).reset_index()
    table["problem"] = _number(table.pop("problem_id"))
    return table


def _number(problem_ids: pd.Series) -> pd.Series:
    """The number of a problem within its benchmark, the last part of its id."""
    return problem_ids.map(lambda problem: problem.rpartition("-")[2]).astype(int)


def _training(run: Run, arm: Arm, rollouts: pd.DataFrame) -> pd.DataFrame:
    log = run.train(arm.method).rename(columns=_LOG)
    log = log.reindex(columns=["step", *_LOG.values()]).assign(group_size=run.settings.num_generations)
    lengths = rollouts.groupby(["step", "correct"])["tokens"].mean().unstack().reindex(columns=[1, 0])
    lengths.columns = ["tokens_right", "tokens_wrong"]
    return log.join(lengths, on="step")


def _pressure(rollouts: pd.DataFrame) -> pd.DataFrame:
    rollouts = rollouts[rollouts["tokens"] > 0]
    bins = np.digitize(rollouts["tokens"], LENGTH_BINS[1:])
    rows = []
    for (correct, place), part in rollouts.groupby([rollouts["correct"], bins]):
        bonus, advantage = part["bonus"].abs().sum(), part["advantage"].abs().sum()
        row = {"correct": correct, "tokens": LENGTH_BINS[place], "length": part["tokens"].mean()}
        row |= {"completions": len(part), "token_weight": part["token_weight"].mean()}
        rows.append(row | {"bonus_share": bonus / (bonus + advantage) if bonus + advantage else np.nan})
    return pd.DataFrame(rows)


def keep(tables: dict[str, pd.DataFrame], folder: Path, results: Path, profile: str = PROFILE) -> None:
    """Write the tables of `collect`, small and rounded, with the provenance of the runs, into `results`."""
    for name, table in tables.items():
        if name in ("correct", "training", "margins"):
            small = table.assign(**{c: table[c].astype("category") for c in ("arm", "benchmark") if c in table})
            for column in small.select_dtypes("integer"):
                small[column] = pd.to_numeric(small[column], downcast="integer")
            for column in small.select_dtypes("float"):
                small[column] = small[column].astype("float32")
            atomic_write(results / f"{name}.parquet", lambda part, t=small: t.to_parquet(part, compression="zstd"))
        else:
            atomic_write(
                results / f"{name}.csv", lambda part, t=table: t.to_csv(part, index=False, float_format="%.6g")
            )
    stages = [read_json(path) for path in sorted(folder.glob("*.seed*/*/stage.json"))]
    configs = [read_json(path) for path in sorted(folder.glob("*.seed*/config.json"))]
    provenances = [stage["provenance"] for stage in stages]
    record = {
        "profile": profile,
        "runs": len(stages),
        "seeds": sorted({config["settings"]["seed"] for config in configs}),
        "started": min(stage["started"] for stage in stages),
        "ended": max(stage["ended"] for stage in stages),
        "commits": sorted({str(p["commit"]) for p in provenances}),
        "uncommitted_changes": any(p["uncommitted_changes"] for p in provenances),
        "python": sorted({p["python"] for p in provenances}),
        "device": sorted({p["device"] for p in provenances}),
        "packages": provenances[0]["packages"],
        "settings": {k: v for k, v in configs[0]["settings"].items() if all(c["settings"][k] == v for c in configs)},
        "problems": sorted(
            {
                (r["set"], r["problems"], r["fingerprint"])
                for r in map(read_json, folder.glob("*.seed*/problems/*.json"))
            }
        ),
    }
    write_text(results / "provenance.json", to_json(record))


def load(results: Path) -> dict[str, pd.DataFrame]:
    """The tables that `keep` has written.

    Raises:
        FileNotFoundError: If there are none.
    """
    paths = sorted([*results.glob("*.parquet"), *results.glob("*.csv")])
    if not paths:
        raise FileNotFoundError(
            f"{results} holds no evidence: `make evidence` makes it, and a clone of the project has it."
        )
    return {path.stem: pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path) for path in paths}
