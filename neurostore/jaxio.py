"""JAX arrays out of labelled data, without a silent change of dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neurostore.errors import ValidationError

__all__ = ["to_jax"]


def to_jax(ds: xr.Dataset) -> dict[str, Any]:
    """Return the numeric variables of ``ds`` as JAX arrays by name.

    Text and dates, which JAX does not have, are left out.
    """
    import jax.numpy as jnp

    numeric = {str(k): v for k, v in ds.variables.items() if v.dtype.kind in "biufcV"}
    refused = [f"{k} is {v.dtype}" for k, v in numeric.items() if v.ndim and _narrows(v.dtype)]
    if refused:
        raise ValidationError.of(
            "to_jax: JAX would narrow the values; call "
            "jax.config.update('jax_enable_x64', True) first, or cast with .astype()",
            refused,
        )
    return {k: jnp.asarray(v.values) for k, v in numeric.items() if v.ndim or not _narrows(v.dtype)}


def _narrows(dtype: np.dtype[Any]) -> bool:
    import jax

    return bool(jax.dtypes.canonicalize_dtype(dtype) != dtype)
