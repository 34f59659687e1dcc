"""Sparse matrices out of a record: in the form of each library, dense, or as a list of synapses.

What is asked for is read a band at a time, so that it costs no more memory than it takes itself.
How a record holds a sparse matrix is `gathered`'s to say; nothing is stored here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neurostore import gathered
from neurostore.errors import DamagedError, MisalignedRecordsError, ValidationError
from neurostore.optional import needs

__all__ = [
    "coarse",
    "is_gathered",
    "joint_patterns",
    "synapses",
    "to_bcoo",
    "to_dense",
    "to_pydata",
    "to_scipy",
]

Array = np.ndarray[Any, np.dtype[Any]]
#: Synapses that are decoded at once.
_BAND = 2**20
#: What SciPy's matrices take and then cannot compute with, or change.
_NOT_IN_SCIPY = frozenset({"float16"})


def is_gathered(ds: xr.Dataset, name: str) -> bool:
    """Tell whether a variable is a sparse matrix, and nothing but one."""
    dims = ds.variables[name].dims
    return len(dims) == 1 and dims[0] in gathered.patterns(ds.variables)


def to_scipy(ds: xr.Dataset, name: str) -> Any:
    """Return a matrix of a record as ``scipy.sparse.csr_array``, shape (pre, post).

    Parameters
    ----------
    ds
        A record, or a part of one that was selected by labels.
    name
        A variable of two dimensions, sparse or dense.

    Raises
    ------
    ValidationError
        There is no such matrix, or SciPy has no sparse matrices of its dtype.
    MissingPackageError
        SciPy is not installed.

    Examples
    --------
    >>> import neurostore, scipy.sparse
    >>> ds = neurostore.network_snapshot(weights=scipy.sparse.eye_array(3), timestamp=0.0)
    >>> to_scipy(ds, "weights").nnz
    3
    """
    with needs("sparse", "a scipy.sparse matrix"):
        from scipy import sparse
    dtype = _variable(ds, name).dtype
    if dtype.kind == "V" or dtype.name in _NOT_IN_SCIPY:
        raise ValidationError(
            f"{name}: SciPy has no sparse matrices of {dtype}; to_sparse() and to_bcoo() keep it, "
            "or cast it with .astype()"
        )
    values, shape = _matrix(ds, name)
    if isinstance(values, np.ndarray):
        return sparse.csr_array(values)
    small = max(*shape, len(values.data), 1) <= np.iinfo(np.int32).max
    index = np.int32 if small else np.int64
    columns = np.empty(len(values.data), index)
    counts: Array = np.zeros(shape[0] + 1, index)
    for where, rows, found in _bands(values.places, shape):
        columns[where] = found
        if len(rows):
            first = int(rows[0])
            more = np.bincount(rows - first)
            part = counts[first + 1 : first + 1 + len(more)]
            np.add(part, more.astype(index), out=part)
    np.cumsum(counts, out=counts)
    made = sparse.csr_array((values.data, columns, counts), shape=shape)
    made.has_sorted_indices = True
    return made


def to_pydata(ds: xr.Dataset, name: str) -> Any:
    """Return a matrix of a record as ``sparse.COO`` of the package pydata/sparse.

    Raises
    ------
    ValidationError
        There is no such matrix.
    MissingPackageError
        The package is not installed.
    """
    with needs("sparse", "a sparse.COO"):
        import sparse
    values, shape = _matrix(ds, name)
    if isinstance(values, np.ndarray):
        return sparse.COO.from_numpy(values)
    return sparse.COO(
        _coordinates(values.places, shape, np.dtype(np.int64)).T,
        values.data,
        shape=shape,
        sorted=True,
        has_duplicates=False,
    )


def to_bcoo(ds: xr.Dataset, name: str) -> Any:
    """Return a matrix of a record as ``jax.experimental.sparse.BCOO``.

    Raises
    ------
    ValidationError
        There is no such matrix, or JAX would narrow its values.
    """
    from jax import dtypes
    from jax import numpy as jnp
    from jax.experimental import sparse

    values, shape = _matrix(ds, name)
    dtype = ds.variables[name].dtype
    if dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValidationError(
            f"{name}: JAX would narrow {dtype}; call jax.config.update('jax_enable_x64', True) "
            "first, or cast with .astype()"
        )
    if isinstance(values, np.ndarray):
        return sparse.BCOO.fromdense(jnp.asarray(values))
    indices = jnp.asarray(_coordinates(values.places, shape, np.dtype(np.int32)))
    data = jnp.asarray(values.data)
    return sparse.BCOO((data, indices), shape=shape, indices_sorted=True, unique_indices=True)


def to_dense(ds: xr.Dataset) -> xr.Dataset:
    """Return a record or range with its sparse matrices dense; synapses that are not there are 0.

    Examples
    --------
    >>> import neurostore, scipy.sparse
    >>> ds = neurostore.network_snapshot(weights=scipy.sparse.eye_array(2), timestamp=0.0)
    >>> to_dense(ds).weights.values
    array([[1., 0.],
           [0., 1.]])
    """
    found = gathered.patterns(ds.variables)
    if not found:
        return ds
    variables = {}
    for name, variable in ds.variables.items():
        if name not in found:
            variables[name] = _dense(variable, ds, found)
    coords = {name: variables.pop(name) for name in ds.coords if name not in found}
    made = xr.Dataset(variables, coords, ds.attrs)
    made.encoding = dict(ds.encoding)
    return made


def _dense(variable: xr.Variable, ds: xr.Dataset, found: gathered.Patterns) -> xr.Variable:
    for dim in [dim for dim in variable.dims if dim in found]:
        axis = variable.dims.index(dim)
        shape = tuple(ds.sizes[inner] for inner in found[dim])
        before, after = variable.shape[:axis], variable.shape[axis + 1 :]
        flat = np.zeros((*before, math.prod(shape), *after), variable.dtype)
        places = ds.variables[dim].values
        _check(places, shape, dim)
        flat[(slice(None),) * axis + (places,)] = variable.values
        dims = (*variable.dims[:axis], *found[dim], *variable.dims[axis + 1 :])
        variable = xr.Variable(dims, flat.reshape(*before, *shape, *after), variable.attrs)
    return variable


def synapses(
    ds: xr.Dataset, pre: Any = None, post: Any = None, name: str | None = None
) -> xr.Dataset:
    """Return synapses as a list: values, and the labels of both neurons, along one dimension.

    Parameters
    ----------
    ds
        A sparse record; of a stored one only the chunks that are needed are read.
    pre, post
        A label, a slice, or labels of neurons on that side; None is all of them.
    name
        A variable, where a record has matrices of several patterns.

    Raises
    ------
    ValidationError
        There is no sparse matrix, or several of different patterns.
    KeyError
        A neuron has no such label.

    Examples
    --------
    >>> import neurostore, scipy.sparse
    >>> weights = scipy.sparse.csr_array(([0.5, 0.7], ([0, 2], [1, 0])), shape=(3, 3))
    >>> ds = neurostore.network_snapshot(weights=weights, timestamp=0.0, labels=[10, 20, 30])
    >>> synapses(ds, pre=30).post.values
    array([10])
    """
    found = gathered.patterns(ds.variables)
    there = {dim for dim in found if any(dim in v.dims for v in ds.data_vars.values())}
    if name is not None:
        there &= set(_variable(ds, name).dims)
    if len(there) != 1:
        problem = "several patterns" if there else "no sparse matrix"
        raise ValidationError(f"synapses: {problem} here; expected name= of one sparse variable")
    (dim,) = there
    labels = {axis: v for axis, v in zip(found[dim], (pre, post), strict=True) if v is not None}
    part = ds.sel(labels) if labels else ds
    shape = tuple(part.sizes[axis] for axis in found[dim])
    indices = _coordinates(part.variables[dim].values, shape, np.dtype(np.int64))
    coords: dict[Hashable, Any] = {
        axis: (dim, part.variables[axis].values[indices[:, position]], part[axis].attrs)
        for position, axis in enumerate(found[dim])
    }
    coords |= {k: v.variable for k, v in part.coords.items() if not v.ndim}
    values = {k: v.variable for k, v in part.data_vars.items() if dim in v.dims}
    made = xr.Dataset(values, coords, ds.attrs)
    made.encoding = dict(ds.encoding)
    return made


def coarse(
    ds: xr.Dataset, name: str, most: int, *, whole: bool = False
) -> tuple[xr.DataArray, tuple[int, int]]:
    """Return means over the synapses of blocks of a matrix, NaN where a block has none.

    Parameters
    ----------
    most
        Blocks along each dimension, at most.
    whole
        Return means over the whole blocks, in which a place without a synapse is 0.

    Returns
    -------
    DataArray, (int, int)
        The means, shape (pre, post), labelled by the first neuron of each block, and how many rows
        and columns a block has.
    """
    values, shape = _matrix(ds, name)
    assert not isinstance(values, np.ndarray)
    tall, wide = (-(-size // most) or 1 for size in shape)
    grid = (-(-shape[0] // tall), -(-shape[1] // wide))
    total, count = np.zeros(math.prod(grid)), np.zeros(math.prod(grid))
    for where, rows, columns in _bands(values.places, shape):
        cell = rows // tall * grid[1] + columns // wide
        part = values.data[where]
        numbers = np.abs(part) if part.dtype.kind == "c" else part.astype(np.float64)
        total += np.bincount(cell, numbers, len(total))
        count += np.bincount(cell, minlength=len(count))
    with np.errstate(invalid="ignore"):
        means = (total / count).reshape(grid)
    if whole:
        heights, widths = (
            np.minimum(step, size - np.arange(0, size, step))
            for step, size in zip((tall, wide), shape, strict=True)
        )
        means = total.reshape(grid) / np.outer(heights, widths)
    dims = gathered.patterns(ds.variables)[ds.variables[name].dims[0]]
    steps = {
        dim: ds.variables[dim].values[::step] if dim in ds.variables else np.arange(0, size, step)
        for dim, size, step in zip(dims, shape, (tall, wide), strict=True)
    }
    return xr.DataArray(means, steps, dims, name, dict(ds[name].attrs)), (tall, wide)


def joint_patterns(
    old: xr.Dataset, new: xr.Dataset, names: tuple[str, str]
) -> tuple[xr.Dataset, xr.Dataset]:
    """Return two sparse records with a value, if only 0, for each synapse that either of them has.

    Records without sparse matrices are returned as they are.

    Parameters
    ----------
    names
        How the two are called in errors.

    Raises
    ------
    MisalignedRecordsError
        Only one has a sparse matrix, or their neurons are not the same.
    """
    found, others = (gathered.patterns(ds.variables) for ds in (old, new))
    if not found and not others:
        return old, new
    shared = [name for name in old.data_vars if name in new.data_vars]
    if found != others or any(old[name].dims != new[name].dims for name in shared):
        raise MisalignedRecordsError(
            f"{names[0]!r} and {names[1]!r} are not sparse alike; make both dense, with "
            "ds.neuro.to_dense(), and subtract"
        )
    for axis in {axis for dims in found.values() for axis in dims}:
        if not np.array_equal(old[axis].values, new[axis].values):
            raise MisalignedRecordsError(
                f"{axis!r} has other labels in {names[0]!r} than in {names[1]!r}, so their "
                "synapses have no common places; make both dense, with ds.neuro.to_dense()"
            )
    unions = {dim: np.union1d(old[dim].values, new[dim].values) for dim in found}
    return _on_places(old, unions, found), _on_places(new, unions, found)


def _on_places(
    ds: xr.Dataset, unions: dict[Hashable, Array], found: gathered.Patterns
) -> xr.Dataset:
    """Return ``ds`` with values at other places too, and with the default indexes."""
    variables: dict[Hashable, xr.Variable] = {}
    for name, variable in ds.variables.items():
        dim = next((dim for dim in variable.dims if dim in unions), None)
        if name in unions:
            variable = xr.Variable((name,), unions[name], variable.attrs)
        elif dim is not None:
            axis = variable.dims.index(dim)
            shape = list(variable.shape)
            shape[axis] = len(unions[dim])
            values = np.zeros(shape, variable.dtype)
            there = np.searchsorted(unions[dim], ds.variables[dim].values)
            values[(slice(None),) * axis + (there,)] = variable.values
            variable = xr.Variable(variable.dims, values, variable.attrs)
        variables[name] = variable
    coords = {name: variables.pop(name) for name in ds.coords}
    return xr.Dataset(variables, coords, ds.attrs)


# -- places ----------------------------------------------------------------------------------------


class _Values:
    """Values of a sparse matrix, and the variable of their places."""

    def __init__(self, places: xr.Variable, data: Array) -> None:
        self.places = places
        self.data = data


def _variable(ds: xr.Dataset, name: str) -> xr.Variable:
    if name not in ds.data_vars:
        shown = ", ".join(map(str, ds.data_vars))
        raise ValidationError(f"{name!r} is no variable here; expected one of {shown}")
    return ds.variables[name]


def _matrix(ds: xr.Dataset, name: str) -> tuple[_Values | Array, tuple[int, int]]:
    """Return a matrix as values by place, or as it is if it is dense, and its shape."""
    variable = _variable(ds, name)
    found = gathered.patterns(ds.variables)
    if variable.ndim == 2 and not set(variable.dims) & found.keys():
        return variable.values, (variable.shape[0], variable.shape[1])
    if variable.ndim != 1 or variable.dims[0] not in found:
        raise ValidationError(
            f"{name!r} has dims {variable.dims}, expected one matrix; select one step or record "
            "of it first, with isel"
        )
    dim = variable.dims[0]
    missing = [axis for axis in found[dim] if axis not in ds.sizes]
    if missing:
        raise ValidationError(
            f"{name!r} is a sparse matrix without {missing[0]!r}, expected both of its axes; "
            "select from the record as it was retrieved"
        )
    shape = (ds.sizes[found[dim][0]], ds.sizes[found[dim][1]])
    values, places = variable.values, ds.variables[dim]
    last = -1
    for start in range(0, len(places), _BAND):
        band = places[start : start + _BAND].values
        if int(band[0]) <= last or not (band[1:] > band[:-1]).all():  # isel may take any order
            whole = places.values
            order = np.argsort(whole, kind="stable")
            values, places = values[order], xr.Variable((dim,), whole[order])
            break
        last = int(band[-1])
    return _Values(places, values), shape


def _bands(places: xr.Variable, shape: Sequence[int]) -> Iterator[tuple[slice, Array, Array]]:
    """Yield rows and columns of the synapses, many at a time."""
    for start in range(0, len(places), _BAND):
        where = slice(start, min(start + _BAND, len(places)))
        band = places[where].values
        _check(band, shape, places.dims[0])
        rows = band // shape[1]
        yield where, rows, band - rows * band.dtype.type(shape[1])


def _check(band: Array, shape: Sequence[int], dim: Hashable) -> None:
    size = math.prod(shape)
    if len(band) and (int(band.min()) < 0 or int(band.max()) >= size):
        raise DamagedError(
            f"{dim} has places from {band.min()} to {band.max()}, expected 0 to {size - 1} in a "
            f"matrix of {' x '.join(map(str, shape))}; were its neurons cut without it?"
        )


def _coordinates(places: Any, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Return row and column of every synapse, shape (synapse, 2)."""
    variable = places if isinstance(places, xr.Variable) else xr.Variable(("synapse",), places)
    made = np.empty((len(variable), 2), dtype)
    for where, rows, columns in _bands(variable, shape):
        made[where, 0], made[where, 1] = rows, columns
    return made
