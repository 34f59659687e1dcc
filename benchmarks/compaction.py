"""Compaction against copying the same bytes, and against encoding every value anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import neurostore
from benchmarks.measure import Task, duel
from benchmarks.report import Row, Table, cost, speedup

NAME = "compaction"


def each_round(function: Callable[..., object], *args: Any, **options: Any) -> Task:
    """Make a task that does the same in every round."""
    return lambda _: function(*args, **options)


def run(folder: Path, *, quick: bool) -> Table:
    """Compact a file again and again: the second time moves the same bytes as the first."""
    table = Table(
        "Compaction",
        "Half of the records of a file were removed. The time of one `Store.compact` (without "
        "syncs) beside `shutil.copyfile` of the file that it leaves, and beside `Store.repack`, "
        "which decodes and encodes every value (gzip 6). The size is compared with that of a file "
        "into which only the remaining records were stored. The synced rows have the sync that "
        "`durability='power'` makes of the new file, on both sides.",
    )
    cases: tuple[tuple[str, Callable[[int], xr.Dataset], int], ...] = (
        ("snapshots of 1,000 neurons", snapshot, 4 if quick else 40),
        ("trains of 100,000 spikes", long_train, 4 if quick else 60),
        ("trains of 1,000 spikes", train, 20 if quick else 1_000),
    )
    for what, make, count in cases:
        path = folder / "compaction.h5"
        fresh = filled(folder / "compaction-fresh.h5", make, range(count // 2, count))
        filled(path, make, range(count))
        with neurostore.open(path, durability="process") as store:
            store.cleanup(keep=neurostore.Keep(latest=count - count // 2))
            store.compact()
            size = path.stat().st_size
            peer = folder / "compaction-copy.h5"
            rounds = 1 if quick else 5
            copying = each_round(copy, path, peer)
            compacting = each_round(store.compact)
            synced = each_round(compact_synced, path)
            copying_synced = each_round(copy_synced, path, peer)
            encoding = each_round(store.repack, compression="gzip", compression_opts=6)
            against_copy = duel(compacting, copying, rounds=rounds)
            against_synced = duel(synced, copying_synced, rounds=rounds)
            against_encoding = duel(compacting, encoding, rounds=rounds, warm=False)
        table.rows.append(cost(f"{what}, copyfile", against_copy, at_most=2.0))
        table.rows.append(cost(f"{what}, copyfile, both synced", against_synced, at_most=2.0))
        table.rows.append(speedup(f"{what}, encoding anew", against_encoding, at_least=10))
        table.rows.append(bytes_row(f"{what}, size", size, fresh.stat().st_size))
        for file in (path, fresh, peer):
            file.unlink()
    return table


def bytes_row(what: str, ours: int, fresh: int) -> Row:
    """Dead space: bytes beyond those of a file that never held the removed records."""
    beyond = ours / fresh - 1
    return Row(what, f"{ours:,} B", f"{fresh:,} B", f"{beyond:+.2%}", "≤ 2 % dead", beyond <= 0.02)


def copy(path: Path, target: Path) -> None:
    """Copy into a new file, as compaction makes one."""
    if target.exists():
        os.unlink(target)
    shutil.copyfile(path, target)


def copy_synced(path: Path, target: Path) -> None:
    """Copy, and bring the copy and its name to the medium."""
    copy(path, target)
    for place in (target, target.parent):
        fd = os.open(place, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def compact_synced(path: Path) -> None:
    """Compact with syncs, in the file that is open already."""
    with neurostore.open(path, durability="power") as store:
        store.compact()


def filled(path: Path, make: Callable[[int], xr.Dataset], numbers: range) -> Path:
    """Store records, a hundred to a commit."""
    with neurostore.open(path, mode="x", durability="process") as store:
        for first in range(numbers.start, numbers.stop, 100):
            with store.batch():
                for number in range(first, min(numbers.stop, first + 100)):
                    store.store(make(number))
    return path


def snapshot(number: int) -> xr.Dataset:
    """A dense network."""
    rng = np.random.default_rng(number)
    return neurostore.network_snapshot(
        rng.integers(0, 2, (1000, 1000)),
        rng.random((1000, 1000)),
        rng.random((1000, 3)),
        timestamp=float(number),
    )


def long_train(number: int) -> xr.Dataset:
    """A long recording."""
    return spikes(number, 100_000)


def train(number: int) -> xr.Dataset:
    """A short recording, each of another length."""
    return spikes(number, 950 + number % 100)


def spikes(number: int, count: int) -> xr.Dataset:
    """Sorted times of a thousand neurons."""
    rng = np.random.default_rng(number)
    return neurostore.spike_train(
        np.sort(rng.random(count)),
        rng.integers(0, 1000, count),
        rng.normal(1, 0.1, count),
        timestamp=float(number),
    )
