"""SONATA spike and report files, read and written as xarray reads and writes plain HDF5.

The format is that of https://github.com/AllenInstitute/sonata (SONATA_DEVELOPER_GUIDE.md, "Spike
file" and "Node-element report"): one population a call, times in the unit that the file names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from neurostore import builders
from neurostore.errors import NotAStoreError, StoreExistsError, ValidationError
from neurostore.times import TimeLike

__all__ = ["read_report", "read_spikes", "write_report", "write_spikes"]

PathLike = str | os.PathLike[str]

_ENGINE: Final = "h5netcdf"
_MAGIC = 0x0A7A
_VERSION = (0, 1)


def read_spikes(
    path: PathLike, population: str | None = None, *, timestamp: TimeLike = 0.0
) -> xr.Dataset:
    """Return the spikes of one population as a ``spike_train``.

    Parameters
    ----------
    path
        A SONATA spike file.
    population
        Which one; None where the file has only one.
    timestamp
        Moment that the spike times count from.

    Returns
    -------
    xarray.Dataset
        `spike_times` in the file's unit (milliseconds unless it names another) and `neuron_ids`
        (the node ids), in the order and the dtypes of the file.

    Raises
    ------
    ValidationError
        There are several populations, or none of that name.
    NotAStoreError
        It is no SONATA spike file.
    """
    tree = _open(path, "spikes")
    name = _population(path, tree, population)
    held = tree[name].to_dataset()
    times = _named(path, held, "timestamps")
    return builders.build(
        "spike_train",
        {"spike_times": times.values, "neuron_ids": _named(path, held, "node_ids").values},
        timestamp=timestamp,
        units=str(times.attrs.get("units", "ms")),
        details={"sonata": {"population": name}},
    )


def write_spikes(ds: xr.Dataset, path: PathLike, *, population: str) -> None:
    """Write a ``spike_train`` as a SONATA spike file.

    Parameters
    ----------
    ds
        A spike train whose neurons have non-negative whole numbers.
    path
        The file to make; it must not exist.
    population
        Name of the population.

    Raises
    ------
    ValidationError
        It is no spike train, the neurons have no numbers, or it has amplitudes, which the format
        cannot hold.
    StoreExistsError
        There is a file at ``path``.
    """
    _check_kind(ds, "spike_train")
    ids = ds["neuron_ids"].values
    if ids.dtype.kind not in "iu" or (ids.size and ids.min() < 0):
        raise ValidationError(
            f"neuron_ids are {ids.dtype}; SONATA wants non-negative whole numbers as node ids"
        )
    if "spike_amplitudes" in ds:
        raise ValidationError(
            "spike_amplitudes: a SONATA spike file has no place for them; "
            "write ds.drop_vars('spike_amplitudes') if they may go"
        )
    times = ds["spike_times"]
    columns = xr.Dataset(
        {
            "timestamps": ("spike", times.values, {"units": str(times.attrs.get("units", "s"))}),
            "node_ids": ("spike", ids.astype(np.uint64)),
        }
    )
    _write(path, {f"spikes/{population}": columns})


def read_report(
    path: PathLike,
    population: str | None = None,
    *,
    timestamp: TimeLike = 0.0,
) -> xr.Dataset:
    """Return a node report (one element for each node) as ``reservoir_states``.

    Parameters
    ----------
    path
        A SONATA report file.
    population
        Which one; None where the file has only one.
    timestamp
        Moment that the report's times count from.

    Returns
    -------
    xarray.Dataset
        `states` (time, neuron) with the file's values and unit, labelled by the time of each frame
        and the node ids; `reservoir_id` is the population.

    Raises
    ------
    ValidationError
        There are several populations, none of that name, or several elements for a node.
    NotAStoreError
        It is no SONATA report.
    """
    tree = _open(path, "report")
    name = _population(path, tree, population)
    data = _named(path, tree[name].to_dataset(), "data")
    mapping = tree[name]["mapping"].to_dataset()
    nodes = _named(path, mapping, "node_ids").values
    if data.shape[1] != len(nodes):
        raise ValidationError(
            f"{path}: {data.shape[1]} elements of {len(nodes)} nodes; expected a report of one "
            "element for each node, such as the soma"
        )
    start, _, step = _named(path, mapping, "time").values
    units = {"units": str(mapping["time"].attrs.get("units", "ms")), "axis": "T"}
    moments = xr.Variable("time", start + step * np.arange(len(data)), units)
    ds = builders.build(
        "reservoir_states",
        {"states": data.values.T},
        name=name,
        timestamp=timestamp,
        coords={"time": moments, "neuron": nodes},
    ).transpose("time", "neuron", missing_dims="ignore")
    ds["states"].attrs.update({k: v for k, v in data.attrs.items() if k in ("units", "variable")})
    return ds


def write_report(ds: xr.Dataset, path: PathLike, *, population: str | None = None) -> None:
    """Write ``reservoir_states`` with evenly spaced times as a SONATA report, one element a node.

    Parameters
    ----------
    ds
        `states` over ``time`` and ``neuron``; the label of a neuron is its node id.  The values
        are written in their dtype; libsonata reads float32 only.
    path
        The file to make; it must not exist.
    population
        Name of the population; the `reservoir_id` if it is None.

    Raises
    ------
    ValidationError
        Labels are missing, or times are not evenly spaced.
    StoreExistsError
        There is a file at ``path``.
    """
    _check_kind(ds, "reservoir_states")
    missing = [dim for dim in ("time", "neuron") if dim not in ds.dims or dim not in ds.coords]
    if missing:
        raise ValidationError(
            f"reservoir_states: no labels along {' and '.join(missing)}; a SONATA report needs "
            "them: ds.assign_coords(time=..., neuron=...)"
        )
    states = ds["states"].transpose("time", "neuron")
    start, step = _even(ds["time"].values)
    count = states.sizes["neuron"]
    name = str(population or ds.attrs["reservoir_id"])
    frames = xr.Dataset({"data": (("frame", "element"), states.values, _units(states, ""))})
    end = start + step * states.sizes["time"]
    mapping = xr.Dataset(
        {
            "node_ids": ("node", ds["neuron"].values.astype(np.uint64), {"sorted": np.uint8(0)}),
            "index_pointers": ("pointer", np.arange(count + 1, dtype=np.uint64)),
            "element_ids": ("node", np.zeros(count, np.uint32)),
            "time": ("bound", np.array([start, end, step]), _units(ds["time"], "s")),
        }
    )
    _write(path, {f"report/{name}": frames, f"report/{name}/mapping": mapping})


def _units(array: xr.DataArray, default: str) -> dict[str, str]:
    return {"units": str(array.attrs.get("units", default))}


def _even(moments: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return start and step, from which the reader makes the same times again."""
    if len(moments) < 2:
        raise ValidationError(f"time has {len(moments)} values; a report needs two or more")
    start = float(moments[0])
    for step in (float(moments[1]) - start, (float(moments[-1]) - start) / (len(moments) - 1)):
        if np.allclose(start + step * np.arange(len(moments)), moments, rtol=1e-12, atol=0):
            return start, step
    raise ValidationError("time is not evenly spaced; a SONATA report has a start and a step")


def _check_kind(ds: xr.Dataset, kind: str) -> None:
    if ds.attrs.get("kind") != kind:
        raise ValidationError(f"kind is {ds.attrs.get('kind')!r}, expected a {kind}")


def _open(path: PathLike, group: str) -> xr.DataTree:
    try:
        tree = xr.open_datatree(path, group=group, engine=_ENGINE, phony_dims="access")
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise NotAStoreError(
            f"{path}: expected a SONATA file with /{group}, which cannot be read: {error}"
        ) from error
    with tree:
        return tree.load()


def _population(path: PathLike, tree: xr.DataTree, wanted: str | None) -> str:
    there = list(tree.children)
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted in there:
        return str(wanted)
    raise ValidationError(f"{path}: population {wanted!r}, expected one of {', '.join(there)}")


def _named(path: PathLike, ds: xr.Dataset, name: str) -> xr.DataArray:
    if name not in ds:
        raise NotAStoreError(f"{path}: expected {name!r}, which SONATA asks for, and it is missing")
    return ds[name]


def _write(path: PathLike, groups: dict[str, xr.Dataset]) -> None:
    if Path(path).exists():
        raise StoreExistsError(f"{path}: exists already; name a new file")
    root = xr.Dataset(attrs={"magic": np.uint32(_MAGIC), "version": np.array(_VERSION, np.uint32)})
    root.to_netcdf(path, engine=_ENGINE)
    for group, ds in groups.items():
        plain: dict[str, dict[str, Any]] = {str(name): {"_FillValue": None} for name in ds}
        ds.to_netcdf(path, mode="a", group=group, engine=_ENGINE, encoding=plain)
