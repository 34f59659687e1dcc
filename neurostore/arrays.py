"""Arrays that stand for values in a file until they are asked for.

Each remembers where its values are and reads only what an index needs; all can be pickled and
sent to another process.  They know no record kinds; where the file is open is the `Source`'s
affair.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from neurostore import types
from neurostore.errors import RefusedError

__all__ = [
    "AsStoredArray",
    "Held",
    "Missing",
    "Place",
    "RaggedArray",
    "RowIndexArray",
    "ScatteredArray",
    "SharedSource",
    "Source",
    "StackedArray",
    "StoredArray",
    "Wanted",
    "behind",
    "fill",
    "lazy",
    "load",
]

Key = tuple[int | slice, ...]
#: Where pieces end that are cheap to read by themselves: every so many values, or at these.
Seams = int | np.ndarray[Any, Any]
#: Values that are not on disk as in memory are converted so many bytes at a time.
_BAND_BYTES = 16 * 2**20


class Source(Protocol):
    """A file that datasets can be read from, now or after it was closed and opened again."""

    def read(self, address: str, selection: Key | None) -> np.ndarray[Any, Any]:
        """Return the selected values of the dataset at ``address`` as they are on disk."""
        ...

    def chunks(self, address: str) -> tuple[int, ...] | None:
        """Return the shape of the chunks of a dataset; None where it is stored in one piece."""
        ...


@runtime_checkable
class SharedSource(Source, Protocol):
    """A source that reads for others of its file as well."""

    @property
    def file(self) -> Hashable:
        """What sources in one file have in common."""
        ...

    def fill(self, wanted: Sequence[Wanted]) -> None:
        """Do what `read` does for many sources of one file at once, into given arrays."""
        ...


#: A source, an address, a selection, and the array that takes the values as they are on disk.
Wanted = tuple[Any, str, Key | None, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Place:
    """One variable of one record: where it is, and its form on disk and in memory."""

    source: Source
    address: str
    logical: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    #: Dtype on disk where the same bytes are the values in memory, else None.
    stored: np.dtype[Any] | None = None

    @classmethod
    def of(
        cls, source: Source, address: str, logical: str, stored: np.dtype[Any], shape: Sequence[int]
    ) -> Place:
        """Return the place of a dataset whose dtype and shape on disk are given."""
        ours = types.drops_last_dim(logical)
        last = shape[-1] if ours and shape else 0
        dtype = types.decoded_dtype(logical, stored, last)
        same = stored if types.same_bytes(logical, stored) else None
        return cls(source, address, logical, dtype, tuple(shape[:-1] if ours else shape), same)

    def read(self, key: Key | None = None) -> np.ndarray[Any, Any]:
        """Return values as they are in memory."""
        key = self.within(key)
        if types.drops_last_dim(self.logical):
            key = (*key, slice(None))
        return types.from_stored(self.source.read(self.address, key), self.logical)

    def chunks(self) -> tuple[int, ...]:
        """Return the shape of the stored chunks, as far as the shape in memory has axes."""
        return (self.source.chunks(self.address) or self.shape)[: len(self.shape)]

    def within(self, key: Key | None) -> Key:
        """Return a key that selects the same where the dataset has grown since."""
        return _within(key or (), self.shape)


def _within(key: Key, shape: Sequence[int]) -> Key:
    """Return a key with its slices cut to a shape, for whatever has another one meanwhile."""
    rest = (slice(None),) * (len(shape) - len(key))
    return tuple(
        slice(*part.indices(size)) if isinstance(part, slice) else part
        for part, size in zip((*key, *rest), shape, strict=True)
    )


def fill(
    places: Sequence[Place | Held | Missing],
    keys: Sequence[Key | None],
    arrays: Sequence[np.ndarray[Any, Any]],
) -> None:
    """Read many variables into arrays; those of one file together, in threads."""
    together: dict[Hashable, list[Wanted]] = {}
    for place, key, array in zip(places, keys, arrays, strict=True):
        source = place.source if isinstance(place, Place) else None
        stored = place.stored if isinstance(place, Place) and place.dtype == array.dtype else None
        if isinstance(source, SharedSource) and isinstance(place, Place) and stored is not None:
            wanted = (source, place.address, place.within(key), array.view(stored))
            together.setdefault(source.file, []).append(wanted)
        else:
            array[...] = place.read(key)
    for entries in together.values():
        entries[0][0].fill(entries)


def load(variables: Mapping[Any, xr.Variable], places: Mapping[Any, Place]) -> None:
    """Read what is still in the file of one record, in place, the chunks of all together.

    What is not on disk as in memory is left to be read when it is asked for.
    """
    lazily = [
        (variables[name], place)
        for name, place in places.items()
        if place.stored is not None and name in variables and not _is_index(variables[name])
    ]
    arrays = [_room(place.shape, place.dtype) for _, place in lazily]
    fill([place for _, place in lazily], [None] * len(lazily), arrays)
    for (variable, _), array in zip(lazily, arrays, strict=True):
        variable.data = array


def _is_index(variable: xr.Variable) -> bool:
    return isinstance(variable, xr.IndexVariable)


@dataclass(frozen=True)
class Missing:
    """Stands in for a variable that one of many records lacks: NaN."""

    shape: tuple[int, ...]

    def read(self, key: Key | None = None) -> np.ndarray[Any, Any]:
        """Return NaN."""
        return np.full(_picked_shape(self.shape, key or ()), np.nan)


@dataclass(frozen=True, eq=False)
class Held:
    """A variable of one record that is in memory already."""

    values: np.ndarray[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values."""
        dtype: np.dtype[Any] = self.values.dtype
        return dtype

    def read(self, key: Key | None = None) -> np.ndarray[Any, Any]:
        """Return the selected values."""
        return np.asarray(self.values[key or ()])


_ALL = slice(None)


class _Adapted(BackendArray):
    """What xarray asks of a lazy array, on top of one method for ints and slices."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        whole = (_ALL,) * len(self.shape)  # taking it apart costs as much as a lock
        if isinstance(key, indexing.BasicIndexer) and key.tuple == whole:
            return self._get(key.tuple)
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._get
        )

    def _get(self, key: Key) -> np.ndarray[Any, Any]:
        raise NotImplementedError  # pragma: no cover - every subclass defines it

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Name the values for dask: equal for the same values, in any process."""
        return type(self).__name__, *map(_token, vars(self).values())

    def seams(self) -> tuple[Seams, ...]:
        """Along each axis, where stored chunks and records meet."""
        raise NotImplementedError  # pragma: no cover - every subclass defines it


class StoredArray(_Adapted):
    """One variable of one record."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.shape = place.shape
        self.dtype = place.dtype

    def _get(self, key: Key) -> np.ndarray[Any, Any]:
        if any(part != slice(None) for part in key):
            return self._place.read(key)
        converted = self._place.stored is None and math.prod(self.shape) * self.dtype.itemsize
        return self._by_bands() if converted > _BAND_BYTES else self._place.read()

    def seams(self) -> tuple[Seams, ...]:
        """Return the stored chunks."""
        return self._place.chunks()

    def _by_bands(self) -> np.ndarray[Any, Any]:
        """Read all of it with only some of the form on disk in memory at a time."""
        whole = _room(self.shape, self.dtype)
        step = max(1, len(whole) * _BAND_BYTES // whole.nbytes)
        for start in range(0, len(whole), step):
            band = slice(start, min(start + step, len(whole)))
            whole[band] = self._place.read((band,) + (slice(None),) * (whole.ndim - 1))
        return whole


class AsStoredArray(_Adapted):
    """One dataset with its values as they are on disk; texts of varying length are str."""

    def __init__(
        self,
        source: Source,
        address: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunks: tuple[int, ...] | None = None,
    ) -> None:
        self._source = source
        self._address = address
        self._chunks = chunks
        self.shape = shape
        self.dtype = dtype

    def _get(self, key: Key) -> np.ndarray[Any, Any]:
        values = self._source.read(self._address, _within(key, self.shape))
        if self.dtype.kind != "O":
            return values
        texts = np.empty(values.size, self.dtype)
        for number, item in enumerate(values.flat):
            is_text = isinstance(item, bytes)
            texts[number] = item.decode("utf-8", "surrogateescape") if is_text else item
        return texts.reshape(values.shape)

    def seams(self) -> tuple[Seams, ...]:
        """Return the stored chunks, or all of what is stored in one piece."""
        return self._chunks or self.shape


class StackedArray(_Adapted):
    """Equal-shaped variables of many records, along a new first dimension."""

    def __init__(self, places: Sequence[Place | Held], dtype: np.dtype[Any]) -> None:
        self._places = tuple(places)
        self.shape = (len(places), *places[0].shape)
        self.dtype = dtype

    def _get(self, key: Key) -> np.ndarray[Any, Any]:
        record, inner = key[0], key[1:]
        part = None if all(k == slice(None) for k in inner) else inner
        if isinstance(record, int | np.integer):
            return self._places[record].read(part).astype(self.dtype, copy=False)
        chosen = self._places[record]
        if not chosen:
            return np.empty(_picked_shape(self.shape, key), self.dtype)
        inner_shape = _picked_shape(self.shape[1:], inner)
        stacked = _room((len(chosen), *inner_shape), self.dtype)
        fill(chosen, [part] * len(chosen), [stacked[n, ...] for n in range(len(chosen))])
        return stacked

    def seams(self) -> tuple[Seams, ...]:
        """Return one record, and the stored chunks of the first."""
        return 1, *_chunks_of(self._places[0])


class RaggedArray(_Adapted):
    """Variables of many records joined end to end along their first dimension."""

    def __init__(self, places: Sequence[Place | Held | Missing], dtype: np.dtype[Any]) -> None:
        self._places = tuple(places)
        self._ends = np.cumsum([place.shape[0] for place in places])
        self.shape = (int(self._ends[-1]) if len(places) else 0, *_tail(places))
        self.dtype = dtype

    def _get(self, key: Key) -> np.ndarray[Any, Any]:
        first = key[0]
        if isinstance(first, int | np.integer):
            return np.asarray(self._rows(int(first), int(first) + 1, key[1:])[0])
        start, stop, step = first.indices(self.shape[0])
        return self._rows(start, max(start, stop), key[1:])[::step]

    def _rows(self, start: int, stop: int, inner: Key) -> np.ndarray[Any, Any]:
        """Return rows ``start:stop``, from the records that hold them and no others."""
        shape = (stop - start, *_picked_shape(self.shape[1:], inner))
        joined = _room(shape, self.dtype)
        number = int(np.searchsorted(self._ends, start, "right"))
        done = start
        places: list[Place | Held | Missing] = []
        keys: list[Key | None] = []
        rows = []
        while done < stop:
            place = self._places[number]
            begin = int(self._ends[number]) - place.shape[0]
            last = min(stop, int(self._ends[number]))
            whole = done == begin and last == begin + place.shape[0] and not inner
            places.append(place)
            keys.append(None if whole else (slice(done - begin, last - begin), *inner))
            rows.append(joined[done - start : last - start])
            done, number = last, number + 1
        fill(places, keys, rows)
        return joined

    def seams(self) -> tuple[Seams, ...]:
        """Return the ends of the records, and of the chunks of those that have several."""
        if not self._places:
            return (1,)
        sizes = np.diff(self._ends, prepend=0)
        first, *rest = _chunks_of(self._places[int(np.argmax(sizes))])
        inner = [
            np.arange(self._ends[number] - sizes[number], self._ends[number], first)[1:]
            for number in np.flatnonzero(sizes > first)
        ]
        return np.unique(np.concatenate([self._ends, *inner])), *rest


class RowIndexArray(_Adapted):
    """For every event, the position of its record: computed from the row sizes, never stored."""

    def __init__(self, sizes: np.ndarray[Any, Any]) -> None:
        self._ends = np.cumsum(sizes)
        self.shape = (int(self._ends[-1]) if len(sizes) else 0,)
        self.dtype = np.dtype(np.int64)

    def _get(self, key: Key) -> np.ndarray[Any, Any]:
        wanted = np.arange(self.shape[0])[key]
        return np.asarray(np.searchsorted(self._ends, wanted, "right"), np.int64)

    def seams(self) -> tuple[Seams, ...]:
        """Return the ends of the records."""
        return (self._ends,)


class ScatteredArray(_Adapted):
    """One-dimensional variables of many records, each put into its columns of a wider row.

    Columns that a record lacks hold NaN, NaT or the empty text.
    """

    def __init__(
        self,
        places: Sequence[Place | Held | Missing],
        columns: Sequence[np.ndarray[Any, Any]],
        width: int,
        dtype: np.dtype[Any],
    ) -> None:
        self._places = tuple(places)
        self._columns = tuple(columns)
        self.shape = (len(places), width)
        self.dtype = dtype

    def _get(self, key: Key) -> np.ndarray[Any, Any]:
        numbers = np.atleast_1d(np.arange(self.shape[0])[key[0]])
        rows = np.zeros((len(numbers), self.shape[1]), self.dtype)
        if self.dtype.kind not in "biuUS":
            rows[:] = np.array("NaT" if self.dtype.kind in "Mm" else np.nan).astype(self.dtype)
        places = [self._places[number] for number in numbers]
        values = [
            _room(place.shape, self.dtype if isinstance(place, Missing) else place.dtype)
            for place in places
        ]
        fill(places, [None] * len(places), values)
        for row, number in enumerate(numbers):
            rows[row, self._columns[number]] = values[row]
        picked = rows[:, key[1]]
        return picked[0] if isinstance(key[0], int | np.integer) else picked

    def seams(self) -> tuple[Seams, ...]:
        """Return one record."""
        return 1, self.shape[1]


def _token(part: Any) -> Any:
    if isinstance(part, tuple):
        return [_token(one) for one in part]
    if isinstance(part, Held):
        return part.values
    if isinstance(part, Place):
        return repr(part), getattr(part.source, "version", ())
    return part if isinstance(part, np.ndarray) else repr(part)  # dask takes longer over a Place


def _chunks_of(place: Place | Held | Missing) -> tuple[int, ...]:
    return place.chunks() if isinstance(place, Place) else place.shape


def _room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return an array to be filled; a few KB of a file can claim any size."""
    try:
        return np.empty(shape, dtype)
    except MemoryError as error:
        raise RefusedError(
            f"values of the shape {shape} need more memory than there is ({error}); select less"
        ) from None


def _tail(places: Sequence[Place | Held | Missing]) -> tuple[int, ...]:
    return places[0].shape[1:] if places else ()


def _picked_shape(shape: Sequence[int], key: Key) -> tuple[int, ...]:
    """Shape of what ``key`` selects of an array of ``shape``; missing keys take everything."""
    full = (*key, *(slice(None) for _ in range(len(shape) - len(key))))
    return tuple(
        len(range(*part.indices(size)))
        for part, size in zip(full, shape, strict=True)
        if isinstance(part, slice)
    )


def behind(variable: xr.Variable) -> _Adapted | None:
    """Return the array of this module that a variable stands for, whole and not yet loaded."""
    # xarray has no public way to ask.
    data = getattr(variable, "_data", None)
    if isinstance(data, indexing.LazilyIndexedArray) and isinstance(data.array, _Adapted):
        whole = all(key == slice(None) for key in data.key.tuple)
        return data.array if whole else None
    return None


def lazy(dims: Sequence[str], array: _Adapted, attrs: dict[str, Any] | None = None) -> xr.Variable:
    """Return a Variable whose values are read when they are asked for."""
    return xr.Variable(tuple(dims), indexing.LazilyIndexedArray(array), attrs, fastpath=True)
