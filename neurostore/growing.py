"""One record that grows: rows added at the end of its datasets, chunk by chunk.

The chunk that is still open is kept in the file fully encoded, in a *room* as large as the chunk
is expected to become; bytes behind its deflate stream are zeros.  An append encodes it anew and
writes it over the old one, in its place: nothing is left behind, the chunk index is as it was, and
every HDF5 reader sees whole, checksummed chunks at any commit.  Nothing has to be done when a
record is finished.  Which rows belong together, when to commit and who may write is decided
elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s

from neurostore import content, filters, h5attrs
from neurostore.errors import ValidationError
from neurostore.filters import Pipeline
from neurostore.records import LINK_ATTR

__all__ = ["Grower", "grows", "is_recording", "mark", "rows_per_chunk"]

#: Bytes of a chunk of small rows.  A stream that ends wastes up to one open chunk.
_CHUNK_BYTES = 16 * 1024
_FEWEST_ROWS = 4
_UNCACHED = h5p.create(h5p.DATASET_ACCESS)
_UNCACHED.set_chunk_cache(0, 0, 1.0)
_CHECKSUM = 4
#: Whole chunks that the encoder chosen on one of them is used for: at first, and at most.  A look
#: costs as much as encoding a chunk twice more with zlib, 2 ms for 80 KB.
_TRUSTED, _MOST_TRUSTED = 32, 512

Array = np.ndarray[Any, Any]
Put = Callable[[Any, int], object]


def rows_per_chunk(rows: int, row_bytes: int) -> int:
    """Return how many rows a chunk of a record should have whose first append had ``rows``.

    Appends as large as the first then make whole chunks, which are written once.

    >>> rows_per_chunk(10_000, 8), rows_per_chunk(100, 8), rows_per_chunk(1, 1_000_000)
    (10000, 2048, 4)
    """
    return max(rows, _CHUNK_BYTES // max(1, row_bytes), _FEWEST_ROWS)


@dataclass(slots=True)
class _Room:
    """Where the open chunk of one tile is: its place, its size, the checksum in it."""

    at: int
    size: int
    checksum: bytes


@dataclass
class _Column:
    """One dataset that grows along ``axis``."""

    link: bytes
    dataset: h5d.DatasetID
    axis: int
    pipeline: Pipeline
    dtype: np.dtype[Any]
    length: int
    #: Values of the open chunk, of all tiles side by side.
    tail: Array
    #: The open chunk of each tile, by its offset.
    rooms: dict[tuple[int, ...], _Room] = field(default_factory=dict)
    #: Largest of the last chunks as stored, forgotten by an eighth with each.
    usual: int = 0
    #: Whole chunks until the encoder is chosen anew, and after how many it was the last time.
    trusted: int = 0
    period: int = _TRUSTED // 2

    @classmethod
    def open(cls, dataset: h5d.DatasetID, link: bytes, axis: int) -> _Column:
        """Take up a dataset where it ends."""
        pipeline = _pipeline(dataset.get_create_plist())
        assert pipeline.chunks is not None
        shape: list[int] = list(dataset.shape)
        length, shape[axis] = shape[axis], pipeline.chunks[axis]
        column = cls(
            link, dataset, axis, pipeline, dataset.dtype, length, np.zeros(shape, dataset.dtype)
        )
        column.resume()
        return column

    @property
    def rows(self) -> int:
        """Rows of a chunk."""
        assert self.pipeline.chunks is not None
        return self.pipeline.chunks[self.axis]

    @property
    def bound(self) -> int:
        """Bytes that no chunk exceeds: deflate stores what it cannot shrink."""
        raw = math.prod(self.pipeline.chunks or ()) * self.dtype.itemsize
        return raw + raw // 256 + 64

    def resume(self) -> None:
        """Take up the open chunk, and the usual size of those before it."""
        inside = self.length % self.rows
        if inside:
            start = self.length - inside
            self.tail[self._along(0, inside)] = filters.read(
                self.dataset, self._along(start, self.length)
            )
            for offset, _ in self._tiles(start):
                info = self.dataset.get_chunk_info_by_coord(offset)
                raw = self.dataset.read_direct_chunk(offset)[1]
                self.rooms[offset] = _Room(info.byte_offset, info.size, raw[-_CHECKSUM:])
        if self.length >= self.rows:
            offset, _ = next(self._tiles((self.length // self.rows - 1) * self.rows))
            self.usual = int(self.dataset.get_chunk_info_by_coord(offset).size)

    def _along(self, start: int, stop: int) -> tuple[slice, ...]:
        """Select rows of a chunk or of the dataset."""
        whole = [slice(None)] * len(self.dataset.shape)
        whole[self.axis] = slice(start, stop)
        return tuple(whole)

    def _tiles(self, start: int) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Yield the offset of every chunk that begins at row ``start``, and its part of them."""
        assert self.pipeline.chunks is not None
        axes = [range(0, n, c) for n, c in zip(self.tail.shape, self.pipeline.chunks, strict=True)]
        axes[self.axis] = range(start, start + 1)
        for offset in product(*axes):
            tile = [slice(o, o + c) for o, c in zip(offset, self.pipeline.chunks, strict=True)]
            tile[self.axis] = slice(None)
            yield offset, tuple(tile)

    def encoded(self, values: Array) -> Iterator[tuple[tuple[int, ...], Any, int]]:
        """Take rows in; yield offset, bytes and rows of every chunk that changes."""

        def encode(offset: tuple[int, ...], block: Array) -> tuple[tuple[int, ...], Any, int]:
            return offset, filters.packed_chunk(block, self.pipeline), block.shape[self.axis]

        pieces = self._pieces(values)
        return filters.each(encode, pieces, values.nbytes, self.bound)

    def _pieces(self, values: Array) -> Iterator[tuple[tuple[int, ...], Array]]:
        done, count = 0, values.shape[self.axis]
        while done < count:
            inside = self.length % self.rows
            taken = min(self.rows - inside, count - done)
            block = values[self._along(done, done + taken)]
            full = inside + taken == self.rows
            if inside or not full:
                self.tail[self._along(inside, inside + taken)] = block
                block = self.tail[self._along(0, inside + taken)]
            if inside and full:  # another thread may still be encoding the old one
                self.tail = np.zeros_like(self.tail)
            start = self.length - inside
            self.length, done = self.length + taken, done + taken
            if full:
                self._choose_encoder(block)
            for offset, tile in self._tiles(start):
                yield offset, block[tile]

    def _choose_encoder(self, block: Array) -> None:
        """Look now and then at a whole chunk, more and more rarely."""
        if self.trusted == 0:
            _, tile = next(self._tiles(0))
            self.pipeline = filters.encoder_for(block[tile], self.pipeline)
            self.trusted = self.period = min(2 * self.period, _MOST_TRUSTED)
        self.trusted -= 1

    def extend(self, count: int) -> tuple[int, ...]:
        """Make the dataset longer; return its shape."""
        shape = list(self.dataset.shape)
        shape[self.axis] += count
        self.dataset.set_extent(tuple(shape))
        return tuple(shape)

    def room_for(self, size: int, rows: int) -> int:
        """Return the bytes to keep for an open chunk that now has ``rows`` and takes ``size``."""
        if self.pipeline.codec is None:
            return size
        expected = self.usual or size * self.rows // max(1, rows)
        return min(self.bound, max(expected, size) * 17 // 16 + 32)


def _pipeline(properties: h5p.PropDCID) -> Pipeline:
    """Return what a dataset was created with, and the fast encoder."""
    codes = {}
    for number in range(properties.get_nfilters()):
        code, _, options, _ = properties.get_filter(number)
        codes[code] = options
    known = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
    if not codes.keys() <= known or h5py.h5z.FILTER_FLETCHER32 not in codes:
        raise ValidationError(
            "its chunks have other filters than this package gives to records that grow; only "
            "what Store.record() began can be gone on with"
        )
    deflate = codes.get(h5py.h5z.FILTER_DEFLATE)
    return Pipeline(
        None if deflate is None else "gzip",
        None if deflate is None else int(deflate[0]),
        shuffle=h5py.h5z.FILTER_SHUFFLE in codes,
        chunks=properties.get_chunk(),
        choice=filters.quick(h5py.h5z.FILTER_SHUFFLE in codes),
    )


class Grower:
    """One part of a growing record, in a file that is open for writing.

    Parameters
    ----------
    group
        The part.
    put
        Writes bytes at a place of the file, past HDF5, which keeps no copy of chunks.

    Attributes
    ----------
    columns
        What grows, by the names of the variables.
    stored_bytes
        Bytes of all chunks.
    lost_bytes
        Bytes of rooms that turned out too small; compaction wins them back.
    """

    def __init__(self, group: h5g.GroupID, put: Put) -> None:
        self._group = group
        self._put = put
        self._scales: dict[bytes, h5d.DatasetID] = {}
        self._shapes: dict[bytes, tuple[int, ...]] = {}
        self.columns: dict[str, _Column] = {}
        self.stored_bytes = 0
        self.lost_bytes = 0
        self._hash = content.read(group)
        self._hash_at = content.opened(group) if self._hash is not None else None
        for link in group:
            self._open(link)

    def _open(self, link: bytes) -> None:
        dataset = h5d.open(self._group, link, _UNCACHED)
        self._shapes[link] = dataset.shape
        self.stored_bytes += int(dataset.get_storage_size())
        bounds = dataset.get_space().get_simple_extent_dims(maxdims=True)
        if h5s.UNLIMITED not in bounds:
            return
        if h5py.h5ds.is_scale(dataset) and dataset.get_create_plist().get_nfilters() == 0:
            self._scales[link] = dataset
        else:
            name = h5attrs.read_one(dataset, LINK_ATTR.encode()) or link.decode()
            self.columns[name] = _Column.open(dataset, link, bounds.index(h5s.UNLIMITED))

    @property
    def length(self) -> int:
        """Rows that the part has."""
        return next((column.length for column in self.columns.values()), 0)

    def append(self, blocks: Mapping[str, Array]) -> None:
        """Add rows: values of every column by its name, of its dtype on disk, equally many."""
        (count,) = {blocks[name].shape[c.axis] for name, c in self.columns.items()}
        if not count:
            return
        total = -content.sizes(self._shapes)
        for link, scale in self._scales.items():
            scale.set_extent((scale.shape[0] + count,))
            self._shapes[link] = scale.shape
        for name, column in self.columns.items():
            self._shapes[column.link] = column.extend(count)
            for chunk in column.encoded(blocks[name]):
                total += self._place(column, *chunk)
        total += content.sizes(self._shapes)
        if self._hash is not None and self._hash_at is not None:
            self._hash += total
            content.put(self._hash_at, self._hash)

    def _place(self, column: _Column, offset: tuple[int, ...], body: Any, rows: int) -> int:
        """Put one chunk into the file; return the difference of the content hash."""
        room = column.rooms.pop(offset, None)
        size = len(body) + _CHECKSUM
        total = -content.chunk(column.link, offset, room.checksum) if room is not None else 0
        full = rows == column.rows
        if room is None or room.size < size:
            wanted = size if full else column.room_for(size, rows)
            data = filters.sealed(body, wanted)
            column.dataset.write_direct_chunk(offset, data)
            left = room.size if room is not None else 0
            self.lost_bytes += left
            self.stored_bytes += wanted - left
            at = -1 if full else int(column.dataset.get_chunk_info_by_coord(offset).byte_offset)
            room = _Room(at, wanted, bytes(data[-_CHECKSUM:]))
        else:
            data = filters.sealed(body, room.size)
            self._put(data, room.at)
            room.checksum = bytes(data[-_CHECKSUM:])
        if full:
            column.usual = max(size, column.usual * 7 // 8)
        else:
            column.rooms[offset] = room
        return total + content.chunk(column.link, offset, room.checksum)


def mark(group: h5g.GroupID, recording: bool) -> None:
    """Note whether somebody is still adding to a part; a killed recorder leaves it so."""
    value = np.array(recording, np.int8)
    if h5py.h5a.exists(group, content.RECORDING_ATTR):
        h5attrs.overwrite(group, content.RECORDING_ATTR, value)
    else:
        h5attrs.write(group, h5attrs.pack(content.RECORDING_ATTR.decode(), value))


def grows(group: h5g.GroupID) -> bool:
    """Tell whether a part has a dataset that can be made longer without end."""
    datasets = (h5d.open(group, link) for link in group)
    bounds = (d.get_space().get_simple_extent_dims(maxdims=True) for d in datasets)
    return any(h5s.UNLIMITED in bound for bound in bounds)


def is_recording(group: h5g.GroupID) -> bool:
    """Tell whether a part is marked as being added to."""
    return bool(h5attrs.read_one(group, content.RECORDING_ATTR))
