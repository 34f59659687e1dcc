"""Many records of one kind as one labelled, lazy Dataset: stacked, ragged, under a union."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import neurostore
from neurostore import combining, likeness
from neurostore.arrays import Place
from neurostore.combining import Member, Opened
from neurostore.errors import MisalignedRecordsError, ValidationError
from neurostore.index import EventIndex
from neurostore.schema import KINDS
from tests.samples import record

NOVEMBER = 1_700_000_000.0  # 2023-11-14T22:13:20Z


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with neurostore.open(tmp_path / "run.h5", durability="process") as opened:
        yield opened


def train(timestamp: float, times: Any, ids: Any, **more: Any) -> xr.Dataset:
    return neurostore.spike_train(times, ids, timestamp=timestamp, **more)


def states(timestamp: float, values: Any, name: str = "r", **more: Any) -> xr.Dataset:
    return neurostore.reservoir_states(values, name, timestamp=timestamp, **more)


def metrics(timestamp: float, task: str = "t", **values: float) -> xr.Dataset:
    return neurostore.performance_metrics(values, task, timestamp=timestamp)


# -- stacked


def test_equal_shapes_are_stacked(store: Any) -> None:
    values = np.random.default_rng(1).random((4, 2, 3))
    for number, moment in enumerate([3.0, 1.0, 2.0, 4.0]):
        store.store(states(NOVEMBER + moment * 3600, values[number]))
    ds = store.range("reservoir_states", NOVEMBER + 3600, NOVEMBER + 3 * 3600)
    assert ds["states"].dims == ("record", "neuron", "time")
    assert ds["record"].values.tolist() == store.ids("reservoir_states")[:3]
    np.testing.assert_array_equal(ds["states"].values, values[[1, 2, 0]])
    assert ds["timestamp"].values.tolist() == [NOVEMBER + n * 3600 for n in (1, 2, 3)]
    assert ds["reservoir_id"].values.tolist() == ["r"] * 3
    assert ds.attrs == {"kind": "reservoir_states"}
    late = ds.sel(timestamp=slice(NOVEMBER + 7000, NOVEMBER + 7300))
    np.testing.assert_array_equal(late["states"].values, values[[2]])
    np.testing.assert_array_equal(ds.sel(record=f"r_{NOVEMBER + 3600}")["states"], values[1])


def test_dates_slice_a_range(store: Any) -> None:
    for day in range(4):
        store.store(neurostore.homeostatic_trace([day, 1.0], "m", timestamp=NOVEMBER + day * 86400))
    ds = store.range("homeostatic_trace")
    assert ds.sel(time=slice("2023-11-16", None))["changes"].values.tolist() == [[2, 1], [3, 1]]
    assert ds.sel(time="2023-11-15").sizes["record"] == 1
    assert ds.sel(timestamp=NOVEMBER)["changes"].values.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "moment",
    [
        NOVEMBER,
        int(NOVEMBER),
        np.float64(NOVEMBER),
        datetime(2023, 11, 14, 22, 13, 20),
        datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        datetime(2023, 11, 15, 1, 13, 20, tzinfo=timezone(timedelta(hours=3))),
        np.datetime64("2023-11-14T22:13:20", "ms"),
        pd.Timestamp("2023-11-14T22:13:20"),
        pd.Timestamp("2023-11-14T23:13:20", tz="Europe/Berlin"),
        "2023-11-14T22:13:20Z",
        "2023-11-14 22:13:20",
    ],
)
def test_every_type_of_time_bounds_a_range(store: Any, moment: Any) -> None:
    for step in (-1, 0, 1):
        store.store(metrics(NOVEMBER + step, a=step))
    assert store.ids("performance_metrics", moment, moment) == [f"t_{NOVEMBER}"]
    assert store.range("performance_metrics", moment)["values"].values.tolist() == [[0], [1]]
    assert store.range("performance_metrics", None, moment)["values"].values.tolist() == [[-1], [0]]
    assert store.range("performance_metrics", moment, moment).sizes["record"] == 1
    assert store.catalogue(start=moment).sizes["record"] == 2


@pytest.mark.parametrize("bad", ["soon", float("nan"), object(), np.datetime64("NaT", "s"), [1.0]])
def test_what_is_no_time_is_refused(store: Any, bad: Any) -> None:
    for ask in (store.ids, store.range, store.catalogue):
        with pytest.raises(ValidationError, match="start is"):
            ask("spike_train", bad)


def test_open_ends_and_infinite_ones(store: Any) -> None:
    for moment in (-5.0, 0.0, 5.0):
        store.store(metrics(moment, a=moment))
    everything = store.ids("performance_metrics")
    assert everything == ["t_-5.0", "t_0.0", "t_5.0"]
    assert store.ids("performance_metrics", -np.inf, np.inf) == everything
    assert store.ids("performance_metrics", end=-1) == ["t_-5.0"]
    assert store.ids("performance_metrics", 5, -5) == []


def test_names_narrow_everywhere(store: Any) -> None:
    store.store(states(1.0, np.ones((2, 2)), "a/b"))
    store.store(states(2.0, np.ones((3, 3)), "c"))
    store.store(neurostore.plasticity_trace(np.ones(3), "stdp", timestamp=1.0))
    store.store(neurostore.plasticity_trace(np.ones((2, 2)), "bcm", timestamp=2.0))
    assert store.range("reservoir_states", name="a/b")["states"].shape == (1, 2, 2)
    assert store.range("plasticity_trace", name="bcm")["plasticity_type"].values.tolist() == ["bcm"]
    assert store.catalogue(name="c")["name"].values.tolist() == ["c"]
    assert store.ids(name="a/b") == ["a%2Fb_1.0"]
    assert store.range("reservoir_states", name="nobody").sizes["record"] == 0
    with pytest.raises(MisalignedRecordsError, match=r"'c_2.0' .*shape \(3, 3\).*name="):
        store.range("reservoir_states")


def test_the_odd_record_is_named(store: Any) -> None:
    for moment in (1.0, 2.0):
        store.store(states(moment, np.ones((2, 3))))
    store.store(states(3.0, np.ones((2, 4))))
    with pytest.raises(MisalignedRecordsError) as caught:
        store.range("reservoir_states")
    words = str(caught.value)
    assert "'r_3.0' has 'states' with shape (2, 4), expected (2, 3) (as 'r_1.0' has)" in words
    assert "start=, end= or name=" in words
    assert store.range("reservoir_states", end=2).sizes["record"] == 2


def test_records_without_a_variable_are_named(store: Any) -> None:
    store.store(neurostore.network_snapshot(adjacency=np.eye(2), weights=np.eye(2), timestamp=1.0))
    store.store(neurostore.network_snapshot(weights=np.eye(2), timestamp=2.0))
    with pytest.raises(MisalignedRecordsError, match=r"'snapshot_2.0' lacks 'adjacency'"):
        store.range("network_snapshot")


def snapshot(timestamp: float, labels: list[int], offset: float = 0.0) -> xr.Dataset:
    size = len(labels)
    weights = np.arange(size * size, dtype="f8").reshape(size, size) + offset
    coords = {"pre": labels, "post": labels}
    return neurostore.network_snapshot(weights=weights, timestamp=timestamp, coords=coords)


def test_labels_that_differ_are_refused_or_aligned(store: Any) -> None:
    store.store(snapshot(1.0, [10, 20]))
    store.store(snapshot(2.0, [10, 20], 4))
    store.store(snapshot(3.0, [20, 30], 8))
    same = store.range("network_snapshot", end=2)
    assert same["pre"].values.tolist() == [10, 20]
    assert same.sel(pre=20, post=10)["weights"].values.tolist() == [2.0, 6.0]
    with pytest.raises(MisalignedRecordsError, match=r"labels of 'snapshot_3.0'.*join='inner'"):
        store.range("network_snapshot")
    forced = store.range("network_snapshot", join="override")
    assert forced["pre"].values.tolist() == [10, 20]
    assert forced["weights"].values[2].tolist() == [[8, 9], [10, 11]]
    inner = store.range("network_snapshot", join="inner")
    assert inner["pre"].values.tolist() == [20]
    assert inner["weights"].values.ravel().tolist() == [3.0, 7.0, 8.0]
    outer = store.range("network_snapshot", join="outer")
    assert outer["pre"].values.tolist() == [10, 20, 30]
    nan = np.nan
    expected = [[nan, nan, nan], [nan, 8, 9], [nan, 10, 11]]
    np.testing.assert_array_equal(outer["weights"].values[2], expected)
    assert outer["timestamp"].values.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValidationError, match="join is 'left'"):
        store.range("network_snapshot", join="left")


@pytest.mark.parametrize("labelled_first", [True, False])
def test_labels_on_one_side_only_differ(store: Any, labelled_first: bool) -> None:
    coords = [{"neuron": [7, 8]}, None][:: 1 if labelled_first else -1]
    for moment, given in enumerate(coords):
        store.store(states(float(moment), np.ones((2, 2)), coords=given))
    with pytest.raises(MisalignedRecordsError):
        store.range("reservoir_states")


def test_unequal_shapes_with_labels_can_be_aligned(store: Any) -> None:
    store.store(snapshot(1.0, [1, 2, 3]))
    store.store(snapshot(2.0, [2, 3]))
    with pytest.raises(MisalignedRecordsError, match="shape"):
        store.range("network_snapshot")
    assert store.range("network_snapshot", join="inner")["weights"].shape == (2, 2, 2)
    assert store.range("network_snapshot", join="outer")["weights"].shape == (2, 3, 3)


@pytest.mark.parametrize("dtype", ["?", ml_dtypes.bfloat16, "f2", "i4"])
def test_gaps_of_an_outer_join_are_nan(store: Any, dtype: Any) -> None:
    for moment, labels in ((1.0, [1, 2]), (2.0, [2, 3])):
        coords = {"neuron": labels}
        values = np.ones(2, dtype)
        store.store(neurostore.homeostatic_trace(values, "m", timestamp=moment, coords=coords))
    found = store.range("homeostatic_trace", join="outer")["changes"]
    assert found.dtype == (dtype if np.dtype(dtype).kind in "fV" else np.float64)
    np.testing.assert_array_equal(
        np.isnan(found.values), [[False, False, True], [True, False, False]]
    )
    assert found.sel(neuron=2).values.tolist() == [1, 1]


def test_an_outer_join_changes_no_number(store: Any) -> None:
    for moment, labels in ((1.0, [1, 2]), (2.0, [2, 3])):
        values = np.full(2, 2**53 + 1)
        made = neurostore.homeostatic_trace(
            values, "m", timestamp=moment, coords={"neuron": labels}
        )
        store.store(made)
    with pytest.raises(MisalignedRecordsError, match=r"'changes' has integers above 2\*\*53"):
        store.range("homeostatic_trace", join="outer")
    inner = store.range("homeostatic_trace", join="inner")["changes"]
    assert inner.values.tolist() == [[2**53 + 1]] * 2
    same = store.range("homeostatic_trace", end=1, join="outer")["changes"]
    assert same.values.tolist() == [[2**53 + 1] * 2]


def test_sample_times_can_be_aligned(store: Any) -> None:
    for moment, samples in ((1.0, [0.0, 0.1]), (2.0, [0.1, 0.2])):
        store.store(states(moment, np.full((1, 2), moment), coords={"time": samples}))
    ds = store.range("reservoir_states", join="outer")
    assert ds["time"].values.tolist() == [0.0, 0.1, 0.2]
    nan = np.nan
    np.testing.assert_array_equal(ds["states"].values[:, 0], [[1, 1, nan], [nan, 2, 2]])


def test_unequal_shapes_without_labels_cannot(store: Any) -> None:
    store.store(states(1.0, np.ones((2, 3))))
    store.store(states(2.0, np.ones((2, 4))))
    with pytest.raises(MisalignedRecordsError, match=r"join='outer' cannot align.*name="):
        store.range("reservoir_states", join="outer")


def test_dtypes_are_joined_exactly_or_refused(store: Any) -> None:
    for moment, dtype in enumerate(["i2", "f4", "bool"]):
        store.store(neurostore.homeostatic_trace(np.ones(2, dtype), "m", timestamp=moment))
    assert store.range("homeostatic_trace")["changes"].dtype == np.float32
    store.store(neurostore.homeostatic_trace(np.full(2, 2**53 + 1), "m", timestamp=9.0))
    with pytest.raises(MisalignedRecordsError, match="int64"):
        store.range("homeostatic_trace")
    store.store(neurostore.compressed_spike_train(np.arange(2), timestamp=1.0))
    store.store(neurostore.compressed_spike_train(np.array(["a", "b"]), timestamp=2.0))
    with pytest.raises(MisalignedRecordsError, match=r"'compressed_2.0' has 'data' as <U1"):
        store.range("compressed_spike_train")


def test_pairs_that_fit_and_three_that_do_not(store: Any) -> None:
    for moment, dtype in enumerate(["i1", "i8", "f4"]):
        store.store(neurostore.homeostatic_trace(np.ones(2, dtype), "m", timestamp=moment))
    with pytest.raises(MisalignedRecordsError, match="no dtype holds 'changes'"):
        store.range("homeostatic_trace")


def test_extra_coordinates_of_records(store: Any) -> None:
    for moment in (1.0, 2.0):
        coords = {"neuron": ["a", "b"], "session": moment * 10, "depth": ("neuron", [0.5, 0.7])}
        store.store(neurostore.homeostatic_trace([moment, 2], "m", timestamp=moment, coords=coords))
    ds = store.range("homeostatic_trace")
    assert ds["session"].dims == ("record",)
    assert ds["session"].values.tolist() == [10.0, 20.0]
    assert ds["depth"].dims == ("neuron",)
    assert ds.sel(neuron="b")["changes"].values.tolist() == [2.0, 2.0]


def test_layer_outputs(store: Any) -> None:
    for moment in (1.0, 2.0):
        layers = {"in/put": np.full((2, 3), moment), "out": np.full((2, 1), moment, "f2")}
        store.store(neurostore.layer_outputs(layers, timestamp=moment))
    store.store(neurostore.layer_outputs({"other": np.ones(2)}, timestamp=3.0))
    ds = store.range("layer_outputs", name="in/put,out")
    assert ds["in%2Fput"].shape == (2, 2, 3)
    assert ds["in%2Fput"].attrs["original_name"] == "in/put"
    assert ds["out"].dtype == np.float16
    assert ds["layer"].values.tolist() == ["in/put", "out"]
    assert ds["out"].isel(record=1).values.tolist() == [[2.0], [2.0]]
    with pytest.raises(MisalignedRecordsError, match=r"'outputs_3.0'"):
        store.range("layer_outputs")


def test_dask_computes_a_stack_in_threads(store: Any) -> None:
    pytest.importorskip("dask")
    values = np.random.default_rng(2).random((12, 20, 30))
    for moment, one in enumerate(values):
        store.store(states(float(moment), one))
    ds = store.range("reservoir_states").chunk({"record": 1})
    assert ds["states"].chunks == ((1,) * 12, (20,), (30,))
    mean = ds["states"].mean("record").compute(scheduler="threads", num_workers=2)
    np.testing.assert_allclose(mean.values, values.mean(0))
    np.testing.assert_array_equal(ds["states"].compute(scheduler="threads").values, values)


# -- ragged


def test_spike_trains_are_joined_end_to_end(store: Any) -> None:
    big = 720575940600000000
    store.store(train(2.0, [0.3, 0.1], [big + 1, big + 3], spike_amplitudes=[1.0, 2.0]))
    store.store(train(1.0, [0.2], [big + 1], spike_amplitudes=[3.0]))
    store.store(train(3.0, [], np.empty(0, "i8"), spike_amplitudes=[]))
    store.store(
        train(4.0, [0.1, 0.25, 0.9], [big + 3, big + 2, big + 1], spike_amplitudes=[4.0, 5, 6])
    )
    ds = store.range("spike_train")
    assert ds["spike_times"].values.tolist() == [0.2, 0.3, 0.1, 0.1, 0.25, 0.9]
    assert ds["spike_amplitudes"].values.tolist() == [3.0, 1.0, 2.0, 4.0, 5.0, 6.0]
    assert ds["row_size"].values.tolist() == [1, 2, 0, 3]
    assert ds["row_size"].attrs["sample_dimension"] == "spike"
    assert ds["record_index"].values.tolist() == [0, 1, 1, 3, 3, 3]
    assert ds["timestamp"].values.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert ds["spike_times"].attrs["units"] == "s"
    assert isinstance(ds.xindexes["spike_times"], EventIndex)
    picked = ds.sel(spike_times=slice(0.1, 0.3), neuron_ids=[big + 1, big + 3])
    assert picked["spike_times"].values.tolist() == [0.2, 0.3, 0.1, 0.1]
    assert picked["record_index"].values.tolist() == [0, 1, 1, 3]
    absolute = picked["spike_times"] + ds["timestamp"][picked["record_index"]].drop_vars("record")
    assert absolute.values.tolist() == [1.2, 2.3, 2.1, 4.1]
    assert picked["spike_amplitudes"].values.tolist() == [3.0, 1.0, 2.0, 4.0]


def test_ragged_positions(store: Any) -> None:
    for moment in range(3):
        store.store(train(float(moment), np.arange(4.0) + 10 * moment, np.arange(4)))
    joined = np.concatenate([np.arange(4.0) + 10 * n for n in range(3)])
    for chosen in (
        -1,
        5,
        [0, -1, 4, 4],
        slice(None, None, -1),
        slice(None, None, 3),
        slice(3, 9),
        slice(9, 3),
        np.arange(12) % 5 == 0,
    ):
        found = store.range("spike_train").isel(spike=chosen)["spike_times"].values
        np.testing.assert_array_equal(found, joined[chosen])


def test_amplitudes_that_some_records_lack_are_nan(store: Any) -> None:
    store.store(train(1.0, [0.1], [1]))
    store.store(train(2.0, [0.2, 0.3], [1, 2], spike_amplitudes=np.array([7, 8], "f4")))
    ds = store.range("spike_train")
    assert ds["spike_amplitudes"].dtype == np.float32
    np.testing.assert_array_equal(ds["spike_amplitudes"].values, [np.nan, 7, 8])
    store.store(train(3.0, [0.2], [1], spike_amplitudes=np.array([2**60 + 1])))
    with pytest.raises(MisalignedRecordsError, match="spike_amplitudes"):
        store.range("spike_train")
    assert "spike_amplitudes" not in store.range("spike_train", end=1.0)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"units": "ms"}, {}, r"'train_2.0' has 'spike_times' in 's', expected 'ms'"),
        ({"neuron_ids": ["a"]}, {}, "neuron_ids"),
        ({"neuron_ids": np.array([2**63], "u8")}, {"neuron_ids": [-1]}, "neuron_ids"),
        ({"spike_times": np.array([2**60])}, {}, "spike_times"),
    ],
)
def test_spikes_that_do_not_go_together(store: Any, first: Any, second: Any, words: str) -> None:
    for moment, given in ((1.0, first), (2.0, second)):
        full = {"spike_times": [0.1], "neuron_ids": [1]} | given
        store.store(neurostore.spike_train(**full, timestamp=moment))
    with pytest.raises(MisalignedRecordsError, match=words):
        store.range("spike_train")


def test_spikes_of_several_dtypes(store: Any) -> None:
    store.store(train(1.0, np.array([0.5], "f4"), np.array([1], "u1")))
    store.store(train(2.0, np.array([0.1], "f8"), np.array([-300], "i4")))
    ds = store.range("spike_train")
    assert (ds["spike_times"].dtype, ds["neuron_ids"].dtype) == (np.float64, np.int32)
    assert ds["neuron_ids"].values.tolist() == [1, -300]
    assert ds.sel(neuron_ids=-300)["spike_times"].values.tolist() == [0.1]


def test_text_ids_of_several_widths(store: Any) -> None:
    store.store(train(1.0, [0.5], ["a"]))
    store.store(train(2.0, [0.1, 0.2], ["longer", "ü"]))
    ds = store.range("spike_train")
    assert ds["neuron_ids"].values.tolist() == ["a", "longer", "ü"]
    assert ds.sel(neuron_ids="ü")["spike_times"].values.tolist() == [0.2]


def test_coordinates_along_spikes_and_others(store: Any) -> None:
    for moment, size in ((1.0, 2), (2.0, 3)):
        coords = {"layer": ("spike", ["x"] * size), "electrode": [1, 2]}
        store.store(train(moment, np.arange(size) / 8, np.arange(size), coords=coords))
    ds = store.range("spike_train")
    assert ds["layer"].values.tolist() == ["x"] * 5
    assert ds["electrode"].values.tolist() == [1, 2]
    store.store(train(3.0, [0.1], [1], coords={"layer": ("spike", ["y"]), "electrode": [1, 3]}))
    with pytest.raises(MisalignedRecordsError, match=r"labels of 'train_3.0'"):
        store.range("spike_train")
    forced = store.range("spike_train", join="override")
    assert forced["electrode"].values.tolist() == [1, 2]
    assert forced["layer"].values.tolist() == ["x"] * 5 + ["y"]


# -- under the union of labels


def test_metrics_take_the_union_of_their_labels(store: Any) -> None:
    store.store(metrics(1.0, loss=0.5, accuracy=0.7))
    store.store(metrics(2.0, accuracy=0.8, f1=0.6))
    store.store(metrics(3.0))
    ds = store.range("performance_metrics")
    assert ds["metric"].values.tolist() == ["loss", "accuracy", "f1"]
    nan = np.nan
    expected = [[0.5, 0.7, nan], [nan, 0.8, 0.6], [nan, nan, nan]]
    np.testing.assert_array_equal(ds["values"].values, expected)
    assert ds.sel(metric="accuracy", timestamp=2.0)["values"].item() == 0.8
    assert ds.isel(record=-1, metric=[-1, 0])["values"].isnull().all()
    assert ds["values"].isel(metric=slice(None, None, -1))[0].values.tolist()[1:] == [0.7, 0.5]
    assert ds["task_type"].values.tolist() == ["t"] * 3


def test_metrics_with_coordinates_of_their_own(store: Any) -> None:
    for moment, labels in ((1.0, ["a", "b"]), (2.0, ["b"])):
        ds = metrics(moment, **dict.fromkeys(labels, moment))
        coords = {
            "unit": ("metric", [f"u{x}" for x in labels]),
            "n": ("metric", np.ones(len(labels), "i4")),
        }
        store.store(ds.assign_coords(coords | {"fold": [0, 1], "epoch": moment}))
    ds = store.range("performance_metrics")
    assert ds["unit"].values.tolist() == [["ua", "ub"], ["", "ub"]]
    np.testing.assert_array_equal(ds["n"].values, [[1, 1], [np.nan, 1]])
    assert ds["fold"].values.tolist() == [0, 1]
    assert ds["epoch"].values.tolist() == [1.0, 2.0]


# -- one, none, and very many


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_range_is_a_whole_dataset(store: Any, kind: str) -> None:
    ds = store.range(kind)
    assert ds.sizes["record"] == 0
    assert {"record", "timestamp"} <= set(ds.coords)
    assert ds.attrs["kind"] == kind
    assert ds.sel(timestamp=slice(0, 1)).sizes["record"] == 0
    row = KINDS[kind]
    for variable in row.variables:
        if variable.required and row.mapping != "variables":
            assert ds[variable.name].size == 0
            assert dict(variable.attrs) == ds[variable.name].attrs
    if row.combine == "ragged":
        assert ds.sel(spike_times=slice(0, 1), neuron_ids=[1]).sizes["spike"] == 0
        assert (ds["row_size"].size, ds["record_index"].size) == (0, 0)
    ds.load()
    repr(ds)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_one_has_the_form_of_a_range_of_many(store: Any, kind: str) -> None:
    store.store(record(KINDS[kind], timestamp=1.0))
    one = store.range(kind)
    assert one.sizes["record"] == 1
    store.store(record(KINDS[kind], timestamp=2.0))
    many = store.range(kind)
    assert set(one.variables) == set(many.variables)
    assert {k: v.dims for k, v in one.variables.items()} == {
        k: v.dims for k, v in many.variables.items()
    }


class Never:
    """A source that must not be read."""

    def read(self, address: str, selection: Any) -> np.ndarray[Any, Any]:
        raise AssertionError(f"{address} was read")


@pytest.mark.parametrize("kind", ["spike_train", "reservoir_states", "performance_metrics"])
def test_one_record_per_structure_is_opened(kind: str) -> None:
    row = KINDS[kind]
    opened: list[str] = []

    def opener(member: Member) -> Opened:
        opened.append(member.id)
        ds = _sample(kind, member.timestamp)
        places = {
            str(name): Place(Never(), f"g/{member.id}/{name}", v.dtype.str, v.dtype, v.shape)
            for name, v in ds.variables.items()
            if v.dtype.kind != "U"
        }
        return Opened(ds, places)

    members = [
        Member(f"x_{n}", float(n), "x", 2, "one" if n % 2 else "two", 7, Never())
        for n in range(2000)
    ]
    ds = combining.combine(row, members, opener)
    assert ds.sizes["record"] == 2000
    assert sorted(set(opened)) == ["x_0", "x_1"]


def _sample(kind: str, timestamp: float) -> xr.Dataset:
    make: dict[str, Callable[[], xr.Dataset]] = {
        "spike_train": lambda: train(timestamp, [0.1, 0.2], [1, 2]),
        "reservoir_states": lambda: states(timestamp, np.ones((2, 3)), "x"),
        "performance_metrics": lambda: metrics(timestamp, "x", a=1.0, b=2.0),
    }
    return make[kind]()


def test_many_records(store: Any) -> None:
    sizes = np.arange(600) % 7
    with store.batch():
        for moment, size in enumerate(sizes):
            store.store(train(float(moment), np.full(size, moment), np.arange(size)))
            store.store(metrics(float(moment), a=moment, b=-moment))
    spikes = store.range("spike_train")
    np.testing.assert_array_equal(spikes["row_size"], sizes)
    np.testing.assert_array_equal(spikes["record_index"], np.repeat(np.arange(600), sizes))
    np.testing.assert_array_equal(spikes["spike_times"], np.repeat(np.arange(600.0), sizes))
    assert spikes.sel(neuron_ids=6).sizes["spike"] == int((sizes > 6).sum())
    table = store.range("performance_metrics", 200, 400)
    np.testing.assert_array_equal(table["values"].sel(metric="b"), -np.arange(200.0, 401))


# -- over rotated files, and into other files


def test_a_range_over_a_rotated_series(store: Any) -> None:
    for moment in range(9):
        store.store(train(float(moment), [0.5] * moment, np.full(moment, moment)))
        store.store(states(float(moment), np.full((2, 2), float(moment))))
        if moment % 3 == 2:
            store.rotate()
    ds = store.range("spike_train", 1, 7)
    assert ds["record"].values.tolist() == [f"train_{float(n)}" for n in range(1, 8)]
    assert ds["neuron_ids"].values.tolist() == [n for n in range(1, 8) for _ in range(n)]
    assert store.range("reservoir_states")["states"].values[:, 0, 0].tolist() == list(range(9))
    assert ds.neuro.ids("spike_train", 8) == ["train_8.0"]
    assert len(store.ids()) == 18
    assert store.info()["records"]["spike_train"] == 9


def test_records_of_one_moment_in_several_files(store: Any) -> None:
    for number in range(3):
        store.store(metrics(1.0, a=number))
        if number < 2:
            store.rotate()
    ds = store.range("performance_metrics", 1, 1)
    assert ds["values"].values.ravel().tolist() == [0.0, 1.0, 2.0]
    assert len(set(ds["record"].values.tolist())) == 3


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_stock_xarray_writes_a_range(store: Any, tmp_path: Path, engine: str) -> None:
    pytest.importorskip("netCDF4" if engine == "netcdf4" else "h5netcdf")
    for moment in (1.0, 2.0):
        store.store(train(moment, [0.1, 0.2], [1, 2], spike_amplitudes=[1.0, 2.0]))
        store.store(states(moment, np.full((2, 2), moment)))
        store.store(metrics(moment, a=moment))
    spikes = store.range("spike_train").load().drop_indexes(["spike_times", "neuron_ids"])
    for ds in (spikes, store.range("reservoir_states"), store.range("performance_metrics")):
        file = tmp_path / f"{ds.attrs['kind']}.nc"
        ds.to_netcdf(file, engine=engine)
        with xr.open_dataset(file, engine=engine, decode_timedelta=False) as back:
            for name, variable in ds.variables.items():
                np.testing.assert_array_equal(back[name].values, variable.values)
            assert back.attrs == ds.attrs


@pytest.mark.parametrize("dtype", ["f2", "f4", "c8", ml_dtypes.bfloat16, "?", "i4", "u1"])
def test_gaps_keep_the_dtype_where_it_has_nan(store: Any, dtype: Any) -> None:
    store.store(train(1.0, [0.1], [1]))
    store.store(train(2.0, [0.2], [1], spike_amplitudes=np.ones(1, dtype)))
    found = store.range("spike_train")["spike_amplitudes"]
    assert found.dtype == (dtype if np.dtype(dtype).kind in "fcV" else np.float64)
    assert np.isnan(found.values[0])
    assert found.values[1] == 1


def test_numbers_and_dates_have_nothing_in_common() -> None:
    assert likeness.common_dtype(np.dtype("M8[s]"), np.dtype("i8")) is None
    assert likeness.common_dtype(np.dtype("U3"), np.dtype("S3")) is None
    assert likeness.common_dtype(np.dtype(ml_dtypes.bfloat16), np.dtype("f4")) == np.float32


def test_a_range_is_never_a_record_by_mistake(store: Any) -> None:
    store.store(states(1.0, np.ones((2, 2))))
    with pytest.raises(ValidationError):
        store.store(store.range("reservoir_states"))


def test_a_silent_train_from_empty_lists(store: Any) -> None:
    store.store(train(1.0, [], []))
    store.store(train(2.0, [0.1], [2**53 + 1]))
    ds = store.range("spike_train")
    assert ds["row_size"].values.tolist() == [0, 1]
    assert ds["neuron_ids"].values.tolist() == [2**53 + 1]
