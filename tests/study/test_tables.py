"""The study's tables: they hold every run, and come back as they were kept."""

import json

import numpy as np
import pandas as pd
import pytest

from amir_grpo.study import tables
from tests.study.conftest import SMALL_STUDY

# one worker of xdist, so that what the tests share is made once
pytestmark = pytest.mark.xdist_group("study")


def test_tables_hold_every_run(small_study):
    (_, arms, _, _), made = small_study
    assert set(made) == {"correct", "training", "pressure", "margins", "weights", "settings", "benchmarks"}
    correct = made["correct"]
    assert set(correct["arm"]) == {*SMALL_STUDY, "base"}
    assert (correct.groupby(["arm", "seed", "benchmark"]).size() == 4).all()
    assert len(correct.groupby(["arm", "seed"])) == 2 * 4
    assert (correct["samples"] == 8).all()
    assert correct["correct"].between(0, 8).all()
    assert set(made["training"].groupby("arm")["step"].max()) == {2}
    assert np.allclose(made["pressure"].groupby(["arm", "seed"])["completions"].sum() % 64, 0)
    assert list(made["settings"]["arm"]) == [arm.name for arm in arms]
    weights = made["weights"]
    assert len(weights) == 2 * 2 * 2 * 3
    assert weights.loc[weights["beta"] == 0.2, "wins_minus_losses"].dropna().gt(0.9).all()


def test_kept_tables_come_back_and_say_where_they_are_from(small_study, tmp_path):
    (folder, *_), made = small_study
    tables.keep(made, folder, tmp_path)
    kept = tables.load(tmp_path)
    assert set(kept) == set(made)
    for name in ("correct", "training", "margins"):
        pd.testing.assert_frame_equal(
            kept[name].astype({c: object for c in ("arm", "benchmark") if c in kept[name]}),
            made[name],
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
        tables.load(tmp_path)
