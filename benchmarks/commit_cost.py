"""What safety costs: a commit through the journal, beside the same record without any.

The peer does the same work on HDF5 (the record, its labels and its row in the catalogue) through
HDF5's native driver, and flushes; for `power` it also syncs. It has no journal and takes no locks,
so whatever ends in its middle leaves a file that may not open.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Literal, Self

import h5py
import numpy as np

import neurostore
from benchmarks.measure import duel
from benchmarks.report import Row, Table, cost, seconds
from neurostore import catalogue_file, records, tree
from neurostore.osio import OsIO
from neurostore.records import Record
from neurostore.registry import Registry, key_of
from neurostore.session import Session
from neurostore.stencil import Layout, Stencils

NAME = "commit"
GOALS = {"process": 1.3, "power": 3.0}
LAYOUT = Layout("gzip", 6, 1024)


class _Raw:
    """The file of an unprotected session as bytes, for the catalogue."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def put(self, data: bytes, offset: int) -> None:
        os.pwrite(self._descriptor, data, offset)


class Unprotected(Session):
    """A session that writes to the file as HDF5 does it: no journal, no locks, no recovery."""

    def __init__(self, path: Path, *, sync: bool) -> None:
        key = key_of(path)
        assert key is not None
        super().__init__(path, key, Registry())
        self._sync = sync
        self._stencils = Stencils()
        self._writer = h5py.File(path, "r+", libver=("v110", "v110"))
        self._descriptor = os.open(path, os.O_RDWR)
        self._stamper = tree.Stamper(self._writer, _Raw(self._descriptor), self._stencils)
        self._catalogue = catalogue_file.read(self._writer)
        self._catalogue_of = self._writer

    def store(self, stored: Sequence[Record]) -> None:
        """Put records into the file and flush it once."""
        for record in stored:
            self.put(record, LAYOUT, lambda *_: False)
        assert self._catalogue is not None
        self._stamper.write_catalogue(self._catalogue)
        self._writer.flush()
        if self._sync:
            os.fdatasync(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        self._stencils.close()
        os.close(self._descriptor)
        self._locks.close()


def small(k: int) -> Record:
    """One train of five spikes, ready to be stored."""
    times = np.linspace(0.0, 1.0, 5)
    return records.examine(neurostore.spike_train(times, np.arange(5), timestamp=float(k)))


def run(folder: Path, *, quick: bool) -> Table:
    """Measure single commits, a batch, and a reader after a commit."""
    about = (__doc__ or "").partition("\n\n")[2].strip().replace("\n", " ")
    table = Table("What safety costs", about)
    table.rows += [
        single(folder, "process", *((2, 10) if quick else (20, 100))),
        single(folder, "power", *((2, 5) if quick else (15, 20))),
        batch(folder, *((2, 20) if quick else (9, 1000))),
        reopening(folder, 20 if quick else 100),
    ]
    return table


def fresh(folder: Path, name: str) -> Path:
    """An empty store."""
    path = folder / name
    neurostore.open(path, "x").close()
    return path


def single(folder: Path, durability: Literal["process", "power"], rounds: int, calls: int) -> Row:
    """One small record, one commit."""
    ready = [small(k) for k in range((rounds + 1) * calls)]
    with (
        neurostore.open(fresh(folder, f"{durability}.h5"), durability=durability) as store,
        Unprotected(fresh(folder, f"{durability}-bare.h5"), sync=durability == "power") as peer,
    ):
        result = duel(
            lambda k: store.store(ready[k]),
            lambda k: peer.store(ready[k : k + 1]),
            rounds=rounds,
            calls=calls,
        )
    return cost(f"store one small record, `{durability}`", result, GOALS[durability])


def batch(folder: Path, rounds: int, size: int) -> Row:
    """Many records in one commit."""
    ready = [small(k) for k in range((rounds + 1) * size)]

    def ours(turn: int) -> None:
        with store.batch():
            for record in ready[turn * size : (turn + 1) * size]:
                store.store(record)

    with (
        neurostore.open(fresh(folder, "batch.h5"), durability="process") as store,
        Unprotected(fresh(folder, "batch-bare.h5"), sync=False) as peer,
    ):
        result = duel(
            ours, lambda turn: peer.store(ready[turn * size : (turn + 1) * size]), rounds=rounds
        )
    return cost(f"a batch of {size:,} records, `process`", result, 1.1)


def reopening(folder: Path, commits: int) -> Row:
    """The first question of a reader after a commit of another, with 1,000 records and more."""
    path = fresh(folder, "read.h5")
    with neurostore.open(path, durability="process") as store:
        with store.batch():
            for k in range(1000):
                store.store(small(k))
        key = key_of(path)
        assert key is not None
        reader = Session(path, key, Registry(), OsIO())
        times = []
        for k in range(1000, 1000 + commits):
            store.store(small(k))
            times.append(timed(lambda k=k: reader.catalogue.find(f"train_{float(k)!r}")))
        reader.close()
    goal = 2e-3
    low, high = np.quantile(times, [0.05, 0.95])
    return Row(
        "a reader's first question after a commit, 1,000 records",
        f"{seconds(median(times))} ({seconds(low)}–{seconds(high)})",
        "",
        "",
        f"≤ {seconds(goal)}",
        median(times) <= goal,
    )


def timed(task: Callable[[], object]) -> float:
    """Seconds of one call, which must find something."""
    start = time.perf_counter()
    found = task()
    took = time.perf_counter() - start
    assert found is not None
    return took
