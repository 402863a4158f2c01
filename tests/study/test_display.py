"""Tables of the study as a notebook shows them."""

import numpy as np
import pandas as pd

from amir_grpo.study.display import HEADS, study_table
from amir_grpo.study.plan import read_plan
from amir_grpo.study.regimes import ARMS, TITLES


def cells(table, digits=2):
    """Heads and rows, as they are written."""
    style = study_table(table, digits)
    return list(style.data.columns), style.data.to_numpy().tolist()


def test_numbers_stand_with_their_intervals_and_p_values_as_everywhere():
    table = pd.DataFrame(
        {"about": ["a − b", "c − d"], "gain": [-8.69, 0.0], "gain_low": [-12.9, np.nan], "gain_high": [-4.5, np.nan]}
    ).assign(p_value=[0.0004, np.nan], detectable=[5.78, -0.001], runs=[6.0, np.nan], why=["", None])
    heads, rows = cells(table)
    assert heads == ["what", "gain [95 % interval]", "p", "detectable", "runs", "why"]
    assert rows == [
        ["a − b", "−8.69 [−12.90, −4.50]", "< 0.001", "5.78", "6", ""],
        ["c − d", "0.00", "–", "0.00", "–", "–"],
    ]


def test_texts_are_escaped():
    page = study_table(pd.DataFrame({"about": ["<b>a</b>"], "p_value": [0.0001]})).to_html()
    assert "&lt;b&gt;a&lt;/b&gt;" in page
    assert "&lt; 0.001" in page


def test_no_name_of_the_code_is_shown():
    paths = [f"{test.regime}/{test.new}" for test in read_plan().tests]
    table = pd.DataFrame(
        {"regime": [path.partition("/")[0] for path in paths], "arm": [p.partition("/")[2] for p in paths]}
    )
    table = table.assign(
        test=[test.name for test in read_plan().tests], about=[ARMS[path].about for path in paths], mixed=0.5
    )
    heads, rows = cells(table)
    assert heads == ["rewards", "what", HEADS["mixed"]]
    assert {row[0] for row in rows} <= set(TITLES.values())
    # what a test says in a sentence of its own has no other name
    assert cells(
        pd.DataFrame({"test": ["pass@1 of GRPO"], "share": [0.25], "share_low": [0.2], "share_high": [0.3]})
    ) == (
        ["test", "share, % [95 % interval]"],
        [["pass@1 of GRPO", "0.25 [0.20, 0.30]"]],
    )


def test_whole_numbers_and_the_strength_of_a_loss_have_no_decimals():
    table = pd.DataFrame({"k": [8], "training": [50.0], "beta": [0.2], "correlation": [0.99989]})
    assert cells(table, 6) == (["k", "training done, %", "β", "correlation"], [["8", "50", "0.2", "0.999890"]])
