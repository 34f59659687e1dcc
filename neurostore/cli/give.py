"""Commands that make something else of records: ``export``, ``publish`` and ``plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neurostore import export as exporting
from neurostore.cli.arguments import AsJson, End, File, Force, Kind, Name, Start, as_time
from neurostore.cli.output import print_json, progress
from neurostore.errors import StoreExistsError
from neurostore.optional import needs
from neurostore.store import open as open_store

__all__ = ["commands"]

commands = typer.Typer()

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="Ids or addresses; all if none.")
]


def _format(name: str | None) -> str | None:
    if name is not None and name not in exporting.FORMATS:
        raise typer.BadParameter(f"{name!r}; expected one of {', '.join(exporting.FORMATS)}")
    return name


@commands.command()
def export(
    path: File,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The file to make.")],
    ids: Ids = None,
    kind: Kind = None,
    start: Start = None,
    end: End = None,
    name: Name = None,
    to: Annotated[
        str | None,
        typer.Option(
            callback=_format,
            autocompletion=lambda: list(exporting.FORMATS),
            help="netcdf, zarr, nwb or csv; by the suffix of TARGET if not given.",
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write records as netCDF (.nc), zarr (.zarr), NWB (.nwb), or metrics as CSV (.csv).

    One record stands at the root, several in groups /<kind>/<id>. zarr and NWB need the extras
    "zarr" and "interop".
    """
    with open_store(path, "r") as store, progress("exporting") as report:
        chosen = ids or store.ids(kind, as_time(start), as_time(end), name=name)
        found = {}
        for done, record_id in enumerate(chosen):
            report(done, len(chosen))
            found[record_id.strip("/").rpartition("/")[2]] = store.retrieve(record_id)
        exporting.export(found, target, to, force=force)
    if as_json:
        print_json({"path": target, "records": list(found)})
        return
    typer.echo(f"{target}: {len(found):,} record" + ("" if len(found) == 1 else "s"))


@commands.command()
def publish(
    path: File,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The JSON file to make.")],
    base: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The folder where readers find the files; here if none."),
    ] = None,
    unsealed: Annotated[
        bool, typer.Option("--unsealed", help="Take the newest file along; it is finished.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Show zarr readers the records of a sealed series where they are, by kerchunk references."""
    with open_store(path, "r") as store:
        count = store.publish(target, base=base, unsealed=unsealed, force=force)
    if as_json:
        print_json({"path": target, "records": count})
        return
    typer.echo(f"{target}: {count:,} record" + ("" if count == 1 else "s"))


@commands.command()
def plot(
    path: File,
    record: Annotated[
        str | None, typer.Argument(metavar="ID", help="A record; the whole run if not given.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The picture; its suffix says png, pdf or svg."),
    ] = None,
    kind: Kind = None,
    start: Start = None,
    end: End = None,
    name: Name = None,
    together: Annotated[
        bool, typer.Option("--range", help="Draw the records of --kind as one range.")
    ] = False,
    dpi: Annotated[int, typer.Option(min=10, max=1200, help="Dots per inch.")] = 120,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw a run on one page, one record, or with --range the records of a kind over time.

    It needs the extra "plot".
    """
    if together and kind is None:
        raise typer.BadParameter("--range needs --kind")
    target = output or Path(f"{(record or path.stem).strip('/').rpartition('/')[2]}.png")
    if target.exists() and not force:
        raise StoreExistsError(f"{target}: already exists; name another with -o, or --force")
    with needs("plot", "a picture"):
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib import pyplot
    if target.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise typer.BadParameter(f"{target}: expected a name that ends in .png, .pdf or .svg")
    with open_store(path, "r") as store:
        span = (as_time(start), as_time(end))
        if record is not None:
            drawn = store.retrieve(record).neuro.plot()
        elif together and kind is not None:
            drawn = store.range(kind, *span, name=name).neuro.plot()
        else:
            drawn = store.plot(kind, *span, name=name)
    pyplot.gcf().savefig(target, dpi=dpi)
    pyplot.close()
    if as_json:
        print_json({"picture": target, "panels": list(drawn)})
        return
    typer.echo(f"picture: {target}")
