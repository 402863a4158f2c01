"""A small study that is made, loses some of its results and is made again."""

import dataclasses
import shutil

import pandas as pd
import pytest

from amir_grpo import cli
from amir_grpo.runs.verify import first_difference
from amir_grpo.study import running

# one worker of xdist, so that what the tests share is made once
pytestmark = pytest.mark.xdist_group("study")


def test_what_is_complete_is_not_repeated_and_what_is_lost_is_made_again(small_study, monkeypatch):
    options, tables = small_study
    folder = options[0]
    lost = folder / "grpo.seed1" / "samples" / "grpo" / "chain3.parquet"
    lost.unlink()
    (folder / "amir_grpo.seed0" / "scores" / "shared.parquet").unlink()
    done = []
    plain = running.run_jobs

    def noted(what, do, jobs, executor):
        done.extend((what, job.arm.name, job.seed) for job in jobs)
        plain(what, do, jobs, executor)

    monkeypatch.setattr(running, "run_jobs", noted)
    again = running.run_study(*options)
    assert done == [("evaluating", "grpo", 1), ("scoring", "amir_grpo", 0)]
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table)


def test_the_number_of_workers_changes_no_number(small_study, tmp_path):
    (folder, arms, changes, _), _ = small_study
    shutil.copytree(folder / ".cache", tmp_path / ".cache")
    only = [dataclasses.replace(next(arm for arm in arms if arm.name == "grpo"), seeds=2)]
    running.run_study(tmp_path, only, changes, workers=2)
    for name in ("grpo.seed0", "grpo.seed1"):
        assert first_difference(folder / name, tmp_path / name) is None


def test_an_unknown_arm_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(["evidence", "--arms", "lineal", "--folder", str(tmp_path / "e")])
    assert caught.value.code == 2
    assert "Did you mean 'linear'" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
