"""Append to a spike train that grows: time, spikes per second and bytes.

The peers do what their own documentation shows: HDF5's single-writer mode (SWMR) with a flush after
each append, and the `append` of zarr 3. Neither is whole after a crash in mid-append, nor labelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import h5py
import numpy as np

import neurostore
from benchmarks import trains
from benchmarks.measure import Task, duel
from benchmarks.report import Row, Table, number, seconds, speedup, spread

NAME = "appends"
SPIKES_PER_SECOND = 2e6
Append = Callable[[tuple[np.ndarray, ...]], object]


@dataclass(frozen=True)
class Case:
    """So many appends of so many spikes."""

    spikes: int
    calls: int
    rounds: int


def run(folder: Path, *, quick: bool) -> Table:
    """Each figure is one append, committed (ours) or flushed (theirs) before the next."""
    table = Table(
        "Appending to a record that grows",
        "Times, neuron ids and amplitudes, 24 bytes a spike, without a sync of the disk. The peers "
        "are HDF5's own SWMR append (gzip 6, shuffle, Fletcher-32, chunks as ours, a flush after "
        "each append) and zarr 3's `append` (its default codec, chunks as ours). Bytes are those "
        "of the file, for as many appends on both sides.",
    )
    cases = [Case(10_000, 20, 7), Case(100, 100, 7)]
    for case in [Case(200, 3, 2)] if quick else cases:
        for name, peer in PEERS.items():
            if name == "zarr 3" and find_spec("zarr") is None:
                continue
            table.rows += against(folder, case, name, peer)
    return table


def against(folder: Path, case: Case, name: str, peer: Any) -> Iterator[Row]:
    """Append in turn to ours and to one peer's."""
    what = f"{case.spikes:,} spikes, {name}"
    ours_at, peer_at = (folder / f"{side}-{case.spikes}-{name.split()[0]}" for side in ("a", "b"))
    with by_store(ours_at, case.spikes) as ours, peer(peer_at, case.spikes) as theirs:
        tasks = [Watched(appending(append, case.spikes)) for append in (ours, theirs)]
        result = duel(*tasks, rounds=case.rounds, calls=case.calls)
    yield speedup(what, result)
    if name == "HDF5 SWMR":
        mine, other = (median(task.spent) for task in tasks)
        yield Row(
            f"{case.spikes:,} spikes, processor time",
            seconds(mine),
            seconds(other),
            f"{number(other / mine)}x less",
        )
        rate = case.spikes / median(result.ours)
        goal = case.spikes == 10_000
        yield Row(
            f"{case.spikes:,} spikes, spikes per second",
            f"{rate / 1e6:.2f} million",
            f"{case.spikes / median(result.peer) / 1e6:.2f} million",
            f"{spread(result.speedup)} more",
            "≥ 2 million" if goal else "",
            rate >= SPIKES_PER_SECOND if goal else None,
        )
    appends = (case.rounds + 1) * case.calls
    data = appends * case.spikes * 24
    mine, other = size_of(ours_at), size_of(peer_at)
    yield Row(
        f"{case.spikes:,} spikes, bytes of {data:,}, {name}",
        f"{number(mine / data)}x the data",
        f"{number(other / data)}x the data",
        f"{number(mine / other)}x the size",
        "≤ 1.5x the data",
        mine <= 1.5 * data,
    )


class Watched:
    """A task that notes the processor time of each call, which other processes do not change."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.spent: list[float] = []

    def __call__(self, number: int) -> object:
        """Run the task."""
        began = process_time()
        done = self._task(number)
        self.spent.append(process_time() - began)
        return done


def appending(append: Append, spikes: int) -> Task:
    """Append a train that differs from call to call, later than the one before."""
    rng = np.random.default_rng(5)
    pool = [
        (np.sort(rng.random(spikes)), rng.integers(0, 1000, spikes), rng.normal(1, 0.1, spikes))
        for _ in range(8)
    ]

    def task(number: int) -> object:
        times, *rest = pool[number % len(pool)]
        return append((times + number, *rest))

    return task


@contextmanager
def by_store(path: Path, spikes: int) -> Iterator[Append]:
    """Every append a commit."""
    with (
        neurostore.open(path, durability="process") as store,
        store.record("spike_train", timestamp=0.0) as rec,
    ):
        yield lambda columns: rec.append(*columns)


@contextmanager
def by_swmr(path: Path, spikes: int) -> Iterator[Append]:
    """Resize, write and flush, as the manual of h5py has it."""
    chunks = (max(spikes, 2048),)
    with h5py.File(path, "w", libver="latest") as h5file:
        datasets = [
            h5file.create_dataset(
                name, (0,), dtype, maxshape=(None,), chunks=chunks, shuffle=True, **trains.FILTERS
            )
            for name, dtype in zip(trains.FIELDS, ("f8", "i8", "f8"), strict=True)
        ]
        h5file.swmr_mode = True

        def append(columns: tuple[np.ndarray, ...]) -> None:
            for dataset, column in zip(datasets, columns, strict=True):
                length = len(dataset)
                dataset.resize((length + len(column),))
                dataset[length:] = column
            for dataset in datasets:
                dataset.flush()

        yield append


@contextmanager
def by_zarr(path: Path, spikes: int) -> Iterator[Append]:
    """Three arrays in a folder."""
    import zarr

    group = zarr.create_group(path)
    arrays = [
        group.create_array(name, shape=(0,), dtype=dtype, chunks=(max(spikes, 2048),))
        for name, dtype in zip(trains.FIELDS, ("f8", "i8", "f8"), strict=True)
    ]

    def append(columns: tuple[np.ndarray, ...]) -> None:
        for array, column in zip(arrays, columns, strict=True):
            array.append(column)

    yield append


PEERS = {"HDF5 SWMR": by_swmr, "zarr 3": by_zarr}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)
