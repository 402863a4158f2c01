import subprocess
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from PIL import Image

from amir_grpo.results import figures, style, tables
from tests.results.test_tables import samples_from


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def table():
    """A main table with a clear gain, and a loss that is none."""
    return pd.DataFrame(
        {
            "benchmark": ["easy", "easy", "hard"],
            "k": [1, 2, 1],
            "base": [10.0, 20.0, 1.0],
            "grpo": [40.0, 55.0, 2.0],
            "amir_grpo": [42.5, 54.0, 2.0],
            "gain": [2.5, -1.0, 0.0],
            "gain_low": [-1.5, -3.0, -1.0],
            "gain_high": [6.5, 1.0, 1.0],
            "p_holm": [0.01, 0.2, 1.0],
            "problems": [60, 60, 50],
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


@pytest.fixture
def summary(margins):
    means = margins.groupby(["reading", "method"], sort=False)["margin"].mean().rename("mean").reset_index()
    return means.assign(mean_low=means["mean"] - 0.005, mean_high=means["mean"] + 0.005)


def texts(axes):
    return {text.get_text(): text for text in axes.texts}


def inside(figure):
    """Whether everything drawn lies within the figure (half a point of grace)."""
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    drawn, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
    return min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.007


def marks(axes, marker, colour):
    """The x of each point of a marker and colour, in the order drawn."""
    lines = [line for line in axes.lines if line.get_marker() == marker and to_hex(line.get_color()) == colour]
    return [float(line.get_xdata()[0]) for line in lines]


def intervals(axes):
    return [tuple(segment[:, 0]) for lines in axes.collections for segment in lines.get_segments()]


def test_main_figure_draws_every_level_and_gain_pass_at_1_first(table):
    figure = figures.main_figure(table, "Finding")
    levels, gains = figure.axes
    assert marks(levels, "o", style.COLOURS["grpo"]) == [40.0, 2.0, 55.0]
    assert marks(levels, "o", style.COLOURS["amir_grpo"]) == [42.5, 2.0, 54.0]
    assert marks(levels, "|", style.COLOURS["base"]) == [10.0, 1.0, 20.0]
    # a gain has the colour of the method that is ahead, if it is significant, and is grey else
    assert marks(gains, "o", style.COLOURS["amir_grpo"]) == [2.5]
    assert marks(gains, "o", style.NEUTRAL) == [0.0, -1.0]
    assert intervals(gains) == [(-1.5, 6.5), (-1.0, 1.0), (-3.0, 1.0)]
    assert {"+2.5", "0.0", "−1.0"} == set(texts(gains))
    assert [label.get_text() for label in levels.get_yticklabels()] == ["easy", "hard", "easy"]
    found = texts(levels)
    assert found["pass@1"].xy[1] < levels.get_yticks()[1] < found["pass@2"].xy[1]
    assert inside(figure)


def test_pairwise_figure_has_a_panel_for_each_two_and_black_where_it_is_clear():
    counts = {"a": {"base": [0] * 12, "grpo": [4] * 12, "amir_grpo": [4] * 11 + [3]}}
    figure = figures.pairwise_figure(tables.comparison_table(samples_from(counts), ks=(1, 2)), "Finding")
    assert [panel.get_title() for panel in figure.axes] == ["GRPO − Base", "AMIR-GRPO − Base", "AMIR-GRPO − GRPO"]
    colours = [{line.get_color() for line in panel.lines if line.get_marker() == "o"} for panel in figure.axes]
    assert colours == [{"black"}, {"black"}, {style.NEUTRAL}]
    assert inside(figure)


def test_published_figure_has_the_noise_around_each_gain():
    cells = pd.DataFrame(
        {
            "model": ["one", "one", "two", "two"],
            "benchmark": ["a", "b"] * 2,
            "problems": [30, 1319] * 2,
            "gain": [1.0, -2.0, 3.0, 0.5],
            "standard_error": [1.0, 0.5, 1.0, 0.0],
            "p_holm": [0.9, 0.01, 0.02, 1.0],
        }
    )
    figure = figures.published_figure(cells, "Finding")
    one, two = figure.axes
    np.testing.assert_allclose(intervals(one), [(-0.96, 2.96), (-2.98, -1.02)])
    assert (marks(one, "o", style.NEUTRAL), marks(one, "o", style.COLOURS["grpo"])) == ([1.0], [-2.0])
    assert (marks(two, "o", style.COLOURS["amir_grpo"]), marks(two, "o", style.NEUTRAL)) == ([3.0], [0.5])
    assert [label.get_text() for label in one.get_yticklabels()] == ["a (30)", "b (1319)"]
    assert inside(figure)


def test_coverage_figure_faces_what_only_one_method_solves():
    figure = figures.coverage_figure(tables.published_table("coverage"), title="Published")
    (axes,) = figure.axes
    # new and, hatched, what the base policy solves as well: GRPO to the left, AMIR-GRPO to the right
    assert [(bar.get_width(), bool(bar.get_hatch())) for bar in axes.patches] == [
        (0, False),
        (-1, True),
        (3, False),
        (4, True),
    ]
    assert {"only GRPO", "only AMIR-GRPO", "1", "7"} <= set(texts(axes))
    assert "Both methods solve 25 problems; the base policy alone solves 1." in figure.get_supxlabel().replace(
        "\n", " "
    )
    assert inside(figure)
    assert inside(figures.coverage_figure(tables.published_table("coverage").assign(problems=0)))


def test_margin_figure_draws_means_intervals_and_quartiles_on_one_axis(margins, summary):
    figure = figures.margin_figure(margins, summary, title="Margins")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["GRPO (40)", "AMIR-GRPO (40)"] * 2
    for method in ("grpo", "amir_grpo"):
        means = margins[margins["method"] == method].groupby("reading")["margin"].mean()
        np.testing.assert_allclose(marks(axes, "o", style.COLOURS[method]), means)
        assert {f"{mean:+.3f}" for mean in means} <= set(texts(axes))
    expected = []
    for (_, part), row in zip(margins.groupby(["reading", "method"], sort=False), summary.itertuples(), strict=True):
        expected += [tuple(part["margin"].quantile([0.25, 0.75])), (row.mean_low, row.mean_high)]
    np.testing.assert_allclose(intervals(axes), expected)
    assert set(figures.READINGS.values()) <= set(texts(axes))
    assert inside(figure)


def test_save_figure_gives_the_same_bytes_and_leaves_nothing_beside(tmp_path, table):
    first = style.save_figure(figures.main_figure(table), tmp_path / "a" / "main.v1")
    again = style.save_figure(figures.main_figure(table), tmp_path / "b" / "main.v1")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    figure = figures.main_figure(table)
    before = [path.read_bytes() for path in style.save_figure(figure, tmp_path / "a" / "main.v1")]
    assert [path.read_bytes() for path in style.save_figure(figure, tmp_path / "a" / "main.v1")] == before
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["main.v1.png", "main.v1.svg"]
    text = first[1].read_text()
    assert ">pass@1</text>" in text  # text stays text
    assert "<dc:date>" not in text
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout
    with Image.open(first[0]) as picture:
        assert picture.info["Source"] == f"make figures (commit {head.strip() or 'unknown'})"


def test_figures_leave_no_global_state(margins, summary):
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        figure = figures.margin_figure(margins, summary)
        assert figure.axes[0].get_facecolor() == (1.0, 1.0, 1.0, 1.0)  # a reader's settings change nothing
        assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
