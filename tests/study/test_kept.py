"""Kept runs are read back as they were written, and a confirmation arm by arm once an arm has all its runs."""

from dataclasses import replace

import pandas as pd
import pytest

from amir_grpo.study.claims import gain, plan_table
from amir_grpo.study.kept import KeptRun, complete_arms, keep_run, load_study, read_run, studies_in, study_of
from amir_grpo.study.plan import read_plan
from tests.study.made_up import kept_run, made_up_study

PLAN = read_plan()


def test_a_kept_run_is_read_back_and_the_same_results_are_the_same_bytes(tmp_path):
    kept = kept_run("clean/mixture-0.6", 3, 3, 0.5, share=0.6)
    keep_run(tmp_path / "a.zip", kept)
    keep_run(tmp_path / "b.zip", kept)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    read = read_run(tmp_path / "a.zip")
    assert read.record == kept.record
    assert set(read.tables) == set(kept.tables)
    for name, table in kept.tables.items():
        numbers = table.select_dtypes("number")
        pd.testing.assert_frame_equal(read.tables[name][numbers.columns], numbers, check_dtype=False, rtol=1e-4)


def test_what_is_no_run_is_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"a\.zip is not a run's results"):
        load_study(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no results of a study"):
        load_study(tmp_path / "none")


def test_runs_of_two_studies_or_on_other_problems_are_not_mixed():
    first, other = kept_run("clean/grpo", 0, 0, 0.5), kept_run("clean/published", 0, 0, 0.5)
    wrong = KeptRun({**other.record, "study": "confirmation"}, other.tables)
    with pytest.raises(ValueError, match="clean/grpo, seed 0, and clean/published, seed 0, differ in study"):
        study_of([first, wrong])
    turned = KeptRun(other.record, other.tables | {"problems": other.tables["problems"].iloc[::-1]})
    with pytest.raises(ValueError, match="differ in problems"):
        study_of([first, turned])


def test_runs_that_one_arm_lacks_are_left_out():
    study = made_up_study({"clean/grpo": 0.5, "clean/published": 0.5})
    study.tables["problems"] = study.tables["problems"].query("not (arm == 'published' and seed == 2)")
    assert gain(study, "clean/published", "clean/grpo").runs == 5


def test_arms_without_a_run_in_common_are_not_compared():
    study = made_up_study({"clean/grpo": 0.5, "clean/two-step-grpo": 0.5})
    study.runs.loc[study.runs["arm"] == "grpo", "seed"] += 50
    assert not study.has("clean/two-step-grpo", "clean/grpo")
    assert plan_table(study, PLAN)["why"][0] == "It has no complete runs yet."


def test_the_confirmation_is_read_arm_by_arm_once_all_runs_of_an_arm_are_there(tmp_path):
    wanted = max(len(PLAN.run_grid("confirmation", f"clean/{arm}")) for arm in ("grpo", "two-step-grpo"))
    seeds = {"bases": 6, "seeds_per_base": wanted // 6}
    whole = made_up_study({"clean/base": -1, "clean/grpo": 0.5, "clean/two-step-grpo": 0.9}, "confirmation", **seeds)
    assert set(complete_arms(whole, PLAN).runs["path"]) == {"clean/base", "clean/grpo", "clean/two-step-grpo"}
    late = (whole.runs["arm"] == "two-step-grpo") & (whole.runs["seed"] >= 5)  # the plan gives it six or more
    begun = complete_arms(replace(whole, runs=whole.runs[~late]), PLAN)
    assert set(begun.runs["path"]) == {"clean/base", "clean/grpo"}
    assert begun.part("problems", "clean/two-step-grpo").empty
    bases = whole.runs["arm"] == "base"
    assert complete_arms(replace(whole, runs=whole.runs[bases]), PLAN).runs.empty
    for path in ("clean/grpo", "clean/base"):
        keep_run(tmp_path / f"{path[6:]}.zip", kept_run(path, 1000, 0, 0.5, study="confirmation"))
    with pytest.raises(ValueError, match="has all its runs yet, and nothing is read before"):
        studies_in(tmp_path, PLAN)
