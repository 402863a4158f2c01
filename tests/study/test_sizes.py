"""The main comparisons at each size of the policy."""

from dataclasses import replace
from functools import cache

import pytest

from amir_grpo.study.finding import finding
from amir_grpo.study.plan import read_plan
from amir_grpo.study.results import Studies
from amir_grpo.study.sizes import size_table, size_title
from tests.study.made_up import made_up_study

PLAN = replace(read_plan(), margin=3.0)  # points: the made-up runs are few
ARMS = {"clean/grpo": 0.0, "clean/two-step-grpo": 1.0, "clean/published": 0.0, "clean/mixture-0.6": 1.0}


@cache
def _study(arms, name="pilot", model_name="sandbox"):
    return Studies((made_up_study(dict(arms), name, model_name=model_name),))


def _sizes(larger, name="pilot"):
    """A study with `ARMS` at the small size, and one of the larger policy."""
    return [_study(tuple(ARMS.items()), name), _study(tuple(larger.items()), model_name="sandbox-medium")]


def test_each_size_is_compared_with_itself_and_corrected():
    table = size_table(_sizes(ARMS | {"clean/mixture-0.6": -1.0}), PLAN)
    assert table["parameters"].tolist() == ["0.1M"] * 3 + ["1M"] * 3
    verdicts = table.set_index(["parameters", "new"])["verdict"]
    assert verdicts["0.1M", "mixture-0.6"] == "supported"
    assert verdicts["1M", "mixture-0.6"] == "refuted"
    assert (verdicts[:, "two-step-grpo"] == "supported").all()
    study = _sizes(ARMS)[0].main
    levels = [100 * values.mean() for values in study.solved("clean/grpo").values()]
    assert (table["old_range"][:3] == f"{min(levels):.1f} to {max(levels):.1f}").all()
    for _, rows in table.groupby("parameters"):
        smallest = rows["p_value"].idxmin()
        assert rows["p_holm"][smallest] == pytest.approx(len(rows) * rows["p_value"][smallest])


def test_a_test_of_the_confirmation_keeps_its_p_value():
    table = size_table(_sizes(ARMS, "confirmation"), PLAN).set_index(["parameters", "new"])
    assert table["p_holm"]["0.1M", "two-step-grpo"] == table["p_value"]["0.1M", "two-step-grpo"]
    assert table["p_holm"]["1M", "two-step-grpo"] > table["p_value"]["1M", "two-step-grpo"]


def test_the_title_counts_the_comparisons_that_come_out_alike():
    same = size_title(size_table(_sizes(ARMS), PLAN))
    assert same == "3 of 3 comparisons have the same verdict at 0.1M and 1M parameters"
    turned = size_title(size_table(_sizes(ARMS | {"clean/mixture-0.6": -1.0}), PLAN))
    assert turned.startswith("2 of 3 ")
    blind = size_title(size_table(_sizes(ARMS | {"clean/two-step-grpo": 0.0}), PLAN))
    assert blind == "The positive control is not shown at 1M parameters: no null counts there"
    unfinished = size_title(size_table(_sizes({"clean/grpo": 0.0, "clean/two-step-grpo": 1.0}), PLAN))
    assert unfinished.startswith("1 of 1 ")
    assert "yet" in size_title(size_table(_sizes(ARMS)[:1], PLAN))


def test_the_finding_says_the_size_that_was_trained():
    for studies, size in zip(_sizes(ARMS), ("0.1M", "1M"), strict=True):
        assert f"base policies of {size} parameters" in finding(studies, PLAN)
