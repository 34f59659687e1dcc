"""``.neuro``, ``engine="neurostore"`` and what stock xarray does with the Datasets they return."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore.arrays import Place, RaggedArray, StackedArray, StoredArray, lazy
from neurostore.engine import NeurostoreBackendEntrypoint
from neurostore.errors import (
    NotAStoreError,
    RecordNotFoundError,
    StoreNotFoundError,
    ValidationError,
)
from neurostore.schema import KINDS
from neurostore.session import attach
from tests.samples import assert_same, record

DAY = 86_400.0


def train(timestamp: float, count: int = 3, **more: Any) -> xr.Dataset:
    times = np.arange(count)[::-1] / 10
    return neurostore.spike_train(times, np.arange(count) + 10, timestamp=timestamp, **more)


def states(timestamp: float, name: str = "r", shape: tuple[int, int] = (2, 3)) -> xr.Dataset:
    values = np.arange(np.prod(shape), dtype="f8").reshape(shape) + timestamp
    return neurostore.reservoir_states(values, name, timestamp=timestamp)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four records of two kinds, at 1, 2, 3 and 4 seconds."""
    file = tmp_path / "run.h5"
    for ds in (train(1.0), states(2.0), train(3.0, 4), states(4.0)):
        ds.neuro.store(file)
    return file


# -- the accessor ------------------------------------------------------------------------------


def test_dataset_stores_and_asks_its_file_again(path: Path) -> None:
    ds = train(5.0, metadata={"trial": 7})
    assert ds.neuro.kind == "spike_train"
    ds.neuro.validate()
    assert ds.neuro.store(path) == "train_5.0"
    back = neurostore.open(path, "r").retrieve("train_5.0")
    assert back.encoding["source"] == str(path)
    assert back.neuro.metadata == {"trial": 7}
    assert back.neuro.ids() == ["train_1.0", "r_2.0", "train_3.0", "r_4.0", "train_5.0"]
    assert back.neuro.ids("spike_train", 2, 4) == ["train_3.0"]
    assert back.neuro.ids(name="r") == ["r_2.0", "r_4.0"]
    assert_same(back.neuro.retrieve("r_2.0"), states(2.0))
    assert back.neuro.range("reservoir_states", end=3)["record"].values.tolist() == ["r_2.0"]
    table = back.neuro.catalogue("spike_train")
    assert table["record"].values.tolist() == ["train_1.0", "train_3.0", "train_5.0"]
    assert back.neuro.info()["records"]["spike_train"] == 3


@pytest.mark.parametrize(
    "get",
    [
        lambda store: store.retrieve("r_2.0"),
        lambda store: store.retrieve("r_2.0")["states"],
        lambda store: store.range("reservoir_states"),
        lambda store: store.range("spike_train")["record_index"],
        lambda store: store.range("attention_maps"),
        lambda store: store.catalogue(),
        lambda store: store.catalogue()["length"],
        lambda store: xr.open_dataset(store.path, engine="neurostore"),
        lambda store: xr.open_dataset(
            store.path, engine="neurostore", group="spike_trains/raw_data/train_1.0"
        ),
        lambda store: xr.open_datatree(store.path, engine="neurostore"),
        lambda store: xr.open_datatree(store.path, engine="neurostore")[
            "/spike_trains/raw_data/train_1.0"
        ],
    ],
)
def test_whatever_comes_out_remembers_its_file(path: Path, get: Any) -> None:
    assert get(neurostore.open(path, "r")).neuro.retrieve("r_4.0")["timestamp"].item() == 4.0


def test_lifecycle_through_the_accessor(tmp_path: Path) -> None:
    file = tmp_path / "run.h5"
    old, new = 400_000_000.0, 400_000_000.0 + 10 * DAY
    for moment in (old, new):
        train(moment).neuro.store(file)
    ds = neurostore.open(file).retrieve(f"train_{new}")
    assert ds.neuro.cleanup(5, now=new, dry_run=True) == [f"train_{old}"]
    assert len(ds.neuro.ids()) == 2
    assert ds.neuro.cleanup(5, now=new) == [f"train_{old}"]
    ds.neuro.compact()
    assert ds.neuro.ids() == [f"train_{new}"]
    assert ds["spike_times"].values.tolist() == [0.2, 0.1, 0.0]
    rotated = ds.neuro.rotate()
    train(new + 1).neuro.store(file)
    assert rotated.exists()
    assert ds.neuro.ids() == [f"train_{new}", f"train_{new + 1}"]


@pytest.mark.parametrize(
    "change",
    [
        lambda neuro, path: neuro.cleanup(30, path=path),
        lambda neuro, path: neuro.rotate(path),
        lambda neuro, path: neuro.compact(path),
        lambda neuro, path: neuro.append("train_1.0", path),
    ],
)
def test_a_mistyped_path_makes_no_file(change: Any, tmp_path: Path) -> None:
    ds = neurostore.spike_train([0.1], [1], timestamp=1.0)
    with pytest.raises(neurostore.StoreNotFoundError, match=r"mistyped\.h5"):
        change(ds.neuro, tmp_path / "mistyped.h5")
    assert not list(tmp_path.iterdir())


def test_data_array(tmp_path: Path) -> None:
    array = states(2.0)["states"].assign_attrs(reservoir_id="main", kind="reservoir_states")
    assert array.neuro.kind == "reservoir_states"
    array.neuro.validate()
    record_id = array.neuro.store(tmp_path / "run.h5")
    back = array.neuro.retrieve(record_id, path=tmp_path / "run.h5")
    assert record_id == "main_2.0"
    np.testing.assert_array_equal(back["states"].values, array.values)
    with pytest.raises(ValidationError, match=r"has no name; da.rename"):
        _ = array.rename(None).neuro.kind


def test_data_tree_is_stored_in_one_commit(tmp_path: Path) -> None:
    file = tmp_path / "run.h5"
    tree = xr.DataTree.from_dict({"/a/spikes": train(1.0), "/a/states": states(1.0), "/b": None})
    assert tree.neuro.store(file) == {"/a/spikes": "train_1.0", "/a/states": "r_1.0"}
    assert tree["/a/spikes"].neuro.kind == "spike_train"
    assert tree.neuro.ids(path=file) == ["train_1.0", "r_1.0"]
    bad = xr.DataTree.from_dict({"/good": train(2.0), "/bad": train(3.0).drop_vars("timestamp")})
    bad["/bad"].dataset = bad["/bad"].to_dataset().drop_vars("time")
    with pytest.raises(ValidationError, match="timestamp is missing"):
        bad.neuro.store(file)
    assert tree.neuro.ids(path=file) == ["train_1.0", "r_1.0"]


def test_without_a_path_it_says_what_to_pass() -> None:
    with pytest.raises(ValidationError, match=r"pass path='run.h5'"):
        train(1.0).neuro.ids()


# -- one open file, whatever happens to it -------------------------------------------------------


def test_a_loop_keeps_one_file_open(tmp_path: Path) -> None:
    file = tmp_path / "run.h5"
    sessions = set()
    for moment in range(20):
        train(float(moment)).neuro.store(file)
        sessions.add(id(attach(file, "r")))
        train(float(moment)).neuro.ids(path=file)
        sessions.add(id(attach(file, "r")))
    assert len(sessions) == 1


@pytest.mark.parametrize("lost", ["moved", "removed"])
def test_storing_after_the_file_went_makes_a_new_one(path: Path, lost: str) -> None:
    before = attach(path, "r")
    if lost == "moved":
        path.rename(path.with_name("elsewhere.h5"))
        assert len(train(0.0).neuro.ids(path=path.with_name("elsewhere.h5"))) == 4
    else:
        path.unlink()
    with pytest.raises(StoreNotFoundError):
        train(0.0).neuro.ids(path=path)
    assert train(9.0).neuro.store(path) == "train_9.0"
    assert attach(path, "r") is not before
    assert train(9.0).neuro.ids(path=path) == ["train_9.0"]


def test_a_replaced_file_is_noticed(path: Path, tmp_path: Path) -> None:
    train(7.0).neuro.store(tmp_path / "other.h5")
    neurostore.open(tmp_path / "other.h5").close()
    lazy_one = neurostore.open(path, "r").retrieve("train_1.0")
    os.replace(tmp_path / "other.h5", path)
    assert train(0.0).neuro.ids(path=path) == ["train_7.0"]
    with pytest.raises(RecordNotFoundError, match=r"replaced since 'train_1.0' was opened"):
        lazy_one.load()
    assert train(8.0).neuro.store(path) == "train_8.0"
    assert train(0.0).neuro.ids(path=path) == ["train_7.0", "train_8.0"]


def test_a_lazy_dataset_of_a_file_that_went_says_so(path: Path) -> None:
    lazy_one = neurostore.open(path, "r").retrieve("train_1.0")
    path.unlink()
    with pytest.raises(StoreNotFoundError, match=r"run.h5"):
        lazy_one.load()


def test_a_record_removed_after_it_was_opened_says_so(path: Path) -> None:
    store = neurostore.open(path)
    gone, kept, many = (
        store.retrieve("train_1.0"),
        store.retrieve("r_2.0"),
        store.range("spike_train"),
    )
    assert store.cleanup(0, now=1.5, model_time=True) == ["train_1.0"]
    for compacted in (False, True):
        if compacted:
            store.compact()
        with pytest.raises(RecordNotFoundError, match=r"'train_1.0' was removed after"):
            gone["spike_times"].copy().values  # noqa: B018
        with pytest.raises(RecordNotFoundError, match=r"'train_1.0' was removed after"):
            many["spike_times"].copy().values  # noqa: B018
        assert many["spike_times"].variable[3:].values.tolist() == [0.3, 0.2, 0.1, 0.0]
        assert kept["states"].copy().values[0, 0] == 2.0


# -- the engine ---------------------------------------------------------------------------------


def test_open_dataset_without_a_group_is_the_catalogue(path: Path) -> None:
    ds = xr.open_dataset(path, engine="neurostore")
    assert ds["record"].values.tolist() == ["train_1.0", "r_2.0", "train_3.0", "r_4.0"]
    assert ds["kind"].values.tolist()[:2] == ["spike_train", "reservoir_states"]
    assert ds.sel(timestamp=slice(2, 3))["record"].values.tolist() == ["r_2.0", "train_3.0"]
    late = ds.sel(time=slice("1970-01-01T00:00:03", None))
    assert late["record"].values.tolist() == ["train_3.0", "r_4.0"]
    narrow = xr.open_dataset(
        str(path), engine="neurostore", kind="reservoir_states", start=3, name="r"
    )
    assert narrow["record"].values.tolist() == ["r_4.0"]
    bare = xr.open_dataset(path, engine="neurostore", drop_variables="stored_bytes", end=0)
    assert (bare.sizes["record"], "stored_bytes" in bare, "kind" in bare) == (0, False, True)


@pytest.mark.parametrize("slashes", ["{}", "/{}", "/{}/"])
def test_open_dataset_with_a_group_is_a_record(path: Path, slashes: str) -> None:
    group = slashes.format("spike_trains/raw_data/train_1.0")
    with xr.open_dataset(path, engine="neurostore", group=group) as ds:
        assert_same(ds, train(1.0))
        assert ds.sel(spike_times=slice(0.1, None), neuron_ids=[10, 11]).sizes["spike"] == 2
    dropped = xr.open_dataset(
        path, engine="neurostore", group=group, drop_variables=["neuron_ids", "nobody"]
    )
    assert set(dropped.variables) == {"spike_times", "timestamp", "time"}
    with xr.open_dataset(path, engine="neurostore", group=group, chunks={}) as chunked:
        assert chunked["spike_times"].values.tolist() == [0.2, 0.1, 0.0]


def test_open_dataset_errors(path: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordNotFoundError, match="nothing stands at /spike_trains/nobody"):
        xr.open_dataset(path, engine="neurostore", group="spike_trains/nobody")
    with pytest.raises(StoreNotFoundError, match=r"no.h5: there is no such file"):
        xr.open_dataset(tmp_path / "no.h5", engine="neurostore")
    assert not (tmp_path / "no.h5").exists()
    with pytest.raises(NotAStoreError, match="by their path, not a BytesIO"):
        xr.open_dataset(io.BytesIO(path.read_bytes()), engine="neurostore")
    with pytest.raises(ValidationError, match="'spikes' is no record kind"):
        xr.open_dataset(path, engine="neurostore", kind="spikes")


def test_open_datatree(path: Path) -> None:
    tree = xr.open_datatree(path, engine="neurostore")
    leaves = {node.path for node in tree.leaves}
    assert leaves == {
        "/spike_trains/raw_data/train_1.0",
        "/spike_trains/raw_data/train_3.0",
        "/activations/reservoir_states/r_2.0",
        "/activations/reservoir_states/r_4.0",
    }
    assert_same(tree["/activations/reservoir_states/r_2.0"].to_dataset(), states(2.0))
    few = xr.open_datatree(path, engine="neurostore", kind="spike_train", start=2, end=4)
    assert [node.path for node in few.leaves] == ["/spike_trains/raw_data/train_3.0"]
    below = xr.open_datatree(path, engine="neurostore", group="/activations", name="r", end=2)
    assert [node.path for node in below.leaves] == ["/reservoir_states/r_2.0"]
    bare = xr.open_datatree(path, engine="neurostore", drop_variables="spike_times")
    assert "neuron_ids" in bare["/spike_trains/raw_data/train_1.0"].coords
    assert [n.path for n in xr.open_datatree(path, engine="neurostore", start=9).subtree] == ["/"]


def test_open_groups(path: Path) -> None:
    groups = xr.open_groups(path, engine="neurostore", kind="reservoir_states")
    assert list(groups) == [
        "/",
        "/activations/reservoir_states/r_2.0",
        "/activations/reservoir_states/r_4.0",
    ]
    assert_same(groups["/activations/reservoir_states/r_4.0"], states(4.0))


def test_a_tree_shows_parts_and_a_record_merges_them(tmp_path: Path) -> None:
    ds = neurostore.network_snapshot(
        adjacency=np.eye(2), weights=np.ones((2, 2)), states=np.zeros(2), timestamp=1.5
    )
    ds.neuro.store(tmp_path / "run.h5")
    tree = xr.open_datatree(tmp_path / "run.h5", engine="neurostore")
    shown = {node.path: set(node.data_vars) for node in tree.leaves}
    assert shown == {
        "/network_states/topology/snapshot_1.5": {"adjacency"},
        "/network_states/weights/snapshot_1.5": {"weights"},
        "/network_states/neuron_states/snapshot_1.5": {"states"},
    }
    assert_same(tree.neuro.retrieve("snapshot_1.5"), ds)
    assert tree.neuro.store(tmp_path / "copy.h5").keys() == shown.keys()


def test_open_mfdataset_joins_catalogues(path: Path, tmp_path: Path) -> None:
    train(8.0).neuro.store(tmp_path / "late.h5")
    both = xr.open_mfdataset(
        [path, tmp_path / "late.h5"],
        engine="neurostore",
        combine="nested",
        concat_dim="record",
        kind="spike_train",
    )
    assert both["record"].values.tolist() == ["train_1.0", "train_3.0", "train_8.0"]
    assert both["length"].values.tolist() == [3, 4, 3]


def test_guess_can_open(path: Path, tmp_path: Path) -> None:
    backend = NeurostoreBackendEntrypoint()
    with h5py.File(tmp_path / "plain.h5", "w") as h5file:
        h5file["x"] = [1, 2]
    xr.Dataset({"x": 1}).to_netcdf(tmp_path / "stock.nc")
    (tmp_path / "note.txt").write_text("engine='neurostore'")
    (tmp_path / "empty.h5").touch()
    os.mkfifo(tmp_path / "pipe.h5")
    rotated = neurostore.open(path).rotate()
    train(9.0).neuro.store(path)
    neurostore.open(path).compact()
    assert all(backend.guess_can_open(ours) for ours in (path, str(path), rotated))
    others: list[Any] = [
        *(tmp_path / name for name in ("plain.h5", "stock.nc", "note.txt", "empty.h5", "pipe.h5")),
        tmp_path,
        tmp_path / "missing.h5",
        "https://example.org/run.h5",
        "s3://bucket/run.h5",
        "",
        "nul\0.h5",
        "x" * 5000,
        io.BytesIO(path.read_bytes()),
        b"bytes",
        0,
        None,
    ]
    for other in others:
        assert backend.guess_can_open(other) is False, other


def test_root_attributes_tell_how_to_open_the_file(path: Path) -> None:
    with xr.open_dataset(path, engine="h5netcdf") as ds:
        words = ds.attrs["neurostore"]
    assert "xarray.open_dataset(path, engine='neurostore')" in words
    assert "engine='h5netcdf'" in words
    assert "neurostore" in xr.backends.list_engines()


# -- lazy, and elsewhere ---------------------------------------------------------------------------


class CountingSource:
    """Values 0, 1, 2, ... of every address, and a list of what was asked for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.values = np.arange(np.prod(shape), dtype="f8").reshape(shape)
        self.asked: list[tuple[str, Any]] = []

    def read(self, address: str, selection: Any) -> np.ndarray[Any, Any]:
        self.asked.append((address, selection))
        return self.values[selection or ()]

    def place(self, address: str) -> Place:
        return Place(self, address, "<f8", np.dtype("f8"), self.values.shape)


def test_a_variable_reads_what_an_index_needs() -> None:
    source = CountingSource((4, 5))
    variable = lazy(("a", "b"), StoredArray(source.place("x")))
    part = variable[1:3, 2]
    assert source.asked == []
    assert part.values.tolist() == [7.0, 12.0]
    assert source.asked == [("x", (slice(1, 3, 1), 2))]


def test_a_stack_reads_the_records_it_needs() -> None:
    source = CountingSource((2, 3))
    places = [source.place(f"r{n}") for n in range(100)]
    ds = xr.Dataset({"states": lazy(("record", "a", "b"), StackedArray(places, np.dtype("f8")))})
    chosen = ds.isel(record=[3, 7], a=0)
    repr(ds)
    assert source.asked == []
    assert chosen["states"].values.tolist() == [[0.0, 1.0, 2.0]] * 2
    assert {address for address, _ in source.asked} <= {f"r{n}" for n in range(3, 8)}
    source.asked.clear()
    assert ds["states"][42, 1, 1].item() == 4.0
    assert [address for address, _ in source.asked] == ["r42"]


def test_a_ragged_array_reads_the_records_it_needs() -> None:
    source = CountingSource((3,))
    places = [source.place(f"r{n}") for n in range(100)]
    variable = lazy(("spike",), RaggedArray(places, np.dtype("f8")))
    assert variable.shape == (300,)
    assert source.asked == []
    assert variable[7:10].values.tolist() == [1.0, 2.0, 0.0]
    assert [address for address, _ in source.asked] == ["r2", "r3"]
    assert [variable[n].item() for n in (0, -1, 299, 3)] == [0.0, 2.0, 2.0, 0.0]
    assert variable[::-2][:2].values.tolist() == [2.0, 0.0]


def test_opening_a_range_reads_no_values(path: Path) -> None:
    store = neurostore.open(path, "r")
    for kind in ("spike_train", "reservoir_states"):
        ds = store.range(kind)
        repr(ds)
        ds._repr_html_()
        held = [v for v in ds.variables.values() if v._in_memory and "record" not in v.dims]
        assert held == []


_CHILD = """
import pickle, sys
import numpy as np
lazy = pickle.load(sys.stdin.buffer)
loaded = {name: ds.load() for name, ds in lazy.items()}
picked = lazy["ragged"].sel(spike_times=slice(0.05, 0.15), neuron_ids=[11, 12])
answer = {name: {k: v.values for k, v in ds.variables.items()} for name, ds in loaded.items()}
answer["picked"] = picked["record_index"].values
sys.stdout.buffer.write(pickle.dumps(answer))
"""


def test_lazy_datasets_travel_to_another_process(path: Path) -> None:
    for moment, values in ((1.0, {"a": 1.0}), (2.0, {"b": 2.0})):
        neurostore.performance_metrics(values, "t", timestamp=moment).neuro.store(path)
    store = neurostore.open(path, "r")
    sent = {
        "one": store.retrieve("train_1.0"),
        "ragged": store.range("spike_train"),
        "stacked": store.range("reservoir_states"),
        "united": store.range("performance_metrics"),
        "catalogue": store.catalogue(),
    }
    packed = pickle.dumps(sent)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=packed, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    answer = pickle.loads(done.stdout)
    assert answer.pop("picked").tolist() == [0, 1]
    for name, ds in sent.items():
        for key, values in answer[name].items():
            np.testing.assert_array_equal(ds[key].values, values, err_msg=f"{name} {key}")


def test_a_pickle_holds_no_values(path: Path) -> None:
    store = neurostore.open(path)
    neurostore.reservoir_states(np.zeros((400, 500)), "big", timestamp=5.0).neuro.store(path)
    assert len(pickle.dumps(store.retrieve("big_5.0"))) < 20_000


# -- CF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_cf_xarray_finds_one_time_axis(kind: Any, tmp_path: Path) -> None:
    pytest.importorskip("cf_xarray")
    ds = record(kind, timestamp=12.5)
    record_id = ds.neuro.store(tmp_path / "run.h5")
    for found in (ds, ds.neuro.retrieve(record_id, path=tmp_path / "run.h5")):
        assert found.cf.axes["T"] == ["timestamp"]


def test_cf_xarray_finds_sample_times(tmp_path: Path) -> None:
    pytest.importorskip("cf_xarray")
    ds = neurostore.reservoir_states(
        np.zeros((2, 3)), "r", timestamp=1.0, coords={"time": [0.0, 0.1, 0.2]}
    )
    for moment in (1.0, 2.0):
        ds.assign_coords(timestamp=moment).neuro.store(tmp_path / "run.h5")
    store = neurostore.open(tmp_path / "run.h5", "r")
    for found in (ds, store.retrieve("r_1.0"), store.range("reservoir_states")):
        assert found.cf.axes["T"] == ["time"]
    group = "activations/reservoir_states/r_1.0"
    with xr.open_dataset(tmp_path / "run.h5", engine="h5netcdf", group=group) as stock:
        assert stock.cf.axes["T"] == ["time"]
