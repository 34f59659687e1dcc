"""Records of different labels brought onto common ones; this reads them.

It is what a range does on request, with ``join="inner"`` or ``"outer"``.  Gaps hold NaN, NaT or
no text, and no value becomes another one for their sake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurostore.errors import MisalignedRecordsError

__all__ = ["aligned"]


def aligned(
    datasets: Sequence[xr.Dataset], dim: str, join: Literal["inner", "outer"]
) -> xr.Dataset:
    """Return records along the new dimension ``dim``, on the labels that all or any of them have.

    Raises
    ------
    MisalignedRecordsError
        They have no labels to align, or integers that no float holds would get gaps.
    """
    dtypes = {name: variable.dtype for name, variable in datasets[0].data_vars.items()}
    try:
        joined = xr.concat(
            [_with_room(ds, join) for ds in datasets],
            dim=dim,
            join=join,
            combine_attrs="drop_conflicts",
            data_vars="all",
            coords="different",
            compat="equals",
        )
    except ValueError as error:
        raise MisalignedRecordsError(
            f"join={join!r} cannot align the records ({error}); pass another join, or select first"
        ) from error
    for name, dtype in dtypes.items():
        if dtype.kind == "V":
            joined[name] = joined[name].astype(dtype)
    return joined


def _with_room(ds: xr.Dataset, join: str) -> xr.Dataset:
    """Return a record in dtypes that can hold gaps and that xarray can move."""
    changed = {
        name: variable.astype(_roomy(variable.dtype, join))
        for name, variable in ds.data_vars.items()
    }
    for name, variable in changed.items():
        original = ds[name]
        lossy = variable.dtype.kind == "f" and original.dtype.kind in "iu"
        if lossy and not bool((np.abs(original.values.astype(object)) <= 2**53).all()):
            raise ValueError(f"{name!r} has integers above 2**53, and float64 would change them")
    return ds.assign(changed)


def _roomy(dtype: np.dtype[Any], join: str) -> np.dtype[Any]:
    if dtype.kind == "V":  # bfloat16 and its kin; float32 holds them all
        return np.dtype(np.float32)
    return np.dtype(np.float64) if join == "outer" and dtype.kind in "biu" else dtype
