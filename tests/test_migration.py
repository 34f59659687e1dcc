"""Old files and files of plain h5py, brought up to date into a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from samples import assert_same, record

import neurostore
from neurostore import KINDS, DamagedError, StoreExistsError, ValidationError, migrate
from neurostore.schema import SCHEMA_VERSION

FILES = Path(__file__).parent / "files"


def versions(path: Path) -> set[int]:
    found = set()
    with h5py.File(path) as h5file:

        def look(_: str, item: Any) -> None:
            if "schema_version" in item.attrs:
                found.add(int(item.attrs["schema_version"]))

        h5file.visititems(look)
    return found


@pytest.mark.parametrize("file", sorted(FILES.glob("schema_*.h5")), ids=lambda file: file.stem)
def test_a_file_of_every_version_comes_up_to_date(file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    with neurostore.open(file, mode="r") as old:
        expected = {record_id: old.retrieve(record_id).load() for record_id in old.ids()}
    seen: list[tuple[int, int]] = []
    found = migrate(file, tmp_path / "new.h5", progress=lambda *done: seen.append(done))
    assert sum(found.records.values()) == len(expected)
    assert not found.renamed
    assert seen[-1] == (2 * len(expected), 2 * len(expected))
    with neurostore.open(tmp_path / "new.h5", mode="r") as new:
        assert new.ids() == list(expected)
        for record_id, ds in expected.items():
            assert_same(new.retrieve(record_id).load(), ds)
        assert new.verify().ok
        assert new.info()["schema_versions"] == [SCHEMA_VERSION]
    assert versions(tmp_path / "new.h5") == {SCHEMA_VERSION}
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["new.h5"]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The tree as plain h5py writes it: no scales, bare leaves, texts that vary in length."""
    path = tmp_path / "plain.h5"
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as h5file:
        h5file.attrs["experiment"] = "seven"
        for part, name in (
            ("network_states/topology", "adjacency"),
            ("network_states/weights", "weights"),
        ):
            h5file[f"{part}/snapshot_5.0/{name}"] = rng.random((4, 4))
        h5file["network_states/neuron_states/snapshot_5.0/states"] = rng.random(4).astype("f2")
        train = h5file.create_group("spike_trains/raw_data/train_6.5")
        train["spike_times"] = [0.2, 0.1]
        train["neuron_ids"] = [3, 1]
        train.attrs["metadata"] = '{"subject": "ü"}'
        h5file["activations/reservoir_states/main_7.0"] = rng.random((3, 5))
        h5file["activations/layer_outputs/outputs_8.0/hidden"] = rng.random((2, 6))
        h5file["learning_traces/plasticity/stdp_9.0"] = rng.random((4, 4))
        h5file["calibration/gain"] = [1.5, 2.5]
    return path


def test_a_plain_file_comes_up_to_date(plain: Path, tmp_path: Path) -> None:
    with neurostore.open(plain, mode="r") as old:
        ids = old.ids()
        expected = {record_id: old.retrieve(record_id).load() for record_id in ids}
    assert len(ids) == 5
    new = tmp_path / "new.h5"
    migrate(plain, new)
    with neurostore.open(new, mode="r") as store:
        assert store.ids() == ids
        for record_id, ds in expected.items():
            got = store.retrieve(record_id).load()
            for name, variable in ds.variables.items():
                assert got[name].dims == variable.dims
                assert np.array_equal(got[name].values, variable.values)
        assert store.retrieve("train_6.5").neuro.metadata == {"subject": "ü"}
        assert store.verify().ok
    with netCDF4.Dataset(new) as dataset:
        states = dataset["network_states/neuron_states/snapshot_5.0"]["states"]
        assert states.dimensions == ("neuron",)
    with xr.open_dataset(new, group="activations/reservoir_states/main_7.0") as ds:
        assert ds["states"].dims == ("neuron", "time")
    with h5py.File(new) as h5file:
        assert h5file.attrs["experiment"] == "seven"
        assert h5file["calibration/gain"][:].tolist() == [1.5, 2.5]


def test_a_series_becomes_one_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with neurostore.open(path, durability="process") as store:
        for moment in range(3):
            for kind in KINDS.values():
                store.store(record(kind, timestamp=float(moment)))
            if moment < 2:
                store.rotate()
        ids = store.ids()
        found = migrate(path, tmp_path / "new.h5")
    assert sum(found.records.values()) == len(ids)
    with neurostore.open(tmp_path / "new.h5") as new:
        assert new.ids() == ids
        assert len(new.info()["files"]) == 1


def test_two_records_of_one_name_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "twice.h5"
    with h5py.File(path, "w") as h5file:
        h5file["activations/reservoir_states/x_1.0"] = np.ones((2, 2))
        h5file["learning_traces/plasticity/x_1.0"] = np.zeros((2, 2))
    found = migrate(path, tmp_path / "new.h5")
    assert found.renamed == {"learning_traces/plasticity/x_1.0": "x_1.0~2"}
    with neurostore.open(tmp_path / "new.h5") as new:
        assert new.retrieve("x_1.0")["states"].values.sum() == 4


def test_what_cannot_come_along_leaves_no_new_file(plain: Path, tmp_path: Path) -> None:
    with h5py.File(plain, "r+") as h5file:
        train = h5file["spike_trains/raw_data"].create_group("train_1.0")
        train["spike_times"] = [0.1, 0.2]
        train["neuron_ids"] = [[1, 2]]
    with pytest.raises((ValidationError, DamagedError), match=r"train_1\.0"):
        migrate(plain, tmp_path / "new.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["plain.h5"]
    (tmp_path / "new.h5").touch()
    with pytest.raises(StoreExistsError, match="exists already"):
        migrate(plain, tmp_path / "new.h5")
