"""The rows of one table of the catalogue as they lie in a file: read, checked, left where they are.

Of a long table only the times are kept: to lay out 64 bytes for each of a million rows takes longer
than to read them, and a question is about a few.  What rows mean, and when a table has to be
read anew, others know.
"""

from __future__ import annotations

import functools
import operator
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from neurostore.catalogue import ROW, RowsRead
from neurostore.errors import DamagedError
from neurostore.filters import threads

__all__ = [
    "BLOCK",
    "CHUNK",
    "LONG",
    "ROW_TYPE",
    "ROW_WORDS",
    "SOUND",
    "UNCACHED",
    "Descriptor",
    "Unread",
    "folded",
    "read",
]

Array = np.ndarray[Any, Any]

ROW_TYPE = h5t.py_create(ROW)
#: What the words of a row fold to.
SOUND = 0x6E657572
ROW_WORDS = struct.Struct(f"<{ROW.itemsize // 8}Q")
#: The word of a row that is 0 unless the record was removed or has an id of its own.
_ODD_WORD = 6
UNCACHED = h5p.create(h5p.DATASET_ACCESS)
UNCACHED.set_chunk_cache(0, 0, 1.0)
#: Rows in one chunk of a table: 32 KB; a million rows are then 1,954 chunks.
CHUNK = 512
#: Rows that a thread reads and checks at a time: 4 MB, so that few of them wait for each other.
BLOCK = 128 * CHUNK
#: Reading a thousand rows takes as long as looking one up.
_ROWS_PER_LOOK = 1000
#: Tables with fewer rows are read whole.
LONG = 8 * CHUNK
_SCRATCH = threading.local()

#: Fills an array with the rows from the first on.
_Fill = Callable[[int, Array], None]


class Descriptor:
    """A descriptor of a file that outlives its handle: one for all tables, made when asked for."""

    def __init__(self, h5file: h5py.File) -> None:
        self._h5file: h5py.File | None = h5file
        self._number = -1

    def keep(self) -> Descriptor:
        """Make it, while the handle is open."""
        if self._h5file is not None:
            self._number = os.dup(self._h5file.id.get_vfd_handle())
            self._h5file = None
            weakref.finalize(self, os.close, self._number)
        return self

    def fileno(self) -> int:
        """Return its number."""
        return self._number


def read(
    h5file: h5py.File, dataset: h5d.DatasetID, first: int, where: str, kept: Descriptor
) -> RowsRead:
    """Read and check the rows of a table from ``first`` on.

    Parameters
    ----------
    where
        Name of the table for messages.
    kept
        By which the rows of a long table are read later.

    Raises
    ------
    ValueError
        A row fails its check, or rows are missing.
    """
    count = dataset.shape[0] - first
    places = None if first else _places(h5file, dataset)
    if places is None:
        return _read_all(count, lambda start, block: _by_hdf5(dataset, first + start, block), where)
    descriptor = h5file.id.get_vfd_handle()

    def fill(start: int, block: Array) -> None:
        _by_bytes(descriptor, places, start, block)

    if count < LONG:
        return _read_all(count, fill, where)
    size, moments, odd, odd_rows = _looked(count, fill, where, None)
    unread = Unread(kept.keep(), places, size, where)
    return RowsRead(unread, moments, odd, odd_rows)


def _read_all(count: int, fill: _Fill, where: str) -> RowsRead:
    rows = np.empty(count, ROW)
    size, moments, odd, odd_rows = _looked(count, fill, where, rows)
    return RowsRead(rows[:size], moments, odd, odd_rows)


def _looked(
    count: int, fill: _Fill, where: str, rows: Array | None
) -> tuple[int, Array, Array, Array]:
    """Check ``count`` rows and keep them in ``rows``, if given.

    Block by block, in threads where the rows are not kept: those come from no HDF5.

    Returns
    -------
    tuple
        How many rows there are, their times, and positions and copies of the odd ones.
    """
    moments = np.empty(count, "<f8")

    def look(start: int) -> tuple[int, Array, Array]:
        size = min(BLOCK, count - start)
        block = _scratch(size) if rows is None else rows[start : start + size]
        fill(start, block)
        block = block[: used(block)]
        moments[start : start + len(block)] = block["timestamp"]
        words = block.view("<u8").reshape(len(block), -1)
        if not (folded(words) == SOUND).all():
            raise ValueError(f"{where}: a row fails its check")
        odd = odd_rows(words)
        return start + len(block), start + odd, block[odd]

    starts = range(0, count, BLOCK)
    nbytes = count * ROW.itemsize if rows is None else 0
    looked = list(threads.each(look, zip(starts), nbytes, BLOCK * ROW.itemsize))
    end = 0
    for start, (after, _, _) in zip(starts, looked, strict=True):
        if end < start:
            raise ValueError(f"{where}: the table ends before its last chunk")
        end = after
    odd = np.concatenate([np.arange(0), *(found for _, found, _ in looked)])
    copies = np.concatenate([np.empty(0, ROW), *(found for _, _, found in looked)])
    return end, moments[:end], odd, copies


def _scratch(count: int) -> Array:
    """Return this thread's array for a block; new memory would take as long as reading into it."""
    held: Array | None = getattr(_SCRATCH, "rows", None)
    if held is None:
        held = _SCRATCH.rows = np.empty(BLOCK, ROW)
    return held[:count]


def odd_rows(words: Array) -> Array:
    """Return the positions of rows that were removed or have an id of their own."""
    odd = words[:, _ODD_WORD]
    # To look for the few that are not 0 takes twice as long as to see that there are none.
    return np.flatnonzero(odd) if np.bitwise_or.reduce(odd) else np.arange(0)


def used(rows: Array) -> int:
    """Return how many rows are, or were, records: those before the first without a version.

    A damaged version fails the check of its row or, in the last chunk, ends the table early,
    which the count of rows shows.
    """
    tail = rows["version"][-CHUNK:] == 0
    return len(rows) - len(tail) + int(np.argmax(tail)) if tail.any() else len(rows)


def folded(words: Array) -> Array:
    """Xor all words of each row and fold them to 32 bits: `SOUND` where it is as written.

    Column by column, since NumPy takes three times as long to reduce rows of eight.
    """
    total: Array = words[:, 0] ^ words[:, 1]
    for column in range(2, words.shape[1]):
        total ^= words[:, column]
    total ^= total >> np.uint64(32)
    return total.astype("<u4")


# -- where they lie ----------------------------------------------------------------------------


class HasFileno(Protocol):
    """Something with a descriptor, as files have it."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


class Unread:
    """Rows that stay in a plain file; the table is as it was read while nobody changed a row.

    Parameters
    ----------
    file
        Has the file's descriptor.
    places
        Offsets of the chunks.
    size
        Rows that are, or were, records.
    where
        Name of the table for messages.
    patience
        Seconds that a row may be half written, as a commit of another process is applied.
    """

    def __init__(
        self, file: HasFileno, places: Array, size: int, where: str, patience: float = 1.0
    ) -> None:
        self._file = file
        self._places = places
        self._size = size
        self._where = where
        self._patience = patience
        #: How many more questions about few rows take less than reading all.
        self._left = size // _ROWS_PER_LOOK

    def __len__(self) -> int:
        return self._size

    def all(self) -> Array:
        """Return all rows.

        Raises
        ------
        DamagedError
            Rows fail their checks by now.
        """
        rows = np.empty(self._size, ROW)
        for start in range(0, self._size, BLOCK):
            self._fill(start, rows[start : start + BLOCK])
        return rows

    def row(self, row: int) -> np.void | None:
        """Return one row; None, and DamagedError, as `take`."""
        self._left -= 1
        if self._left < 0:
            return None
        place = int(self._places[row // CHUNK]) + row % CHUNK * ROW.itemsize
        data = os.pread(self._file.fileno(), ROW.itemsize, place)
        if len(data) == ROW.itemsize:
            total = functools.reduce(operator.xor, ROW_WORDS.unpack(data))
            if (total ^ total >> 32) & 0xFFFFFFFF == SOUND:
                found: np.void = np.frombuffer(data, ROW)[0]
                return found
        rows = self.take(np.array([row]))
        return None if rows is None else rows[0]

    def take(self, wanted: Array) -> Array | None:
        """Return the rows at some positions; None where all are better read at once.

        That is where they are all over the file, and when many such questions were asked.

        Raises
        ------
        DamagedError
            As `all`, of the rows asked for and those between them.
        """
        numbers = wanted // CHUNK
        chunks = np.unique(numbers)
        self._left -= len(chunks)
        if self._left < 0 or len(chunks) > max(4, len(self._places) // 8):
            return None
        found = np.empty(len(wanted), ROW)
        for number in chunks.tolist():
            here = np.flatnonzero(numbers == number)
            low, high = int(wanted[here].min()), int(wanted[here].max())
            piece = np.empty(high + 1 - low, ROW)
            self._fill(low, piece)
            found[here] = piece[wanted[here] - low]
        return found

    def _fill(self, first: int, rows: Array) -> None:
        """Read rows, again while a commit of another process is writing some of them."""
        deadline = time.monotonic() + self._patience
        while True:
            _by_bytes(self._file.fileno(), self._places, first, rows)
            if (folded(rows.view("<u8").reshape(len(rows), -1)) == SOUND).all():
                return
            if time.monotonic() > deadline:
                raise DamagedError(
                    f"{self._where}: of rows {first} to {first + len(rows) - 1} one fails its "
                    "check, which all passed when the file was opened; opened anew, the file is "
                    "read without its catalogue"
                )
            time.sleep(0.001)


def _places(h5file: h5py.File, dataset: h5d.DatasetID) -> Array | None:
    """Return where the chunks of a table are; None where only HDF5 can read them.

    HDF5 takes 10 us for each chunk; from a plain file all of them are read where they lie, side
    by side wherever they do.
    """
    plain = h5file.driver == "sec2" and dataset.get_create_plist().get_chunk() == (CHUNK,)
    if not plain or not hasattr(os, "preadv") or dataset.get_type() != ROW_TYPE:
        return None
    places: list[int] = []
    dataset.chunk_iter(lambda info: places.append(info.byte_offset))
    return np.array(places, np.int64) if len(places) * CHUNK == dataset.shape[0] else None


def _by_hdf5(dataset: h5d.DatasetID, first: int, rows: Array) -> None:
    space = dataset.get_space()
    space.select_hyperslab((first,), (len(rows),))
    dataset.read(h5s.create_simple((len(rows),)), space, rows, ROW_TYPE)


def _by_bytes(descriptor: int, places: Array, first: int, rows: Array) -> None:
    into = rows.view("u1").data
    for offset, length in _pieces(places, first, len(rows)):
        if os.preadv(descriptor, (into[:length],), offset) != length:
            raise OSError(f"fewer than {length} bytes at {offset}")
        into = into[length:]


def _pieces(places: Array, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of the pieces of a file that hold rows."""
    chunks = places[first // CHUNK : -(-(first + count) // CHUNK)]
    inside = first % CHUNK
    breaks = np.flatnonzero(np.diff(chunks) != CHUNK * ROW.itemsize) + 1
    begins = [0, *breaks.tolist()]
    for begin, end in zip(begins, [*begins[1:], len(chunks)], strict=True):
        taken = min(count, (end - begin) * CHUNK - inside)
        yield int(chunks[begin]) + inside * ROW.itemsize, taken * ROW.itemsize
        count, inside = count - taken, 0
