"""Commands that say whether a file is sound: ``verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from neurostore.cli.arguments import AsJson, File
from neurostore.cli.output import FOUND, print_json, print_table, progress
from neurostore.verify import TIME_LIMIT
from neurostore.verify import verify as verify_file

__all__ = ["commands"]

commands = typer.Typer()

TimeLimit = Annotated[
    float, typer.Option(help="Seconds that reading one record may take; large ones get more.")
]


@commands.command()
def verify(
    path: File,
    this_file: Annotated[
        bool, typer.Option("--this-file", help="Leave out the rotated files of the series.")
    ] = False,
    time_limit: TimeLimit = TIME_LIMIT,
    as_json: AsJson = False,
) -> None:
    """Check every record: checksums, content hash, dimensions, schema, catalogue.

    The exit status is 1 if anything is wrong.
    """
    with progress("verifying") as report:
        found = verify_file(path, series_too=not this_file, time_limit=time_limit, progress=report)
    if as_json:
        print_json(found.to_dict())
    else:
        findings = list(found.all_findings())
        if findings:
            print_table(
                ("record", "check", "where", "what"),
                [(f.record or f.file, f.check, f.place, f.message) for f in findings],
            )
        typer.echo(found.summary())
    if not found.ok:
        raise typer.Exit(FOUND)
