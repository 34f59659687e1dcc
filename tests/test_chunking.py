"""dask arrays out of a store: their chunks, their names, and what stays in memory."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore.chunking import preferred
from neurostore.errors import ValidationError

da = pytest.importorskip("dask.array")
RNG = np.random.default_rng(6)
SIZES = (30_000, 3, 0, 40, 70_000)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dask") / "run.h5"
    with neurostore.open(path, chunk_size=100) as store, store.batch():
        for moment, size in enumerate(SIZES):
            times, ids = RNG.random(size), RNG.integers(0, 9, size)
            store.store(neurostore.spike_train(times, ids, timestamp=float(moment)))
            states = RNG.random((4, 10))
            store.store(neurostore.reservoir_states(states, "main", timestamp=float(moment)))
        store.store(neurostore.reservoir_states(RNG.random((2_000, 900)), "big", timestamp=0.0))
    return path


@pytest.mark.parametrize("chunks", [{}, "auto", -1, {"spike": 1000}])
def test_a_range_of_spikes_is_the_same_in_pieces(path: Path, chunks: object) -> None:
    store = neurostore.open(path, "r")
    plain, ds = store.range("spike_train"), store.range("spike_train", chunks=chunks)
    for name in ("spike_times", "neuron_ids", "record_index"):
        assert isinstance(ds[name].data, da.Array)
    assert isinstance(ds["row_size"].data, np.ndarray)
    assert ds.load().identical(plain.load())


def test_pieces_end_where_records_or_stored_chunks_end(path: Path) -> None:
    store = neurostore.open(path, "r")
    stored = store.retrieve("train_4.0", chunks={}).chunksizes["spike"]
    with store.h5file() as h5file:
        step = h5file["spike_trains/raw_data/train_4.0/spike_times"].chunks[0]
    assert all(size % step == 0 for size in stored[:-1])
    sizes = preferred(store.range("spike_train"), 10_000)["spike"]
    inner = {int(at) for at in range(0, SIZES[0], step)}
    last = sum(SIZES[:4])
    ends = {*np.cumsum(SIZES).tolist(), *inner, *range(last, last + SIZES[4], step)}
    assert set(np.cumsum(sizes).tolist()) <= ends
    assert len(sizes) > 5
    joined = preferred(store.range("spike_train"), 10**9)["spike"]
    assert joined == (sum(SIZES),)


def test_small_records_share_a_piece_and_large_ones_do_not(path: Path) -> None:
    store = neurostore.open(path, "r")
    small = store.range("reservoir_states", name="main", chunks={})
    assert small.chunksizes == {"record": (5,), "neuron": (4,), "time": (10,)}
    one = store.range("reservoir_states", name="main", chunks={"record": 1})
    assert one.chunksizes["record"] == (1,) * 5
    large = store.retrieve("big_0.0", chunks={})
    assert len(large.chunksizes["neuron"]) > 1
    np.testing.assert_array_equal(large["states"].values, store.retrieve("big_0.0")["states"])


def test_selection_by_label_goes_on(path: Path) -> None:
    store = neurostore.open(path, "r")
    plain, ds = store.range("spike_train"), store.range("spike_train", chunks={})
    wanted = {"spike_times": slice(0.2, 0.3), "neuron_ids": [3, 4]}
    assert ds.sel(wanted).load().identical(plain.sel(wanted).load())
    assert list(ds.xindexes) == list(plain.xindexes)


def test_names_tell_values_apart_and_nothing_else(path: Path) -> None:
    def name(ds: xr.Dataset) -> str:
        return str(ds["spike_times"].data.name)

    store = neurostore.open(path, "r")
    first = name(store.range("spike_train", chunks={}))
    assert first == name(neurostore.open(path, "r").range("spike_train", chunks={}))
    assert first != name(store.range("spike_train", 1.0, chunks={}))
    assert first != name(store.range("spike_train", chunks={"spike": 10}))
    assert name(store.retrieve("train_1.0", chunks={})) != name(
        store.retrieve("train_3.0", chunks={})
    )


def test_it_can_be_pickled(path: Path) -> None:
    ds = neurostore.open(path, "r").range("spike_train", chunks={})
    there = pickle.loads(pickle.dumps(ds))
    assert int(there.neuron_ids.sum()) == int(ds.neuron_ids.sum())


def test_the_engine_tells_xarray_which_chunks(path: Path) -> None:
    store = neurostore.open(path, "r")
    group = "activations/reservoir_states/big_0.0"
    ds = xr.open_dataset(path, engine="neurostore", group=group, chunks={})
    assert ds.chunksizes == store.retrieve("big_0.0", chunks={}).chunksizes
    ragged = xr.open_dataset(path, engine="neurostore", range="spike_train", start=1.0, chunks={})
    assert ragged.load().identical(store.range("spike_train", 1.0).load())
    with pytest.raises(ValidationError, match="leave out group= and kind="):
        xr.open_dataset(path, engine="neurostore", range="spike_train", group=group)


def test_many_files_open_as_one(path: Path, tmp_path: Path) -> None:
    paths = []
    for worker in range(3):
        paths.append(tmp_path / f"run-{worker}.h5")
        for moment in range(2):
            states = np.full((4, 10), 10.0 * worker + moment)
            ds = neurostore.reservoir_states(states, "main", timestamp=2.0 * worker + moment)
            ds.neuro.store(paths[-1])
    whole = xr.open_mfdataset(
        paths, engine="neurostore", range="reservoir_states", combine="nested", concat_dim="record"
    )
    assert whole["states"].isel(neuron=0, time=0).values.tolist() == [0, 1, 10, 11, 20, 21]
    assert isinstance(whole["states"].data, da.Array)
    view = neurostore.open(paths).range("reservoir_states", chunks={})
    np.testing.assert_array_equal(view["states"], whole["states"])


@pytest.mark.parametrize(
    ("chunks", "said"),
    [({"spikes": 3}, "no dimension 'spikes'"), ({"spike": 0}, "-1 for all"), ("all", "'auto'")],
)
def test_chunks_that_mean_nothing_are_refused(path: Path, chunks: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        neurostore.open(path, "r").retrieve("train_1.0", chunks=chunks)


def test_what_is_taken_of_chunked_spikes_stays_chunked(path: Path) -> None:
    store = neurostore.open(path, "r")
    plain = store.range("spike_train")
    for ds in (store.range("spike_train", chunks={"spike": 10_000}), plain.chunk(spike=10_000)):
        for taken, wanted in (
            (ds.isel(spike=slice(7, 30_000)), plain.isel(spike=slice(7, 30_000))),
            (ds.sel(neuron_ids=[2, 3]), plain.sel(neuron_ids=[2, 3])),
        ):
            for name in ("spike_times", "neuron_ids", "record_index"):
                assert isinstance(taken[name].data, da.Array)
                assert max(taken[name].data.chunks[0]) <= 10_000
            assert taken.compute().identical(wanted.compute())
            again = taken.sel(spike_times=slice(0.5, None))
            np.testing.assert_array_equal(
                again.neuron_ids, wanted.sel(spike_times=slice(0.5, None)).neuron_ids
            )
        loaded = ds.compute().isel(spike=slice(0, 10))
        assert isinstance(loaded.spike_times.values, np.ndarray)
        assert loaded.spike_times.chunks is None


def test_small_labels_stay_out_of_dask(tmp_path: Path) -> None:
    """Grouping by them needs their values."""
    for moment in range(4):
        ds = neurostore.reservoir_states(
            np.full((3, 5), float(moment)), "ab"[moment % 2], timestamp=float(moment)
        )
        ds.assign_coords(cell=("neuron", ["e", "i", "e"])).neuro.store(tmp_path / "run.h5")
    ds = neurostore.open(tmp_path / "run.h5").range("reservoir_states", chunks={"record": 1})
    assert isinstance(ds.states.data, da.Array)
    assert [n for n, c in ds.coords.items() if c.chunks is not None] == []
    by_name = ds.states.mean(["neuron", "time"]).groupby("reservoir_id").mean()
    assert by_name.values.tolist() == [1.0, 2.0]
    assert ds.states.groupby("cell").sum().isel(record=1, time=0).values.tolist() == [2.0, 1.0]


def test_times_that_are_none_are_found_as_dask_makes_them(tmp_path: Path) -> None:
    """Such large columns are first looked at while they are written."""
    size, piece = 4_400_000, 1_000_000
    numbers = da.arange(size, chunks=piece)
    times = da.where(numbers == 3_999_999, np.nan, numbers.astype("f8"))
    ds = xr.Dataset(
        {"spike_times": ("spike", times), "neuron_ids": ("spike", numbers % 7)},
        {"timestamp": 1.0},
        {"kind": "spike_train"},
    )
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        kept = store.store(neurostore.spike_train([0.1], [1], timestamp=0.0))
        before = store.path.read_bytes()
        with pytest.raises(ValidationError, match="the first at position 3999999"):
            store.store(ds)
        assert store.ids() == [kept]
        assert store.path.read_bytes() == before


def test_names_tell_apart_what_another_program_wrote_anew(tmp_path: Path) -> None:
    names = []
    for value in (1.0, 2.0):
        path = tmp_path / f"{value}.h5"
        with h5py.File(path, "w") as h5file:
            h5file["activations/reservoir_states/main_1.0/states"] = np.full((50, 60), value)
        path = path.replace(tmp_path / "run.h5")
        os.utime(path, (value, value))
        ds = neurostore.open(path, "r").retrieve("main_1.0", chunks={})
        assert float(ds.states.mean()) == value
        names.append(ds.states.data.name)
    assert names[0] != names[1]
