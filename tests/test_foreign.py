"""Files that plain h5py wrote in the tree of the layout: read, adopted, and never lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore import HDF5Storage
from neurostore.errors import AmbiguousRecordError, DamagedError, RecordNotFoundError
from neurostore.index import EventIndex
from neurostore.schema import KINDS
from neurostore.session import close_all
from tests.samples import assert_same, record

T = 12.5
NUMBERS = np.random.default_rng(5)
ADJACENCY = NUMBERS.integers(0, 2, (4, 4))
WEIGHTS = NUMBERS.random((4, 4))
STATES = NUMBERS.random((4, 3))
TIMES = np.array([0.3, 0.1, 0.2])
IDS = np.array([720575940600000001, 3, 720575940600000003])
RESERVOIR = NUMBERS.random((5, 7), "f4")
HIDDEN, OUTPUT = NUMBERS.random((6, 3)), NUMBERS.random((6, 2))
MAPS = NUMBERS.random((2, 3, 3))
CHANGES = NUMBERS.random((4, 4))
THRESHOLDS = NUMBERS.random(4)
PACKED = np.frombuffer(b"spikes, packed", "u1")

#: Address of every kind's record, less what the id is.
HOMES = {
    "network_snapshot": "network_states/topology",
    "spike_train": "spike_trains/raw_data",
    "compressed_spike_train": "spike_trains/compressed",
    "reservoir_states": "activations/reservoir_states",
    "layer_outputs": "activations/layer_outputs",
    "attention_maps": "activations/attention_maps",
    "plasticity_trace": "learning_traces/plasticity",
    "homeostatic_trace": "learning_traces/homeostatic",
    "performance_metrics": "learning_traces/performance",
}
ID = {
    "network_snapshot": "snapshot_12.5",
    "spike_train": "train_12.5",
    "compressed_spike_train": "compressed_12.5",
    "reservoir_states": "main_pool_12.5",
    "layer_outputs": "outputs_12.5",
    "attention_maps": "enc0_12.5",
    "plasticity_trace": "stdp_12.5",
    "homeostatic_trace": "scaling_12.5",
    "performance_metrics": "digits_12.5",
}


def write_plain(path: Path, timestamp: float = T, mode: str = "w") -> None:
    """Write one record of every kind the way a short h5py script does."""
    if mode == "a":
        neurostore.open(path).close()
    with h5py.File(path, mode) as h5file:
        note = json.dumps({"trial": 3, "who": "Ünï"})
        for part, name, values in (
            ("topology", "adjacency", ADJACENCY),
            ("weights", "weights", WEIGHTS),
            ("neuron_states", "states", STATES),
        ):
            group = h5file.create_group(f"network_states/{part}/snapshot_{timestamp}")
            group[name] = values
        first = h5file[f"network_states/topology/snapshot_{timestamp}"]
        first.attrs["timestamp"] = timestamp
        first.attrs["metadata"] = note
        train = h5file.create_group(f"spike_trains/raw_data/train_{timestamp}")
        train.create_dataset("spike_times", data=TIMES, compression="gzip", chunks=(2,))
        train["neuron_ids"] = IDS
        train.attrs["metadata"] = note
        packed = h5file.create_dataset(
            f"spike_trains/compressed/compressed_{timestamp}", data=PACKED
        )
        packed.attrs["compression_params"] = json.dumps({"algorithm": "rle"})
        h5file[f"activations/reservoir_states/main_pool_{timestamp}"] = RESERVOIR
        layers = h5file.create_group(f"activations/layer_outputs/outputs_{timestamp}")
        layers["hidden"], layers["output"] = HIDDEN, OUTPUT
        h5file[f"activations/attention_maps/enc0_{timestamp}"] = MAPS
        h5file[f"learning_traces/plasticity/stdp_{timestamp}"] = CHANGES
        h5file[f"learning_traces/homeostatic/scaling_{timestamp}"] = THRESHOLDS
        scores = h5file.create_group(f"learning_traces/performance/digits_{timestamp}")
        scores["values"] = [0.9, 0.1]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.h5"
    write_plain(path)
    return path


EXPECTED: dict[str, dict[str, tuple[tuple[str, ...], Any]]] = {
    "network_snapshot": {
        "adjacency": (("pre", "post"), ADJACENCY),
        "weights": (("pre", "post"), WEIGHTS),
        "states": (("neuron", "state"), STATES),
    },
    "spike_train": {"spike_times": (("spike",), TIMES), "neuron_ids": (("spike",), IDS)},
    "compressed_spike_train": {"data": (("value",), PACKED)},
    "reservoir_states": {"states": (("neuron", "time"), RESERVOIR)},
    "layer_outputs": {
        "hidden": (("sample", "hidden_unit"), HIDDEN),
        "output": (("sample", "output_unit"), OUTPUT),
    },
    "attention_maps": {"maps": (("head", "query", "key"), MAPS)},
    "plasticity_trace": {"changes": (("pre", "post"), CHANGES)},
    "homeostatic_trace": {"changes": (("neuron",), THRESHOLDS)},
    "performance_metrics": {"values": (("metric",), np.array([0.9, 0.1]))},
}


def check(kind: str, ds: xr.Dataset) -> None:
    for name, (dims, values) in EXPECTED[kind].items():
        assert ds[name].dims == dims
        assert ds[name].dtype == values.dtype
        np.testing.assert_array_equal(ds[name].values, values)
    assert ds["timestamp"].item() == T
    assert ds.neuro.kind == kind


# -- reading


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_by_every_way(plain: Path, kind: str) -> None:
    before = plain.read_bytes()
    with neurostore.open(plain, "r") as store:
        assert store.ids(kind) == [ID[kind]]
        check(kind, store.retrieve(ID[kind]))
        address = f"{HOMES[kind]}/{ID[kind]}"
        check(kind, store.retrieve(f"/{address}"))
        row = store.catalogue(kind, T, T)
        assert row["record"].values.tolist() == [ID[kind]]
        label = KINDS[kind].label
        if label is not None:
            name = ID[kind].removesuffix("_12.5")
            assert store.ids(kind, name=name) == [ID[kind]]
            assert store.retrieve(ID[kind]).attrs[label] == name
        joined = store.range(kind, 12, 13)
        assert joined["record"].values.tolist() == [ID[kind]]
        for variable, (_, values) in EXPECTED[kind].items():
            found = joined[variable].values
            ragged = KINDS[kind].combine == "ragged"
            np.testing.assert_array_equal(found if ragged else found[0], values)
        part = xr.open_dataset(plain, engine="neurostore", group=address)
        tree = xr.open_datatree(plain, engine="neurostore", kind=kind)
        first = next(iter(EXPECTED[kind]))
        np.testing.assert_array_equal(part[first].values, EXPECTED[kind][first][1])
        np.testing.assert_array_equal(tree[f"/{address}"][first].values, part[first].values)
    assert plain.read_bytes() == before


def test_the_whole_file(plain: Path) -> None:
    with neurostore.open(plain, "r") as store:
        assert sorted(store.ids()) == sorted(ID.values())
        info = store.info()
        assert all(count == 1 for count in info["records"].values())
        assert info["variables"] == 13
        assert (info["start"], info["end"]) == (T, T)
        table = xr.open_dataset(plain, engine="neurostore")
        assert table.sizes["record"] == 9
        assert table.sel(timestamp=T).sizes["record"] == 9
        assert len(list(xr.open_datatree(plain, engine="neurostore").leaves)) == 11
        assert store.retrieve("snapshot_12.5").neuro.metadata == {"trial": 3, "who": "Ünï"}
        assert store.retrieve("compressed_12.5").neuro.metadata == {"algorithm": "rle"}
        assert store.retrieve("main_pool_12.5").neuro.metadata == {}


def test_the_array_face(plain: Path) -> None:
    with_arrays = HDF5Storage(file_path=str(plain))
    snapshot = with_arrays.retrieve_network_snapshot("snapshot_12.5")
    np.testing.assert_array_equal(snapshot.weight_matrix, WEIGHTS)
    assert snapshot.metadata == {"trial": 3, "who": "Ünï"}
    train = with_arrays.retrieve_spike_train("train_12.5")
    assert train.neuron_ids.tolist() == IDS.tolist()
    assert train.spike_amplitudes is None
    values, moment, name = with_arrays.retrieve_reservoir_states("main_pool_12.5")
    np.testing.assert_array_equal(values, RESERVOIR)
    assert (moment, name) == (T, "main_pool")
    layers, _ = with_arrays.retrieve_layer_outputs("outputs_12.5")[:2]
    np.testing.assert_array_equal(layers["hidden"], HIDDEN)
    changes, _, rule = with_arrays.retrieve_plasticity_trace("stdp_12.5")[:3]
    np.testing.assert_array_equal(changes, CHANGES)
    assert rule == "stdp"
    scores = with_arrays.retrieve_performance_metrics("digits_12.5")[0]
    assert sorted(scores.values()) == [0.1, 0.9]
    assert len(with_arrays.get_network_snapshots_in_range(12.0, 13.0)) == 1


def test_spikes_have_their_index_and_unit(plain: Path) -> None:
    ds = neurostore.open(plain, "r").retrieve("train_12.5")
    assert isinstance(ds.xindexes["spike_times"], EventIndex)
    assert ds["spike_times"].attrs["units"] == "s"
    picked = ds.sel(spike_times=slice(0.1, 0.25), neuron_ids=[720575940600000003, 3])
    assert picked["spike_times"].values.tolist() == [0.1, 0.2]


@pytest.mark.parametrize("how", ["dataset", "metric", "names", "none"])
def test_metrics_with_and_without_names(tmp_path: Path, how: str) -> None:
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as h5file:
        group = h5file.create_group("learning_traces/performance/digits_1.0")
        group["values"] = [0.9, 0.1]
        if how == "dataset":
            group.create_dataset("metric", data=["accuracy", "loss"], dtype=h5py.string_dtype())
        elif how != "none":
            group["values"].attrs[how] = ["accuracy", "loss"]
    neurostore.performance_metrics({"loss": 0.2}, "digits", timestamp=2.0).neuro.store(path)
    store = neurostore.open(path)
    table = store.range("performance_metrics")
    if how == "none":
        assert table["metric"].values.tolist() == ["metric_0", "metric_1", "loss"]
        return
    assert store.retrieve("digits_1.0").sel(metric="loss")["values"].item() == 0.1
    assert table["metric"].values.tolist() == ["accuracy", "loss"]
    np.testing.assert_array_equal(table["values"].values, [[0.9, 0.1], [np.nan, 0.2]])


def test_names_and_times_from_attributes_win_over_the_leaf(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as h5file:
        one = h5file.create_dataset("activations/reservoir_states/whatever", data=RESERVOIR)
        one.attrs["timestamp"] = 3.5
        one.attrs["reservoir_id"] = "liquid"
        h5file["activations/reservoir_states/no time here"] = RESERVOIR
        h5file["activations/reservoir_states/pool_one_7"] = RESERVOIR
    store = neurostore.open(tmp_path / "plain.h5", "r")
    assert store.ids("reservoir_states") == ["whatever", "pool_one_7"]
    assert store.ids("reservoir_states", name="liquid") == ["whatever"]
    assert store.retrieve("whatever")["timestamp"].item() == 3.5
    assert store.retrieve("pool_one_7").attrs["reservoir_id"] == "pool_one"


def test_text_of_varying_length(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as h5file:
        for moment, ids in ((1.0, ["a", "lönger"]), (2.0, ["b"])):
            group = h5file.create_group(f"spike_trains/raw_data/train_{moment}")
            group["spike_times"] = np.arange(len(ids)) / 8
            group.create_dataset("neuron_ids", data=ids, dtype=h5py.string_dtype())
            group.attrs.create("note", "vary", dtype=h5py.string_dtype())
            group.attrs.create("tags", ["x", "yy"], dtype=h5py.string_dtype())
    store = neurostore.open(tmp_path / "plain.h5", "r")
    ds = store.retrieve("train_1.0")
    assert ds["neuron_ids"].values.tolist() == ["a", "lönger"]
    assert (ds.attrs["note"], ds.attrs["tags"]) == ("vary", ["x", "yy"])
    joined = store.range("spike_train")
    assert joined["neuron_ids"].values.tolist() == ["a", "lönger", "b"]
    assert joined.sel(neuron_ids=["b", "a"])["record_index"].values.tolist() == [0, 1]


def test_a_range_over_records_of_several_hands(plain: Path) -> None:
    write_plain(plain, 13.5, "a")
    ours = neurostore.spike_train([0.5], [9], spike_amplitudes=[1.0], timestamp=14.5)
    ours.neuro.store(plain)
    neurostore.reservoir_states(RESERVOIR * 2, "main_pool", timestamp=14.5).neuro.store(plain)
    write_plain(plain, 15.5, "a")
    store = neurostore.open(plain, "r")
    spikes = store.range("spike_train", end=14.5)
    assert spikes["row_size"].values.tolist() == [3, 3, 1]
    assert spikes["neuron_ids"].values.tolist() == [*IDS, *IDS, 9]
    assert np.isnan(spikes["spike_amplitudes"].values[:6]).all()
    stacked = store.range("reservoir_states", 13, 14.5)
    np.testing.assert_array_equal(stacked["states"].values, [RESERVOIR, RESERVOIR * 2])


def test_unequal_foreign_records_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as h5file:
        for moment in (1.0, 2.0):
            h5file[f"activations/reservoir_states/r_{moment}"] = np.ones((2, int(moment)))
    with pytest.raises(ValueError, match=r"'r_2.0' has 'states' with shape \(2, 2\)"):
        neurostore.open(tmp_path / "plain.h5", "r").range("reservoir_states")


def test_labels_that_stand_beside_the_values(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as h5file:
        group = h5file.create_group("activations/reservoir_states/r_1.0")
        group["states"], group["time"], group["neuron"] = np.eye(2, 3), [0.0, 0.1, 0.2], [5, 6]
    store = neurostore.open(tmp_path / "plain.h5", "r")
    assert store.retrieve("r_1.0").sel(neuron=6, time=0.1)["states"].item() == 1.0
    assert store.range("reservoir_states")["time"].values.tolist() == [0.0, 0.1, 0.2]


def test_a_malformed_record_does_not_sink_the_file(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with h5py.File(plain, "a") as h5file:
        odd = h5file.create_group("spike_trains/raw_data/train_1.0")
        odd["spike_times"], odd["neuron_ids"] = [0.1, 0.2], [1]
        h5file.create_group("spike_trains/raw_data/train_2.0")
    store = neurostore.open(plain, "r")
    for ask in (store.retrieve, lambda _: store.range("spike_train")):
        with pytest.raises(DamagedError, match=r"conflicting sizes.*train_1.0/neuron_ids"):
            ask("train_1.0")
    with pytest.raises(ValueError, match=r"'train_12.5'|'train_2.0'"):
        store.range("spike_train", 2)
    check("spike_train", store.retrieve("train_12.5"))
    assert len(store.ids()) == 11
    assert store.info()["variables"] == 13
    assert "/spike_trains/raw_data/train_12.5" in xr.open_groups(plain, engine="neurostore")
    assert "'train_1.0' is left out" in caplog.text


def test_what_is_no_record_is_left_out(plain: Path) -> None:
    with h5py.File(plain, "a") as h5file:
        h5file["spike_trains/raw_data/notes"] = "text"
        h5file["spike_trains/raw_data/train_9.0"] = h5py.SoftLink(
            "/spike_trains/raw_data/train_12.5"
        )
        h5file["elsewhere/data_1.0"] = [1, 2]
        h5file.attrs["author"] = "someone"
    store = neurostore.open(plain, "r")
    assert store.ids("spike_train") == ["train_12.5"]
    assert len(store.ids()) == 9
    with pytest.raises(RecordNotFoundError):
        store.retrieve("data_1.0")
    assert xr.open_dataset(plain, engine="neurostore", group="elsewhere")["data_1.0"].size == 2


# -- ids


def test_a_leaf_that_several_records_have(tmp_path: Path) -> None:
    path = tmp_path / "plain.h5"
    addresses = {
        "activations/reservoir_states/main_1.0": np.ones((2, 2)),
        "learning_traces/plasticity/main_1.0": np.full((3, 3), 2.0),
        "learning_traces/homeostatic/main_1.0": np.full(4, 3.0),
    }
    with h5py.File(path, "w") as h5file:
        for address, values in addresses.items():
            h5file[address] = values
    for _ in range(2):
        store = neurostore.open(path)
        with pytest.raises(AmbiguousRecordError) as caught:
            store.retrieve("main_1.0")
        for address, values in addresses.items():
            assert f"/{address}" in str(caught.value)
            ds = store.retrieve(address)
            found = next(iter(ds.data_vars.values()))
            np.testing.assert_array_equal(found.values, values)
        assert store.ids() == ["main_1.0"] * 3
        neurostore.reservoir_states(np.ones((2, 2)), "x", timestamp=9.0).neuro.store(path)
        assert store.cleanup(0, kind="reservoir_states", now=9.5, model_time=True, dry_run=True)
        store.cleanup(0, kind="reservoir_states", name="x", now=9.5, model_time=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_address_is_taken_for_an_id(tmp_path: Path, kind: str) -> None:
    ds = record(KINDS[kind], timestamp=1.5)
    record_id = ds.neuro.store(tmp_path / "run.h5")
    store = neurostore.open(tmp_path / "run.h5", "r")
    for part in KINDS[kind].parts:
        for slash in ("", "/"):
            assert_same(store.retrieve(f"{slash}{part.path}/{record_id}"), ds)
    with pytest.raises(RecordNotFoundError):
        store.retrieve(f"activations/{record_id}")


# -- writing into it


@pytest.mark.parametrize("kind", KINDS)
def test_storing_adopts_the_file_and_keeps_what_was_there(plain: Path, kind: str) -> None:
    for moment in (99.0, 100.0):
        record(KINDS[kind], timestamp=moment).neuro.store(plain)
    with neurostore.open(plain) as store:
        assert len(store.ids()) == 11
        for every, record_id in ID.items():
            check(every, store.retrieve(record_id))
            assert record_id in store.ids(every)
    with h5py.File(plain, "r") as h5file:
        np.testing.assert_array_equal(h5file["activations/attention_maps/enc0_12.5"][()], MAPS)


def test_a_record_of_the_same_moment_gets_another_id(plain: Path) -> None:
    made = neurostore.spike_train([0.5], [9], timestamp=T).neuro.store(plain)
    assert made != "train_12.5"
    store = neurostore.open(plain)
    assert store.ids("spike_train") == ["train_12.5", made]
    assert store.range("spike_train")["row_size"].values.tolist() == [3, 1]


def test_foreign_records_age_like_others(plain: Path) -> None:
    write_plain(plain, 500.0, "a")
    store = neurostore.open(plain)
    gone = store.cleanup(0, now=100.0, model_time=True)
    assert sorted(gone) == sorted(ID.values())
    store.compact()
    assert len(store.ids()) == 9
    np.testing.assert_array_equal(store.retrieve("enc0_500.0")["maps"].values, MAPS)
    store.rotate()
    np.testing.assert_array_equal(store.retrieve("main_pool_500.0")["states"].values, RESERVOIR)
    assert len(store.ids()) == 9


# -- the catalogue is a cache


def filled(path: Path) -> list[str]:
    with neurostore.open(path) as store:
        for moment in range(5):
            store.store(
                neurostore.spike_train(
                    [0.1] * moment, np.ones(moment, int), timestamp=float(moment)
                )
            )
            store.store(neurostore.reservoir_states(RESERVOIR, "a/b", timestamp=float(moment)))
        store.store(neurostore.spike_train([0.7], [7], timestamp=1.0))
        return store.ids()


def lengthen_state(path: Path) -> None:
    with h5py.File(path, "a") as h5file:
        del h5file["catalogue/state"]
        h5file["catalogue/state"] = np.zeros(4_000_000, "i8")


def delete(path: Path) -> None:
    with h5py.File(path, "a") as h5file:
        del h5file["catalogue"]


def delete_a_table(path: Path) -> None:
    with h5py.File(path, "a") as h5file:
        del h5file["catalogue/spike_train"]


def shorten(path: Path) -> None:
    with h5py.File(path, "a") as h5file:
        h5file["catalogue/spike_train/rows"].resize((0,))


def truncate_names(path: Path) -> None:
    with h5py.File(path, "a") as h5file:
        h5file["catalogue/names"].resize((3,))


def overwrite(name: str) -> Any:
    def damage(path: Path) -> None:
        with h5py.File(path, "r") as h5file:
            dataset = h5file[f"catalogue/{name}"]
            chunked = dataset.chunks is not None
            where = dataset.id.get_chunk_info(0).byte_offset if chunked else dataset.id.get_offset()
        with path.open("r+b") as stream:
            stream.seek(where)
            stream.write(b"\xff" * 64)

    damage.__name__ = f"overwrite_{name.replace('/', '_')}"
    return damage


DAMAGES = [
    delete,
    delete_a_table,
    lengthen_state,
    shorten,
    truncate_names,
    overwrite("spike_train/rows"),
    overwrite("names"),
    overwrite("state"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_lost_catalogue_loses_nothing(tmp_path: Path, damage: Any, mode: Any) -> None:
    path = tmp_path / "run.h5"
    ids = filled(path)
    damage(path)
    with neurostore.open(path, mode) as store:
        assert sorted(store.ids()) == sorted(ids)
        assert store.ids("spike_train", 3, 4) == ["train_3.0", "train_4.0"]
        assert len(store.ids(name="a/b")) == 5
        assert store.range("spike_train")["row_size"].sum() == 11
        assert store.range("reservoir_states")["states"].shape == (5, 5, 7)
        for record_id in ids:
            store.retrieve(record_id).load()
    if mode == "r":
        return
    with neurostore.open(path) as store:
        new = store.store(neurostore.spike_train([0.9], [9], timestamp=50.0))
        again = store.store(neurostore.spike_train([0.9], [9], timestamp=3.0))
        assert again not in ids
        assert sorted(store.ids()) == sorted([*ids, new, again])
        assert store.retrieve(new)["neuron_ids"].values.tolist() == [9]
    with neurostore.open(path) as store:
        assert sorted(store.ids()) == sorted([*ids, new, again])
        store.compact()
        assert sorted(store.ids()) == sorted([*ids, new, again])
        for record_id in store.ids():
            store.retrieve(record_id).load()


def test_a_catalogue_that_is_deleted_while_the_store_is_open_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with neurostore.open(path) as store:  # knows its catalogue without having read it
        delete(path)
        new = store.store(neurostore.spike_train([0.9], [9], timestamp=50.0))
        assert store.ids() == [new]
    close_all()
    with neurostore.open(path, "r") as store:
        assert store.ids() == [new]
        assert store.verify().ok


# -- records that others add to a store


def add_by_h5py(path: Path) -> list[str]:
    with h5py.File(path, "a") as h5file:
        group = h5file.create_group("spike_trains/raw_data/train_2.5")
        group["spike_times"], group["neuron_ids"] = [0.1, 0.2], [1, 2]
        h5file["activations/reservoir_states/other_7.0"] = RESERVOIR
        h5file["network_states/weights/snapshot_8.0/weights"] = np.eye(3)
    return ["train_2.5", "other_7.0", "snapshot_8.0"]


@pytest.mark.parametrize("mode", ["r", "a"])
def test_records_that_another_tool_adds_are_seen(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "run.h5"
    ids = filled(path)
    added = add_by_h5py(path)
    with neurostore.open(path, mode) as store:
        assert sorted(store.ids()) == sorted([*ids, *added])
        assert store.ids("spike_train", 2, 3) == ["train_2.0", "train_2.5", "train_3.0"]
        assert store.range("spike_train")["row_size"].sum() == 13
        assert store.ids(name="other") == ["other_7.0"]
        assert store.retrieve("train_2.5")["neuron_ids"].values.tolist() == [1, 2]
        np.testing.assert_array_equal(store.retrieve("snapshot_8.0")["weights"], np.eye(3))
    with neurostore.open(path) as store:  # the next commit takes them over, none twice
        again = store.store(neurostore.spike_train([0.9], [9], timestamp=2.5))
        assert again == "train_2.5~2"
    with neurostore.open(path, "r") as store:
        assert sorted(store.ids()) == sorted([*ids, *added, again])


def test_dimension_numbers_of_added_records_are_not_given_again(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    filled(path)
    ds = neurostore.reservoir_states(RESERVOIR, "stock", timestamp=1.0)
    group = "activations/reservoir_states/stock_1.0"
    ds.to_netcdf(path, mode="a", group=group, engine="h5netcdf")
    with neurostore.open(path) as store:
        assert "stock_1.0" in store.ids()
        store.store(neurostore.reservoir_states(RESERVOIR, "ours", timestamp=1.0))
    numbers: dict[str, int] = {}

    def look(name: str, item: Any) -> None:
        if "_Netcdf4Dimid" in item.attrs:
            numbers[name] = int(item.attrs["_Netcdf4Dimid"])

    with h5py.File(path) as h5file:
        h5file.visititems(look)
    ours = {number for name, number in numbers.items() if "ours_1.0" in name}
    assert len(ours) == 2
    assert not ours & {number for name, number in numbers.items() if "ours_1.0" not in name}
