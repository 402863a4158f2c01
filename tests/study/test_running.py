"""The runs behind the claims: arms that can be opened, and a small evidence made, killed, continued and kept."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from amir_grpo import cli
from amir_grpo.runs.verify import first_difference
from amir_grpo.settings import settings_of
from amir_grpo.study import running as evidence

# one worker of xdist, so that what the module shares is made once
pytestmark = pytest.mark.xdist_group("evidence")

SMALL = ["grpo", "amir_grpo", "two-step-dr_grpo-amir"]


@pytest.mark.parametrize("arm", evidence.ARMS.values(), ids=lambda arm: arm.name)
def test_every_arm_is_possible_and_compared_with_one_that_exists(arm):
    settings = settings_of(evidence.PROFILE, arm.changes)
    assert arm.method in ("grpo", "amir_grpo")
    rollout = settings.per_device_train_batch_size * (settings.steps_per_generation or 1)
    assert rollout == 128, "every arm sees as many completions a rollout"
    rollouts = settings.max_steps * settings.per_device_train_batch_size / 128
    assert rollouts == 100, "and as many rollouts"
    if arm.against:
        other = evidence.ARMS[arm.against]
        assert other.seeds >= arm.seeds
        same = (
            set(arm.changes.items() ^ other.changes.items()) if arm.name.startswith(("two-step", "group")) else set()
        )
        assert not same, "a variant differs from itself without the preference by the method alone"


def test_the_main_comparison_has_five_seeds_and_the_rest_three():
    seeds = {name: arm.seeds for name, arm in evidence.ARMS.items()}
    assert seeds["grpo"] == seeds["amir_grpo"] == seeds["linear"] == 5
    assert min(seeds.values()) == 3


def test_runs_begin_with_the_main_comparison_and_go_on_seed_by_seed():
    order = [(arm.name, seed) for arm, seed in evidence.runs()]
    assert len(order) == len(set(order)) == sum(arm.seeds for arm in evidence.ARMS.values())
    assert {name for name, _ in order[:15]} == {"grpo", "amir_grpo", "linear"}
    assert [seed for _, seed in order[25:]] == sorted(seed for _, seed in order[25:])


def test_arms_bring_along_what_they_are_compared_with():
    names = [arm.name for arm in evidence.with_what_they_are_compared_to(["two-step-gspo-amir", "linear"])]
    assert names == ["grpo", "amir_grpo", "linear", "two-step-gspo", "two-step-gspo-amir"]


@pytest.fixture(scope="module")
def made(runs, tiny_settings, tmp_path_factory):
    """A small evidence of four arms and two seeds, beside the cache that holds the tiny base policy."""
    folder = tmp_path_factory.mktemp("evidence")
    shutil.copytree(runs / ".cache", folder / ".cache")
    arms = [dataclasses.replace(evidence.ARMS[name], seeds=2) for name in sorted(SMALL)]
    changes = {k: v for k, v in tiny_settings.items() if k not in ("benchmarks", "per_device_train_batch_size")}
    changes |= {
        "benchmarks": ["chain3", "chain6"],
        "save_steps": 1,
        "sandbox_warmup_steps": tiny_settings["sandbox_warmup_steps"],
    }
    options = (folder, arms, changes, 1)
    return options, evidence.reproduce(*options)


def test_tables_hold_every_run(made):
    (_, arms, _, _), tables = made
    assert set(tables) == {"correct", "training", "pressure", "margins", "weights", "settings", "benchmarks"}
    correct = tables["correct"]
    assert set(correct["arm"]) == {*SMALL, "base"}
    assert (correct.groupby(["arm", "seed", "benchmark"]).size() == 4).all()
    assert len(correct.groupby(["arm", "seed"])) == 2 * 4
    assert (correct["samples"] == 8).all()
    assert correct["correct"].between(0, 8).all()
    assert set(tables["training"].groupby("arm")["step"].max()) == {2}
    assert np.allclose(tables["pressure"].groupby(["arm", "seed"])["completions"].sum() % 64, 0)
    assert list(tables["settings"]["arm"]) == [arm.name for arm in arms]
    weights = tables["weights"]
    assert len(weights) == 2 * 2 * 2 * 3
    assert weights.loc[weights["beta"] == 0.2, "wins_minus_losses"].dropna().gt(0.9).all()


def test_what_is_complete_is_not_repeated_and_what_is_lost_is_made_again(made, monkeypatch):
    options, tables = made
    folder = options[0]
    lost = folder / "grpo.seed1" / "samples" / "grpo" / "chain3.parquet"
    lost.unlink()
    (folder / "amir_grpo.seed0" / "scores" / "shared.parquet").unlink()
    done = []
    plain = evidence._each

    def each(what, do, jobs, pool):
        done.extend((what, job[1].name, job[2]) for job in jobs)
        plain(what, do, jobs, pool)

    monkeypatch.setattr(evidence, "_each", each)
    again = evidence.reproduce(*options)
    assert done == [("evaluating", "grpo", 1), ("scoring", "amir_grpo", 0)]
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table)


def test_the_number_of_workers_changes_no_number(made, tmp_path):
    (folder, arms, changes, _), _ = made
    shutil.copytree(folder / ".cache", tmp_path / ".cache")
    only = [dataclasses.replace(next(arm for arm in arms if arm.name == "grpo"), seeds=2)]
    evidence.reproduce(tmp_path, only, changes, workers=2)
    for name in ("grpo.seed0", "grpo.seed1"):
        assert first_difference(folder / name, tmp_path / name) is None


def test_kept_tables_come_back_and_say_where_they_are_from(made, tmp_path):
    (folder, *_), tables = made
    evidence.keep(tables, folder, tmp_path)
    kept = evidence.load(tmp_path)
    assert set(kept) == set(tables)
    for name in ("correct", "training", "margins"):
        pd.testing.assert_frame_equal(
            kept[name].astype({c: object for c in ("arm", "benchmark") if c in kept[name]}),
            tables[name],
            check_dtype=False,
            rtol=1e-5,
        )
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert record["runs"] == 6
    assert record["started"] <= record["ended"]
    assert record["seeds"] == [0, 1]
    assert record["settings"]["max_steps"] == 2
    assert "loss_type" not in record["settings"], "the arms differ in it"
    assert {name for name, *_ in record["problems"]} == {"sandbox-train", "chain3", "chain6"}


def test_missing_evidence_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="make evidence"):
        evidence.load(tmp_path)


def test_an_unknown_arm_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(["evidence", "--arms", "lineal", "--folder", str(tmp_path / "e")])
    assert caught.value.code == 2
    assert "Did you mean 'linear'" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
