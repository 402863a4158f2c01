import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from amir_grpo.results import figures, findings, style, tables, training_figures
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


def marks(axes, marker, colour):
    """The x of each point of a marker and colour, in the order drawn."""
    lines = [line for line in axes.lines if line.get_marker() == marker and to_hex(line.get_color()) == colour]
    return [float(line.get_xdata()[0]) for line in lines]


def test_main_figure_draws_every_level_and_gain_pass_at_1_first(table):
    figure = figures.main_figure(table.assign(base=[10.0, 20.0, np.nan], p_holm=[0.01, 0.2, np.nan]), "Finding")
    levels, gains = figure.axes
    assert marks(levels, "o", style.COLOURS["grpo"]) == [40.0, 55.0]
    assert marks(levels, "o", style.COLOURS["amir_grpo"]) == [42.5, 54.0]
    assert marks(levels, "|", style.COLOURS["base"]) == [10.0, 20.0]
    # a gain has the colour of the method that is ahead, if it is significant, and is grey else
    assert marks(gains, "o", style.COLOURS["amir_grpo"]) == [2.5]
    assert marks(gains, "o", style.NEUTRAL) == [-1.0]
    intervals = [tuple(segment[:, 0]) for lines in gains.collections for segment in lines.get_segments()]
    assert intervals == [(-1.5, 6.5), (-3.0, 1.0)]
    assert {"+2.5", "−1.0"} == set(texts(gains))
    # hard has no values: a dash in its own place, above the rows of k = 2
    assert [label.get_text() for label in levels.get_yticklabels()] == ["easy", "hard", "easy"]
    found = texts(levels)
    assert found["–"].get_position()[1] == levels.get_yticks()[1]
    assert found["pass@1"].xy[1] < levels.get_yticks()[1] < found["pass@2"].xy[1]
    assert "50 to 60 problems" in figure._supxlabel.get_text()
    assert inside(figure)


def test_main_figure_of_levels_alone(table):
    figure = figures.main_figure(table[["benchmark", "k", "model", "grpo", "amir_grpo"]])
    assert marks(figure.axes[1], "o", style.NEUTRAL) == [2.5, -1.0]
    assert figure._supxlabel is None
    assert inside(figure)


def test_coverage_figure_faces_what_only_one_method_solves():
    published = published_table("coverage")
    figure = figures.coverage_figure(published, title="Published")
    (axes,) = figure.axes
    # new and, hatched, what the base policy solves as well: GRPO to the left, AMIR-GRPO to the right
    assert [(bar.get_width(), bool(bar.get_hatch())) for bar in axes.patches] == [
        (0, False),
        (-1, True),
        (3, False),
        (4, True),
    ]
    assert {"only GRPO", "only AMIR-GRPO", "1", "7"} <= set(texts(axes))
    assert "solves 34 problems: both methods 25 (24 with the base policy), the base policy alone 1" in " ".join(
        figure._supxlabel.get_text().split()
    )
    assert inside(figure)


def test_coverage_figure_with_nothing_solved():
    table = published_table("coverage").assign(percent=0.0, problems=0)
    table.attrs["problems"] = 12
    figure = figures.coverage_figure(table)
    assert figure._supxlabel.get_text() == "No policy solves any problem (0 of 12)."
    assert inside(figure)


def test_margin_figure_draws_means_intervals_and_quartiles_on_one_axis(margins):
    summary = tables.margin_summary(margins)
    figure = figures.margin_figure(margins, summary, title="Margins")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "GRPO (40 problems)",
        "AMIR-GRPO (40 problems)",
    ] * 2
    for method in ("grpo", "amir_grpo"):
        part = margins[margins["method"] == method].groupby("reading")["margin"]
        np.testing.assert_allclose(marks(axes, "o", style.COLOURS[method]), part.mean())
        assert {f"{mean:+.3f}" for mean in part.mean()} <= set(texts(axes))
    drawn = [tuple(segment[:, 0]) for lines in axes.collections for segment in lines.get_segments()]
    expected = []
    for (_, part), ends in zip(margins.groupby(["reading", "method"], sort=False), summary.itertuples(), strict=True):
        expected += [tuple(part["margin"].quantile([0.25, 0.75])), (ends.mean_low, ends.mean_high)]
    np.testing.assert_allclose(drawn, expected)
    assert set(figures.READINGS.values()) <= set(texts(axes))
    assert inside(figure)


@pytest.mark.parametrize("points", [0, 1, 2])
def test_margin_figure_shows_few_margins_as_they_are(margins, points):
    own = margins[margins["reading"] == "own"]
    few = pd.concat([own[own["method"] == "grpo"], own[own["method"] == "amir_grpo"].head(points)])
    axes = figures.margin_figure(few, tables.margin_summary(few)).axes[0]
    missing = [text for text in texts(axes) if "no problem has" in text]
    assert len(missing) == (points == 0)
    assert len(marks(axes, "o", style.COLOURS["amir_grpo"])) == (points > 0)
    assert axes.get_yticklabels()[1].get_text() == f"AMIR-GRPO ({points} problem{'s' * (points != 1)})"


def test_margin_figure_without_any_margin():
    figure = figures.margin_figure(pd.DataFrame(columns=tables.MARGIN_COLUMNS))
    assert sum("no problem has" in text.get_text() for text in figure.axes[0].texts) == 2


def test_margin_figure_draws_the_published_ranges_and_invents_no_distribution():
    published = published_table("margin").set_index("method")
    figure = figures.margin_figure(published_table("margin"), title="Published")
    (axes,) = figure.axes
    drawn = [tuple(segment[:, 0]) for lines in axes.collections for segment in lines.get_segments()]
    np.testing.assert_allclose(
        drawn, [tuple(published.loc[method, ["low", "high"]]) for method in ("grpo", "amir_grpo")]
    )
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
    np.testing.assert_allclose(means["GRPO"].get_ydata(), [0.01 * (10 * block + 5.5) for block in range(10)])
    assert len(axes.collections) == 2
    assert means["GRPO"].get_linestyle() != means["AMIR-GRPO"].get_linestyle()  # told apart in greyscale


@pytest.mark.parametrize("steps", [1, 9, 47, 100])
def test_the_line_of_the_reward_begins_and_ends_with_the_numbers_of_its_title(logs, steps):
    log = logs[(logs["method"] == "grpo") & (logs["step"] <= steps)]
    reused = log.assign(step=log["step"] + 0.5, reward=np.nan)  # steps without a reward of their own
    log = pd.concat([log, reused]).sort_values("step")
    figure = training_figures.reward_figure(log, findings.reward_title(log))
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "GRPO")
    first, last = line.get_ydata()[[0, -1]]
    assert figure.get_suptitle() == f"Reward: GRPO {first:.2f} → {last:.2f}"
    window = tables.reward_ends(log).steps
    assert ("single steps" if window == 1 else f"means of {window} steps") in figure.get_supxlabel()
    assert inside(figure)


@pytest.mark.parametrize("steps", [0, 1, 3, 7, 25])
def test_reward_figure_of_a_short_run(logs, steps):
    figure = training_figures.reward_figure(logs[logs["step"] <= steps])
    assert inside(figure)


def test_block_means_and_their_t_interval():
    middle, mean, half = training_figures._block_means(np.arange(1.0, 11.0), np.array([1.0, 2, 3, 4, 5] * 2), 5)
    assert (middle.tolist(), mean.tolist()) == ([3.0, 8.0], [3.0, 3.0])
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


def test_save_figure_gives_the_same_bytes_and_leaves_nothing_beside(tmp_path, margins, table):
    first = style.save_figure(figures.margin_figure(margins, title="Margins"), tmp_path / "a" / "margin")
    again = style.save_figure(figures.margin_figure(margins, title="Margins"), tmp_path / "b" / "margin")
    assert [path.name for path in first] == ["margin.png", "margin.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    same = figures.main_figure(table)
    png, svg = style.save_figure(same, tmp_path / "a" / "main.v1")
    before = png.read_bytes(), svg.read_bytes()
    style.save_figure(same, tmp_path / "a" / "main.v1")
    assert (png.read_bytes(), svg.read_bytes()) == before
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "main.v1.png", "main.v1.svg", "margin.png", "margin.svg",
    ]  # fmt: skip
    text = svg.read_text()
    assert ">pass@1</text>" in text  # text stays text
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
