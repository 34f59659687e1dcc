"""Values of a dataset, or of a selection of it, out of its chunks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import h5py
import numpy as np

from .. import remote
from ..errors import DamagedError, ValidationError
from ..guard import check_dataset, check_size
from .codec import CODEC_ERRORS, Array, inflated, verified, zstd_unpacked
from .pipeline import ZSTD
from .planes import place_planes, unpacked_into, unshuffled
from .threads import each

Selection = tuple[slice | int, ...]
Slices = tuple[slice, ...]


def read(
    dataset: h5py.h5d.DatasetID, selection: Selection | None = None, limit: int | None = None
) -> Array:
    """Read a dataset, or a basic selection of it; only the chunks it touches are read and decoded.

    The checksum of every chunk that carries one is verified. Many chunks are decoded in threads.
    Do not call it while holding ``h5py._hl.base.phil``.

    Parameters
    ----------
    dataset : h5py.h5d.DatasetID
        Any dataset of bool, integers, floats, complex or S1, whoever wrote it.
    selection : tuple of slice or int, optional
        One entry per axis, axes left out at the end are taken whole; steps of at least 1. An
        integer drops its axis. Default: everything.

    limit : int, optional
        Bytes that it may take; the default follows what is stored.

    Returns
    -------
    numpy.ndarray
        Of the type in the file, byte order included.

    Raises
    ------
    DamagedError
        Stored bytes fail their checksum or cannot be decoded.
    RefusedError
        The values are elsewhere, need foreign code, or take more than the limit.
    """
    shape, (dtype, plain) = dataset.shape, _dtype_of(dataset)
    ranges, kept = _ranges(dataset, shape, selection or ())
    check_size(dataset, math.prod(map(len, ranges)) * dtype.itemsize, limit)
    out = np.empty([len(r) for r in ranges], dtype)
    plan = _plan(dataset, dtype, plain, limit) if out.size else None
    if plan is not None:
        work = plan.work(ranges)
        jobs = _ahead(_jobs(dataset, out, ranges, plan, work))
        for _ in each(_decode, _together(jobs), work, max(plan.nbytes, _TOGETHER)):
            pass
    elif out.size:
        _read_by_hdf5(dataset, out, ranges)
    return out if kept is None else out.reshape(kept)


def read_many(
    wanted: Iterable[tuple[h5py.h5d.DatasetID, Selection | None, Array]], limit: int | None = None
) -> None:
    """Fill arrays with what is selected of many datasets, decoding the chunks of all in threads.

    Parameters
    ----------
    wanted : iterable of (dataset, selection, array)
        As for :func:`read`; each array has the shape that ``read`` would return, in any memory
        order. The datasets are taken one after the other, and may be opened then.
    limit : int, optional
        As for :func:`read`, for each of them.

    Raises
    ------
    DamagedError, RefusedError
        As :func:`read`. What the arrays hold then is undefined.
    """

    def jobs() -> Iterator[_Job]:
        for dataset, selection, array in wanted:
            shape = dataset.shape
            ranges, _ = _ranges(dataset, shape, selection or ())
            whole = tuple(
                None if isinstance(key, int | np.integer) else slice(None)
                for key in (selection or ())
            )
            out = array[(*whole, ...)]
            dtype, plain = _dtype_of(dataset)
            if out.dtype != dtype or out.shape != tuple(map(len, ranges)):
                raise DamagedError(
                    f"{name_of(dataset)}: {dtype} of shape {shape}, expected {array.dtype} "
                    f"in which {selection} has the shape {array.shape}"
                )
            check_size(dataset, out.nbytes, limit)
            plan = _plan(dataset, dtype, plain, limit) if out.size else None
            if plan is None:
                if out.size:
                    _read_by_hdf5(dataset, out, ranges)
                continue
            work = plan.work(ranges)
            found = _jobs(dataset, out, ranges, plan, work)
            if work > _ALONE or remote.of(dataset) is not None:
                yield from found
            else:
                _decode(found)

    for _ in each(_decode, _together(_ahead(jobs())), 2**62, _TOGETHER):
        pass


def _ranges(
    dataset: h5py.h5d.DatasetID, shape: tuple[int, ...], selection: Selection
) -> tuple[list[range], list[int] | None]:
    """Resolve what is taken of each axis, and the shape without those taken by an integer."""
    if len(selection) > len(shape):
        raise ValidationError(
            f"{name_of(dataset)}: selection of {len(selection)} axes, expected at most {len(shape)}"
        )
    ranges = [range(n) for n in shape]
    for axis, key in enumerate(selection):
        if isinstance(key, slice):
            ranges[axis] = ranges[axis][key]
            if ranges[axis].step < 1:
                raise ValidationError(
                    f"{name_of(dataset)}: axis {axis}: expected a step of 1 or more, got {key}"
                )
        else:
            at = ranges[axis][key]
            ranges[axis] = range(at, at + 1)
    if all(isinstance(key, slice) for key in selection):
        return ranges, None
    whole = [slice(None)] * (len(shape) - len(selection))
    keys = [*selection, *whole]
    kept = [len(r) for r, key in zip(ranges, keys, strict=True) if isinstance(key, slice)]
    return ranges, kept


@dataclass(frozen=True)
class _Plan:
    """How the chunks of one dataset are decoded."""

    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    filters: tuple[tuple[int, int], ...]
    fill: Callable[[], Array]
    nbytes: int

    def work(self, ranges: list[range]) -> int:
        """Bytes to decode for what is taken of each axis."""
        touched = (len(_along(r, c)) for r, c in zip(ranges, self.chunks, strict=True))
        return math.prod(touched) * self.nbytes

    @property
    def in_planes(self) -> bool:
        """Whether deflate follows a shuffle of these values, and nothing lies between."""
        shuffle = (h5py.h5z.FILTER_SHUFFLE, self.dtype.itemsize)
        codes = [code for code, _ in self.filters[1:2]]
        return self.filters[:1] == (shuffle,) and codes == [h5py.h5z.FILTER_DEFLATE]


_KNOWN = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32, ZSTD)
# A chunk that its filters made larger than its values is odd beyond this.
_SLACK = 1024
#: What a question about one chunk costs, and a call of Python, in chunks passed by in the index.
_CALL, _CALLBACK = 170, 33
#: So few chunks are asked for one by one, without a look at how many there are.
_FEW = 4
#: Below it, asking for the descriptor costs more than it saves.
_DIRECT = 256 * 1024
#: Below it, a thread costs more than it saves.
_ALONE = 64 * 1024
#: Chunks are decoded so many bytes at a time: to wake a thread costs as much as some 50 KB.
_TOGETHER = 2**20


@lru_cache(maxsize=64)
def _type_of(dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(dtype, logical=True)


#: Types and creation properties of datasets that were read lately, with what they came to: to
#: take them apart costs three times as much as to see that they are the same.
_types: tuple[tuple[h5py.h5t.TypeID, np.dtype[Any], bool], ...] = ()
_plans: dict[Any, tuple[tuple[h5py.h5p.PropDCID, _Plan | None], ...]] = {}
_REMEMBERED = 16


def _dtype_of(dataset: h5py.h5d.DatasetID) -> tuple[np.dtype[Any], bool]:
    """Return the NumPy type, and whether the stored bytes are those of its values."""
    global _types
    kind = dataset.get_type()
    for known, dtype, plain in _types:
        if known == kind:
            return dtype, plain
    dtype = kind.dtype
    plain = _plain_type(kind, dtype)
    _types = ((kind, dtype, plain), *_types[: _REMEMBERED - 1])
    return dtype, plain


def _plan(
    dataset: h5py.h5d.DatasetID, dtype: np.dtype[Any], plain: bool, limit: int | None = None
) -> _Plan | None:
    """Make the plan, or None where HDF5 must read: foreign filters, layouts and types."""
    dcpl = dataset.get_create_plist()
    if not plain or dcpl.get_layout() != h5py.h5d.CHUNKED:
        return None
    key = dcpl.get_chunk(), dtype.str
    alike = _plans.get(key, ())
    found = [plan for known, plan in alike if known.equal(dcpl)]
    plan = found[0] if found else _taken_apart(dcpl, dtype)
    if not found:
        if len(_plans) > _REMEMBERED * _REMEMBERED:
            _plans.clear()
        _plans[key] = ((dcpl, plan), *alike[: _REMEMBERED - 1])
    if plan is not None:
        check_size(dataset, plan.nbytes, limit)
    return plan


def _taken_apart(dcpl: h5py.h5p.PropDCID, dtype: np.dtype[Any]) -> _Plan | None:
    filters = []
    for index in range(dcpl.get_nfilters()):
        code, _, values, _ = dcpl.get_filter(index)
        if code not in _KNOWN:
            return None
        filters.append((code, values[0] if code == h5py.h5z.FILTER_SHUFFLE else 0))

    def fill() -> Array:
        value = np.zeros((1,), dtype)
        if dcpl.fill_value_defined() != h5py.h5d.FILL_VALUE_UNDEFINED:
            dcpl.get_fill_value(value)
        return value

    chunks = dcpl.get_chunk()
    return _Plan(chunks, dtype, tuple(filters), fill, math.prod(chunks) * dtype.itemsize)


def _plain_type(stored: h5py.h5t.TypeID, dtype: np.dtype[Any]) -> bool:
    """Whether the stored bytes are the bytes of the numpy type."""
    if dtype.kind == "S":
        # Space-padded strings lose their padding on the way to numpy; the others are as stored.
        fixed = isinstance(stored, h5py.h5t.TypeStringID) and not stored.is_variable_str()
        return fixed and dtype.itemsize == 1 and stored.get_strpad() != h5py.h5t.STR_SPACEPAD
    return dtype.kind in "biufc" and bool(stored == _type_of(dtype))


def _read_by_hdf5(dataset: h5py.h5d.DatasetID, out: Array, ranges: list[range]) -> None:
    check_dataset(dataset, name_of(dataset), by_hdf5=True)
    space = h5py.h5s.ALL
    memory = h5py.h5s.ALL
    if ranges and tuple(len(r) for r in ranges) != dataset.shape:
        space = dataset.get_space()
        steps = tuple(r.step for r in ranges)
        space.select_hyperslab(tuple(r.start for r in ranges), out.shape, steps)
        memory = h5py.h5s.create_simple(out.shape)
    try:
        dataset.read(memory, space, out)
    except OSError as error:
        raise DamagedError(f"{name_of(dataset)}: HDF5 cannot read the values: {error}") from error


_Job = tuple["_Chunk", "_Plan", Slices, Array]
#: In place of a descriptor: the chunk is to be asked for.
_REMOTE = -2
#: Of a remote file so many stored bytes are asked for at once.
_FETCHED = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Where the stored bytes of one chunk are: in memory, or in a file to be read past HDF5."""

    dataset: h5py.h5d.DatasetID
    offset: tuple[int, ...]
    mask: int
    stored: Any
    descriptor: int
    size: int
    start: int

    def bytes(self) -> Any:
        """Return the stored bytes."""
        if self.stored is not None:
            return self.stored
        data = os.pread(self.descriptor, self.size, self.start)
        if len(data) != self.size:
            raise ValueError(f"the file ends after {len(data)} of {self.size} stored bytes")
        return data


def _jobs(
    dataset: h5py.h5d.DatasetID, out: Array, ranges: list[range], plan: _Plan, work: int
) -> Iterator[_Job]:
    """Find the chunks that hold what is taken; those never written are filled at once."""
    descriptor = descriptor_of(dataset) if work > _DIRECT else -1
    if remote.of(dataset) is not None:
        descriptor = _REMOTE
    axes = [_along(r, c) for r, c in zip(ranges, plan.chunks, strict=True)]
    find = _finder(dataset, plan, math.prod(map(len, axes)))
    for parts in product(*axes):
        offset, source, destination = zip(*parts, strict=True)
        chunk = _found(dataset, offset, plan, descriptor, find)
        if chunk is None:
            out[destination] = plan.fill()
        else:
            yield chunk, plan, source, out[destination]


_Find = Callable[[tuple[int, ...]], h5py.h5d.StoreInfo | None]


def _finder(dataset: h5py.h5d.DatasetID, plan: _Plan, wanted: int) -> _Find:
    """Return what tells of a chunk by its offset, by the cheaper of two ways.

    HDF5 goes through its index from the start for every chunk that it is asked for, and in no
    more time, but for a call of Python for each, through all of it once.
    """
    ask: _Find = dataset.get_chunk_info_by_coord
    if wanted < _FEW:
        return ask
    there = math.prod(-(-n // c) for n, c in zip(dataset.shape, plan.chunks, strict=True))
    if wanted * (_CALL + there) <= _CALLBACK * there:
        return ask
    found: dict[tuple[int, ...], h5py.h5d.StoreInfo] = {}

    def note(info: h5py.h5d.StoreInfo) -> None:
        found[info.chunk_offset] = info

    try:
        dataset.chunk_iter(note)
    except (OSError, RuntimeError) as error:
        raise DamagedError(f"{name_of(dataset)}: its chunks cannot be found: {error}") from error
    return found.get


def _ahead(jobs: Iterator[_Job]) -> Iterator[_Job]:
    """Ask a server for the chunks of a remote file, many at a time; let others pass."""
    waiting: list[_Job] = []
    for job in jobs:
        if job[0].descriptor != _REMOTE:
            yield job
            continue
        waiting.append(job)
        if sum(chunk.size for chunk, *_ in waiting) >= _FETCHED:
            yield from _fetched(waiting)
            waiting = []
    yield from _fetched(waiting)


def _fetched(jobs: list[_Job]) -> Iterator[_Job]:
    file = remote.of(jobs[0][0].dataset) if jobs else None
    if file is not None:
        stored = file.fetch([(chunk.start, chunk.size) for chunk, *_ in jobs])
        for (chunk, plan, source, target), data in zip(jobs, stored, strict=True):
            yield replace(chunk, stored=data), plan, source, target


def _together(jobs: Iterator[_Job]) -> Iterator[tuple[list[_Job]]]:
    """Put neighbours together until they are worth a thread."""
    waiting: list[_Job] = []
    nbytes = 0
    for job in jobs:
        waiting.append(job)
        nbytes += job[1].nbytes
        if nbytes >= _TOGETHER:
            yield (waiting,)
            waiting, nbytes = [], 0
    if waiting:
        yield (waiting,)


def _decode(jobs: Iterable[_Job]) -> None:
    for chunk, plan, source, target in jobs:
        try:
            _decoded(chunk.bytes(), chunk.mask, plan, source, target)
        except (*CODEC_ERRORS, OSError) as error:
            raise _damaged(chunk.dataset, chunk.offset, str(error)) from error


#: By the number that HDF5 gives an open file, and no other: to ask takes a third of a millisecond.
_descriptors: dict[int, int] = {}


def descriptor_of(dataset: h5py.h5d.DatasetID) -> int:
    """Descriptor of the file if its chunks may be read past HDF5 and its lock; else -1.

    That is so where HDF5 reads the file itself and nobody writes through this handle.
    """
    h5file = h5py.h5i.get_file_id(dataset)
    known = _descriptors.get(h5file.id)
    if known is None:
        if len(_descriptors) >= _REMEMBERED:
            _descriptors.clear()
        known = _descriptors[h5file.id] = _descriptor(h5file)
    return known


def _descriptor(h5file: h5py.h5f.FileID) -> int:
    if not hasattr(os, "pread") or h5file.get_intent() != h5py.h5f.ACC_RDONLY:
        return -1
    if h5file.get_access_plist().get_driver() != h5py.h5fd.SEC2:
        return -1
    if h5file.get_create_plist().get_userblock():
        return -1
    return int(h5file.get_vfd_handle())


def _along(taken: range, chunk: int) -> list[tuple[int, slice, slice]]:
    """Split what is taken of one axis: offset of each chunk, its part, and where that goes."""
    parts: list[tuple[int, slice, slice]] = []
    done = 0
    while done < len(taken):
        first = taken[done]
        offset = first - first % chunk
        count = min(len(taken) - done, -(-(offset + chunk - first) // taken.step))
        last = first - offset + (count - 1) * taken.step + 1
        source = slice(first - offset, last, taken.step)
        parts.append((offset, source, slice(done, done + count)))
        done += count
    return parts


def _found(
    dataset: h5py.h5d.DatasetID,
    offset: tuple[int, ...],
    plan: _Plan,
    descriptor: int,
    find: _Find,
) -> _Chunk | None:
    """Look up one chunk; None where nothing was ever written."""
    try:
        # Reading a chunk that does not exist asks for an arbitrary amount of memory.
        info = find(offset)
        if info is None or info.byte_offset is None:
            return None
        if info.size > 2 * plan.nbytes + _SLACK:
            raise _damaged(dataset, offset, f"{info.size} stored bytes for {plan.nbytes}")
        stored = dataset.read_direct_chunk(offset)[1] if descriptor == -1 else None
        # The mask comes from the index: HDF5 2.0 forgets that of the chunk it wrote last.
        mask = info.filter_mask
        return _Chunk(dataset, offset, mask, stored, descriptor, info.size, info.byte_offset)
    except DamagedError:
        raise
    except (OSError, RuntimeError) as error:
        raise _damaged(dataset, offset, str(error)) from error


def _decoded(data: Any, mask: int, plan: _Plan, source: Slices, target: Array) -> None:
    """Undo the filters of one chunk and put the selected part of it into its place."""
    for index in range(len(plan.filters) - 1, -1, -1):
        code, size = plan.filters[index]
        if mask >> index & 1:
            continue
        own = size == plan.dtype.itemsize
        if index == 1 and plan.in_planes and not mask & 1:
            unpacked_into(target, data, source, plan.chunks)
            return
        if index == 0 and code == h5py.h5z.FILTER_SHUFFLE and own:
            _check_length(data, plan)
            place_planes(target, np.frombuffer(data, np.uint8), source, plan.chunks)
            return
        data = _undone(data, code, size, plan)
    _check_length(data, plan)
    target[...] = np.frombuffer(data, plan.dtype).reshape(plan.chunks)[source]


def _check_length(data: Any, plan: _Plan) -> None:
    if len(data) != plan.nbytes:
        raise ValueError(f"{len(data)} bytes after decoding, expected {plan.nbytes}")


def _undone(data: Any, code: int, size: int, plan: _Plan) -> Any:
    if code == h5py.h5z.FILTER_FLETCHER32:
        return verified(data)
    if code == h5py.h5z.FILTER_DEFLATE:
        # A checksum that was taken before compression is still inside.
        return inflated(data, plan.nbytes + 4 * len(plan.filters))
    if code == ZSTD:
        return zstd_unpacked(data, plan.nbytes + 4 * len(plan.filters))
    return unshuffled(data, size)


def _damaged(dataset: h5py.h5d.DatasetID, offset: tuple[int, ...], reason: str) -> DamagedError:
    return DamagedError(f"{name_of(dataset)}: chunk at {offset}: {reason}")


def name_of(dataset: h5py.h5d.DatasetID) -> str:
    """Get the path of a dataset in its file, for messages."""
    if remote.of(dataset) is not None:  # opened by reference, HDF5 searches the file for its name
        return "a dataset of the record"
    name = h5py.h5i.get_name(dataset)
    return "unnamed dataset" if name is None else name.decode("utf-8", "replace")
