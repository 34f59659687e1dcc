"""A reduction over a long series through dask on a cluster of processes, and in one process.

The records are planes of one value, which are small on disk: 10 GB are read, and decoded, that
nobody has to write for an hour.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import neurostore
from benchmarks.report import Row, Table

NAME = "dask"
MB = 2**20
SHAPE = (2_048, 2_048)
WORKERS = 2
#: What a worker may have beyond its libraries, of 10 GB.
LIMIT = 512


def run(folder: Path, *, quick: bool) -> Table:
    """Mean of every record, by dask here, by a cluster, and by a loop."""
    records = 8 if quick else 320
    path = folder / "dask" / "run.h5"
    write(path, records)
    size = records * np.prod(SHAPE) * 8 / MB
    table = Table(
        "Through dask",
        f"Mean of each of {records} records of {size / records:.0f} MB, {size / 1024:.1f} GB in "
        f"all, from a series. The peer is a loop in one process, which reads a record at a time. "
        f"The cluster has {WORKERS} processes of one thread; its memory is the peak of a worker "
        "beyond what it had after a first small reduction.",
    )
    store = neurostore.open(path, "r")
    lazy = store.range("reservoir_states")
    began = time.perf_counter()
    wanted = [float(lazy.states[number].values.mean()) for number in range(records)]
    loop = time.perf_counter() - began
    reduced = store.range("reservoir_states", chunks={}).states.mean(
        ["neuron", "time"], skipna=False
    )
    began = time.perf_counter()
    found = reduced.compute()
    table.rows.append(rate("dask's threads", size, time.perf_counter() - began, loop))
    assert found.values.tolist() == wanted
    if not Path("/proc/self/status").exists():
        return table  # the memory of a worker is read there
    try:
        import distributed
    except ModuleNotFoundError:
        table.about += " It is left out, for want of the extra `distributed`."
        return table
    # Its scratch files are no part of what is measured.
    with (
        tempfile.TemporaryDirectory() as scratch,
        distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=scratch,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        seconds, grown = on(client, reduced, wanted)
    table.rows.append(rate("a cluster of processes", size, seconds, loop))
    memory = f"{grown:,.0f} MB", f"{size:,.0f} MB", f"{grown / size:.3f}x the data"
    table.rows.append(Row("memory of a worker", *memory, f"≤ {LIMIT} MB", grown <= LIMIT))
    return table


def write(path: Path, records: int) -> None:
    """Make a series of four files."""
    path.parent.mkdir()
    plane = np.empty(SHAPE)
    with neurostore.open(path, compression_opts=1, durability="process") as store:
        for number in range(records):
            plane[:] = number
            store.store(neurostore.reservoir_states(plane, "main", timestamp=float(number)))
            if (number + 1) % max(1, records // 4) == 0 and number + 1 < records:
                store.rotate()


def rate(what: str, size: float, seconds: float, peer: float) -> Row:
    """One way to do it, beside the loop."""
    return Row(
        what, f"{size / seconds:,.0f} MB/s", f"{size / peer:,.0f} MB/s", f"{peer / seconds:.2f}x"
    )


def on(client: Any, reduced: Any, wanted: list[float]) -> tuple[float, float]:
    """Return the seconds that it takes on a cluster, and by how many MB a worker grew."""
    client.wait_for_workers(WORKERS)
    client.compute(reduced.isel(record=slice(0, 2 * WORKERS)), sync=True)
    before = client.run(peak)
    began = time.perf_counter()
    found = client.compute(reduced, sync=True)
    seconds = time.perf_counter() - began
    assert found.values.tolist() == wanted
    after = client.run(peak)
    return seconds, max(after[worker] - before[worker] for worker in before)


def peak() -> float:
    """Peak of the resident memory of this process, in MB; that of its parent is no part of it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
