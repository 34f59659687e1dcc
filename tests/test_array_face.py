"""Every method of the array face: what it takes, what it answers, what it refuses."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import neurostore
from neurostore import (
    HDF5_AVAILABLE,
    HDF5Storage,
    HDF5StorageError,
    NetworkSnapshot,
    SpikeTrainData,
)
from neurostore import hdf5_storage as module_under_test

PAGE = Path(__file__).parents[1] / "docs" / "array-face.md"
T = 1_700_000_000.123456


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HDF5Storage]:
    with HDF5Storage(tmp_path / "run.h5") as storage:
        yield storage


@dataclass(frozen=True)
class Method:
    """A pair of methods: what one is given, and the tuple that the other answers."""

    kind: str
    plural: str
    stem: str
    given: Mapping[str, Any]
    answer: tuple[Any, ...]


CHANGES = np.arange(6.0).reshape(2, 3)
LAYERS = {"output": np.ones((2, 1), "f4"), "in/put": np.zeros((2, 3), bool), "conv": CHANGES}
METRICS = {"loss": 0.23, "accuracy": 0.85, "Ünï": float("nan")}
PARAMS = {"original_shape": (100, 10), "algorithm": "sparse", "nested": {"a": (1, None)}}
METHODS = [
    Method(
        "compressed_spike_train",
        "compressed_spike_trains",
        "compressed",
        {"spike_data": np.frombuffer(b"\0\1\xff", "u1"), "compression_params": PARAMS},
        (
            np.frombuffer(b"\0\1\xff", "u1"),
            T,
            {"original_shape": [100, 10], "algorithm": "sparse", "nested": {"a": [1, None]}},
        ),
    ),
    Method(
        "reservoir_states",
        "reservoir_states",
        "main",
        {"reservoir_states": CHANGES, "reservoir_id": "main"},
        (CHANGES, T, "main"),
    ),
    Method("layer_outputs", "layer_outputs", "outputs", {"layer_outputs": LAYERS}, (LAYERS, T)),
    Method(
        "attention_maps",
        "attention_maps",
        "encoder",
        {"attention_maps": np.ones((2, 3, 4), "f2"), "name": "encoder"},
        (np.ones((2, 3, 4), "f2"), T, "encoder"),
    ),
    Method(
        "plasticity_trace",
        "plasticity_traces",
        "stdp",
        {"synapse_changes": CHANGES, "plasticity_type": "stdp"},
        (CHANGES, T, "stdp"),
    ),
    Method(
        "homeostatic_trace",
        "homeostatic_traces",
        "scaling",
        {"homeostatic_changes": CHANGES[0], "mechanism": "scaling"},
        (CHANGES[0], T, "scaling"),
    ),
    Method(
        "performance_metrics",
        "performance_metrics",
        "digits",
        {"metrics": METRICS, "task_type": "digits"},
        (METRICS, T, "digits"),
    ),
]
KINDS = {
    "network_snapshot": "network_snapshots",
    "spike_train": "spike_trains",
    **{method.kind: method.plural for method in METHODS},
}


def same(got: Any, wanted: Any) -> None:
    """Equal in type, dtype and value, however deep."""
    assert type(got) is type(wanted)
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            same(got[key], wanted[key])
    elif isinstance(wanted, tuple):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            same(one, other)
    elif isinstance(wanted, np.ndarray):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_equal(got, wanted)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_tuple_comes_back(store: HDF5Storage, method: Method) -> None:
    record = getattr(store, f"store_{method.kind}")(timestamp=T, **method.given)
    assert type(record) is str
    assert record == f"{method.stem}_{T!r}"
    same(getattr(store, f"retrieve_{method.kind}")(record), method.answer)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_arguments_may_be_positional(store: HDF5Storage, method: Method) -> None:
    record = getattr(store, f"store_{method.kind}")(T, *method.given.values())
    same(getattr(store, f"retrieve_{method.kind}")(record), method.answer)


@pytest.mark.parametrize("metadata", [None, {}, {"a": (1, (2, None)), "ü": {"b": True}}])
def test_network_snapshot_comes_back(store: HDF5Storage, metadata: dict[str, Any] | None) -> None:
    adjacency, weights, states = np.eye(4, dtype="i4"), np.ones((4, 4), "f4"), np.ones((4, 2))
    record = store.store_network_snapshot(T, adjacency, weights, states, metadata)
    assert record == f"snapshot_{T!r}"
    got = store.retrieve_network_snapshot(record)
    assert type(got) is NetworkSnapshot
    assert [field.name for field in fields(got)] == [
        "timestamp",
        "adjacency_matrix",
        "weight_matrix",
        "neuron_states",
        "metadata",
    ]
    same(got.timestamp, T)
    same(got.adjacency_matrix, adjacency)
    same(got.weight_matrix, weights)
    same(got.neuron_states, states)
    assert got.metadata == ({"a": [1, [2, None]], "ü": {"b": True}} if metadata else {})


@pytest.mark.parametrize("amplitudes", [None, np.array([1.5, 0.5])])
def test_spike_train_comes_back(store: HDF5Storage, amplitudes: np.ndarray | None) -> None:
    times, ids = np.array([0.5, 0.25]), np.array([2**60 + 1, 3])
    record = store.store_spike_train(T, times, ids, amplitudes, {"rate": 10})
    assert record == f"train_{T!r}"
    got = store.retrieve_spike_train(record)
    assert type(got) is SpikeTrainData
    assert [field.name for field in fields(got)] == [
        "timestamp",
        "spike_times",
        "neuron_ids",
        "spike_amplitudes",
        "metadata",
    ]
    same(got.timestamp, T)
    same(got.spike_times, times)
    same(got.neuron_ids, ids)
    same(got.spike_amplitudes, amplitudes)
    assert got.metadata == {"rate": 10}


def test_amplitudes_of_the_dataclass_default_to_none() -> None:
    bare = SpikeTrainData(1.0, np.array([0.1]), np.array([1]))
    assert bare.spike_amplitudes is None


def test_names_of_the_module() -> None:
    assert HDF5_AVAILABLE is True
    assert module_under_test.HDF5_AVAILABLE is True
    assert module_under_test.HDF5StorageError is HDF5StorageError
    assert issubclass(HDF5StorageError, Exception)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_id_is_none(store: HDF5Storage, kind: str) -> None:
    assert getattr(store, f"retrieve_{kind}")("nowhere_1.0") is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "homeostatic_trace"])
def test_id_of_another_kind_is_none(store: HDF5Storage, kind: str) -> None:
    record = store.store_homeostatic_trace(T, np.ones(3), "scaling")
    assert getattr(store, f"retrieve_{kind}")(record) is None


@pytest.mark.parametrize("kind", KINDS)
def test_range_has_both_ends_in_time_order(store: HDF5Storage, kind: str) -> None:
    given = {method.kind: method.given for method in METHODS} | {
        "network_snapshot": {
            "adjacency_matrix": np.eye(2),
            "weight_matrix": np.eye(2),
            "neuron_states": np.ones(2),
        },
        "spike_train": {"spike_times": np.array([0.1]), "neuron_ids": np.array([1])},
    }
    stored = {t: getattr(store, f"store_{kind}")(t, **given[kind]) for t in (3.0, 1.0, 2.0, 4.0)}
    found = getattr(store, f"get_{KINDS[kind]}_in_range")
    assert found(start_time=1.0, end_time=3.0) == [stored[1.0], stored[2.0], stored[3.0]]
    assert found(5.0, 6.0) == []


def test_same_timestamp_twice_keeps_both(store: HDF5Storage) -> None:
    first, second = (store.store_homeostatic_trace(T, np.full(2, k), "m") for k in (1.0, 2.0))
    assert first != second
    for record, value in ((first, 1.0), (second, 2.0)):
        same(store.retrieve_homeostatic_trace(record), (np.full(2, value), T, "m"))


def test_file_info(store: HDF5Storage, tmp_path: Path) -> None:
    started = time.time()
    store.store_spike_train(T, np.array([0.1]), np.array([1]))
    store.store_performance_metrics(T, METRICS, "digits")
    info = store.get_file_info()
    assert {
        "file_path",
        "file_size_mb",
        "compression",
        "total_datasets",
        "groups",
        "created_at",
    } <= set(info)
    assert Path(info["file_path"]) == tmp_path / "run.h5"
    assert info["file_size_mb"] == pytest.approx((tmp_path / "run.h5").stat().st_size / 1024**2)
    assert info["compression"] == "gzip"
    assert (
        info["total_datasets"] == 4
    )  # times and ids of the train, values and names of the metrics
    assert {"network_states", "spike_trains", "activations", "learning_traces"} <= set(
        info["groups"]
    )
    assert abs(info["created_at"] - started) < 3600


def test_file_care(store: HDF5Storage, tmp_path: Path) -> None:
    old = store.store_plasticity_trace(T, np.random.default_rng(0).random((200, 200)), "stdp")
    new = store.store_plasticity_trace(time.time(), CHANGES, "stdp")
    size = store.get_file_info()["file_size_mb"]
    assert store.cleanup_old_data(retention_days=30) == 1
    assert store.cleanup_old_data(retention_days=30) == 0
    assert store.compact_file() is True
    assert store.get_file_info()["file_size_mb"] < size
    assert store.retrieve_plasticity_trace(old) is None
    assert store.check_file_size() is False
    rotated = store.rotate_file()
    assert isinstance(rotated, Path)
    assert rotated.exists()
    assert rotated != tmp_path / "run.h5"
    assert Path(store.get_file_info()["file_path"]) == tmp_path / "run.h5"
    assert store.retrieve_plasticity_trace(new) is not None


def test_file_past_its_size_is_rotated(tmp_path: Path) -> None:
    with HDF5Storage(tmp_path / "run.h5", max_file_size=50_000) as store:
        assert store.check_file_size() is False
        record = store.store_homeostatic_trace(T, np.random.default_rng(0).random(20_000), "m")
        assert store.check_file_size() is True
        assert store.check_file_size() is False
        assert store.retrieve_homeostatic_trace(record) is not None


@pytest.mark.parametrize(
    ("compression", "level"),
    [
        ("gzip", 0),
        ("gzip", 9),
        ("gzip", None),
        ("lzf", None),
        ("lzf", 6),
        ("szip", None),
        ("szip", 6),
        (None, None),
        (None, 6),
    ],
)
def test_compression(tmp_path: Path, compression: str | None, level: int | None) -> None:
    path = tmp_path / "run.h5"
    data = np.random.default_rng(0).random((300, 40))
    with HDF5Storage(path, compression=compression, compression_opts=level) as store:
        record = store.store_reservoir_states(T, data, "main")
        same(store.retrieve_reservoir_states(record), (data, T, "main"))
        small = store.store_reservoir_states(T, data[:1, :1] * 1j, "small")
        same(store.retrieve_reservoir_states(small), (data[:1, :1] * 1j, T, "small"))
    with h5py.File(path) as h5file:
        filters = h5file[f"activations/reservoir_states/{record}/states"]
        # What szip cannot encode gets another lossless filter.
        assert compression == "szip" or filters.compression == compression
        assert filters.fletcher32


def test_szip_data_are_read_by_h5py(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((300, 40))
    with HDF5Storage(tmp_path / "run.h5", compression="szip") as store:
        record = store.store_reservoir_states(T, data, "main")
    with h5py.File(tmp_path / "run.h5") as h5file:
        np.testing.assert_array_equal(h5file[f"activations/reservoir_states/{record}/states"], data)


@pytest.mark.parametrize("chunk_size", [1, 512, 1024, 100_000])
def test_chunk_size(tmp_path: Path, chunk_size: int) -> None:
    data = np.arange(5000.0)
    with HDF5Storage(tmp_path / "run.h5", chunk_size=chunk_size) as store:
        record = store.store_homeostatic_trace(T, data, "m")
        same(store.retrieve_homeostatic_trace(record), (data, T, "m"))


@pytest.mark.parametrize("chunk_size", [512, 1024, 2048])
def test_chunk_shapes_are_those_of_the_page(tmp_path: Path, chunk_size: int) -> None:
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    (head,) = (row for row in rows if row[0] == "| array")
    column = [name.strip("` |") for name in head].index(f"chunk_size={chunk_size}")
    documented = {row[0].strip("| "): row[column].strip("| ") for row in rows if len(row) == 4}
    spikes, matrix, states = np.zeros(1_000_000), np.zeros((1000, 1000)), np.zeros((500, 100))
    with HDF5Storage(tmp_path / "run.h5", chunk_size=chunk_size) as store:
        store.store_spike_train(1.0, spikes, spikes.astype(int))
        store.store_spike_train(2.0, spikes[:5], spikes[:5].astype(int))
        store.store_plasticity_trace(1.0, matrix, "stdp")
        store.store_reservoir_states(1.0, states, "main")
    with h5py.File(tmp_path / "run.h5") as h5file:
        for array, address in {
            "1,000,000 spikes": "spike_trains/raw_data/train_1.0/spike_times",
            "1000 × 1000 weights": "learning_traces/plasticity/stdp_1.0/changes",
            "500 neurons × 100 steps": "activations/reservoir_states/main_1.0/states",
            "5 spikes": "spike_trains/raw_data/train_2.0/spike_times",
        }.items():
            assert documented[array] == str(h5file[address].chunks or "none"), array


def test_settings_belong_to_each_object(tmp_path: Path) -> None:
    path, data = tmp_path / "run.h5", np.arange(5000.0)
    with HDF5Storage(path) as gzip, HDF5Storage(path, compression="lzf") as lzf:
        ids = [store.store_homeostatic_trace(T, data, "m") for store in (gzip, lzf)]
        assert gzip.get_file_info()["compression"] == "gzip"
        assert lzf.get_file_info()["compression"] == "lzf"
        same(gzip.retrieve_homeostatic_trace(ids[1]), (data, T, "m"))
    with h5py.File(path) as h5file:
        groups = [h5file[f"learning_traces/homeostatic/{record}/changes"] for record in ids]
        assert [group.compression for group in groups] == ["gzip", "lzf"]


def test_file_context_is_one_batch(store: HDF5Storage) -> None:
    with store._file_context("a") as f:
        ids = [store.store_homeostatic_trace(T + k, np.full(2, k), "m") for k in range(3)]
        f.flush()
    for k, record in enumerate(ids):
        same(store.retrieve_homeostatic_trace(record), (np.full(2, k), T + k, "m"))


def test_file_context_rolls_back(store: HDF5Storage) -> None:
    kept = store.store_homeostatic_trace(T, np.ones(2), "m")

    def store_and_give_up() -> None:
        with store._file_context("a"):
            store.store_homeostatic_trace(T + 1, np.ones(2), "m")
            raise RuntimeError("given up")

    with pytest.raises(RuntimeError, match="given up"):
        store_and_give_up()
    assert store.retrieve_homeostatic_trace(f"m_{T + 1!r}") is None
    assert store.get_homeostatic_traces_in_range(T, T + 1) == [kept]


def test_file_context_reads(store: HDF5Storage) -> None:
    record = store.store_homeostatic_trace(T, np.ones(2), "m")
    with store._file_context("r") as f:
        assert f"learning_traces/homeostatic/{record}" in f


def test_reopened_file_has_its_records(tmp_path: Path) -> None:
    with HDF5Storage(str(tmp_path / "run.h5")) as store:
        record = store.store_homeostatic_trace(T, np.ones(2), "m")
    with HDF5Storage(tmp_path / "run.h5") as store:
        same(store.retrieve_homeostatic_trace(record), (np.ones(2), T, "m"))
    store.close()


ONE = {"timestamp": T}
SNAPSHOT = {"adjacency_matrix": np.eye(3), "weight_matrix": np.eye(3), "neuron_states": np.ones(3)}
SPIKES = {"spike_times": np.array([0.1, 0.2, 0.3]), "neuron_ids": np.array([1, 2, 3])}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("store_spike_train", {**ONE, **SPIKES, "neuron_ids": np.array([1, 2])}, "neuron_ids"),
    ("store_spike_train", {**ONE, **SPIKES, "spike_amplitudes": np.ones(4)}, "spike_amplitudes"),
    ("store_spike_train", {**SPIKES, "timestamp": float("nan")}, "timestamp"),
    ("store_spike_train", {**SPIKES, "timestamp": "noon"}, "timestamp"),
    ("store_spike_train", {**ONE, **SPIKES, "metadata": {1: "a"}}, "metadata"),
    ("store_spike_train", {**ONE, **SPIKES, "metadata": {"a": object()}}, "metadata"),
    ("store_network_snapshot", {**ONE, **SNAPSHOT, "weight_matrix": np.eye(2)}, "pre"),
    ("store_network_snapshot", {**ONE, **SNAPSHOT, "neuron_states": np.ones(7)}, "states"),
    (
        "store_reservoir_states",
        {**ONE, "reservoir_states": np.eye(2), "reservoir_id": ""},
        "reservoir_id",
    ),
    ("store_layer_outputs", {**ONE, "layer_outputs": {"a": np.array([{}])}}, "a"),
    (
        "store_performance_metrics",
        {**ONE, "metrics": {"accuracy": "high"}, "task_type": "t"},
        "values|metrics",
    ),
]


@pytest.mark.parametrize(("method", "given", "named"), BAD)
def test_misfit_is_named_and_leaves_the_file(
    tmp_path: Path, method: str, given: dict[str, Any], named: str
) -> None:
    with HDF5Storage(tmp_path / "run.h5") as store:
        store.store_homeostatic_trace(T, np.ones(2), "m")
        before = (tmp_path / "run.h5").read_bytes()
        with pytest.raises(HDF5StorageError, match=named):
            getattr(store, method)(**given)
        assert (tmp_path / "run.h5").read_bytes() == before


def test_mismatch_gives_both_lengths(store: HDF5Storage) -> None:
    with pytest.raises(HDF5StorageError, match=r"(?s)neuron_ids.*2.*3|neuron_ids.*3.*2") as error:
        store.store_spike_train(T, np.array([0.1, 0.2, 0.3]), np.array([1, 2]))
    assert isinstance(error.value, ValueError)


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(HDF5StorageError, match=re.escape(str(tmp_path))):
        HDF5Storage(tmp_path).store_homeostatic_trace(T, np.ones(2), "m")


def test_labelled_store_sees_the_same_records(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with HDF5Storage(path) as arrays, neurostore.open(path) as labelled:
        record = arrays.store_reservoir_states(T, CHANGES, "main")
        ds = labelled.retrieve(record)
        assert ds["states"].dims == ("neuron", "time")
        np.testing.assert_array_equal(ds["states"], CHANGES)
