"""The command that shows what neurostore does, on a simulation of its own: ``demo``."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from neurostore.cli.arguments import AsJson, Force
from neurostore.cli.output import print_json

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
def demo(
    path: Annotated[Path, typer.Argument(help="The file to make.")] = Path("demo.h5"),
    picture: Annotated[Path, typer.Option(help="The picture to make.")] = Path("demo.png"),
    seconds: Annotated[float, typer.Option(help="Seconds of model time.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    force: Force = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: AsJson = False,
) -> None:
    """Simulate a liquid state machine in JAX, store it as it runs, and look at what was stored."""
    from neurostore.demo import run

    said = io.StringIO() if as_json else sys.stdout
    with contextlib.redirect_stdout(said):
        found = run(path, picture, seconds=seconds, seed=seed, force=force, progress=not quiet)
    if as_json:
        print_json(found)
