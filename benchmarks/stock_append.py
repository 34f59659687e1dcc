"""Append one labelled spike train, beside ``Dataset.to_netcdf(mode="a")`` of stock xarray.

The stock engine appends to a copy of our own file: it is netCDF-4, and a stock file of thousands of
records would take hours to write.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import xarray as xr

import neurostore
from benchmarks import trains
from benchmarks.measure import Task, duel
from benchmarks.report import Table, speedup

NAME = "append"
_PREPARED = 256
ENCODING: dict[str, Any] = {"zlib": True, "complevel": 6, "fletcher32": True}


def run(folder: Path, *, quick: bool) -> Table:
    """Few calls of the peer: each takes as long as hundreds of ours."""
    table = Table(
        "Append one Dataset",
        "The same Dataset, filters and file. The peer is stock xarray, "
        '`ds.to_netcdf(path, mode="a", group=..., engine="h5netcdf")`.',
    )
    for records, rounds, goal in [(100, 1, 60)] if quick else [(100, 10, 60), (5_000, 3, 1000)]:
        ours = trains.store_file(folder, records)
        peer = folder / f"stock-{records}.h5"
        shutil.copy(ours, peer)
        with neurostore.open(ours, durability="process") as store:
            result = duel(
                store_after(store, prepared(records)),
                append_to(peer, prepared(records)),
                rounds=rounds,
                calls=20,
                peer_calls=1,
            )
        table.rows.append(speedup(f"{records:,} records in the file", result, goal))
    return table


def prepared(records: int) -> list[xr.Dataset]:
    """Datasets of trains after those that are there: making them is not what is measured."""
    return [trains.labelled(records + k) for k in range(_PREPARED)]


def store_after(store: neurostore.Store, ready: list[xr.Dataset]) -> Task:
    """Store train ``k`` after those that are there."""
    return lambda k: store.store(ready[k % _PREPARED])


def append_to(path: Path, ready: list[xr.Dataset]) -> Task:
    """Append train ``k`` with stock xarray."""
    plainly = [plain(ds) for ds in ready]

    def append(k: int) -> None:
        ds = plainly[k % _PREPARED]
        encoding = {str(name): ENCODING for name in ds.variables if ds[name].ndim}
        ds.to_netcdf(path, mode="a", group=f"stock/train_{k}", engine="h5netcdf", encoding=encoding)

    return append


def plain(ds: xr.Dataset) -> xr.Dataset:
    """Drop the event index, which stock xarray does not write."""
    return ds.drop_indexes([str(name) for name in ds.xindexes])
