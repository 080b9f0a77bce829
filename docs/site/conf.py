"""How Sphinx builds the site; `build.py` calls it.

Sphinx, because it imports the library: what it shows are the signatures and names that a user gets (the options of the
optimizers are spelled out at run time), and any name that has no entry is an error with `nitpicky`. mkdocstrings reads
sources without running them, and MkDocs had its last release in August 2024. Furo loads no fonts and no scripts from
elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from stackelberg_fused import __version__

project = "stackelberg_fused"
version = release = __version__
extensions = [
    *("myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"),
    *("docstrings", "names"),
]

nitpicky = True
# types of other libraries: their inventories would have to be fetched
nitpick_ignore_regex = [
    ("py:.*", r"(?!stackelberg_fused\b).*"),
    # a variable of types: any module
    ("py:class", r"stackelberg_fused\.optimizers\.averaged_module\.Module"),
    # takes the name of one; an object is for tests
    ("py:class", r"stackelberg_fused\.backends\.base\.Backend"),
]

myst_heading_anchors = 4
highlight_language = "none"
smartquotes_action = "D"  # dashes alone: "lr" is a string of Python

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
add_module_names = False
python_use_unqualified_type_names = True

napoleon_numpy_docstring = False
# one entry for names that are explained together
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
