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
    assert colours == [comparison_figures.SIGNIFICANT, style.NEUTRAL, comparison_figures.SIGNIFICANT]
    assert [line.get_xdata()[0] for line in points(axes)] == [2.31, -0.02, 52.0]
    texts = [text.get_text() for text in axes.texts]
    assert {"clean", "nuisance", "no runs yet"} <= set(texts)
    assert {"+2.31 [+0.56, +4.07]  supported", "−0.02 [−0.30, +0.26]  equivalent"} <= set(texts)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["two steps − GRPO", "published − GRPO"]
    assert [tuple(line.get_xdata()) for line in points(axes, "|")] == [(-0.9, 0.9), (-0.6, 0.6)]
    assert inside(figure)


def widths(axes):
    """How wide each interval is drawn, as a share of the axis."""
    ends = [line.get_segments()[0][:, 0] for line in axes.collections if hasattr(line, "get_segments")]
    places = [axes.transAxes.inverted().transform(axes.transData.transform([(x, 0) for x in pair])) for pair in ends]
    return [place[1, 0] - place[0, 0] for place in places]


def test_a_gain_far_out_does_not_squeeze_the_small_intervals(tests):
    figure = comparison_figures.comparison_figure(tests, margin=0.5)
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert widths(axes)[1] > 0.1, "±0.28 beside 52"
    assert "logarithmic" in figure.get_supxlabel()
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "−50",
        "−10",
        "−2",
        "−0.5",
        "0",
        "0.5",
        "2",
        "10",
        "50",
    ]
    near = comparison_figures.comparison_figure(tests.iloc[[1]], margin=0.5)
    assert near.axes[0].get_xscale() == "linear"
    assert "logarithmic" not in near.get_supxlabel()


def test_what_could_have_been_detected_is_drawn_wherever_it_lies_on_the_axis(tests):
    """Whatever the order of the rows: also where it is further out than all that is drawn before."""
    table = tests.assign(detectable=[0.9, 5.0, np.nan, 99.0]).iloc[[1, 0, 3]]
    (axes,) = comparison_figures.comparison_figure(table, margin=0.5).axes
    assert [tuple(line.get_xdata()) for line in points(axes, "|")] == [(-5.0, 5.0), (-0.9, 0.9)]
    assert axes.get_xlim()[1] < 99


def test_comparisons_without_a_regime_or_a_verdict(tests):
    table = tests.head(2).drop(columns=["regime", "verdict", "detectable"])
    figure = comparison_figures.comparison_figure(table)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["two steps − GRPO", "published − GRPO"]
    assert inside(figure)


def test_what_an_arm_solves_alone_stands_above_what_grpo_does_with_the_interval_of_the_difference():
    table = pd.DataFrame({"about": ["AMIR-GRPO", "AMIR-GRPO, 60 %"], "only_new": [3.0, 4.0], "null": [2.5, 4.25]})
    table = table.assign(gain=[0.5, -0.25], gain_low=[-0.2, -1.0], gain_high=[1.2, 0.5])
    figure = comparison_figures.alone_figure(table, "Finding", 0.5, "Bars: what is solved.")
    bars, gains = figure.axes
    assert [bar.get_width() for bar in bars.patches] == [3.0, 2.5, 4.0, 4.25]
    places = {label.get_text(): label.get_position()[1] for label in bars.get_yticklabels()}
    assert places["AMIR-GRPO"] < places["AMIR-GRPO, 60 %"]
    assert [tuple(lines.get_segments()[0][:, 0]) for lines in gains.collections] == [(-0.2, 1.2), (-1.0, 0.5)]
    assert {text.get_text() for text in gains.texts} == {"+0.50 [−0.20, +1.20]", "−0.25 [−1.00, +0.50]"}
    assert "±0.5 points" in figure.get_supxlabel()
    assert inside(figure)
    coloured = comparison_figures.alone_figure(table.assign(p=[0.01, 0.2]), "Finding", 0.5, "Bars.").axes[1]
    assert [to_hex(line.get_color()) for line in points(coloured)] == [comparison_figures.SIGNIFICANT, style.NEUTRAL]
    of_one_run = table.assign(gain_low=np.nan, gain_high=np.nan)
    assert inside(comparison_figures.alone_figure(of_one_run, "Finding", 0.5, "Bars."))


def test_share_bars_fill_0_to_100_percent():
    shares = pd.DataFrame({"about": ["published", "60 %"], "share": [0.0025, 0.6], "residual_share": [0.0005, 0.2]})
    figure = study_figures.share_bars_figure(shares, 5.0, "Finding")
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
