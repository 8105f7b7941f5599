"""The documentation as one site: ``pip install -e '.[docs]' && sphinx-build docs site``.

Formulas are plain text, so no browser needs a script for them, and the site loads nothing from any
address outside its folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "minisrcnn"
author = "the minisrcnn authors"
copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "source_links"]
exclude_patterns = ["learn/page", "curves", "_ext"]
html_theme = "furo"
html_title = "minisrcnn"
html_extra_path = ["learn/gradients.html"]
html_show_sphinx = False

myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type", "image.not_readable"]

# Every cell of the book is run; an error fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_numpy_docstring = True
napoleon_google_docstring = False
