"""How much of what the machine can do is reached: with one core and with all, against bare copies.

Each figure is taken in a process of its own, which the system keeps to so many cores. The limit of
writing is the time for one `pwrite` of the stored bytes and one copy of the values in memory; that
of reading, one `pread` and one copy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

import neurostore
from benchmarks.report import Line, Table

NAME = "limits"
DATA = ("noise", "integers", "sparse")


def run(folder: Path, *, quick: bool) -> Table:
    """One line for each kind of data and number of cores."""
    table = Table(
        "Cores, and the limit of the machine",
        "A matrix of 64 MB: dense random float64, int64 of 0/1, and float64 of which a tenth is "
        "not zero. MB of values per second from opening the file to closing it, without a sync; "
        "in brackets the fraction of the limit, which is one `pwrite` (`pread`) of the stored "
        "bytes and one copy of the values in memory.",
        head=("data", "cores", "write", "read"),
    )
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for what in DATA:
        for count in sorted({1} if quick else {1, len(cores)} - {0}):
            found = measured(folder, what, 200 if quick else 2_896, count, 1 if quick else 5)
            table.rows.append(Line((what, str(count), *found)))
    return table


def measured(folder: Path, what: str, side: int, cores: int, rounds: int) -> list[str]:
    """Run this module in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.limits", str(folder), what, str(side), str(cores)]
    done = subprocess.run([*command, str(rounds)], check=True, capture_output=True, text=True)
    return list(json.loads(done.stdout))


def matrix(what: str, side: int) -> np.ndarray:
    """The values."""
    rng = np.random.default_rng(0)
    if what == "integers":
        return rng.integers(0, 2, (side, side))
    noise = rng.random((side, side))
    return noise if what == "noise" else np.where(noise < 0.1, rng.random((side, side)), 0)


def alone(folder: Path, what: str, side: int, cores: int, rounds: int) -> list[str]:
    """Measure both ways beside their limits, alternately; the fastest of each counts."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    array, path, raw = matrix(what, side), folder / "limits.h5", folder / "limits.raw"
    times: dict[str, list[float]] = {"write": [], "read": [], "pwrite": [], "pread": []}
    for _ in range(rounds + 1):
        path.unlink(missing_ok=True)
        times["write"].append(timed(lambda: store(path, array)))
        times["read"].append(timed(lambda: load(path)))
        raw.unlink(missing_ok=True)
        times["pwrite"].append(timed(lambda: put(raw, array, path)))
        times["pread"].append(timed(lambda: get(raw, array)))
    best = {name: min(found[1:]) for name, found in times.items()}
    pairs = (("write", "pwrite"), ("read", "pread"))
    return [
        f"{array.nbytes / best[ours] / 1e6:,.0f} MB/s ({best[limit] / best[ours]:.2f})"
        for ours, limit in pairs
    ]


def timed(action: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = perf_counter()
    action()
    return perf_counter() - start


def store(path: Path, array: np.ndarray) -> None:
    """One record in a new file."""
    with neurostore.HDF5Storage(path, durability="process") as storage:
        storage.store_plasticity_trace(1.0, array, "stdp")


def load(path: Path) -> object:
    """The same record."""
    with neurostore.HDF5Storage(path) as storage:
        return storage.retrieve_plasticity_trace("stdp_1.0")


def put(path: Path, array: np.ndarray, like: Path) -> None:
    """Copy the values, and write as many bytes as the other file has."""
    copy = array.copy()
    with path.open("wb", buffering=0) as stream:
        stream.write(memoryview(copy).cast("B")[: like.stat().st_size])


def get(path: Path, array: np.ndarray) -> object:
    """Read the bytes, and copy as many as there are values."""
    return path.read_bytes(), array.copy()


if __name__ == "__main__":
    where, what, *numbers = sys.argv[1:]
    print(json.dumps(alone(Path(where), what, *map(int, numbers))))
