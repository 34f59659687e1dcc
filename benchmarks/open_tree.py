"""Open a whole file as a DataTree: our engine beside the stock one."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from benchmarks import trains
from benchmarks.measure import Task, duel
from benchmarks.report import Table, speedup

NAME = "tree"


def run(folder: Path, *, quick: bool) -> Table:
    """The stock engine takes minutes on a file that ours opens in seconds, so it runs once."""
    records = 30 if quick else 1_000
    path = trains.store_file(folder, records)
    result = duel(opening(path, "neurostore"), opening(path, "h5netcdf"), rounds=1, warm=False)
    table = Table(
        "Open the whole file as a tree",
        '`xr.open_datatree(path, engine="neurostore")`, nothing loaded. The peer is the stock '
        'engine, `engine="h5netcdf"`, on the same file, once.',
    )
    table.rows.append(speedup(f"{records:,} records in the file", result))
    return table


def opening(path: Path, engine: str) -> Task:
    """Open the tree and close it."""

    def load(_: int) -> None:
        xr.open_datatree(path, engine=engine).close()

    return load
