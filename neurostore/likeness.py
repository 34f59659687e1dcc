"""Whether two records can stand in one Dataset, and in which dtype.

It compares structure and units, reads no values, and decides nothing: it says what differs.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from neurostore import schema
from neurostore.schema import Kind

__all__ = ["common_dtype", "difference", "gapped_dtype"]


def difference(kind: Kind, first: xr.Dataset, other: xr.Dataset, *, sizes: bool) -> str | None:
    """Return what keeps ``other`` out of a range that begins with ``first``, or None.

    Parameters
    ----------
    sizes
        Dimensions other than the elastic one have to be of equal size.
    """
    may_miss: set[Hashable] = {schema.TIME, kind.elastic}
    if kind.combine == "ragged":
        may_miss |= {row.name for row in kind.variables if not row.required}
    odd = (set(first.variables) ^ set(other.variables)) - may_miss
    if odd:
        name = sorted(map(str, odd))[0]
        return f"has {name!r}, which is not expected" if name in other else f"lacks {name!r}"
    pairs = (
        (str(name), variable, other.variables[name])
        for name, variable in first.variables.items()
        if name in other.variables and name not in (schema.TIMESTAMP, schema.TIME)
    )
    problems = (_of_variables(name, a, b, kind.elastic, sizes) for name, a, b in pairs)
    return next((problem for problem in problems if problem is not None), None)


def _of_variables(
    name: str, first: xr.Variable, other: xr.Variable, elastic: str | None, sizes: bool
) -> str | None:
    if first.dims != other.dims:
        return f"has {name!r} with dims {other.dims}, expected {first.dims}"
    same = zip(first.dims, first.shape, other.shape, strict=True)
    if sizes and any(a != b for dim, a, b in same if dim != elastic):
        return f"has {name!r} with shape {other.shape}, expected {first.shape}"
    units, wanted = other.attrs.get("units"), first.attrs.get("units")
    if units != wanted:
        return f"has {name!r} in {units!r}, expected {wanted!r}"
    if common_dtype(first.dtype, other.dtype) is None:
        return f"has {name!r} as {other.dtype}, expected {first.dtype}"
    return None


def common_dtype(*dtypes: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return the dtype that holds all of them exactly, or None.

    >>> common_dtype(np.dtype("i2"), np.dtype("f4"))
    dtype('float32')
    >>> common_dtype(np.dtype("i8"), np.dtype("f8")) is None
    True
    """
    if len(set(dtypes)) == 1:
        return dtypes[0]
    if len({dtype.kind if dtype.kind in "USMm" else "number" for dtype in dtypes}) > 1:
        return None  # NumPy would turn numbers into text
    try:
        joint = np.result_type(*dtypes)
    except TypeError:
        return None
    return joint if all(_is_exact(dtype, joint) for dtype in dtypes) else None


def gapped_dtype(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return the dtype that holds values of ``dtype`` and gaps, or None.

    A gap is NaN, NaT or the empty text.

    >>> gapped_dtype(np.dtype("i4"))
    dtype('float64')
    """
    return common_dtype(dtype, np.dtype(np.float64)) if dtype.kind in "biu" else dtype


def _is_exact(dtype: np.dtype[Any], joint: np.dtype[Any]) -> bool:
    """NumPy calls int64 to float64 safe; ids above 2**53 would become others."""
    lossy = dtype.kind in "iu" and joint.kind in "fc" and dtype.itemsize > 4
    return np.can_cast(dtype, joint, "safe") and not lossy
