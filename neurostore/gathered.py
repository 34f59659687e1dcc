"""Sparse matrices as netCDF can say them: the values there are, and where each of them belongs.

The CF conventions call it compression by gathering: values lie along one dimension, and the label
of each is its place in the matrix, row by row, as one number.  This module turns the matrices of
SciPy, pydata/sparse and JAX into that and tells what is in that form; it imports none of these
packages, and makes no matrix again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurostore import types
from neurostore.schema import GATHERED

__all__ = [
    "COMPRESS",
    "Gathered",
    "Patterns",
    "expanded",
    "gather",
    "is_sparse",
    "odd_indices",
    "odd_patterns",
    "patterns",
    "take_apart",
]

Array = np.ndarray[Any, np.dtype[Any]]
#: Dimension of the values: the dimensions that they stand for.
Patterns = Mapping[Hashable, tuple[str, ...]]

#: CF's attribute of such labels.
COMPRESS = "compress"
_ATTRS = {
    "long_name": "place of the synapse in the matrix, row by row from 0",
    COMPRESS: " ".join(next(iter(GATHERED.values()))),
}
_LABEL_ATTRS = {"long_name": "position of the neuron"}


@dataclass(frozen=True)
class Gathered:
    """A sparse matrix: `places` ascend, each is there once, and has one of the `values`."""

    places: Array
    values: Array


def patterns(variables: Mapping[Hashable, Any]) -> dict[Hashable, tuple[str, ...]]:
    """Return the dimensions along which ``variables`` hold gathered values; no value is read."""
    found = {}
    for name, variable in variables.items():
        if variable.dims == (name,) and COMPRESS in variable.attrs:
            dims = tuple(str(variable.attrs[COMPRESS]).split())
            if dims in GATHERED.values():
                found[name] = dims
    return found


def expanded(dims: Iterable[Hashable], found: Patterns) -> tuple[Hashable, ...]:
    """Return the dimensions that a variable stands for.

    >>> expanded(("time", "synapse"), {"synapse": ("pre", "post")})
    ('time', 'pre', 'post')
    """
    return tuple(inner for dim in dims for inner in found.get(dim, (dim,)))


def odd_patterns(variables: Mapping[Hashable, Any], sizes: Mapping[Hashable, int]) -> list[str]:
    """Return what is wrong with the labels of gathered values, as far as these are in memory."""
    problems = []
    for name, dims in patterns(variables).items():
        variable = variables[name]
        missing = [dim for dim in dims if dim not in sizes]
        if missing:
            problems.append(
                f"{name}: {missing[0]!r} has no size; expected a coordinate of that name, or a "
                "dense variable along it"
            )
        elif variable.dtype.kind not in "iu":
            problems.append(f"{name} has dtype {variable.dtype}, expected integers")
        elif isinstance(variable.values, np.ndarray):
            shape = tuple(sizes[dim] for dim in dims)
            problems += odd_indices(variable.values, shape, str(name))
    return problems


def odd_indices(places: Array, shape: tuple[int, ...], what: str) -> list[str]:
    """Return what is wrong with places in a matrix of ``shape``."""
    size = int(np.prod(shape, dtype=object))
    if not len(places):
        return []
    if not (places[1:] > places[:-1]).all():
        return [
            f"{what} does not ascend, or has a place twice; expected every place of the matrix "
            f"once, in ascending order: ds.sortby({what!r})"
        ]
    if int(places[0]) < 0 or int(places[-1]) >= size:
        return [
            f"{what} goes from {places[0]} to {places[-1]}, expected places from 0 to {size - 1} "
            f"in a matrix of {' x '.join(map(str, shape))}"
        ]
    return []


def is_sparse(value: Any) -> bool:
    """Tell whether ``value`` is a sparse array of a library that is known here.

    >>> import scipy.sparse
    >>> is_sparse(scipy.sparse.eye_array(3)), is_sparse(np.eye(3))
    (True, False)
    """
    return type(value) is not np.ndarray and _reader(value) is not None


def gather(value: Any) -> Gathered:
    """Return the values of a sparse matrix by their places; explicit zeros are among them.

    Raises
    ------
    ValueError
        It is no matrix, has a fill value that is not 0, an index outside it, or two values in
        one place.
    TypeError
        Its values cannot be stored.
    """
    read = _reader(value)
    assert read is not None
    shape = tuple(map(int, value.shape))
    if len(shape) != 2:
        raise ValueError(f"has shape {shape}, expected a sparse matrix of two dimensions")
    if not types.is_storable(np.dtype(value.dtype)):
        raise TypeError(f"has dtype {value.dtype}, which cannot be stored exactly; use .astype()")
    rows, columns, values = map(np.asarray, read(value))
    return _ordered(rows, columns, values, shape)


def _ordered(rows: Array, columns: Array, values: Array, shape: tuple[int, ...]) -> Gathered:
    for axis, (indices, size) in enumerate(zip((rows, columns), shape, strict=True)):
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= size):
            raise ValueError(
                f"has indices from {indices.min()} to {indices.max()} along axis {axis}, expected "
                f"0 to {size - 1}"
            )
    last = shape[0] * shape[1] - 1
    if last > np.iinfo(np.int64).max:
        raise ValueError(f"has shape {shape}, which has more places than int64 can count")
    small = max(last, *shape) <= np.iinfo(np.int32).max
    places: Array = rows.astype(np.int32 if small else np.int64)
    np.multiply(places, shape[1], out=places)
    np.add(places, columns.astype(places.dtype, copy=False), out=places)
    if not bool(np.all(places[1:] > places[:-1])):
        order = np.argsort(places, kind="stable")
        places, values = places[order], values[order]
        twice = np.flatnonzero(places[1:] == places[:-1])
        if len(twice):
            row, column = divmod(int(places[twice[0]]), shape[1])
            raise ValueError(
                f"has {len(twice)} values in places that have one already, the first at "
                f"({row}, {column}); add them up first (sum_duplicates()), or store one value per "
                "synapse as a dense array"
            )
    return Gathered(places, values)


def _reader(value: Any) -> Callable[[Any], tuple[Any, Any, Any]] | None:
    for cls in type(value).__mro__:
        for package, read in _READERS.items():
            if f"{cls.__module__}.".startswith(f"{package}."):
                return read
    return None


def _of_scipy(value: Any) -> tuple[Any, Any, Any]:
    if hasattr(value, "check_format"):
        value.check_format(full_check=True)  # else indices outside it are followed into memory
    listed = value.tocoo(copy=False)
    return listed.row, listed.col, listed.data


def _of_pydata(value: Any) -> tuple[Any, Any, Any]:
    if value.fill_value != 0:
        raise ValueError(f"has the fill value {value.fill_value!r}, expected 0")
    listed = value if hasattr(value, "coords") else value.asformat("coo")
    return listed.coords[0], listed.coords[1], listed.data


def _of_jax(value: Any) -> tuple[Any, Any, Any]:
    listed = value.to_bcoo() if hasattr(value, "to_bcoo") else value
    if getattr(listed, "n_sparse", None) != 2:
        raise ValueError(
            f"is a {type(value).__name__} that is sparse along some of its axes or in another "
            "form; expected a BCOO or BCSR matrix without batch and dense dimensions"
        )
    indices, values = np.asarray(listed.indices), np.asarray(listed.data)
    # JAX fills up to `nse` with indices that are the shape.
    real = (indices < np.asarray(listed.shape, indices.dtype)).all(axis=1)
    if not real.all():
        indices, values = indices[real], values[real]
    return indices[:, 0], indices[:, 1], values


_READERS: dict[str, Callable[[Any], tuple[Any, Any, Any]]] = {
    "scipy.sparse": _of_scipy,
    "sparse": _of_pydata,
    "jax.experimental.sparse": _of_jax,
}


def take_apart(
    variables: dict[Hashable, Any], make: Callable[..., Any]
) -> tuple[set[Hashable], list[str]]:
    """Replace sparse matrices among ``variables`` by their values and the labels of these.

    Matrices of one pattern share its labels.  Dimensions without labels get positions, since
    nothing else says how long they are.

    Parameters
    ----------
    variables
        Have ``dims``, ``values`` and ``attrs``; those that are sparse are replaced.
    make
        Makes one of them from dims, values and attributes.

    Returns
    -------
    set, list
        Names of the new coordinates, and what is wrong with the matrices.
    """
    held: dict[str, Array] = {}
    added: set[Hashable] = set()
    problems = []
    for name, variable in list(variables.items()):
        if not is_sparse(variable.values):
            continue
        dims, value = variable.dims, variable.values
        if dims[::-1] in GATHERED.values():
            dims, value = dims[::-1], value.T
        if dims not in GATHERED.values():
            shown = " or ".join(sorted({str(known) for known in GATHERED.values()}))
            problems.append(
                f"{name} is sparse and has dims {dims}, expected {shown}; or a dense one"
            )
            continue
        try:
            found = gather(value)
        except (TypeError, ValueError) as error:
            problems.append(f"{name} {error}")
            continue
        dim = _dimension(found.places, dims, held, variables)
        if dim is None:
            problems.append(f"{name}: {', '.join(GATHERED)} are all taken by other variables")
            continue
        if dim not in held:
            held[dim] = found.places
            variables[dim] = make((dim,), found.places, dict(_ATTRS))
            added.add(dim)
        variables[name] = make((dim,), found.values, variable.attrs)
        for axis, size in zip(dims, value.shape, strict=True):
            if axis not in variables:
                positions = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
                variables[axis] = make((axis,), positions, dict(_LABEL_ATTRS))
                added.add(axis)
    return added, problems


def _dimension(
    places: Array, dims: tuple[str, ...], held: dict[str, Array], taken: Mapping[Hashable, Any]
) -> str | None:
    """Return the dimension of a pattern: that of one that is equal, or the first that is free."""
    for dim, wanted in GATHERED.items():
        if wanted != dims:
            continue
        if dim in held and np.array_equal(held[dim], places):
            return dim
        if dim not in taken and all(dim not in variable.dims for variable in taken.values()):
            return dim
    return None
