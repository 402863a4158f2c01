import numpy as np
import pandas as pd
import pytest

from amir_grpo.results import hero
from tests.results.test_figures import inside


@pytest.fixture
def levels():
    return pd.DataFrame(
        {
            "benchmark": ["six", "seven"],
            "base": [10.0, 20.0],
            "grpo": [70.0, 50.0],
            "amir_grpo": [71.0, 49.0],
            "gain": [1.0, -1.0],
            "gain_low": [-0.5, -3.0],
            "gain_high": [2.5, 1.0],
            "p": [0.2, 0.4],
        }
    )


def test_batches_are_the_same_where_every_column_is():
    old = pd.DataFrame({"reward": [1.0, 1.0, 2.0], "tokens": [20.0, np.nan, 24.0]})
    new = pd.DataFrame({"reward": [1.0, 1.0, 2.0], "tokens": [20.0, np.nan, 25.0]})
    twins = hero.same_batches(old, new)
    assert twins["step"].tolist() == [1, 2, 3]
    assert twins["same"].tolist() == [True, True, False]
    with pytest.raises(ValueError, match="3 and 2 steps"):
        hero.same_batches(old, new.head(2))


def twins(*lengths, steps=10):
    step = np.arange(1, steps + 1)
    runs = [pd.DataFrame({"run": run, "step": step, "same": step <= n}) for run, n in enumerate(lengths)]
    return pd.concat(runs, ignore_index=True)


def test_the_first_difference_is_one_past_the_end_where_there_is_none():
    assert hero.first_differences(twins(3, 10, 0)).tolist() == [4, 11, 1]


def test_the_hero_says_what_its_tables_hold(levels):
    figure = hero.hero_figure(0.0025, twins(5, 10, 3), levels, "Scope.")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "1  The added term is tiny",
        "2  Equal for 5 steps (median)",
        "3  They end within 3.0 points",
    ]
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "preference term: 0.25 %" in texts
    assert {"+1.0 [−0.5, +2.5]", "−1.0 [−3.0, +1.0]"} <= set(texts)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array().sum(axis=1), [3, 5, 10])
    assert inside(figure)


def test_what_is_alike_again_after_the_first_difference_is_not_called_the_same(levels):
    pair = twins(5)
    pair.loc[pair["step"] == 8, "same"] = True
    figure = hero.hero_figure(0.0025, pair, levels, "Scope.")
    assert figure.axes[1].images[0].get_array().sum() == 5
    assert figure.axes[1].get_title(loc="left") == "2  Equal for 5 steps"


def test_the_title_of_the_ends_is_the_largest_end_that_is_printed(levels):
    near = levels.assign(gain=0.01, gain_low=[-0.24, -0.17], gain_high=[0.21, 0.13], p=0.9)
    axes = hero.hero_figure(0.0025, twins(5), near, "Scope.").axes[2]
    assert {"0.0 [−0.2, +0.2]", "0.0 [−0.2, +0.1]"} <= {text.get_text() for text in axes.texts}
    assert axes.get_title(loc="left") == "3  They end within 0.2 points"


def test_the_hero_changes_its_titles_with_the_finding(levels):
    figure = hero.hero_figure(0.6, twins(0), levels.assign(p=[0.01, 0.4]), "Scope.")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "1  The added term is 60 %",
        "2  They differ from the start",
        "3  AMIR-GRPO ends higher in 1 of 2",
    ]
