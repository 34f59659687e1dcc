"""The spike trains that most cases store, and the bare h5py code they are compared with.

Every train has about 1,000 spikes with amplitudes, each another number of them, as trains of real
runs have. The files of many trains are built once and shared by the cases of one run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

import neurostore

GROUP = "spike_trains/raw_data"
FIELDS = ("spike_times", "neuron_ids", "spike_amplitudes")
FILTERS: dict[str, Any] = {"compression": "gzip", "compression_opts": 6, "fletcher32": True}
BATCH = 500

_rng = np.random.default_rng(0)
_LENGTHS = _rng.integers(800, 1200, 4096)
_TIMES = np.sort(_rng.random(1200))
_IDS = _rng.integers(0, 100, 1200)
_AMPLITUDES = _rng.random(1200)


def columns(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, neuron ids and amplitudes of train ``k``."""
    n = int(_LENGTHS[k % len(_LENGTHS)])
    return _TIMES[:n], _IDS[:n], _AMPLITUDES[:n]


def labelled(k: int) -> xr.Dataset:
    """Train ``k`` as the Dataset that neurostore stores; its timestamp is ``k``."""
    times, ids, amplitudes = columns(k)
    ds: xr.Dataset = neurostore.spike_train(
        spike_times=times, neuron_ids=ids, spike_amplitudes=amplitudes, timestamp=float(k)
    )
    return ds


def bare(h5file: h5py.File, k: int) -> None:
    """Train ``k`` by plain h5py: the same filters, no labels, nothing to find it by."""
    h5group = h5file.create_group(f"{GROUP}/train_{k}")
    for name, data in zip(FIELDS, columns(k), strict=True):
        h5group.create_dataset(name, data=data, chunks=data.shape, **FILTERS)
    h5group.attrs["timestamp"] = float(k)
    h5group.attrs["metadata"] = "{}"


def address(k: int) -> str:
    """Where neurostore puts train ``k``."""
    return f"{GROUP}/train_{float(k)!r}"


def store_file(folder: Path, records: int) -> Path:
    """Write a neurostore file of so many trains, unless this run has it already."""
    path = folder / f"trains-{records}.h5"
    if not path.exists():
        with neurostore.open(path, mode="x", durability="process") as store:
            for start in range(0, records, BATCH):
                with store.batch():
                    for k in range(start, min(start + BATCH, records)):
                        store.store(labelled(k))
    return path


def bare_file(folder: Path, records: int) -> Path:
    """Write a plain h5py file of the same trains, unless this run has it already."""
    path = folder / f"bare-{records}.h5"
    if not path.exists():
        with h5py.File(path, "w") as h5file:
            for k in range(records):
                bare(h5file, k)
    return path
