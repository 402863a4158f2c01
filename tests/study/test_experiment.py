"""A small study that is made, interrupted, made again and compared with what is kept."""

import shutil
from dataclasses import replace

import pytest

from amir_grpo import cli
from amir_grpo.study import experiment
from amir_grpo.study.arms import ARMS, OWN_STUDIES
from amir_grpo.study.experiment import (
    arms_in_order,
    check_kept,
    compare_with_kept,
    make_runs,
    runs_in_order,
    single_run,
)
from amir_grpo.study.kept import KeptRun, keep_run, load_study, read_run
from amir_grpo.study.plan import PLANS, read_plan
from tests.study.test_plan import UNFROZEN
from tests.test_bad_input import refused

# one worker of xdist, so that what the tests share is made once
pytestmark = pytest.mark.xdist_group("study")
PLAN = read_plan()
SMALL = {"max_steps": 2, "dataset_limit": 40, "eval_limit": 4, "num_samples": 4, "ks": [1, 2], "num_generations": 4}
SMALL |= {"per_device_train_batch_size": 16}
TWO = ["clean/grpo", "clean/mixture-0.6"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two arms with one seed: their runs, and the folder of their results."""
    folder = tmp_path_factory.mktemp("study")
    runs = runs_in_order(PLAN, "pilot", folder, TWO, [1], SMALL)
    make_runs(runs, folder / "pilot", workers=1)
    return runs, folder / "pilot"


def test_a_study_keeps_small_files_and_throws_the_rest_away(made):
    runs, results = made
    assert sorted(path.stem for path in results.glob("*")) == sorted(run.name for run in runs)
    assert all(path.stat().st_size < 20_000 for path in results.glob("*.zip"))
    assert [path.name for path in runs[0].folder.glob("*.seed*")] == ["clean.base.seed1"]
    study = load_study(results)
    assert study.benchmarks == {"trained lengths": ["chain6", "chain7"], "longer problems": ["chain8"]}
    assert set(study.runs["path"]) == {"clean/base", *TWO}
    table = study.part("rollouts", "clean/mixture-0.6")
    assert table["rollout"].to_list() == [1, 2]
    assert table["share"].max() == pytest.approx(0.6, abs=1e-3)  # a rollout without pairs has none
    assert study.part("boundary", "clean/grpo")["step"].unique().tolist() == [1, 2]
    # both arms draw their first rollout from the same policy with the same random numbers
    first = [study.part("rollouts", arm).iloc[0][["right", "mixed", "tokens_wrong"]].to_list() for arm in TWO]
    assert first[0] == first[1]


def test_what_is_kept_is_not_made_again_and_what_is_lost_comes_back_the_same(made, monkeypatch):
    runs, results = made
    again = []
    plain = experiment.make_run
    monkeypatch.setattr(experiment, "make_run", lambda run, base: again.append(run.name) or plain(run, base))
    lost = runs[-1].kept_in(results)
    before = read_run(lost)
    lost.unlink()
    make_runs(runs, results, workers=1)
    assert again == [runs[-1].name]
    after = read_run(lost)
    assert after.record["digests"] == before.record["digests"]
    assert all(after.tables[name].equals(before.tables[name]) for name in before.tables)


def test_a_single_run_is_compared_with_what_is_kept(made, tmp_path):
    _, results = made
    run = single_run(runs_in_order(PLAN, "pilot", tmp_path / "again", TWO, [1], SMALL), "clean/grpo/1")
    assert compare_with_kept(run, results) == []
    assert not run.folder.exists()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(results / "clean.mixture-0.6.seed1.zip", other / "clean.grpo.seed1.zip")
    with pytest.raises(ValueError, match="was made with lambda_schedule='mixture'"):
        compare_with_kept(run, other)
    with pytest.raises(FileNotFoundError, match="Nothing is kept of clean/grpo, seed 1"):
        compare_with_kept(run, tmp_path)


def test_a_run_that_comes_out_otherwise_is_named_and_ends_with_1(made, tmp_path):
    runs, results = made
    kept = read_run(runs[0].kept_in(results))
    digests = kept.record["digests"] | {"completions": "0" * 16}
    keep_run(tmp_path / "clean.base.seed1.zip", KeptRun({**kept.record, "digests": digests}, kept.tables))
    settings = [f"--{name}={value}" for name, value in SMALL.items() if name != "ks"] + ["--ks", "1", "2"]
    command = ["evidence", "--only", "clean/base/1", "--results", str(tmp_path), "--folder", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, *settings])
    assert "clean/base, seed 1: other completions than those that are kept" in str(caught.value)


def test_a_folder_left_by_a_kill_goes_and_a_base_policy_that_changed_is_refused(made, tmp_path):
    runs, results = made
    left = runs[0].folder / runs[1].name
    left.mkdir()
    make_runs(runs, results, workers=1)
    assert not left.exists()
    other = tmp_path / "results"
    shutil.copytree(results, other)
    runs[-1].kept_in(other).unlink()
    kept = read_run(runs[0].kept_in(other))
    digests = kept.record["digests"] | {"completions": "0" * 16}
    keep_run(runs[0].kept_in(other), KeptRun({**kept.record, "digests": digests}, kept.tables))
    with pytest.raises(ValueError, match="is of other completions than clean/base, seed 1 has now"):
        make_runs(runs, other, workers=1)


def test_a_pilot_is_not_read_as_a_confirmation(made, tmp_path):
    runs, results = made
    other = tmp_path / "confirmation"
    shutil.copytree(results, other)
    assert load_study(other).name == "pilot"
    with pytest.raises(ValueError, match="was made with study='pilot', and clean/base has 'confirmation' now"):
        check_kept(replace(runs[0], study="confirmation"), other)


def test_results_of_other_settings_are_not_mixed(made):
    runs, results = made
    longer = runs_in_order(PLAN, "pilot", runs[0].folder, TWO, [1], SMALL | {"max_steps": 3})
    with pytest.raises(ValueError, match="was made with max_steps=2, and clean/base has 3 now"):
        make_runs(longer, results, workers=1)
    check_kept(runs[0], results)


@pytest.mark.parametrize(("profile", "device"), [("sandbox", "cpu"), ("sandbox-large", "auto")])
def test_workers_are_counted_by_gpus_only_where_the_runs_use_them(monkeypatch, tmp_path, profile, device):
    asked = []
    monkeypatch.setattr(experiment, "visible_gpus", lambda device: asked.append(device) or ["0", "1"])
    monkeypatch.setattr(experiment, "run_jobs", lambda *_: None)
    make_runs(runs_in_order(PLAN, "pilot", tmp_path, TWO, [1], profile=profile), tmp_path / "pilot", workers=1)
    assert asked == [device]


def test_a_confirmation_begins_when_its_plan_is_frozen(tmp_path, capsys, monkeypatch):
    (tmp_path / "plan.toml").write_text(UNFROZEN, encoding="utf-8")
    monkeypatch.setitem(PLANS, "confirmation", tmp_path / "plan.toml")
    monkeypatch.setattr(experiment, "make_runs", lambda *_: pytest.fail("begun"))
    places = ("--folder", tmp_path / "runs", "--results", tmp_path / "kept")
    refused(capsys, "evidence", "--study", "confirmation", *places, named=["begins when the plan is frozen"])


def test_there_are_no_more_workers_than_runs(tmp_path, monkeypatch):
    asked = []

    def submitting(workers, gpus):
        asked.append(workers)
        raise InterruptedError

    monkeypatch.setattr(experiment, "submitting", submitting)
    runs = runs_in_order(PLAN, "pilot", tmp_path / "runs", TWO, [1], SMALL)
    for workers in (0, 1, 10**20):
        with pytest.raises(InterruptedError):
            make_runs(runs, tmp_path / "results", workers)
    assert asked == [0, 1, len(runs)]


# --- which runs, in which order


def test_a_study_that_is_stopped_has_the_same_runs_of_every_arm_but_for_one_seed(tmp_path):
    plan = read_plan(PLANS["fresh"])
    runs = runs_in_order(plan, "fresh", tmp_path)
    assert len({(run.arm.path, run.seed) for run in runs}) == len(runs) == 12 + sum(plan.planned.values())
    assert {run.arm.path for run in runs[:12]} == {"clean/base"}
    assert [run.base for run in runs[:12]] == list(range(9, 21))
    for stop in range(len(runs) + 1):
        seeds = [[run.seed for run in runs[12:stop] if run.arm.path == path] for path in plan.planned]
        assert max(map(len, seeds)) - min(map(len, seeds)) <= 1
    settings = runs[-1].settings
    assert (settings.evaluation.eval_seed, settings.evaluation.benchmarks) == (1, ["chain6", "chain7"])
    assert (settings.policy.base_seed, settings.train.seed, settings.evaluation.eval_limit) == (20, 2011, 400)


def test_arms_of_one_seed_train_the_same_base_policy_with_the_same_seed(tmp_path):
    for run in runs_in_order(PLAN, "pilot", tmp_path):
        assert (run.base, run.settings.train.seed) == (run.seed % PLAN.runs.base_policies, run.seed)


def test_the_confirmation_has_no_exploratory_arm():
    assert set(arms_in_order(PLAN, "confirmation")) == set(PLAN.planned)
    explored = {path for path, arm in ARMS.items() if arm.regime not in OWN_STUDIES}
    assert {*arms_in_order(PLAN, "pilot"), "clean/base"} == explored


def test_some_arms_and_seeds_bring_their_base_policies(tmp_path):
    runs = runs_in_order(PLAN, "pilot", tmp_path, ["nuisance/grpo"], [2, 4])
    assert [(run.arm.path, run.seed) for run in runs] == [
        ("clean/base", 2),
        ("clean/base", 4),
        ("nuisance/grpo", 2),
        ("nuisance/grpo", 4),
    ]
    assert single_run(runs, "nuisance/grpo/4") == runs[3]
    assert single_run(runs, "clean/base/4") == runs[1]


def test_an_unknown_arm_or_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'clean/grpo'"):
        runs_in_order(PLAN, "pilot", tmp_path, ["clean/gpro"])
    with pytest.raises(ValueError, match="seed '99'"):
        runs_in_order(PLAN, "pilot", tmp_path, (), [99])
