"""Retrieve and load one spike train by its id, beside reading its three datasets with h5py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

import neurostore
from benchmarks import trains
from benchmarks.measure import Task, duel
from benchmarks.report import Table, cost

NAME = "retrieve"


def run(folder: Path, *, quick: bool) -> Table:
    """Read records all over the file, at two sizes of it, then one size against the other."""
    few, many = (20, 200) if quick else (1_000, 20_000)
    rounds, calls = (2, 5) if quick else (30, 20)
    table = Table(
        "Retrieve and load one spike train",
        "`store.retrieve(id).load()`, records drawn from all over the file. The peer is bare h5py "
        "reading three datasets and the attributes; in the last row neurostore is its own peer.",
    )
    for records in (few, many):
        with (
            neurostore.open(trains.store_file(folder, records), mode="r") as store,
            h5py.File(trains.bare_file(folder, records)) as h5file,
        ):
            result = duel(
                retrieve(store, records), read(h5file, records), rounds=rounds, calls=calls
            )
        table.rows.append(cost(f"{records:,} records in the file", result, 2.5))
    with (
        neurostore.open(trains.store_file(folder, many), mode="r") as ours,
        neurostore.open(trains.store_file(folder, few), mode="r") as peer,
    ):
        result = duel(retrieve(ours, many), retrieve(peer, few), rounds=rounds, calls=calls)
    table.rows.append(cost(f"{many:,} records against {few:,}", result))
    return table


def drawn(records: int) -> list[int]:
    """4,096 record numbers, the same for both sides."""
    return [int(k) for k in np.random.default_rng(1).integers(0, records, 4096)]


def retrieve(store: neurostore.Store, records: int) -> Task:
    """Load a record from its id."""
    ids = [trains.address(k).rpartition("/")[2] for k in drawn(records)]
    return lambda k: store.retrieve(ids[k]).load()


def read(h5file: h5py.File, records: int) -> Task:
    """Read a record's three datasets and its attributes."""
    numbers = drawn(records)

    def load(k: int) -> tuple[dict[str, Any], dict[str, Any]]:
        h5group = h5file[f"{trains.GROUP}/train_{numbers[k]}"]
        return {name: h5group[name][:] for name in trains.FIELDS}, dict(h5group.attrs)

    return load
