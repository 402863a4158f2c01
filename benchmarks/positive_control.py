"""Can the sandbox see an effect? What is known to help GRPO, over the six base policies, against plain GRPO.

    python benchmarks/positive_control.py [--arms two-step group-4 group-16] [--workers 2] [--folder runs/positive-control]

Two optimizer steps per rollout instead of one, and groups of 4 or 16 at equal prompts (16) instead of 8. Run i trains base
policy i with seed i, every arm with the same random numbers; 400 problems per benchmark. What is complete is not repeated.
Writes data/results/positive_control.csv (one row per run and benchmark) and prints each arm's gain with its interval.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from amir_grpo import open_run
from amir_grpo.runs.locations import project_root
from amir_grpo.sandbox.base import WARMUP_SEEDS
from amir_grpo.sandbox.problems import TRAINED_ON
from amir_grpo.study.inference import compare
from amir_grpo.system.files import atomic_write

ARMS = {
    "grpo": {},
    "two-step": {
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 2,
        "max_steps": 120,
    },
    "group-4": {"num_generations": 4, "per_device_train_batch_size": 64},
    "group-16": {"num_generations": 16, "per_device_train_batch_size": 256},
}
KEPT = Path("data") / "results" / "positive_control.csv"


def run(folder: Path, arm: str, number: int) -> pd.DataFrame:
    """Train and evaluate one run, unless it is there: columns arm, base, benchmark, pass_rate (in percent)."""
    changes = {"seed": number, "base_seed": number, "eval_limit": 400, **ARMS[arm]}
    opened = open_run("sandbox", folder / f"{arm}.base{number}.seed{number}", changes)
    opened.train("grpo")
    samples = opened.samples(["base", "grpo"] if arm == "grpo" else ["grpo"])
    table = samples.groupby(["policy", "benchmark"])["correct"].mean().mul(100).rename("pass_rate").reset_index()
    table["arm"] = table.pop("policy").replace({"grpo": arm})
    return table.assign(base=number)[["arm", "base", "benchmark", "pass_rate"]]


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Each arm against GRPO in pass@1 over the trained lengths, in points, for new base policies and seeds."""
    trained = table[table["benchmark"].isin(TRAINED_ON["sandbox"])]
    wide = trained.groupby(["arm", "base"])["pass_rate"].mean().unstack("base")
    rows = []
    for arm in wide.index.drop(["base", "grpo"]):
        gain = compare(wide.loc[[arm]].to_numpy().T[:, :, None], wide.loc[["grpo"]].to_numpy().T[:, :, None])
        low, high = gain.interval()
        rows.append({"arm": arm, "gain": gain.estimate, "gain_low": low, "gain_high": high, "p_value": gain.p_value})
    return pd.DataFrame(rows)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="default: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=project_root() / "runs" / "positive-control")
    options = parser.parse_args()
    jobs = [(arm, number) for arm in dict.fromkeys(["grpo", *options.arms]) for number in range(len(WARMUP_SEEDS))]
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as executor:
        tables = list(executor.map(run, [options.folder] * len(jobs), *zip(*jobs, strict=True)))
    table = pd.concat(tables, ignore_index=True)
    atomic_write(project_root() / KEPT, lambda part: table.round(4).to_csv(part, index=False))
    print(table.pivot_table(index=["arm", "base"], columns="benchmark", values="pass_rate").round(1).to_string())
    print("\n" + gains(table).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
