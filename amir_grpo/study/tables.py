"""The study's results as small tables: collected from complete runs, kept in a folder, read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from amir_grpo.runs.run import Run
from amir_grpo.sandbox.problems import TRAINED_ON
from amir_grpo.study.arms import KEEP_CHECKPOINTS, PROFILE, Arm
from amir_grpo.study.jobs import Job
from amir_grpo.study.measurements import MARGINS, WEIGHTS
from amir_grpo.system.files import atomic_write, write_text
from amir_grpo.system.provenance import read_json, to_json

TRAINED, LONGER = "trained lengths", "longer problems"
LENGTH_BINS = (0, 16, 20, 24, 28, 32, 40, 52, 65)
_LOG = {
    "reward": "reward",
    "preference/pairs": "pairs",
    "preference/share": "share",
    "preference/lambda": "lambda_reg",
    "preference/accuracy": "accuracy",
    "completions": "completions",
}


def collect(jobs: Sequence[Job]) -> dict[str, pd.DataFrame]:
    """The results as small tables, read from complete runs.

    Returns:
        - correct: arm, seed, benchmark, problem (its number), correct (of n samples), samples (n), greedy (0 or 1), one
          row per problem of every run; the base policy is an arm of its own.
        - training: arm, seed, step, group_size, reward, pairs, share, lambda_reg, accuracy, completions, tokens_right and
          tokens_wrong (mean lengths of the right and the wrong completions of the step), one row per step.
        - pressure: arm, seed, correct, tokens (lower end of the bin of `LENGTH_BINS`), length (mean), completions,
          token_weight (mean), and bonus_share (Σ|bonus| / (Σ|advantage| + Σ|bonus|)), one row per bin of rollout lengths.
        - margins: arm, seed, step, benchmark, problem, margin, accuracy on the base policy's completions.
        - weights: arm, seed, policy (before or after training), beta, pairs, completions, wins_minus_losses and
          centred_correctness (correlations with the preference weights).
        - settings: arm, about, method, against, seeds, and what the arm changes.
        - benchmarks: benchmark, group (`TRAINED` or `LONGER`) and model.
    """
    found: dict[str, list[pd.DataFrame]] = {
        name: [] for name in ("correct", "training", "pressure", "margins", "weights")
    }
    for job in jobs:
        run, names = job.open(), {"arm": job.arm.name, "seed": job.seed}
        for policy in job.policies:
            arm = "base" if policy == "base" else job.arm.name
            found["correct"].append(_correct(run, policy).assign(**names | {"arm": arm}))
        rollouts = pd.read_parquet(run.folder / job.arm.method / "rollouts.parquet")
        found["training"].append(_training(run, job.arm.method, rollouts).assign(**names))
        found["pressure"].append(_pressure(rollouts).assign(**names))
        if (run.folder / MARGINS).exists():
            margins = pd.read_parquet(run.folder / MARGINS)
            margins["problem"] = _number(margins.pop("problem_id"))
            found["margins"].append(margins.assign(**names))
        if (run.folder / WEIGHTS).exists():
            found["weights"].append(pd.read_csv(run.folder / WEIGHTS).assign(**names))
    tables = {name: _names_first(pd.concat(frames, ignore_index=True)) for name, frames in found.items() if frames}
    arms = list({job.arm.name: job.arm for job in jobs}.values())
    return tables | {"settings": _settings(arms), "benchmarks": _benchmarks(jobs[0].open())}


def _settings(arms: Sequence[Arm]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "arm": arm.name,
            "about": arm.about,
            "method": arm.method,
            "against": arm.against or "",
            "seeds": arm.seeds,
            "changes": json.dumps({k: v for k, v in arm.changes.items() if k not in KEEP_CHECKPOINTS}),
        }
        for arm in arms
    )


def _benchmarks(run: Run) -> pd.DataFrame:
    model = run.settings.model_name
    trained_on = TRAINED_ON[model]
    return pd.DataFrame(
        {"benchmark": name, "group": TRAINED if name in trained_on else LONGER, "model": model}
        for name in run.settings.benchmarks
    )


def _names_first(table: pd.DataFrame) -> pd.DataFrame:
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


def _training(run: Run, method: str, rollouts: pd.DataFrame) -> pd.DataFrame:
    log = run.train(method).rename(columns=_LOG)
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
