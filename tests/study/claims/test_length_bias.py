"""Length bias by hand."""

import pytest

from amir_grpo.study.claims import length_bias


def test_dilution_by_hand(study):
    (row,) = length_bias.dilution_table(study, {"amir_grpo": "grpo"}).to_dict("records")
    assert row["dilution"] == pytest.approx(0.45, abs=0.01)
    assert row["against_dilution"] == pytest.approx(0.40, abs=0.01)
    assert row["gain"] == pytest.approx(0.05, abs=0.01)
    pressure = length_bias.pressure_table(study, ["grpo"])
    assert pressure.set_index("tokens")["relative"].to_dict() == pytest.approx(
        {16: 1.0, 20: 1.0, 40: 0.4, 52: 0.4}, abs=0.01
    )
