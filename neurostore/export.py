"""Records as files of other formats: netCDF, zarr, NWB, and CSV for metrics.

A file appears when it is complete.  What a format cannot hold is carried as the store itself
carries it, or refused; nothing is rounded or left out unsaid.  Reading such files is xarray's, or
that of ``neurostore.interop``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from neurostore import osio, records, schema, types
from neurostore.errors import ValidationError
from neurostore.interop import nwb
from neurostore.optional import needs

__all__ = ["FORMATS", "export", "format_of"]

Records = Mapping[str, xr.Dataset]
#: dtypes that HDF5 has and netCDF has not.
_BEYOND_NETCDF = frozenset({"complex64", "complex128", "float16"})


def export(
    found: Records, path: str | os.PathLike[str], to: str | None = None, *, force: bool = False
) -> None:
    """Write records as a file of another format.

    Parameters
    ----------
    found : mapping of str to Dataset
        Records by id, as ``store.retrieve`` returns them. In netCDF and zarr one record is the
        root; several stand in groups called ``/<kind>/<id>``.
    path : path-like
        The file to make (zarr: the folder).
    to : str, optional
        ``"netcdf"``, ``"zarr"``, ``"nwb"`` or ``"csv"``; if None, the suffix of `path` decides.
    force : bool
        Replace what stands at `path`.

    Raises
    ------
    ValidationError
        The format is not known, or cannot hold the records.
    StoreExistsError
        Something stands at `path`.
    MissingPackageError
        zarr or pynwb is not installed.

    Examples
    --------
    >>> import neurostore, xarray as xr
    >>> train = neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5)
    >>> export({"train_12.5": train}, tmp / "train.nc")
    >>> with xr.open_dataset(tmp / "train.nc", engine="h5netcdf") as ds:
    ...     ds.spike_times.values
    array([0.1, 0.3])
    """
    target = Path(path)
    write = FORMATS[format_of(target, to)]
    if not found:
        raise ValidationError(
            "no records to export; ids() lists those there are (neurostore ls FILE)"
        )
    with osio.completed(target, force) as unfinished:
        write(found, unfinished)


def format_of(path: Path, to: str | None) -> str:
    """Return the name of the format that is meant.

    >>> format_of(Path("run.nc"), None), format_of(Path("run"), "csv")
    ('netcdf', 'csv')
    """
    name = to if to is not None else _SUFFIXES.get(path.suffix.lower())
    if name not in FORMATS:
        raise ValidationError(
            f"{path if to is None else repr(to)}: no known format; expected one of "
            f"{', '.join(FORMATS)}, or a path that ends in one of {', '.join(_SUFFIXES)}"
        )
    return name


def _tree(found: Records, prepare: Callable[[xr.Dataset], xr.Dataset]) -> xr.DataTree:
    if len(found) == 1:
        (ds,) = found.values()
        return xr.DataTree(prepare(ds))
    nodes = {f"/{ds.attrs.get('kind', 'record')}/{key}": prepare(ds) for key, ds in found.items()}
    return xr.DataTree.from_dict(nodes)


def _carried(ds: xr.Dataset, is_foreign: Callable[[Any], bool]) -> xr.Dataset:
    """Return ``ds`` with the dtypes that a format lacks carried as the store carries them."""
    ds = ds.drop_indexes([n for n in ds.xindexes if n in ds.coords and ds[n].dims != (n,)])
    carried = {}
    for name, variable in ds.variables.items():
        if not is_foreign(variable.dtype):
            continue
        stored = types.to_stored(variable.values)
        dims = (*variable.dims, *stored.extra_dims)
        carried[name] = xr.Variable(dims, stored.values, {**variable.attrs, **stored.attrs})
    return ds.assign({name: carried[name] for name in carried}) if carried else ds


def _netcdf(found: Records, path: Path) -> None:
    tree = _tree(found, lambda ds: _compressed(_carried(ds, _is_beyond_netcdf)))
    tree.to_netcdf(path, engine="h5netcdf")


def _is_beyond_netcdf(dtype: Any) -> bool:
    return dtype.kind == "V" or dtype.name in _BEYOND_NETCDF


def _compressed(ds: xr.Dataset) -> xr.Dataset:
    ds = ds.copy()
    for variable in ds.variables.values():
        if variable.ndim and variable.dtype.kind in "biuf":
            variable.encoding = {"zlib": True, "complevel": 4, "shuffle": True}
    return ds


def _zarr(found: Records, path: Path) -> None:
    with needs("zarr", "a zarr store"):
        import zarr  # noqa: F401 (xarray writes it)

    # Version 2, which every reader knows; version 3 has no text in its specification yet.
    tree = _tree(found, lambda ds: _carried(ds, lambda dtype: dtype.kind == "V"))
    tree.to_zarr(path, mode="w-", zarr_format=2, consolidated=True)


def _nwb(found: Records, path: Path) -> None:
    nwb.write(list(found.values()), path)


def _csv(found: Records, path: Path) -> None:
    """Write a line for each record of metrics, and a column for each metric."""
    refused = [key for key, ds in found.items() if not _is_labelled_numbers(ds)]
    if refused:
        raise ValidationError(
            f"{refused[0]}: not metrics, which is what a CSV file can hold "
            f"({len(refused)} of {len(found)} records); choose with --kind, or another format"
        )
    metrics = list(dict.fromkeys(m for ds in found.values() for m in _metrics(ds)))
    with open(path, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "kind", "name", "timestamp", *metrics])
        for key, ds in found.items():
            kind = schema.KINDS[ds.attrs["kind"]]
            row = [key, kind.name, ds.attrs.get(kind.label or "", ""), float(ds["timestamp"])]
            values = _metrics(ds)
            table.writerow(row + [values.get(metric, "") for metric in metrics])


def _is_labelled_numbers(ds: xr.Dataset) -> bool:
    kind = records.infer_kind(ds)
    return kind is not None and kind.combine == "union"


def _metrics(ds: xr.Dataset) -> dict[str, Any]:
    kind = schema.KINDS[ds.attrs["kind"]]
    values = ds[kind.variables[0].name]
    labels = ds[kind.elastic].values.tolist() if kind.elastic in ds.coords else []
    return dict(zip(labels, values.values.tolist(), strict=True))


#: What can be written, and by which function: records by id, and a path that does not exist.
FORMATS: dict[str, Callable[[Records, Path], None]] = {
    "netcdf": _netcdf,
    "zarr": _zarr,
    "nwb": _nwb,
    "csv": _csv,
}
_SUFFIXES = {".nc": "netcdf", ".nc4": "netcdf", ".zarr": "zarr", ".nwb": "nwb", ".csv": "csv"}
