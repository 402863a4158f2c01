"""What these pages need beyond Sphinx's own: links as GitHub has them, docstrings in plain text, formulas as MathML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
BLOB = "https://github.com/amir-grpo/amir-grpo/blob/main/"
_LINK_OUT = re.compile(r"(?<!!)(\[(?:[^\]\[]|\[[^\]]*\])*\]\()\.\./([^)]+\))")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    copy_notebooks(ROOT / "notebooks", ROOT / "docs" / "notebooks")
    app.connect("source-read", links_of_the_site)
    app.connect("autodoc-process-docstring", docstring_as_rst, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_notebooks(source: Path, pages: Path) -> None:
    """The notebooks where Sphinx looks for pages, with the links out of their folder as the site has them; unchanged ones
    are not read again."""

    def here(link: re.Match[bytes]) -> bytes:
        return b"](../" if link[1] else b"](" + BLOB.encode()

    pages.mkdir(exist_ok=True)
    there = {path.name: re.sub(rb"\]\(\.\./(docs/)?", here, path.read_bytes()) for path in source.glob("*.ipynb")}
    for path in pages.iterdir():
        if path.name not in there:
            path.unlink()
    for name, content in there.items():
        if not (pages / name).exists() or (pages / name).read_bytes() != content:
            (pages / name).write_bytes(content)


def links_of_the_site(app: Sphinx, name: str, source: list[str]) -> None:
    """Links that leave docs/ work on GitHub as they are; here they lead to the notebooks' pages, or to GitHub."""

    def here(link: re.Match[str]) -> str:
        target = link[2]
        return link[1] + (target if target.startswith("notebooks/") else BLOB + target)

    if not name.startswith("notebooks/"):
        source[0] = _LINK_OUT.sub(here, source[0])


# --- docstrings ---------------------------------------------------------------------------------------------------


def docstring_as_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with backticks, lists and tables; what reStructuredText would read otherwise is escaped."""
    escaped: list[str] = []
    for line in lines:
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if set("".join(cells)) <= set("-: "):
                continue
            if not escaped or not escaped[-1].startswith("   "):
                escaped += [".. list-table::", "   :header-rows: 1", ""]
            escaped += [f"   {'*' if not n else ' '} - {_escape(cell)}" for n, cell in enumerate(cells)]
        else:
            escaped.append(_escape(line))
    lines[:] = escaped


def _escape(line: str) -> str:
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    plain = [re.sub(r"(?<!\\)([|*])|(?<=\w)(_)(?!\w)", r"\\\1\2", part) for part in parts[::2]]
    if re.match(r"\s*\\\* ", plain[0]):  # the bullet of a list
        plain[0] = plain[0].replace("\\* ", "* ", 1)
    return "".join(text for pair in zip(plain, [*parts[1::2], ""], strict=True) for text in pair)


# --- formulas -----------------------------------------------------------------------------------------------------


def inline_formula(writer: Any, node: nodes.Node) -> None:
    """A formula in a line, as MathML, which browsers show without a script."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_formula(writer: Any, node: nodes.Node) -> None:
    """A formula on a line of its own."""
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode
