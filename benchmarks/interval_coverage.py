"""Does a nominal 95 % interval hold the truth in 95 % of the experiments? Simulation at the sizes of the evidence.

    python benchmarks/interval_coverage.py

One experiment: two methods, several training seeds, the same problems, n = 8 samples a problem. A problem's log-odds of
success are its difficulty, plus what the method gains on it, plus what the seed of that method changes everywhere, plus
what it changes on that problem. The truth is the mean gain over all problems and seeds that could have been drawn, from
a million of them. Difficulty and the size of the effects are those that the kept evidence shows, and larger ones.
Writes data/results/interval_coverage.csv.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from amir_grpo import metrics
from amir_grpo.runs.locations import project_root
from amir_grpo.system.files import atomic_write

EXPERIMENTS, SAMPLES, LARGE = 1_000, 8, 1_000_000
# mean and standard deviation of the problems' log-odds under the older method
DIFFICULTY = {"trained lengths": (3.4, 3.3), "longer problems": (-8.9, 4.6)}
SIZES = {"trained lengths": 600, "longer problems": 200}
# standard deviations, in log-odds: of the gain between problems, of a seed everywhere, of a seed on one problem
EFFECTS = {"as measured": (0.15, 0.05, 0.5), "seeds further apart": (0.15, 0.12, 0.5), "larger": (0.5, 0.25, 0.8)}
GAIN = 0.1


def _chance(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def pass_chance(chance: np.ndarray, k: int) -> np.ndarray:
    """pass@k of a policy that solves each problem with `chance`."""
    return 1 - (1 - chance) ** k


def coverage(difficulty: tuple[float, float], effects: tuple[float, float, float], problems: int, seeds: int, k: int):
    """Share of the experiments whose interval of `metrics.seeds_gain` holds the true gain, and their mean width."""
    generator = np.random.default_rng(seeds * 1000 + k)
    between, of_seed, of_both = effects

    def success(shape, gains, logits):
        seed_effect = generator.normal(0, of_seed, (*shape[:-1], 1))
        return _chance(logits + gains + seed_effect + generator.normal(0, of_both, shape))

    logits, gains = generator.normal(*difficulty, LARGE), generator.normal(GAIN, between, LARGE)
    seed_effects = [generator.normal(0, of_seed, LARGE) + generator.normal(0, of_both, LARGE) for _ in range(2)]
    new, old = _chance(logits + gains + seed_effects[0]), _chance(logits + seed_effects[1])
    truth = float((pass_chance(new, k) - pass_chance(old, k)).mean())
    held, widths = [], []
    for _ in range(EXPERIMENTS):
        logits, gains = generator.normal(*difficulty, problems), generator.normal(GAIN, between, problems)
        solved = [
            metrics.pass_at_k(generator.binomial(SAMPLES, success((seeds, problems), g, logits)), SAMPLES, k)
            for g in (gains, 0.0)
        ]
        interval = metrics.seeds_gain(*solved)
        held.append(interval.low <= truth <= interval.high)
        widths.append(interval.high - interval.low)
    return float(np.mean(held)), 100 * float(np.mean(widths))


def main() -> None:
    """Entry point."""
    rows = []
    for benchmarks, difficulty in DIFFICULTY.items():
        for name, effects in EFFECTS.items():
            for seeds in (3, 5):
                for k in (1, 4):
                    held, width = coverage(difficulty, effects, SIZES[benchmarks], seeds, k)
                    row = {"benchmarks": benchmarks, "effects": name, "problems": SIZES[benchmarks], "seeds": seeds}
                    rows.append(row | {"k": k, "coverage": round(100 * held, 1), "width_points": round(width, 2)})
                    print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    path = project_root() / "data" / "results" / "interval_coverage.csv"
    atomic_write(path, lambda part: table.to_csv(part, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
