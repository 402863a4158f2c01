"""A figure as inline SVG, until the pages that hold it are gone."""

import io
import re
from html import escape

from matplotlib.figure import Figure

from amir_grpo.results.style import _house_style


def inline_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element of a page that scales it: its title is the text alternative, its ids begin with `name`."""
    buffer = io.StringIO()
    with _house_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'((?<=\sid=")|(?<=href="#)|(?<=url\(#))', f"{name}-", text[text.index("<svg") :])
    title = escape(" ".join(figure.get_suptitle().split()) or name)
    label = f'role="img" aria-labelledby="{name}-alt"><title id="{name}-alt">{title}</title>'
    head, _, drawing = text.partition(">")
    size = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return f"{size} {label}{drawing}"
