"""Claim 4, broader coverage: problems that one policy solves and another does not, against the right null.

Any two trainings solve some problems that the other does not. So the problems that AMIR-GRPO solves and GRPO of another seed
does not are held against those that GRPO of the same seed solves and that same other GRPO does not. The other's completions
are drawn with other random numbers than both, so that neither comparison is favoured. Problems are of the trained lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amir_grpo.study.inference import Comparison
from amir_grpo.study.results import Studies, StudyResults, about, compared, shared_runs

_REFERENCE, _AGAIN = "clean/grpo", "clean/grpo-again"
Solved = dict[tuple[int, int], NDArray[np.float64]]


def others(study: StudyResults, k: int = 1) -> Solved:
    """For each run of GRPO the pass@k of GRPO from the same base policy with another seed: of its own arm where there is
    one, else the next seed of that base policy. Runs without one are left out."""
    again = study.solved(_AGAIN, k=k) if study.has(_AGAIN) else {}
    grpo = study.solved(_REFERENCE, k=k)
    found = {}
    for base, seed in grpo:
        seeds = sorted(s for b, s in grpo if b == base)
        following = seeds[(seeds.index(seed) + 1) % len(seeds)]
        if (base, seed) in again:
            found[base, seed] = again[base, seed]
        elif following != seed:
            found[base, seed] = grpo[base, following]
    return found


def only_new(new: Solved, other: Solved) -> Solved:
    """The chance that `new` solves a problem and `other`, which draws independently, does not."""
    return {run: new[run] * (1 - other[run]) for run in shared_runs(new, other)}


def study_of_coverage(studies: Studies, arm: str) -> StudyResults | None:
    """The first study that has the arm, GRPO and GRPO of another seed from the same base policies."""
    having = studies.having(arm, _REFERENCE)
    return next((study for study in having if shared_runs(others(study), study.solved(arm))), None)


def coverage_gain(study: StudyResults, new: str, k: int) -> Comparison:
    """Problems that `new` solves and another GRPO does not, beyond those that GRPO solves and that other does not; percent
    of the problems."""
    other = others(study, k)
    solved = (only_new(study.solved(arm, k=k), other) for arm in (new, _REFERENCE))
    return compared(*solved).scaled(100)


def coverage_table(studies: Studies, arms: Sequence[str], margin: float, alpha: float) -> pd.DataFrame:
    """For each arm and k: columns about, k, only_new (percent of the problems that it solves and another GRPO does not),
    only_old (the other way round), null (only_new of GRPO), and those of `Comparison.columns`, of
    only_new − null. All over the runs that the arm and both GRPOs have; an arm without such runs is left out."""
    rows = []
    for arm in arms:
        if (study := study_of_coverage(studies, arm)) is None:
            continue
        for k in (1, 4, 8):
            solved = study.solved(arm, k=k), study.solved(_REFERENCE, k=k), others(study, k)
            shared = shared_runs(*solved)
            new, grpo, other = ({run: scores[run] for run in shared} for scores in solved)
            row = {"about": about(arm), "k": k, "only_new": _percent(only_new(new, other))}
            row |= {"only_old": _percent(only_new(other, new)), "null": _percent(only_new(grpo, other))}
            rows.append(row | coverage_gain(study, arm, k).columns(margin, alpha))
    return pd.DataFrame(rows)


def _percent(solved: Solved) -> float:
    return 100 * float(np.mean([values.mean() for values in solved.values()]))
