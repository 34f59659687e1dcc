"""Bad input gets one clear error with every problem in it, and leaves the file as it was."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore import (
    HDF5Storage,
    HDF5StorageError,
    NotAStoreError,
    ReadOnlyError,
    RecordNotFoundError,
    StoreExistsError,
    StoreNotFoundError,
    ValidationError,
)

A = np.eye(3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store of one record, closed."""
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        store.store(neurostore.spike_train([0.1], [1], timestamp=0.5))
    return tmp_path


def fingerprint(folder: Path) -> dict[str, str]:
    """Return a hash of every file but that of the locks, which only names its last holder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.endswith("-lock")
    }


Faces = Iterator[tuple[str, Callable[[], Any]]]


def on_every_face(
    path: Path, method: str, given: Mapping[str, Any], ds: Callable[[], xr.Dataset] | None
) -> Faces:
    """Yield what to call on the array face, the store and the accessor."""
    if method:
        with HDF5Storage(path, durability="process") as storage:
            yield "array face", lambda: getattr(storage, method)(**given)
    if ds is None:
        return
    with neurostore.open(path, durability="process") as store:
        yield "store", lambda: store.store(ds())
        yield "accessor", lambda: ds().neuro.store(path, durability="process")

        def batched() -> None:
            with store.batch():
                store.store(ds())

        yield "batch", batched


def build_snapshot(**given: Any) -> Callable[[], xr.Dataset]:
    return lambda: neurostore.network_snapshot(**{"timestamp": 1.0, **given})


def bare(variables: Mapping[str, Any], **attrs: Any) -> Callable[[], xr.Dataset]:
    """Return a Dataset made by hand, which no builder has looked at."""
    return lambda: xr.Dataset(variables, {"timestamp": 1.0}, attrs)


SPIKES = {"timestamp": 1.0, "spike_times": [0.1, 0.2], "neuron_ids": [1, 2]}
SNAP = {"timestamp": 1.0, "adjacency_matrix": A, "weight_matrix": A, "neuron_states": np.ones(3)}
STATES = {"timestamp": 1.0, "reservoir_states": A, "reservoir_id": "r"}


def spikes(**given: Any) -> Callable[[], xr.Dataset]:
    return lambda: neurostore.spike_train(**{**SPIKES, **given})


def states(ds_timestamp: Any = 1.0, name: Any = "r", array: Any = A, **more: Any) -> Any:
    return lambda: neurostore.reservoir_states(array, name, timestamp=ds_timestamp, **more)


# what is wrong: (method of the array face, its arguments, a Dataset, words of the one error)
Case = tuple[str, Mapping[str, Any], Callable[[], xr.Dataset] | None, list[str]]
CASES: dict[str, Case] = {
    "lengths of ids": (
        "store_spike_train",
        {**SPIKES, "neuron_ids": [1, 2, 3]},
        spikes(neuron_ids=[1, 2, 3]),
        ["neuron_ids", "3", "2", "spike_times"],
    ),
    "lengths of amplitudes": (
        "store_spike_train",
        {**SPIKES, "spike_amplitudes": [1.0]},
        spikes(spike_amplitudes=[1.0]),
        ["spike_amplitudes", "1", "2"],
    ),
    "two lengths at once": (
        "store_spike_train",
        {**SPIKES, "neuron_ids": [1], "spike_amplitudes": [1.0, 2.0, 3.0]},
        spikes(neuron_ids=[1], spike_amplitudes=[1.0, 2.0, 3.0]),
        ["neuron_ids", "spike_amplitudes", "2 problems"],
    ),
    "rank of the times": (
        "store_spike_train",
        {**SPIKES, "spike_times": [[0.1, 0.2]]},
        spikes(spike_times=[[0.1, 0.2]]),
        ["spike_times", "(1, 2)", "spike"],
    ),
    "times that are text": (
        "store_spike_train",
        {**SPIKES, "spike_times": ["a", "b"]},
        spikes(spike_times=["a", "b"]),
        ["spike_times", "dtype"],
    ),
    "ids that are floats": (
        "store_spike_train",
        {**SPIKES, "neuron_ids": [1.5, 2.0]},
        spikes(neuron_ids=[1.5, 2.0]),
        ["neuron_ids", "float64"],
    ),
    "matrices that disagree": (
        "store_network_snapshot",
        {**SNAP, "weight_matrix": np.ones((3, 4))},
        build_snapshot(adjacency=A, weights=np.ones((3, 4))),
        ["weights", "4", "3", "adjacency"],
    ),
    "states of other neurons": (
        "store_network_snapshot",
        {**SNAP, "neuron_states": np.ones(5)},
        build_snapshot(adjacency=A, weights=A, states=np.ones(5)),
        ["states", "5", "3"],
    ),
    "a matrix of three dimensions": (
        "store_network_snapshot",
        {**SNAP, "adjacency_matrix": np.ones((3, 3, 3))},
        build_snapshot(adjacency=np.ones((3, 3, 3))),
        ["adjacency", "(3, 3, 3)"],
    ),
    "an empty snapshot": ("", {}, build_snapshot(), ["adjacency", "weights", "states"]),
    "objects": (
        "store_reservoir_states",
        {**STATES, "reservoir_states": np.array([[1, None]], object)},
        states(array=np.array([[1, None]], object)),
        ["states", "object"],
    ),
    "objects among layers": (
        "store_layer_outputs",
        {"timestamp": 1.0, "layer_outputs": {"a": A, "b": np.array([{}, 1], object)}},
        lambda: neurostore.layer_outputs({"b": np.array([{}, 1], object)}, timestamp=1.0),
        ["'b'", "object"],
    ),
    "ragged lists": (
        "store_reservoir_states",
        {**STATES, "reservoir_states": [[1.0], [1.0, 2.0]]},
        states(array=[[1.0], [1.0, 2.0]]),
        ["states"],
    ),
    "records of NumPy": (
        "store_compressed_spike_train",
        {"timestamp": 1.0, "spike_data": np.zeros(2, "f8,i4"), "compression_params": {}},
        lambda: neurostore.compressed_spike_train(np.zeros(2, "f8,i4"), timestamp=1.0),
        ["data", "dtype"],
    ),
    "long doubles": (
        "store_compressed_spike_train",
        {"timestamp": 1.0, "spike_data": np.zeros(2, "g"), "compression_params": {}},
        lambda: neurostore.compressed_spike_train(np.zeros(2, "g"), timestamp=1.0),
        ["data", "float128"],
    ),
    "an empty name": (
        "store_reservoir_states",
        {**STATES, "reservoir_id": ""},
        states(name=""),
        ["reservoir_id", "empty"],
    ),
    "NUL in a name": (
        "store_reservoir_states",
        {**STATES, "reservoir_id": "a\0b"},
        states(name="a\0b"),
        ["reservoir_id", "NUL"],
    ),
    "a name that is no text": (
        "store_reservoir_states",
        {**STATES, "reservoir_id": 5},
        states(name=5),
        ["reservoir_id", "int"],
    ),
    "a name that UTF-8 cannot hold": (
        "store_reservoir_states",
        {**STATES, "reservoir_id": "\ud800"},
        states(name="\ud800"),
        ["reservoir_id", "UTF-8"],
    ),
    "no name": ("", {}, bare({"states": (("neuron", "time"), A)}, kind="reservoir_states"),
                ["reservoir_id", "missing"]),
    "odd names of layers": (
        "store_layer_outputs",
        {"timestamp": 1.0, "layer_outputs": {"": A, "a\0": A, 3: A}},
        lambda: neurostore.layer_outputs({"": A, "a\0": A, 3: A}, timestamp=1.0),
        ["empty", "NUL", "int", "3 problems"],
    ),
    "layers that are no dict": (
        "store_layer_outputs",
        {"timestamp": 1.0, "layer_outputs": [A]},
        lambda: neurostore.layer_outputs([A], timestamp=1.0),
        ["layers", "list", "dict"],
    ),
    "metrics that are no numbers": (
        "store_performance_metrics",
        {"timestamp": 1.0, "metrics": {"a": "x", "b": None, "c": [1]}, "task_type": "t"},
        lambda: neurostore.performance_metrics({"a": "x", "b": None, "c": [1]}, "t", timestamp=1.0),
        ["'a'", "'b'", "'c'", "3 problems"],
    ),
    "a metric too large for a float": (
        "store_performance_metrics",
        {"timestamp": 1.0, "metrics": {"n": 2**53 + 1}, "task_type": "t"},
        lambda: neurostore.performance_metrics({"n": 2**53 + 1}, "t", timestamp=1.0),
        ["'n'", "float64"],
    ),
    "an unknown kind": ("", {}, bare({"x": ("y", A[0])}, kind="magic"), ["magic", "spike_train"]),
    "no kind fits": ("", {}, bare({"x": ("y", A[0])}), ["x", "kind", "builder"]),
    "an empty Dataset": ("", {}, lambda: xr.Dataset(), ["kind"]),
    "no timestamp": (
        "",
        {},
        lambda: xr.Dataset({"weights": (("pre", "post"), A)}),
        ["timestamp", "missing", "assign_coords"],
    ),
    "a timestamp along a dimension": (
        "",
        {},
        lambda: xr.Dataset({"weights": (("pre", "post"), A)}, {"timestamp": ("pre", A[0])}),
        ["timestamp"],
    ),
    "several problems by hand": (
        "",
        {},
        lambda: xr.Dataset(
            {"states": (("a", "b"), A), "odd": ("a", np.array([1, {}, 2], object))},
            {"timestamp": math.nan},
            {"kind": "reservoir_states", "reservoir_id": "", "note": {1, 2}},
        ),
        ["timestamp", "states", "odd", "reservoir_id", "note", "5 problems"],
    ),
    "names that are no text": (
        "",
        {},
        lambda: states()().assign_coords({5: ("neuron", [1, 2, 3])}),
        ["5", "int"],
    ),
    "dimensions that are no text": ("", {}, lambda: states()().assign(x=((7,), [1, 2])), ["7"]),
    "an empty name of a coordinate": (
        "", {}, lambda: states()().assign_coords({"": ("neuron", [1, 2, 3])}), ["name", "empty"]
    ),
    "NUL in the name of a coordinate": (
        "", {}, lambda: states()().assign_coords({"a\0": 1}), ["NUL"]
    ),
    "an attribute that JSON cannot say": (
        "", {}, lambda: states()().assign_attrs(note=object()), ["note", "object"]
    ),
    "an attribute of a coordinate": (
        "",
        {},
        lambda: states()().assign_coords(x=("neuron", [1, 2, 3], {"bad": b"bytes"})),
        ["x", "bad", "bytes"],
    ),
    "an attribute whose name is no text": (
        "", {}, lambda: states()().assign_attrs({5: "x"}), ["5", "int"]
    ),
    "an attribute that UTF-8 cannot hold": (
        "", {}, lambda: states()().assign_attrs(note="\ud800"), ["note", "UTF-8"]
    ),
    "text that UTF-8 cannot hold": (
        "", {}, lambda: states()().assign_coords(x=("neuron", ["a", "\ud800", "b"])), ["x", "utf-8"]
    ),
    "metadata that is text and no JSON": (
        "", {}, lambda: states()().assign_attrs(metadata="{"), ["metadata", "JSON"]
    ),
    "coordinates that do not fit": (
        "", {}, states(coords={"neuron": [1, 2]}), ["neuron", "2", "3"]
    ),
}  # fmt: skip

METADATA: dict[str, tuple[Any, list[str]]] = {
    "a set": ({"a": {1, 2}}, ["metadata['a']", "set"]),
    "an array": ({"a": {"b": [np.zeros(3)]}}, ["metadata['a']['b'][0]", "ndarray", "tolist"]),
    "a key": ({"a": {1: 2}}, ["metadata['a']", "1", "int", "str keys"]),
    "bytes": ({"a": b"x"}, ["metadata['a']", "bytes"]),
    "a date": ({"a": datetime(2026, 1, 1)}, ["metadata['a']", "datetime"]),
    "an object": ({"a": object()}, ["metadata['a']", "object"]),
    "a complex number": ({"a": 1j}, ["metadata['a']", "complex"]),
    "half a character": ({"a": "\ud800"}, ["metadata"]),
    "two at once": ({"a": {1}, "b": 1j}, ["metadata['a']"]),
}
for _what, (_metadata, _words) in METADATA.items():
    CASES[f"metadata: {_what}"] = (
        "store_spike_train",
        {**SPIKES, "metadata": _metadata},
        spikes(metadata=_metadata),
        _words,
    )

TIMES: dict[str, Any] = {
    "nan": math.nan,
    "inf": math.inf,
    "minus inf": -math.inf,
    "None": None,
    "text": "yesterday",
    "empty text": "",
    "a list": [1.0],
    "an array": np.array([1.0, 2.0]),
    "a bool": True,
    "a complex number": 1j,
    "NaT": np.datetime64("NaT", "s"),
    "a span": np.timedelta64(1, "s"),
    "float nan of NumPy": np.float32("nan"),
    "a number too large": 10**400,
    "an object": object(),
    "bytes": b"1.0",
}
for _what, _time in TIMES.items():
    CASES[f"timestamp: {_what}"] = (
        "store_spike_train",
        {**SPIKES, "timestamp": _time},
        spikes(timestamp=_time),
        ["timestamp"],
    )


@pytest.mark.parametrize("what", sorted(CASES))
def test_one_error_and_an_untouched_file(folder: Path, what: str) -> None:
    method, given, ds, words = CASES[what]
    before = fingerprint(folder)
    for face, call in on_every_face(folder / "run.h5", method, given, ds):
        with pytest.raises(ValidationError) as caught:
            call()
        message = str(caught.value)
        missing = [word for word in words if word not in message]
        assert not missing, f"{face}: {missing} not in {message!r}"
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, HDF5StorageError)
        assert fingerprint(folder) == before, face
    assert fingerprint(folder) == before
    with neurostore.open(folder / "run.h5", "r") as store:
        assert store.ids() == ["train_0.5"]


def test_validate_says_the_same_and_needs_no_file() -> None:
    for what, (_, _, ds, words) in CASES.items():
        if ds is not None:
            with pytest.raises(ValidationError) as caught:
                ds().neuro.validate()
            missing = [word for word in words if word not in str(caught.value)]
            assert not missing, f"{what}: {missing} not in {caught.value}"


def test_a_rectangular_network_is_fine(folder: Path) -> None:
    with neurostore.open(folder / "run.h5", durability="process") as store:
        for neurons in (2, 5, 7):
            made = build_snapshot(
                adjacency=np.ones((2, 5)), weights=np.ones((2, 5)), states=np.ones((neurons, 2))
            )
            assert store.retrieve(store.store(made())).sizes["neuron"] == neurons


def test_a_batch_with_one_bad_record_leaves_nothing(folder: Path) -> None:
    before = fingerprint(folder)
    with neurostore.open(folder / "run.h5", durability="process") as store:

        def two() -> None:
            with store.batch():
                store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
                store.store(xr.Dataset({"x": 1}))

        with pytest.raises(ValidationError):
            two()
        assert store.ids() == ["train_0.5"]
    assert fingerprint(folder) == before


def test_a_tree_with_one_bad_node_leaves_nothing(folder: Path) -> None:
    before = fingerprint(folder)
    tree = xr.DataTree.from_dict(
        {"/good": neurostore.spike_train([0.1], [1], timestamp=1.0), "/bad": xr.Dataset({"x": 1})}
    )
    with pytest.raises(ValidationError):
        tree.neuro.store(folder / "run.h5", durability="process")
    with pytest.raises(ValidationError, match="no node with variables"):
        xr.DataTree().neuro.store(folder / "run.h5", durability="process")
    neurostore.open(folder / "run.h5").close()
    assert fingerprint(folder) == before


def test_a_bad_record_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        xr.Dataset({"x": 1}).neuro.store(tmp_path / "new.h5")
    with pytest.raises(ValidationError, match="no name"):
        xr.DataArray([1.0]).neuro.store(tmp_path / "new.h5")
    with pytest.raises(ValidationError, match="path="):
        neurostore.spike_train([0.1], [1], timestamp=1.0).neuro.store()


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "w"},
        {"mode": "r+"},
        {"compression": "zip"},
        {"compression_opts": 10},
        {"compression_opts": -1},
        {"compression_opts": "high"},
        {"chunk_size": 0},
        {"chunk_size": -1},
        {"chunk_size": 1.5},
        {"chunk_size": True},
        {"durability": "never"},
    ],
    ids=str,
)
def test_bad_settings_make_no_file(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        neurostore.open(tmp_path / "run.h5", **settings)
    assert list(tmp_path.iterdir()) == []


# -- questions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "word"),
    [
        (lambda s: s.ids("magic"), "magic"),
        (lambda s: s.range("magic"), "spike_train"),
        (lambda s: s.catalogue("magic"), "magic"),
        (lambda s: s.ids("spike_train", "yesterday"), "start"),
        (lambda s: s.ids("spike_train", None, math.nan), "end"),
        (lambda s: s.range("spike_train", join="any"), "join"),
        (lambda s: s.retrieve(5), "id"),
        (lambda s: s.retrieve(None), "id"),
        (lambda s: s.cleanup(-1), "retention_days"),
        (lambda s: s.cleanup(math.nan), "retention_days"),
    ],
)
def test_a_question_that_makes_no_sense(folder: Path, ask: Callable[[Any], Any], word: str) -> None:
    before = fingerprint(folder)
    with (
        neurostore.open(folder / "run.h5", durability="process") as store,
        pytest.raises(ValidationError, match=word),
    ):
        ask(store)
    assert fingerprint(folder) == before


UNKNOWN = ["nothing_1.0", "", "/", "..", "../x", "train_0.50", "spike_trains", "catalogue"]
UNKNOWN += ["spike_trains/raw_data/train_9.0", "x" * 1000, "a\0b", "train_0.5/x", "\ud800"]


@pytest.mark.parametrize("record_id", UNKNOWN, ids=lambda text: ascii(text[:20]))
def test_an_unknown_id(folder: Path, record_id: str) -> None:
    before = fingerprint(folder)
    with HDF5Storage(folder / "run.h5", durability="process") as storage:
        for name in dir(storage):
            if name.startswith("retrieve_"):
                assert getattr(storage, name)(record_id) is None
    with neurostore.open(folder / "run.h5", "r") as store:
        with pytest.raises(RecordNotFoundError) as caught:
            store.retrieve(record_id)
        assert isinstance(caught.value, KeyError)
        assert isinstance(caught.value, HDF5StorageError)
        assert "ids()" in str(caught.value)
        with pytest.raises(KeyError):
            store.catalogue().neuro.retrieve(record_id)
    assert fingerprint(folder) == before


def test_a_group_that_is_not_there(folder: Path) -> None:
    with pytest.raises(RecordNotFoundError):
        xr.open_dataset(folder / "run.h5", engine="neurostore", group="spike_trains/none_1.0")


# -- paths ---------------------------------------------------------------------------------------

OPENERS: dict[str, Callable[[Path], Any]] = {
    "store": lambda path: neurostore.open(path).ids(),
    "store to read": lambda path: neurostore.open(path, "r").ids(),
    "array face": lambda path: HDF5Storage(path).get_file_info(),
    "engine": lambda path: xr.open_dataset(path, engine="neurostore"),
    "tree": lambda path: xr.open_datatree(path, engine="neurostore"),
    "accessor": lambda path: neurostore.spike_train([0.1], [1], timestamp=1.0).neuro.store(path),
    "question": lambda path: xr.Dataset().neuro.ids(path=path),
}
READERS = ["store to read", "engine", "tree", "question"]


@pytest.mark.parametrize("opener", sorted(OPENERS))
def test_a_directory(tmp_path: Path, opener: str) -> None:
    (tmp_path / "run.h5").mkdir()
    with pytest.raises(NotAStoreError, match="directory") as caught:
        OPENERS[opener](tmp_path / "run.h5")
    assert isinstance(caught.value, OSError)
    assert "run.h5" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
    assert list((tmp_path / "run.h5").iterdir()) == []


CONTENTS = {
    "text": b"a,b,c\n1,2,3\n",
    "one byte": b"\x89",
    "nothing but a signature": b"\x89HDF\r\n\x1a\n",
    "a signature and noise": b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 8,
}


@pytest.mark.parametrize("opener", sorted(OPENERS))
@pytest.mark.parametrize("what", sorted(CONTENTS))
def test_not_hdf5(tmp_path: Path, opener: str, what: str) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(CONTENTS[what])
    before = fingerprint(tmp_path)
    with pytest.raises(NotAStoreError, match=r"run\.h5"):
        OPENERS[opener](path)
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("opener", READERS)
def test_nothing_there_to_read(tmp_path: Path, opener: str) -> None:
    with pytest.raises(StoreNotFoundError, match=r"run\.h5") as caught:
        OPENERS[opener](tmp_path / "run.h5")
    assert isinstance(caught.value, FileNotFoundError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opener", sorted(OPENERS.keys() - {"array face"}))
def test_no_folder(tmp_path: Path, opener: str) -> None:
    with pytest.raises(StoreNotFoundError, match="missing"):
        OPENERS[opener](tmp_path / "missing" / "run.h5")
    assert list(tmp_path.iterdir()) == []


def test_the_array_face_makes_the_folder(tmp_path: Path) -> None:
    OPENERS["array face"](tmp_path / "missing" / "run.h5")
    assert (tmp_path / "missing" / "run.h5").is_file()


def test_a_new_file_where_there_is_one(folder: Path) -> None:
    before = fingerprint(folder)
    with pytest.raises(StoreExistsError, match=r"run\.h5") as caught:
        neurostore.open(folder / "run.h5", "x")
    assert isinstance(caught.value, FileExistsError)
    assert fingerprint(folder) == before


def test_writing_to_a_store_opened_to_read(folder: Path) -> None:
    before = fingerprint(folder)
    with neurostore.open(folder / "run.h5", "r") as store:
        for write in (
            lambda: store.store(neurostore.spike_train([0.1], [1], timestamp=1.0)),
            lambda: store.cleanup(0.0),
            store.compact,
            store.rotate,
            lambda: store.batch().__enter__(),
        ):
            with pytest.raises(ReadOnlyError, match="mode") as caught:
                write()
            assert isinstance(caught.value, PermissionError)
        assert store.cleanup(0.0, dry_run=True, model_time=True) == ["train_0.5"]
        assert store.ids() == ["train_0.5"]
    assert fingerprint(folder) == before


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user"
)
def test_a_file_without_permission_to_write(folder: Path) -> None:
    (folder / "run.h5").chmod(0o444)
    folder.chmod(0o555)
    before = fingerprint(folder)
    try:
        with neurostore.open(folder / "run.h5", "r") as store:
            assert store.retrieve("train_0.5").sizes == {"spike": 1}
        with pytest.raises(ReadOnlyError, match=r"run\.h5"):
            neurostore.spike_train([0.1], [1], timestamp=1.0).neuro.store(folder / "run.h5")
    finally:
        folder.chmod(0o755)
    assert fingerprint(folder) == before


def test_a_closed_store(folder: Path) -> None:
    store = neurostore.open(folder / "run.h5", durability="process")
    store.close()
    store.close()
    for ask in (store.ids, store.info, store.compact, lambda: store.retrieve("train_0.5")):
        with pytest.raises(neurostore.ClosedError, match=r"run\.h5"):
            ask()


def test_an_empty_hdf5_file_is_a_store_without_records(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.h5", "w"):
        pass
    with neurostore.open(tmp_path / "run.h5", "r") as store:
        assert store.ids() == []
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
        assert store.ids() == ["train_1.0"]


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_spike_without_a_time_is_refused(tmp_path: Path, odd: float) -> None:
    times = np.array([0.1, odd, 0.3, odd])
    with pytest.raises(ValidationError, match="the first at position 1"):
        neurostore.spike_train(times, [1, 2, 3, 4], timestamp=1.0)
    ds = neurostore.spike_train([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4], timestamp=1.0)
    ds = ds.drop_indexes(["spike_times", "neuron_ids"]).assign_coords(spike_times=("spike", times))
    with neurostore.open(tmp_path / "run.h5") as store:
        with pytest.raises(ValidationError, match="position 1"):
            store.store(ds)
        assert store.ids() == []


def test_spike_times_of_others_may_be_nan_and_selections_leave_them_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.h5", "w") as h5file:
        group = h5file.create_group("spike_trains/raw_data/train_1.0")
        group["spike_times"], group["neuron_ids"] = [0.3, np.nan, 0.1, np.nan], [1, 2, 3, 1]
    with neurostore.open(tmp_path / "run.h5", "r") as store:
        ds = store.retrieve("train_1.0")
        assert ds.sizes["spike"] == 4
        assert ds.sel(spike_times=slice(0.0, 1.0))["neuron_ids"].values.tolist() == [1, 3]
        assert ds.sel(spike_times=slice(0.2, None))["neuron_ids"].values.tolist() == [1]
        assert ds.sel(neuron_ids=[1, 2]).sizes["spike"] == 3


def test_labels_are_given_once_where_the_neurons_are_the_same() -> None:
    square, names = np.eye(3), ["a", "b", "c"]
    ds = neurostore.network_snapshot(square, square, np.ones(3), timestamp=1.0, labels=names)
    for dim in ("pre", "post", "neuron"):
        assert ds[dim].values.tolist() == names
    assert ds["weights"].sel(pre="b", post="b") == 1
    wide = np.ones((3, 4))
    with pytest.raises(ValidationError, match="labels has 3 values, 'post' 4"):
        neurostore.network_snapshot(weights=wide, timestamp=1.0, labels=names)
    with pytest.raises(ValidationError, match="labels and coords both label 'pre'"):
        neurostore.network_snapshot(
            weights=square, timestamp=1.0, labels=names, coords={"pre": [1, 2, 3]}
        )
