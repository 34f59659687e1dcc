"""NWB files by pynwb: units and time series, each way.

A table of units is one ``spike_train``; a time series of two dimensions is one
``reservoir_states``.  NWB keeps seconds since the session's start; a spike train in another unit is
refused on the way there, so that no time changes unsaid.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurostore import builders
from neurostore.errors import StoreExistsError, ValidationError
from neurostore.optional import needs

__all__ = ["read", "write"]

PathLike = str | os.PathLike[str]


def read(path: PathLike) -> xr.DataTree:
    """Return the units and the time series of an NWB file as a tree of records.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    xarray.DataTree
        ``/units`` and one node for each numeric series of one or two dimensions in `acquisition`;
        the timestamp of every record is the session's start.
    """
    with needs("interop", "NWB"):
        import pynwb

    with pynwb.NWBHDF5IO(os.fspath(path), "r") as io:
        nwb = io.read()
        moment = nwb.session_start_time.timestamp()
        nodes: dict[str, xr.Dataset] = {}
        if nwb.units is not None and len(nwb.units):
            nodes["/units"] = _units(nwb.units, moment)
        for name, series in nwb.acquisition.items():
            if isinstance(series, pynwb.TimeSeries) and np.ndim(series.data) in (1, 2):
                nodes[f"/{name}"] = _states(name, series, moment)
    return xr.DataTree.from_dict(nodes)


def _units(units: Any, timestamp: float) -> xr.Dataset:
    ids = np.asarray(units.id[:], np.int64)
    columns = [np.asarray(units["spike_times"][row]) for row in range(len(ids))]
    values = {
        "spike_times": np.concatenate(columns),
        "neuron_ids": np.repeat(ids, [len(column) for column in columns]),
    }
    if "spike_amplitudes" in units.colnames:
        found = [np.asarray(units["spike_amplitudes"][row]) for row in range(len(ids))]
        values["spike_amplitudes"] = np.concatenate(found)
    details = {"nwb": {"neuron_ids": ids.tolist()}}
    return builders.build("spike_train", values, timestamp=timestamp, details=details)


def _states(name: str, series: Any, timestamp: float) -> xr.Dataset:
    data = np.asarray(series.data)
    if series.timestamps is not None:
        moments = np.asarray(series.timestamps)
    else:
        moments = series.starting_time + np.arange(len(data)) / series.rate
    ds = builders.build(
        "reservoir_states",
        {"states": data.reshape(len(data), -1).T},
        name=name,
        timestamp=timestamp,
        coords={"time": ("time", moments, {"units": "s", "axis": "T"})},
    ).transpose("time", "neuron", missing_dims="ignore")
    ds["states"].attrs["units"] = series.unit
    return ds


def write(
    records: xr.Dataset | xr.DataTree | Iterable[xr.Dataset],
    path: PathLike,
    *,
    description: str = "neural-simulation records",
    identifier: str | None = None,
) -> None:
    """Write spike trains and reservoir states as one NWB file.

    Parameters
    ----------
    records
        One record, several, or a tree; times in seconds.  Their timestamps must be one moment,
        which becomes the session's start.
    path
        The file to make; it must not exist.
    description, identifier
        What NWB wants to know of the session; the file's name identifies it if nothing else does.

    Raises
    ------
    ValidationError
        A record is neither a spike train nor states over time, there are two spike trains, units
        other than seconds, or several timestamps.
    StoreExistsError
        There is a file at ``path``.
    """
    with needs("interop", "NWB"):
        import pynwb

    if Path(path).exists():
        raise StoreExistsError(f"{path}: exists already; name a new file")
    listed = _listed(records)
    moments = sorted({float(ds["timestamp"]) for ds in listed})
    if len(moments) != 1:
        first = ", ".join(map(str, [*moments[:2], "..."][: len(moments)]))
        raise ValidationError(
            f"{len(moments)} timestamps ({first}); "
            "an NWB file has one session and so one timestamp; write a file for each of them"
        )
    nwb = pynwb.NWBFile(
        session_description=description,
        identifier=identifier or Path(path).stem,
        session_start_time=datetime.fromtimestamp(moments[0], UTC),
    )
    for ds in listed:
        _WRITERS.get(ds.attrs.get("kind"), _refuse)(nwb, ds)
    with pynwb.NWBHDF5IO(os.fspath(path), "w") as io:
        io.write(nwb)


def _listed(records: xr.Dataset | xr.DataTree | Iterable[xr.Dataset]) -> list[xr.Dataset]:
    if isinstance(records, xr.Dataset):
        return [records]
    if isinstance(records, xr.DataTree):
        return [node.to_dataset() for node in records.subtree if node.data_vars or node.attrs]
    return list(records)


def _refuse(nwb: Any, ds: xr.Dataset) -> None:
    raise ValidationError(
        f"kind is {ds.attrs.get('kind')!r}; an NWB file takes {' and '.join(map(str, _WRITERS))}"
    )


def _check_seconds(times: xr.DataArray) -> None:
    unit = times.attrs.get("units", "s")
    if unit != "s":
        raise ValidationError(
            f"{times.name} is in {unit!r}; NWB keeps seconds, so convert it first"
        )


def _add_units(nwb: Any, ds: xr.Dataset) -> None:
    _check_seconds(ds["spike_times"])
    if nwb.units is not None:
        raise ValidationError("two spike trains; an NWB file has one table of units: join them")
    neurons, moments = ds["neuron_ids"].values, ds["spike_times"].values
    if neurons.dtype.kind not in "iu":
        raise ValidationError(f"neuron_ids are {neurons.dtype}; NWB wants whole numbers")
    extra = "spike_amplitudes" in ds
    if extra:
        nwb.add_unit_column("spike_amplitudes", "amplitude of each spike", index=True)
    known = ds.neuro.metadata.get("nwb", {}).get("neuron_ids")
    for label in known or np.unique(neurons).tolist():
        picked = neurons == label
        more = {"spike_amplitudes": ds["spike_amplitudes"].values[picked]} if extra else {}
        nwb.add_unit(id=label, spike_times=moments[picked], **more)


def _add_series(nwb: Any, ds: xr.Dataset) -> None:
    with needs("interop", "NWB"):
        import pynwb

    if "time" not in ds.coords or "time" not in ds.dims:
        raise ValidationError(
            "reservoir_states: expected labels along time; ds.assign_coords(time=...)"
        )
    _check_seconds(ds["time"])
    states = ds["states"].transpose("time", "neuron")
    series = pynwb.TimeSeries(
        name=str(ds.attrs["reservoir_id"]).replace("/", "_"),
        data=states.values,
        unit=str(states.attrs.get("units", "1")),
        timestamps=ds["time"].values,
    )
    nwb.add_acquisition(series)


_WRITERS: dict[Any, Any] = {"spike_train": _add_units, "reservoir_states": _add_series}
