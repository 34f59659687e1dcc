"""A sparse network: stored and read sparse, against the same matrix dense, and one row of it.

The peer is `scipy.sparse.save_npz`, which compresses by zlib and reads all of it for one row; the
dense matrix is stored by neurostore too, where it is small enough to be made at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import neurostore
from benchmarks.measure import Task, duel
from benchmarks.report import Row, Table, speedup

NAME = "sparse"
ID = "snapshot_1.0"


def run(folder: Path, *, quick: bool) -> Table:
    """Each call runs from opening the file to closing it."""
    neurons, each = (500, 10) if quick else (100_000, 100)
    small = 500 if quick else 5_000
    large, medium = network(neurons, each), network(small, each)
    ours, peer = folder / "sparse.h5", folder / "sparse.npz"
    alone, dense = folder / "alone.h5", folder / "dense.h5"
    full = medium.toarray()
    pairs: dict[str, tuple[Task, Task]] = {
        "write": (lambda _: store(ours, large), lambda _: scipy.sparse.save_npz(peer, large)),
        "read all": (lambda _: load(ours), lambda _: scipy.sparse.load_npz(peer)),
        "one neuron": (lambda _: row(ours, 7), lambda _: scipy.sparse.load_npz(peer)[[7]]),
        f"write {small:,} neurons, beside dense": (
            lambda _: store(alone, medium),
            lambda _: store(dense, full),
        ),
        f"read {small:,} neurons, beside dense": (lambda _: load(alone), lambda _: values(dense)),
    }
    table = Table(
        f"A network of {neurons:,} neurons and {large.nnz:,} synapses",
        "float32 weights of random synapses, from opening the file to closing it. The peer is "
        "`scipy.sparse.save_npz`; in the last two lines neurostore with the dense matrix of a "
        f"smaller network, {small:,} neurons with {each} synapses each.",
    )
    for what, (our_task, peer_task) in pairs.items():
        result = duel(our_task, peer_task, rounds=1 if quick else 3)
        table.rows.append(speedup(what, result))
    for what, (mine, other) in {
        "bytes": (ours, peer),
        f"bytes of {small:,} neurons, beside dense": (alone, dense),
    }.items():
        sizes = [path.stat().st_size for path in (mine, other)]
        shown = [f"{number:,} B" for number in sizes]
        table.rows.append(Row(what, *shown, f"{sizes[0] / sizes[1]:.3f}x the size"))
    return table


def network(neurons: int, each: int) -> Any:
    """Random synapses, `each` from every neuron."""
    rng = np.random.default_rng(0)
    step = neurons // each
    columns = rng.integers(0, step, (neurons, each), np.int32)
    columns = np.sort(columns + np.arange(each, dtype=np.int32) * step, axis=1)
    indptr = np.arange(neurons + 1, dtype=np.int32) * each
    data = rng.random(columns.size, np.float32)
    return scipy.sparse.csr_array((data, columns.ravel(), indptr), shape=(neurons, neurons))


def store(path: Path, matrix: Any) -> None:
    """Write one snapshot."""
    path.unlink(missing_ok=True)
    with neurostore.open(path) as opened:
        opened.store(neurostore.network_snapshot(weights=matrix, timestamp=1.0))


def load(path: Path) -> Any:
    """Every synapse, for SciPy."""
    with neurostore.open(path, "r") as opened:
        return opened.retrieve(ID).neuro.to_scipy("weights")


def values(path: Path) -> Any:
    """Every pair of neurons."""
    with neurostore.open(path, "r") as opened:
        return opened.retrieve(ID)["weights"].values


def row(path: Path, neuron: int) -> Any:
    """The synapses of one neuron."""
    with neurostore.open(path, "r") as opened:
        return opened.retrieve(ID).sel(pre=[neuron]).neuro.to_scipy("weights")
