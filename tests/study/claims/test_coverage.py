"""Coverage against brute force over the choice of samples."""

from itertools import combinations

import pandas as pd
import pytest

from amir_grpo import metrics
from amir_grpo.study.claims import coverage


def test_patterns_by_brute_force_over_the_choice_of_samples():
    counts = {"base": [1, 0, 3], "grpo": [2, 3, 1], "amir_grpo": [0, 2, 2]}
    correct = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "benchmark": "b", "problem": p, "correct": c, "samples": 3, "greedy": 0}
            for arm, column in counts.items()
            for seed in (0, 1)
            for p, c in enumerate(column)
        ]
    )
    table = (
        coverage.coverage_table({"correct": correct}, ks=(1, 2))
        .set_index(["k", "base", "grpo", "amir_grpo"])
        .sort_index()
    )
    for k in (1, 2):
        found = dict.fromkeys(metrics.PATTERNS, 0.0)
        for problem in range(3):
            choices = [
                [any(s < counts[arm][problem] for s in chosen) for chosen in combinations(range(3), k)]
                for arm in counts
            ]
            for a in choices[0]:
                for b in choices[1]:
                    for c in choices[2]:
                        found[(int(a), int(b), int(c))] += 100 / 3 / len(choices[0]) ** 3
        assert table.loc[k, "percent"].to_dict() == pytest.approx(found)
