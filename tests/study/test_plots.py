"""The figures of the study: what is drawn is what the tables hold, within the edges of the figure."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from amir_grpo.results.style import NEUTRAL
from amir_grpo.study import plots
from tests.results.test_figures import inside


def points(axes, marker="o"):
    return [line for line in axes.lines if line.get_marker() == marker]


@pytest.fixture
def gains():
    columns = ["heading", "about", "gain", "gain_low", "gain_high", "gain_inner_low", "gain_inner_high", "verdict"]
    rows = [
        ("clean", "two steps − GRPO", 0.71, 0.56, 1.07, 0.6, 1.0, "supported"),
        ("clean", "published − GRPO", -0.02, -0.30, 0.26, -0.2, 0.2, "equivalent"),
        ("nuisance", "60 % − GRPO", 0.3, -0.3, 0.9, -0.1, 0.8, "undecided"),
        ("nuisance", "60 % − Dr. GRPO", 12.0, 8.0, 16.0, 9.0, 15.0, "lower"),
    ]
    return pd.DataFrame(rows, columns=columns).assign(detectable=[0.9, 0.6, 5.0, np.nan])


def test_a_gain_has_the_colour_of_its_verdict(gains):
    (axes,) = plots.gains_figure(gains[:3], "Finding").axes
    colours = [to_hex(line.get_color()) for line in points(axes)]
    assert colours == [plots.VERDICTS["supported"], plots.VERDICTS["equivalent"], NEUTRAL]
    assert [line.get_xdata()[0] for line in points(axes)] == [0.71, -0.02, 0.3]
    bars = [tuple(lines.get_segments()[0][:, 0]) for lines in axes.collections]
    assert bars[:2] == [(0.56, 1.07), (0.6, 1.0)]
    texts = {text.get_text() for text in axes.texts}
    assert {"clean", "nuisance", "+0.71 [+0.56, +1.07]  supported"} <= texts
    assert [tuple(line.get_xdata()) for line in points(axes, "|")] == [(-0.9, 0.9), (-0.6, 0.6)]


def test_a_gain_far_out_has_a_panel_of_its_own_scale_and_every_axis_is_linear(gains):
    figure = plots.gains_figure(gains, "Finding")
    whole, near = figure.axes
    assert {panel.get_xscale() for panel in figure.axes} == {"linear"}
    assert whole.get_xlim()[1] > 16
    assert near.get_xlim() == (-1.5, 1.5)
    assert len(points(whole)) == 4
    assert (len(points(near)), len(points(near, ">"))) == (3, 1), "what lies outside is an arrow at the edge"
    assert inside(figure)


def test_an_arm_without_runs_says_so(gains):
    empty = gains.assign(gain=np.nan, verdict="not tested")
    figure = plots.gains_figure(empty.drop(columns=["heading", "detectable"]), "Finding")
    assert [text.get_text() for text in figure.axes[-1].texts] == ["no runs yet"] * 4
    assert inside(figure)


def test_share_bars_fill_0_to_100_percent():
    shares = pd.DataFrame({"about": ["published", "60 %"], "share": [0.25, 60], "residual_share": [0.05, 20]})
    figure = plots.shares_figure(shares, 5.0, "Finding")
    (axes,) = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0.05, 0.2, 99.75, 20, 40, 40])
    assert {"0.25 %, new 0.05 %", "60 %, new 20 %"} == {text.get_text() for text in axes.texts}
    assert inside(figure)


def test_weights_that_are_wins_minus_losses_lie_on_the_line():
    wins = np.arange(-7, 8)
    weights = pd.concat(
        pd.DataFrame({"beta": beta, "wins_minus_losses": wins, "weight": 3 * beta * wins}) for beta in (0.2, 10)
    )
    for axes in plots.identity_figure(weights).axes:
        line, dots = axes.lines
        np.testing.assert_allclose(np.interp(dots.get_xdata(), line.get_xdata(), line.get_ydata()), dots.get_ydata())
        assert "r = 1.0000" in axes.get_title()


def test_lines_and_points_are_what_the_tables_hold():
    curves = {"about": "GRPO", "temperature": [0.5, 1.0], "entropy": [0.1, 0.2], "margin": 0.3, "accuracy": 0.9}
    figure = plots.entropy_figure(pd.DataFrame(curves), "Finding")
    assert figure.axes[1].lines[0].get_ydata().tolist() == [90.0, 90.0]
    assert inside(figure)
    cosines = pd.DataFrame({"regime": "clean", "arm": "grpo", "pass_rate": [0.2, 0.4], "cosine": [0.5, 0.7]})
    figure = plots.cosines_figure(cosines, cosines, "Finding")
    assert [line.get_linestyle() for line in figure.axes[0].lines] == ["-", "None"]
    assert inside(figure)
