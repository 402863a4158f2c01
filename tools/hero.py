"""What the top of the README says: from the confirmation, the pilot, or else from the kept run of the sandbox.

The runs of a study are taken as soon as there are as many pairs of GRPO and AMIR-GRPO as published as a p-value needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from amir_grpo import metrics
from amir_grpo.results.hero import hero_figure, same_batches
from amir_grpo.results.tables import preference_share
from amir_grpo.study.inference import MIN_UNITS, compare
from amir_grpo.study.kept_runs import KeptRun, read_run
from amir_grpo.study.schedule import STUDIES

_ARMS = {"base": "clean.base", "grpo": "clean.grpo", "amir_grpo": "clean.published"}
_SAME = ["reward", "right", "tokens_right", "tokens_wrong"]  # of a rollout: equal where its completions are
_LIMITS = (
    "Evidence about this small policy (0.1M parameters, arithmetic chains); none about the paper's 3B to 7B models."
)


@dataclass(frozen=True)
class Evidence:
    """What the figure and the lines below it are made of; see `amir_grpo.results.hero.hero_figure`."""

    share: float
    twins: pd.DataFrame
    levels: pd.DataFrame
    scope: str

    def figure(self) -> Figure:
        """The figure at the top of the README."""
        return hero_figure(self.share, self.twins, self.levels, self.scope)


def evidence(results: Path) -> Evidence:
    """The best that is kept.

    Args:
        results: The folder of all kept results, data/results.
    """
    for study in reversed(STUDIES):  # the confirmation before the pilot
        found = {arm: _runs(results / study, name) for arm, name in _ARMS.items()}
        if len({found["amir_grpo"][seed].record["base"] for seed in _pairs(found)}) >= MIN_UNITS:
            return of_study(found, study)
    return of_run({name: pd.read_csv(results / "sandbox" / f"{name}.csv") for name in ("main", "log")})


def of_run(kept: Mapping[str, pd.DataFrame]) -> Evidence:
    """From the kept results of one run of each method: tables main and log."""
    log = kept["log"]
    drawn = {method: rows[["reward", "reward_std"]] for method, rows in log.groupby("method")}
    twins = same_batches(drawn["grpo"], drawn["amir_grpo"]).assign(run=0)
    share = preference_share(log[log["method"] == "amir_grpo"])
    levels = kept["main"].query("k == 1").rename(columns={"p_holm": "p"})
    scope = f"One training of each method at the published λ and β, seed 0; intervals over problems. {_LIMITS}"
    return Evidence(share, twins, levels, scope)


def of_study(found: Mapping[str, Mapping[int, KeptRun]], study: str) -> Evidence:
    """From the runs of a study: GRPO and AMIR-GRPO as published, paired by seed.

    Args:
        found: For base, grpo and amir_grpo the kept runs, by seed.
        study: Its name.
    """
    seeds = _pairs(found)
    old, new = ([found[arm][seed] for seed in seeds] for arm in ("grpo", "amir_grpo"))
    twins = [
        same_batches(a.tables["rollouts"][_SAME], b.tables["rollouts"][_SAME]).assign(run=seed)
        for seed, a, b in zip(seeds, old, new, strict=True)
    ]
    share = float(np.median([run.tables["rollouts"]["share"].median() for run in new]))
    untrained = {run.record["base"]: run for run in found["base"].values()}
    rows = []
    for benchmark in new[0].tables["problems"]["benchmark"].unique():
        rates = [_by_base(runs, benchmark) for runs in (new, old)]
        gain = compare(*rates)
        low, high = gain.interval()
        before = [_rates(untrained[base], benchmark).mean() for base in {run.record["base"] for run in new}]
        row = {"benchmark": benchmark, "base": np.mean(before), "grpo": np.nanmean(rates[1]), "p": gain.p_value}
        row |= {"amir_grpo": np.nanmean(rates[0]), "gain": gain.estimate, "gain_low": low, "gain_high": high}
        rows.append(row)
    levels = pd.DataFrame(rows).assign(p=lambda table: metrics.holm(table["p"]))
    about = "; exploratory, before the study was frozen" if study == "pilot" else ""
    scope = f"AMIR-GRPO as published, {len(seeds)} pairs of trainings from {gain.bases} base policies{about}. "
    scope += f"2: the median pair. Intervals: new base policies, seeds and problems. {_LIMITS}"
    return Evidence(share, pd.concat(twins), levels, scope)


def _runs(folder: Path, name: str) -> dict[int, KeptRun]:
    runs = [read_run(path) for path in sorted(folder.glob(f"{name}.seed*.zip"))]
    return {run.record["seed"]: run for run in runs}


def _pairs(found: Mapping[str, Mapping[int, KeptRun]]) -> list[int]:
    return sorted(found["grpo"].keys() & found["amir_grpo"].keys())


def _rates(run: KeptRun, benchmark: str) -> np.ndarray:
    """pass@1 of each problem, in percent."""
    problems = run.tables["problems"]
    return (
        100
        * problems.loc[problems["benchmark"] == benchmark, "correct"].to_numpy()
        / run.record["settings"]["num_samples"]
    )


def _by_base(runs: list[KeptRun], benchmark: str) -> np.ndarray:
    """(bases, seeds of a base, problems), NaN where a base has fewer seeds than another."""
    bases = sorted({run.record["base"] for run in runs})
    grouped = [[_rates(run, benchmark) for run in runs if run.record["base"] == base] for base in bases]
    scores = np.full((len(bases), max(map(len, grouped)), len(grouped[0][0])), np.nan)
    for place, rates in enumerate(grouped):
        scores[place, : len(rates)] = rates
    return scores
