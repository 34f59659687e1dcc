"""One spike train of a million spikes: write it, read it, cut out a time span and a neuron.

The peer does by hand what a user of h5py would: a search in the sorted times, a mask over the ids.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import xarray as xr

import neurostore
from benchmarks import trains
from benchmarks.measure import Task, duel
from benchmarks.report import Table, speedup

NAME = "long"
DURATION = 100.0
NEURONS = 1_000
CHUNK = 65_536
ADDRESS = f"{trains.GROUP}/train_1.0"


def run(folder: Path, *, quick: bool) -> Table:
    """Each call runs from opening the file to closing it."""
    spikes = 20_000 if quick else 1_000_000
    data = columns(spikes)
    ours, peer = folder / "long.h5", folder / "long-bare.h5"
    pairs: dict[str, tuple[Task, Task]] = {
        "write": (lambda _: by_store(ours, data), lambda _: by_h5py(peer, data)),
        "read all": (lambda _: load(ours), lambda _: read_all(peer)),
        "1 % of the time": (lambda _: select_span(ours), lambda _: read_span(peer)),
        "one neuron": (lambda _: select_neuron(ours), lambda _: read_neuron(peer)),
    }
    table = Table(
        f"A spike train of {spikes:,} spikes",
        f"Sorted times, {NEURONS:,} neurons, amplitudes, from opening the file to closing it. The "
        f"peer is h5py with gzip 6, Fletcher-32 and chunks of {CHUNK:,}; it finds the time span by "
        "a search in the times and the neuron by a mask over the ids.",
    )
    for what, (our_task, peer_task) in pairs.items():
        result = duel(our_task, peer_task, rounds=1 if quick else 7)
        table.rows.append(speedup(what, result))
    return table


def columns(spikes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted times, neuron ids and amplitudes."""
    rng = np.random.default_rng(2)
    times = np.sort(rng.random(spikes)) * DURATION
    return times, rng.integers(0, NEURONS, spikes), rng.normal(1, 0.1, spikes)


def by_store(path: Path, data: tuple[np.ndarray, ...]) -> None:
    """Write with the array face, all defaults."""
    path.unlink(missing_ok=True)
    with neurostore.HDF5Storage(path) as storage:
        storage.store_spike_train(1.0, *data)


def by_h5py(path: Path, data: tuple[np.ndarray, ...]) -> None:
    """Write three chunked datasets."""
    chunks = (min(CHUNK, len(data[0])),)
    with h5py.File(path, "w") as h5file:
        h5group = h5file.create_group(ADDRESS)
        for name, column in zip(trains.FIELDS, data, strict=True):
            h5group.create_dataset(name, data=column, chunks=chunks, **trains.FILTERS)


def load(path: Path) -> xr.Dataset:
    """Every spike."""
    with neurostore.open(path, mode="r") as store:
        return store.retrieve("train_1.0").load()


def read_all(path: Path) -> list[np.ndarray]:
    """Every spike, by h5py."""
    with h5py.File(path) as h5file:
        return [h5file[ADDRESS][name][:] for name in trains.FIELDS]


def select_span(path: Path) -> xr.Dataset:
    """The spikes of the second half second."""
    with neurostore.open(path, mode="r") as store:
        ds = store.retrieve("train_1.0")
        return ds.sel(spike_times=slice(DURATION / 2, DURATION / 2 + DURATION / 100)).load()


def read_span(path: Path) -> list[np.ndarray]:
    """The same spikes, found by a search in the times."""
    with h5py.File(path) as h5file:
        h5group = h5file[ADDRESS]
        times = h5group["spike_times"][:]
        low, high = np.searchsorted(times, [DURATION / 2, DURATION / 2 + DURATION / 100])
        return [times[low:high], *(h5group[name][low:high] for name in trains.FIELDS[1:])]


def select_neuron(path: Path) -> xr.Dataset:
    """The spikes of neuron 7."""
    with neurostore.open(path, mode="r") as store:
        return store.retrieve("train_1.0").sel(neuron_ids=[7]).load()


def read_neuron(path: Path) -> list[np.ndarray]:
    """The same spikes, found by a mask over the ids."""
    with h5py.File(path) as h5file:
        h5group = h5file[ADDRESS]
        ids = h5group["neuron_ids"][:]
        chosen = ids == 7
        others = (h5group[name][:][chosen] for name in ("spike_times", "spike_amplitudes"))
        return [ids[chosen], *others]
