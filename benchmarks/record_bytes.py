"""How many bytes a spike train adds to the file, beside bare h5py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

import neurostore
from benchmarks import trains
from benchmarks.report import Table, size

NAME = "bytes"
SMALL = 5


def run(folder: Path, *, quick: bool) -> Table:
    """Write many records and share out what the file grew by."""
    records = 100 if quick else 1_000
    table = Table(
        "Bytes of one record",
        f"What the file grew by over {records:,} records, labels and catalogue included, over "
        "their number. The peer is bare h5py with the same filters and no labels.",
    )
    ours, peer = (grown(folder, records, SMALL, write) for write in (by_store, by_h5py))
    table.rows.append(size("a train of 5 spikes", ours, peer, 2_500, "≤ 2.5 KB"))
    ours, peer = (grown(folder, records, None, write) for write in (by_store, by_h5py))
    table.rows.append(size("a train of about 1,000 spikes", ours, peer, peer, "≤ 1x the size"))
    return table


def columns(k: int, spikes: int | None) -> tuple[np.ndarray, ...]:
    """Train ``k``, cut to so many spikes."""
    return tuple(column[:spikes] for column in trains.columns(k))


def grown(
    folder: Path, records: int, spikes: int | None, write: Callable[[Path, range, int | None], None]
) -> float:
    """Bytes per record between the first few records, which open tables, and the last."""
    path = folder / f"bytes-{write.__name__}-{spikes}.h5"
    write(path, range(50), spikes)
    before = path.stat().st_size
    write(path, range(50, 50 + records), spikes)
    return (path.stat().st_size - before) / records


def by_store(path: Path, numbers: range, spikes: int | None) -> None:
    """One commit for each record, as a running program makes them."""
    with neurostore.open(path, durability="process") as store:
        for k in numbers:
            times, ids, amplitudes = columns(k, spikes)
            store.store(
                neurostore.spike_train(
                    spike_times=times,
                    neuron_ids=ids,
                    spike_amplitudes=amplitudes,
                    timestamp=float(k),
                )
            )


def by_h5py(path: Path, numbers: range, spikes: int | None) -> None:
    """Three datasets and two attributes for each record."""
    with h5py.File(path, "a") as h5file:
        for k in numbers:
            h5group = h5file.create_group(f"{trains.GROUP}/train_{k}")
            for name, data in zip(trains.FIELDS, columns(k, spikes), strict=True):
                h5group.create_dataset(name, data=data, chunks=data.shape, **trains.FILTERS)
            h5group.attrs["timestamp"] = float(k)
            h5group.attrs["metadata"] = "{}"
            h5file.flush()
