"""Recordings and models as they are: stored, selected by label, equal to their source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import neurostore


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with neurostore.open(tmp_path / "run.h5", durability="process") as opened:
        yield opened


def same(found: Any, wanted: np.ndarray[Any, Any]) -> None:
    """Equal in dtype, shape and every bit."""
    values = np.asarray(found)
    assert (values.dtype, values.shape) == (wanted.dtype, wanted.shape)
    assert values.tobytes() == np.ascontiguousarray(wanted).tobytes()


# -- FlyWire: half a million spikes of a model of the whole fly brain


@pytest.fixture(scope="module")
def fly(real_data: Path) -> dict[str, np.ndarray[Any, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(
        real_data / "flywire_brian2_sugarR.parquet", columns=["t", "trial", "flywire_id"]
    )
    return {name: table[name].to_numpy() for name in table.column_names}


def test_half_a_million_spikes(store: Any, fly: dict[str, np.ndarray[Any, Any]]) -> None:
    times, ids = fly["t"], fly["flywire_id"]
    assert len(times) == 511_566
    assert (np.diff(times) < 0).any()
    assert ids.min() > 2**53
    coords = {"trial": ("spike", fly["trial"])}
    record_id = store.store(neurostore.spike_train(times, ids, timestamp=0.0, coords=coords))
    ds = store.retrieve(record_id)
    same(ds["spike_times"], times)
    same(ds["neuron_ids"], ids)
    same(ds["trial"], fly["trial"])

    busy = np.unique(ids)[[3, 200, 440]]
    fresh = store.retrieve(record_id)
    picked = fresh.sel(spike_times=slice(0.25, 0.5), neuron_ids=busy)
    kept = (times >= 0.25) & (times <= 0.5) & np.isin(ids, busy)
    assert 0 < kept.sum() < 5_000
    same(picked["spike_times"], times[kept])
    same(picked["neuron_ids"], ids[kept])
    same(picked["trial"], fly["trial"][kept])
    same(fresh.sel(neuron_ids=int(busy[0]))["spike_times"], times[ids == busy[0]])
    assert fresh.sel(neuron_ids=int(busy[0]) + 1).sizes["spike"] == 0


def test_thirty_trials_as_a_ragged_range(store: Any, fly: dict[str, np.ndarray[Any, Any]]) -> None:
    trials = np.unique(fly["trial"])
    with store.batch():
        for trial in trials:
            mine = fly["trial"] == trial
            store.store(
                neurostore.spike_train(
                    fly["t"][mine], fly["flywire_id"][mine], timestamp=float(trial)
                )
            )
    ds = store.range("spike_train")
    order = np.argsort(fly["trial"], kind="stable")
    same(ds["spike_times"], fly["t"][order])
    same(ds["neuron_ids"], fly["flywire_id"][order])
    np.testing.assert_array_equal(ds["row_size"], np.unique(fly["trial"], return_counts=True)[1])
    one = int(fly["flywire_id"][0])
    picked = store.range("spike_train", 10, 19).sel(spike_times=slice(0, 0.1), neuron_ids=[one])
    rows = np.flatnonzero(
        (fly["trial"][order] >= 10)
        & (fly["trial"][order] <= 19)
        & (fly["t"][order] <= 0.1)
        & (fly["flywire_id"][order] == one)
    )
    same(picked["spike_times"], fly["t"][order][rows])
    found = picked["timestamp"].values[picked["record_index"].values]
    np.testing.assert_array_equal(found, fly["trial"][order][rows])


# -- the larva connectome


def test_a_connectome_as_a_labelled_snapshot(store: Any, real_data: Path) -> None:
    pre, post, weight = np.loadtxt(
        real_data / "larva_full_edgelist.csv", delimiter=",", unpack=True
    )
    labels = np.unique(np.concatenate([pre, post])).astype(np.int64)
    size = len(labels)
    assert (size, len(pre)) == (3_013, 111_243)
    rows, columns = np.searchsorted(labels, pre), np.searchsorted(labels, post)
    weights = np.zeros((size, size), np.float32)
    weights[rows, columns] = weight
    adjacency = weights > 0
    coords = {"pre": labels, "post": labels}
    record_id = store.store(
        neurostore.network_snapshot(
            adjacency=adjacency, weights=weights, timestamp="2023-03-10T00:00:00Z", coords=coords
        )
    )
    ds = store.retrieve(record_id)
    same(ds["weights"], weights)
    same(ds["adjacency"], adjacency)
    same(ds["pre"], labels)
    fresh = store.retrieve(record_id)
    assert fresh.sel(pre=29, post=8_419_602)["weights"].item() == 9.0
    chosen = labels[[5, 1000, 3012]]
    same(fresh["weights"].sel(pre=chosen), weights[[5, 1000, 3012]])
    same(fresh["adjacency"].sel(post=slice(0, 1000)), adjacency[:, labels <= 1000])
    assert store.info()["file_size"] < weights.nbytes / 20


# -- SONATA: voltages and spikes


def test_sonata_voltages(store: Any, real_data: Path) -> None:
    with h5py.File(real_data / "sonata_9cells_membrane_potential.h5", "r") as h5file:
        report = h5file["report/cortex"]
        voltages = report["data"][()]
        cells = report["mapping/node_ids"][()]
        start, _, step = report["mapping/time"][()]
    moments = start + step * np.arange(len(voltages))
    voltage = xr.DataArray(
        voltages,
        dims=("time", "neuron"),
        coords={"time": ("time", moments, {"units": "ms"}), "neuron": cells},
        name="states",
        attrs={"units": "mV"},
    )
    ds = voltage.to_dataset().assign_coords(timestamp=0.0)
    ds.attrs.update(kind="reservoir_states", reservoir_id="cortex")
    record_id = store.store(ds)
    back = store.retrieve(record_id)
    assert back["states"].dims == ("time", "neuron")
    same(back["states"], voltages)
    same(back["neuron"], cells)
    same(back["time"], moments)
    assert (back["states"].attrs["units"], back["time"].attrs["units"]) == ("mV", "ms")
    window = store.retrieve(record_id)["states"].sel(neuron=cells[4], time=slice(100.0, 200.0))
    same(window, voltages[(moments >= 100) & (moments <= 200), 4])

    turned = neurostore.reservoir_states(
        voltages.T, "turned", timestamp=0.0, coords={"time": moments, "neuron": cells}
    )
    again = store.retrieve(store.store(turned))
    assert again["states"].dims == ("neuron", "time")
    same(again["states"], voltages.T)
    nearest = again["states"].sel(time=123.4567, method="nearest")
    same(nearest, voltages[np.abs(moments - 123.4567).argmin()])


def test_sonata_spikes_in_milliseconds(store: Any, real_data: Path) -> None:
    with h5py.File(real_data / "bmtk_lgn_spikes.h5", "r") as h5file:
        times = h5file["spikes/lgn/timestamps"][()]
        nodes = h5file["spikes/lgn/node_ids"][()]
    assert nodes.dtype == np.uint32
    record_id = store.store(neurostore.spike_train(times, nodes, timestamp=0.0, units="ms"))
    ds = store.retrieve(record_id)
    assert ds["spike_times"].attrs["units"] == "ms"
    picked = ds.sel(spike_times=slice(1000, 1500), neuron_ids=range(100, 110))
    kept = (times >= 1000) & (times <= 1500) & (nodes >= 100) & (nodes < 110)
    assert kept.any()
    same(picked["spike_times"], times[kept])
    same(picked["neuron_ids"], nodes[kept])
    same(store.retrieve(record_id)["neuron_ids"], nodes)
    same(store.retrieve(record_id)["spike_times"], times)


# -- Brian2: synapses and states of the CUBA network


@pytest.fixture(scope="module")
def cuba(real_data: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(real_data / "brian2_cuba_4000.npz") as arrays:
        return {name: arrays[name] for name in arrays}


def test_brian_synapses(store: Any, cuba: dict[str, np.ndarray[Any, Any]]) -> None:
    coords = {"pre": ("synapse", cuba["pre"]), "post": ("synapse", cuba["post"])}
    made = neurostore.plasticity_trace(
        cuba["weight_mV"], "static", timestamp=0.0, coords=coords, metadata={"unit": "mV"}
    )
    ds = store.retrieve(store.store(made))
    same(ds["changes"], cuba["weight_mV"])
    same(ds["pre"], cuba["pre"])
    same(ds["post"], cuba["post"])
    fresh = store.retrieve("static_0.0").set_xindex("post")
    chosen = fresh.sel(post=17)
    same(chosen["changes"], cuba["weight_mV"][cuba["post"] == 17])
    assert ds.neuro.metadata == {"unit": "mV"}


def test_brian_states(store: Any, cuba: dict[str, np.ndarray[Any, Any]]) -> None:
    coords = {"time": cuba["state_t"], "neuron": cuba["state_ids"]}
    for name in ("v_mV", "ge_mV", "gi_mV"):
        store.store(neurostore.reservoir_states(cuba[name], name, timestamp=0.0, coords=coords))
    assert store.ids("reservoir_states", name="ge_mV") == ["ge_mV_0.0"]
    for name in ("v_mV", "ge_mV", "gi_mV"):
        same(store.retrieve(f"{name}_0.0")["states"], cuba[name])
    joined = store.range("reservoir_states")
    assert joined["reservoir_id"].values.tolist() == ["v_mV", "ge_mV", "gi_mV"]
    part = joined["states"].sel(neuron=cuba["state_ids"][[2, 50]], time=slice(0.1, 0.2))
    inside = (cuba["state_t"] >= 0.1) & (cuba["state_t"] <= 0.2)
    for number, name in enumerate(("v_mV", "ge_mV", "gi_mV")):
        same(part[number], cuba[name][[2, 50]][:, inside])
    trace = neurostore.homeostatic_trace(cuba["final_v_mV"], "membrane", timestamp=1.0)
    same(store.retrieve(store.store(trace))["changes"], cuba["final_v_mV"])


def test_brian_spikes(store: Any, cuba: dict[str, np.ndarray[Any, Any]]) -> None:
    times, cells = cuba["spike_t"], cuba["spike_i"]
    ds = store.retrieve(store.store(neurostore.spike_train(times, cells, timestamp=0.0)))
    same(ds["spike_times"], times)
    late = ds.sel(spike_times=slice(float(np.median(times)), None))
    same(late["neuron_ids"], cells[times >= np.median(times)])


# -- Spyx: the training of a network in JAX


@pytest.fixture(scope="module")
def spyx(real_data: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(real_data / "spyx_digits_training.npz") as arrays:
        return {name: arrays[name] for name in arrays}


def test_weights_over_epochs(store: Any, spyx: dict[str, np.ndarray[Any, Any]]) -> None:
    kernels = spyx["l1_kernel"]
    with store.batch():
        for epoch, kernel in enumerate(kernels):
            snapshot = neurostore.network_snapshot(weights=kernel, timestamp=float(epoch))
            store.store(snapshot)
            if epoch:
                change = kernel - kernels[epoch - 1]
                store.store(neurostore.plasticity_trace(change, "sgd", timestamp=float(epoch)))
    every = store.range("network_snapshot")
    assert every["weights"].dims == ("record", "pre", "post")
    same(every["weights"], kernels)
    few = store.range("network_snapshot", 3, 6)
    same(few["weights"].isel(pre=5), kernels[3:7, 5])
    same(few.sel(timestamp=4.0)["weights"], kernels[4])
    same(store.range("plasticity_trace", name="sgd")["changes"], np.diff(kernels, axis=0))
    for epoch in (0, 15):
        same(store.retrieve(f"snapshot_{float(epoch)}")["weights"], kernels[epoch])


def test_bool_spikes_and_half_precision_potentials(
    store: Any, spyx: dict[str, np.ndarray[Any, Any]]
) -> None:
    layers = {name: spyx[name] for name in ("input_spikes", "hidden_spikes", "hidden_v")}
    assert [layers[name].dtype for name in layers] == [np.bool_, np.bool_, np.float16]
    coords = {"sample": np.arange(32)}
    record_id = store.store(neurostore.layer_outputs(layers, timestamp=1.0, coords=coords))
    ds = store.retrieve(record_id)
    for name, values in layers.items():
        same(ds[name], values)
    fresh = store.retrieve(record_id)
    same(fresh["hidden_v"].sel(sample=slice(4, 6)), spyx["hidden_v"][4:7])
    same(fresh["hidden_spikes"].isel(hidden_spikes_unit=9), spyx["hidden_spikes"][:, 9])
    store.store(neurostore.layer_outputs(layers, timestamp=2.0, coords=coords))
    both = store.range("layer_outputs", name="input_spikes,hidden_spikes,hidden_v")
    same(both["hidden_v"].sel(sample=31).isel(record=1), spyx["hidden_v"][31])
    assert both["hidden_spikes"].dtype == np.bool_


def test_a_readout_with_its_labels(store: Any, spyx: dict[str, np.ndarray[Any, Any]]) -> None:
    coords = {"digit": ("out_unit", spyx["labels"])}
    made = neurostore.layer_outputs({"out": spyx["out_readout"]}, timestamp=0.0, coords=coords)
    ds = store.retrieve(store.store(made))
    same(ds["out"], spyx["out_readout"])
    sevens = ds.set_xindex("digit").sel(digit=7)
    same(sevens["out"], spyx["out_readout"][:, spyx["labels"] == 7])


def test_metrics_over_epochs(store: Any, spyx: dict[str, np.ndarray[Any, Any]]) -> None:
    columns = {name: spyx[f"metric_{name}"] for name in ("loss", "acc", "rate", "test_acc")}
    tested = range(0, 15, 5)
    for epoch in range(15):
        values = {
            name: column[epoch]
            for name, column in columns.items()
            if name != "test_acc" or epoch in tested
        }
        store.store(neurostore.performance_metrics(values, "digits", timestamp=float(epoch)))
    ds = store.range("performance_metrics", name="digits")
    assert ds["metric"].values.tolist() == ["loss", "acc", "rate", "test_acc"]
    for name in ("loss", "acc", "rate"):
        same(ds["values"].sel(metric=name), columns[name].astype(np.float64))
    expected = np.where(np.isin(np.arange(15), tested), columns["test_acc"], np.nan)
    np.testing.assert_array_equal(ds["values"].sel(metric="test_acc"), expected)
    last = ds.sel(timestamp=slice(10, None), metric="loss")["values"]
    same(last, columns["loss"][10:].astype(np.float64))
