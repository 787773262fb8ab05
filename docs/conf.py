"""Sphinx's configuration of the site that `make docs` builds from this folder: no network, warnings are errors."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "kernels"), str(ROOT / "docs")]

import docstrings  # noqa: E402

from ulam_kernels.version import __version__  # noqa: E402

project, author, copyright = "ulam", "the authors of ulam", "the authors of ulam, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "check"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]
highlight_language = "text"

default_role = "py:obj"  # `name` of a docstring links to the name where it is public, and is code where it is not
autodoc_default_options = {"special-members": "__call__"}  # where it has a docstring
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # torch's own words on forward
python_maximum_signature_line_length = 88
napoleon_use_ivar, napoleon_attr_annotations = True, False
napoleon_google_docstring, napoleon_numpy_docstring = True, False
viewcode_line_numbers = True

html_theme = "furo"
html_title = "ulam"
html_static_path = ["static"]
html_css_files = ["narrow.css"]
html_copy_source = False


def setup(app):
    docstrings.setup(app)
