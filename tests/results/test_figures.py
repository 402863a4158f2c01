import re
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from amir_grpo.results import figures, formatting, style, tables, training_figures
from amir_grpo.results.published import published_table


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def table():
    """A main table of one model with a gain, a loss, and a cell without a value."""
    return pd.DataFrame(
        {
            "benchmark": ["easy", "easy", "hard"],
            "k": [1, 2, 1],
            "model": "tiny",
            "grpo": [40.0, 55.0, np.nan],
            "amir_grpo": [42.5, 54.0, np.nan],
            "gain": [2.5, -1.0, np.nan],
            "gain_low": [-1.5, -3.0, np.nan],
            "gain_high": [6.5, 1.0, np.nan],
            "problems": [60, 60, 50],
            "samples": 8,
        }
    )


@pytest.fixture
def margins():
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"reading": reading, "method": method, "benchmark": "b", "problem_id": number, "margin": value}
            for reading in ("own", "shared")
            for method, mean in (("grpo", 0.01), ("amir_grpo", 0.02))
            for number, value in enumerate(generator.normal(mean, 0.02, 40))
        ]
    )


def texts(axes):
    return {text.get_text(): text for text in axes.texts}


def inside(figure):
    """Whether everything drawn lies within the figure (half a point of grace)."""
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    drawn, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
    return min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.007


def test_main_figure_draws_every_published_cell_with_its_sign():
    published = tables.with_gain(published_table("table1"))
    figure = figures.main_figure(published, title="Published")
    axes = figure.axes[0]
    gains = [text for text in axes.texts if re.fullmatch(r"\([+−][\d.]+\)", text.get_text())]
    assert len(gains) == 63
    assert len([text for text in axes.texts if "→" in text.get_text() and "pass@k" not in text.get_text()]) == 63
    colours = [to_hex(text.get_color()) for text in gains]
    assert (colours.count(formatting.GAIN_COLOUR), colours.count(formatting.LOSS_COLOUR)) == (57, 6)
    for text in gains:
        assert (text.get_text()[1] == "+") == (to_hex(text.get_color()) == formatting.GAIN_COLOUR)
    assert {"27.3 → 39.2", "(+11.9)", "GSM8K", "Gemma-3-4B-it", "Published"} <= set(texts(axes))
    assert not any("[" in text for text in texts(axes))
    assert inside(figure)


def test_main_figure_draws_intervals_and_missing_cells(table):
    figure = figures.main_figure(table)
    found = texts(figure.axes[0])
    assert {"40.0 → 42.5", "(+2.5)", "[−1.5, +6.5]", "(−1.0)", "[−3.0, +1.0]", "–"} <= set(found)
    assert to_hex(found["(+2.5)"].get_color()) == formatting.GAIN_COLOUR
    assert to_hex(found["(−1.0)"].get_color()) == formatting.LOSS_COLOUR
    assert found["[−1.5, +6.5]"].get_fontsize() < found["40.0 → 42.5"].get_fontsize()
    # hard has no k = 2: an empty cell, not a shifted one
    assert sum(text.get_text() == "–" for text in figure.axes[0].texts) == 2
    assert any("50 to 60 problems" in text for text in found)
    assert inside(figure)


def bar_widths(axes):
    return {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axes.patches}


def test_coverage_figure_draws_eight_bars_and_the_dots_that_explain_them():
    published = published_table("coverage")
    figure = figures.coverage_figure(published, title="Published")
    dots, bars = figure.axes
    assert bar_widths(bars) == dict(enumerate(published["percent"]))
    assert {"70.6 %  (24)", "8.8 %  (3)", "11.8 %  (4)"} <= set(texts(bars))
    filled = np.zeros((8, 3), dtype=int)
    for line in dots.lines:
        if line.get_marker() == "o":
            row, column = int(line.get_ydata()[0]), int(line.get_xdata()[0])
            filled[row, column] = line.get_markerfacecolor() != "white"
    assert filled.tolist() == published[["base", "grpo", "amir_grpo"]].to_numpy().tolist()
    assert "34" in bars.get_xlabel()
    assert inside(figure)


def test_coverage_figure_with_nothing_solved():
    table = published_table("coverage").assign(percent=0.0, problems=0)
    table.attrs["problems"] = 12
    figure = figures.coverage_figure(table)
    assert "no policy solves any problem" in texts(figure.axes[1])
    assert "0 of 12" in figure.axes[1].get_xlabel()
    assert inside(figure)


def test_margin_figure_draws_a_panel_a_reading_and_a_violin_a_method(margins):
    figure = figures.margin_figure(margins, tables.margin_summary(margins), title="Margins")
    assert [axes.get_title() for axes in figure.axes] == list(figures.READINGS.values())
    for axes, reading in zip(figure.axes, ("own", "shared"), strict=True):
        assert (
            len(
                [
                    c
                    for c in axes.collections
                    if c.__class__.__name__ in ("FillBetweenPolyCollection", "PolyCollection")
                ]
            )
            == 2
        )
        assert [t.get_text() for t in axes.get_xticklabels()] == ["AMIR-GRPO\n40 problems", "GRPO\n40 problems"]
        part = margins[margins["reading"] == reading].groupby("method")["margin"].mean()
        assert {f"{part[method]:+.3f}".replace("-", "−") for method in part.index} <= set(texts(axes))
        assert any(np.all(np.asarray(line.get_ydata()) == 0) and line.get_linestyle() != "-" for line in axes.lines)
        whiskers = [c for c in axes.collections if c.__class__.__name__ == "LineCollection"]
        assert len(whiskers) == 2
    assert inside(figure)


@pytest.mark.parametrize("points", [0, 1, 2])
def test_margin_figure_shows_few_margins_as_they_are(margins, points):
    own = margins[margins["reading"] == "own"]
    few = pd.concat([own[own["method"] == "grpo"], own[own["method"] == "amir_grpo"].head(points)])
    axes = figures.margin_figure(few, tables.margin_summary(few)).axes[0]
    missing = [text for text in texts(axes) if "no problem has" in text]
    assert len(missing) == (points == 0)
    drawn = [line for line in axes.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in drawn) == points
    assert axes.get_xticklabels()[0].get_text() == f"AMIR-GRPO\n{points} problem{'s' * (points != 1)}"


def test_margin_figure_without_any_margin():
    figure = figures.margin_figure(pd.DataFrame(columns=tables.MARGIN_COLUMNS))
    assert sum("no problem has" in text.get_text() for text in figure.axes[0].texts) == 2


def test_margin_figure_draws_the_published_ranges_without_inventing_a_violin():
    published = published_table("margin").set_index("method")
    figure = figures.margin_figure(published_table("margin"), title="Published")
    axes = figure.axes[0]
    assert not axes.collections
    bars = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.patches]
    expected = [tuple(published.loc[method, ["low", "high"]]) for method in ("amir_grpo", "grpo")]
    np.testing.assert_allclose(bars, expected)
    assert {"+0.016", "+0.006"} <= set(texts(axes))
    assert inside(figure)


@pytest.fixture
def logs():
    step = np.arange(1, 101)
    run = {"step": step, "reward": 0.01 * step, "reward_std": 0.5, "completions": 128}
    return pd.concat([pd.DataFrame({"method": method} | run) for method in ("grpo", "amir_grpo")])


def test_reward_figure_draws_points_block_means_and_bands(logs):
    axes = training_figures.reward_figure(logs, title="Reward").axes[0]
    points = [line for line in axes.lines if line.get_marker() == "."]
    means = {line.get_label(): line for line in axes.lines if line.get_marker() in ("", "None")}
    assert [len(line.get_xdata()) for line in points] == [100, 100]
    assert set(means) == {"GRPO", "AMIR-GRPO"}
    np.testing.assert_allclose(means["GRPO"].get_ydata(), [0.01 * (5 * block + 3) for block in range(20)])
    assert len(axes.collections) == 2
    assert means["GRPO"].get_linestyle() != means["AMIR-GRPO"].get_linestyle()  # told apart in greyscale


@pytest.mark.parametrize("steps", [0, 1, 3, 7])
def test_reward_figure_of_a_short_run(logs, steps):
    figure = training_figures.reward_figure(logs[logs["step"] <= steps])
    assert inside(figure)


def test_block_means_and_their_t_interval():
    middle, mean, half, size = training_figures._block_means(np.arange(1.0, 11.0), np.array([1.0, 2, 3, 4, 5] * 2), 2)
    assert (middle.tolist(), mean.tolist(), size) == ([3.0, 8.0], [3.0, 3.0], 5)
    # t(0.975, 4) = 2.776, standard deviation sqrt(2.5)
    np.testing.assert_allclose(half, 2.7764 * np.sqrt(2.5 / 5), rtol=1e-4)


def test_share_figure_is_logarithmic_and_counts_the_zeros():
    log = pd.DataFrame({"step": range(1, 7), "preference/share": [0.004, 0.005, 0.0, 0.006, np.nan, 0.005]})
    figure = training_figures.share_figure(log, title="Share")
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.004, 0.005, 0.006, 0.005])
    assert {"dashed: median 0.5 %", "1 of 5 steps: share 0 (no pairs)"} <= set(texts(axes))
    assert inside(figure)
    empty = training_figures.share_figure(log.assign(**{"preference/share": 0.0}))
    assert "no step had a preference pair" in texts(empty.axes[0])


def test_save_figure_gives_the_same_bytes_and_leaves_nothing_beside(tmp_path, margins):
    first = style.save_figure(figures.margin_figure(margins, title="Margins"), tmp_path / "a" / "margin")
    again = style.save_figure(figures.margin_figure(margins, title="Margins"), tmp_path / "b" / "margin")
    assert [path.name for path in first] == ["margin.png", "margin.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    same = figures.main_figure(published_table("table1"))
    png, svg = style.save_figure(same, tmp_path / "a" / "main.v1")
    before = png.read_bytes(), svg.read_bytes()
    style.save_figure(same, tmp_path / "a" / "main.v1")
    assert (png.read_bytes(), svg.read_bytes()) == before
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "main.v1.png", "main.v1.svg", "margin.png", "margin.svg",
    ]  # fmt: skip
    text = svg.read_text()
    assert ">27.3 → 39.2</text>" in text  # text stays text
    assert "<dc:date>" not in text


def test_figures_leave_no_global_state(margins, table):
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        figure = figures.margin_figure(margins)
        assert figure.axes[0].get_facecolor() == (1.0, 1.0, 1.0, 1.0)  # a reader's settings change nothing
        figures.main_figure(table)
        assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_reliability_figure_has_a_panel_a_policy_in_the_given_order():
    table = pd.DataFrame(
        {
            "policy": ["mine", "mine", "base"],
            "low": [0.2, 0.9, 0.9],
            "high": [0.3, 1.0, 1.0],
            "confidence": [0.25, 0.95, 0.92],
            "right": [0.2, 1.0, 0.4],
            "right_low": [0.1, 0.9, 0.3],
            "right_high": [0.4, 1.0, 0.6],
            "completions": [10, 1200, 7],
        }
    )
    figure = figures.reliability_figure(table, title="test")
    assert [panel.get_title() for panel in figure.axes] == ["mine (1,210 completions)", "Base (7 completions)"]
    points = figure.axes[0].collections[1].get_offsets()
    assert points.tolist() == [[0.25, 0.2], [0.95, 1.0]]
    assert inside(figure)


def test_reliability_figure_without_a_stated_confidence():
    columns = ["policy", "low", "high", "confidence", "right", "right_low", "right_high", "completions"]
    (panel,) = figures.reliability_figure(pd.DataFrame(columns=columns)).axes
    assert "no completion states" in panel.texts[0].get_text()
