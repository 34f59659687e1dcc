"""How Sphinx builds the documentation; tables of kinds and commands come from the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

import neurostore
from neurostore import cli, schema

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


def growing_table() -> str:
    rows = ["| kind | grows along | one row of |", "|---|---|---|"]
    for kind in schema.KINDS.values():
        if kind.grows is not None:
            variables = ", ".join(f"`{variable.name}`" for variable in kind.variables)
            rows.append(f"| `{kind.name}` | `{kind.grows}` | {variables} |")
    return "\n".join(rows)


myst_substitutions = {"kinds_table": kinds_table(), "growing_table": growing_table()}


def usage(command: Any, name: str) -> str:
    words = ["neurostore", name, "[OPTIONS]"]
    for argument in (p for p in command.params if p.param_type_name == "argument"):
        word = argument.metavar or argument.name.upper()
        words.append(word if argument.required else f"[{word}]")
        words[-1] += "..." if argument.nargs != 1 else ""
    return " ".join(words)


def options_table(command: Any) -> list[str]:
    rows = ["| option | |", "|---|---|"]
    for option in command.params:
        if option.param_type_name == "option" and option.name != "help":
            spelled = ", ".join(f"`{text}`" for text in reversed(option.opts))
            default = option.default
            given = f" Default: {default}." if default not in (None, False, []) else ""
            rows.append(f"| {spelled} | {option.help or ''}{given} |")
    return rows if len(rows) > 2 else []


def commands_page() -> str:
    lines = []
    for name, command in typer.main.get_command(cli.app).commands.items():
        about = (command.help or "").strip()
        lines += [f"## {name}", "", "```text", usage(command, name), "```", "", about, ""]
        lines += [*options_table(command), ""]
    return "\n".join(lines)


generated = Path(__file__).parent / "generated"
generated.mkdir(exist_ok=True)
(generated / "commands.md").write_text(commands_page(), encoding="utf-8")
exclude_patterns.append("generated/commands.md")  # it is a part of command-line.md
