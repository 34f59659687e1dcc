"""The real recordings, as the arrays that the cases store; None where their folder is absent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def folder() -> Path | None:
    """``NEUROSTORE_DATA``, or ``../shared/data`` beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    found = Path(os.environ.get("NEUROSTORE_DATA", beside))
    return found if found.is_dir() else None


def connectome(data: Path) -> Arrays:
    """The larva's brain: adjacency and weights of 3,013 neurons, and a state for each."""
    edges = np.loadtxt(data / "larva_full_edgelist.csv", delimiter=",")
    ids, index = np.unique(edges[:, :2].astype(np.int64), return_inverse=True)
    pre, post = index.reshape(-1, 2).T
    weights = np.zeros((len(ids), len(ids)))
    weights[pre, post] = edges[:, 2]
    states = np.stack([weights.sum(0), weights.sum(1)], axis=1)
    return {"adjacency": (weights > 0).astype(np.int64), "weights": weights, "states": states}


def fly_spikes(data: Path) -> Arrays:
    """Half a million spikes of the fly's brain, in the order of the simulator."""
    import pyarrow.parquet as pq

    table = pq.read_table(data / "flywire_brian2_sugarR.parquet", columns=["t", "flywire_id"])
    times, ids = (np.ascontiguousarray(table[name].to_numpy()) for name in ("t", "flywire_id"))
    return {"spike_times": times, "neuron_ids": ids}
