"""Arguments and options that commands share, so that they are named and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neurostore.schema import KINDS

__all__ = ["AsJson", "End", "File", "Force", "Kind", "Name", "Start", "as_time"]


def _kind(name: str | None) -> str | None:
    if name is not None and name not in KINDS:
        raise typer.BadParameter(f"{name!r} is no record kind; expected one of {', '.join(KINDS)}")
    return name


def _kinds(incomplete: str) -> list[tuple[str, str]]:
    """Kinds for the shell to complete, each with what it is."""
    return [(k.name, k.summary) for k in KINDS.values() if k.name.startswith(incomplete)]


def as_time(text: str | None) -> Any:
    """Return seconds where the text is a number, else ISO text as it is.

    >>> as_time("12.5"), as_time("2026-05-01T12:00:00Z")
    (12.5, '2026-05-01T12:00:00Z')
    """
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


File = Annotated[Path, typer.Argument(metavar="FILE", help="The HDF5 file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Kind = Annotated[
    str | None,
    typer.Option(callback=_kind, autocompletion=_kinds, help="Only this kind of record."),
]
Start = Annotated[
    str | None, typer.Option(metavar="TIME", help="From this time on: seconds or ISO 8601.")
]
End = Annotated[
    str | None, typer.Option(metavar="TIME", help="Up to and with this time: seconds or ISO 8601.")
]
Name = Annotated[
    str | None, typer.Option(help="Only this reservoir, rule, mechanism, task or attention map.")
]
