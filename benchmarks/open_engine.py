"""Open one record with ``xr.open_dataset(group=...)``: our engine beside the stock one."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from benchmarks import trains
from benchmarks.measure import Task, duel
from benchmarks.report import Table, speedup

NAME = "engine"


def run(folder: Path, *, quick: bool) -> Table:
    """Open, load and close a record in the middle of the file."""
    records = 300 if quick else 5_000
    path = trains.store_file(folder, records)
    group = trains.address(records // 2)
    result = duel(
        opening(path, group, "neurostore"),
        opening(path, group, "h5netcdf"),
        rounds=1 if quick else 10,
        calls=10,
        peer_calls=1,
    )
    table = Table(
        "Open one record with xarray",
        '`xr.open_dataset(path, group=..., engine="neurostore").load()`. The peer is the stock '
        'engine, `engine="h5netcdf"`, on the same file.',
    )
    table.rows.append(speedup(f"{records:,} records in the file", result, 50))
    return table


def opening(path: Path, group: str, engine: str) -> Task:
    """Open the record, load it, close it."""

    def load(_: int) -> None:
        with xr.open_dataset(path, group=group, engine=engine) as ds:
            ds.load()

    return load
