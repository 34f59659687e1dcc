"""Compaction against copying the same bytes, and against encoding every value anew."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

import neurostore
from benchmarks.measure import Duel
from benchmarks.report import Row, Table, cost, speedup
from neurostore.osio import Durability, wait_freed

NAME = "compaction"

FILTERS: dict[str, Any] = {
    "compression": "gzip",
    "compression_opts": 6,
    "shuffle": True,
    "fletcher32": True,
}

Job = Callable[[Path, Path], float]
"""Does something to a file, or with one of the same live bytes; returns the seconds it took."""


def run(folder: Path, *, quick: bool) -> Table:
    """Compact the same file, half of whose records were removed, in every round."""
    table = Table(
        "Compaction",
        "Half of the records of a file were removed, and the file is on the medium. Timed is "
        "`Store.compact` in a store that is open, beside `shutil.copyfile` of the file that it "
        "leaves: both write the same bytes, which the rows give. *Copied* stops there, with a copy "
        "under a new name that replaces nothing and of which nothing need be on the medium. *Put "
        "in place* renames the copy over the old file, where compaction ends, too; many file "
        "systems write a new file out at that moment, and all free the old one. Nobody syncs in "
        "these two (`durability='process'`). *Synced* is the same with syncs of the new file "
        "and of its name on both sides (`durability='power'`, what a store does by default). "
        "*Encoding anew* is `Store.repack`, which decodes and encodes every value (gzip 6), or "
        "h5py, which does so dataset by dataset with HDF5's filters (shuffle, gzip 6, Fletcher32) "
        "in a new file, beside `Store.compact`, nothing synced. The size is compared with that of "
        "a file into which only the remaining records were stored. The small file shows what a "
        "compaction costs however little there is. The peer's rename frees the old file; "
        "`Store.compact` leaves that to a thread, which is not waited for.",
    )
    cases: tuple[tuple[str, Callable[[int], xr.Dataset], int], ...] = (
        ("snapshots of 1,000 neurons", snapshot, 4 if quick else 40),
        ("trains of 100,000 spikes", long_train, 4 if quick else 160),
        ("trains of 1,000 spikes", train, 20 if quick else 8_000),
    )
    rounds = 1 if quick else 5
    for what, make, count in cases:
        full, live, fresh = files(folder, make, count)
        size = live.stat().st_size
        label = f"{what}, {size / 1e6:,.0f} MB"
        for row, ours, peer in (
            ("copied", compact, copy),
            ("put in place", compact, put_in_place),
            ("synced", compact_synced, put_in_place_synced),
        ):
            result = compared(full, live, ours, peer, rounds)
            table.rows.append(cost(f"{label}, {row}", result, at_most=2.0))
        for row, peer in (("encoding anew", encode), ("encoding anew by h5py", encode_by_h5py)):
            result = compared(full, live, compact, peer, 1)
            table.rows.append(speedup(f"{label}, {row}", result, at_least=10))
        table.rows.append(bytes_row(f"{label}, size", size, fresh.stat().st_size))
        for file in (full, live, fresh):
            file.unlink()
    full, live, _ = files(folder, train, 20)
    result = compared(full, live, compact_synced, put_in_place_synced, 2 * rounds)
    table.rows.append(cost("ten trains of 1,000 spikes, synced", result))
    return table


def files(folder: Path, make: Callable[[int], xr.Dataset], count: int) -> tuple[Path, Path, Path]:
    """Make a file with removed records, what compaction leaves of it, and what need be left."""
    kept = range(count // 2, count)
    fresh = filled(folder / "compaction-fresh.h5", make, kept)
    full = filled(folder / "compaction-full.h5", make, range(count))
    with neurostore.open(full, durability="process") as store:
        store.cleanup(keep=neurostore.Keep(latest=len(kept)))
    live = Path(shutil.copy2(full, folder / "compaction-live.h5"))
    with neurostore.open(live, durability="process") as store:
        store.compact()
    return full, live, fresh


def bytes_row(what: str, ours: int, fresh: int) -> Row:
    """Dead space: bytes beyond those of a file that never held the removed records."""
    beyond = ours / fresh - 1
    return Row(what, f"{ours:,} B", f"{fresh:,} B", f"{beyond:+.2%}", "≤ 2 % dead", beyond <= 0.02)


def compared(full: Path, live: Path, ours: Job, peer: Job, rounds: int) -> Duel:
    """Let both begin with the same files, on the medium and in memory, in turns."""
    result = Duel([], [])
    for turn in range(rounds):
        sides = [(result.ours, ours), (result.peer, peer)]
        for times, job in sides if turn % 2 else reversed(sides):
            path = Path(shutil.copy2(full, full.with_name("compaction.h5")))
            for file in (live, path):
                to_medium(file)
            times.append(job(path, live))
            wait_freed()
            for left in (path, beside(path)):
                left.unlink(missing_ok=True)
    return result


def compact(path: Path, live: Path, durability: Durability = "process") -> float:
    """Compact the file."""
    with neurostore.open(path, durability=durability) as store:
        return timed(store.compact)


def compact_synced(path: Path, live: Path) -> float:
    """Compact the file with syncs."""
    return compact(path, live, "power")


def encode(path: Path, live: Path) -> float:
    """Decode and encode every value."""
    with neurostore.open(path, durability="process") as store:
        return timed(lambda: store.repack(compression="gzip", compression_opts=6))


def encode_by_h5py(path: Path, live: Path) -> float:
    """Write all that is live with HDF5's own filters, dataset by dataset."""
    with h5py.File(live) as old, h5py.File(beside(path), "w", libver=("v110", "v110")) as new:

        def rewrite(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                made = new.require_group(name)
            elif isinstance(item, h5py.Dataset):
                made = new.create_dataset(
                    name,
                    data=item[()],
                    chunks=item.chunks,
                    maxshape=item.maxshape,
                    **(FILTERS if item.chunks else {}),
                )
            else:
                return
            for key, value in item.attrs.items():
                if key not in ("DIMENSION_LIST", "REFERENCE_LIST"):
                    made.attrs[key] = value

        return timed(lambda: old.visititems(rewrite))


def copy(path: Path, live: Path) -> float:
    """Copy the live bytes under a new name."""
    return timed(lambda: shutil.copyfile(live, beside(path)))


def put_in_place(path: Path, live: Path) -> float:
    """Copy the live bytes, and put the copy in the place of the file."""

    def work() -> None:
        shutil.copyfile(live, beside(path))
        beside(path).replace(path)

    return timed(work)


def put_in_place_synced(path: Path, live: Path) -> float:
    """Do the same so that a power cut leaves the one file or the other."""

    def work() -> None:
        shutil.copyfile(live, beside(path))
        to_medium(beside(path))
        beside(path).replace(path)
        to_medium(path.parent)

    return timed(work)


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def beside(path: Path) -> Path:
    """Where a copy is made."""
    return path.with_name("compaction-copy.h5")


def to_medium(path: Path) -> None:
    """Sync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
