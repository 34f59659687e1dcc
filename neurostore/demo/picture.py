"""The demo's picture, drawn from the file alone: the input, the liquid, and what was learnt.

Panels are put together here; how one record is drawn is known by ``neurostore.plot``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neurostore import plot
from neurostore.demo import records
from neurostore.demo.experiment import Experiment
from neurostore.demo.task import CLASSES
from neurostore.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

EXCITATORY, INHIBITORY, NEUTRAL = "#1f5fa8", "#c8442c", "#444444"


def draw(store: Store, experiment: Experiment, path: str | Path) -> None:
    """Draw the first held-out trial, the weights before and after, and the accuracy; PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 11.5), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    rows: Any = figure.subfigures(3, 1, height_ratios=[1.25, 1.0, 0.85])
    top, middle, bottom = rows
    shown = round(experiment.training * experiment.design.trial_seconds, 6)
    _draw_trial(top, store, experiment, shown)
    _draw_weights(middle, store, experiment)
    accuracy, attention = bottom.subplots(1, 2, width_ratios=[1.5, 1.0])
    _draw_accuracy(accuracy, store)
    _draw_attention(bottom, attention, store, shown)
    figure.savefig(str(path), format="png")


def _only(store: Store, kind: str, start: float, name: str | None = None) -> xr.Dataset:
    """Return the record of ``kind`` at ``start``."""
    return store.retrieve(store.ids(kind, start, start, name=name)[0])


def _draw_trial(figure: Any, store: Store, experiment: Experiment, start: float) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, 2.4])
    fed = _only(store, "compressed_spike_train", start)
    plot.raster(records.unpack_input(fed), above, color=NEUTRAL)
    spikes = _only(store, "spike_train", start)
    first = experiment.parameters.excitatory
    for label, ids, color in (
        ("excitatory", slice(0, first - 1), EXCITATORY),
        ("inhibitory", slice(first, None), INHIBITORY),
    ):
        plot.raster(spikes.sel(neuron_ids=ids), below, color=color, label=label)
    above.set(xlabel="", ylabel="input channel", title=f"A held-out trial, {start:g} s")
    below.set(
        xlabel="time since the trial began (s)",
        ylabel="liquid neuron",
        xlim=(0.0, experiment.design.trial_seconds),
    )
    below.legend(loc="upper right", markerscale=2.0)


def _draw_weights(figure: Any, store: Store, experiment: Experiment) -> None:
    ids = store.ids("network_snapshot")
    panels = figure.subplots(1, 3, width_ratios=[1.0, 1.0, 0.95])
    excitatory = slice(0, experiment.parameters.excitatory)
    drawn = []
    for ax, record, title in zip(panels, (ids[0], ids[-1]), ("before", "after"), strict=False):
        snapshot = store.retrieve(record).isel(pre=excitatory, post=excitatory).load()
        weights = snapshot["weights"].where(snapshot["adjacency"] > 0)
        image = plot.matrix(weights, ax, cmap="viridis", vmin=0.0, vmax=_top(experiment))
        ax.set(
            title=f"Excitatory weights {title} ({float(snapshot['timestamp']):g} s)",
            xlabel="postsynaptic neuron",
            ylabel="presynaptic neuron",
        )
        drawn.append(weights)
    figure.colorbar(image, ax=panels[:2], label="weight (mV)", shrink=0.9)
    _draw_distribution(panels[2], drawn, _top(experiment))


def _top(experiment: Experiment) -> float:
    return experiment.parameters.weight_max


def _draw_distribution(ax: Axes, weights: list[xr.DataArray], top: float) -> None:
    bins = np.linspace(0.0, top, 41).tolist()
    for da, label, color in zip(weights, ("before", "after"), ("#b0b0b0", EXCITATORY), strict=True):
        values = da.values[np.isfinite(da.values)]
        ax.hist(values, bins=bins, histtype="stepfilled", alpha=0.6, color=color, label=label)
    ax.set(title="STDP spreads them", xlabel="weight (mV)", ylabel="synapses", xlim=(0.0, top))
    ax.legend()


def _draw_accuracy(ax: Axes, store: Store) -> None:
    for task_type, label, color in (
        (records.TRAINING, "training, last 20 trials", EXCITATORY),
        (records.HELD_OUT, "held out, all so far", INHIBITORY),
    ):
        values = store.range("performance_metrics", name=task_type)["values"]
        accuracy = 100.0 * values.sel(metric="accuracy")
        accuracy = accuracy.assign_coords(record=values["timestamp"].values)
        plot.curve(accuracy.rename("accuracy"), ax, label=label, color=color, lw=1.8)
    chance = 100.0 / len(CLASSES)
    ax.axhline(chance, color=NEUTRAL, lw=1.0, ls=":", label="chance")
    ax.set(title="Readout", xlabel="model time (s)", ylabel="accuracy (%)", ylim=(0.0, 103.0))
    ax.legend(loc="lower right")


def _draw_attention(figure: Any, ax: Axes, store: Store, start: float) -> None:
    record = _only(store, "attention_maps", start, "readout")
    maps, shown = record["maps"], json.loads(record.attrs["metadata"])["shown"]
    image = plot.matrix(maps, ax, cmap="magma", vmin=0.0)
    ax.set(
        title=f"Attention over the trial (shown: {shown})",
        xlabel="time since the trial began (s)",
        ylabel="pattern",
    )
    figure.colorbar(image, ax=ax, label="attention")
