"""Commands that look at a file and change nothing: ``info``, ``ls`` and ``show``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from neurostore.cli.arguments import AsJson, End, File, Kind, Name, Start, as_time
from neurostore.cli.output import print_json, print_pairs, print_table
from neurostore.store import open as open_store
from neurostore.wording import human_bytes, moment, span

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
def info(path: File, as_json: AsJson = False) -> None:
    """Print what is to be known of a file: records, time span, size, versions."""
    with open_store(path, "r") as store:
        found = store.info()
    if as_json:
        print_json(found)
        return
    records = {kind: count for kind, count in found["records"].items() if count}
    print_pairs(
        {
            "file": found["path"],
            "size": human_bytes(found["file_size"]),
            "files": len(found["files"]),
            "created": moment(found["created_at"]),
            "schema version": found["schema_version"],
            "time": span(found["start"], found["end"]),
            "records": sum(records.values()),
        }
        | {f"  {kind}": count for kind, count in records.items()}
        | {"variables": found["variables"]}
    )


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
    """Print one record: its dimensions, coordinates, variables and attributes."""
    with open_store(path, "r") as store:
        ds = store.retrieve(record)
        if as_json:
            print_json(ds.to_dict(data="list" if values else False))
        else:
            typer.echo(str(ds))
