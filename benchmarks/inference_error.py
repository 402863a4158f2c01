"""How often does `study.inference` reject a true null, and how often do its intervals hold the truth? Simulation.

    python benchmarks/inference_error.py

One experiment: the differences of two arms on the same runs (base policies x seeds) and problems, whose mean gain over all
base policies, seeds and problems is 0. Their parts are in proportion as the kept evidence shows them: of the variance of
a run's mean gain, 38 % are noise of the evaluation and the rest is the seed's; problems add to the variance of the mean gain
1 % of a run's, or 25 % in "large"; base policies add nothing, or as much as a run. Sizes do not matter, since the test
does not depend on the unit. Shapes: normal; heavy-tailed (Student's t, 4 degrees of freedom); skewed by 1 or 2
(gamma), where a training fails now and then. "pass rates" draws 8 samples a problem of logistic policies.

Written are, in percent with the simulation's own standard error: rejections at 5, 1 and 0.1 %, coverage of the 95 and 90 %
intervals, and how often an arm whose gain is the margin is found equivalent. Beside the test in use, over base policies,
stand three that were not taken: over all runs; over base policies only where a first F-test finds that they differ
(p < 0.25); and Satterthwaite's degrees of freedom for the sum of the variances of base policies and problems. With 3 runs
`study.inference` gives no p-value; the rows show what it would be. Writes data/results/inference_error.csv, in 90 s.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from amir_grpo.runs.run import project_root
from amir_grpo.study.inference import MIN_UNITS, crossed_error
from amir_grpo.system.files import atomic_write

EXPERIMENTS, BLOCK, PROBLEMS = 100_000, 5_000, 100
LEVELS = (0.05, 0.01, 0.001)
EVALUATION = 0.38  # of the variance of a run's mean gain
PROBLEM = {"as measured": 0.01, "large": 0.25}  # variance of the mean gain by problems, in units of a run's
MARGIN = 4.0  # in standard errors of the mean: an arm whose gain is the margin may be found equivalent in 5 %
DESIGNS = {"3 runs": (1, 3), "6 runs": (1, 6), "24 runs": (1, 24), "6 x 1": (6, 1), "6 x 4": (6, 4), "12 x 2": (12, 2)}
SHAPES = ("normal", "heavy tails", "skewed by 1", "skewed by 2")


def effects(generator: np.random.Generator, shape: str, size: tuple[int, ...]) -> np.ndarray:
    """Random effects of mean 0 and variance 1."""
    if shape == "heavy tails":
        return generator.standard_t(4, size) / np.sqrt(2)
    if shape.startswith("skewed"):
        concentration = {"skewed by 1": 4.0, "skewed by 2": 1.0}[shape]
        return (generator.standard_gamma(concentration, size) - concentration) / np.sqrt(concentration)
    return generator.standard_normal(size)


def differences(
    generator: np.random.Generator, shape: str, bases: int, seeds: int, base_variance: float, problem: str
) -> np.ndarray:
    """One block of experiments, (experiments, bases, seeds, problems); the true gain is 0."""
    if shape == "pass rates":
        return _pass_rates(generator, bases, seeds, base_variance)
    found = np.sqrt(EVALUATION * PROBLEMS) * generator.standard_normal((BLOCK, bases, seeds, PROBLEMS), dtype="f4")
    found += np.sqrt(1 - EVALUATION) * effects(generator, shape, (BLOCK, bases, seeds, 1)).astype("f4")
    found += np.sqrt(base_variance) * effects(generator, shape, (BLOCK, bases, 1, 1)).astype("f4")
    problems = np.sqrt(PROBLEM[problem] * PROBLEMS)
    return found + problems * generator.standard_normal((BLOCK, 1, 1, PROBLEMS), dtype="f4")


def _pass_rates(generator: np.random.Generator, bases: int, seeds: int, base_variance: float) -> np.ndarray:
    """Of two arms alike: log-odds from the problem, the base policy, the seed and what the seed changes on a problem."""
    problems, base = generator.normal(0.5, 2, (BLOCK, 1, 1, PROBLEMS)), generator.normal(0, 0.3, (BLOCK, bases, 1, 1))
    arms = []
    for _ in range(2):
        logits = problems + base + np.sqrt(base_variance) * generator.normal(0, 0.15, (BLOCK, bases, 1, 1))
        logits = logits + generator.normal(0, 0.15, (BLOCK, bases, seeds, 1))
        logits = logits + generator.normal(0, 0.5, (BLOCK, bases, seeds, PROBLEMS))
        arms.append(generator.binomial(8, 1 / (1 + np.exp(-logits))) / 8)
    return arms[0] - arms[1]


def statistics(difference: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Mean, standard error and degrees of freedom of each experiment, by test."""
    _, bases, seeds, _ = difference.shape
    units = difference.mean(axis=2) if bases > 1 else difference[:, 0]
    mean, error = crossed_error(units)
    freedom = units.shape[1] - 1
    found = {"in use": (mean, error, np.full(len(mean), freedom))}
    of_units = units.mean(axis=-1).var(axis=-1, ddof=1) / units.shape[1]
    found["Satterthwaite"] = (mean, error, freedom * (error**2 / of_units) ** 2)
    if bases > 1 and seeds > 1:
        runs = difference.reshape(len(difference), bases * seeds, -1)
        _, of_runs = crossed_error(runs)
        found["all runs"] = (mean, of_runs, np.full(len(mean), bases * seeds - 1))
        by_run = difference.mean(axis=-1)
        between = seeds * by_run.mean(axis=2).var(axis=1, ddof=1)
        within = by_run.var(axis=2, ddof=1).mean(axis=1)
        differ = between / within > stats.f.ppf(0.75, bases - 1, bases * (seeds - 1))
        freedom = np.where(differ, bases - 1, bases * seeds - 1)
        found["first F-test"] = (mean, np.where(differ, error, of_runs), freedom)
    return found


def errors(shape: str, bases: int, seeds: int, base_variance: float, problem: str, experiments: int) -> list[dict]:
    """One row a test: shares of the experiments, in percent, with the standard errors of the simulation."""
    generator = np.random.default_rng(7)
    blocks = [
        statistics(differences(generator, shape, bases, seeds, base_variance, problem))
        for _ in range(experiments // BLOCK)
    ]
    rows = []
    for test in blocks[0]:
        mean, error, freedom = (np.concatenate(part) for part in zip(*(block[test] for block in blocks), strict=True))
        p_values = 2 * stats.t.sf(np.abs(mean) / error, freedom)
        margin = MARGIN * mean.std()
        at_margin = stats.t.cdf(mean / error, freedom)  # the estimate is mean + margin
        at_minus_margin = stats.t.sf((mean + 2 * margin) / error, freedom)
        shares = {f"rejects_{100 * level:g}": p_values < level for level in LEVELS}
        shares |= {f"covers_{100 * (1 - level):g}": p_values >= level for level in (0.05, 0.1)}
        shares["equivalent_at_margin"] = np.maximum(at_margin, at_minus_margin) < 0.05
        row = {"test": test}
        for name, hits in shares.items():
            share = hits.mean()
            row |= {
                name: 100 * share,
                f"{name}_error": 100 * np.sqrt(max(share, 1 / hits.size) * (1 - share) / hits.size),
            }
        rows.append(row)
    return rows


def main() -> None:
    """Entry point."""
    scenarios = [
        (design, "normal", base, "as measured") for design in DESIGNS for base in ((0, 1) if " x " in design else (0,))
    ]
    scenarios += [(design, "normal", 0, "large") for design in ("6 runs", "6 x 4")]
    scenarios += [(design, shape, 1, "as measured") for design in ("6 x 1", "6 x 4") for shape in SHAPES[1:]]
    scenarios += [(design, shape, 0, "as measured") for design in ("3 runs", "6 runs") for shape in SHAPES[1:]]
    scenarios += [(design, "pass rates", 1, "as measured") for design in ("6 x 1", "6 x 4")]
    rows = []
    for design, shape, base_variance, problem in scenarios:
        bases, seeds = DESIGNS[design]
        experiments = EXPERIMENTS // 5 if shape == "pass rates" else EXPERIMENTS
        for row in errors(shape, bases, seeds, base_variance, problem, experiments):
            given = (bases if bases > 1 else seeds) >= MIN_UNITS
            scenario = {"design": design, "shape": shape, "base_variance": base_variance, "problems": problem}
            rows.append(scenario | {"p_value_given": given} | row | {"experiments": experiments})
            print({key: rows[-1][key] for key in ("design", "shape", "test", "rejects_5", "rejects_0.1")}, flush=True)
    table = pd.DataFrame(rows).round(3)
    path = project_root() / "data" / "results" / "inference_error.csv"
    atomic_write(path, lambda part: table.to_csv(part, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
