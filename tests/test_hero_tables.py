"""What the top of the README is made of, from runs of a study made up here."""

import numpy as np
import pandas as pd
import pytest

from amir_grpo.study.kept_runs import KeptRun, keep_run
from tools import hero
from tools.readme import findings_lines

PROBLEMS = 40


def write_run(folder, arm, seed, rate, parting=None):
    """A kept run whose rollouts differ from `parting` on; `rate`: share of right completions of 8."""
    draws = np.random.default_rng([seed, int(1000 * rate)])
    problems = pd.DataFrame(
        {"benchmark": "b", "problem": range(PROBLEMS), "correct": draws.binomial(8, rate, PROBLEMS)}
    )
    step = np.arange(1, 11)
    reward = step + (0.5 * (step >= parting) if parting else 0)
    rollouts = pd.DataFrame(
        {"reward": reward, "right": 0.5, "tokens_right": 20.0, "tokens_wrong": np.nan, "share": 0.004}
    )
    record = {"arm": arm, "seed": seed, "base": seed % 6, "settings": {"num_samples": 8}}
    keep_run(folder / f"clean.{arm}.seed{seed}.zip", KeptRun(record, {"problems": problems, "rollouts": rollouts}))


def write_study(folder, seeds):
    folder.mkdir(parents=True)
    for seed in seeds:
        write_run(folder, "base", seed, 0.1)
        write_run(folder, "grpo", seed, 0.5)
        write_run(folder, "published", seed, 0.9, parting=3 + seed % 6)


def write_sandbox(folder):
    folder.mkdir(parents=True)
    log = pd.DataFrame({"method": ["grpo", "amir_grpo"], "step": 1, "reward": 1.0, "reward_std": 1.0})
    log.assign(**{"preference/share": [None, 0.1]}).to_csv(folder / "log.csv", index=False)
    main = {"benchmark": ["b"], "k": 1, "base": 1.0, "grpo": 2.0, "amir_grpo": 3.0, "gain": 1.0, "p_holm": 0.5}
    pd.DataFrame(main).to_csv(folder / "main.csv", index=False)


def test_a_study_is_taken_as_soon_as_it_has_a_pair_from_each_base_policy(tmp_path):
    write_sandbox(tmp_path / "sandbox")
    write_study(tmp_path / "pilot", range(5))
    assert "seed 0" in hero.evidence(tmp_path).scope
    write_run(tmp_path / "pilot", "base", 5, 0.1)
    write_run(tmp_path / "pilot", "grpo", 5, 0.5)
    write_run(tmp_path / "pilot", "published", 5, 0.9, parting=8)
    assert "6 pairs of trainings from 6 base policies; exploratory" in hero.evidence(tmp_path).scope
    write_study(tmp_path / "confirmation", range(12))
    assert "12 pairs of trainings from 6 base policies. " in hero.evidence(tmp_path).scope


def test_the_numbers_are_means_over_the_runs(tmp_path):
    write_study(tmp_path / "pilot", range(6))
    found = hero.evidence(tmp_path)
    runs = {arm: hero._runs(tmp_path / "pilot", name) for arm, name in hero._ARMS.items()}
    means = {arm: np.mean([run.tables["problems"]["correct"].mean() / 8 for run in by_seed.values()])
             for arm, by_seed in runs.items()}  # fmt: skip
    (row,) = found.levels.to_dict("records")
    for arm, mean in means.items():
        assert row[arm] == pytest.approx(100 * mean)
    assert row["gain"] == pytest.approx(100 * (means["amir_grpo"] - means["grpo"]))
    assert row["gain_low"] < row["gain"] < row["gain_high"]
    assert row["p"] < 0.001
    assert found.share == 0.004
    text = " ".join(findings_lines(found).split())
    assert "0.4 % of the update" in text
    # the pairs part at 3, 4, … 8
    assert "both trainings draw the same completions for the first 4 of 10 steps (median of 6 pairs)" in text
    assert "1 is distinguishable from 0" in text
