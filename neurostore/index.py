"""Label selection over the events of a spike train: one index over several coordinates.

The default pandas indexes need sorted, unique labels; spike times come unsorted and neuron ids
repeat. `EventIndex` answers ``ds.sel(spike_times=slice(0.1, 0.3), neuron_ids=[1, 3])`` on such
coordinates and reads them only when a selection asks. It deliberately does not align: two
different sets of events have no common labels to meet on, so they are compared, concatenated or
refused, never joined.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.core import indexing

from neurostore.errors import MisalignedRecordsError, ValidationError

__all__ = ["Column", "EventIndex", "unloaded", "with_event_index"]

Array = npt.NDArray[Any]
Selection = slice | Array
Data = TypeVar("Data", xr.Dataset, xr.DataArray)

# Above this a float64 no longer tells neighbouring integers apart.
_EXACT = 2**53


class EventIndex(xr.Index):
    """Index over 1-D coordinates that lie along one dimension of events.

    Made by ``ds.set_xindex(["spike_times", "neuron_ids"], EventIndex)``; every coordinate named
    there takes labels in ``ds.sel``, alone or together. The spikes that satisfy all of them are
    kept, in the order in which they are stored.

    - A slice keeps the labels between its bounds, both included; either may be left open. Where
      the coordinate is sorted (looked up once, at the first slice) this is a binary search.
    - A scalar, list or array keeps every spike with one of these labels. The dimension stays,
      even for a scalar, since one neuron fires many times.
    - A label that no spike has selects nothing and is no error: a neuron that stayed silent has
      zero spikes.
    - Integer labels are compared as integers, so 18-digit ids are exact. A float label of 2**53
      or more names no single id and is refused.
    - ``method`` and ``tolerance`` are refused: a slice says which spikes are near enough.

    The coordinates are loaded at the first selection, then kept for all later ones. They are
    read-only, as every indexed coordinate of xarray is; ``ds.assign_coords`` replaces them.
    ``ds.to_dataframe()`` leaves out coordinates of any index but its own dimension's, so call
    ``ds.drop_indexes([...])`` before it.

    Examples
    --------
    >>> import xarray as xr
    >>> ds = xr.Dataset(
    ...     coords={
    ...         "spike_times": ("spike", [0.3, 0.1, 0.2, 0.9]),
    ...         "neuron_ids": ("spike", [1, 3, 2, 1]),
    ...     }
    ... ).set_xindex(["spike_times", "neuron_ids"], EventIndex)
    >>> ds.sel(spike_times=slice(0.1, 0.3), neuron_ids=[1, 3]).spike_times.values
    array([0.3, 0.1])
    """

    def __init__(self, columns: Mapping[Hashable, Column], dim: Hashable) -> None:
        self._columns = dict(columns)
        self._dim = dim

    @classmethod
    def from_variables(
        cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]
    ) -> EventIndex:
        """Index ``variables`` (each 1-D, all along one dimension) without loading them."""
        dims = {name: variable.dims for name, variable in variables.items()}
        if len(set(dims.values())) != 1 or len(next(iter(dims.values()))) != 1:
            raise ValidationError(f"EventIndex: coordinates on {dims}, expected one dimension")
        if options:
            raise ValidationError(f"EventIndex: unknown options {sorted(options)}, expected none")
        columns = {name: Column.of(variable) for name, variable in variables.items()}
        return cls(columns, next(iter(dims.values()))[0])

    def create_variables(
        self, variables: Mapping[Any, xr.Variable] | None = None
    ) -> dict[Any, xr.Variable]:
        """Coordinates over this index's labels, with the attributes of ``variables``."""
        given = variables or {}
        return {
            name: column.variable(self._dim, given.get(name))
            for name, column in self._columns.items()
        }

    def sel(
        self, labels: dict[Any, Any], method: str | None = None, tolerance: Any = None
    ) -> xr.IndexSelResult:
        """Positions of the events that satisfy every label."""
        if method is not None or tolerance is not None:
            raise ValidationError(
                f"{self!r}: method and tolerance are not supported; "
                "select a range instead, e.g. spike_times=slice(t - tolerance, t + tolerance)"
            )
        queries = [(self._columns[name], _Query.of(name, label)) for name, label in labels.items()]
        window = slice(0, self._size)
        for column, query in queries:
            window = _intersect(window, query.window(column))
        keep: Array | None = None
        for column, query in queries:
            if (mask := query.mask(column, window)) is not None:
                keep = mask if keep is None else keep & mask
        found: Selection = window if keep is None else window.start + np.flatnonzero(keep)
        return xr.IndexSelResult({self._dim: found})

    def isel(self, indexers: Mapping[Any, Any]) -> EventIndex | None:
        """Index of the chosen events; None (no index) where the dimension goes away."""
        if self._dim not in indexers:
            return self
        indexer = indexers[self._dim]
        if isinstance(indexer, xr.Variable):
            if indexer.dims != (self._dim,):
                return None
            indexer = indexer.values
        if not isinstance(indexer, slice) and np.ndim(indexer) != 1:
            return None
        columns = {name: column.take(indexer) for name, column in self._columns.items()}
        return type(self)(columns, self._dim)

    @classmethod
    def concat(
        cls,
        indexes: Sequence[EventIndex],
        dim: Hashable,
        positions: Iterable[Iterable[int]] | None = None,
    ) -> EventIndex:
        """Events of all ``indexes`` one after another; loads them."""
        columns = {}
        for name in indexes[0]._columns:
            parts = [index._columns[name] for index in indexes]
            _refuse_lossy(name, parts)
            variables = [part.variable(dim) for part in parts]
            joined = xr.Variable.concat(variables, dim, positions)  # type: ignore[no-untyped-call]
            columns[name] = Column.of(joined)
        return cls(columns, dim)

    def equals(self, other: xr.Index, *, exclude: frozenset[Hashable] | None = None) -> bool:
        """Whether both index the same events in the same order."""
        if not isinstance(other, EventIndex) or self._columns.keys() != other._columns.keys():
            return False
        return all(column.equals(other._columns[name]) for name, column in self._columns.items())

    def join(self, other: EventIndex, how: str = "inner") -> EventIndex:
        """Return this index if both are equal; other joins are refused."""
        self._refuse_unequal(other, f"{how!r} join")
        return self

    def reindex_like(self, other: EventIndex) -> dict[Hashable, Any]:
        """No reindexing if both are equal; anything else is refused."""
        self._refuse_unequal(other, "reindexing")
        return {}

    def _refuse_unequal(self, other: EventIndex, what: str) -> None:
        if not self.equals(other):
            raise MisalignedRecordsError(
                f"{self!r} and {other!r}: {what} of different spikes is not defined; "
                f"use xr.concat(..., dim={self._dim!r}), or drop_indexes("
                f"{list(self._columns)}) to work by position"
            )

    def rename(
        self, name_dict: Mapping[Any, Hashable], dims_dict: Mapping[Any, Hashable]
    ) -> EventIndex:
        """Return this index under new coordinate and dimension names."""
        columns = {name_dict.get(name, name): column for name, column in self._columns.items()}
        return type(self)(columns, dims_dict.get(self._dim, self._dim))

    def to_pandas_index(self) -> Any:
        """Refuse: pandas has no index for unsorted, repeated labels of two coordinates."""
        names = list(self._columns)
        raise TypeError(
            f"{self!r} has no pandas form; for a table use ds.drop_indexes({names}).to_dataframe()"
        )

    @property
    def _size(self) -> int:
        return next(iter(self._columns.values())).shape[0]

    def __repr__(self) -> str:
        names = ", ".join(str(name) for name in self._columns)
        return f"EventIndex({names}; {self._dim}: {self._size})"

    def _repr_inline_(self, max_width: int) -> str:
        return repr(self)[:max_width]


def with_event_index(
    ds: Data, time: Hashable = "spike_times", ids: Hashable = "neuron_ids"
) -> Data:
    """``ds`` with an `EventIndex` over two coordinates, or as it is where they do not fit.

    Parameters
    ----------
    ds : Dataset or DataArray
        Nothing of it is loaded.
    time, ids : hashable
        Coordinates, shape (spike,). Where one is missing, or they lie on different dimensions,
        ``ds`` is returned unchanged.

    Examples
    --------
    >>> import xarray as xr
    >>> ds = xr.Dataset(
    ...     coords={"spike_times": ("spike", [0.2, 0.1]), "neuron_ids": ("spike", [7, 8])}
    ... )
    >>> with_event_index(ds).sel(neuron_ids=8).spike_times.values
    array([0.1])
    """
    names = [time, ids]
    if any(name not in ds.coords for name in names):
        return ds
    if ds.coords[time].ndim != 1 or ds.coords[time].dims != ds.coords[ids].dims:
        return ds
    if any(isinstance(ds.xindexes.get(name), EventIndex) for name in names):
        return ds
    return ds.set_xindex(names, EventIndex)


def unloaded(variable: xr.Variable) -> xr.Variable:
    """Return the variable that an indexed coordinate reads, or the one given if it is loaded."""
    array = getattr(getattr(variable, "_data", None), "array", None)
    source = array._source if isinstance(array, Column) else None
    return variable if source is None or source.shape != variable.shape else source


def _is_dask(variable: xr.Variable) -> bool:
    # `Variable.chunks` says so too, by checks of typing protocols that take thirty times as long.
    return variable.__dask_graph__() is not None


class Column(xr.backends.BackendArray):
    """Labels of one coordinate: read at most once as a whole, then shared and read-only.

    The index and every coordinate made from it hold the same column, so loading either loads
    both, and a Dataset that was loaded never goes back to its file.  What dask holds stays with
    dask, beside the labels that a selection computed.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self._source: xr.Variable | None = None
        self._values: Array | None = None
        self._sorted: bool | None = None

    @classmethod
    def of(cls, variable: xr.Variable) -> Column:
        """Column over ``variable``, which is not loaded."""
        column = cls(variable.shape, variable.dtype)
        column._source = variable
        # There is no public way to ask a Variable whether its data are loaded; without the
        # private one a column would merely look lazy until its first use.
        if getattr(variable, "_in_memory", False):
            column.load()
        return column

    @property
    def is_loaded(self) -> bool:
        """Whether the labels are in memory."""
        return self._values is not None

    def load(self) -> Array:
        """All labels, as a read-only array."""
        if self._values is None:
            assert self._source is not None
            values = np.asarray(self._source.values).view()
            values.flags.writeable = False
            self._values = values
            self._source = self._source if self._is_dask else None
        return self._values

    def read(self, where: Any) -> Array:
        """Labels at ``where`` (int, slice or 1-D array); nothing else is read."""
        if self._values is None and self._source is not None and not self._is_all(where):
            return np.asarray(self._source[where].values)
        return cast(Array, self.load()[where])

    def _is_all(self, where: Any) -> bool:
        whole = range(self.shape[0])
        return isinstance(where, slice) and range(self.shape[0])[where] == whole

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, lambda parts: self.read(parts[0])
        )

    @property
    def _is_dask(self) -> bool:
        return self._source is not None and _is_dask(self._source)

    def take(self, where: Selection) -> Column:
        """Column of the labels at ``where``, as lazy as this one."""
        taken = type(self).of(self.variable("event")[where])
        if taken._values is None and self._values is not None:
            taken._values = self._values[where]
        return taken

    def variable(self, dim: Hashable, like: xr.Variable | None = None) -> xr.Variable:
        """Coordinate along ``dim`` over these labels, with the attributes of ``like``.

        Dask holds it where dask holds ``like``: a part of what was chunked stays chunked, and one
        of what was loaded since does not.
        """
        data: Any = indexing.LazilyIndexedArray(self) if self._values is None else self._values
        if self._source is not None and self._is_dask and (like is None or _is_dask(like)):
            data = self._source.data
        attrs, encoding = ({}, {}) if like is None else (dict(like.attrs), dict(like.encoding))
        made = xr.Variable((dim,), data, attrs, encoding)
        if like is not None and _is_dask(like) and not _is_dask(made):
            return made.chunk({dim: max(1, *like.chunksizes[like.dims[0]])})
        return made

    @property
    def is_sorted(self) -> bool:
        """Whether the labels ascend; NaN and NaT make it false."""
        if self._sorted is None:
            labels = self.load()
            ascending = bool(np.all(labels[:-1] <= labels[1:]))
            # A lone or final NaN passes the comparison above only where nothing follows it.
            self._sorted = ascending and bool(np.all(labels[-1:] == labels[-1:]))
        return self._sorted

    def equals(self, other: Column) -> bool:
        """Whether the labels are the same; loads only what shape and identity leave open."""
        if self is other:
            return True
        if self.shape != other.shape:
            return False
        nan = self.dtype.kind in "fcmM" and other.dtype.kind in "fcmM"
        return bool(np.array_equal(self.load(), other.load(), equal_nan=nan))

    def __copy__(self) -> Column:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Column:
        # Read-only, so sharing is safe, and a copied Dataset stays paired with its index.
        return self


class _Query:
    """One label of ``ds.sel``, as plain values: a range or a set of labels, never both."""

    def __init__(self, name: Hashable, span: slice | None, items: Array | list[Any] | None) -> None:
        self.name = name
        self._span = span
        self._items = items

    @classmethod
    def of(cls, name: Hashable, label: Any) -> _Query:
        """Bring slices, scalars, sequences and labelled arrays into one of the two forms."""
        if isinstance(label, slice):
            if label.step is not None:
                raise _refused(name, label, "a slice without a step")
            bounds = [_plain(bound) for bound in (label.start, label.stop)]
            return cls(name, slice(*bounds), None)
        items: Array | list[Any]
        if hasattr(label, "__array__"):
            items = np.asarray(label)
        elif isinstance(label, (set, frozenset, range, list, tuple)):
            items = list(label)
        else:
            items = [label]
        if np.ndim(items) > 1:
            raise _refused(name, label, "a scalar, a slice, or a 1-D list or array")
        if isinstance(items, np.ndarray):
            items = np.ravel(items)
            is_mask = items.dtype.kind == "b"
        else:
            is_mask = any(isinstance(item, (bool, np.bool_)) for item in items)
        if is_mask:
            raise _refused(name, label, "labels; for a mask use ds.isel or ds.where")
        return cls(name, None, items)

    def window(self, column: Column) -> slice:
        """Consecutive positions outside which nothing can match."""
        if self._span is None or self._span == slice(None) or not column.is_sorted:
            return slice(0, column.shape[0])
        start, stop = self._bounds(column.dtype)
        labels = column.load()
        first = 0 if start is None else int(np.searchsorted(labels, start, "left"))
        last = len(labels) if stop is None else int(np.searchsorted(labels, stop, "right"))
        return slice(first, max(first, last))

    def mask(self, column: Column, window: slice) -> Array | None:
        """Which events of ``window`` match; None where the window says it all."""
        if self._items is not None:
            wanted = _as_labels(self.name, self._items, column.dtype)
            return cast(Array, np.isin(column.read(window), wanted))
        if self._span == slice(None) or column.is_sorted:
            return None
        start, stop = self._bounds(column.dtype)
        labels = column.read(window)
        keep = np.ones(labels.shape, bool) if start is None else labels >= start
        return cast(Array, keep if stop is None else keep & (labels <= stop))

    def _bounds(self, dtype: np.dtype[Any]) -> tuple[Any, Any]:
        assert self._span is not None
        start, stop = self._span.start, self._span.stop
        for bound in (start, stop):
            _check_kind(self.name, bound, dtype)
            if bound is not None and bound != bound:
                raise _refused(self.name, self._span, "bounds that are numbers, or open ends")
        if dtype.kind in "iu":
            return _integer_bounds(start, stop, dtype)
        typed = [_as_labels(self.name, [b], dtype)[0] for b in (start, stop) if b is not None]
        return None if start is None else typed[0], None if stop is None else typed[-1]


def _plain(bound: Any) -> Any:
    """Scalar out of a 0-d array or labelled array."""
    if np.ndim(bound) != 0:
        raise ValidationError(f"slice bound {bound!r}: expected a scalar")
    return np.asarray(bound)[()] if hasattr(bound, "__array__") else bound


def _integer_bounds(start: Any, stop: Any, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Bounds as exact integers of ``dtype``; a span that holds no such integer is (1, 0)."""
    info = np.iinfo(dtype)
    low, high = -math.inf if start is None else start, math.inf if stop is None else stop
    if low > info.max or high < info.min:
        return dtype.type(1), dtype.type(0)
    first = None if low <= info.min else dtype.type(math.ceil(low))
    last = None if high >= info.max else dtype.type(math.floor(high))
    return first, last


def _as_labels(name: Hashable, items: Array | list[Any], dtype: np.dtype[Any]) -> Array:
    """``items`` as an array that compares exactly with a coordinate of ``dtype``."""
    if dtype.kind in "iu":
        return _as_integers(name, items, dtype)
    for item in items[:1]:
        _check_kind(name, item, dtype)
    if dtype.kind in "fc":
        return np.asarray(items).astype(dtype)
    if dtype.kind in "mM" and not (isinstance(items, np.ndarray) and items.dtype.kind in "mM"):
        return np.asarray(items, dtype=dtype)
    return np.asarray(items)


def _as_integers(name: Hashable, items: Array | list[Any], dtype: np.dtype[Any]) -> Array:
    """Integers among ``items`` that ``dtype`` can hold; others cannot be in the coordinate."""
    info: Any = np.iinfo(dtype)
    if isinstance(items, np.ndarray):
        if items.dtype.kind in "iu":
            return cast(Array, items[(items >= info.min) & (items <= info.max)].astype(dtype))
        items = items.tolist()
    # One by one: numpy makes a float64 array of a list that mixes ids with one float.
    whole = [w for item in items if (w := _whole(name, item)) is not None]
    return np.array([w for w in whole if info.min <= w <= info.max], dtype)


def _whole(name: Hashable, item: Any) -> int | None:
    """``item`` as an integer, None where it has a fraction or is NaN."""
    if isinstance(item, (int, np.integer)):
        return int(item)
    if not isinstance(item, (float, np.floating)):
        raise _refused(name, item, "integers")
    number = float(item)
    if abs(number) >= _EXACT and math.isfinite(number):
        raise _refused(name, item, "integers: a float this large no longer names one id")
    return int(number) if number.is_integer() else None


def _check_kind(name: Hashable, item: Any, dtype: np.dtype[Any]) -> None:
    """Refuse text for numbers and numbers for text, which numpy would compare as unequal."""
    if item is None:
        return
    text = isinstance(item, (str, bytes))
    number = isinstance(item, (int, float, complex, np.number)) and not isinstance(item, bool)
    if dtype.kind in "iufc" and not number:
        raise _refused(name, item, f"numbers ({dtype})")
    if dtype.kind in "UST" and not text:
        raise _refused(name, item, "text")


def _refused(name: Hashable, label: Any, expected: str) -> ValidationError:
    return ValidationError(f"sel({name}=...): got {label!r:.100}, expected {expected}")


def _refuse_lossy(name: Hashable, parts: Sequence[Column]) -> None:
    """Refuse integer types whose common type is a float: large ids would change."""
    dtypes = [part.dtype for part in parts]
    if all(d.kind in "iu" for d in dtypes) and np.result_type(*dtypes).kind not in "iu":
        kinds = sorted({str(d) for d in dtypes})
        raise MisalignedRecordsError(
            f"concat: {name} has types {kinds}, whose common type float64 would change large "
            "values; convert them to one integer type first"
        )


def _intersect(a: slice, b: slice) -> slice:
    start = max(a.start, b.start)
    return slice(start, max(start, min(a.stop, b.stop)))
