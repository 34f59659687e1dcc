"""Ask a series of a hundred files with a million records; count the files that a question opens.

The files have the catalogue rows of ten thousand records each and one record: writing all would
take an hour, and nothing here reads a record.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

import neurostore
from benchmarks import trains
from benchmarks.measure import duel
from benchmarks.report import Table, within
from neurostore.ledger import rotated_name
from neurostore.session import attach, close_all, open_paths

NAME = "series"
KIND = "spike_train"


def run(folder: Path, *, quick: bool) -> Table:
    """Open the series and ask for a hundred records in one file; open every file as the peer."""
    files, records, rounds = (4, 100, 2) if quick else (100, 10_000, 10)
    path = rotated(folder / "series" / "run.h5", files, records)
    length = min(99, records // 4)

    def open_series(_: int) -> None:
        with neurostore.open(path, "r") as store:
            store.ids(KIND, 0.0, 0.0)  # the oldest file
        close_all()

    def open_every_file(_: int) -> None:
        for one in sorted(path.parent.glob("*.h5")):
            with neurostore.open(one, "r") as store:
                store.ids(KIND, 0.0, 0.0)
        close_all()

    first = duel(open_series, open_every_file, rounds=rounds)
    with neurostore.open(path, "r") as store:
        store.ids(KIND, 0.0, 0.0)

        def ask(turn: int) -> None:
            """Ask another file each time, so that none is open already."""
            start = records // 4 + float(1 + turn % (files - 2)) * records
            assert len(store.ids(KIND, start, start + length)) == length + 1

        def read(turn: int) -> None:
            """Read the times of the one file, by somebody who knows which it is."""
            name = rotated_name(path.name, 2 + turn % (files - 2))
            with h5py.File(path.with_name(name)) as h5file:
                moments = h5file[f"catalogue/{KIND}/rows"]["timestamp"]
                start = records // 4 + float(1 + turn % (files - 2)) * records
                assert np.sum((moments >= start) & (moments <= start + length)) == length + 1

        before = len(open_paths())
        cold = duel(ask, read, rounds=rounds)
        opened = len(open_paths()) - before
        warm = duel(lambda _: ask(0), lambda _: read(0), rounds=rounds, calls=20)
    close_all()
    table = Table(
        "A series of files",
        f"{files} files, {files * records:,} records, and {length + 1} of them asked for. The peer "
        "of opening opens every file; that of a range reads the times of the right file with h5py. "
        f"{rounds + 1} ranges in as many files opened {opened} files.",
    )
    table.rows += [
        within("open, and ask the oldest file", first, 1.0),
        within("a range in a file not open yet", cold, 0.005),
        within("a range in an open file", warm, 0.005),
    ]
    return table


def rotated(path: Path, files: int, records: int) -> Path:
    """Make a series that looks as after so many spike trains, one a second."""
    path.parent.mkdir()
    for number in range(files):
        with neurostore.open(path, durability="process") as store:
            store.store(trains.labelled(number * records))
        session = attach(path, "a")
        with session.writing(timeout=10, durability="process") as catalogue:
            table = catalogue.tables[KIND]
            rows = np.repeat(table.rows[:1], records - 1)
            rows["timestamp"] += np.arange(1, records)
            rows["serial"] += np.arange(1, records).astype("u8")
            catalogue.state["serial"] += len(rows)
            table.append(rows)
        session.close()
        if number < files - 1:
            with neurostore.open(path, durability="process") as store:
                store.rotate()
    return path
