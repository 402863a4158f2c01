"""Made-up results of a study whose truth is known: kept runs, as `load_study` would read them."""

import numpy as np
import pandas as pd

from amir_grpo.settings import settings_of
from amir_grpo.study.arms import ARMS
from amir_grpo.study.kept import KeptRun, Studies, study_of
from amir_grpo.study.measures import TEMPERATURES, WINDOWS

BENCHMARKS, PROBLEMS, SAMPLES = ("chain6", "chain7", "chain8"), 60, 8


def kept_run(path, seed, base, logit, share=0.0, margin=0.2, wrong_length=40, study="pilot", model_name="sandbox"):
    """One run: problems solved with a chance of a logit, plus its base policy's and the problem's own; and the other tables,
    with the numbers that are given."""
    arm = ARMS[path]
    common = np.random.default_rng([base, seed])  # what all arms of a run share
    own = np.random.default_rng([base, seed, sum(map(ord, path))])
    problems = []
    for benchmark in BENCHMARKS:
        hardness = np.random.default_rng(sum(map(ord, benchmark))).normal(0, 1, PROBLEMS)
        chance = 1 / (1 + np.exp(-(logit + 0.3 * common.normal() + hardness)))
        correct = own.binomial(SAMPLES, chance)
        rows = {"benchmark": benchmark, "problem": range(PROBLEMS), "correct": correct, "greedy": correct > 4}
        rows |= {"tokens_right": 30 * correct, "tokens_wrong": wrong_length * (SAMPLES - correct)}
        problems.append(pd.DataFrame(rows))
    boundary = pd.DataFrame(
        {
            "benchmark": benchmark,
            "temperature": t,
            "margin": margin / t,
            "accuracy": 0.8,
            "entropy": 0.3 * t,
            "logprob": -0.3,
            "step": step,
        }
        for step in ((0,) if arm.method == "base" else (50, 100))
        for benchmark in BENCHMARKS[:2]
        for t in TEMPERATURES
    )
    tables = {"problems": pd.concat(problems, ignore_index=True), "boundary": boundary}
    if arm.method != "base":
        right = np.linspace(0.15, 0.65, 20)
        rollouts = {"rollout": range(1, 21), "right": right, "mixed": 0.8, "cosine_update": 0.9, "uniform_share": 0.1}
        tables["rollouts"] = pd.DataFrame(rollouts)
    if share:
        richness = {"window": range(1, WINDOWS + 1), "groups": 9, "explained": 0.95, "explained_at_one_slope": 0.9}
        richness |= {"share": share, "residual_share": 0.2 * share + 0.001 * own.random(WINDOWS)}
        tables["richness"] = pd.DataFrame(richness)
    record = {"study": study, "regime": arm.regime, "arm": arm.name, "method": arm.method, "seed": seed, "base": base}
    settings = settings_of(model_name, {"num_samples": SAMPLES, "benchmarks": list(BENCHMARKS)}).flat()
    return KeptRun(record | {"profile": model_name, "settings": settings, "digests": {}}, tables)


def made_up_studies(arms, **options):
    """A made-up study as the only one at hand."""
    return Studies((made_up_study(arms, **options),))


def made_up_study(arms, name="pilot", bases=6, seeds_per_base=1, model_name="sandbox"):
    """A study with some arms; `arms`: by `regime/arm` the keywords of `kept_run`, or the logit alone."""
    kept = []
    for path, options in arms.items():
        options = options if isinstance(options, dict) else {"logit": options}
        for place in range(bases * seeds_per_base):
            kept.append(kept_run(path, place, place % bases, study=name, model_name=model_name, **options))
    return study_of(kept)
