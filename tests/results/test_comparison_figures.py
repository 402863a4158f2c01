import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from amir_grpo.results import comparison_figures, study_figures, style
from tests.results.test_figures import inside

COLUMNS = ["regime", "about", "gain", "gain_low", "gain_high", "p", "verdict", "detectable"]


@pytest.fixture
def tests():
    return pd.DataFrame(
        [
            ("clean", "two steps − GRPO", 2.31, 0.56, 4.07, 0.02, "supported", 0.9),
            ("clean", "published − GRPO", -0.02, -0.30, 0.26, 0.80, "equivalent", 0.6),
            ("nuisance", "share 0.6 − GRPO", np.nan, np.nan, np.nan, np.nan, None, np.nan),
            ("clean", "GRPO − base policy", 52.0, 48.0, 56.0, 0.0001, "supported", np.nan),
        ],
        columns=COLUMNS,
    )


def points(axes, marker="o"):
    return [line for line in axes.lines if line.get_marker() == marker]


def test_a_gain_is_grey_unless_it_is_significant(tests):
    figure = comparison_figures.comparison_figure(tests, "Finding", margin=0.5)
    (axes,) = figure.axes
    colours = [to_hex(line.get_color()) for line in points(axes)]
    assert colours == [comparison_figures.SIGNIFICANT, style.NEUTRAL]
    assert [line.get_xdata()[0] for line in points(axes)] == [2.31, -0.02]
    texts = [text.get_text() for text in axes.texts]
    assert {"clean", "nuisance", "+2.31  supported", "−0.02  equivalent", "no runs yet", "+52.00  supported"} <= set(
        texts
    )
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["two steps − GRPO", "published − GRPO"]
    assert axes.get_xlim()[1] < 10, "a gain far out squeezes all others"
    assert [tuple(line.get_xdata()) for line in points(axes, "|")] == [(-0.9, 0.9), (-0.6, 0.6)]
    assert inside(figure)


def test_comparisons_without_a_regime_or_a_verdict(tests):
    table = tests.head(2).drop(columns=["regime", "verdict", "detectable"])
    figure = comparison_figures.comparison_figure(table)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["two steps − GRPO", "published − GRPO"]
    assert inside(figure)


def test_facing_bars_are_as_long_as_their_shares():
    table = pd.DataFrame(
        {"old": "another GRPO", "new": ["AMIR-GRPO", "GRPO"], "only_old": [2.0, 2.5], "only_new": [3.0, 2.5]}
    )
    figure = comparison_figures.facing_bars_figure(table)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [-2.0, 3.0, -2.5, 2.5]
    assert {"only another GRPO", "only AMIR-GRPO", "only GRPO", "2.50 %"} <= {t.get_text() for t in axes.texts}
    assert inside(figure)


def test_share_bars_fill_0_to_100_percent():
    shares = pd.DataFrame({"about": ["published", "60 %"], "share": [0.0025, 0.6], "residual_share": [0.0005, 0.2]})
    figure = study_figures.share_bars_figure(shares, "Finding")
    (axes,) = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0.05, 0.2, 99.75, 20, 40, 40])
    assert axes.get_xlim() == (0, 100)
    assert {"0.25 %, new 0.05 %", "60 %, new 20 %"} == {text.get_text() for text in axes.texts}
    assert inside(figure)


def test_weights_that_are_wins_minus_losses_lie_on_the_line():
    wins = np.arange(-7, 8)
    weights = pd.concat(
        pd.DataFrame({"beta": beta, "wins_minus_losses": wins, "weight": 3 * beta * wins}) for beta in (0.2, 10)
    )
    figure = study_figures.identity_figure(weights)
    for axes in figure.axes:
        line, dots = axes.lines
        np.testing.assert_allclose(np.interp(dots.get_xdata(), line.get_xdata(), line.get_ydata()), dots.get_ydata())
        assert "r = 1.0000" in axes.get_title()


def test_the_names_of_lines_that_end_together_do_not_cover_one_another():
    slopes = {"GRPO": 0.0025, "AMIR-GRPO": 0.00251, "Dr. GRPO": 0.001}
    rows = [(about, length, 1 - slope * length) for about, slope in slopes.items() for length in (40, 200)]
    table = pd.DataFrame(rows, columns=["about", "length", "relative"])
    figure = study_figures.length_weight_figure(table)
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])
    assert inside(figure)
