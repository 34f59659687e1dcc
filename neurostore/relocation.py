"""Records moved to another file as bytes: addresses are corrected, nothing is made anew by HDF5.

HDF5 takes a millisecond to make the objects of a small record; its bytes move in microseconds.
The headers of many records are compared with `objectheader.Form`, as arrays; a record that has
anything unfamiliar, whose checksums disagree, or that refers to something outside itself, is left
to whoever called.  Elements of the global heap, which records share, are written anew.  Values
are neither decoded nor looked at.  The links to the records are made by `linktable`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from neurostore import globalheap
from neurostore.chunkindex import ChunkIndex
from neurostore.objectheader import (
    UNDEFINED,
    Array,
    Form,
    Place,
    Unfamiliar,
    checksums,
    read_form,
)
from neurostore.osio import OsIO, write_all
from neurostore.writeout import WriteOut

__all__ = ["Relocation"]

#: Records that are moved together.
_BATCH = 1024
#: Spacing of records up to which all that lies between them is read with them.
_DENSE = 32 * 1024
#: Forms from which on records are not alike enough for this to pay.
_MOST_FORMS = 512
#: Values that are moved at once: they stay in the processor's cache between reading and writing.
_BLOCK = 1024 * 1024
_MOST_BUFFERS = 512


@dataclass
class _Group:
    """Objects of one form: the record of each, its address, the bytes of its pieces."""

    form: Form
    records: Array
    addresses: Array
    rows: list[Array]
    #: What orders the objects of a record.
    places: Array
    #: For each element of the global heap that is named, what it refers to.
    referred: list[Array] = field(default_factory=list)
    indexes: dict[int, ChunkIndex] = field(default_factory=dict)
    new: list[Array] = field(default_factory=list)

    def column(self, place: Place, width: int = 8) -> Array:
        piece, offset = place
        part = np.ascontiguousarray(self.rows[piece][:, offset : offset + width])
        return part.view(f"<u{width}")[:, 0]

    def put(self, place: Place, numbers: Array, width: int = 8) -> None:
        piece, offset = place
        raw = np.ascontiguousarray(numbers.astype(f"<u{width}")).view(np.uint8)
        self.rows[piece][:, offset : offset + width] = raw.reshape(-1, width)

    def keep(self, good: Array) -> None:
        """Forget the objects of records that are not moved."""
        chosen = good[self.records]
        if chosen.all():
            return
        self.indexes = {
            int(new): self.indexes[int(old)]
            for new, old in enumerate(chosen.nonzero()[0])
            if int(old) in self.indexes
        }
        self.records, self.addresses = self.records[chosen], self.addresses[chosen]
        self.places = self.places[chosen]
        self.referred = [column[chosen] for column in self.referred]
        self.rows = [rows[chosen] for rows in self.rows]


@dataclass
class _Extents:
    """Values of a batch: where they stand, how long they are, and who is told the new place."""

    starts: list[Array] = field(default_factory=list)
    sizes: list[Array] = field(default_factory=list)
    tell: list[Callable[[Array], None]] = field(default_factory=list)

    def add(self, starts: Array, sizes: Array, tell: Callable[[Array], None]) -> None:
        self.starts.append(starts.astype(np.int64))
        self.sizes.append(sizes.astype(np.int64))
        self.tell.append(tell)


class Relocation:
    """Moves records from one open file to the end of another.

    Parameters
    ----------
    source, target
        Descriptors; nobody else writes to either.
    end
        Where the target ends; goes on as records are moved.
    ahead
        Brings to the medium what was written, while more is.
    """

    def __init__(self, source: int, target: int, end: int, ahead: WriteOut | None = None) -> None:
        self.source, self.target, self.end = source, target, end
        self._ahead = ahead
        self.size = os.fstat(source).st_size
        self._forms: dict[int, list[Form]] = {}
        self._count = 0
        self._low, self._window = 0, np.empty(0, np.uint8)
        #: What the windows of all batches are read into: fresh memory costs as much as the reading.
        self._room = np.empty(0, np.uint8)
        self._block = memoryview(bytearray(_BLOCK))
        self._elements: dict[int, Array] = {}

    def move(self, addresses: Array, step: Callable[[int], object]) -> Array:
        """Move the records whose groups stand at ``addresses``; return where they stand then.

        0 for those that were not moved.  ``step`` is called with how many were moved.
        """
        order = np.argsort(addresses, kind="stable")
        found = np.zeros(len(addresses), np.int64)
        for first in range(0, len(order), _BATCH):
            chosen = order[first : first + _BATCH]
            found[chosen] = moved = self._batch(addresses[chosen].astype(np.int64))
            step(int(np.count_nonzero(moved)))
        self._window = self._room = np.empty(0, np.uint8)
        return found

    # Reading

    def read(self, address: int, length: int) -> bytes:
        """Read bytes of the source; fewer where it ends."""
        at = address - self._low
        if at >= 0 and at + length <= self._window.size:
            return self._window[at : at + length].tobytes()
        if not 0 <= address < self.size:
            return b""
        return os.pread(self.source, length, address)

    def _look(self, addresses: Array) -> None:
        """Read what lies about the records of a batch, if they lie close together."""
        self._low, self._window = 0, np.empty(0, np.uint8)
        span = int(addresses[-1] - addresses[0])
        if span > _DENSE * len(addresses):
            return
        length = min(span + _DENSE, self.size - int(addresses[0]))
        self._low = int(addresses[0])
        if self._room.size < length:
            self._room = np.empty(length, np.uint8)
        self._window = self._room[:length]
        _read_into(self._window.data, self.source, self._low)

    def _rows(self, addresses: Array, length: int) -> Array:
        """Return what stands at the addresses, zeros beyond the end of the file."""
        at = addresses - self._low
        inside = (at >= 0) & (at <= self._window.size - length)
        if inside.all():
            whole: Array = _pieces(self._window, length)[at].view(np.uint8)
            return whole.reshape(-1, length)
        rows = np.zeros((len(addresses), length), np.uint8)
        if inside.any():
            found = _pieces(self._window, length)[at[inside]]
            rows[inside] = found.view(np.uint8).reshape(-1, length)
        for row in (~inside).nonzero()[0]:
            data = self.read(int(addresses[row]), length)
            rows[row, : len(data)] = np.frombuffer(data, np.uint8)
        return rows

    # Recognizing

    def _matched(self, addresses: Array) -> list[tuple[Form, Array, list[Array]]]:
        """Return forms, the positions of the objects that have them, and their pieces."""
        found = []
        heads = self._rows(addresses, 12)
        # The length of the header stands behind its flags, where there are no times.
        heads = heads.astype(np.int64)
        keys = heads[:, 5] << 16 | np.where(heads[:, 5] & 0x30, 0, heads[:, 6] << 8 | heads[:, 7])
        for key in np.unique(keys).tolist():
            left = (keys == key).nonzero()[0]
            known = self._forms.setdefault(key, [])
            tried = 0
            while left.size:
                if tried == len(known):
                    form = self._another(int(addresses[left[0]]))
                    if form is None:
                        left = left[1:]
                        continue
                    known.append(form)
                tried += 1
                form = known[tried - 1]
                fitting, rows = self._fit(form, addresses[left])
                if fitting.any():
                    found.append((form, left[fitting], rows))
                    left = left[~fitting]
        return found

    def _another(self, address: int) -> Form | None:
        if self._count >= _MOST_FORMS:
            return None
        try:
            form = read_form(self.read, address)
        except (Unfamiliar, IndexError, ValueError):
            return None
        self._count += 1
        return form

    def _fit(self, form: Form, addresses: Array) -> tuple[Array, list[Array]]:
        """Return which objects have a form, and the pieces of those."""
        good = np.ones(len(addresses), bool)
        pieces: list[Array] = []
        for number, (expected, mask) in enumerate(zip(form.pieces, form.masks, strict=True)):
            if number:
                piece, offset = form.continued[number - 1]
                column = np.ascontiguousarray(pieces[piece][:, offset : offset + 8])
                addresses = column.view("<i8")[:, 0]
            rows = self._rows(np.where(good, addresses, -1), len(expected))
            differ = (rows ^ np.frombuffer(expected, np.uint8)) & mask
            good &= ~differ.any(axis=1)
            alike = rows if good.all() else rows[good]
            good[good] = checksums(alike[:, :-4]) == _last_words(alike)
            pieces.append(rows)
        return good, pieces if good.all() else [rows[good] for rows in pieces]

    def _objects(self, addresses: Array) -> tuple[list[_Group], Array]:
        """Return all objects of records, and which records have familiar ones alone."""
        good = np.ones(len(addresses), bool)
        groups: list[_Group] = []
        records, places = np.arange(len(addresses)), np.zeros(len(addresses), np.int64)
        for depth in range(4):
            if not len(addresses):
                break
            missing = np.ones(len(addresses), bool)
            level = []
            for form, chosen, rows in self._matched(addresses):
                missing[chosen] = False
                level.append(_Group(form, records[chosen], addresses[chosen], rows, places[chosen]))
            good[records[missing]] = False
            groups += level
            links = [
                (group.column(place).astype(np.int64), group.records, group.places, number)
                for group in level
                for number, place in enumerate(group.form.links)
            ]
            if not links:
                break
            addresses = np.concatenate([column for column, *_ in links])
            records = np.concatenate([of for _, of, *_ in links])
            places = np.concatenate([(p * 64 + n + 1) for _, _, p, n in links])
            good[records[places >= 64 ** (depth + 1)]] = False
        else:
            good[records] = False
        return groups, good

    # Moving

    def _batch(self, addresses: Array) -> Array:
        self._look(addresses)
        self._elements.clear()
        groups, good = self._objects(addresses)
        self._check_references(groups, good)
        extents = _Extents()
        self._find_indexes(groups, good)
        for group in groups:
            group.keep(good)
        groups = [group for group in groups if len(group.records)]
        moved = np.zeros(len(addresses), np.int64)
        if groups:
            buffer, where = self._placed(groups, extents)
            self._write(buffer, extents, where)
            for group in groups:
                roots = group.places == 0
                moved[group.records[roots]] = group.new[0][roots]
        return moved

    def _check_references(self, groups: list[_Group], good: Array) -> None:
        """Leave records that refer to others, share an object, or have values out of the file."""
        olds = np.concatenate([group.addresses for group in groups] or [np.empty(0, np.int64)])
        of = np.concatenate([group.records for group in groups] or [np.empty(0, np.int64)])
        order = np.argsort(olds, kind="stable")
        olds, of = olds[order], of[order]
        twice = olds[1:] == olds[:-1]
        good[of[1:][twice]] = good[of[:-1][twice]] = False
        for group in groups:
            wanted = [group.column(place).astype(np.int64) for place in group.form.references]
            group.referred = [self._referred(group, place) for place in group.form.heap]
            for column in (*wanted, *group.referred):
                at = np.minimum(np.searchsorted(olds, column), len(olds) - 1)
                good[group.records[(olds[at] != column) | (of[at] != group.records)]] = False
            if group.form.data is not None:
                starts, sizes = _extent(group)
                there = starts != UNDEFINED
                bad = there & ((sizes == 0) | (sizes > self.size) | (starts > self.size - sizes))
                good[group.records[bad]] = False

    def _referred(self, group: _Group, place: Place) -> Array:
        """Return the objects that elements of the global heap refer to; -1 where there is none."""
        piece, offset = place
        indexes = group.column((piece, offset + 8), 4).astype(np.int64)
        collections, of = np.unique(group.column(place), return_inverse=True)
        known = [self._collection(where) for where in collections.tolist()]
        lengths = np.array([len(found) for found in known], np.int64)
        firsts = np.cumsum(lengths) - lengths
        there = indexes < lengths[of]
        referred = np.concatenate(known)[np.where(there, firsts[of] + indexes, 0)]
        return np.where(there, referred, -1)

    def _collection(self, where: int) -> Array:
        """Return the references in one collection of the global heap, by index; else -1."""
        known = self._elements.get(where)
        if known is None:
            known = self._elements[where] = globalheap.references(self.read, where)
        return known

    def _find_indexes(self, groups: list[_Group], good: Array) -> None:
        for group in groups:
            if group.form.index is None:
                continue
            place, whole = group.form.index
            for row, where in enumerate(group.column(place).tolist()):
                record = group.records[row]
                if where == UNDEFINED or not good[record]:
                    continue
                try:
                    group.indexes[row] = ChunkIndex.read(self.read, where, whole, self.size)
                except (Unfamiliar, IndexError, ValueError):
                    good[record] = False

    def _placed(self, groups: list[_Group], extents: _Extents) -> tuple[Array, int]:
        """Give everything its place; return the metadata, and where the values begin."""
        base = self.end
        base = _place_headers(groups, base)
        _correct_links(groups)
        base = self._place_indexes(groups, base, extents)
        heap, base = _place_heap(groups, base)
        for group in groups:
            if group.form.data is not None:
                _add_extent(group, extents)
        data = base
        _place_values(extents, data)
        buffer = np.zeros(data - self.end, np.uint8)
        for group in groups:
            for rows, new in zip(group.rows, group.new, strict=True):
                _seal(rows)
                _scatter(buffer, rows, new - self.end)
            for index in group.indexes.values():
                at = index.place - self.end
                image = index.image()
                buffer[at : at + len(image)] = np.frombuffer(image, np.uint8)
        buffer[len(buffer) - len(heap) :] = np.frombuffer(heap, np.uint8)
        return buffer, data

    def _place_indexes(self, groups: list[_Group], base: int, extents: _Extents) -> int:
        for group in groups:
            if group.form.index is None:
                continue
            place, _ = group.form.index
            column = group.column(place).copy()
            for row, index in group.indexes.items():
                index.place = column[row] = base
                base += index.length
                extents.add(*index.extents, index.tell)
            group.put(place, column)
        return base

    def _write(self, buffer: Array, extents: _Extents, where: int) -> None:
        write_all(OsIO(), self.target, buffer.data, self.end)
        if not extents.starts:
            self.end = where
            return
        starts, sizes = np.concatenate(extents.starts), np.concatenate(extents.sizes)
        order = np.argsort(starts, kind="stable")
        starts, sizes = starts[order], sizes[order]
        joins = starts[1:] != starts[:-1] + sizes[:-1]
        firsts = np.concatenate([[0], joins.nonzero()[0] + 1]) if len(starts) else np.empty(0, int)
        lengths = np.add.reduceat(sizes, firsts) if len(firsts) else np.empty(0, int)
        runs = zip(starts[firsts].tolist(), lengths.tolist(), strict=True)
        self.end = self._write_runs(list(runs), where)

    def _write_runs(self, runs: list[tuple[int, int]], where: int) -> int:
        pending: list[memoryview] = []
        for start, length in runs:
            at = start - self._low
            if at >= 0 and at + length <= self._window.size and length < _BLOCK:
                pending.append(self._window[at : at + length].data)
                if len(pending) == _MOST_BUFFERS:
                    where = self._put(pending, where)
                continue
            where = self._put(pending, where)
            for first in range(0, length, _BLOCK):
                piece = self._block[: min(_BLOCK, length - first)]
                _read_into(piece, self.source, start + first)
                write_all(OsIO(), self.target, piece, where + first)
                self._wrote(len(piece))
            where += length
        return self._put(pending, where)

    def _put(self, pending: list[memoryview], where: int) -> int:
        """Write all that waits, which is nothing then; return where that ends."""
        if pending:
            length = sum(map(len, pending))
            _pwritev(self.target, pending, where, length)
            self._wrote(length)
            where += length
            pending.clear()
        return where

    def _wrote(self, count: int) -> None:
        if self._ahead is not None:
            self._ahead.wrote(count)


def _extent(group: _Group) -> tuple[Array, Array]:
    assert group.form.data is not None
    place, size = group.form.data
    starts = group.column(place)
    if isinstance(size, int):
        return starts, np.full(len(starts), size, np.uint64)
    return starts, group.column(size)


def _add_extent(group: _Group, extents: _Extents) -> None:
    assert group.form.data is not None
    place, _ = group.form.data
    starts, sizes = _extent(group)
    there = starts != UNDEFINED

    def tell(new: Array) -> None:
        column = starts.copy()
        column[there] = new
        group.put(place, column)

    extents.add(starts[there], sizes[there], tell)


def _place_headers(groups: list[_Group], base: int) -> int:
    """Give every piece of every header its place, those of a record side by side."""
    lengths, keys, records = [], [], []
    for group in groups:
        for piece, rows in enumerate(group.rows):
            lengths.append(np.full(len(rows), rows.shape[1], np.int64))
            keys.append(group.places * 16 + piece)
            records.append(group.records)
    sizes = np.concatenate(lengths)
    order = np.lexsort((np.concatenate(keys), np.concatenate(records)))
    ends = np.cumsum(sizes[order])
    placed = np.empty_like(sizes)
    placed[order] = base + ends - sizes[order]
    at = 0
    for group in groups:
        group.new = []
        for rows in group.rows:
            group.new.append(placed[at : at + len(rows)])
            at += len(rows)
    return base + int(ends[-1])


def _correct_links(groups: list[_Group]) -> None:
    for group in groups:
        for place, new in zip(group.form.continued, group.new[1:], strict=True):
            group.put(place, new)
    renewed = _renewer(groups)
    for group in groups:
        for place in (*group.form.links, *group.form.references):
            group.put(place, renewed(group.column(place).astype(np.int64)))


def _renewer(groups: list[_Group]) -> Callable[[Array], Array]:
    olds = np.concatenate([group.addresses for group in groups])
    news = np.concatenate([group.new[0] for group in groups])
    order = np.argsort(olds)
    olds, news = olds[order], news[order]

    def renewed(wanted: Array) -> Array:
        at = np.searchsorted(olds, wanted)
        assert np.array_equal(olds[np.minimum(at, len(olds) - 1)], wanted)
        return news[at]

    return renewed


def _place_heap(groups: list[_Group], base: int) -> tuple[bytes, int]:
    """Write the references of all datasets into collections of the global heap."""
    renewed = _renewer(groups)
    references = []
    count = 0
    for group in groups:
        for place, referred in zip(group.form.heap, group.referred, strict=True):
            references.append(renewed(referred))
            numbers = np.arange(count, count + len(group.records))
            count += len(numbers)
            piece, offset = place
            group.put(place, base + numbers // globalheap.PER * globalheap.SIZE)
            group.put((piece, offset + 8), numbers % globalheap.PER + 1, 4)
    everything = np.concatenate(references) if references else np.empty(0, np.int64)
    heap = b"".join(
        globalheap.collection(everything[first : first + globalheap.PER])
        for first in range(0, count, globalheap.PER)
    )
    return heap, base + len(heap)


def _place_values(extents: _Extents, base: int) -> None:
    """Give values their places in the order in which they stood."""
    if not extents.starts:
        return
    starts, sizes = np.concatenate(extents.starts), np.concatenate(extents.sizes)
    order = np.argsort(starts, kind="stable")
    placed = np.empty_like(starts)
    placed[order] = base + np.cumsum(sizes[order]) - sizes[order]
    at = 0
    for column, tell in zip(extents.starts, extents.tell, strict=True):
        tell(placed[at : at + len(column)])
        at += len(column)


def _seal(rows: Array) -> None:
    rows[:, -4:] = checksums(rows[:, :-4]).view(np.uint8).reshape(-1, 4)


def _last_words(rows: Array) -> Array:
    return np.ascontiguousarray(rows[:, -4:]).view("<u4")[:, 0]


def _scatter(buffer: Array, rows: Array, offsets: Array) -> None:
    length = rows.shape[1]
    _pieces(buffer, length)[offsets] = np.ascontiguousarray(rows).view(f"V{length}")[:, 0]


def _pieces(buffer: Array, length: int) -> Array:
    """Return all pieces of one length, from every byte on, as items that are moved as a whole."""
    count = max(0, buffer.size - length + 1)
    return np.ndarray((count,), f"V{length}", buffer.data, strides=(1,))


def _read_into(view: memoryview, fd: int, offset: int) -> None:
    while view:
        got = os.preadv(fd, [view], offset)
        if not got:
            raise OSError(errno.EIO, f"the file ends at {offset}, expected {len(view)} bytes more")
        view, offset = view[got:], offset + got


def _pwritev(fd: int, buffers: list[memoryview], offset: int, length: int) -> None:
    done = os.pwritev(fd, buffers, offset)
    if done < length:  # a full disk, or a signal: the rest says which
        write_all(OsIO(), fd, memoryview(b"".join(buffers))[done:], offset + done)
