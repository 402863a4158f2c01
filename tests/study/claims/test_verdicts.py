"""Verdicts on a made-up study whose truth is known."""

import pandas as pd

from amir_grpo.results.verdicts import Verdict
from amir_grpo.runs.locations import kept_results
from amir_grpo.study.claims import verdicts
from amir_grpo.study.tables import load


def test_verdicts_say_what_was_put_into_the_evidence(study):
    table = verdicts.verdicts(study)
    found = table.groupby("claim")["verdict"].agg(list)
    # 12 pairs against 8; 0.3 % of the update
    assert found["1. Richer supervision"] == [Verdict.SUPPORTED, Verdict.REFUTED]
    assert found["2. Sharper decision boundary"] == [Verdict.SUPPORTED] * 2
    assert found["3. Less length bias"] == [Verdict.SUPPORTED] * 2
    assert found["4. Broader coverage"][0] == Verdict.SUPPORTED  # at greater k both solve nearly all
    assert set(found["5. Gains for every variant"]) == {Verdict.UNDECIDED}
    assert table["result"].str.len().min() > 5


def test_a_claim_that_fails_is_not_supported(study):
    swap = {"grpo": "amir_grpo", "amir_grpo": "grpo"}
    turned = {
        name: table.assign(arm=table["arm"].replace(swap)) if name in ("correct", "margins", "pressure") else table
        for name, table in study.items()
    }
    found = verdicts.verdicts(turned).groupby("claim")["verdict"].agg(list)
    assert found["2. Sharper decision boundary"] == [Verdict.REFUTED] * 2
    assert found["3. Less length bias"][0] == Verdict.REFUTED
    assert found["4. Broader coverage"][0] == Verdict.REFUTED


def test_the_kept_verdicts_are_those_of_the_kept_tables():
    study = load(kept_results("evidence"))
    pd.testing.assert_frame_equal(study["verdicts"], verdicts.verdicts(study), check_dtype=False)
