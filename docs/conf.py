"""How Sphinx builds the documentation; the tables of kinds come from neurostore.schema."""

from __future__ import annotations

import neurostore
from neurostore import schema

project = "neurostore"
author = "neurostore developers"
copyright = "2026, neurostore developers"
version = release = neurostore.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = f"neurostore {version}"
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False}


def shape(variable: schema.Variable) -> str:
    """``spike_times (spike)``, or every rank that the variable may have."""
    ranks = [f"({', '.join(dims)})" for dims in variable.dims] or ["(any shape)"]
    return f"`{variable.name}` {' or '.join(ranks)}" + ("" if variable.required else ", optional")


def kinds_table() -> str:
    rows = ["| kind | id | variables | group of each part |", "|---|---|---|---|"]
    for kind in schema.KINDS.values():
        start = kind.stem or f"<{kind.label}>"
        variables = "<br>".join(shape(variable) for variable in kind.variables)
        parts = "<br>".join(f"`{part.path}/`" for part in kind.parts)
        rows.append(f"| `{kind.name}` | `{start}_<timestamp>` | {variables} | {parts} |")
    return "\n".join(rows)


myst_substitutions = {"kinds_table": kinds_table()}
