"""How far are preference weights from wins minus losses? For β = 0.2, 1 and 10, on completions of the first base policy.

    python benchmarks/identity.py

Draws 32 × 8 completions at temperature 1 and writes data/results/identity.csv: beta, group, correct, wins_minus_losses and
weight (2|S| w / β: wins minus losses where all z are 0), one row per completion and β. Seconds.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch

from amir_grpo.policies.engines import load_engine
from amir_grpo.policies.sampling import draw_completions
from amir_grpo.preference import mine_pairs, net_pull, preference_weights
from amir_grpo.problems import load_problems
from amir_grpo.rewards import reward_functions
from amir_grpo.runs.opening import project_root
from amir_grpo.sandbox.base import WARMUP_SEEDS, base_policy
from amir_grpo.sandbox.policy import SPECS
from amir_grpo.settings import settings_of
from amir_grpo.system.files import atomic_write

PROBLEMS, BETAS = 32, (0.2, 1.0, 10.0)


def main() -> None:
    """Entry point."""
    s = settings_of("sandbox")
    base = base_policy(replace(SPECS[s.policy.model_name], seed=WARMUP_SEEDS[0]), project_root() / "runs" / ".cache")
    engine = load_engine("transformers", str(base), None, s.policy)
    problems = load_problems(s.data.dataset_name, s.data.dataset_split, PROBLEMS)
    options = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": s.train.max_completion_length, "seed": s.train.seed}
    drawn = draw_completions(engine, problems, s.train.num_generations, **options)
    answers = dict(zip(problems["id"], problems["answer"], strict=True))
    texts, golds = drawn["text"].tolist(), [answers[problem] for problem in drawn["problem_id"]]
    scores = torch.tensor([function(completions=texts, answer=golds) for function in reward_functions()])
    pairs = mine_pairs(scores.sum(dim=0), s.train.num_generations, s.train.reward_margin)
    logps = torch.tensor((drawn["logprob"] / drawn["tokens"].clip(lower=1)).to_numpy())
    wins = net_pull(logps, pairs, torch.ones(len(pairs.chosen), dtype=logps.dtype))
    common = {"group": [row // s.train.num_generations for row in range(len(drawn))], "correct": (scores[0] > 0).int()}
    unit = 2 * len(pairs.chosen)
    frames = []
    for beta in BETAS:
        weights = preference_weights(logps, pairs, beta) * unit / beta
        columns = common | {"wins_minus_losses": wins.int(), "weight": weights}
        frames.append(pd.DataFrame(columns).assign(beta=beta))
    table = pd.concat(frames, ignore_index=True)[["beta", "group", "correct", "wins_minus_losses", "weight"]]
    path = project_root() / "data" / "results" / "identity.csv"
    atomic_write(path, lambda part: table.to_csv(part, index=False, float_format="%.6g"))
    for beta, part in table.groupby("beta"):
        print(f"β = {beta:g}: correlation {part['weight'].corr(part['wins_minus_losses']):.6f}")


if __name__ == "__main__":
    main()
