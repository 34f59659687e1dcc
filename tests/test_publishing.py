"""Published series: zarr readers see what stock readers of the files see, without a copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import samples
import xarray as xr

import neurostore
from neurostore.errors import RefusedError, StoreExistsError, StoreNotFoundError, ValidationError
from neurostore.schema import KINDS
from neurostore.store import Store

pytest.importorskip("zarr")
pytest.importorskip("fsspec")


def published(path: Path, group: str) -> xr.Dataset:
    options = {"storage_options": {"fo": str(path)}}
    return xr.open_dataset("reference://", engine="zarr", group=group, backend_kwargs=options)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sealed files with every kind, large chunks of odd sizes, and no values; one goes on."""
    path = tmp_path_factory.mktemp("published") / "run.h5"
    values = np.random.default_rng(5)
    with neurostore.open(path, durability="process") as store:
        for kind in KINDS.values():
            store.store(samples.record(kind, timestamp=12.5, name="main"))
        store.rotate()
        times = np.sort(values.random(50_001))
        store.store(neurostore.spike_train(times, values.integers(0, 9, 50_001), timestamp=1.0))
        states = np.round(values.random((700, 300)), 2)
        store.store(neurostore.reservoir_states(states, "a", timestamp=1.0))
        store.store(neurostore.spike_train([], [], timestamp=99.0))
        store.rotate()
        store.store(neurostore.spike_train([0.5], [1], timestamp=100.0))
    return path


def test_zarr_readers_see_what_stock_readers_see(series: Path, tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    with neurostore.open(series, "r") as store:
        assert store.publish(target) == len(KINDS) + 3
        addresses = set(store.tree()) - {"spike_trains/raw_data/train_100.0"}
    options = {"storage_options": {"fo": str(target)}}
    with xr.open_datatree("reference://", engine="zarr", backend_kwargs=options) as tree:
        assert {node.path.strip("/") for node in tree.leaves} == addresses
    seen = 0
    for file in sorted(series.parent.glob("run.0*.h5")):
        with h5py.File(file) as h5file:
            here = [address for address in addresses if address in h5file]
        for address in here:
            with xr.open_dataset(file, engine="h5netcdf", group=address) as wanted:
                xr.testing.assert_identical(published(target, address).load(), wanted.load())
        seen += len(here)
    assert seen == len(addresses)


def test_values_are_left_where_they_are(series: Path, tmp_path: Path) -> None:
    with neurostore.open(series, "r") as store:
        store.publish(tmp_path / "run.json", base="s3://bucket/runs/")
    found = json.loads((tmp_path / "run.json").read_text())["refs"]
    chunks = [found[key] for key in found if "/a_1.0/states/" in key and ".z" not in key]
    assert {url for url, _, _ in chunks} == {"s3://bucket/runs/run.000002.h5"}
    held = (series.parent / "run.000002.h5").stat().st_size
    assert 0 < sum(length for _, _, length in chunks) < held
    assert all(len(value) < 2_000 for key, value in found.items() if ".z" not in key)


def test_chunks_that_were_never_written_have_the_fill_value(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with neurostore.open(path) as store:
        store.store(neurostore.reservoir_states(np.ones((4, 4)), "a", timestamp=1.0))
    group = "activations/reservoir_states/a_1.0"
    with h5py.File(path, "r+") as h5file:
        holed = h5file[group].create_dataset(
            "holed", (100,), "i4", chunks=(30,), compression="gzip", fletcher32=True, fillvalue=7
        )
        holed[40:50] = 1
    with neurostore.open(path, "r") as store:
        store.publish(tmp_path / "run.json", unsealed=True)
    with h5py.File(path) as h5file:
        wanted = h5file[group]["holed"][...]
    np.testing.assert_array_equal(published(tmp_path / "run.json", group)["holed"], wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": np.zeros((40, 40)), "compression": "lzf"}, r"/extra: .*filter lzf.*repack\("),
        ({"data": np.zeros(3, "i4,f8")}, r"/extra: .*cannot be said in zarr"),
    ],
)
def test_what_zarr_cannot_say_is_named(tmp_path: Path, options: Any, said: str) -> None:
    path = tmp_path / "run.h5"
    with neurostore.open(path) as store:
        store.store(neurostore.spike_train([0.5], [1], timestamp=1.0))
    with h5py.File(path, "r+") as h5file:
        h5file["spike_trains/raw_data/train_1.0"].create_dataset("extra", **options)
    with neurostore.open(path, "r") as store, pytest.raises(ValidationError, match=said):
        store.publish(tmp_path / "run.json", unsealed=True)
    assert sorted(p.name for p in tmp_path.glob("*json*")) == []


def test_what_may_change_is_not_published(tmp_path: Path) -> None:
    def file(store: Store) -> Path:
        store.store(neurostore.spike_train([0.5], [1], timestamp=1.0))
        return store.rotate()

    with neurostore.open(tmp_path / "run.h5") as store:
        with pytest.raises(ValidationError, match=r"rotate\(\) seals it"):
            store.publish(tmp_path / "run.json")
        older = file(store)
        store.publish(tmp_path / "run.json")
        with pytest.raises(StoreExistsError, match="--force"):
            store.publish(tmp_path / "run.json")
        older.rename(tmp_path / "away.h5")
        with pytest.raises(StoreNotFoundError, match="published whole"):
            store.publish(tmp_path / "run.json", force=True)


def test_a_claim_of_endless_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with neurostore.open(path) as store:
        store.store(neurostore.spike_train([0.5], [1], timestamp=1.0))
    with h5py.File(path, "r+") as h5file:
        group = h5file["spike_trains/raw_data/train_1.0"]
        group.create_dataset("extra", (2**50,), "i1", chunks=(2,))
    with neurostore.open(path, "r") as store, pytest.raises(RefusedError, match="extra"):
        store.publish(tmp_path / "run.json", unsealed=True)
