"""Exploratory comparisons beside the tests of the plan."""

from dataclasses import replace

import numpy as np
import pytest

from amir_grpo.study.exploration import exploratory_gains
from amir_grpo.study.gains import outcomes, test_arms
from amir_grpo.study.plan import read_plan
from amir_grpo.study.results import TRAINED, Studies
from tests.study.made_up import made_up_study

PLAN = replace(read_plan(), margin=2.0)  # points: the made-up runs are few
ARMS = {
    "clean/grpo": 0.0,
    "clean/two-step-grpo": 1.0,
    "clean/published": 0.0,
    "outliers/grpo": 1.0,
    "outliers/dr_grpo": 0.0,
    "outliers/dr_grpo-clipped": 0.5,  # below the preference term, so that the sequence ends here
    "outliers/mixture-0.6": 1.0,
    "nuisance/grpo": 0.0,
    "nuisance/mixture-0.6": 1.0,
}


def _p_values(study):
    table = exploratory_gains(Studies((study,)), PLAN)
    trained = table[table["benchmarks"] == TRAINED]
    return {(f"{r.regime}/{r.new}", f"{r.regime}/{r.old}"): (r.p_holm, r.p_value) for r in trained.itertuples()}


@pytest.mark.parametrize("name", ["pilot", "confirmation"])
def test_a_test_of_the_confirmation_has_one_p_value_wherever_it_is_shown(name):
    study = made_up_study(ARMS, name)
    shown = _p_values(study)
    judged = {test_arms(outcome.test): outcome for outcome in outcomes(study, PLAN) if outcome.comparison}
    both = set(shown) & set(judged)
    assert {("outliers/mixture-0.6", "outliers/dr_grpo"), ("nuisance/mixture-0.6", "nuisance/grpo")} <= both
    for pair, (shown_p, plain) in shown.items():
        if name == "confirmation" and pair in judged:
            outcome = judged[pair]
            assert shown_p == outcome.comparison.p_value if outcome.tested else np.isnan(shown_p)
        elif name == "confirmation" and pair[::-1] in judged:
            assert shown_p == plain
        else:
            assert shown_p > plain or shown_p == 1.0
    assert judged["outliers/mixture-0.6", "outliers/dr_grpo"].tested
    assert judged["nuisance/mixture-0.6", "nuisance/grpo"].tested == (name == "pilot")
