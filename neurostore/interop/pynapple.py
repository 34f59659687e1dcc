"""pynapple: ``TsGroup`` and ``TsdFrame``, with their time support.

pynapple keeps seconds and rounds them to a nanosecond; a record in another unit is refused on the
way there, so that no time changes unsaid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neurostore import builders
from neurostore.errors import ValidationError
from neurostore.optional import needs
from neurostore.times import TimeLike

__all__ = ["from_frame", "from_group", "to_frame", "to_group"]


def from_group(group: Any, *, timestamp: TimeLike = 0.0) -> xr.Dataset:
    """Return a ``TsGroup`` as one ``spike_train``.

    Parameters
    ----------
    group
        ``pynapple.TsGroup``; its keys are the neurons' ids.
    timestamp
        Moment that its times, in seconds, count from.

    Returns
    -------
    xarray.Dataset
        Spikes neuron by neuron; time support and silent neurons stand in the metadata.

    Examples
    --------
    >>> import numpy as np, pynapple
    >>> ds = from_group(pynapple.TsGroup({7: pynapple.Ts(np.array([0.5, 2.0]))}))
    >>> ds.spike_times.values, ds.neuron_ids.values
    (array([0.5, 2. ]), array([7, 7]))
    """
    ids = [int(key) for key in group.keys()]  # noqa: SIM118 (a TsGroup iterates otherwise)
    columns = [np.asarray(group[key].times()) for key in ids]
    return builders.build(
        "spike_train",
        {
            "spike_times": np.concatenate(columns) if columns else np.empty(0),
            "neuron_ids": np.repeat(np.array(ids, np.int64), [len(column) for column in columns]),
        },
        timestamp=timestamp,
        details={"pynapple": {"neuron_ids": ids, "time_support": _support(group)}},
    )


def to_group(ds: xr.Dataset) -> Any:
    """Return a ``spike_train`` in seconds as ``pynapple.TsGroup``.

    Raises
    ------
    ValidationError
        It is no spike train, its times are not in seconds, or the neurons have no numbers.
    """
    with needs("interop", "pynapple"):
        import pynapple

    _check(ds, "spike_train", "spike_times")
    moments, neurons = ds["spike_times"].values, ds["neuron_ids"].values
    if neurons.dtype.kind not in "iu":
        raise ValidationError(f"neuron_ids are {neurons.dtype}; pynapple wants whole numbers")
    kept = ds.neuro.metadata.get("pynapple", {})
    ids = kept.get("neuron_ids") or np.unique(neurons).tolist()
    trains = {key: pynapple.Ts(np.sort(moments[neurons == key])) for key in ids}
    return pynapple.TsGroup(trains, time_support=_intervals(kept, moments))


def from_frame(frame: Any, name: str, *, timestamp: TimeLike = 0.0) -> xr.Dataset:
    """Return a ``TsdFrame`` or ``Tsd`` as ``reservoir_states``.

    Parameters
    ----------
    frame
        ``pynapple.TsdFrame`` (time, column) or ``Tsd``; columns are the labels of the neurons.
    name
        The `reservoir_id`.
    timestamp
        Moment that its times, in seconds, count from.

    Returns
    -------
    xarray.Dataset
        `states` (time, neuron), labelled by both.
    """
    values = np.asarray(frame.values)
    columns = np.asarray(getattr(frame, "columns", [0]))
    labels = ("time", np.asarray(frame.times()), {"units": "s", "axis": "T"})
    return builders.build(
        "reservoir_states",
        {"states": values.reshape(len(values), -1).T},
        name=name,
        timestamp=timestamp,
        coords={"time": labels, "neuron": columns},
    ).transpose("time", "neuron", missing_dims="ignore")


def to_frame(ds: xr.Dataset) -> Any:
    """Return ``reservoir_states`` over times in seconds as ``pynapple.TsdFrame``.

    Raises
    ------
    ValidationError
        It is no record of states over labelled times in seconds.
    """
    with needs("interop", "pynapple"):
        import pynapple

    _check(ds, "reservoir_states", "time")
    states = ds["states"].transpose("time", "neuron")
    moments = ds["time"].values
    columns = ds["neuron"].values if "neuron" in ds.coords else None
    kept = ds.neuro.metadata.get("pynapple", {})
    support = _intervals(kept, moments)
    return pynapple.TsdFrame(t=moments, d=states.values, columns=columns, time_support=support)


def _check(ds: xr.Dataset, kind: str, times: str) -> None:
    if ds.attrs.get("kind") != kind or times not in ds.coords:
        raise ValidationError(f"expected a record of kind {kind} with {times!r} as labels")
    unit = ds[times].attrs.get("units", "s")
    if unit != "s":
        raise ValidationError(
            f"{times} is in {unit!r}; pynapple keeps seconds, so convert it first"
        )


def _support(held: Any) -> list[list[float]]:
    return np.asarray(held.time_support.values).tolist()  # type: ignore[no-any-return]


def _intervals(kept: dict[str, Any], moments: np.ndarray[Any, Any]) -> Any:
    with needs("interop", "pynapple"):
        import pynapple

    spans = kept.get("time_support")
    if not spans:
        if not len(moments):
            return None
        spans = [[float(moments.min()), float(moments.max())]]
    starts, ends = np.array(spans, float).T
    return pynapple.IntervalSet(start=starts, end=ends)
