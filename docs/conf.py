"""How Sphinx builds the documentation: make docs."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "ahl_jax"
author = "the ahl_jax developers"
release = metadata.version("ahl_jax")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "configuration",
]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
# Links to files outside of this folder, and to the notebook; the tests check that they are there.
suppress_warnings = ["myst.xref_missing"]
html_theme = "furo"
html_title = "ahl_jax"
