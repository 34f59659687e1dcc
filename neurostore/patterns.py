"""Label selection over the synapses of a sparse matrix: one index over its dimensions and values.

``ds.sel(pre=[...], post=[...])`` on values that stand for a matrix has to take the synapses along
with the neurons, and to number their places anew.  `PatternIndex` does, reads no more of the places
than it needs, and refuses a selection by position that would leave them behind.  It does not align
two patterns: they are equal, or refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.indexes import PandasIndex

from neurostore.errors import DamagedError, MisalignedRecordsError, ValidationError
from neurostore.gathered import odd_indices, patterns
from neurostore.index import Column

__all__ = ["PatternIndex", "pattern_coords", "with_pattern_index"]

Array = np.ndarray[Any, np.dtype[Any]]
#: Places that are read to find one: as many as a chunk of a store has by default.
_BLOCK = 65_536
#: Stretches of rows beyond which all places are read rather than searched for each.
_FEW = 32


class PatternIndex(xr.Index):
    """Index over gathered values and the dimensions that they stand for.

    It is on every sparse record that comes out of a builder or a store.  ``ds.sel`` takes labels of
    ``pre`` and ``post``, alone or together, with the synapses between these neurons; a single label
    keeps its dimension.  ``ds.isel(synapse=...)`` takes some of the synapses; by position, neurons
    alone cannot be taken.

    Examples
    --------
    >>> import neurostore, scipy.sparse
    >>> weights = scipy.sparse.csr_array(([0.5, 0.7], ([0, 2], [1, 0])), shape=(3, 3))
    >>> ds = neurostore.network_snapshot(weights=weights, timestamp=0.0, labels=[10, 20, 30])
    >>> ds.sel(pre=[30]).weights.values
    array([0.7])
    """

    def __init__(
        self, columns: Mapping[Any, Column], labels: Mapping[Any, PandasIndex], dims: Any
    ) -> None:
        self._columns = dict(columns)
        self._labels = dict(labels)
        self._dims: dict[Hashable, tuple[str, ...]] = dict(dims)
        self._firsts: dict[tuple[Hashable, int], int] = {}
        self._sound: set[Hashable] = set()

    @classmethod
    def from_variables(
        cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]
    ) -> PatternIndex:
        """Index ``variables``: places, which are not loaded, and labels of their dimensions."""
        dims = patterns(variables)
        axes = {axis for own in dims.values() for axis in own}
        if options or not dims or set(variables) != {*dims, *axes}:
            raise ValidationError(
                f"PatternIndex: got {sorted(map(str, variables))} {options or ''}, expected "
                "coordinates with the attribute compress and those that it names"
            )
        columns = {name: Column.of(variables[name]) for name in dims}
        labels = {a: PandasIndex.from_variables({a: variables[a]}, options={}) for a in axes}
        return cls(columns, labels, dims)

    def create_variables(
        self, variables: Mapping[Any, xr.Variable] | None = None
    ) -> dict[Any, xr.Variable]:
        """Coordinates over this index, with the attributes of ``variables``."""
        given = variables or {}
        made = {name: c.variable(name, given.get(name)) for name, c in self._columns.items()}
        for name, index in self._labels.items():
            own = {name: given[name]} if name in given else None
            made.update(index.create_variables(own))
        return made

    def sel(
        self, labels: dict[Any, Any], method: str | None = None, tolerance: Any = None
    ) -> xr.IndexSelResult:
        """Positions of the neurons, and of the synapses between them."""
        odd = [name for name in labels if name not in self._labels]
        if odd:
            raise ValidationError(
                f"sel({odd[0]}=...): places are no labels; select by {' and '.join(self._labels)}, "
                "or by position with isel"
            )
        chosen: dict[Any, Any] = {}
        for name, label in labels.items():
            index = self._labels[name]
            options = {"method": method, "tolerance": tolerance}
            found = index.sel({name: label}, **options).dim_indexers[name]
            positions = np.atleast_1d(
                np.arange(len(index.index))[
                    np.asarray(found) if not isinstance(found, slice) else found
                ]
            )
            if positions.ndim != 1 or len(np.unique(positions)) < len(positions):
                raise ValidationError(
                    f"sel({name}=...): got {label!r:.100}, expected a label, a slice, or labels "
                    "that are all different, in one dimension"
                )
            chosen[name] = positions
        for dim in self._columns:
            chosen[dim] = self._synapses(dim, chosen)
        return xr.IndexSelResult(chosen)

    def _shape(self, dim: Hashable) -> tuple[int, ...]:
        return tuple(len(self._labels[axis].index) for axis in self._dims[dim])

    def _synapses(self, dim: Hashable, chosen: Mapping[Any, Array]) -> Any:
        """Return the positions of the synapses between chosen neurons, in order of new places."""
        axes = self._dims[dim]
        shape = self._shape(dim)
        rows = chosen.get(axes[0], np.arange(shape[0]))
        spans = self._spans(dim, rows, shape)
        if axes[1] not in chosen and len(spans) == 1:
            return slice(*spans[0])
        found = np.concatenate([np.arange(*span) for span in spans] or [np.arange(0)])
        if axes[1] in chosen:
            places = self._read(dim, found, spans)
            new = _renumbered(places, shape, (chosen.get(axes[0]), chosen[axes[1]]))
            there = new >= 0
            found, new = found[there], new[there]
            if not (new[1:] > new[:-1]).all():
                found = found[np.argsort(new)]
        return found

    def _spans(self, dim: Hashable, rows: Array, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return where the synapses of each run of consecutive rows begin and end."""
        if not len(rows):
            return []
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, breaks)]
        if len(runs) > _FEW:
            self._load(dim)
        ends = [tuple(self._locate(dim, row * shape[1]) for row in run) for run in runs]
        return [(first, last) for first, last in ends]

    def _load(self, dim: Hashable) -> Array:
        """Return all places; a file of somebody else's may have them in any order."""
        places: Array = self._columns[dim].load()
        if dim not in self._sound:
            for problem in odd_indices(places, self._shape(dim), str(dim)):
                raise ValidationError(problem)
            self._sound.add(dim)
        return np.asarray(places)

    def _locate(self, dim: Hashable, place: int) -> int:
        """Return the position of the first place that is not before ``place``."""
        column = self._columns[dim]
        size = column.shape[0]
        if column.is_loaded:
            places = self._load(dim)
            return int(np.searchsorted(places, np.asarray(place, np.int64)))
        low, high = 0, -(-size // _BLOCK)  # the first block that begins at the place or after it
        while low < high:
            middle = (low + high) // 2
            if self._first(dim, middle) < place:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return 0
        block = column.read(slice((low - 1) * _BLOCK, min(low * _BLOCK, size)))
        if not (block[1:] > block[:-1]).all():
            raise DamagedError(
                f"{dim} does not ascend, expected places in order; verify() the file"
            )
        return (low - 1) * _BLOCK + int(np.searchsorted(block, np.asarray(place, np.int64)))

    def _first(self, dim: Hashable, block: int) -> int:
        key = (dim, block)
        if key not in self._firsts:
            one = slice(block * _BLOCK, block * _BLOCK + 1)
            self._firsts[key] = int(self._columns[dim].read(one)[0])
        return self._firsts[key]

    def _read(self, dim: Hashable, found: Array, spans: list[tuple[int, int]]) -> Array:
        parts = [self._columns[dim].read(slice(*span)) for span in spans]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def isel(self, indexers: Mapping[Any, Any]) -> PatternIndex | None:
        """Index of the chosen neurons and synapses; None where the synapses go away."""
        plain: dict[Any, Any] = {}
        for name, indexer in indexers.items():
            if isinstance(indexer, xr.Variable):
                if indexer.dims != (name,):
                    return None
                indexer = indexer.values
            plain[name] = indexer
        axes = [axis for axis in self._labels if axis in plain]
        behind = [dim for dim in self._columns if dim not in plain]
        if axes and behind:
            raise ValidationError(
                f"isel({axes[0]}=...) would leave the synapses of these neurons behind; use "
                f"sel({axes[0]}=...) with labels, or ds.neuro.to_dense() first"
            )
        if any(not isinstance(i, slice) and np.ndim(i) != 1 for i in plain.values()):
            return None
        columns = {
            dim: column.take(plain[dim]) if dim in plain else column
            for dim, column in self._columns.items()
        }
        labels = dict(self._labels)
        chosen = {axis: np.arange(len(labels[axis].index))[plain[axis]] for axis in axes}
        for axis in axes:
            labels[axis] = labels[axis].isel({axis: plain[axis]})
        if axes:
            columns = {
                dim: Column.of(self._anew(dim, column, chosen)) for dim, column in columns.items()
            }
        return type(self)(columns, labels, self._dims)

    def _anew(self, dim: Hashable, column: Column, chosen: Mapping[Any, Array]) -> xr.Variable:
        """Return places in the matrix of the chosen neurons."""
        axes = self._dims[dim]
        kept = (chosen.get(axes[0]), chosen.get(axes[1]))
        places = _renumbered(column.read(slice(None)), self._shape(dim), kept)
        if (places < 0).any():
            raise ValidationError(
                f"isel: {dim} has synapses of neurons that are not taken; use sel with labels"
            )
        return xr.Variable((dim,), places.astype(column.dtype))

    def equals(self, other: xr.Index, *, exclude: frozenset[Hashable] | None = None) -> bool:
        """Whether both index the same synapses between the same neurons."""
        if not isinstance(other, PatternIndex) or self._dims != other._dims:
            return False
        return all(i.equals(other._labels[a]) for a, i in self._labels.items()) and all(
            column.equals(other._columns[dim]) for dim, column in self._columns.items()
        )

    def join(self, other: PatternIndex, how: str = "inner") -> PatternIndex:
        """Return this index if both are equal; other joins are refused."""
        self._refuse_unequal(other)
        return self

    def reindex_like(self, other: PatternIndex) -> dict[Hashable, Any]:
        """No reindexing if both are equal; anything else is refused."""
        self._refuse_unequal(other)
        return {}

    def _refuse_unequal(self, other: PatternIndex) -> None:
        if not self.equals(other):
            raise MisalignedRecordsError(
                "sparse matrices of different patterns or labels are not aligned; use "
                "ds.neuro.to_dense() on each first"
            )

    def rename(
        self, name_dict: Mapping[Any, Hashable], dims_dict: Mapping[Any, Hashable]
    ) -> PatternIndex:
        """Refuse other names for the coordinates: ``compress`` names them as text."""
        mine = {*self._columns, *self._labels}
        odd = [name for name in (*name_dict, *dims_dict) if name in mine]
        if odd:
            raise ValidationError(
                f"rename: {odd[0]!r} is named by a sparse matrix; ds.neuro.to_dense() first"
            )
        return self

    def to_pandas_index(self) -> Any:
        """Refuse: pandas has no index of several coordinates along different dimensions."""
        raise TypeError(f"{self!r} has no pandas form; ds.neuro.to_dense() has")

    def __repr__(self) -> str:
        found = ", ".join(f"{dim}: {column.shape[0]}" for dim, column in self._columns.items())
        return f"PatternIndex({found})"

    def _repr_inline_(self, max_width: int) -> str:
        return repr(self)[:max_width]


def _renumbered(
    places: Array, shape: tuple[int, ...], chosen: tuple[Array | None, Array | None]
) -> Array:
    """Return places in the matrix of chosen rows and columns, -1 for those that are not in it."""
    if not len(places):
        return np.empty(0, np.int64)
    axes = list(np.divmod(places.astype(np.int64), shape[1]))
    new_shape = list(shape)
    there = np.ones(len(places), bool)
    for axis, positions in enumerate(chosen):
        if positions is not None:
            anew = np.full(shape[axis], -1, np.int64)
            anew[positions] = np.arange(len(positions))
            axes[axis] = anew[axes[axis]]
            new_shape[axis] = len(positions)
            there &= axes[axis] >= 0
    return np.where(there, axes[0] * new_shape[1] + axes[1], -1)


def pattern_coords(coords: Mapping[Any, xr.Variable]) -> Any:
    """Return coordinates with a `PatternIndex` over those of sparse matrices; nothing is loaded.

    Where there are none, or their dimensions have no labels, they are returned as they are.
    """
    found = patterns(coords)
    own = {*found, *(axis for dims in found.values() for axis in dims)}
    fitting = all(name in coords and coords[name].dims == (name,) for name in own)
    if not found or not fitting:
        return coords
    mine = {name: coords[name] for name in own}
    index = PatternIndex.from_variables(mine, options={})
    rest = xr.Dataset(coords={n: v for n, v in coords.items() if n not in own}).coords
    variables = {**{n: rest[n].variable for n in rest}, **index.create_variables(mine)}
    return xr.Coordinates(
        {name: variables[name] for name in coords},
        {**rest.xindexes, **dict.fromkeys(own, index)},
    )


def with_pattern_index(ds: xr.Dataset) -> xr.Dataset:
    """Return ``ds`` with a `PatternIndex` over its sparse matrices, if it has any."""
    found = patterns(ds.variables)
    own = [*found, *dict.fromkeys(axis for dims in found.values() for axis in dims)]
    if not found or any(name not in ds.coords for name in own):
        return ds
    if isinstance(ds.xindexes.get(own[0]), PatternIndex):
        return ds
    return ds.drop_indexes(own, errors="ignore").set_xindex(own, PatternIndex)
