"""A made-up study whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from amir_grpo.study.claims import variants
from amir_grpo.study.tables import LONGER, TRAINED

SEEDS, PROBLEMS, N = 4, 40, 8
ARMS = {  # arm -> (compared with, logit of success, logit on the longer chains)
    "base": (None, -1.0, -3.0),
    "grpo": (None, 1.0, -3.0),
    "amir_grpo": ("grpo", 2.5, -3.0),
    "linear": ("amir_grpo", 2.5, -3.0),
    "share-0.3": ("grpo", -0.5, -3.0),
    "share-0.3-linear": ("grpo", -0.5, -3.0),
    **dict.fromkeys(variants.VARIANTS, (None, 0.0, -3.0)),
    **{f"{name}-amir": (name, 0.0, -3.0) for name in variants.VARIANTS},
}


@pytest.fixture(scope="module")
def study():
    generator = np.random.default_rng(0)
    hardness = {b: generator.normal(0, 1, PROBLEMS) for b in ("chain3", "chain4", "chain5", "chain6")}
    correct, training, pressure, margins = [], [], [], []
    for arm, (_, logit, longer) in ARMS.items():
        for seed in range(SEEDS):
            for benchmark, hard in hardness.items():
                chance = 1 / (1 + np.exp(-((longer if benchmark == "chain6" else logit) + hard)))
                correct.append(
                    pd.DataFrame(
                        {
                            "arm": arm,
                            "seed": seed,
                            "benchmark": benchmark,
                            "problem": range(PROBLEMS),
                            "correct": generator.binomial(N, chance),
                            "samples": N,
                            "greedy": (chance > 0.5).astype(int),
                        }
                    )
                )
            for step in (25, 50, 100):
                training.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "step": step,
                        "group_size": 8,
                        "completions": 128,
                        "pairs": np.nan if "amir" not in arm and "share" not in arm else 16 * 12.0 + seed,
                        "share": 0.003 + 0.0001 * seed,
                        "reward": 1.0,
                        "tokens_right": 20.0,
                        "tokens_wrong": 30.0 + seed,
                    }
                )
                drift = {"grpo": 0.3, "amir_grpo": 0.5, "share-0.3": 0.1}
                if arm in drift:
                    for problem in range(12):
                        value = drift[arm] * step / 100 + generator.normal(0, 0.02)
                        row = {"arm": arm, "seed": seed, "step": step, "benchmark": "chain3", "problem": problem}
                        margins.append(row | {"margin": value, "accuracy": 0.5 + value / 2})
            for tokens, weight in ((16, -1.0), (20, -1.0), (40, -0.5 if "amir" in arm else -0.4), (52, -0.4)):
                row = {"arm": arm, "seed": seed, "correct": 0, "tokens": tokens, "length": tokens + 1.5}
                pressure.append(
                    row
                    | {"completions": 10, "token_weight": weight + (tokens > 20) * 0.01 * (generator.random() - 0.5)}
                )
    settings = [
        {"arm": arm, "about": arm, "method": "", "against": against or "", "seeds": SEEDS, "changes": "{}"}
        for arm, (against, *_) in ARMS.items()
        if arm != "base"
    ]
    weights = [
        {"arm": "grpo", "seed": 0, "policy": when, "beta": beta, "wins_minus_losses": 1 - beta / 100}
        for when in ("before", "after")
        for beta in (0.2, 1.0, 10.0)
    ]
    return {
        "correct": pd.concat(correct, ignore_index=True),
        "training": pd.DataFrame(training),
        "pressure": pd.DataFrame(pressure),
        "margins": pd.DataFrame(margins),
        "settings": pd.DataFrame(settings),
        "weights": pd.DataFrame(weights),
        "benchmarks": pd.DataFrame(
            {"benchmark": list(hardness), "group": [TRAINED] * 3 + [LONGER], "model": "sandbox"}
        ),
    }
