"""How commands print: tables, JSON, progress, errors; for a person at a terminal and for a pipe.

Results go to the standard output, everything else to the standard error.  In a pipe there are no
colours, nothing is cut, and the progress bar is silent.  Nothing here knows the store.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from neurostore.progress import Report, reporting
from neurostore.wording import printable

__all__ = [
    "FOUND",
    "log_to_stderr",
    "one_line",
    "print_json",
    "print_table",
    "progress",
]

#: Exit status of a command that found something wrong; ``raise typer.Exit(FOUND)``.
FOUND = 1
#: Rows up to which a table is laid out for a terminal; rich takes a millisecond for each.
_FOLDED = 1_000


def one_line(error: BaseException) -> str:
    r"""Return the message of an error as one line.

    >>> one_line(ValueError("a: 2 problems\n  - b\n  - c"))
    'a: 2 problems; b; c'
    """
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    return printable("; ".join(line for line in lines if line))


def print_json(value: Any) -> None:
    """Print JSON that every parser takes.

    Floats that JSON cannot say become the texts "NaN", "Infinity" and "-Infinity"; paths become
    text, arrays lists.
    """
    typer.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print ``rows`` under the names of ``columns``; numbers stand to the right.

    On a terminal long cells are folded; in a pipe, and where rows are many, they are printed as
    long as they are.
    """
    console = Console(file=sys.stdout, highlight=False)
    right = [
        bool(rows) and all(isinstance(row[at], int | float) for row in rows)
        for at in range(len(columns))
    ]
    if console.is_terminal and len(rows) <= _FOLDED:
        _print_folded(console, columns, rows, right)
        return
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        typer.echo("  ".join(padded).rstrip())


def _print_folded(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Sequence[bool],
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, to_right in zip(columns, right, strict=True):
        table.add_column(Text(name), justify="right" if to_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value, thousands=",")) for value in row))
    console.print(table)


def _cell(value: object, thousands: str = "") -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:{thousands}}"
    return printable(value)


def progress(what: str) -> AbstractContextManager[Report]:
    """Show how far something is, on the standard error where that is a terminal.

    Gives a function of the number of things done and of all things; call it as often as you like.

    >>> with progress("verifying") as report:
    ...     _ = report(1, 10)
    """
    return reporting(True, what)


def log_to_stderr(level: int) -> None:
    """Say what the package logs from ``level`` on as one line each on the standard error."""
    logger = logging.getLogger("neurostore")
    logger.handlers = [h for h in logger.handlers if not isinstance(h, _OneLine)]
    logger.addHandler(_OneLine())
    logger.setLevel(level)


class _OneLine(logging.Handler):
    """Writes to the standard error that is there when something is said."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"neurostore: {printable(record.getMessage())}", err=True)
