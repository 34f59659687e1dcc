"""Requests and bytes for one record of a file on an S3 server, which runs on loopback.

Seconds are not told: a server far away takes some tens of milliseconds for each request, and this
one takes none. The peer reads the same values with h5py through s3fs as it comes.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

import neurostore
from benchmarks import trains
from benchmarks.report import Row, Table

NAME = "remote"
URL = "s3://runs/run.h5"
MOST_REQUESTS, MOST_BYTES = 6, 1_000_000


def run(folder: Path, *, quick: bool) -> Table:
    """Open a file in pages and read a record in the middle of it, whole."""
    records = 300 if quick else 10_000
    path = Path(shutil.copy(trains.store_file(folder, records), folder / "remote.h5"))
    with neurostore.open(path) as store:
        store.repack(paged=True)
        own = int(store.catalogue()["stored_bytes"][records // 2])
    with served(path) as options:
        ours = by_us(records // 2, options)
        peer = by_h5py(records // 2, options)
    table = Table(
        "One record of a remote file",
        f"{records:,} spike trains in a file of {path.stat().st_size / 1e6:.0f} MB in pages, on an "
        f"S3 server (moto) on loopback: open it, retrieve one record of {own:,} stored bytes and "
        "load it. The peer is `h5py.File` on the file object of s3fs, who knows the address.",
    )
    extra = [received - own for _, received in (ours, peer)]
    table.rows += [
        counted("requests", ours[0], peer[0], MOST_REQUESTS, ""),
        counted("bytes beyond the record's own", extra[0], extra[1], MOST_BYTES, " B"),
    ]
    return table


def counted(what: str, ours: int, peer: int, most: int, unit: str) -> Row:
    """One count on both sides, and how high it may be."""
    goal = f"at most {most:,}{unit}"
    sides = f"{ours:,}{unit}", f"{peer:,}{unit}"
    return Row(what, *sides, f"{ours / max(1, peer):.2f}", goal, ours <= most)


def by_us(k: int, options: dict[str, Any]) -> tuple[int, int]:
    """Requests and bytes of ours."""
    with neurostore.open(URL, storage_options=options) as store:
        ds = store.retrieve(f"train_{float(k)!r}").load()
        assert ds.sizes["spike"] == len(trains.columns(k)[0])
        return store.traffic["requests"], store.traffic["received_bytes"]


def by_h5py(k: int, options: dict[str, Any]) -> tuple[int, int]:
    """Requests and bytes of h5py, counted by the cache that s3fs gives it."""
    import s3fs

    with s3fs.S3FileSystem(**options).open(URL) as stream:
        with h5py.File(stream) as h5file:
            for name in trains.FIELDS:
                h5file[trains.address(k)][name][...]
        return stream.cache.miss_count, stream.cache.total_requested_bytes


@contextmanager
def served(path: Path) -> Iterator[dict[str, Any]]:
    """Serve the file by S3's API; give what s3fs needs to read it."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "open", "secret": "sesame", "endpoint_url": f"http://{host}:{port}"}
    try:
        there = s3fs.S3FileSystem(**options)
        there.mkdir("runs")
        there.put_file(str(path), URL)
        yield options
    finally:
        server.stop()
