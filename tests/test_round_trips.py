"""What goes in comes out: values to the bit, labels, attributes, metadata and names."""

from __future__ import annotations

import json
import math
import string
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import assert_same, assert_same_attrs, assert_same_values
from tiers import examples

import neurostore
from neurostore import HDF5Storage
from neurostore.store import Store

FEW = settings(
    max_examples=examples(25),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NATIVE = ["?", *(f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8))]
NATIVE += ["f2", "f4", "f8", "c8", "c16"]
DATES = [f"{code}8[{unit}]" for code in "Mm" for unit in ("D", "s", "ms", "us", "ns")]
EXTENDED = sorted(
    name
    for name in dir(ml_dtypes)
    if name.startswith(("bfloat16", "float", "int", "uint"))
    and isinstance(getattr(ml_dtypes, name), type)
)
SHAPES = [(), (0,), (1,), (7,), (0, 3), (3, 0), (2, 3), (2, 1, 3), (2, 2, 2, 2), (300, 400)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with neurostore.open(tmp_path / "run.h5", durability="process") as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One file for the many examples of a property."""
    path = tmp_path_factory.mktemp("shared") / "run.h5"
    with neurostore.open(path, durability="process") as opened:
        yield opened


def there_and_back(store: Store, array: Any) -> np.ndarray[Any, Any]:
    ds = neurostore.compressed_spike_train(array, timestamp=1.0)
    back: np.ndarray[Any, Any] = store.retrieve(store.store(ds))["data"].values
    return back


def held(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what a Dataset holds: xarray brings dates into this machine's order, days to s."""
    if array.dtype.kind not in "Mm":
        return array
    values: np.ndarray[Any, Any] = xr.Variable([f"d{n}" for n in range(array.ndim)], array).values
    return values


def ramp(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    size = math.prod(shape)
    raw = np.arange(size * dtype.itemsize, dtype="u4").astype("u1")
    if dtype.kind == "b":
        return (np.arange(size) % 2).astype(bool).reshape(shape)
    if dtype.kind in "Mm" and np.datetime_data(dtype)[0] == "D":
        return (np.arange(size) - 100).astype(dtype).reshape(shape)
    return np.frombuffer(raw.tobytes(), dtype).reshape(shape)


# -- dtypes and shapes ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NATIVE + DATES)
def test_every_dtype_in_every_shape(store: Store, dtype: str) -> None:
    for shape in SHAPES:
        array = ramp(shape, np.dtype(dtype))
        assert_same_values(there_and_back(store, array), held(array), f"{dtype} {shape}")


@pytest.mark.parametrize("name", EXTENDED)
def test_every_value_of_the_dtypes_of_machine_learning(store: Store, name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    codes = np.arange(256 if dtype.itemsize == 1 else 65536, dtype=f"u{dtype.itemsize}")
    array = codes.view(dtype)
    narrow = name.startswith(("int", "uint", "float4", "float6"))
    if narrow:  # bits beyond the width are no values
        with np.errstate(invalid="ignore"):
            array = array.astype("f4").astype(dtype)
    assert_same_values(there_and_back(store, array), array, name)
    for shape in SHAPES[:-1]:
        few = np.resize(array[5:9], shape)
        assert_same_values(there_and_back(store, few), few, f"{name} {shape}")


@pytest.mark.parametrize("dtype", [code for code in NATIVE + DATES if code[-1] != "1"])
def test_the_other_byte_order(store: Store, dtype: str) -> None:
    swapped = np.dtype(dtype).newbyteorder("S")
    for shape in SHAPES:
        array = ramp(shape, swapped)
        assert_same_values(there_and_back(store, array), held(array), f"{swapped} {shape}")


@pytest.mark.parametrize("dtype", [*NATIVE, "M8[ns]", "U5", "S5", "bfloat16"])
def test_any_layout_in_memory(store: Store, dtype: str) -> None:
    whole = np.arange(6 * 8).reshape(6, 8)
    array = whole.astype(getattr(ml_dtypes, dtype, dtype))
    frozen = array.copy()
    frozen.setflags(write=False)
    for given_array in (
        np.asfortranarray(array),
        array.T,
        array[::2, ::-3],
        array[:, 3],
        frozen,
        np.broadcast_to(array[0], (4, 8)),
        np.lib.stride_tricks.sliding_window_view(array[0], 3),
    ):
        assert_same_values(there_and_back(store, given_array), given_array, dtype)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f2", ">f4", "c8", "bfloat16"])
def test_payloads_of_nan_and_signed_zeros(store: Store, dtype: str) -> None:
    made = np.dtype(getattr(ml_dtypes, dtype, dtype))
    size = made.itemsize // (2 if made.kind == "c" else 1)
    fraction = {"bfloat16": 7}.get(dtype, {2: 10, 4: 23, 8: 52}[size])
    exponent = ((1 << (8 * size)) - 1) // 2 + 1 - (1 << fraction)
    quiet = exponent | (1 << (fraction - 1))
    sign = 1 << (8 * size - 1)
    codes = [0, sign, exponent, sign | exponent, quiet, quiet | 5, sign | quiet | 1, 1, sign | 3]
    codes += [exponent | 1, sign | exponent | 3]  # signalling
    unsigned = np.dtype(f"u{size}").newbyteorder(made.byteorder)
    array = np.array(codes * 2, unsigned).view(made)
    assert_same_values(there_and_back(store, array), array, dtype)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@FEW
@given(st.lists(TEXT, max_size=8))
@example([""])
@example(["", "a", "äöü", "🧠" * 20, " leading and trailing ", "tab\tand\nline"])
@example(["e\u0301", "é", "\u202e", "\ufeff"])
def test_text(shared: Store, words: list[str]) -> None:
    array = np.array(words, np.str_) if words else np.empty(0, "U1")
    assert there_and_back(shared, array).tolist() == words
    grid = np.array([words, words], np.str_) if words else np.empty((2, 0), "U1")
    assert there_and_back(shared, grid).tolist() == grid.tolist()
    objects = np.array(words, object)
    assert there_and_back(shared, objects).tolist() == words


def test_a_single_text_and_long_ones(store: Store) -> None:
    assert there_and_back(store, np.array("häßlich")).item() == "häßlich"
    assert there_and_back(store, np.array("")).item() == ""
    long = ["x" * 100_000, "é" * 50_000, ""]
    assert there_and_back(store, np.array(long)).tolist() == long


@FEW
@example(np.array("292277026596-12-05", "M8[D]"))
@given(
    hnp.arrays(
        st.sampled_from(
            [np.dtype(code) for code in [*NATIVE, *DATES, "S4", ">f8", ">i2", ">M8[s]"]]
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    )
)
def test_any_array(shared: Store, array: np.ndarray[Any, Any]) -> None:
    try:
        expected = held(array)
    except ValueError:  # days that are too many seconds
        with pytest.raises(neurostore.ValidationError, match="data: xarray cannot hold"):
            there_and_back(shared, array)
    else:
        assert_same_values(there_and_back(shared, array), expected)


@pytest.mark.parametrize("unit", ["D", "s", "ms", "us", "ns"])
def test_no_time_among_times(store: Store, unit: str) -> None:
    low, high = (-100_000, 100_000) if unit == "D" else (-(2**63) + 1, 2**63 - 1)
    for code in "Mm":
        array = np.array([-(2**63), 0, low, high], "i8").view(f"{code}8[{unit}]")
        assert np.isnat(array[0])
        assert_same_values(there_and_back(store, array), held(array), str(array.dtype))


def test_values_that_are_fill_values_elsewhere(store: Store) -> None:
    for dtype, odd in (
        ("f8", 9.969209968386869e36),
        ("f4", 9.969209968386869e36),
        ("i1", -127),
        ("i2", -32767),
        ("i4", -2147483647),
        ("i8", -9223372036854775806),
        ("u8", 18446744073709551614),
    ):
        array = np.array([odd, 0, 1], dtype)
        assert_same_values(there_and_back(store, array), array, dtype)


def test_spikes_of_extreme_ids_and_none(store: Store) -> None:
    ids = np.array([720575940622093546, 2**63 - 1, -(2**63), 2**53 + 1], "i8")
    for count in (4, 1, 0):
        ds = neurostore.spike_train(
            np.arange(count) * 0.1, ids[:count], np.ones(count, "f2"), timestamp=2.0
        )
        assert_same(store.retrieve(store.store(ds)), ds)


# -- attributes ----------------------------------------------------------------------------------

ATTRS: dict[str, Any] = {
    "empty": "",
    "text": "äöü 🧠",
    "nul": "a\0b",
    "only_nul": "\0",
    "trailing_nul": "a\0",
    "blank": " ",
    "long": "é" * 200_000,
    "int": 5,
    "negative": -(2**63),
    "large": 2**63,
    "huge": -(10**40),
    "float": 0.1,
    "nan": math.nan,
    "inf": -math.inf,
    "yes": True,
    "no": False,
    "none": None,
    "list": [1, "a", None, [2.5, True]],
    "empty_list": [],
    "dict": {"a": {"b": [1, 2]}, "": "empty key"},
    "empty_dict": {},
    "array": np.arange(5, dtype="i2"),
    "floats": np.array([0.1, math.nan, -0.0]),
    "one": np.array([7], "u8"),
    "wide": np.arange(20_000, dtype="f8"),
    "float32": np.float32(0.1),
    "int8": np.int8(-3),
    "uint64": np.uint64(2**64 - 1),
    "name with blanks and ümläuts": "x",
    "a/b": "slash",
    ".": "dot",
    "": "no name",
    "x" * 300: "long name",
    "_FillValue": 3,
    "missing_value": -1.5,
    "scale_factor": 2.0,
    "add_offset": 1,
    "coordinates": "a b c",
    "CLASS": "DIMENSION_SCALE",
    "NAME": "mine",
    "DIMENSION_LIST": "mine",
    "REFERENCE_LIST": [1],
    "_Netcdf4Dimid": 17,
    "_Netcdf4Coordinates": [1, 2],
    "_NCProperties": "version=2",
    "_nc3_strict": 1,
    "_Encoding": "latin-1",
    "dtype": "bool",
    "_neurostore_dtype": "bfloat16",
    "_neurostore_attrs": "{}",
    "_neurostore_name": "other",
    "original_name": "mine",
    "units": "mV",
    "calendar": "none",
    "axis": "X",
    "id": "mine",
    "schema_version": 99,
    "timestamp": "mine",
    "neurostore": "mine",
}
RECORD_ATTRS = {key: value for key, value in ATTRS.items() if key not in ("kind", "metadata")}


@pytest.mark.parametrize("key", sorted(ATTRS))
def test_an_attribute_of_the_record(store: Store, key: str) -> None:
    ds = neurostore.homeostatic_trace(np.zeros(3), "m", timestamp=1.0).assign_attrs(
        {key: ATTRS[key]}
    )
    assert_same(store.retrieve(store.store(ds)), ds)


@pytest.mark.parametrize("key", sorted(ATTRS))
@pytest.mark.parametrize("dtype", ["f8", "f2", "?", "M8[ns]", "m8[us]", "c16", "U3"])
def test_an_attribute_of_a_variable(store: Store, key: str, dtype: str) -> None:
    ds = neurostore.compressed_spike_train(np.zeros(3, dtype), timestamp=1.0)
    ds["data"].attrs[key] = ATTRS[key]
    assert_same(store.retrieve(store.store(ds)), ds)


def test_all_attributes_together_on_everything(store: Store) -> None:
    ds = neurostore.reservoir_states(
        np.zeros((2, 3)), "r", timestamp=1.0, coords={"neuron": ["a", "b"], "gain": 1.5}
    )
    ds.attrs.update(RECORD_ATTRS)
    for name in ("states", "neuron", "gain"):
        ds[name].attrs.update(ATTRS)
    assert_same(store.retrieve(store.store(ds)), ds)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


def same_json(got: Any, wanted: Any) -> bool:
    """Equal, NaN for NaN."""
    return json.dumps(got, sort_keys=True) == json.dumps(wanted, sort_keys=True)


@FEW
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=30), JSON, max_size=4
    )
)
def test_any_attributes(shared: Store, attrs: dict[str, Any]) -> None:
    attrs = {k: v for k, v in attrs.items() if k not in ("kind", "mechanism", "metadata")}
    ds = neurostore.homeostatic_trace(np.zeros(3), "m", timestamp=1.0)
    ds["changes"].attrs.clear()
    ds["changes"].attrs.update(attrs)
    ds.attrs.update(attrs)
    back = shared.retrieve(shared.store(ds))
    for got, wanted in ((back["changes"].attrs, attrs), (back.attrs, ds.attrs)):
        assert set(got) == set(wanted)
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in got.items()}
        assert same_json(plain, dict(wanted))


# -- metadata ------------------------------------------------------------------------------------


@FEW
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=4))
@example({"a": None, "b": [True, 10**40, -0.0, math.inf], "": {"\0": "\0", "ü": "🧠"}})
def test_any_metadata(shared: Store, metadata: dict[str, Any]) -> None:
    ds = neurostore.homeostatic_trace(np.zeros(2), "m", timestamp=1.0, metadata=metadata)
    assert same_json(shared.retrieve(shared.store(ds)).neuro.metadata, metadata)


def test_metadata_of_a_megabyte_and_of_numpy(store: Store) -> None:
    metadata = {
        "large": "é" * 500_000,
        "list": list(range(10_000)),
        "tuple": (1, (2, 3)),
        "f4": np.float32(0.5),
        "i8": np.int64(2**53 + 1),
        "yes": np.bool_(True),
    }
    wanted = {**metadata, "tuple": [1, [2, 3]], "f4": 0.5, "i8": 2**53 + 1, "yes": True}
    ds = neurostore.homeostatic_trace(np.zeros(2), "m", timestamp=1.0, metadata=metadata)
    back = store.retrieve(store.store(ds)).neuro.metadata
    assert back == wanted
    assert [type(back[key]) for key in ("f4", "i8", "yes")] == [float, int, bool]
    with HDF5Storage(store.path, durability="process") as storage:
        train_id = storage.store_spike_train(1.0, [0.1], [1], metadata=metadata)
        assert storage.retrieve_spike_train(train_id).metadata == wanted


# -- where arrays come from ----------------------------------------------------------------------


def test_pandas(store: Store) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"accuracy": [0.1, 0.2], "cell_type": ["a", "bü"], "on": pd.to_datetime(["2026", "2027"])},
        index=pd.Index(["n1", "n2"], name="neuron"),
    )
    ds = xr.Dataset.from_dataframe(frame).rename(accuracy="changes")
    ds = ds.assign_coords(timestamp=pd.Timestamp("2026-05-01"), cell_type=ds["cell_type"])
    ds = ds.assign_coords(on=ds["on"]).assign_attrs(mechanism="m")
    back = store.retrieve(store.store(ds))
    assert back.neuro.kind == "homeostatic_trace"
    assert back["neuron"].values.tolist() == ["n1", "n2"]
    assert back["cell_type"].values.tolist() == ["a", "bü"]
    assert_same_values(back["on"].values, frame["on"].to_numpy())
    assert_same_values(back["changes"].values, np.array([0.1, 0.2]))
    assert float(back["timestamp"]) == pd.Timestamp("2026-05-01").timestamp()


def test_pandas_columns_as_arrays(store: Store) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"t": [0.1, 0.2], "id": [2**60, 2**60 + 1]})
    ds = neurostore.spike_train(frame["t"], frame["id"], timestamp=pd.Timestamp(5, unit="s"))
    back = store.retrieve(store.store(ds))
    assert back["neuron_ids"].values.tolist() == [2**60, 2**60 + 1]
    assert float(back["timestamp"]) == 5.0


def test_dask(store: Store) -> None:
    da = pytest.importorskip("dask.array")
    whole = np.arange(12.0).reshape(3, 4)
    lazy = da.from_array(whole, chunks=2)
    for ds in (
        neurostore.reservoir_states(lazy, "r", timestamp=1.0),
        neurostore.reservoir_states(whole, "r", timestamp=1.0).chunk(neuron=2),
    ):
        assert ds["states"].chunks is not None
        back = store.retrieve(store.store(ds))
        assert_same_values(back["states"].values, whole)
        assert_same(back, ds.compute())
        assert_same_values(back.chunk(time=1)["states"].mean("time").values, whole.mean(1))


def test_data_arrays_and_lists(store: Store) -> None:
    labelled = xr.DataArray(np.ones((2, 3)), dims=("a", "b"), attrs={"units": "mV"})
    for states in (labelled, [[1.0] * 3] * 2, ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))):
        ds = neurostore.reservoir_states(states, "r", timestamp=1.0)
        assert_same_values(store.retrieve(store.store(ds))["states"].values, np.ones((2, 3)))


JAX_DTYPES = ["bool", "int8", "uint8", "int32", "uint32", "float16", "float32", "bfloat16"]
JAX_DTYPES += ["complex64", "float8_e4m3fn", "float8_e5m2", "int4"]


@pytest.mark.parametrize("dtype", JAX_DTYPES)
def test_jax(store: Store, dtype: str) -> None:
    jax = pytest.importorskip("jax")
    array = jax.numpy.arange(6).reshape(2, 3).astype(dtype)
    for made in (array, jax.jit(lambda x: x.T)(array)):
        back = there_and_back(store, made)
        assert_same_values(back, np.asarray(made), dtype)
        assert back.dtype == made.dtype
    ds = neurostore.reservoir_states(array, "r", timestamp=1.0)
    again = store.retrieve(store.store(ds)).neuro.to_jax()["states"]
    assert isinstance(again, jax.Array)
    assert again.dtype == array.dtype
    assert_same_values(np.asarray(again), np.asarray(array), dtype)


def test_jax_on_the_array_face(tmp_path: Path) -> None:
    jnp = pytest.importorskip("jax.numpy")
    with HDF5Storage(tmp_path / "run.h5", durability="process") as storage:
        record_id = storage.store_spike_train(
            1.0, jnp.array([0.1, 0.2]), jnp.array([1, 2]), jnp.ones(2, jnp.bfloat16)
        )
        train = storage.retrieve_spike_train(record_id)
        assert train.neuron_ids.dtype == np.int32
        assert train.spike_times.dtype == np.float32
        assert train.spike_amplitudes.dtype == np.dtype(ml_dtypes.bfloat16)
        metrics_id = storage.store_performance_metrics(
            2.0, {"loss": jnp.float32(0.5), "acc": jnp.array(0.25, jnp.bfloat16)}, "t"
        )
        assert storage.retrieve_performance_metrics(metrics_id)[0] == {"loss": 0.5, "acc": 0.25}


def test_to_jax_is_a_pytree_and_never_narrows(store: Store) -> None:
    jax = pytest.importorskip("jax")
    ds = neurostore.network_snapshot(
        weights=np.ones((2, 3), "f4"),
        states=np.ones(2, "f4"),
        timestamp=1.5,
        coords={"pre": ["a", "b"]},
    )
    tree = store.retrieve(store.store(ds)).neuro.to_jax()
    assert {"weights", "states"} <= set(tree)
    assert "pre" not in tree
    doubled = jax.tree.map(lambda leaf: leaf * 2, tree)
    assert float(doubled["weights"].sum()) == 12.0
    wide = neurostore.spike_train([0.1], [2**60], timestamp=1.0)
    with pytest.raises(neurostore.ValidationError, match="jax_enable_x64") as caught:
        store.retrieve(store.store(wide)).neuro.to_jax()
    assert "neuron_ids is int64" in str(caught.value)
    assert "spike_times is float64" in str(caught.value)


# -- names ---------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
ODD_NAMES = [
    "/", "..", ".", "../a/b", "/abs", "a/", "a//b", " lead", "trail ", ".dot", "dot.", "a%2Fb",
    "%", "%2E%2E", "e\u0301", "é", "\u212b", "🧠", "日本語", "a\tb\nc", "\x01", "\x7f", "\u200b",
    "a~2", "snapshot_1.0", "_neurostore", "catalogue", "-", "@", "x" * 10_000, "é" * 10_000,
    "🧠" * 2_000, "x" * 254, "x" * 255, "x" * 256, "/" * 300, "'quoted' \"twice\"", "a b", "a,b",
    "None", "1.0", "NaN", "\\", "C:\\x", "*", "<>&", "units", "\ufeff", "\u202e",
]  # fmt: skip


def check_name(store: Store, storage: HDF5Storage, name: str) -> None:
    ds = neurostore.reservoir_states(np.ones((1, 2)), name, timestamp=1.0)
    record_id = store.store(ds)
    back = store.retrieve(record_id)
    assert back.attrs["reservoir_id"] == name
    assert_same(back, ds)
    assert "/" not in record_id
    assert len(record_id.encode()) <= 255
    assert unicodedata.is_normalized("NFC", record_id)
    assert record_id in store.ids("reservoir_states", name=name)
    assert store.catalogue(name=name)["name"].values.tolist()[0] == name
    _, timestamp, found = storage.retrieve_reservoir_states(record_id)
    assert (timestamp, found) == (1.0, name)


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name[:12]) + str(len(name)))
def test_an_odd_name(store: Store, name: str) -> None:
    with HDF5Storage(store.path, durability="process") as storage:
        check_name(store, storage, name)
        other_id = storage.store_reservoir_states(2.0, np.ones((1, 2)), name)
        assert storage.retrieve_reservoir_states(other_id)[2] == name
        task_id = storage.store_performance_metrics(1.0, {name: 1.0}, name)
        assert storage.retrieve_performance_metrics(task_id) == ({name: 1.0}, 1.0, name)
        map_id = storage.store_attention_maps(1.0, np.ones((1, 1, 1)), name)
        assert storage.retrieve_attention_maps(map_id)[2] == name
    with neurostore.open(store.path, "r") as reader:
        assert reader.retrieve(other_id).attrs["reservoir_id"] == name


@settings(FEW, max_examples=examples(40))
@given(NAMES)
def test_any_name(shared: Store, name: str) -> None:
    with HDF5Storage(shared.path, durability="process") as storage:
        check_name(shared, storage, name)


def test_names_that_are_escaped_alike_stay_apart(store: Store) -> None:
    names = ["a/b", "a%2Fb", "a%252Fb", "é", "e\u0301", "x" * 300, "x" * 301, "a", "a "]
    ids = {
        name: store.store(
            neurostore.reservoir_states(np.full((1, 1), float(n)), name, timestamp=1.0)
        )
        for n, name in enumerate(names)
    }
    assert len(set(ids.values())) == len(names)
    for n, name in enumerate(names):
        assert store.ids(name=name) == [ids[name]]
        assert store.retrieve(ids[name])["states"].item() == n


LAYER_SETS = [
    ["layer", "sample", "timestamp", "time", "record", "unit"],
    ["a/b", "a%2Fb", "../a/b", "..", "."],
    ["a", "a_unit", "a_unit_1", "a_sample", "b"],
    ["a_unit", "a"],
    ["e\u0301", "é", "日本語", "🧠", " blank ", "with blank"],
    ["x" * 10_000, "x" * 9_999, "é" * 300],
    ["kind", "id", "metadata", "layers", "original_name", "coordinates", "string8", "complex_part"],
    ["%6Cayer", "layer", "_nc4_non_coord_layer"],
    ["input_layer", "hidden_layer_1", "output_layer"],
    [],
]


def check_layers(storage: HDF5Storage, layers: dict[str, np.ndarray[Any, Any]]) -> None:
    record_id = storage.store_layer_outputs(1.0, layers)
    back, timestamp = storage.retrieve_layer_outputs(record_id)
    assert timestamp == 1.0
    assert list(back) == list(layers)
    for name, array in layers.items():
        assert_same_values(back[name], array, name)
    ds = storage.store.retrieve(record_id)
    assert ds["layer"].values.tolist() == list(layers)
    originals = [var.attrs.get("original_name", name) for name, var in ds.data_vars.items()]
    assert sorted(originals) == sorted(layers)
    xr.DataTree(ds)


@pytest.mark.parametrize("names", LAYER_SETS, ids=lambda names: ascii(names)[:24])
@pytest.mark.parametrize("ragged", [False, True], ids=["same-samples", "other-samples"])
def test_odd_layer_names(tmp_path: Path, names: list[str], ragged: bool) -> None:
    layers = {
        name: np.arange(float((2 + n * ragged) * (n + 1))).reshape(2 + n * ragged, n + 1)
        for n, name in enumerate(names)
    }
    with HDF5Storage(tmp_path / "run.h5", durability="process") as storage:
        check_layers(storage, layers)
        ds = neurostore.layer_outputs(layers, timestamp=2.0)
        assert_same(storage.store.retrieve(storage.store.store(ds)), ds)


@settings(FEW, max_examples=examples(30))
@given(
    st.dictionaries(
        NAMES | st.text(string.ascii_lowercase + "_%/", min_size=1, max_size=4),
        hnp.arrays("f4", hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
        max_size=5,
    )
)
def test_any_layer_names(shared: Store, layers: dict[str, np.ndarray[Any, Any]]) -> None:
    with HDF5Storage(shared.path, durability="process") as storage:
        check_layers(storage, layers)


COORD_NAMES = [
    "cell type",
    "cell%20type",
    "é",
    "e\u0301",
    "x" * 300,
    "a.b",
    "-x",
    "units",
    "record",
]
COORD_NAMES += ["neuron_labels", "kind", "id", "complex_part", "string3", "catalogue", "数"]


@pytest.mark.parametrize("name", COORD_NAMES, ids=lambda name: ascii(name[:12]))
def test_an_odd_name_of_a_coordinate(store: Store, name: str) -> None:
    coords = {name: ("neuron", ["abc", "d"]), "words": ("neuron", ["abc", "d"])}
    ds = neurostore.reservoir_states(np.ones((2, 3)), "r", timestamp=1.0, coords=coords)
    assert_same(store.retrieve(store.store(ds)), ds)


def test_all_odd_names_of_coordinates_together(store: Store) -> None:
    coords: dict[Any, Any] = {name: ("neuron", [f"{name[:3]}1", "2"]) for name in COORD_NAMES}
    ds = neurostore.reservoir_states(np.ones((2, 3)), "r", timestamp=1.0, coords=coords)
    assert_same(store.retrieve(store.store(ds)), ds)


def test_a_coordinate_whose_name_is_a_path(store: Store) -> None:
    """DataTree cannot take the name; it is kept as an attribute."""
    coords = {"cell/type": ("neuron", ["a", "b"])}
    ds = neurostore.reservoir_states(np.ones((2, 3)), "r", timestamp=1.0, coords=coords)
    back = store.retrieve(store.store(ds))
    assert back["cell%2Ftype"].attrs["original_name"] == "cell/type"
    assert back["cell%2Ftype"].values.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    "dim", ["string3", "string1", "complex_part", "a b", "a/b", "é", "x" * 300]
)
def test_odd_names_of_dimensions(store: Store, dim: str) -> None:
    coords = {
        "odd": (("neuron", dim), np.arange(10).reshape(2, 5)),
        "words": (dim, ["abc"] * 5),
        "waves": (dim, np.full(5, 1j)),
        "letters": ("neuron", ["abc", "d"]),
        dim: np.arange(5),
    }
    ds = neurostore.reservoir_states(np.ones((2, 3)), "r", timestamp=1.0, coords=coords)
    if "/" in dim:
        ds = ds.drop_vars(dim)
    assert_same(store.retrieve(store.store(ds)), ds)


@pytest.mark.parametrize("kind", ["reservoir_states", "performance_metrics", "layer_outputs"])
def test_labels_of_no_length(store: Store, kind: str) -> None:
    ds = {
        "reservoir_states": lambda: neurostore.reservoir_states(
            np.ones((0, 3)), "r", timestamp=1.0, coords={"neuron": np.empty(0, "U1")}
        ),
        "performance_metrics": lambda: neurostore.performance_metrics({}, "t", timestamp=1.0),
        "layer_outputs": lambda: neurostore.layer_outputs({}, timestamp=1.0),
    }[kind]()
    record_id = store.store(ds)
    assert_same(store.retrieve(record_id), ds)
    assert store.range(kind).sizes["record"] == 1


def test_a_coordinate_of_several_dims_named_as_one_of_them(store: Store) -> None:
    ds = neurostore.reservoir_states(np.ones((2, 3)), "r", timestamp=1.0)
    times = xr.Variable(("neuron", "time"), np.arange(6.0).reshape(2, 3), {"units": "s"})
    ds = ds.assign_coords(xr.Coordinates({"time": times}, indexes={}))
    back = store.retrieve(store.store(ds))
    assert back["time"].dims == ("neuron", "time")
    assert_same_values(back["time"].values, times.values)
    assert "time" in back.coords


def test_a_foreign_data_variable_is_kept(store: Store) -> None:
    ds = neurostore.reservoir_states(np.ones((2, 3)), "r", timestamp=1.0)
    ds["gains"] = ("neuron", np.array([1, 2], "i2"), {"units": "1"})
    ds["other"] = (("x", "y"), np.zeros((2, 2)))
    ds["alone"] = 5.5
    assert_same(store.retrieve(store.store(ds)), ds)


def test_dimensions_in_another_order(store: Store) -> None:
    ds = neurostore.network_snapshot(weights=np.arange(6.0).reshape(2, 3), timestamp=1.0)
    turned = ds.transpose("post", "pre")
    record_id = store.store(turned)
    assert_same(store.retrieve(record_id), turned)
    with HDF5Storage(store.path, durability="process") as storage:
        found = storage.retrieve_network_snapshot(record_id)
    assert_same_values(found.weight_matrix, ds["weights"].values)


@FEW
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(1.7976931348623157e308)
@example(-0.0)
@example(1e22)
@example(0.1 + 0.2)
def test_any_timestamp(shared: Store, timestamp: float) -> None:
    ds = neurostore.homeostatic_trace(np.zeros(1), "m", timestamp=timestamp)
    record_id = shared.store(ds)
    back = shared.retrieve(record_id)
    assert float(back["timestamp"]) == timestamp
    assert float(record_id.partition("~")[0].removeprefix("m_")) == timestamp
    assert_same(back, ds)
    assert record_id in shared.ids("homeostatic_trace", timestamp, timestamp)


def test_encoding_of_other_files_does_no_harm(store: Store, tmp_path: Path) -> None:
    """A Dataset that was read from netCDF brings an encoding that does not fit here."""
    ds = neurostore.reservoir_states(
        np.arange(6.0).reshape(2, 3), "r", timestamp=1.0, coords={"neuron": ["a", "b"]}
    )
    ds.to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "other.nc", engine="h5netcdf") as other:
        back = store.retrieve(store.store(other))
        assert_same_values(back["states"].values, ds["states"].values)
        assert back["neuron"].values.tolist() == ["a", "b"]
        assert float(back["timestamp"]) == 1.0
    assert_same_attrs({k: back.attrs[k] for k in ds.attrs}, ds.attrs)
