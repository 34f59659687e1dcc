"""From lazy Datasets to dask: chunks that end where stored chunks and records end.

A piece that cuts a stored chunk has it read and decoded twice, and a task for every tiny record
costs more than the record. What is in memory already, labels above all, stays there. The graph is
dask's and xarray's affair.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurostore.arrays import RowIndexArray, Seams, behind
from neurostore.errors import ValidationError
from neurostore.index import EventIndex, unloaded, with_event_index
from neurostore.optional import needs

__all__ = ["Chunks", "chunked", "with_preferred"]

#: ``"auto"`` and ``{}``, one size for every dimension, or sizes by dimension.
Chunks = int | Literal["auto"] | Mapping[Any, Any] | None
#: Bytes of a piece where nothing is asked for: a task costs about 1 ms, decoding 8 MiB ten.
_PREFERRED = 8 * 2**20
#: Labels of so many bytes are no matter for dask, and grouping by them needs them in memory.
_LABELS = 2**20
Sizes = dict[Hashable, tuple[int, ...]]


def chunked(ds: xr.Dataset, chunks: Chunks) -> xr.Dataset:
    """Return a Dataset whose values that are not in memory are dask arrays; small labels are not.

    Parameters
    ----------
    ds
        As it came from a store.
    chunks
        As for :func:`xarray.open_dataset`: None leaves everything as it is. ``{}`` makes chunks of
        whole stored chunks and records, of about 8 MiB; ``"auto"`` the same, of about dask's
        ``array.chunk-size``. An int, or sizes by dimension, are taken as they are (-1 is all of
        it); dimensions that are not named are chunked as for ``{}``.

    Raises
    ------
    ValidationError
        A dimension that there is not, or a size that is none.
    MissingPackageError
        dask is not installed.
    """
    if chunks is None:
        return ds
    with needs("dask", "chunks="):
        import dask
    target = int(dask.utils.parse_bytes(dask.config.get("array.chunk-size")))
    asked = _asked(ds, chunks)
    sizes = preferred(ds, target if chunks == "auto" or "auto" in asked.values() else _PREFERRED)
    given = {dim: size for dim, size in asked.items() if size is not None and size != "auto"}
    arrays = {
        name: None if _is_label(ds, name) else behind(unloaded(variable))
        for name, variable in ds.variables.items()
    }
    token = dask.base.tokenize([array for array in arrays.values() if array is not None])
    result = ds.chunk({**sizes, **given}, name_prefix="neurostore-", token=token)
    variables = {n: (ds if array is None else result).variables[n] for n, array in arrays.items()}
    indexes = {n: one for n, one in ds.xindexes.items() if not isinstance(one, EventIndex)}
    coords = xr.Coordinates({n: variables.pop(n) for n in ds.coords}, indexes)
    made = with_event_index(xr.Dataset(variables, coords, ds.attrs))
    made.encoding = ds.encoding
    return made


def _is_label(ds: xr.Dataset, name: Hashable) -> bool:
    """Whether a variable labels what there is, and is small; columns of events are data, too."""
    if name not in ds.coords:
        return False
    events = {ds[n].dims for n, one in ds.xindexes.items() if isinstance(one, EventIndex)}
    variable = ds.variables[name]
    return variable.dims not in events and variable.nbytes <= _LABELS


def with_preferred(ds: xr.Dataset) -> xr.Dataset:
    """Tell xarray's ``open_dataset(chunks=...)`` by the encoding in which chunks to read."""
    sizes = preferred(ds, _PREFERRED)
    for variable in ds.variables.values():
        if variable.ndim and behind(unloaded(variable)) is not None:
            variable.encoding["preferred_chunks"] = {d: sizes[d] for d in variable.dims}
    return ds


def preferred(ds: xr.Dataset, target: int) -> Sizes:
    """Return the sizes of chunks along each dimension, those of the largest variable first.

    One variable decides for all that have its dimension: chunks of a Dataset have to agree.
    """
    sizes: Sizes = {}
    found = [(unloaded(variable), behind(unloaded(variable))) for variable in ds.variables.values()]
    # What is computed as it is read fits any chunks.
    found.sort(key=lambda pair: (isinstance(pair[1], RowIndexArray), -pair[0].nbytes))
    for variable, array in found:
        if array is None or all(dim in sizes for dim in variable.dims):
            continue
        if variable.nbytes <= target:  # the file need not be asked
            new: list[tuple[int, ...]] = [(size,) for size in variable.shape]
        else:
            new = _grown(array.seams(), variable.shape, variable.dtype.itemsize, target)
        for dim, size in zip(variable.dims, new, strict=True):
            sizes.setdefault(dim, size)
    return sizes


def _grown(
    seams: tuple[Seams, ...], shape: tuple[int, ...], itemsize: int, target: int
) -> list[tuple[int, ...]]:
    """Join pieces, along the last axis first, as long as they have at most ``target`` bytes."""
    least = [_least(seam, size) for seam, size in zip(seams, shape, strict=True)]
    room = target / max(1, itemsize * math.prod(least))
    grown = []
    for seam, size, step in reversed(list(zip(seams, shape, least, strict=True))):
        longest = max(step, min(size, int(step * max(room, 1))))
        pieces = _joined(seam, size, longest)
        room /= max(1, max(pieces, default=1) / step)
        grown.append(pieces)
    return grown[::-1]


def _least(seam: Seams, size: int) -> int:
    """Return the length of the longest piece, which nothing is shorter than."""
    if isinstance(seam, int):
        return max(1, min(seam, size))
    return max(1, int(np.diff(seam, prepend=0).max(initial=1)))


def _joined(seam: Seams, size: int, longest: int) -> tuple[int, ...]:
    """Return lengths of pieces that end at seams, each as near to ``longest`` as they allow."""
    if size == 0:
        return (0,)
    if isinstance(seam, int):
        step = max(1, longest // max(1, seam)) * max(1, seam)
        return (*(step,) * (size // step), *((size % step,) if size % step else ()))
    ends = []
    at = 0
    while at < size:
        position = int(np.searchsorted(seam, at + longest, "right")) - 1
        at = max(int(seam[position]), int(seam[np.searchsorted(seam, at, "right")]))
        ends.append(at)
    return tuple(np.diff(ends, prepend=0).tolist())


def _asked(ds: xr.Dataset, chunks: Any) -> dict[Hashable, Any]:
    """Return what was asked for, by dimension."""
    if isinstance(chunks, Mapping):
        unknown = [dim for dim in chunks if dim not in ds.dims]
        if unknown:
            raise ValidationError(
                f"chunks: there is no dimension {unknown[0]!r}, expected some of {tuple(ds.dims)}"
            )
        asked = dict(chunks)
    else:
        asked = dict.fromkeys(ds.dims, chunks)
    for dim, size in asked.items():
        whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
        fitting = whole and (size > 0 or size == -1)
        if not (size is None or size == "auto" or isinstance(size, tuple) or fitting):
            raise ValidationError(
                f"chunks along {dim!r} are {size!r}, expected a number of values, -1 for all of "
                "them, a tuple of numbers, 'auto' or None"
            )
    return asked
