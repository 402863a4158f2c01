"""Claim 3, less length bias: the weight of a token against length, and whether wrong completions become shorter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from amir_grpo.study.inference import Comparison
from amir_grpo.study.length_weight import theoretical_weight
from amir_grpo.study.results import TRAINED, Studies, StudyResults, about, compared, level, shared_runs
from amir_grpo.study.summaries import LENGTH_EDGES

_REFERENCE = 20  # lower end of the bin that weights are relative to: few completions are shorter
MARGIN = 0.5  # tokens: the smallest difference of interest in the length of wrong completions
# Arms whose weight per token is shown, their loss, and the preference term's part of the weight.
ARMS = {
    "clean/grpo": ("grpo", 0.0),
    "clean/mixture-0.6": ("grpo", 0.6),
    "clean/two-step-dr_grpo": ("dr_grpo", 0.0),
    "clean/two-step-dr_grpo-mixture": ("dr_grpo", 0.6),
}


def slope_table(studies: Studies) -> pd.DataFrame:
    """How the weight of a token falls with the length of its completion, within groups and equal rewards.

    Columns about, slope, slope_low, slope_high (of log weight on log length: -1 is full dilution, 0 none), theory (of the
    loss with the preference term at its part of the weight), runs.
    """
    study, rows = studies.with_most(*ARMS), []
    for arm, (loss, share) in ARMS.items():
        tables = study.by_run("lengths", arm)
        slopes = {run: float(table["slope"].iloc[0]) for run, table in tables.items()}
        slopes = {run: slope for run, slope in slopes.items() if np.isfinite(slope)}
        if slopes:
            found = level(slopes)
            low, high = found.interval()
            row = {"about": about(arm), "slope": found.estimate, "slope_low": low, "slope_high": high}
            rows.append(row | {"theory": theoretical_slope(loss, share), "runs": found.runs})
    return pd.DataFrame(rows)


def theoretical_slope(loss: str, share: float) -> float:
    """Slope of log weight on log length from the reference to the longest bin, by `theoretical_weight`."""
    longest = LENGTH_EDGES[-1]
    return float(np.log(theoretical_weight(loss, longest, _REFERENCE, share)) / np.log(longest / _REFERENCE))


def weight_table(studies: Studies) -> pd.DataFrame:
    """Weight of a token by length, relative to completions of 20 to 23 tokens: columns about, length (middle of the bin),
    relative, relative_low, relative_high (mean and range of the runs), theory."""
    study, frames = studies.with_most(*ARMS), []
    for arm, (loss, share) in ARMS.items():
        part = study.part("lengths", arm)
        if not len(part):
            continue
        wide = part.pivot_table(index=["base", "seed"], columns="tokens", values="relative")
        wide = wide.loc[:, _REFERENCE:].div(wide[_REFERENCE], axis=0)
        found = wide.agg(["mean", "min", "max"]).T.set_axis(["relative", "relative_low", "relative_high"], axis=1)
        middles = dict(zip(LENGTH_EDGES, np.add(LENGTH_EDGES, [*LENGTH_EDGES[1:], LENGTH_EDGES[-1]]) / 2, strict=True))
        found.insert(0, "length", found.index.map(middles))
        theory = theoretical_weight(loss, found["length"], middles[_REFERENCE], share)
        frames.append(found.assign(about=about(arm), theory=theory))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def wrong_length_gain(study: StudyResults, new: str, old: str) -> Comparison:
    """Tokens by which the old arm's wrong completions are longer than the new one's: above 0, they became shorter.

    On problems of the trained lengths that both policies of a run answer wrong at least once, so that difficulty is fixed.
    """
    tables = study.by_run("problems", new), study.by_run("problems", old)
    ours, theirs = {}, {}
    for run in shared_runs(*tables):
        parts = [table[run] for table in tables]
        parts = [p[p["benchmark"].isin(study.benchmarks[TRAINED])].set_index(["benchmark", "problem"]) for p in parts]
        wrong = [study.samples - part["correct"] for part in parts]
        both = (wrong[0] > 0) & (wrong[1] > 0)
        ours[run], theirs[run] = (
            float((part["tokens_wrong"] / number)[both].mean()) for part, number in zip(parts, wrong, strict=True)
        )
    return compared(theirs, ours)


def wrong_length_table(studies: Studies, pairs: Sequence[tuple[str, str]], alpha: float) -> pd.DataFrame:
    """`wrong_length_gain` of each pair (new, old): columns about and those of `inference.Comparison.columns`, in tokens."""
    rows = []
    for new, old in pairs:
        if (study := studies.first(new, old)) is not None:
            found = wrong_length_gain(study, new, old)
            rows.append({"about": f"{about(new)} − {about(old)}"} | found.columns(MARGIN, alpha))
    return pd.DataFrame(rows)
