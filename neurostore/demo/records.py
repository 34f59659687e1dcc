"""What a trial of the demo is as records: one labelled Dataset per kind.

Timestamps are seconds of model time since the experiment began; times inside a record are seconds
since its timestamp. Nothing is stored here.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from neurostore.builders import build
from neurostore.demo.experiment import Trial
from neurostore.demo.network import Liquid, LiquidState, Parameters
from neurostore.demo.task import CLASSES

__all__ = ["HELD_OUT", "TRAINING", "snapshot", "trial_records", "unpack_input"]

TRAINING = "pattern classification, training"
HELD_OUT = "pattern classification, held out"


def trial_records(liquid: Liquid, trial: Trial) -> list[xr.Dataset]:
    """Return the records of one trial; held-out ones have no learning traces."""
    records = [
        _spikes(liquid.parameters, trial),
        _input(liquid.parameters, trial),
        _reservoir(liquid.parameters, trial),
        _layers(liquid.parameters, trial),
        _attention(trial),
        _performance(liquid.parameters, trial),
    ]
    return records + (_learning(liquid, trial) if trial.training else [])


def snapshot(liquid: Liquid, state: LiquidState, start: float) -> xr.Dataset:
    """Return the whole network as it stands at ``start``, in seconds."""
    columns = {
        "potential": state.potential,
        "excitatory drive": state.drive_excitatory,
        "inhibitory drive": state.drive_inhibitory,
        "threshold": state.threshold,
    }
    ids = np.arange(liquid.parameters.neurons)
    labels = {"pre": ids, "post": ids, "state": list(columns)}
    ds = build(
        "network_snapshot",
        {
            "adjacency": liquid.wiring.adjacency,
            "weights": liquid.weights(state),
            "states": np.stack([np.asarray(c) for c in columns.values()], axis=1),
        },
        timestamp=start,
        details={"model": "leaky integrate-and-fire", "step_ms": liquid.parameters.step},
        coords=_neurons(liquid.parameters) | labels,
    )
    ds["weights"].attrs["units"] = ds["states"].attrs["units"] = "mV"
    return ds


def unpack_input(ds: xr.Dataset) -> xr.Dataset:
    """Return a stored input raster as the spike train that it packs.

    Parameters
    ----------
    ds : Dataset
        A ``compressed_spike_train`` of the demo.
    """
    how = json.loads(ds.attrs["compression_params"])
    bits = np.unpackbits(ds["data"].values, axis=0, count=how["shape"][0])
    step, channel = np.nonzero(bits)
    return build(
        "spike_train",
        {"spike_times": step * how["step_ms"] / 1000.0, "neuron_ids": channel},
        timestamp=float(ds["timestamp"]),
    )


def _neurons(p: Parameters) -> dict[Hashable, Any]:
    types = ["exc"] * p.excitatory + ["inh"] * p.inhibitory
    return {"neuron": np.arange(p.neurons), "cell_type": ("neuron", types)}


def _spikes(p: Parameters, trial: Trial) -> xr.Dataset:
    step, neuron = np.nonzero(trial.record.spikes)
    ds = build(
        "spike_train",
        {
            "spike_times": np.round((step + 1) * p.step / 1000.0, 6),
            "neuron_ids": neuron,
            "spike_amplitudes": trial.record.peak[step, neuron],
        },
        timestamp=trial.start,
        details={"pattern": CLASSES[trial.label], "training": trial.training},
    )
    ds["spike_amplitudes"].attrs.update(long_name="potential at the spike", units="mV")
    return ds


def _input(p: Parameters, trial: Trial) -> xr.Dataset:
    return build(
        "compressed_spike_train",
        {"data": np.packbits(trial.inputs, axis=0)},
        timestamp=trial.start,
        details={
            "algorithm": "numpy.packbits",
            "axis": 0,
            "shape": trial.inputs.shape,
            "dims": ["step", "channel"],
            "step_ms": p.step,
            "pattern": CLASSES[trial.label],
        },
    )


def _reservoir(p: Parameters, trial: Trial) -> xr.Dataset:
    liquid = trial.record.liquid
    when = np.round((np.arange(len(liquid)) + 1) * p.sample_every * p.step / 1000.0, 6)
    ds = build(
        "reservoir_states",
        {"states": np.ascontiguousarray(liquid.T)},
        name="liquid",
        timestamp=trial.start,
        details={"tau_ms": p.tau_liquid},
        coords=_neurons(p) | {"time": ("time", when, _SINCE_START)},
    )
    ds["states"].attrs.update(long_name="spikes, low-pass filtered", units="1")
    return ds


_SINCE_START = {"long_name": "time since the trial began", "units": "s"}


def _layers(p: Parameters, trial: Trial) -> xr.Dataset:
    edges = np.rint(trial.sample_times * 1000.0 / p.step).astype(int)
    seen = np.diff(np.cumsum(trial.inputs, axis=0)[edges - 1], axis=0, prepend=0)
    return build(
        "layer_outputs",
        {
            "layers": {
                "input": seen.astype(np.uint8),
                "liquid": trial.samples,
                "readout": trial.answer.evidence,
            }
        },
        timestamp=trial.start,
        details={"input": "spikes since the previous sample", "readout": "evidence per class"},
        coords={
            "sample": ("sample", trial.sample_times, _SINCE_START),
            "readout_unit": list(CLASSES),
        },
    )


def _attention(trial: Trial) -> xr.Dataset:
    ds = build(
        "attention_maps",
        {"maps": trial.answer.attention},
        name="readout",
        timestamp=trial.start,
        details={"shown": CLASSES[trial.label]},
        coords={"query": list(CLASSES), "key": ("key", trial.sample_times, _SINCE_START)},
    )
    ds["maps"].attrs.update(long_name="weight of a sample in a class's score", units="1")
    return ds


def _performance(p: Parameters, trial: Trial) -> xr.Dataset:
    rates = trial.record.spikes.mean(axis=0) * 1000.0 / p.step
    return build(
        "performance_metrics",
        {
            "values": {
                "accuracy": trial.accuracy,
                "correct": trial.correct,
                "loss": trial.answer.loss,
                "rate_exc_hz": rates[: p.excitatory].mean(),
                "rate_inh_hz": rates[p.excitatory :].mean(),
            }
        },
        name=TRAINING if trial.training else HELD_OUT,
        timestamp=trial.start,
        details={
            "shown": CLASSES[trial.label],
            "answered": CLASSES[int(np.argmax(trial.answer.probability))],
        },
    )


def _learning(liquid: Liquid, trial: Trial) -> list[xr.Dataset]:
    wiring, before, after = liquid.wiring, trial.before, trial.after
    plasticity = build(
        "plasticity_trace",
        {"changes": np.asarray(after.weights) - np.asarray(before.weights)},
        name="stdp",
        timestamp=trial.start,
        coords={"pre_id": ("synapse", wiring.pre), "post_id": ("synapse", wiring.post)},
    )
    homeostasis = build(
        "homeostatic_trace",
        {"changes": np.asarray(after.threshold) - np.asarray(before.threshold)},
        name="threshold",
        timestamp=trial.start,
        coords=_neurons(liquid.parameters),
    )
    for ds in (plasticity, homeostasis):
        ds["changes"].attrs["units"] = "mV"
    return [plasticity, homeostasis]
