"""Kept runs are read back, compared run by run, and said as they are."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from amir_grpo.study.claims.table import claims_table
from amir_grpo.study.finding import _SAID, _clause, claim_lines, finding, verdict_rows
from amir_grpo.study.gains import gain, gain_table, level_table, outcomes, power_table
from amir_grpo.study.inference import Comparison, compare
from amir_grpo.study.kept_runs import keep_run, read_run
from amir_grpo.study.plan import judge_alone, read_plan
from amir_grpo.study.results import Studies, complete_arms, load_study, studies_in
from tests.study.made_up import PROBLEMS, kept_run, made_up_study

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


def test_a_gain_is_that_of_the_trained_lengths_paired_by_run_and_problem():
    study = made_up_study({"clean/grpo": 0.5, "clean/two-step-grpo": 1.0})
    layout = {}
    for arm in ("grpo", "two-step-grpo"):
        part = study.tables["problems"].query("arm == @arm and benchmark != 'chain8'")
        layout[arm] = (part["correct"] / 8).to_numpy().reshape(6, 1, 2 * PROBLEMS)
    expected = compare(layout["two-step-grpo"], layout["grpo"])
    found = gain(study, "clean/two-step-grpo", "clean/grpo")
    assert found.estimate == pytest.approx(100 * expected.estimate)
    assert found.interval() == pytest.approx([100 * end for end in expected.interval()])
    assert (found.bases, found.runs, found.problems) == (6, 6, 2 * PROBLEMS)


def test_runs_that_one_arm_lacks_are_left_out():
    study = made_up_study({"clean/grpo": 0.5, "clean/published": 0.5})
    study.tables["problems"] = study.tables["problems"].query("not (arm == 'published' and seed == 2)")
    assert gain(study, "clean/published", "clean/grpo").runs == 5


def test_arms_without_a_run_in_common_are_not_compared():
    study = made_up_study({"clean/grpo": 0.5, "clean/two-step-grpo": 0.5})
    study.runs.loc[study.runs["arm"] == "grpo", "seed"] += 50
    assert not study.has("clean/two-step-grpo", "clean/grpo")
    assert outcomes(study, PLAN)[0].why == "It has no complete runs yet."


def test_the_pilot_is_read_test_by_test_and_the_confirmation_in_sequence():
    arms = {"clean/grpo": 0.5, "clean/two-step-grpo": 0.5, "nuisance/grpo": 0.0, "nuisance/mixture-0.6": 1.0}
    pilot = {o.test.name: o for o in outcomes(made_up_study(arms), PLAN)}
    assert pilot["nuisance"].verdict == "supported"
    assert pilot["published"].why == "It has no complete runs yet."
    confirmation = {o.test.name: o for o in outcomes(made_up_study(arms, "confirmation"), PLAN)}
    assert confirmation["nuisance"].verdict == "undecided", "the gate was not shown"


def test_the_confirmation_is_read_arm_by_arm_once_all_runs_of_an_arm_are_there():
    wanted = max(len(PLAN.run_grid("confirmation", f"clean/{arm}")) for arm in ("grpo", "two-step-grpo"))
    seeds = {"bases": 6, "seeds_per_base": wanted // 6}
    whole = made_up_study({"clean/base": -1, "clean/grpo": 0.5, "clean/two-step-grpo": 0.9}, "confirmation", **seeds)
    assert set(complete_arms(whole, PLAN).runs["path"]) == {"clean/base", "clean/grpo", "clean/two-step-grpo"}
    late = (whole.runs["arm"] == "two-step-grpo") & (whole.runs["seed"] >= 5)  # the plan gives it six or more
    begun = complete_arms(replace(whole, runs=whole.runs[~late]), PLAN)
    assert set(begun.runs["path"]) == {"clean/base", "clean/grpo"}
    assert begun.part("problems", "clean/two-step-grpo").empty
    assert outcomes(begun, PLAN)[0].why == "It has no complete runs yet."
    bases = whole.runs["arm"] == "base"
    assert complete_arms(replace(whole, runs=whole.runs[bases]), PLAN).runs.empty


def test_two_arms_are_compared_in_the_first_study_that_has_both():
    pilot = made_up_study({"clean/grpo": 0.5, "clean/published": 0.9, "clean/lr-x2": 0.9})
    confirmation = made_up_study({"clean/grpo": 0.5, "clean/published": 0.5}, "confirmation")
    pairs = [("clean/published", "clean/grpo"), ("clean/lr-x2", "clean/grpo")]
    table = gain_table(Studies((confirmation, pilot)), pairs, PLAN, ks=(1,))
    assert table["study"].to_list() == ["confirmation"] * 2 + ["pilot"] * 2
    assert table["gain"].to_list()[0] == gain(confirmation, *pairs[0]).estimate
    assert table["gain"].to_list()[2] == gain(pilot, *pairs[1]).estimate


def test_tables_leave_out_what_has_no_runs():
    study = made_up_study({"clean/grpo": 0.5, "clean/lr-x2": 0.9})
    table = gain_table(Studies((study,)), [("clean/lr-x2", "clean/grpo"), ("clean/published", "clean/grpo")], PLAN)
    assert table[["new", "benchmarks", "quantity"]].to_numpy().tolist() == [
        ["lr-x2", group, quantity]
        for group in ("trained lengths", "longer problems")
        for quantity in ("pass@1", "pass@4")
    ]
    assert (table["p_holm"] >= table["p_value"]).all()
    assert level_table(Studies((study,)))["runs"].to_list() == [6, 6]


def test_power_follows_from_the_spread_of_the_runs():
    study = made_up_study({"clean/grpo": 0.5, "clean/two-step-grpo": 0.9})
    row = power_table(study, PLAN).set_index("test").loc["two-step"]
    new, old = (study.solved(f"clean/{arm}") for arm in ("two-step-grpo", "grpo"))
    gains = [100 * (new[run].mean() - old[run].mean()) for run in old]
    assert row["spread"] == pytest.approx(np.std(gains, ddof=1))
    planned = min(len(PLAN.run_grid("confirmation", f"clean/{arm}")) for arm in ("grpo", "two-step-grpo"))
    assert row["planned"] == planned
    assert row["detectable_seeds"] == pytest.approx(row["detectable_bases"] / np.sqrt(planned / 6))


@pytest.mark.parametrize(
    ("test", "gain", "error", "said"),
    [
        ("published", 0.05, 0.1, "is equivalent, within ±0.5 points, to GRPO (+0.05 [−0.15, +0.25])"),
        ("published", 0.4, 0.3, "is not shown to be equivalent to GRPO (+0.40 [−0.37, +1.17])"),
        ("published", 2.0, 0.1, "differs by more than 0.5 points from GRPO (+2.00 [+1.74, +2.26])"),
        ("clean", 0.0, 0.1, "the update gains less than 0.5 points over GRPO (0.00 [−0.20, +0.20])"),
        ("clean", 0.6, 0.15, "is not shown to gain less than 0.5 points over GRPO (+0.60 [+0.30, +0.90])"),
        ("clean", 2.0, 0.1, "the update gains more than 0.5 points over GRPO (+2.00 [+1.74, +2.26])"),
        ("nuisance", 0.0, 0.5, "the update is not distinguishable from GRPO (0.00 [−1.29, +1.29])"),
        ("nuisance", 0.0, 0.1, "the update is equivalent, within ±0.5 points, to GRPO (0.00 [−0.20, +0.20])"),
        ("nuisance", -2.0, 0.1, "the update falls behind GRPO (−2.00 [−2.26, −1.74])"),
    ],
)  # fmt: skip
def test_a_clause_gives_the_verdict_and_the_interval_that_it_rests_on(test, gain, error, said):
    """t quantiles with 5 degrees of freedom: 2.571 at 95 %, 2.015 at 90 %."""
    comparison = Comparison(gain, error, 5, bases=6, runs=6, problems=800)
    (outcome,) = (o for o in judge_alone(PLAN, {test: comparison}) if o.test.name == test)
    assert said in _clause(outcome, PLAN, *_SAID[test])


def test_a_gain_that_grpo_has_too_is_said_to_be_no_merit_of_the_pairs():
    arms = {"outliers/grpo": 1.0, "outliers/dr_grpo": 0.0, "outliers/mixture-0.6": 1.0}
    assert "the update beats Dr. GRPO" in (text := finding(Studies((made_up_study(arms),)), PLAN))
    assert ", as GRPO itself does (+" in text
    own = made_up_study(arms | {"outliers/grpo": 0.0})
    assert "as GRPO itself does" not in finding(Studies((own,)), PLAN)


def test_a_gain_of_grpo_that_only_the_pilot_has_is_not_shown_as_the_confirmations():
    sure = {"clean/grpo": 0.0, "clean/two-step-grpo": 1.0, "clean/published": 0.0}  # the tests before it are shown
    arms = {"outliers/dr_grpo": 0.0, "outliers/mixture-0.6": 1.0}
    pilot = made_up_study(arms | {"outliers/grpo": 1.0})
    itself = gain(pilot, "outliers/grpo", "outliers/dr_grpo").estimate
    for own, said in (({}, " in the pilot"), ({"outliers/grpo": 1.0}, "")):
        confirmation = made_up_study(sure | arms | own, "confirmation")
        text = finding(Studies((confirmation, pilot)), replace(PLAN, margin=2.0))
        assert f", as GRPO itself does{said} (+{itself:.2f})" in text


def test_a_test_that_the_confirmation_lacks_is_quoted_from_the_pilot():
    pilot = made_up_study(
        {"clean/grpo": 0.5, "clean/published": 0.5, "nuisance/grpo": 0.0, "nuisance/mixture-0.6": 1.0}
    )
    confirmation = made_up_study(
        {"clean/grpo": 0.5, "clean/two-step-grpo": 1.0, "clean/published": 0.5}, "confirmation"
    )
    text = finding(Studies((confirmation, pilot)), PLAN)
    assert "frozen tests" in text
    assert "the update beats GRPO (" in text
    assert text.count("in the pilot, not confirmed yet") >= 1


def test_a_confirmation_without_a_complete_arm_is_not_read(tmp_path):
    few = [
        kept_run("clean/grpo", 1000, 0, 0.5, study="confirmation"),
        kept_run("clean/base", 1000, 0, -1, study="confirmation"),
    ]
    for run in few:
        keep_run(tmp_path / f"{run.record['arm']}.zip", run)
    with pytest.raises(ValueError, match="has all its runs yet, and nothing is read before"):
        studies_in(tmp_path, PLAN)


def test_the_finding_says_what_the_tests_say():
    published = {"logit": 0.5, "share": 0.003}
    arms = {"clean/grpo": 0.5, "clean/published": published, "nuisance/grpo": 0.0, "nuisance/mixture-0.6": 1.0}
    study = made_up_study(arms)
    text = finding(Studies((study,)), PLAN)
    assert "exploratory pilot, which confirms nothing" in text
    assert "- **Noise below the margin**: the preference term at 60 % of the update beats GRPO" in text
    assert "the update has not been compared with Dr. GRPO yet" in text
    worse = made_up_study(arms | {"nuisance/mixture-0.6": -1.0})
    assert "- **Noise below the margin**: the preference term at 60 % of the update falls behind GRPO" in finding(
        Studies((worse,)), PLAN
    )
    clean = made_up_study({"clean/grpo": 0.5, "clean/mixture-0.6": 0.4})
    assert "the preference term at 60 % of the update gains less than 0.5 points over GRPO" in finding(
        Studies((clean,)), PLAN
    )
    nothing = claims_table(Studies((made_up_study({"clean/grpo": 0.5}),)), PLAN)
    assert verdict_rows(nothing).empty
    assert "| Less length bias | no runs yet | no runs yet |" in claim_lines(nothing)
    assert len(claim_lines(claims_table(Studies((study,)), PLAN))) == 2 + 5


def test_a_test_after_the_end_of_the_sequence_is_said_to_be_untested():
    equal = {"clean/grpo": 0.5, "clean/two-step-grpo": 0.5, "clean/published": 0.5}  # the positive control fails
    study = made_up_study(equal, "confirmation")
    text = finding(Studies((study, study)), PLAN)
    assert "The positive control was not shown: no null counts." in text
    assert "published has no verdict against GRPO, since an earlier test had ended the sequence (" in text
