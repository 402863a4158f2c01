"""The style of figures and numbers; equal figures are written as equal bytes."""

import io
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from textwrap import fill

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from amir_grpo.choices import POLICY_NAMES, SIGNIFICANCE
from amir_grpo.system.files import atomic_write
from amir_grpo.system.provenance import commit

# Based on Okabe and Ito's palette: distinct in every common kind of colour vision, and in grey
COLOURS = {"base": "#7a7a7a", "grpo": "#e69f00", "amir_grpo": "#0a4f8f"}
NEUTRAL = "#8a8a8a"  # for differences that are not significant, and for what belongs to no method
# A ring and a dot: both remain visible if they coincide, even without colour.
MARKS = {
    "base": {"marker": "|", "ms": 8, "mew": 1.6, "color": COLOURS["base"]},
    "grpo": {"marker": "o", "ms": 8, "mew": 1.8, "color": COLOURS["grpo"], "mfc": "white"},
    "amir_grpo": {"marker": "o", "ms": 4, "color": COLOURS["amir_grpo"]},
}
SMALL_PRINT = {"fontsize": 6.5, "color": "#444444"}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "amir_grpo",  # the same element ids in every run
    "pdf.fonttype": 42,
}


# Decorates functions that draw or write a figure: they use matplotlib's defaults and STYLE, whatever a reader has set.
styled = matplotlib.style.context(STYLE, after_reset=True)


class _SteadyLayout(ConstrainedLayoutEngine):
    """A layout engine that runs once and rounds, since the solver's last bits depend on addresses in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._laid_out = False

    def execute(self, fig: Figure) -> None:
        if self._laid_out:
            return
        super().execute(fig)
        for axes in fig.axes:
            axes.set_position([round(edge, 12) for edge in axes.get_position(original=True).bounds], which="original")
            axes.set_in_layout(True)  # set_position removes them from it
        self._laid_out = True


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of `width` by `height` inches outside pyplot: nothing to close, and no window."""
    figure = Figure(figsize=(width, height), layout=_SteadyLayout())
    FigureCanvasAgg(figure)
    return figure


def add_title(figure: Figure, title: str) -> None:
    """Put a title above all panels, broken into lines that fit the figure; an empty one takes no room."""
    if title:
        characters = int(12.2 * figure.get_figwidth())  # bold, 9 points
        figure.suptitle(fill(title, characters), x=0.01, ha="left", fontsize=9, fontweight="bold")


def add_footnote(figure: Figure, text: str) -> None:
    """Put a note in small print below all panels, broken into lines that fit the figure."""
    figure.supxlabel(fill(text, int(20 * figure.get_figwidth())), x=0.01, ha="left", **SMALL_PRINT)


def gain_colour(gain: float, p_value: float) -> str:
    """Return the colour of AMIR-GRPO's gain over GRPO: that of the better method, or grey if it is not significant."""
    if not p_value < SIGNIFICANCE:
        return NEUTRAL
    return COLOURS["amir_grpo"] if gain > 0 else COLOURS["grpo"]


def arm_colours(labels: Iterable[str]) -> dict[str, str]:
    """Return a colour for each arm of a study by its label: AMIR-GRPO is dark blue, or light blue if the label has a
    percentage of the update; GRPO and the base policy have their own colours, and the others follow in order."""
    colours = {"base policy": COLOURS["base"], POLICY_NAMES["grpo"]: COLOURS["grpo"]}
    others = ("#009e73", "#cc79a7", "#000000")
    labels = list(dict.fromkeys(labels))
    for label in labels:
        if label.startswith(POLICY_NAMES["amir_grpo"]):
            colours[label] = "#56b4e9" if "%" in label else COLOURS["amir_grpo"]
    for place, label in enumerate(name for name in labels if name not in colours):
        colours[label] = others[place % len(others)]
    return colours


def signed(value: float, digits: int = 1) -> str:
    """Format a number with its sign, as +1.3, −0.2 and 0.0; – for NaN."""
    if value != value:
        return "–"
    return f"{0:.{digits}f}" if abs(value) < 0.5 * 10**-digits else f"{value:+.{digits}f}".replace("-", "−")


def p_text(p_value: float) -> str:
    """Format a p-value with three decimals, < 0.001 below that; – for NaN."""
    return "–" if p_value != p_value else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def with_interval(row: Mapping[str, float], digits: int = 2) -> str:
    """Format a gain and the ends of its interval, as +0.02 [−0.10, +0.14]; `row`: gain, gain_low and gain_high."""
    gain, low, high = (signed(row[end], digits) for end in ("gain", "gain_low", "gain_high"))
    return f"{gain} [{low}, {high}]"


@styled
def save_figure(figure: Figure, path_stem: Path | str, command: str = "make figures") -> tuple[Path, Path]:
    """Write `path_stem`.png (200 dpi) and .svg atomically, and return both paths.

    The PNG holds the command that draws it and the commit that it was drawn at; at one commit, equal figures give
    equal bytes.
    """
    stem, paths = Path(path_stem), []
    source = f"{command} (commit {commit() or 'unknown'})"
    # no dates or versions in the files, which would differ between equal figures
    for kind, metadata in (("png", {"Software": None, "Source": source}), ("svg", {"Date": None, "Creator": None})):
        write = partial(figure.savefig, format=kind, dpi=200, metadata=metadata)
        paths.append(atomic_write(stem.with_name(f"{stem.name}.{kind}"), write))
    return paths[0], paths[1]


@styled
def png(figure: Figure, dpi: int = 115) -> bytes:
    """Return a figure as PNG, for a notebook or a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
