"""Commands that say whether a file is sound, and save what is: ``verify`` and ``repair``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from neurostore.cli.arguments import AsJson, File
from neurostore.cli.output import FOUND, print_json, print_table, progress
from neurostore.verify import TIME_LIMIT, Finding
from neurostore.verify import repair as repair_file
from neurostore.verify import verify as verify_file

__all__ = ["commands"]

commands = typer.Typer()

TimeLimit = Annotated[
    float, typer.Option(help="Seconds that reading one record may take; large ones get more.")
]
ThisFile = Annotated[
    bool, typer.Option("--this-file", help="Leave out the rotated files of the series.")
]


@commands.command()
def verify(
    path: File,
    this_file: ThisFile = False,
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
        _print_findings(list(found.all_findings()))
        typer.echo(found.summary())
    if not found.ok:
        raise typer.Exit(FOUND)


@commands.command()
def repair(
    path: File,
    target: Annotated[Path, typer.Option("--output", "-o", help="The new file.")],
    this_file: ThisFile = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Also records that another program edited.")
    ] = False,
    time_limit: TimeLimit = TIME_LIMIT,
    as_json: AsJson = False,
) -> None:
    """Copy every intact record into a new file, and list what was lost.

    The exit status is 1 if anything was lost.
    """
    with progress("verifying") as report:
        done = repair_file(
            path,
            target,
            series_too=not this_file,
            changed=changed,
            time_limit=time_limit,
            progress=report,
        )
    if as_json:
        print_json(done.to_dict())
    else:
        lost = [finding for record in done.lost for finding in record.findings]
        _print_findings([*done.findings, *lost])
        typer.echo(done.summary())
    if not done.ok:
        raise typer.Exit(FOUND)


def _print_findings(findings: Sequence[Finding]) -> None:
    if findings:
        print_table(
            ("record", "check", "where", "what"),
            [(f.record or f.file, f.check, f.place, f.message) for f in findings],
        )
