"""To and from other libraries: the real library on both sides, real files where there are any."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore.errors import NotAStoreError, StoreExistsError, ValidationError

same = np.testing.assert_array_equal


def stored(path: Path, ds: xr.Dataset) -> xr.Dataset:
    """The record after a way through a file."""
    with neurostore.open(path / "neighbours.h5") as store:
        return store.retrieve(store.store(ds)).load()


def train(**more: Any) -> xr.Dataset:
    ds: xr.Dataset = neurostore.spike_train(
        [0.30, 0.10, 0.45, 0.2], [2, 9, 2, 5], timestamp=1.0, **more
    )
    return ds


def states() -> xr.Dataset:
    moments = ("time", [0.0, 0.5, 1.0], {"units": "s"})
    ds: xr.Dataset = neurostore.reservoir_states(
        np.arange(6.0).reshape(2, 3), "r", timestamp=1.0, coords={"time": moments, "neuron": [4, 7]}
    )
    return ds


def spikes_of(ds: xr.Dataset) -> dict[int, list[float]]:
    """Sorted times by neuron."""
    pairs = zip(ds["neuron_ids"].values.tolist(), ds["spike_times"].values.tolist(), strict=True)
    found: dict[int, list[float]] = {}
    for neuron, moment in sorted(pairs):
        found.setdefault(neuron, []).append(moment)
    return found


# -- SONATA


def test_sonata_spikes_of_a_real_file(tmp_path: Path, real_data: Path) -> None:
    from neurostore.interop import sonata

    ds = stored(tmp_path, sonata.read_spikes(real_data / "bmtk_lgn_spikes.h5"))
    with h5py.File(real_data / "bmtk_lgn_spikes.h5") as h5file:
        same(ds["spike_times"], h5file["spikes/lgn/timestamps"][()])
        same(ds["neuron_ids"], h5file["spikes/lgn/node_ids"][()])
    assert ds["neuron_ids"].dtype == np.uint32
    assert ds["spike_times"].attrs["units"] == "ms"
    assert ds.neuro.metadata == {"sonata": {"population": "lgn"}}


def test_sonata_report_of_a_real_file(tmp_path: Path, real_data: Path) -> None:
    from neurostore.interop import sonata

    source = real_data / "sonata_9cells_membrane_potential.h5"
    ds = stored(tmp_path, sonata.read_report(source))
    with h5py.File(source) as h5file:
        same(ds["states"], h5file["report/cortex/data"][()])
        same(ds["neuron"], h5file["report/cortex/mapping/node_ids"][()])
        start, end, step = h5file["report/cortex/mapping/time"][()]
    assert ds["states"].dims == ("time", "neuron")
    assert float(ds["time"][0]) == start
    assert float(ds["time"][-1]) == pytest.approx(end - step)
    assert ds.attrs["reservoir_id"] == "cortex"

    sonata.write_report(ds, tmp_path / "report.h5")
    again = sonata.read_report(tmp_path / "report.h5")
    same(again["states"], ds["states"])
    np.testing.assert_allclose(again["time"], ds["time"], rtol=1e-12)


def test_what_is_written_is_read_by_libsonata(tmp_path: Path) -> None:
    libsonata = pytest.importorskip("libsonata")
    from neurostore.interop import sonata

    ds = train(units="ms")
    sonata.write_spikes(ds, tmp_path / "spikes.h5", population="p")
    found = libsonata.SpikeReader(str(tmp_path / "spikes.h5"))["p"].get_dict()
    same(found["node_ids"], ds["neuron_ids"])
    same(found["timestamps"], ds["spike_times"])

    single = states().astype(np.float32)  # all that libsonata reads
    sonata.write_report(single, tmp_path / "report.h5")
    report = libsonata.ElementReportReader(str(tmp_path / "report.h5"))["r"]
    frame = report.get(node_ids=[4, 7])
    same(frame.data, np.arange(6, dtype=np.float32).reshape(2, 3).T)
    same(frame.times, [0.0, 0.5, 1.0])
    assert report.time_units == "s"


def test_sonata_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    from neurostore.interop import sonata

    path = tmp_path / "no.h5"
    named = neurostore.spike_train([0.1], ["a"], timestamp=0.0)
    loud = neurostore.spike_train([0.1], [1], timestamp=0.0, spike_amplitudes=[2.0])
    uneven = states().assign_coords(time=[0.0, 0.1, 1.0])
    for ds, word in ((named, "whole numbers"), (loud, "spike_amplitudes"), (states(), "kind")):
        with pytest.raises(ValidationError, match=word):
            sonata.write_spikes(ds, path, population="p")
    with pytest.raises(ValidationError, match="evenly"):
        sonata.write_report(uneven, path)
    assert not path.exists()
    path.write_text("taken")
    with pytest.raises(StoreExistsError):
        sonata.write_spikes(train(), path, population="p")
    with pytest.raises(NotAStoreError):
        sonata.read_spikes(path)
    sonata.write_spikes(train(), tmp_path / "one.h5", population="p")
    with pytest.raises(ValidationError, match="expected one of p"):
        sonata.read_spikes(tmp_path / "one.h5", "q")


# -- Neo


def test_neo_trains_keep_units_ids_and_silence(tmp_path: Path) -> None:
    neo = pytest.importorskip("neo")
    from neurostore.interop.neo import from_trains, to_trains

    big = 720575940622695448
    given = [
        neo.SpikeTrain([3.25, 0.5], units="ms", t_stop=10.0, neuron_id=big),
        neo.SpikeTrain([], units="ms", t_start=-1.0, t_stop=10.0, neuron_id=3),
    ]
    ds = stored(tmp_path, from_trains(given, timestamp=5.0))
    assert ds["spike_times"].attrs["units"] == "ms"
    same(ds["neuron_ids"], [big, big])
    back = to_trains(ds)
    for one, two in zip(given, back, strict=True):
        same(one.magnitude, two.magnitude)
        assert (one.units, one.t_start, one.t_stop) == (two.units, two.t_start, two.t_stop)
        assert one.annotations["neuron_id"] == two.annotations["neuron_id"]


def test_neo_refuses_mixed_units_and_repeated_ids() -> None:
    neo = pytest.importorskip("neo")
    from neurostore.interop.neo import from_trains

    ms, s = (neo.SpikeTrain([0.5], units=unit, t_stop=1.0) for unit in ("ms", "s"))
    with pytest.raises(ValidationError, match="rescale"):
        from_trains([ms, s])
    twice = [neo.SpikeTrain([0.5], units="s", t_stop=1.0, neuron_id=1) for _ in range(2)]
    with pytest.raises(ValidationError, match="two trains"):
        from_trains(twice)


def test_neo_block_goes_through_a_store_and_back(tmp_path: Path) -> None:
    neo = pytest.importorskip("neo")
    import quantities as pq

    from neurostore.interop.neo import from_block, to_block

    block = neo.Block()
    segment = neo.Segment()
    block.segments.append(segment)
    segment.spiketrains.append(neo.SpikeTrain([1.0, 2.0], units="s", t_stop=3.0))
    data = np.random.default_rng(0).normal(size=(5, 2))
    segment.irregularlysampledsignals.append(
        neo.IrregularlySampledSignal(np.arange(5.0), data, units="mV", time_units="ms")
    )
    segment.analogsignals.append(neo.AnalogSignal(data, units="mV", sampling_rate=1 * pq.kHz))
    tree = from_block(block, timestamp=2.0)
    ids = tree.neuro.store(tmp_path / "block.h5")
    with neurostore.open(tmp_path / "block.h5", mode="r") as store:
        kept = {path: store.retrieve(record_id).load() for path, record_id in ids.items()}
    back = to_block(xr.DataTree.from_dict(kept))
    sampled, signal = back.segments[0].irregularlysampledsignals
    same(
        sampled.times.rescale("s").magnitude, segment.analogsignals[0].times.rescale("s").magnitude
    )
    same(signal.magnitude, data)
    same(signal.times.magnitude, np.arange(5.0))
    assert signal.units.dimensionality.string == "mV"
    assert signal.times.units.dimensionality.string == "ms"
    same(back.segments[0].spiketrains[0].magnitude, [1.0, 2.0])


# -- pynapple


def test_pynapple_group_and_frame(tmp_path: Path) -> None:
    nap = pytest.importorskip("pynapple")
    from neurostore.interop import pynapple

    support = nap.IntervalSet(start=0.0, end=10.0)
    group = nap.TsGroup(
        {7: nap.Ts(np.array([0.5, 2.0])), 12: nap.Ts(np.array([]))}, time_support=support
    )
    ds = stored(tmp_path, pynapple.from_group(group, timestamp=1.0))
    assert spikes_of(ds) == {7: [0.5, 2.0]}
    back = pynapple.to_group(ds)
    assert list(back.keys()) == [7, 12]
    same(back[7].times(), [0.5, 2.0])
    same(back.time_support.values, support.values)

    frame = nap.TsdFrame(t=np.arange(3.0), d=np.arange(6.0).reshape(3, 2), columns=[4, 9])
    ds = stored(tmp_path, pynapple.from_frame(frame, "rates"))
    again = pynapple.to_frame(ds)
    same(again.values, frame.values)
    same(again.times(), frame.times())
    same(again.columns, frame.columns)
    with pytest.raises(ValidationError, match="seconds"):
        pynapple.to_group(train(units="ms"))


# -- NWB


def test_nwb_units_and_series(tmp_path: Path) -> None:
    pytest.importorskip("pynwb")
    from neurostore.interop import nwb

    loud = neurostore.spike_train(
        [0.30, 0.10, 0.45], [2, 9, 2], timestamp=1.0, spike_amplitudes=[1.0, 2.0, 3.0]
    )
    nwb.write([loud, states()], tmp_path / "run.nwb")
    tree = nwb.read(tmp_path / "run.nwb")
    assert spikes_of(tree["units"].to_dataset()) == {2: [0.3, 0.45], 9: [0.1]}
    same(np.sort(tree["units"]["spike_amplitudes"]), [1.0, 2.0, 3.0])
    same(tree["r"]["states"].transpose("neuron", "time"), np.arange(6.0).reshape(2, 3))
    same(tree["r"]["time"], [0.0, 0.5, 1.0])
    assert float(tree["r"]["timestamp"]) == 1.0
    assert set(tree.neuro.store(tmp_path / "nwb.h5")) == {"/units", "/r"}


def test_nwb_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    pytest.importorskip("pynwb")
    from neurostore.interop import nwb

    path = tmp_path / "no.nwb"
    later = train().assign_coords(timestamp=2.0)
    trace = neurostore.homeostatic_trace([0.1], "m", timestamp=1.0)
    for records, word in (
        (train(units="ms"), "seconds"),
        ([train(), train()], "two spike trains"),
        ([train(), later], "one session"),
        (trace, "homeostatic_trace"),
    ):
        with pytest.raises(ValidationError, match=word):
            nwb.write(records, path)
    assert not path.exists()


# -- Brian2


def brian2_or_skip() -> Any:
    """Brian2, where it can be imported: 2.9 cannot, beside NumPy 2.4 and newer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, on import
        try:
            return importlib.import_module("brian2")
        except (ImportError, AttributeError) as error:
            pytest.skip(f"Brian2 cannot be imported: {error}")


def test_brian2_monitors(tmp_path: Path) -> None:
    brian2 = brian2_or_skip()
    from neurostore.interop import brian2 as ours

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        brian2.prefs.codegen.target = "numpy"
        group = brian2.SpikeGeneratorGroup(3, [0, 2, 1], [1, 2, 3] * brian2.ms)
        leaky = brian2.NeuronGroup(3, "dv/dt = -v / (10*ms) : volt")
        leaky.v = [1, 2, 3] * brian2.mV
        wires = brian2.Synapses(group, leaky, "w : volt", on_pre="v += w")
        wires.connect(i=[0, 2], j=[1, 1])
        wires.w = [3, 4] * brian2.mV
        spikes, voltage = brian2.SpikeMonitor(group), brian2.StateMonitor(leaky, "v", record=[0, 2])
        brian2.Network(group, leaky, wires, spikes, voltage).run(5 * brian2.ms)
        found = [
            stored(tmp_path, ds)
            for ds in (
                ours.from_spikes(spikes),
                ours.from_states(voltage, "v"),
                ours.from_synapses(wires, "w", "static"),
            )
        ]
        generator = ours.to_spike_generator(found[0])
        same(found[0]["spike_times"], spikes.t_[:])
        same(found[0]["neuron_ids"], [0, 2, 1])
        same(found[1]["states"], np.asarray(voltage.v_))
        same(found[1]["neuron"], [0, 2])
        assert found[1]["states"].attrs["units"] == "V"
        same(found[2]["changes"], np.asarray(wires.w_[:]))
        same(found[2]["post"], [1, 1])
        assert len(generator) == 3
        timed = ours.to_timed_array(found[1])
        same(np.asarray(timed.values), np.asarray(voltage.v_).T)
    with pytest.raises(ValidationError, match="not 'u'"):
        ours.from_states(voltage, "u")


# -- NIR


def test_nir_graph_goes_through_a_store_and_back(tmp_path: Path) -> None:
    nir = pytest.importorskip("nir")
    from neurostore.interop.nir import from_graph, to_graph

    rng = np.random.default_rng(0)
    ones = np.ones(3)
    graph = nir.NIRGraph.from_list(
        nir.Affine(weight=rng.normal(size=(3, 2)), bias=ones),
        nir.LIF(tau=ones * 0.02, r=ones, v_leak=ones * 0, v_threshold=ones),
        nir.Linear(weight=rng.normal(size=(1, 3))),
    )
    tree = from_graph(graph, timestamp=3.0)
    ids = tree.neuro.store(tmp_path / "nir.h5")
    with neurostore.open(tmp_path / "nir.h5", mode="r") as store:
        back = to_graph({path: store.retrieve(key).load() for path, key in ids.items()})
    assert sorted(back.edges) == sorted(graph.edges)
    assert set(back.nodes) == set(graph.nodes)
    for name, node in graph.nodes.items():
        assert type(back.nodes[name]) is type(node)
        for key in ("weight", "bias", "tau", "v_threshold"):
            if hasattr(node, key):
                same(getattr(back.nodes[name], key), getattr(node, key))


def test_nir_refuses_a_convolution() -> None:
    nir = pytest.importorskip("nir")
    from neurostore.interop.nir import from_graph

    conv = nir.Conv1d(
        input_shape=8, weight=np.ones((1, 1, 3)), stride=1, padding=0, dilation=1, groups=1,
        bias=np.zeros(1),
    )  # fmt: skip
    with pytest.raises(ValidationError, match="Conv1d"):
        from_graph(nir.NIRGraph.from_list(conv))
