"""Remote files: the same answers as from a local one, by byte ranges, and nothing but reading."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore import catalogue_file
from neurostore.errors import (
    NotAStoreError,
    ReadOnlyError,
    StoreError,
    StoreNotFoundError,
    ValidationError,
)
from neurostore.places import Url, is_url, place
from neurostore.remote import RemoteFile
from neurostore.shortcuts import Shortcuts

fsspec = pytest.importorskip("fsspec")
RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote") / "run.h5"
    with neurostore.open(path, max_records=30) as store:
        for moment in range(40):
            size = int(RNG.integers(0, 60))
            ds = neurostore.spike_train(
                RNG.random(size), RNG.integers(0, 9, size), timestamp=float(moment)
            )
            ds.neuro.store(path) if moment % 2 else store.store(ds)
        weights = RNG.random((300, 300))
        store.store(neurostore.network_snapshot(weights > 0.5, weights, timestamp=5.0))
    return path


@pytest.fixture(scope="module")
def url(local: Path) -> Iterator[str]:
    served = fsspec.filesystem("memory")
    for path in local.parent.glob("*.h5"):
        served.pipe(f"/runs/{path.name}", path.read_bytes())
    yield "memory://runs/run.h5"
    served.rm("/runs", recursive=True)


def test_a_series_answers_as_it_does_here(local: Path, url: str) -> None:
    there, here = neurostore.open(url), neurostore.open(local, "r")
    assert len(here.info()["files"]) > 1
    assert there.ids() == here.ids()
    assert there.catalogue().load().identical(here.catalogue().load())
    for record_id in ("train_3.0", "train_39.0", "snapshot_5.0"):
        assert there.retrieve(record_id).load().identical(here.retrieve(record_id).load())
    assert (
        there.range("spike_train", 2, 35).load().identical(here.range("spike_train", 2, 35).load())
    )
    counts = there.info()["records"], here.info()["records"]
    assert counts[0] == counts[1]
    assert "41 records" in repr(there)


def test_a_slice_asks_for_its_own_bytes(local: Path, url: str) -> None:
    with neurostore.open(url) as store:
        ds = store.retrieve("snapshot_5.0")
        before = store.traffic["received_bytes"]
        part = ds["weights"].isel(pre=slice(0, 2)).values
        took = store.traffic["received_bytes"] - before
    whole = neurostore.open(local, "r").retrieve("snapshot_5.0")["weights"].values
    np.testing.assert_array_equal(part, whole[:2])
    assert 0 < took < whole.nbytes / 2
    assert neurostore.open(local, "r").traffic == {}


def test_the_engine_and_what_comes_from_it(local: Path, url: str) -> None:
    group = "spike_trains/raw_data/train_3.0"
    ds = xr.open_dataset(url, engine="neurostore", group=group)
    assert ds.load().identical(xr.open_dataset(local, engine="neurostore", group=group).load())
    lazy = neurostore.open(url).retrieve("train_3.0")
    assert lazy.neuro.ids("spike_train", 39) == ["train_39.0"]
    again = pickle.loads(pickle.dumps(lazy))
    assert again.load().identical(lazy.load())


def test_nothing_is_written(url: str) -> None:
    store = neurostore.open(url)
    assert store.mode == "r"
    ds = store.retrieve("train_3.0").load()
    for change in (lambda: store.store(ds), lambda: store.cleanup(1), store.compact, store.rotate):
        with pytest.raises(ReadOnlyError, match="a remote file is for reading"):
            change()
    for question in (store.verify, lambda: store.repair("new.h5")):
        with pytest.raises(ReadOnlyError, match="copy it here"):
            question()


def test_what_cannot_be_opened_says_why(url: str) -> None:
    fsspec.filesystem("memory").pipe("/odd/text.h5", b"no HDF5 at all" * 99)
    for wrong, error, said in (
        ("memory://runs/none.h5", StoreNotFoundError, "no such file"),
        ("memory://odd/text.h5", NotAStoreError, "begins with b'no HDF5 '"),
        ("nothing://runs/run.h5", NotAStoreError, "Protocol not known"),
    ):
        with pytest.raises(error, match=said):
            neurostore.open(wrong)
    with pytest.raises(ValidationError, match="open a URL by itself"):
        neurostore.open([url, url])


def test_a_server_that_fails_is_not_read_as_zeros(local: Path) -> None:
    served = fsspec.filesystem("memory")
    served.pipe("/cut/run.h5", local.read_bytes())
    store = neurostore.open("memory://cut/run.h5")
    ds = store.retrieve("snapshot_5.0")
    served.pipe("/cut/run.h5", local.read_bytes()[: 80 * 1024])
    with pytest.raises(StoreError, match="shorter than it says"):
        ds.load()
    served.rm("/cut/run.h5")
    with pytest.raises(StoreNotFoundError):
        store.retrieve("snapshot_5.0").load()
    served.pipe("/cut/run.h5", local.read_bytes()[:9000])
    store.close()
    with pytest.raises(NotAStoreError, match="HDF5 cannot open"):
        neurostore.open("memory://cut/run.h5")


def test_near_ranges_are_one_request(url: str) -> None:
    served = RemoteFile(Url(url))
    data = fsspec.filesystem("memory").cat("/runs/run.h5")
    before = served.requests
    ranges = [(290_000, 16_000), (150_000, 50), (150_020, 100), (290_500, 7), (600_000, 9_000)]
    assert served.fetch(ranges) == [data[start : start + length] for start, length in ranges]
    assert served.requests - before == 3


@pytest.mark.parametrize(
    ("text", "wanted"), [("s3://b/a.h5", True), ("a.h5", False), ("C:\\a.h5", False), (7, False)]
)
def test_what_a_url_is(text: Any, wanted: bool) -> None:
    assert is_url(text) is wanted


def test_options_stay_out_of_sight(tmp_path: Path) -> None:
    url = place("s3://bucket/secret.h5", {"key": "hush"})
    assert "hush" not in repr(url) + str(url)
    assert pickle.loads(pickle.dumps(url)).options == {"key": "hush"}
    assert url.with_name("other.h5").options == {"key": "hush"}
    assert place(tmp_path / "a.h5") == tmp_path / "a.h5"


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paged") / "run.h5"
    with neurostore.open(path) as store:
        with store.batch():
            for moment in range(500):
                size = int(RNG.integers(80, 120))
                ds = neurostore.spike_train(
                    RNG.random(size), RNG.integers(0, 9, size), timestamp=float(moment)
                )
                store.store(ds)
            weights = RNG.random((30, 30))
            store.store(neurostore.network_snapshot(weights > 0.5, weights, timestamp=5.0))
        store.cleanup(keep=neurostore.Keep("spike_train", latest=499))
        store.repack(paged=True)
    return path


def served(path: Path, name: str) -> str:
    fsspec.filesystem("memory").pipe(f"/paged/{name}", path.read_bytes())
    return f"memory://paged/{name}"


def test_a_record_of_a_paged_file_takes_six_requests(paged: Path) -> None:
    here = neurostore.open(paged, "r")
    for record_id in ("train_100.0", "snapshot_5.0"):
        with neurostore.open(served(paged, "run.h5")) as store:
            ds = store.retrieve(record_id).load()
            assert store.traffic["requests"] <= 6
        assert ds.identical(here.retrieve(record_id).load())
    assert here.verify().ok


def is_reference_taken(path: Path, record_id: str) -> bool:
    with h5py.File(path) as h5file:
        held = catalogue_file.read(h5file)
        assert held is not None
        entry = held.find(record_id)
        assert entry is not None
        shortcuts = Shortcuts()
        shortcuts.point(h5file, held, entry)
        address = f"{entry.kind.parts[0].path}/{record_id}"
        return shortcuts.where(h5file.id, address)[1] == "."


def test_references_of_an_earlier_generation_do_not_count(paged: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.h5"
    later.write_bytes(paged.read_bytes())
    assert is_reference_taken(later, "train_200.0")
    with neurostore.open(later) as store:
        other = store.retrieve("train_200.0").load()
        store.cleanup(0, kind="spike_train", now=100.5, model_time=True)
        store.store(other)
    with neurostore.open(served(later, "later.h5")) as store:
        assert store.ids("spike_train", end=100) == []
        assert store.retrieve("train_200.0").load().identical(other)
        with pytest.raises(neurostore.RecordNotFoundError):
            store.retrieve("train_100.0")
    assert not is_reference_taken(later, "train_200.0")


def test_references_that_lead_elsewhere_are_not_followed(paged: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.h5"
    odd.write_bytes(paged.read_bytes())
    here = neurostore.open(paged, "r")
    with h5py.File(odd, "r+") as h5file:
        objects = h5file["catalogue/spike_train/objects"]
        objects[...] = np.roll(objects[...], 1, axis=0)
    with neurostore.open(served(odd, "odd.h5")) as store:
        wanted = here.retrieve("train_100.0").load()
        assert store.retrieve("train_100.0").load().identical(wanted)


def test_what_stands_in_the_place_of_references_is_passed_over(paged: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.h5"
    odd.write_bytes(paged.read_bytes())
    with h5py.File(odd, "r+") as h5file:
        group = h5file["catalogue/spike_train"]
        generation = group["objects"].attrs["generation"]
        shape = group["objects"].shape
        del group["objects"]
        group["objects"] = np.full(shape, 2**60)
        group["objects"].attrs["generation"] = generation
    wanted = neurostore.open(paged, "r").retrieve("train_100.0").load()
    with neurostore.open(served(odd, "beside.h5")) as store:
        assert store.retrieve("train_100.0").load().identical(wanted)
