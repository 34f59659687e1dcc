"""The command line: ``neurostore demo``, ``info`` and ``ls``.  It parses, delegates and prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from neurostore import times
from neurostore._version import __version__
from neurostore.errors import HDF5StorageError
from neurostore.store import open as open_store

__all__ = ["main"]

app = typer.Typer(
    help="A labelled, crash-safe home for neural-simulation data in one plain HDF5 file.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(help="The HDF5 file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"neurostore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


@app.command()
def demo(
    path: Annotated[Path, typer.Argument(help="The file to make.")] = Path("demo.h5"),
    picture: Annotated[Path, typer.Option(help="The picture to make.")] = Path("demo.png"),
    seconds: Annotated[float, typer.Option(help="Seconds of model time.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Simulate a liquid state machine in JAX, store it as it runs, and look at what was stored."""
    from neurostore.demo import run

    run(path, picture, seconds=seconds, seed=seed, force=force, progress=not quiet)


@app.command()
def info(path: File, as_json: AsJson = False) -> None:
    """Print what is to be known of a file: records, time span, size, versions."""
    with open_store(path, "r") as store:
        found = store.info()
    if as_json:
        typer.echo(json.dumps(found))
        return
    records = found.pop("records")
    found["created_at"] = times.decoded(found["created_at"])
    for key, value in found.items():
        typer.echo(f"{key:26}{value}")
    for kind, count in records.items():
        if count:
            typer.echo(f"{kind:26}{count:,}")


@app.command()
def ls(
    path: File,
    kind: Annotated[str | None, typer.Option(help="Only this kind of record.")] = None,
    start: Annotated[str | None, typer.Option(help="From this time on: seconds or ISO.")] = None,
    end: Annotated[str | None, typer.Option(help="Up to this time: seconds or ISO.")] = None,
    name: Annotated[str | None, typer.Option(help="Only this reservoir, rule, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """List the records of a file in time order."""
    with open_store(path, "r") as store:
        table = store.catalogue(kind, _time(start), _time(end), name=name)
    rows = [
        {"id": str(row), "kind": str(k), "timestamp": float(t), "stored_bytes": int(b)}
        for row, k, t, b in zip(
            table["record"].values,
            table["kind"].values,
            table["timestamp"].values,
            table["stored_bytes"].values,
            strict=True,
        )
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    typer.echo(f"{'id':40}{'kind':26}{'bytes':>14}")
    for line in rows:
        typer.echo(f"{line['id']:40}{line['kind']:26}{line['stored_bytes']:>14,}")


def _time(text: str | None) -> Any:
    """Seconds where the text is a number, else ISO text as it is."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def main() -> None:
    """Run the command line; an error of ours is one line and exit status 1."""
    try:
        app()
    except HDF5StorageError as error:
        typer.echo(f"neurostore: {error}", err=True)
        sys.exit(1)
