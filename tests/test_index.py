"""The event index: what `ds.sel` keeps, what is read for it, and what xarray does with it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import examples
from xarray.core import indexing

from neurostore.errors import MisalignedRecordsError, ValidationError
from neurostore.index import EventIndex, with_event_index

NAMES = ["spike_times", "neuron_ids"]
TIMES = np.array([0.3, 0.1, 0.2, 0.9, 0.1, 0.5])
IDS = np.array([1, 3, 2, 1, 1, 3])
BIG = 720575940600000000


class CountingArray(xr.backends.BackendArray):
    """A lazy array that says how many values were read from it."""

    def __init__(self, values: np.ndarray) -> None:
        self.inner = values
        self.shape, self.dtype = values.shape, values.dtype
        self.read = 0

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._get
        )

    def _get(self, key: tuple[Any, ...]) -> Any:
        part = self.inner[key]
        self.read += np.size(part)
        return part


def train(times: Any = TIMES, ids: Any = IDS) -> xr.Dataset:
    n = len(times)
    ds = xr.Dataset(
        {"spike_amplitudes": ("spike", np.arange(n, dtype=float))},
        coords={
            "spike_times": ("spike", times, {"units": "s"}),
            "neuron_ids": ("spike", ids),
            "timestamp": 4.0,
        },
    )
    return with_event_index(ds)


def lazy_train(times: np.ndarray = TIMES, ids: np.ndarray = IDS) -> tuple[xr.Dataset, Any, Any]:
    arrays = CountingArray(times), CountingArray(ids)
    t, i = (xr.Variable("spike", indexing.LazilyIndexedArray(a), {"units": "s"}) for a in arrays)
    ds = xr.Dataset(coords={"spike_times": t, "neuron_ids": i})
    return with_event_index(ds), *arrays


def kept(ds: xr.Dataset, **labels: Any) -> list[int]:
    return [int(a) for a in ds.sel(**labels).spike_amplitudes.values]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"spike_times": slice(0.1, 0.3)}, [0, 1, 2, 4]),
        ({"spike_times": slice(0.3, None)}, [0, 3, 5]),
        ({"spike_times": slice(None, 0.2)}, [1, 2, 4]),
        ({"spike_times": slice(None)}, [0, 1, 2, 3, 4, 5]),
        ({"spike_times": slice(0.3, 0.1)}, []),
        ({"spike_times": slice(-np.inf, np.inf)}, [0, 1, 2, 3, 4, 5]),
        ({"spike_times": 0.1}, [1, 4]),
        ({"spike_times": [0.1, 0.9, 7.0]}, [1, 3, 4]),
        ({"neuron_ids": 3}, [1, 5]),
        ({"neuron_ids": 99}, []),
        ({"neuron_ids": [3, 3, 2, 99]}, [1, 2, 5]),
        ({"neuron_ids": {2, 3}}, [1, 2, 5]),
        ({"neuron_ids": range(2, 4)}, [1, 2, 5]),
        ({"neuron_ids": []}, []),
        ({"neuron_ids": np.array([], float)}, []),
        ({"neuron_ids": xr.DataArray([1], dims="cell")}, [0, 3, 4]),
        ({"neuron_ids": pd.Index([1])}, [0, 3, 4]),
        ({"neuron_ids": [1.0, 2.5, np.nan]}, [0, 3, 4]),
        ({"neuron_ids": slice(2, 3)}, [1, 2, 5]),
        ({"neuron_ids": slice(1.5, 2.5)}, [2]),
        ({"neuron_ids": slice(10**30, None)}, []),
        ({"spike_times": slice(0.1, 0.3), "neuron_ids": [1, 3]}, [0, 1, 4]),
        ({"spike_times": slice(0.1, 0.3), "neuron_ids": slice(2, None)}, [1, 2]),
        ({"spike_times": 0.1, "neuron_ids": 1}, [4]),
    ],
)
def test_selects_in_stored_order(labels: dict[str, Any], expected: list[int]) -> None:
    ds = train()
    assert kept(ds, **labels) == expected
    order = np.lexsort((np.arange(len(TIMES)), TIMES))
    ascending = ds.isel(spike=order)
    assert kept(ascending, **labels) == [int(k) for k in order if k in expected]


def test_selection_carries_every_coordinate_and_the_index() -> None:
    part = train().sel(spike_times=slice(0.1, 0.3), neuron_ids=[1, 3])
    assert part.sizes == {"spike": 3}
    assert part.spike_times.values.tolist() == [0.3, 0.1, 0.1]
    assert part.neuron_ids.values.tolist() == [1, 3, 1]
    assert part.spike_times.attrs == {"units": "s"}
    assert kept(part, neuron_ids=3) == [1]
    assert part.spike_amplitudes.sel(neuron_ids=1).sizes == {"spike": 2}


def test_large_ids_are_never_floats() -> None:
    ids = BIG + np.arange(6)
    ds = train(ids=ids)
    assert kept(ds, neuron_ids=BIG + 1) == [1]
    assert kept(ds, neuron_ids=[BIG + 1, 2.0, 10**40, -(10**40)]) == [1]
    assert kept(ds, neuron_ids=np.array([BIG + 3], np.uint64)) == [3]
    assert kept(ds, neuron_ids=slice(BIG + 2, BIG + 3)) == [2, 3]
    unsigned = train(ids=ids.astype(np.uint64) + np.uint64(2**63))
    assert kept(unsigned, neuron_ids=[BIG + 1 + 2**63, -1]) == [1]
    assert kept(unsigned, neuron_ids=slice(-5, BIG + 2**63)) == [0]
    for label in (float(BIG), [1, float(BIG)], np.array([float(BIG)])):
        with pytest.raises(ValidationError, match="no longer names one id"):
            ds.sel(neuron_ids=label)


def test_float32_times_include_their_own_bounds() -> None:
    ds = train(times=TIMES.astype(np.float32))
    assert kept(ds, spike_times=slice(0.1, 0.3)) == [0, 1, 2, 4]
    assert kept(ds, spike_times=slice(np.float64(0.1), np.float64(0.3))) == [0, 1, 2, 4]
    assert kept(ds, spike_times=0.1) == [1, 4]


def test_nan_times_are_never_selected() -> None:
    ds = train(times=np.array([np.nan, 0.1, np.nan]), ids=np.arange(3))
    assert kept(ds, spike_times=slice(0, None)) == [1]
    assert kept(ds.isel(spike=[0]), spike_times=slice(0, None)) == []
    assert kept(ds.isel(spike=[1, 2]), spike_times=slice(0, None)) == [1]


def test_datetimes_and_text() -> None:
    times = np.array(["2024-01-02", "2024-01-01"], "datetime64[ns]")
    ds = train(times=times, ids=np.array(["b", "a"]))
    assert kept(ds, spike_times=slice("2024-01-02", None)) == [0]
    assert kept(ds, spike_times=times[1]) == [1]
    assert kept(ds, neuron_ids="a") == [1]
    assert kept(ds, neuron_ids=["b", "zz"]) == [0]
    assert kept(ds, neuron_ids=slice("b", None)) == [0]


def test_empty_train() -> None:
    ds = train(times=np.array([]), ids=np.array([], int))
    assert kept(ds, spike_times=slice(0, 1), neuron_ids=[1]) == []


@settings(max_examples=examples(30), deadline=None)
@given(
    spikes=st.lists(st.tuples(st.integers(-4, 4), st.integers(-3, 3)), max_size=12),
    bounds=st.tuples(st.none() | st.integers(-5, 5), st.none() | st.integers(-5, 5)),
    wanted=st.lists(st.integers(-4, 4), max_size=4),
    ascending=st.booleans(),
)
def test_agrees_with_a_plain_loop(
    spikes: list[tuple[int, int]],
    bounds: tuple[int | None, int | None],
    wanted: list[int],
    ascending: bool,
) -> None:
    spikes = sorted(spikes) if ascending else spikes
    times, ids = (np.array([s[k] for s in spikes], dt) for k, dt in ((0, float), (1, int)))
    low, high = bounds
    expected = [
        k
        for k, (t, i) in enumerate(spikes)
        if (low is None or t >= low) and (high is None or t <= high) and i in wanted
    ]
    assert kept(train(times, ids), spike_times=slice(low, high), neuron_ids=wanted) == expected


@pytest.mark.parametrize(
    "labels",
    [
        {"neuron_ids": np.array([True] * 6)},
        {"neuron_ids": True},
        {"neuron_ids": [1, True]},
        {"neuron_ids": [[1, 2]]},
        {"neuron_ids": "one"},
        {"spike_times": "one"},
        {"spike_times": slice("a", "b")},
        {"spike_times": slice(np.nan, None)},
        {"spike_times": slice(0, 1, 2)},
        {"spike_times": slice([0, 1], None)},
    ],
)
def test_odd_labels_are_refused(labels: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        train().sel(**labels)


def test_method_is_refused() -> None:
    with pytest.raises(ValidationError, match="select a range instead"):
        train().sel(spike_times=0.11, method="nearest")
    with pytest.raises(ValidationError, match="select a range instead"):
        train().sel(spike_times=0.11, tolerance=0.1)


def test_coordinates_must_share_one_dimension() -> None:
    ds = xr.Dataset(coords={"a": ("x", [1]), "b": ("y", [1]), "c": (("x", "y"), [[1]])})
    for names in (["a", "b"], ["c"]):
        with pytest.raises(ValidationError, match="one dimension"):
            ds.set_xindex(names, EventIndex)
    with pytest.raises(ValidationError, match="unknown options"):
        ds.set_xindex(["a"], EventIndex, sorted=True)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    ds, times, ids = lazy_train()
    repr(ds), ds._repr_html_(), ds.xindexes
    copies = [ds.copy(), ds.copy(deep=True), ds.isel(spike=slice(1, 4)), ds.isel(spike=[3, 1])]
    ds.assign(x=("spike", TIMES)), ds.rename(spike="event"), xr.align(ds, ds.copy())
    pickle.loads(pickle.dumps(ds))
    assert (times.read, ids.read) == (0, 0)
    assert copies[3].neuron_ids.values.tolist() == [1, 3]
    assert (times.read, ids.read) == (0, 2)


def test_a_selection_reads_each_coordinate_once() -> None:
    ds, times, ids = lazy_train()
    part = ds.sel(spike_times=slice(0.1, 0.3))
    assert (times.read, ids.read) == (6, 0)
    assert part.spike_times.values.tolist() == [0.3, 0.1, 0.2, 0.1]
    ds.sel(neuron_ids=1), ds.sel(neuron_ids=2), ds.spike_times.values, ds.copy().load()
    assert (times.read, ids.read) == (6, 6)


def test_sorted_times_narrow_what_is_read_of_the_ids() -> None:
    ds, times, ids = lazy_train(np.sort(TIMES))
    part = ds.sel(spike_times=slice(0.2, 0.3), neuron_ids=[1, 2])
    assert (times.read, ids.read) == (6, 2)
    assert part.neuron_ids.values.tolist() == [2, 1]


@pytest.mark.parametrize("how", ["load", "compute", "values"])
def test_a_loaded_dataset_needs_its_source_no_more(how: str) -> None:
    ds, times, ids = lazy_train()
    if how == "values":
        ds.spike_times.values, ds.neuron_ids.values  # noqa: B018
    else:
        ds = getattr(ds, how)()
    times.inner = ids.inner = None
    assert ds.sel(spike_times=slice(0.1, 0.3), neuron_ids=3).spike_times.values.tolist() == [0.1]
    assert ds.isel(spike=[0]).neuron_ids.values.tolist() == [1]


def test_dask_coordinates() -> None:
    ds = train().drop_indexes(NAMES).chunk(spike=2)
    ds = with_event_index(ds)
    assert ds.spike_amplitudes.chunks == ((2, 2, 2),)
    assert kept(ds, spike_times=slice(0.1, 0.3), neuron_ids=[1, 3]) == [0, 1, 4]
    assert kept(ds.compute(), neuron_ids=3) == [1, 5]
    assert kept(ds.load(), neuron_ids=3) == [1, 5]
    assert kept(train().chunk(spike=4), neuron_ids=3) == [1, 5]


def test_copies_do_not_share_attributes_or_values() -> None:
    ds = train()
    copy = ds.copy()
    copy.spike_times.attrs["units"] = "ms"
    assert ds.spike_times.attrs == {"units": "s"}
    with pytest.raises(ValueError, match="read-only"):
        ds.copy(deep=True).spike_times.values[0] = 9.0
    assert TIMES.flags.writeable


def test_isel() -> None:
    ds = train()
    assert kept(ds.isel(spike=slice(None, None, -1)), neuron_ids=3) == [5, 1]
    assert kept(ds.isel(spike=np.array([5, 0, 0])), neuron_ids=1) == [0, 0]
    assert kept(ds.isel(spike=IDS == 1), spike_times=slice(0.2, None)) == [0, 3]
    assert kept(ds.isel(spike=xr.DataArray([4, 0], dims="spike")), neuron_ids=1) == [4, 0]
    one = ds.isel(spike=2)
    assert not one.xindexes
    assert one.spike_times == 0.2
    assert one.neuron_ids == 2
    other = ds.isel(spike=xr.DataArray([4, 0], dims="event"))
    assert not other.xindexes
    assert other.spike_times.dims == ("event",)
    grid = ds.isel(spike=xr.DataArray([[4, 0]], dims=("a", "b")))
    assert not grid.xindexes
    assert grid.spike_times.shape == (1, 2)


def test_concat() -> None:
    ds = train()
    both = xr.concat([ds.sel(neuron_ids=1), ds.sel(neuron_ids=3)], dim="spike")
    assert isinstance(both.xindexes["spike_times"], EventIndex)
    assert both.neuron_ids.values.tolist() == [1, 1, 1, 3, 3]
    assert both.spike_times.attrs == {"units": "s"}
    assert kept(both, spike_times=slice(0.1, 0.3)) == [0, 4, 1]
    lazy, times, _ = lazy_train()
    assert xr.concat([lazy, lazy], dim="spike").sel(neuron_ids=2).sizes == {"spike": 2}
    assert times.read == 6


def test_concat_refuses_ids_that_would_become_floats() -> None:
    signed, unsigned = train(), train(ids=IDS.astype(np.uint64))
    with pytest.raises(MisalignedRecordsError, match="float64 would change"):
        xr.concat([signed, unsigned], dim="spike")
    mixed = xr.concat([signed, train(ids=IDS.astype(np.int16))], dim="spike")
    assert mixed.neuron_ids.dtype == np.int64


def test_alignment_is_exact() -> None:
    ds, again = train(), train()
    xr.testing.assert_identical(ds, again)
    xr.testing.assert_identical(ds, ds.copy(deep=True))
    assert (ds + again).spike_amplitudes.values.tolist() == [0, 2, 4, 6, 8, 10]
    part = ds.isel(spike=[0, 1, 2, 3, 4, 4])
    assert not ds.identical(part)
    for join in ("inner", "outer", "left", "right"):
        with pytest.raises(MisalignedRecordsError, match=r"xr\.concat"):
            xr.align(ds, part, join=join)
    with pytest.raises(ValueError, match="exact"):
        xr.align(ds, part, join="exact")
    assert ds.reindex_like(again).identical(ds)


def test_equal_with_nan() -> None:
    times = np.array([np.nan, 1.0])
    assert train(times, IDS[:2]).identical(train(times.copy(), IDS[:2]))
    text = np.array(["a", "b"])
    assert train(times, text).identical(train(times, text.copy()))
    assert not train(TIMES, IDS).identical(train(TIMES, IDS + 1))


def test_rename() -> None:
    ds = train().rename(spike_times="t", spike="event")
    assert ds.sel(t=slice(0.1, 0.3), neuron_ids=[1, 3]).sizes == {"event": 3}
    assert ds.t.dims == ("event",)
    assert ds.rename_vars(neuron_ids="unit").sel(unit=2).t.values.tolist() == [0.2]


def test_pickle_and_lazy_pickle() -> None:
    ds = pickle.loads(pickle.dumps(train()))
    assert kept(ds, neuron_ids=3) == [1, 5]
    lazy = pickle.loads(pickle.dumps(lazy_train()[0]))
    assert lazy.sel(neuron_ids=3).spike_times.values.tolist() == [0.1, 0.5]


def test_ordinary_work_goes_on() -> None:
    ds = train()
    ds["double"] = ds.spike_amplitudes * 2
    ds.coords["cell_type"] = ("spike", list("abcabc"))
    assert ds.sel(neuron_ids=3).double.values.tolist() == [2, 10]
    assert ds.sel(neuron_ids=3).cell_type.values.tolist() == ["b", "c"]
    assert ds.groupby("neuron_ids").count().spike_amplitudes.values.tolist() == [3, 1, 2]
    assert ds.sortby("spike_times").spike_amplitudes.values.tolist() == [1, 4, 2, 0, 5, 3]
    assert ds.where(ds.neuron_ids == 3, drop=True).sizes == {"spike": 2}
    assert list(ds.drop_indexes(NAMES).to_dataframe().neuron_ids) == IDS.tolist()
    assert kept(ds.drop_vars("double"), neuron_ids=2) == [2]
    moved = ds.assign_coords(
        xr.Coordinates.from_xindex(train(TIMES + 1, IDS).xindexes["spike_times"])
    )
    assert kept(moved, spike_times=slice(1.9, None)) == [3]
    bare = ds.drop_indexes(NAMES)
    assert not bare.xindexes
    assert bare.identical(with_event_index(bare).drop_indexes(NAMES))


def test_netcdf_round_trip(tmp_path: Any) -> None:
    ds = train()
    for n, form in enumerate((ds, ds.drop_indexes(NAMES))):
        path = tmp_path / f"{n}.nc"
        form.to_netcdf(path, engine="h5netcdf")
        with xr.open_dataset(path, engine="h5netcdf") as back:
            xr.testing.assert_identical(with_event_index(back.load()), ds)


def test_half_a_million_unsorted_spikes_with_18_digit_ids(real_data: Path) -> None:
    table = pd.read_parquet(real_data / "flywire_brian2_sugarR.parquet")
    times, ids = table["t"].to_numpy(), table["flywire_id"].to_numpy()
    wanted = np.unique(ids)[[3, 70, 200]]
    part = train(times, ids).sel(spike_times=slice(0.1, 0.3), neuron_ids=wanted)
    mask = (times >= 0.1) & (times <= 0.3) & ((ids[:, None] == wanted).any(axis=1))
    assert mask.any()
    np.testing.assert_array_equal(part.neuron_ids, ids[mask])
    np.testing.assert_array_equal(part.spike_times, times[mask])


def test_other_coordinates_can_be_indexed_too() -> None:
    ds = train().assign_coords(channel=("spike", list("xyxyxy")))
    ds = ds.drop_indexes(NAMES).set_xindex([*NAMES, "channel"], EventIndex)
    assert kept(ds, channel="x", neuron_ids=1) == [0, 4]
    only = ds.drop_indexes([*NAMES, "channel"]).set_xindex("spike_times", EventIndex)
    assert kept(only, spike_times=slice(0.1, 0.2)) == [1, 2, 4]


def test_helper_leaves_other_datasets_alone() -> None:
    for ds in (
        xr.Dataset({"spike_times": ("spike", TIMES)}),
        xr.Dataset(coords={"spike_times": ("spike", TIMES), "neuron_ids": ("cell", IDS)}),
        xr.Dataset(coords={"spike_times": 1.0, "neuron_ids": 2}),
        train(),
    ):
        assert with_event_index(ds) is ds
    renamed = train().drop_indexes(NAMES).rename(spike_times="t")
    assert with_event_index(renamed, time="t").sel(t=0.2).sizes == {"spike": 1}


def test_says_what_it_is() -> None:
    index = train().xindexes["spike_times"]
    assert repr(index) == "EventIndex(spike_times, neuron_ids; spike: 6)"
    assert "EventIndex(spike_times" in repr(train())
    with pytest.raises(TypeError, match="drop_indexes"):
        index.to_pandas_index()
