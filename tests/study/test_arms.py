"""The arms of the study: each can be opened, and is compared with one that exists."""

import pytest

from amir_grpo.settings import settings_of
from amir_grpo.study.arms import ARMS, PROFILE, with_references
from amir_grpo.study.jobs import jobs_of


@pytest.mark.parametrize("arm", ARMS.values(), ids=lambda arm: arm.name)
def test_every_arm_is_possible_and_compared_with_one_that_exists(arm):
    settings = settings_of(PROFILE, arm.changes)
    assert arm.method in ("grpo", "amir_grpo")
    rollout = settings.per_device_train_batch_size * (settings.steps_per_generation or 1)
    assert rollout == 128, "every arm sees as many completions a rollout"
    rollouts = settings.max_steps * settings.per_device_train_batch_size / 128
    assert rollouts == 100, "and as many rollouts"
    if arm.against:
        other = ARMS[arm.against]
        assert other.seeds >= arm.seeds
        same = (
            set(arm.changes.items() ^ other.changes.items()) if arm.name.startswith(("two-step", "group")) else set()
        )
        assert not same, "a variant differs from itself without the preference by the method alone"


def test_the_main_comparison_has_five_seeds_and_the_rest_three():
    seeds = {name: arm.seeds for name, arm in ARMS.items()}
    assert seeds["grpo"] == seeds["amir_grpo"] == seeds["linear"] == 5
    assert min(seeds.values()) == 3


def test_runs_begin_with_the_main_comparison_and_go_on_seed_by_seed(tmp_path):
    order = [(job.arm.name, job.seed) for job in jobs_of(tmp_path)]
    assert len(order) == len(set(order)) == sum(arm.seeds for arm in ARMS.values())
    assert {name for name, _ in order[:15]} == {"grpo", "amir_grpo", "linear"}
    assert [seed for _, seed in order[25:]] == sorted(seed for _, seed in order[25:])


def test_arms_bring_along_what_they_are_compared_with():
    names = [arm.name for arm in with_references(["two-step-gspo-amir", "linear"])]
    assert names == ["grpo", "amir_grpo", "linear", "two-step-gspo", "two-step-gspo-amir"]
