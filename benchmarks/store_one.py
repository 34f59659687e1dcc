"""Store one labelled spike train, beside three bare datasets written by h5py.

Both sides get the same three arrays and filters, and both make the record safe before the next:
against a killed process (h5py: flush), or against a power cut (h5py: flush and fdatasync).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import h5py

import neurostore
from benchmarks import trains
from benchmarks.measure import Task, duel
from benchmarks.report import Table, cost

NAME = "store"


def run(folder: Path, *, quick: bool) -> Table:
    """Measure arrays in by the array face, and a ready Dataset by the store."""
    rounds, calls = (2, 10) if quick else (30, 100)
    table = Table(
        "Store one spike train",
        "About 1,000 spikes with amplitudes, each train of another length, gzip 6 and Fletcher-32. "
        "The peer is bare h5py: three datasets without labels, flushed after each train, and for "
        "`power` also synced.",
    )
    durabilities: tuple[Literal["process", "power"], ...] = ("process", "power")
    for durability in durabilities:
        with (
            neurostore.HDF5Storage(folder / f"{durability}.h5", durability=durability) as storage,
            h5py.File(folder / f"{durability}-bare.h5", "w") as h5file,
        ):
            result = duel(
                by_arrays(storage),
                by_h5py(h5file, sync=durability == "power"),
                rounds=rounds,
                calls=calls,
            )
        goal = 1.0 if durability == "process" else None
        table.rows.append(cost(f"arrays in, durability `{durability}`", result, goal))
    with (
        neurostore.open(folder / "labelled.h5", durability="process") as store,
        h5py.File(folder / "labelled-bare.h5", "w") as h5file,
    ):
        ready = [trains.labelled(k) for k in range((rounds + 1) * calls)]
        result = duel(lambda k: store.store(ready[k]), by_h5py(h5file), rounds=rounds, calls=calls)
    table.rows.append(cost("a ready Dataset, durability `process`", result))
    return table


def by_arrays(storage: neurostore.HDF5Storage) -> Task:
    """Store train ``k`` through the array face."""

    def store(k: int) -> None:
        times, ids, amplitudes = trains.columns(k)
        storage.store_spike_train(
            timestamp=float(k), spike_times=times, neuron_ids=ids, spike_amplitudes=amplitudes
        )

    return store


def by_h5py(h5file: h5py.File, *, sync: bool = False) -> Task:
    """Store train ``k`` by plain h5py, flushed and, if asked, synced."""
    descriptor = h5file.id.get_vfd_handle()

    def store(k: int) -> None:
        trains.bare(h5file, k)
        h5file.flush()
        if sync:
            os.fdatasync(descriptor)

    return store
