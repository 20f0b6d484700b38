"""Sphinx makes a site of the pages, in the repository's root: sphinx-build -c docs . site.

The root is the source, so that a link from one page to another, to a study or to a file of the code
is the same on the site and on a page of the repository.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = PROJECT["name"]
release = version = PROJECT["version"]
copyright = "the authors of fmnist_lab"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    *("docs/*.md", "experiments/README.md", "experiments/*/README.md"),
    *("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"),
]
# Folders that are not to be searched for pages: they may be large.
exclude_patterns = [".*", "build", "dist", "mlruns", "site", "tests", "fmnist_lab", "conf"]
nitpicky = True
# Other projects' objects, whose pages are not asked for, and names in backticks that are no object.
nitpick_ignore_regex = [
    (r"py:class", r"(np|npt|numpy|pd|pandas|keras|matplotlib|collections|pathlib)\..*"),
    (r"py:class", r"NDArray|Path"),
    (r"py:class", r"fmnist_lab\.(data\.idx|evaluation|tracking)\..*|Condition"),
    (r"py:obj", r".*"),
]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Quotes in a sentence may be those of a command.
smartquotes = False

# Docstrings put code into single backticks; what is an object of the API becomes a link.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "fmnist_lab"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}
