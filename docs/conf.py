"""How Sphinx builds these pages: `make docs`, into docs/_build/html. Needs no network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for site_extension

from amir_grpo import __version__

project = "AMIR-GRPO, reproduced"
copyright = "the authors of the AMIR-GRPO reproduction, Apache-2.0"
release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "site_extension"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"AMIR-GRPO {release}"
html_math_renderer = "mathml"  # site_extension's: MathJax would come from the network
html_show_sphinx = False
html_theme_options = {
    "source_repository": "https://github.com/amir-grpo/amir-grpo/",
    "source_branch": "main",
    "source_directory": "docs/",
}

nb_execution_mode = "off"  # the notebooks are committed as executed
nb_ipywidgets_js = {}  # a page without a kernel shows the static picture; the widgets would come from the network
myst_enable_extensions = ["dollarmath", "colon_fence", "smartquotes"]
myst_heading_anchors = 3
smartquotes = False

napoleon_use_ivar = True
highlight_language = "text"  # of blocks that name no language: commands
default_role = "code"  # single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
