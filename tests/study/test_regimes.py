"""The arms, and the order in which a study makes its runs."""

import pytest

from amir_grpo.settings import settings_of
from amir_grpo.study.plan import read_plan
from amir_grpo.study.regimes import ARMS
from amir_grpo.study.schedule import PROFILE, arms_in_order, runs_in_order, single_run

PLAN = read_plan()


@pytest.mark.parametrize("path", ARMS)
def test_every_arm_has_valid_settings_and_the_prompts_of_all_others(path):
    settings = settings_of(PROFILE, ARMS[path].changes)
    assert settings.train.prompts_per_rollout == 16
    steps_of_a_rollout = settings.train.micro_batches // settings.train.gradient_accumulation_steps
    assert settings.train.max_steps == settings_of(PROFILE).train.max_steps * steps_of_a_rollout


def test_the_plan_names_arms_that_there_are():
    assert {f"{regime.name}/{arm}" for regime in PLAN.regimes for arm in regime.arms} <= set(ARMS)


def test_the_published_arm_has_the_published_settings():
    settings = settings_of(PROFILE, ARMS["clean/published"].changes)
    published = settings_of("paper-qwen3b")
    for name in ("lambda_reg", "beta_dpo", "reward_margin", "lambda_schedule", "pair_mining", "ref_free", "pair_loss"):
        assert settings.flat()[name] == published.flat()[name], name


def test_a_study_that_is_stopped_holds_complete_tests_first(tmp_path):
    runs = runs_in_order(PLAN, "confirmation", tmp_path)
    trainings = sum(sum(regime.arms.values()) for regime in PLAN.regimes)
    assert len({(run.arm.path, run.seed) for run in runs}) == len(runs) == PLAN.base_policies + trainings
    paths = [run.arm.path for run in runs]
    ends = []
    for test in PLAN.tests:
        arms = {f"{test.regime}/{test.new}", f"{test.regime}/{test.old}"}
        ends.append(max(place for place, path in enumerate(paths) if path in arms))
    assert ends == sorted(ends), "a later test is complete before an earlier one"
    assert paths[: PLAN.base_policies] == ["clean/base"] * PLAN.base_policies
    gate = runs[PLAN.base_policies :][: 2 * PLAN.base_policies]
    assert {run.arm.path for run in gate} == {"clean/grpo", "clean/two-step-grpo"}
    assert sorted(run.base for run in gate) == sorted(
        [*range(PLAN.base_policies)] * 2
    )  # every base policy once per arm


def test_arms_of_one_seed_train_the_same_base_policy_with_the_same_seed_but_for_the_second_draw(tmp_path):
    by_seed = {}
    for run in runs_in_order(PLAN, "pilot", tmp_path):
        by_seed.setdefault(run.seed, set()).add((run.base, run.training_seed))
    for seed, found in by_seed.items():
        assert found == {(seed % PLAN.base_policies, seed), (seed % PLAN.base_policies, seed + 100)}


def test_the_confirmation_has_no_exploratory_arm():
    confirmed = {path for block in arms_in_order(PLAN, "confirmation") for path in block}
    assert confirmed == {f"{r.name}/{arm}" for r in PLAN.regimes for arm in r.arms} | {"clean/base"}
    assert {path for block in arms_in_order(PLAN, "pilot") for path in block} == set(ARMS)


def test_some_arms_and_seeds_bring_their_base_policies(tmp_path):
    runs = runs_in_order(PLAN, "pilot", tmp_path, ["nuisance/grpo"], [2, 4])
    assert [(run.arm.path, run.seed) for run in runs] == [
        ("clean/base", 2),
        ("clean/base", 4),
        ("nuisance/grpo", 2),
        ("nuisance/grpo", 4),
    ]
    run = single_run(PLAN, "pilot", tmp_path, "nuisance/grpo/4")
    assert (run.arm.path, run.seed, run.base) == ("nuisance/grpo", 4, 4)
    run = single_run(PLAN, "pilot", tmp_path, "clean/base/4")
    assert (run.arm.path, run.seed, run.base) == ("clean/base", 4, 4)


def test_an_unknown_arm_or_seed_or_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'clean/grpo'"):
        runs_in_order(PLAN, "pilot", tmp_path, ["clean/gpro"])
    with pytest.raises(ValueError, match="seed '99'"):
        runs_in_order(PLAN, "pilot", tmp_path, (), [99])
    with pytest.raises(ValueError, match="as in clean/grpo/0"):
        single_run(PLAN, "pilot", tmp_path, "clean/grpo")
    with pytest.raises(ValueError, match="base policies' are those of its first seeds"):
        single_run(PLAN, "confirmation", tmp_path, "clean/base/1012")
