"""Sample records made from the rows of the table of kinds, and what it means to be the same.

Nothing here knows a kind by its name: shapes come from a row's dimensions, dtypes from what it
allows, so a row that is added is sampled like the others.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import ml_dtypes
import numpy as np
import scipy.sparse
import xarray as xr

from neurostore import builders
from neurostore.schema import Kind, Variable

T = 1_700_000_000.123456
METADATA = {"subject": "Ünï", "trial": 3, "nested": {"a": [1, None, True, 2.5]}}
NAME = "main/0 ü"

#: One dtype for every letter that a row may allow.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "b": np.dtype(bool),
    "i": np.dtype("i8"),
    "u": np.dtype("u2"),
    "f": np.dtype("f4"),
    "c": np.dtype("c8"),
    "V": np.dtype(ml_dtypes.bfloat16),
    "U": np.dtype("U3"),
    "S": np.dtype("S3"),
    "M": np.dtype("M8[ms]"),
    "m": np.dtype("m8[ns]"),
}


def array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return values that differ from each other; integers are large where they can be."""
    count = np.arange(int(np.prod(shape)), dtype="i8")
    if dtype.kind in "US":
        return np.array([f"n{n}"[: dtype.itemsize] for n in count], dtype).reshape(shape)
    if dtype.kind in "iu":
        top = np.iinfo(dtype).max
        return (top - count.astype("u8")).astype(dtype).reshape(shape)
    return (count + 1).astype(dtype).reshape(shape)


def dtype_of(rule: Variable, wanted: str) -> np.dtype[Any]:
    """Return the dtype for ``wanted``, or for the first letter that the row allows."""
    default = "f" if "f" in rule.kinds else rule.kinds[0]
    return DTYPES[wanted if wanted in rule.kinds else default]


def dims_of(rule: Variable, variant: int) -> tuple[str, ...]:
    """Return the dimensions that the row gives in its ``variant``-th way."""
    if rule.any_rank is not None:
        return rule.dims_for((2, 1, 0, 3)[variant % 4]) or ()
    return rule.dims[min(variant, len(rule.dims) - 1)]


class Sparse(Kind):
    """A kind whose samples have their matrices sparse, with explicit zeros and empty rows."""

    @classmethod
    def of(cls, kind: Kind) -> Sparse:
        return cls(**{field.name: getattr(kind, field.name) for field in fields(Kind)})


def sparse(dense: np.ndarray[Any, Any]) -> scipy.sparse.csr_array:
    """Return every third value of a matrix, of which one is 0."""
    rows, columns = (places[::3] for places in np.indices(dense.shape).reshape(2, -1))
    data = dense[rows, columns].copy()
    data[:1] = 0
    places = (rows.astype(np.int32), columns.astype(np.int32))
    return scipy.sparse.coo_array((data, places), shape=dense.shape).tocsr()


def variants(kind: Kind) -> int:
    """Return in how many ways the dimensions of a kind can be chosen."""
    return max(4 if rule.any_rank else len(rule.dims) for rule in kind.variables)


def values(kind: Kind, *, variant: int = 0, dtype: str = "f") -> dict[str, Any]:
    """Return arrays (or dicts) by the name of the kind's variables."""
    if kind.mapping == "variables":
        (rule,) = kind.variables
        shapes = {"in/put": (4, 3), "hidden": (4, 2, 3), "layer": (4,)}
        if variant % 2:
            shapes = {"in/put": (2, 3), "hidden": (4, 3)}
        made = dtype_of(rule, dtype)
        return {rule.name: {name: array(shape, made) for name, shape in shapes.items()}}
    if kind.mapping == "labels":
        return {kind.variables[0].name: {"loss": 0.23, "accuracy": 0.85, "Ünï code": -1e300}}
    sizes: dict[str, int] = {}
    lengths = itertools.cycle((3, 4))
    made_values = {}
    for rule in kind.variables:
        dims = dims_of(rule, variant)
        for dim in dims:
            if dim not in sizes:
                sizes[dim] = next(lengths)
        made = array(tuple(sizes[dim] for dim in dims), dtype_of(rule, dtype))
        is_sparse = isinstance(kind, Sparse) and dims == ("pre", "post") and made.dtype.kind != "V"
        made_values[rule.name] = sparse(made) if is_sparse else made
    return made_values


def record(
    kind: Kind,
    *,
    variant: int = 0,
    dtype: str = "f",
    timestamp: Any = T,
    name: str = NAME,
    metadata: Any = METADATA,
    coords: Mapping[Any, Any] | None = None,
    only_required: bool = False,
) -> xr.Dataset:
    """Return a record of ``kind`` from its builder."""
    given = values(kind, variant=variant, dtype=dtype)
    if only_required and any(rule.required for rule in kind.variables):
        given = {rule.name: given[rule.name] for rule in kind.variables if rule.required}
    if kind.label is not None:
        given[kind.label] = name
    details = {kind.details: metadata}
    return builders.builder(kind)(**given, timestamp=timestamp, coords=coords, **details)


def assert_same_values(got: Any, wanted: Any, where: str = "") -> None:
    """Same dtype, shape and bits; text may come back in a wider dtype of its kind."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape, f"{where}: {got.shape} instead of {wanted.shape}"
    if wanted.dtype.kind == "U":
        assert got.dtype.kind == "U", f"{where}: {got.dtype}"
        assert got.tolist() == wanted.tolist(), where
        return
    assert got.dtype == wanted.dtype, f"{where}: {got.dtype} instead of {wanted.dtype}"
    if got.tobytes() != wanted.tobytes():
        odd = np.flatnonzero(_bits(got) != _bits(wanted))
        first = np.unravel_index(odd[0], got.shape)
        raise AssertionError(
            f"{where}: {len(odd)} of {got.size} values differ, the first at "
            f"{tuple(map(int, first))}: {got[first]!r} instead of {wanted[first]!r}"
        )


def _bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(values).reshape(-1).view(f"V{values.dtype.itemsize}")


def assert_same_attrs(got: Mapping[Any, Any], wanted: Mapping[Any, Any], where: str = "") -> None:
    """Same names, and values that Python takes for equal (a list stays a list)."""
    assert set(got) == set(wanted), f"{where}: {set(got) ^ set(wanted)} are on one side only"
    for name, value in wanted.items():
        here = f"{where}.attrs[{name!r}]"
        if isinstance(value, np.ndarray):
            assert_same_values(got[name], value, here)
        elif isinstance(value, float) and value != value:
            assert got[name] != got[name], here
        else:
            assert got[name] == value, f"{here}: {got[name]!r} instead of {value!r}"
            same_family = isinstance(got[name], np.generic) or type(got[name]) is type(value)
            assert same_family, f"{here}: {type(got[name])} instead of {type(value)}"


def assert_same(got: xr.Dataset, wanted: xr.Dataset, *, attrs: bool = True) -> None:
    """Same variables, coordinates, dims, dtypes, bits and attributes."""
    assert set(map(str, got.variables)) == set(map(str, wanted.variables))
    assert set(got.coords) == set(wanted.coords)
    for name, variable in wanted.variables.items():
        found = got.variables[name]
        assert found.dims == variable.dims, name
        assert_same_values(found.values, variable.values, str(name))
        assert_same_attrs(found.attrs, variable.attrs, str(name))
    assert dict(got.sizes) == dict(wanted.sizes)
    assert set(got.xindexes) == set(wanted.xindexes)
    if attrs:
        assert_same_attrs(got.attrs, wanted.attrs, "record")


def metadata_of(ds: xr.Dataset, kind: Kind) -> Any:
    """Return the record's JSON."""
    return json.loads(ds.attrs[kind.details])
