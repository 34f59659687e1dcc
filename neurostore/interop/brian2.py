"""Brian2: monitors in, spike generators and timed arrays out.

Brian2 2.9 cannot be imported beside NumPy 2.4 and newer, so it is no extra of the package; install
it with an older NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neurostore import builders
from neurostore.errors import ValidationError
from neurostore.times import TimeLike

__all__ = ["from_spikes", "from_states", "from_synapses", "to_spike_generator", "to_timed_array"]


def from_spikes(monitor: Any, *, timestamp: TimeLike = 0.0) -> xr.Dataset:
    """Return what a ``SpikeMonitor`` recorded as a ``spike_train``.

    Parameters
    ----------
    monitor
        ``brian2.SpikeMonitor``.
    timestamp
        Moment at which its clock began.

    Returns
    -------
    xarray.Dataset
        `spike_times` in seconds and `neuron_ids`, in the order of the monitor.
    """
    return builders.build(
        "spike_train",
        {"spike_times": np.asarray(monitor.t_[:]), "neuron_ids": np.asarray(monitor.i[:])},
        timestamp=timestamp,
        details={"brian2": {"source": monitor.source.name, "neurons": len(monitor.source)}},
    )


def from_states(
    monitor: Any, variable: str, *, name: str | None = None, timestamp: TimeLike = 0.0
) -> xr.Dataset:
    """Return one variable of a ``StateMonitor`` as ``reservoir_states``.

    Parameters
    ----------
    monitor
        ``brian2.StateMonitor``.
    variable
        Which variable, such as ``"v"``.
    name
        The `reservoir_id`; ``<source>_<variable>`` if it is None.
    timestamp
        Moment at which its clock began.

    Returns
    -------
    xarray.Dataset
        `states` (neuron, time) in base units, labelled by the neurons' indices and by seconds.

    Raises
    ------
    ValidationError
        The monitor does not record the variable.
    """
    if variable not in monitor.record_variables:
        known = ", ".join(map(repr, monitor.record_variables))
        raise ValidationError(f"the monitor has {variable!r} not recorded, expected one of {known}")
    ds = builders.build(
        "reservoir_states",
        {"states": np.asarray(getattr(monitor, f"{variable}_"))},
        name=name or f"{monitor.source.name}_{variable}",
        timestamp=timestamp,
        coords={
            "time": ("time", np.asarray(monitor.t_[:]), {"units": "s", "axis": "T"}),
            "neuron": np.asarray(monitor.record),
        },
    )
    ds["states"].attrs["units"] = _base_unit(monitor.source.variables[variable])
    return ds


def from_synapses(
    synapses: Any, variable: str, name: str, *, timestamp: TimeLike = 0.0
) -> xr.Dataset:
    """Return one variable of ``Synapses`` as a ``plasticity_trace``, one value each synapse.

    Parameters
    ----------
    synapses
        ``brian2.Synapses``.
    variable
        Which variable, such as ``"w"``.
    name
        The `plasticity_type`.
    timestamp
        Moment of the values.

    Returns
    -------
    xarray.Dataset
        `changes` (synapse) in base units, with the neurons before and after as coordinates.
    """
    ds = builders.build(
        "plasticity_trace",
        {"changes": np.asarray(getattr(synapses, f"{variable}_")[:])},
        name=name,
        timestamp=timestamp,
        coords={
            "pre": ("synapse", np.asarray(synapses.i[:])),
            "post": ("synapse", np.asarray(synapses.j[:])),
        },
    )
    ds["changes"].attrs["units"] = _base_unit(synapses.variables[variable])
    return ds


def _base_unit(variable: Any) -> str:
    from brian2 import get_unit

    return str(get_unit(variable.dim)) if variable.dim is not None else "1"


def to_spike_generator(ds: xr.Dataset, neurons: int | None = None) -> Any:
    """Return a ``spike_train`` as ``brian2.SpikeGeneratorGroup``.

    Parameters
    ----------
    ds
        A spike train whose neurons are indices, in a unit that Brian2 knows by that name.
    neurons
        Size of the group; one more than the largest index if it is None.

    Raises
    ------
    ValidationError
        It is no spike train, or the neurons are no indices.
    """
    import brian2

    if ds.attrs.get("kind") != "spike_train":
        raise ValidationError(f"kind is {ds.attrs.get('kind')!r}, expected a spike_train")
    ids = ds["neuron_ids"].values
    if ids.dtype.kind not in "iu" or (ids.size and (ids.min() < 0 or ids.max() >= 2**31)):
        raise ValidationError("neuron_ids: expected indices from 0 on, which Brian2 wants")
    unit = _unit(ds["spike_times"])
    kept = ds.neuro.metadata.get("brian2", {}).get("neurons")
    count = neurons or kept or (int(ids.max()) + 1 if ids.size else 1)
    return brian2.SpikeGeneratorGroup(count, ids, ds["spike_times"].values * unit)


def to_timed_array(ds: xr.Dataset) -> Any:
    """Return ``reservoir_states`` over evenly spaced times as ``brian2.TimedArray``.

    Raises
    ------
    ValidationError
        There are no labels along time, or they are not evenly spaced from 0 on.
    """
    import brian2

    if "time" not in ds.coords or "time" not in ds.dims or ds.sizes["time"] < 2:
        raise ValidationError("expected reservoir_states with two or more labels along time")
    moments = ds["time"].values
    step = float(moments[1] - moments[0])
    if not np.allclose(moments, step * np.arange(len(moments)), rtol=1e-9, atol=step * 1e-6):
        raise ValidationError("time: expected even steps from 0 on, as a TimedArray has them")
    states = ds["states"].transpose("time", "neuron")
    return brian2.TimedArray(states.values * _unit(states), dt=step * _unit(ds["time"]))


def _unit(array: xr.DataArray) -> Any:
    import brian2

    name = str(array.attrs.get("units", "s" if array.name in ("spike_times", "time") else "1"))
    names = {"s": "second", "ms": "ms", "us": "us", "V": "volt", "A": "amp", "S": "siemens"}
    known = getattr(brian2, names.get(name, name), None)
    if name == "1":
        return 1
    if not isinstance(known, brian2.Unit):
        raise ValidationError(f"{array.name} is in {name!r}, expected a unit that Brian2 knows")
    return known
