"""The site: Sphinx over the Markdown files here, with pages that are made from the code as it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "src")]

import generated  # noqa: E402

from vidpipe.version import __version__  # noqa: E402

project = "vidpipe"
author = "the vidpipe founders"
copyright = "2026, the vidpipe founders"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["README.md"]
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"vidpipe {version}"
html_show_sphinx = False

autodoc_typehints = "none"  # signatures have them
autodoc_member_order = "bysource"
napoleon_google_docstring = True

# A link to a page or a heading that is not there ends the build (`make docs` has warnings as errors).
nitpicky = False

generated.write(HERE)


def setup(app: Any) -> None:
    """Equations as MathML, which browsers draw themselves: MathJax would come from another site."""
    app.add_html_math_renderer("mathml", (inline, skip), (display, skip))


def inline(writer: Any, node: Any) -> None:
    writer.body.append(convert(node.astext()))
    raise SkipNode


def display(writer: Any, node: Any) -> None:
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def skip(writer: Any, node: Any) -> None:
    """Nothing follows an equation."""
