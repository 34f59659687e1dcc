"""Fewer numbers for the eye: means of blocks, extremes of stretches, counts.  Nothing is skipped.

Arrays are read a band at a time, so that a lazy one never stands in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

__all__ = ["bands", "block_mean", "envelope", "even_edges", "numbers"]

Array = np.ndarray[Any, Any]
#: Values that are read at once.
_BAND = 4_000_000
#: Different values from which on steps between them are believed, and steps in a cell from which on
#: one more or less is not seen.
_STEPS, _UNSEEN = 20, 50


def numbers(values: Any) -> Array:
    """Return what can be drawn of ``values``: booleans as 0 and 1, complex as magnitudes.

    >>> numbers(np.array([True, False])), numbers(np.array([3 + 4j]))
    (array([1, 0], dtype=uint8), array([5.]))
    """
    array = np.asarray(values)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "c":
        return np.asarray(np.abs(array))
    if array.dtype.kind == "V":  # bfloat16 and its kin
        return array.astype(np.float32)
    return array


def bands(
    da: xr.DataArray, multiple: int = 1, where: xr.DataArray | None = None
) -> Iterator[Array]:
    """Yield the numbers of ``da``, some rows of the first dimension at a time.

    Values are NaN where ``where`` is 0.
    """
    if not da.ndim or da.size <= _BAND:
        yield _masked(da, where)
        return
    rows = max(1, _BAND * len(da) // da.size // multiple) * multiple
    for start in range(0, len(da), rows):
        stretch = slice(start, start + rows)
        yield _masked(da[stretch], None if where is None else where[stretch])


def _masked(da: xr.DataArray, where: xr.DataArray | None) -> Array:
    values = numbers(da.values)
    return values if where is None else np.where(numbers(where.values) != 0, values, np.nan)


def block_mean(
    da: xr.DataArray, most: int, where: xr.DataArray | None = None
) -> tuple[Array, tuple[int, int]]:
    """Return means over blocks, at most ``most`` along each dimension, and the size of a block.

    NaN, and what ``where`` excludes, is left out of the means; a block of nothing else is NaN.

    >>> da = xr.DataArray([[1.0, 3.0, 5.0], [1.0, np.nan, 5.0]], dims=("pre", "post"))
    >>> block_mean(da, 2)
    (array([[2., 5.],
           [1., 5.]]), (1, 2))
    """
    tall, wide = (-(-size // most) or 1 for size in da.shape)
    read = bands(da, tall, where)
    if tall == wide == 1:
        return np.concatenate(list(read)), (1, 1)
    return np.concatenate([_means(band, tall, wide) for band in read]), (tall, wide)


def _means(band: Array, tall: int, wide: int) -> Array:
    there = ~np.isnan(band)
    total = _sums(np.where(there, band, 0).astype(np.float64), tall, wide)
    count = _sums(there.astype(np.int64), tall, wide)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count)


def _sums(band: Array, tall: int, wide: int) -> Array:
    rows = np.add.reduceat(band, np.arange(0, band.shape[0], tall), axis=0)
    return np.asarray(np.add.reduceat(rows, np.arange(0, band.shape[1], wide), axis=1))


def envelope(x: Array, y: Array, most: int) -> tuple[Array, Array, int]:
    """Return at most ``most`` points of a curve with all its peaks, and how long a stretch is.

    Of every stretch its smallest and largest value are kept, where they are.

    >>> x = np.arange(8)
    >>> envelope(x, np.array([0, 9, 0, 0, 0, -9, 0, 0]), 4)
    (array([0, 1, 4, 5]), array([ 0,  9,  0, -9]), 4)
    """
    length = -(-2 * len(y) // most)
    if length <= 2:
        return x, y, 1
    starts = np.arange(0, len(y), length)
    found = []
    for start in starts.tolist():
        part = y[start : start + length]
        if np.isnan(part).all():
            found += [start]
        else:
            found += sorted({start + int(np.nanargmin(part)), start + int(np.nanargmax(part))})
    return x[found], y[found], length


def even_edges(values: Array, most: int) -> Array:
    """Return edges of at most ``most`` equal cells that hold all values.

    Where the values stand on steps of one length, as a simulation's times do, a cell holds a whole
    number of steps.

    >>> even_edges(np.array([0.0, 1.0]), 2)
    array([0. , 0.5, 1. ])
    >>> even_edges(np.arange(30.0), 20)[[0, 1, -1]]
    array([-0.5,  1.5, 29.5])
    """
    step = _step(values, most)
    if step is None:
        return np.histogram_bin_edges(values, most)
    low = float(values.min())
    count = round((float(values.max()) - low) / step) + 1
    each = -(-count // most)
    return np.asarray(low + step * (each * np.arange(-(-count // each) + 1) - 0.5))


def _step(values: Array, most: int) -> float | None:
    """Return the length of the steps that values stand on, if few fit in a cell."""
    different = np.unique(values)
    if len(different) < _STEPS:
        return None
    low, span = different[0], float(different[-1] - different[0])
    gaps = np.diff(different)
    # What rounding makes of one moment are not two.
    least = float(gaps[gaps > span / (2 * _UNSEEN * most)].min(initial=np.inf))
    count = (different - low) / least
    stands = bool(np.isfinite(least)) and bool((np.abs(count - np.rint(count)) < 0.01).all())
    return span / round(span / least) if stands else None
