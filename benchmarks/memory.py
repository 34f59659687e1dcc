"""Memory for arrays that are larger than what is free: peak of a process of its own, in MB.

The resident memory that the process had when it was ready to store or load is taken off.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import xarray as xr

import neurostore
from benchmarks.report import Row, Table

NAME = "memory"
MB = 2**20


def run(folder: Path, *, quick: bool) -> Table:
    """Every case in its own process."""
    table = Table(
        "Memory",
        "Peak of the resident memory of a process of its own, beyond what it had before, and "
        "beyond the loaded array itself. The dask array is made as it is stored, in chunks of "
        "32 MB; what is set beside ours is the size of the array.",
    )
    small = 8 * MB
    cases = {
        "store a NumPy array": ("numpy", small if quick else 2 * 1024 * MB, 256),
        "load it": ("load", small if quick else 2 * 1024 * MB, 256),
        "store a NumPy array of float16": ("float16", small if quick else 1024 * MB, 256),
        "store a dask array": ("dask", small if quick else 4 * 1024 * MB, 512),
    }
    for what, (case, nbytes, limit) in cases.items():
        command = [sys.executable, "-m", "benchmarks.memory", case, str(folder), str(nbytes)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak = float(json.loads(done.stdout)) / MB
        size = nbytes / MB
        ratio = f"{peak / size:.2f}x the array"
        goal = f"≤ {limit} MB"
        row = Row(what, f"{peak:,.0f} MB", f"{size:,.0f} MB", ratio, goal, peak <= limit)
        table.rows.append(row)
    return table


def record(changes: object) -> xr.Dataset:
    """A record with one large variable."""
    attrs = {"kind": "plasticity_trace", "plasticity_type": "stdp"}
    return xr.Dataset({"changes": (("pre", "post"), changes)}, {"timestamp": 1.0}, attrs)


def alone(case: str, folder: Path, nbytes: int) -> int:
    """Store or load, and return the bytes it took."""
    path = folder / f"memory-{'numpy' if case == 'load' else case}.h5"
    side = int((nbytes / (2 if case == "float16" else 8)) ** 0.5)
    with neurostore.open(path, durability="process") as store:
        if case == "load":
            found = store.retrieve("stdp_1.0").changes
            before = peak()
            values = found.values
            return peak() - before - values.nbytes
        ds = record(array(case, side))
        before = peak()
        store.store(ds)
        return peak() - before


def array(case: str, side: int) -> object:
    """The values, whose making leaves no higher peak than they themselves."""
    if case == "dask":
        import dask.array as da

        return da.random.default_rng(0).random((side, side), chunks=2_048)
    made = np.empty((side, side), "f2" if case == "float16" else "f8")
    rng = np.random.default_rng(0)
    for row in made:
        row[:] = rng.random(side)
    return made


def peak() -> int:
    """Peak of the resident memory so far, in bytes.

    What Linux tells by getrusage has in it the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text("ascii"), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(alone(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
