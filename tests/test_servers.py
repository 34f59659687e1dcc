"""Files on real servers: S3's own API, and HTTP with byte ranges, both on loopback."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore.errors import ReadOnlyError, StoreNotFoundError
from neurostore.store import Store

pytest.importorskip("aiohttp")
GROUP = "activations/reservoir_states/a_50.0"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in pages: small records, and one of several chunks."""
    path = tmp_path_factory.mktemp("served") / "run.h5"
    values = np.random.default_rng(3)
    with neurostore.open(path, durability="process") as store:
        with store.batch():
            for moment in range(40):
                times = np.sort(values.random(50))
                ids = values.integers(0, 9, 50)
                store.store(neurostore.spike_train(times, ids, timestamp=float(moment)))
            states = values.random((600, 500))
            store.store(neurostore.reservoir_states(states, "a", timestamp=50.0))
        store.repack(paged=True)
    return path


def assert_same(there: Store, path: Path) -> None:
    with neurostore.open(path, "r") as here:
        assert there.ids() == here.ids()
        assert there.catalogue().load().identical(here.catalogue().load())
        for record_id in ("train_3.0", "a_50.0"):
            assert there.retrieve(record_id).load().identical(here.retrieve(record_id).load())
        span = ("spike_train", 2.0, 30.0)
        assert there.range(*span).load().identical(here.range(*span).load())


# -- S3 ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3(path: Path) -> Iterator[dict[str, Any]]:
    """What s3fs needs for a server that has the file in the bucket ``runs``."""
    pytest.importorskip("s3fs")
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"key": "open", "secret": "sesame", "endpoint_url": f"http://{host}:{port}"}
    names = {"aws_access_key_id": keys["key"], "aws_secret_access_key": keys["secret"]}
    client = boto3.client("s3", endpoint_url=keys["endpoint_url"], region_name="us-east-1", **names)
    client.create_bucket(Bucket="runs")
    client.upload_file(str(path), "runs", "run.h5")
    client.close()
    yield keys
    server.stop()


def test_s3_answers_as_the_file_does(path: Path, s3: dict[str, Any]) -> None:
    with neurostore.open("s3://runs/run.h5", storage_options=s3) as store:
        assert_same(store, path)
        assert store.traffic["received_bytes"] > 0
        with pytest.raises(ReadOnlyError, match=r"s3://.* is for reading"):
            store.cleanup(1)


def test_s3_through_the_engine(path: Path, s3: dict[str, Any]) -> None:
    options: dict[str, Any] = {"engine": "neurostore", "storage_options": s3}
    here = xr.open_dataset(path, group=GROUP, engine="neurostore").load()
    there = xr.open_dataset("s3://runs/run.h5", group=GROUP, **options)
    assert there.load().identical(here)
    assert xr.open_datatree("s3://runs/run.h5", **options)[GROUP].sizes == here.sizes


@pytest.mark.parametrize("url", ["s3://runs/none.h5", "s3://nowhere/run.h5"])
def test_what_s3_does_not_have_is_named(url: str, s3: dict[str, Any]) -> None:
    with pytest.raises(StoreNotFoundError, match=url):
        neurostore.open(url, storage_options=s3)


# -- HTTP -------------------------------------------------------------------------------------


class Ranges(http.server.BaseHTTPRequestHandler):
    """Answers requests for a byte range of the files, and notes each with the bytes it sent."""

    files: dict[str, bytes]
    seen: list[int]

    def do_GET(self) -> None:
        if self.path == "/forbidden.h5":
            self.send_error(403)
            return
        if self.path not in self.files:
            self.send_error(404)
            return
        data = self.files[self.path]
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = data[int(first) : int(last) + 1]
        self.seen.append(len(part))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web(path: Path) -> Iterator[str]:
    Ranges.files, Ranges.seen = {"/run.h5": path.read_bytes()}, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_http_answers_as_the_file_does(path: Path, web: str) -> None:
    with neurostore.open(f"{web}/run.h5") as store:
        assert_same(store, path)


def test_requests_are_counted_as_the_server_counts_them(web: str) -> None:
    Ranges.seen.clear()
    with neurostore.open(f"{web}/run.h5") as store:
        store.retrieve("a_50.0").load()
        told = store.traffic
    assert told == {"requests": len(Ranges.seen), "received_bytes": sum(Ranges.seen)}


@pytest.mark.parametrize(
    ("name", "error"), [("none.h5", StoreNotFoundError), ("forbidden.h5", ReadOnlyError)]
)
def test_what_http_refuses_is_named(web: str, name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{web}/{name}"):
        neurostore.open(f"{web}/{name}")
