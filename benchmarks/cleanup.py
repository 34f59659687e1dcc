"""Half of the records of a file removed in one commit, against links deleted with h5py."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import h5py
import numpy as np

import neurostore
from benchmarks import trains
from benchmarks.measure import Duel
from benchmarks.report import Table, speedup

NAME = "cleanup"
SPIKES = 100


def run(folder: Path, *, quick: bool) -> Table:
    """Time the removal alone; every round begins with a copy of the full file."""
    count = 400 if quick else 20_000
    full = folder / "cleanup-full.h5"
    fill(full, count)
    result = Duel([], [])
    for turn in range(1 if quick else 5):
        sides = [(result.ours, by_store), (result.peer, by_h5py)]
        for times, remove in sides if turn % 2 else reversed(sides):
            path = Path(shutil.copy2(full, folder / "cleanup.h5"))
            start = time.perf_counter()
            remove(path, count // 2)
            times.append(time.perf_counter() - start)
    table = Table(
        f"Removing {count // 2:,} of {count:,} records",
        f"Trains of {SPIKES} spikes, from opening the file to closing it. neurostore keeps "
        "the latest half by a rule, with syncs of the disk, and it is one commit: a crash leaves "
        "all records or half of them. The peer deletes the same links one by one with h5py, "
        "without any protection.",
    )
    table.rows.append(speedup("cleanup", result))
    return table


def fill(path: Path, count: int) -> None:
    """Store the records, a thousand to a commit."""
    rng = np.random.default_rng(4)
    with neurostore.open(path, durability="process") as store:
        for first in range(0, count, 1000):
            with store.batch():
                for number in range(first, min(count, first + 1000)):
                    times, ids = np.sort(rng.random(SPIKES)), rng.integers(0, 1000, SPIKES)
                    store.store(neurostore.spike_train(times, ids, timestamp=float(number)))


def by_store(path: Path, kept: int) -> None:
    """By a rule."""
    with neurostore.open(path) as store:
        gone = store.cleanup(keep=neurostore.Keep(latest=kept))
    assert len(gone) == kept


def by_h5py(path: Path, kept: int) -> None:
    """Link by link."""
    with h5py.File(path, "r+") as h5file:
        h5group = h5file[trains.GROUP]
        names = sorted(h5group, key=lambda name: float(name.removeprefix("train_")))
        for name in names[: len(names) - kept]:
            del h5group[name]
