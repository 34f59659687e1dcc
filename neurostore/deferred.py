"""Values that are made piece by piece while they are written: of dask, or of another dtype on disk.

A large variable is not gathered, nor converted as a whole, before it is stored. What stands for it
here tells shape and dtype, and gives any part of it, in the form it takes on disk, when it is
asked for. It does not say in which pieces it is written; `filters` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from neurostore import types

__all__ = ["Deferred", "deferred", "is_dask"]

Array = np.ndarray[Any, np.dtype[Any]]

#: Smaller ones are made at once: they then cannot fail while the file is open for them.
_LARGE = 32 * 2**20
#: Of an array in memory so much is converted at a time.
_PIECE = 2 * 2**20


class Deferred:
    """A large array in the form it takes on disk, part by part.

    Parameters
    ----------
    data
        A dask or NumPy array of numbers, booleans or dates.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        probe = types.to_stored(np.empty((0,) * data.ndim, data.dtype))
        self.attrs = probe.attrs
        self.extra_dims = probe.extra_dims
        self.dtype: np.dtype[Any] = probe.values.dtype
        #: Length of the last dimension on disk, if it is ours (parts of complex numbers).
        self._ours = probe.values.shape[data.ndim :]
        self.shape: tuple[int, ...] = (*map(int, data.shape), *self._ours)
        #: Along each axis, pieces of so many values are cheapest to ask for.
        self.edges: tuple[int, ...] = (*_edges(data), *self._ours)
        #: Whether to ask for a part of such a piece costs as much as all of it.
        self.costly = is_dask(data)
        #: Called with every part that is made, as it is in memory, and where it begins; raises.
        self.examine: Callable[[Array, tuple[int, ...]], None] | None = None

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.size * self.itemsize

    def block(self, where: tuple[slice, ...]) -> Array:
        """Make one part of it: slices of step 1, one for each axis."""
        axes = len(self.shape) - len(self._ours)
        part = self._data[where[:axes]]
        # In this thread: others may be waiting for the file that it holds.
        made = part.compute(scheduler="synchronous") if is_dask(part) else part
        made = np.asarray(made)
        if made.dtype != self._data.dtype:
            raise TypeError(
                f"a part of an array of {self._data.dtype} came out as {made.dtype}; the graph "
                "of the dask array does not keep its own dtype"
            )
        if self.examine is not None:
            self.examine(made, tuple(part.start for part in where[:axes]))
        values: Array = types.to_stored(made).values
        return values[(slice(None),) * axes + where[axes:]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Make all of it, for whoever needs it whole."""
        whole = self.block(tuple(slice(0, n) for n in self.shape))
        return np.asarray(whole, dtype)


def deferred(data: Any, coordinate: bool) -> Deferred | None:
    """Return what stands for the data of a variable, or None where they are taken at once.

    Labels are taken at once, because they are compared with those of other records; text, because
    its width follows from all of it.
    """
    if coordinate or not data.nbytes >= _LARGE or data.dtype.kind in "OUST":
        return None
    if not types.is_storable(data.dtype) or any(math.isnan(n) for n in data.shape):
        return None
    return Deferred(data) if is_dask(data) or types.is_converted(data) else None


def is_dask(data: Any) -> bool:
    """Tell whether data are still to be computed."""
    return hasattr(data, "__dask_graph__")


def _edges(data: Any) -> tuple[int, ...]:
    if is_dask(data):
        return tuple(map(int, data.chunksize))
    row = max(1, data.nbytes // max(1, len(data)))
    return (max(1, _PIECE // row), *data.shape[1:])
