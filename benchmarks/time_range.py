"""Ask a file of a million records which lie in a span of time, beside listing their group.

A million records would take an hour to write, so the file has one record, a million links to it,
the catalogue rows that a million records would have, and one record more, whose commit vouches for
them. Nothing here reads a record.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

import neurostore
from benchmarks import trains
from benchmarks.measure import duel
from benchmarks.report import Table, within
from neurostore.session import attach

NAME = "range"
KIND = "spike_train"


def run(folder: Path, *, quick: bool) -> Table:
    """Ask for a hundred records in the middle, opening the file each time, then without."""
    records, rounds = (5_000, 2) if quick else (1_000_000, 10)
    path = linked(folder / "catalogue.h5", records)
    span = float(records // 2), float(records // 2 + 99)

    def ask_cold(_: int) -> None:
        with neurostore.open(path, mode="r") as store:
            store.ids(KIND, *span)

    def list_cold(_: int) -> None:
        with h5py.File(path) as h5file:
            list(h5file[trains.GROUP])

    cold = duel(ask_cold, list_cold, rounds=rounds)
    with neurostore.open(path, mode="r") as store, h5py.File(path) as h5file:
        found = len(store.ids(KIND, *span))
        warm = duel(
            lambda _: store.ids(KIND, *span),
            lambda _: list(h5file[trains.GROUP]),
            rounds=rounds,
            calls=20,
            peer_calls=1,
        )
    table = Table(
        "Find records by time",
        f"`store.ids(kind, start, end)`, {found} ids out of {records:,}. The peer only lists the "
        "names in the group with h5py, which a search by time would begin with.",
    )
    table.rows += [
        within("from opening the file", cold, 0.05),
        within("in an open file", warm, 0.001),
    ]
    return table


def linked(path: Path, records: int) -> Path:
    """Make a file whose group and catalogue look as after so many spike trains."""
    with neurostore.open(path, mode="x") as store:
        store.store(trains.labelled(0))
    session = attach(path, "a")
    with session.writing(timeout=10, durability="process") as catalogue:
        table = catalogue.tables[KIND]
        rows = np.repeat(table.rows[:1], records - 1)
        rows["timestamp"] = rows["serial"] = np.arange(1, records)
        catalogue.state["serial"] += len(rows)
        table.append(rows)
    session.close()
    with h5py.File(path, "r+") as h5file:
        group = h5file[trains.GROUP].id
        for k in range(1, records):
            group.links.create_hard(f"train_{float(k)!r}".encode(), group, b"train_0.0")
    with neurostore.open(path) as store:  # vouches for what h5py did
        assert len(store.ids(KIND)) == records
        store.store(trains.labelled(records))
    return path
