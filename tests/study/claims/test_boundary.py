"""The decision boundary on a made-up study."""

import pytest

from amir_grpo.study.claims import boundary


def test_boundary_is_paired_with_grpo_at_the_same_step(study):
    table = boundary.boundary_table(study)
    last = table[(table["step"] == 100) & (table["quantity"] == "margin")].set_index("arm")
    assert last.loc["amir_grpo", "gain"] == pytest.approx(0.2, abs=0.02)
    assert last.loc["share-0.3", "gain_high"] < 0
    assert last.loc["grpo", "gain"] == 0
    assert set(table["problems"]) == {12}
