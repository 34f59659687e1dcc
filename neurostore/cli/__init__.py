"""The command line, ``neurostore``: each file here holds the commands of one purpose.

It parses, delegates and prints, and knows the store by its public methods alone.

Exit status: 0, all is well; 1, something wrong was found, or an error of neurostore or of the
system, said in one line on the standard error, or whoever read the output left before its end; 2,
the command was not understood; 75, another process was writing all the time, try again later; 130,
stopped by Ctrl-C.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from neurostore._version import __version__
from neurostore.cli import check, give, keep, look, trial
from neurostore.cli.output import FOUND, log_to_stderr, one_line
from neurostore.errors import HDF5StorageError

__all__ = ["app", "main"]

app = typer.Typer(
    name="neurostore",
    help="A labelled, crash-safe home for neural-simulation data in one plain HDF5 file.",
    epilog="Exit status: 0 all is well, 1 something is or went wrong, 2 usage, 75 try later.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
#: A file per purpose; the order is that of ``--help``.
for group in (look, check, keep, give, trial):
    app.add_typer(group.commands)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"neurostore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on the standard error what is done.")
    ] = False,
) -> None:
    """Options of every command."""
    log_to_stderr(logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Run the command line; an error of ours, or of the system, is one line and status 1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names hold any text, terminals do not show any text
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (HDF5StorageError, OSError) as error:
        typer.echo(f"neurostore: {one_line(error)}", err=True)
        sys.exit(FOUND)
