"""Neo: spike trains and analog signals, with their units.

A list of Neo spike trains (or a segment's) is one ``spike_train`` record; an analog signal is one
``reservoir_states`` record; a block is a tree of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neurostore import builders
from neurostore.errors import ValidationError
from neurostore.optional import needs
from neurostore.times import TimeLike

__all__ = ["from_block", "from_signal", "from_trains", "to_block", "to_signal", "to_trains"]

#: Annotation of a Neo spike train that holds the neuron's id.
ID = "neuron_id"


def from_trains(trains: Any, *, timestamp: TimeLike = 0.0) -> xr.Dataset:
    """Return Neo spike trains as one ``spike_train``.

    Parameters
    ----------
    trains
        ``neo.SpikeTrain`` objects of one unit.  The id of a neuron is the annotation
        ``neuron_id``, or else the position in the list.
    timestamp
        Moment that the spike times count from.

    Returns
    -------
    xarray.Dataset
        Spikes train by train, in Neo's unit; `t_start` and `t_stop` of each neuron, and neurons
        without a spike, stand in the metadata.

    Raises
    ------
    ValidationError
        The trains have different units, or two have one id.

    Examples
    --------
    >>> import neo
    >>> train = neo.SpikeTrain([0.5, 2.0], t_stop=3.0, units="ms", neuron_id=7)
    >>> ds = from_trains([train])
    >>> ds.spike_times.values, ds.spike_times.units, ds.neuron_ids.values
    (array([0.5, 2. ]), 'ms', array([7, 7]))
    """
    listed = list(trains)
    unit = _one_unit(listed)
    ids = [train.annotations.get(ID, number) for number, train in enumerate(listed)]
    if len(set(ids)) < len(ids):
        raise ValidationError(f"neuron ids {ids}: one id for two trains; expected one a neuron")
    labels = np.array(ids) if ids else np.empty(0, np.int64)
    lengths = [len(train) for train in listed]
    columns = [np.asarray(train.magnitude) for train in listed]
    spans = [[_bound(train.t_start, unit), _bound(train.t_stop, unit)] for train in listed]
    return builders.build(
        "spike_train",
        {
            "spike_times": np.concatenate(columns) if columns else np.empty(0),
            "neuron_ids": np.repeat(labels, lengths),
        },
        timestamp=timestamp,
        units=unit,
        details={"neo": {"neuron_ids": labels.tolist(), "spans": spans}},
    )


def _one_unit(trains: Sequence[Any]) -> str:
    units = list(dict.fromkeys(train.units.dimensionality.string for train in trains))
    if len(units) > 1:
        raise ValidationError(
            f"trains in {' and '.join(units)}; expected one unit: train.rescale({units[0]!r})"
        )
    return units[0] if units else "s"


def _bound(moment: Any, unit: str) -> float:
    return float(moment.rescale(unit).magnitude)


def to_trains(ds: xr.Dataset) -> list[Any]:
    """Return a ``spike_train`` as Neo spike trains, one for each neuron.

    Times stay in the record's unit and order; ``t_start`` and ``t_stop`` are those that came from
    Neo, or else span the spikes.

    Raises
    ------
    ValidationError
        It is no spike train.

    Examples
    --------
    >>> import neurostore
    >>> ds = neurostore.spike_train([0.3, 0.1, 0.2], [5, 9, 5], timestamp=0.0)
    >>> [(train.annotations["neuron_id"], len(train)) for train in to_trains(ds)]
    [(5, 2), (9, 1)]
    """
    with needs("interop", "Neo"):
        import neo

    if ds.attrs.get("kind") != "spike_train":
        raise ValidationError(f"kind is {ds.attrs.get('kind')!r}, expected a spike_train")
    moments, neurons = ds["spike_times"].values, ds["neuron_ids"].values
    unit = str(ds["spike_times"].attrs.get("units", "s"))
    known = _known(ds)
    order = np.argsort(neurons, kind="stable")
    labels, first = np.unique(neurons[order], return_index=True)
    groups = (
        dict(zip(labels.tolist(), np.split(order, first[1:]), strict=True)) if len(order) else {}
    )
    made = []
    for label in known or groups:
        picked = groups.get(label, order[:0])
        start, stop = known.get(label) or _span(moments)
        train = neo.SpikeTrain(moments[picked], units=unit, t_start=start, t_stop=stop)
        train.annotate(**{ID: label})
        if "spike_amplitudes" in ds:
            amplitudes = ds["spike_amplitudes"].values[picked]
            train.array_annotate(spike_amplitudes=amplitudes)
        made.append(train)
    return made


def _known(ds: xr.Dataset) -> dict[Any, list[float]]:
    kept = ds.neuro.metadata.get("neo")
    return dict(zip(kept["neuron_ids"], kept["spans"], strict=True)) if kept else {}


def _span(moments: np.ndarray[Any, Any]) -> tuple[float, float]:
    if not moments.size:
        return 0.0, 0.0
    return min(0.0, float(moments.min())), float(moments.max())


def from_signal(signal: Any, *, timestamp: TimeLike = 0.0, name: str | None = None) -> xr.Dataset:
    """Return a Neo analog signal as ``reservoir_states``.

    Parameters
    ----------
    signal
        ``neo.AnalogSignal`` or ``neo.IrregularlySampledSignal``, (time, channel).
    timestamp
        Moment that the signal's times count from.
    name
        The `reservoir_id`; the signal's own name if it is None.

    Returns
    -------
    xarray.Dataset
        `states` (time, neuron) in the signal's unit, labelled by the time of each sample in the
        unit of the signal's times.

    Raises
    ------
    ValidationError
        The signal has no name, and none is given.
    """
    named = name or signal.name
    if not named:
        raise ValidationError("the signal has no name; pass name='...' for the reservoir_id")
    times = signal.times
    labels = {"units": times.units.dimensionality.string, "axis": "T"}
    ds = builders.build(
        "reservoir_states",
        {"states": np.asarray(signal.magnitude).T},
        name=named,
        timestamp=timestamp,
        coords={"time": ("time", np.asarray(times.magnitude), labels)},
    ).transpose("time", "neuron", missing_dims="ignore")
    ds["states"].attrs["units"] = signal.units.dimensionality.string
    return ds


def to_signal(ds: xr.Dataset) -> Any:
    """Return ``reservoir_states`` with times as ``neo.IrregularlySampledSignal``.

    The times are kept as they are; Neo's analog signal would compute them from a rate.

    Raises
    ------
    ValidationError
        It is no record of states over labelled times.
    """
    with needs("interop", "Neo"):
        import neo

    if (
        ds.attrs.get("kind") != "reservoir_states"
        or "time" not in ds.dims
        or "time" not in ds.coords
    ):
        raise ValidationError(
            "expected reservoir_states with labels along time: ds.assign_coords(time=...)"
        )
    return neo.IrregularlySampledSignal(
        ds["time"].values,
        ds["states"].transpose("time", "neuron").values,
        units=str(ds["states"].attrs.get("units", "dimensionless")),
        time_units=str(ds["time"].attrs.get("units", "s")),
        name=ds.attrs["reservoir_id"],
    )


def from_block(block: Any, *, timestamp: TimeLike = 0.0) -> xr.DataTree:
    """Return a Neo block as a tree: a node for each segment, records below it.

    Parameters
    ----------
    block
        ``neo.Block``.
    timestamp
        Moment that its times count from.

    Returns
    -------
    xarray.DataTree
        ``/segment_0/spikes``, ``/segment_0/signal_0``, ...; ``tree.neuro.store`` takes it.
    """
    nodes: dict[str, xr.Dataset] = {}
    for number, segment in enumerate(block.segments):
        if segment.spiketrains:
            spikes = from_trains(segment.spiketrains, timestamp=timestamp)
            nodes[f"/segment_{number}/spikes"] = spikes
        signals = [*segment.analogsignals, *segment.irregularlysampledsignals]
        for place, signal in enumerate(signals):
            name = signal.name or f"signal_{place}"
            made = from_signal(signal, timestamp=timestamp, name=name)
            nodes[f"/segment_{number}/signal_{place}"] = made
    return xr.DataTree.from_dict(nodes)


def to_block(records: xr.DataTree | Iterable[xr.Dataset]) -> Any:
    """Return records as a Neo block; the parent of a node becomes its segment.

    Raises
    ------
    ValidationError
        A record is neither a spike train nor states over time.
    """
    with needs("interop", "Neo"):
        import neo

    block = neo.Block()
    segments: dict[str, Any] = {}
    for parent, ds in _by_parent(records):
        if parent not in segments:
            segments[parent] = neo.Segment(name=parent or None)
            block.segments.append(segments[parent])
        segment = segments[parent]
        if ds.attrs.get("kind") == "spike_train":
            segment.spiketrains.extend(to_trains(ds))
        else:
            segment.irregularlysampledsignals.append(to_signal(ds))
    return block


def _by_parent(records: xr.DataTree | Iterable[xr.Dataset]) -> list[tuple[str, xr.Dataset]]:
    if not isinstance(records, xr.DataTree):
        return [("", ds) for ds in records]
    nodes = [node for node in records.subtree if node.data_vars or node.attrs.get("kind")]
    return [(node.path.rpartition("/")[0].strip("/"), node.to_dataset()) for node in nodes]
