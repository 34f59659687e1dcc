"""Commands that look at a file and change nothing: ``info``, ``ls`` and ``show``."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import numpy as np
import typer

from neurostore.cli.arguments import AsJson, End, File, Kind, Name, Start, as_time
from neurostore.cli.output import print_json, print_table
from neurostore.store import open as open_store
from neurostore.wording import moment, printable

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
def info(path: File, as_json: AsJson = False) -> None:
    """Print what is to be known of a file: kinds, counts, times, sizes, health, versions."""
    with open_store(path, "r") as store:
        found, said = store.info(), repr(store)
    if as_json:
        print_json(found)
        return
    typer.echo(said)
    typer.echo(f"Files:  {', '.join(os.path.basename(file) for file in found['files'])}")
    typer.echo(f"Made:   {moment(found['created_at'])}, schema {found['schema_version']}")


@commands.command()
def ls(
    path: File,
    kind: Kind = None,
    start: Start = None,
    end: End = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """List records in time order."""
    with open_store(path, "r") as store:
        table = store.catalogue(kind, as_time(start), as_time(end), name=name)
    columns = ("record", "kind", "name", "timestamp", "length", "stored_bytes")
    rows = list(zip(*(table[column].values.tolist() for column in columns), strict=True))
    if as_json:
        print_json([dict(zip(("id", *columns[1:]), row, strict=True)) for row in rows])
        return
    print_table(("id", "kind", "name", "time", "length", "bytes"), [_row(row) for row in rows])


def _row(row: tuple[Any, ...]) -> tuple[object, ...]:
    record_id, kind, name, timestamp, length, stored = row
    return record_id, kind, name, moment(timestamp), length, stored


@commands.command()
def show(
    path: File,
    record: Annotated[str, typer.Argument(metavar="ID", help="Id or address of the record.")],
    values: Annotated[bool, typer.Option("--values", help="Print the values, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print one record: when it was made, its metadata, its variables and labels.

    Arrays are printed whole with --values; in JSON, too, they are there only then.
    """
    with open_store(path, "r") as store:
        ds = store.retrieve(record)
        if as_json:
            print_json(ds.to_dict(data="list" if values else False))
            return
        typer.echo(repr(ds.neuro))
        if values:
            with np.printoptions(threshold=sys.maxsize, linewidth=100):
                for name, variable in ds.variables.items():
                    typer.echo(f"\n{printable(name)}:\n{variable.values}")
