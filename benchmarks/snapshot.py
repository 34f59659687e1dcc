"""A snapshot and a trace, random and real: write, read and size, beside h5py's own gzip.

Each write and each read runs from opening the file to closing it.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

import neurostore
from benchmarks import recordings, trains
from benchmarks.measure import duel
from benchmarks.recordings import Arrays
from benchmarks.report import Line, Row, Table, size, speedup
from neurostore.osio import Durability

NAME = "snapshot"
DURABILITIES: tuple[Durability, ...] = ("power", "process")


def run(folder: Path, *, quick: bool) -> Table:
    """Write both files anew in every round, then read them."""
    neurons, rounds = (100, 1) if quick else (1_000, 7)
    table = Table(
        f"A snapshot of {neurons:,} neurons and a plasticity trace",
        "Random: adjacency int64 of 0/1, weights log-normal and 10 % dense, states, and a dense "
        "random trace. Real: the connectome of 3,013 neurons, and the membrane potentials of a "
        "simulation. From opening a new file to closing it, with the syncs of the commits "
        "(`power`, the default) and without (`process`); then one more into a file that is open. "
        "The peer is h5py with gzip 6 and Fletcher-32, flushed and not synced.",
    )
    for what, arrays in networks(neurons, quick).items():
        table.rows += figures(folder, what, arrays, rounds)
        table.rows += opened(folder, what, arrays, rounds)
    return table


def figures(folder: Path, what: str, arrays: Arrays, rounds: int) -> list[Row | Line]:
    """Write, read and size of one network."""
    rows: list[Row | Line] = []
    for durability in DURABILITIES:
        # A path of its own for each: to free the space of an older file is no part of this.
        made = folder / durability
        made.mkdir(exist_ok=True)
        written = duel(
            lambda turn, to=made, how=durability: by_storage(to / f"{what}-{turn}.h5", arrays, how),
            lambda turn, to=made: by_h5py(to / f"{what}-bare-{turn}.h5", arrays),
            rounds=rounds,
        )
        ours, peer = made / f"{what}-0.h5", made / f"{what}-bare-0.h5"
        rows.append(speedup(f"{what}: write, new file, `{durability}`", written, 10))
    read = duel(lambda _: from_storage(ours), lambda _: from_h5py(peer), rounds=rounds)
    bytes_ours, bytes_peer = (float(path.stat().st_size) for path in (ours, peer))
    return [
        *rows,
        speedup(f"{what}: read", read, 3),
        size(f"{what}: size", bytes_ours, bytes_peer, bytes_peer, "≤ 1x the size"),
    ]


def opened(folder: Path, what: str, arrays: Arrays, rounds: int) -> list[Row]:
    """Write one after the other into files that stay open, and read one of them."""
    found = []
    for durability in DURABILITIES:
        path, bare = (folder / f"{what}-{durability}{end}.h5" for end in ("", "-bare"))
        with (
            neurostore.HDF5Storage(path, durability=durability) as storage,
            h5py.File(bare, "w") as h5file,
        ):
            written = duel(
                lambda turn: store(storage, arrays, float(turn)),
                lambda turn: put(h5file.create_group(str(turn)), arrays),
                rounds=rounds,
            )
            found.append(speedup(f"{what}: write, file open, `{durability}`", written, 10))
    with neurostore.HDF5Storage(path) as storage, h5py.File(bare) as h5file:
        read = duel(
            lambda turn: retrieve(storage, float(turn)),
            lambda turn: take(h5file[str(turn)]),
            rounds=rounds,
        )
    return [*found, speedup(f"{what}: read, file open", read, 3)]


def networks(neurons: int, quick: bool) -> dict[str, Arrays]:
    """The random network, and the real one where it is at hand."""
    found = {"random": network(neurons)}
    data = recordings.folder()
    if data is not None and not quick:
        potentials = np.load(data / "brian2_cuba_4000.npz")["v_mV"]
        found["real"] = recordings.connectome(data) | {"trace": np.tile(potentials, (5, 1))}
    return found


def network(n: int) -> Arrays:
    """Random matrices of ``n`` neurons."""
    rng = np.random.default_rng(0)
    weights = np.where(rng.random((n, n)) < 0.1, rng.lognormal(0, 1, (n, n)), 0)
    return {
        "adjacency": rng.integers(0, 2, (n, n)),
        "weights": weights,
        "states": rng.random((n, 5)),
        "trace": rng.random((n, n)),
    }


def by_storage(path: Path, arrays: Arrays, durability: Durability) -> None:
    """Write with the array face."""
    with neurostore.HDF5Storage(path, durability=durability) as storage:
        store(storage, arrays, 1.0)


def store(storage: neurostore.HDF5Storage, arrays: Arrays, moment: float) -> None:
    """Store both records."""
    storage.store_network_snapshot(moment, arrays["adjacency"], arrays["weights"], arrays["states"])
    storage.store_plasticity_trace(moment, arrays["trace"], "stdp")


def by_h5py(path: Path, arrays: Arrays) -> None:
    """Write four datasets with h5py."""
    with h5py.File(path, "w") as h5file:
        put(h5file, arrays)


def put(group: h5py.Group, arrays: Arrays) -> None:
    """Create four datasets, and bring them to the system."""
    for name, data in arrays.items():
        group.create_dataset(name, data=data, **trains.FILTERS)
    group.file.flush()


def from_storage(path: Path) -> object:
    """Read both records back."""
    with neurostore.HDF5Storage(path) as storage:
        return retrieve(storage, 1.0)


def retrieve(storage: neurostore.HDF5Storage, moment: float) -> object:
    """Read both records."""
    snapshot = storage.retrieve_network_snapshot(f"snapshot_{moment!r}")
    return snapshot, storage.retrieve_plasticity_trace(f"stdp_{moment!r}")


def from_h5py(path: Path) -> object:
    """Read the four datasets back."""
    with h5py.File(path) as h5file:
        return take(h5file)


def take(group: h5py.Group) -> object:
    """Read four datasets."""
    return [group[name][:] for name in group]
