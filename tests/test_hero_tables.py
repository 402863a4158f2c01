"""What the top of the README is made of, from runs of a study made up here."""

import numpy as np
import pandas as pd
import pytest

from amir_grpo.study.kept_runs import KeptRun, keep_run
from amir_grpo.study.plan import read_plan
from amir_grpo.study.results import kept_studies
from tests.study.made_up import kept_run
from tools import hero
from tools.readme import findings_lines

PLAN = read_plan()
LOGITS = {"clean/base": -1.5, "clean/grpo": 0.0, "clean/published": 1.5}


def rollouts(parting=None):
    """A record of ten rollouts that differs from `parting` on."""
    step = np.arange(1, 11)
    reward = step + (0.5 * (step >= parting) if parting else 0)
    return pd.DataFrame(
        {"rollout": step, "reward": reward, "right": 0.5, "tokens_right": 20.0, "tokens_wrong": np.nan, "share": 0.004}
    )


def write_study(folder, study, seeds, first=0):
    """Runs of the base policy (one per base policy), GRPO and AMIR-GRPO as published, which part at steps 3 to 8."""
    made = []
    for path, logit in LOGITS.items():
        for place in seeds if path != "clean/base" else range(6):
            run = kept_run(path, first + place, place % 6, logit, study=study)
            drawn = rollouts(3 + place % 6 if path == "clean/published" else None)
            made.append(KeptRun(run.record, run.tables | ({"rollouts": drawn} if path != "clean/base" else {})))
            name = f"{path.replace('/', '.')}.seed{first + place}.zip"
            folder.mkdir(parents=True, exist_ok=True)
            keep_run(folder / name, made[-1])
    return made


def kept_run_of_the_sandbox():
    log = pd.DataFrame({"method": ["grpo", "amir_grpo"], "step": 1, "reward": 1.0, "reward_std": 1.0})
    log = log.assign(**{"preference/share": [None, 0.1]})
    main = {"benchmark": ["b"], "k": 1, "base": 1.0, "grpo": 2.0, "amir_grpo": 3.0, "gain": 1.0, "p_holm": 0.5}
    return {"main": pd.DataFrame(main), "log": log}


def evidence(folder):
    return hero.evidence(kept_studies(PLAN, folder), kept_run_of_the_sandbox())


def test_a_study_is_taken_as_soon_as_it_has_a_pair_from_each_base_policy(tmp_path):
    write_study(tmp_path / "pilot", "pilot", range(5))
    assert "seed 0" in evidence(tmp_path).scope
    write_study(tmp_path / "pilot", "pilot", range(6))
    assert "6 pairs of trainings from 6 base policies; exploratory" in evidence(tmp_path).scope
    write_study(tmp_path / "confirmation", "confirmation", range(12), first=1000)
    assert "12 pairs of trainings from 6 base policies. " in evidence(tmp_path).scope


def test_the_numbers_are_means_over_the_runs(tmp_path):
    made = write_study(tmp_path / "pilot", "pilot", range(6))
    found = evidence(tmp_path)
    assert list(found.levels["benchmark"]) == ["chain6", "chain7", "chain8"]
    row = found.levels.iloc[1]
    means = {}
    for arm in ("base", "grpo", "published"):
        tables = [run.tables["problems"] for run in made if run.record["arm"] == arm]
        rates = [table.loc[table["benchmark"] == "chain7", "correct"].mean() / 8 for table in tables]
        means[arm] = 100 * np.mean(rates)
    assert row[["base", "grpo", "amir_grpo"]].to_list() == pytest.approx(list(means.values()))
    assert row["gain"] == pytest.approx(means["published"] - means["grpo"])
    assert row["gain_low"] < row["gain"] < row["gain_high"]
    assert row["p"] < 0.001
    assert found.share == 0.004
    text = " ".join(findings_lines(found).split())
    assert "0.4 % of the update" in text
    # the pairs part at 3, 4, … 8
    assert "both trainings draw the same completions for the first 4 of 10 steps (median of 6 pairs)" in text
    assert "3 are distinguishable from 0" in text
