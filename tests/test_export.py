"""Records as other formats: what comes back by the formats' own readers is what was stored."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import samples
import xarray as xr

import neurostore
from neurostore.errors import StoreExistsError, ValidationError
from neurostore.export import export
from neurostore.schema import KINDS
from neurostore.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with neurostore.open(tmp_path / "run.h5", durability="process") as opened:
        for kind in KINDS.values():
            opened.store(samples.record(kind, timestamp=12.5, name="main"))
        yield opened


def everything(store: Store) -> dict[str, xr.Dataset]:
    return {record_id: store.retrieve(record_id) for record_id in store.ids()}


def assert_same(tree: xr.DataTree, found: dict[str, xr.Dataset]) -> None:
    for record_id, wanted in found.items():
        got = tree[f"{wanted.attrs['kind']}/{record_id}"].to_dataset()
        assert set(got.variables) == set(wanted.variables)
        assert got.attrs.keys() >= wanted.attrs.keys()
        for name, variable in wanted.variables.items():
            assert got[name].dims == variable.dims
            np.testing.assert_array_equal(got[name].values, variable.values)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_netcdf_holds_every_kind(store: Store, tmp_path: Path, engine: Any) -> None:
    found = everything(store)
    export(found, tmp_path / "all.nc")
    with xr.open_datatree(tmp_path / "all.nc", engine=engine) as tree:
        assert_same(tree, found)


def test_zarr_holds_every_kind(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    found = everything(store)
    export(found, tmp_path / "all.zarr")
    with xr.open_datatree(tmp_path / "all.zarr", engine="zarr") as tree:
        assert_same(tree, found)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.complex64, np.bool_])
def test_what_netcdf_lacks_is_carried_and_named(tmp_path: Path, dtype: Any) -> None:
    values = np.array([[0.0, 1.0], [1.5, 0.25]]).astype(dtype)
    ds = neurostore.compressed_spike_train(values, timestamp=0.0)
    export({"c": ds}, tmp_path / "one.nc")
    with xr.open_dataset(tmp_path / "one.nc", engine="netcdf4") as got:
        back = got["data"].values
        if dtype is np.complex64:
            back = back[..., 0] + 1j * back[..., 1]
        np.testing.assert_array_equal(back.astype(dtype), values)


def test_metrics_are_a_table(tmp_path: Path) -> None:
    found = {
        "a_1.0": neurostore.performance_metrics({"x, y": 0.1, "loss": 2.0}, "a", timestamp=1.0),
        "b_2.0": neurostore.performance_metrics({"loss": 1.0}, "b", timestamp=2.0),
    }
    export(found, tmp_path / "metrics.csv")
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream)) == [
            ["id", "kind", "name", "timestamp", "x, y", "loss"],
            ["a_1.0", "performance_metrics", "a", "1.0", "0.1", "2.0"],
            ["b_2.0", "performance_metrics", "b", "2.0", "", "1.0"],
        ]


def test_nwb_holds_spikes_and_states(tmp_path: Path) -> None:
    pytest.importorskip("pynwb")
    from neurostore.interop import nwb

    train = neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=1.7e9)
    export({"train": train}, tmp_path / "run.nwb")
    assert nwb.read(tmp_path / "run.nwb")["units"]["spike_times"].values.tolist() == [0.1, 0.3]


def test_a_refusal_leaves_nothing_and_replaces_nothing(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "out" / "metrics.csv"
    target.parent.mkdir()
    with pytest.raises(ValidationError, match="not metrics"):
        export(everything(store), target)
    with pytest.raises(ValidationError, match=r"no known format; expected one of .*netcdf"):
        export(everything(store), target.with_suffix(".mat"))
    with pytest.raises(ValidationError, match="no records"):
        export({}, target)
    target.write_text("mine")
    with pytest.raises(StoreExistsError, match="--force"):
        export(everything(store), target)
    with pytest.raises(ValidationError, match="not metrics"):
        export(everything(store), target, force=True)
    assert [path.name for path in target.parent.iterdir()] == ["metrics.csv"]
    assert target.read_text() == "mine"


def test_force_replaces_a_file_and_a_folder(store: Store, tmp_path: Path) -> None:
    found = {"spikes": store.retrieve(store.ids("spike_train")[0])}
    for name in ("one.nc", "one.zarr"):
        if name.endswith("zarr"):
            pytest.importorskip("zarr")
        export(found, tmp_path / name)
        export(found, tmp_path / name, force=True)
        with xr.open_dataset(tmp_path / name, engine=None if "nc" in name else "zarr") as got:
            assert got.sizes["spike"] == found["spikes"].sizes["spike"]
