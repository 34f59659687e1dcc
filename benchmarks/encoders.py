"""What the filters make of real data: size and speed, beside h5py without and with shuffle.

Chunks go into memory, so that neither files nor commits are in the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import h5py
import ml_dtypes
import numpy as np

from benchmarks import recordings, snapshot
from benchmarks.recordings import Arrays
from benchmarks.report import Line, Table
from neurostore import types
from neurostore.filters import choose, read, write

NAME = "encoders"
LEVEL = 6


def run(folder: Path, *, quick: bool) -> Table:
    """Every array once by each; the fastest of three passes counts."""
    table = Table(
        "What the filters make of each kind of data",
        f"gzip {LEVEL} with Fletcher-32, into and out of memory. Sizes as a fraction of what h5py "
        "makes with its defaults (no shuffle, chunks of its own), and of what it makes with "
        "shuffle; in bold where neurostore's is larger. Write and read: MB of values per second, "
        "and how many times faster than h5py without shuffle.",
        head=("data", "encoder", "size", "size, h5py shuffled", "write", "read"),
    )
    for what, array in arrays(quick).items():
        table.rows.append(Line((what, *figures(array, passes=1 if quick else 3))))
    return table


def arrays(quick: bool) -> Arrays:
    """Real arrays where they are at hand, and random ones of the dtypes they lack."""
    rng = np.random.default_rng(0)
    made = snapshot.network(60 if quick else 1_000)
    normal = rng.normal(size=made["weights"].shape)
    found = {f"random {name}": array for name, array in made.items()}
    found["float16 activations"] = normal.astype("f2")
    found["bfloat16 activations"] = normal.astype(ml_dtypes.bfloat16)
    found["0/1 states, bool"] = normal > 1
    data = recordings.folder()
    if data is None or quick:
        return found
    brain = recordings.connectome(data)
    found["connectome, adjacency int64"] = brain["adjacency"]
    found["connectome, adjacency bool"] = brain["adjacency"] > 0
    found["connectome, weights float64"] = brain["weights"]
    fly = recordings.fly_spikes(data)
    found["fly, spike times"] = fly["spike_times"]
    found["fly, 18-digit ids"] = fly["neuron_ids"]
    cuba = np.load(data / "brian2_cuba_4000.npz")
    found["CUBA, membrane potentials"] = cuba["v_mV"]
    found["CUBA, spike times"] = cuba["spike_t"]
    found["CUBA, synapse targets"] = cuba["post"]
    spyx = np.load(data / "spyx_digits_training.npz")
    found["trained network, kernel float32"] = spyx["l1_kernel"]
    found["trained network, hidden spikes bool"] = spyx["hidden_spikes"]
    found["trained network, hidden potentials float16"] = spyx["hidden_v"]
    return found


def figures(array: np.ndarray, passes: int) -> tuple[str, ...]:
    """One line of the table."""
    stored = types.to_stored(array).values
    with in_memory() as h5file:
        pipeline = choose(stored, "gzip", LEVEL, 1024)
        ours, size = fastest(lambda n: by_hand(h5file, f"ours{n}", stored), passes)
        theirs, plain = fastest(lambda n: by_hdf5(h5file, f"plain{n}", stored, False), passes)
        shuffled = by_hdf5(h5file, "shuffled", stored, True)
        loaded, _ = fastest(lambda _: read(h5file["ours0"].id), passes)
        read_back, _ = fastest(lambda _: h5file["plain0"][:], passes)
    shuffle = "shuffle, " if pipeline.shuffle else ""
    return (
        f"{shuffle}{pipeline.packing.encoder.name}",
        *(f"**{x:.2f}x**" if x > 1 else f"{x:.2f}x" for x in (size / plain, size / shuffled)),
        *(
            f"{stored.nbytes / mine / 1e6:,.0f} MB/s, {peer / mine:.1f}x"
            for mine, peer in ((ours, theirs), (loaded, read_back))
        ),
    )


def in_memory() -> h5py.File:
    """A file that never reaches the disk."""
    return h5py.File("memory.h5", "w", driver="core", backing_store=False, libver="v110")


def fastest(action: Callable[[int], object], passes: int) -> tuple[float, int]:
    """Seconds of the fastest pass, and what it returned if that is a size."""
    best, found = float("inf"), 0
    for number in range(passes):
        start = perf_counter()
        result = action(number)
        best = min(best, perf_counter() - start)
        found = result if isinstance(result, int) else 0
    return best, found


def by_hand(h5file: h5py.File, name: str, array: np.ndarray) -> int:
    """Choose the filters and write; return the stored bytes."""
    pipeline = choose(array, "gzip", LEVEL, 1024)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    pipeline.apply(properties, array.dtype, array.shape)
    space, kind = h5py.h5s.create_simple(array.shape), h5py.h5t.py_create(array.dtype)
    dataset = h5py.h5d.create(h5file.id, name.encode(), kind, space, properties)
    return write(dataset, array, pipeline)


def by_hdf5(h5file: h5py.File, name: str, array: np.ndarray, shuffle: bool) -> int:
    """The same by h5py."""
    dataset = h5file.create_dataset(
        name,
        data=array,
        compression="gzip",
        compression_opts=LEVEL,
        shuffle=shuffle,
        fletcher32=True,
    )
    h5file.flush()
    return int(dataset.id.get_storage_size())
