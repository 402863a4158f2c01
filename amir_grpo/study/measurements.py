"""What the study measures of a run beside its evaluation: margins on shared completions, and preference weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from amir_grpo.policies.source import Loading
from amir_grpo.study.arms import ARMS
from amir_grpo.study.jobs import Job
from amir_grpo.system.files import atomic_write

# Where they are kept in the run folder.
MARGINS, WEIGHTS = "scores/shared.parquet", "scores/weights.csv"


def measure_margins(job: Job) -> None:
    """Margins of the base policy's completions, which all policies of a seed share, at every checkpoint of a run."""
    run = job.open()
    shared = replace(job, arm=ARMS["grpo"]).open().samples(["base"])
    right = shared.groupby(["benchmark", "problem_id"])["correct"].transform("mean")
    shared = shared[(right > 0) & (right < 1)].reset_index(drop=True)
    frames = [_margins(shared, shared["logprob"]).assign(step=0)]
    for checkpoint in (run.folder / job.arm.method / "checkpoints").glob("checkpoint-*"):
        scores = pd.Series(run.logprobs(checkpoint, shared))
        frames.append(_margins(shared, scores).assign(step=int(checkpoint.name.split("-")[1])))
    rows = pd.concat(frames, ignore_index=True).sort_values("step", kind="stable", ignore_index=True)
    atomic_write(run.folder / MARGINS, rows.to_parquet)


def _margins(samples: pd.DataFrame, logprob: pd.Series) -> pd.DataFrame:
    """Per problem: margin (nats per token) and accuracy, the share of its right/wrong pairs that are ranked correctly."""
    per_token = logprob / samples["tokens"].clip(lower=1)
    rows = []
    for (benchmark, problem), part in samples.assign(l=per_token).groupby(["benchmark", "problem_id"], sort=False):
        right, wrong = part.loc[part["correct"], "l"].to_numpy(), part.loc[~part["correct"], "l"].to_numpy()
        accuracy = (right[:, None] > wrong[None, :]).mean()
        rows.append((benchmark, problem, right.mean() - wrong.mean(), accuracy))
    return pd.DataFrame(rows, columns=["benchmark", "problem_id", "margin", "accuracy"])


def measure_weights(job: Job) -> None:
    """How close the preference weights of a rollout come to wins minus losses, before and after training, for some β."""
    import torch

    from amir_grpo.policies.engines import load_engine
    from amir_grpo.policies.sampling import draw_completions
    from amir_grpo.preference import mine_pairs, preference_weights
    from amir_grpo.rewards import reward_functions

    run = job.open()
    s = run.settings
    problems = run.training_problems()
    problems = problems.select(range(min(64, len(problems))))
    answers = dict(zip(problems["id"], problems["answer"], strict=True))
    rows = []
    for when, adapter in (("before", None), ("after", run.folder / job.arm.method)):
        engine = load_engine("transformers", run.base(), adapter, Loading.of(s))
        drawn = draw_completions(
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
    atomic_write(run.folder / WEIGHTS, lambda part: table.to_csv(part, index=False))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan
