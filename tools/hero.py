"""What the top of the README says: from the confirmation, the pilot, or else from the kept run of the sandbox.

A study is taken if it has as many pairs of GRPO and AMIR-GRPO as published as a p-value needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from amir_grpo import metrics
from amir_grpo.choices import PARAMETERS, SANDBOX
from amir_grpo.results.hero import hero_figure, same_batches
from amir_grpo.study.gains import gain
from amir_grpo.study.inference import MIN_UNITS
from amir_grpo.study.results import Studies, StudyResults, shared_runs

_BASE, _GRPO, _PUBLISHED = "clean/base", "clean/grpo", "clean/published"
_SAME = ["reward", "right", "tokens_right", "tokens_wrong"]  # of a rollout: equal where its completions are
_LIMITS = (
    f"Evidence about this small policy ({PARAMETERS[SANDBOX]} parameters, arithmetic chains); none about the "
    "paper's 3B to 7B models."
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


def evidence(studies: Studies, run: Mapping[str, pd.DataFrame]) -> Evidence:
    """The best that is kept: of the studies, or of the one run; `run`: as `of_run` takes it."""
    study = studies.first(_BASE, _GRPO, _PUBLISHED)
    if study is not None and gain(study, _PUBLISHED, _GRPO).bases >= MIN_UNITS:
        return of_study(study)
    return of_run(run)


def of_run(kept: Mapping[str, pd.DataFrame]) -> Evidence:
    """From the kept results of one run of both methods: tables main and log."""
    log = kept["log"]
    drawn = {method: rows[["reward", "reward_std"]] for method, rows in log.groupby("method")}
    twins = same_batches(drawn["grpo"], drawn["amir_grpo"]).assign(run=0)
    share = float(log.loc[log["method"] == "amir_grpo", "preference/share"].median())
    levels = kept["main"].query("k == 1").rename(columns={"p_holm": "p"})
    scope = f"One training of each method at the published λ and β, seed 0; intervals over problems. {_LIMITS}"
    return Evidence(share, twins, levels, scope)


def of_study(study: StudyResults) -> Evidence:
    """From the runs of a study: GRPO and AMIR-GRPO as published, paired by base policy and seed."""
    rollouts = {path: study.by_run("rollouts", path) for path in (_GRPO, _PUBLISHED)}
    pairs = shared_runs(*rollouts.values())
    old, new = ([rollouts[path][pair] for pair in pairs] for path in (_GRPO, _PUBLISHED))
    twins = [
        same_batches(a[_SAME], b[_SAME]).assign(run=seed) for (_, seed), a, b in zip(pairs, old, new, strict=True)
    ]
    share = float(np.median([table["share"].median() for table in new]))
    apart = {name: [name] for names in study.benchmarks.values() for name in names}
    alone, rows = replace(study, benchmarks=apart), []
    for benchmark in apart:
        found = gain(alone, _PUBLISHED, _GRPO, benchmark)
        (low, high), row = found.interval(), {"benchmark": benchmark, "p": found.p_value, "gain": found.estimate}
        for policy, path in (("base", _BASE), ("grpo", _GRPO), ("amir_grpo", _PUBLISHED)):
            solved = alone.solved(path, benchmark)
            row[policy] = 100 * np.mean(
                [rates.mean() for run, rates in solved.items() if policy == "base" or run in pairs]
            )
        rows.append(row | {"gain_low": low, "gain_high": high})
    levels = pd.DataFrame(rows).assign(p=lambda table: metrics.holm(table["p"]))
    about = "; exploratory, before the study was frozen" if study.name == "pilot" else ""
    scope = f"AMIR-GRPO as published, {len(pairs)} pairs of trainings from {found.bases} base policies{about}. "
    scope += f"Intervals: new base policies, seeds and problems. {_LIMITS}"
    return Evidence(share, pd.concat(twins), levels, scope)
