"""Commands for a file's life: ``cleanup``, ``compact``, ``rotate``, ``repack`` and their kin.

What removes records only says so unless it is told ``--yes``.  Exit status: 0 done, or nothing to
do; 1 an error; 75 another process was writing all the time, so that the same command may work
later (``EX_TEMPFAIL``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from neurostore import migration
from neurostore.cli.arguments import AsJson, File, Kind, Name, as_time
from neurostore.cli.output import one_line, print_json
from neurostore.errors import LockTimeoutError
from neurostore.maintenance import Policy
from neurostore.retention import keep_rules
from neurostore.store import open as open_store
from neurostore.wording import human_bytes, printable

__all__ = ["LATER", "commands"]

commands = typer.Typer()
#: Exit status where somebody else was writing: ``EX_TEMPFAIL`` of sysexits.h.
LATER = 75

Yes = Annotated[bool, typer.Option("--yes", help="Do it; otherwise only say what would be done.")]
Wait = Annotated[
    float, typer.Option(metavar="SECONDS", help="How long to wait for another process's writing.")
]
Now = Annotated[
    str | None, typer.Option(metavar="TIME", help="Count days back from here: seconds or ISO 8601.")
]
ModelTime = Annotated[
    bool,
    typer.Option("--model-time", help="Timestamps before 1980 have an age in days, too."),
]


@contextmanager
def _patiently() -> Iterator[None]:
    try:
        yield
    except LockTimeoutError as error:
        typer.echo(f"neurostore: {one_line(error)}", err=True)
        raise typer.Exit(LATER) from None


@commands.command()
def cleanup(
    path: File,
    days: Annotated[float | None, typer.Option(help="Keep what is at most so old.")] = None,
    latest: Annotated[int | None, typer.Option(help="Keep so many of each name.")] = None,
    every: Annotated[int | None, typer.Option(help="Keep one of so many stored.")] = None,
    interval: Annotated[
        float | None, typer.Option(help="Keep the first of every so many seconds.")
    ] = None,
    kind: Kind = None,
    name: Name = None,
    now: Now = None,
    model_time: ModelTime = False,
    yes: Yes = False,
    wait: Wait = 60.0,
    as_json: AsJson = False,
) -> None:
    """Remove records: those that none of the options keeps.  Only says which, unless --yes."""
    given = {"days": days, "latest": latest, "every": every, "interval": interval}
    scope = {"kind": kind, "name": name}
    rules = keep_rules({**scope, key: value} for key, value in given.items() if value is not None)
    if not rules:
        raise typer.BadParameter("one of --days, --latest, --every and --interval is needed")
    with _patiently(), open_store(_existing(path), "a" if yes else "r", lock_timeout=wait) as store:
        gone = store.cleanup(keep=rules, now=as_time(now), model_time=model_time, dry_run=not yes)
    if as_json:
        print_json({"removed": gone, "dry_run": not yes})
        return
    for record_id in gone:
        typer.echo(record_id)
    said = "removed" if yes else "would be removed; --yes removes them"
    typer.echo(f"{len(gone)} records {said}", err=True)


@commands.command()
def compact(path: File, wait: Wait = 60.0, as_json: AsJson = False) -> None:
    """Win back the space of removed records; readers go on, writers wait."""
    with _patiently(), open_store(_existing(path), lock_timeout=wait) as store:
        won = store.compact(progress=not as_json)
    _say({"bytes_won": won, "file_size": path.stat().st_size}, as_json)


@commands.command()
def rotate(path: File, wait: Wait = 60.0, as_json: AsJson = False) -> None:
    """Close the file off under a new name, which is printed, and go on in an empty one."""
    with _patiently(), open_store(_existing(path), lock_timeout=wait) as store:
        rotated = store.rotate()
    if as_json:
        print_json({"rotated_to": rotated})
        return
    typer.echo(printable(rotated))


@commands.command()
def repack(
    path: File,
    compression: Annotated[
        str | None, typer.Option(help="Encode anew with gzip, lzf, szip or none.")
    ] = None,
    level: Annotated[int | None, typer.Option(help="Level of gzip, 0 to 9.")] = None,
    chunk_size: Annotated[int | None, typer.Option(help="A chunk holds 64 times as many.")] = None,
    paged: Annotated[bool, typer.Option("--paged", help="Lay the file out in pages.")] = False,
    wait: Wait = 60.0,
    as_json: AsJson = False,
) -> None:
    """Write a finished file anew: encoded for the archive, or in pages for object stores."""
    options: dict[str, Any] = {}
    if compression is not None:
        codec = None if compression == "none" else compression
        options = {"compression": codec, "compression_opts": level}
    elif level is not None:
        raise typer.BadParameter("--level needs --compression gzip")
    with _patiently(), open_store(_existing(path), lock_timeout=wait) as store:
        won = store.repack(chunk_size=chunk_size, paged=paged, progress=not as_json, **options)
    _say({"bytes_won": won, "file_size": path.stat().st_size}, as_json)


@commands.command()
def maintain(
    path: File,
    policy: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="TOML file that says what to do.")
    ],
    now: Now = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which records would go.")
    ] = False,
    wait: Wait = 60.0,
    as_json: AsJson = False,
) -> None:
    """Clean up, compact if it pays, rotate if it is time; from cron, beside a simulation."""
    wanted = Policy.from_toml(policy.read_text(encoding="utf-8"))
    with _patiently(), open_store(_existing(path), lock_timeout=wait) as store:
        done = store.maintain(wanted, now=as_time(now), dry_run=dry_run, progress=not as_json)
    if as_json:
        print_json({**asdict(done), "dry_run": dry_run})
        return
    _print(
        {
            "removed" if not dry_run else "would be removed": len(done.removed),
            "won back": "not compacted"
            if done.compacted is None
            else human_bytes(max(0, done.compacted)),
            "rotated to": done.rotated or "not rotated",
        }
    )


@commands.command()
def migrate(
    path: Annotated[Path, typer.Argument(metavar="OLD", help="The file to read.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to make.")],
    as_json: AsJson = False,
) -> None:
    """Bring a file of an older version, or one that plain h5py wrote, up to date in a new file."""
    found = migration.migrate(path, output, progress=not as_json)
    if as_json:
        print_json(asdict(found))
        return
    _print(
        {"file": found.path, "records": sum(found.records.values())}
        | {f"  {kind}": count for kind, count in found.records.items()}
        | {"renamed": ", ".join(f"{a} -> {b}" for a, b in found.renamed.items()) or "none"}
    )


def _existing(path: Path) -> Path:
    """Return the path of a file that is there; a typing error must not make a new one."""
    with open_store(path, "r"):
        return path


def _print(pairs: Mapping[str, object]) -> None:
    """Print names and what stands for each, one a line."""
    widest = max(map(len, pairs)) + 1
    for name, value in pairs.items():
        typer.echo(f"{name + ':':{widest}} {printable(value)}")


def _say(what: dict[str, int], as_json: bool) -> None:
    if as_json:
        print_json(what)
        return
    won = what["bytes_won"]
    _print(
        {
            "won back" if won >= 0 else "grown by": human_bytes(abs(won)),
            "size": human_bytes(what["file_size"]),
        }
    )
