"""The catalogue on disk: made, read and written in the commit of the records it names.

On disk, under ``/catalogue``: ``state`` (a few 64-bit numbers at a fixed place in the file),
``names`` (all texts, each ended by NUL) and ``<kind>/rows``, a growable compound table.  It is a
cache: where it is absent, short or damaged, `read` says so, and somebody else rebuilds it.

Tables grow by whole chunks, whose unused rows count as removed: a commit then changes the bytes
of its own rows and no metadata.  Those bytes are put where HDF5 would put them, since one
``H5Dwrite`` of a row costs as much as storing a variable.
"""

from __future__ import annotations

import functools
import math
import operator
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s, h5t

from neurostore import guard, h5attrs, ledger, remote, tablerows
from neurostore.catalogue import ROW, STATE, Catalogue, RowsRead, Table, Texts
from neurostore.schema import KINDS
from neurostore.tablerows import CHUNK, ROW_TYPE, ROW_WORDS, SOUND, UNCACHED, folded

#: References to the groups of records, one for each row, in finished files: `shortcuts`.
BESIDE = b"/objects"

__all__ = [
    "CHUNK",
    "GROUP",
    "SAME_TABLES",
    "RawFile",
    "Writer",
    "blank",
    "chunk_place",
    "create",
    "is_as",
    "read",
    "read_state",
    "refresh",
    "sound_rows",
    "state_at",
    "state_bytes",
    "state_offset",
]

GROUP = b"catalogue"
#: A row that is no record yet; a real one has a version.
_UNUSED = np.zeros((), ROW)
_UNUSED["timestamp"] = np.nan
_UNUSED["removed"] = 1
_STATE_SIZE = 16


class RawFile(Protocol):
    """A file as bytes."""

    def put(self, data: bytes, offset: int) -> object:
        """Write ``data`` at ``offset``."""
        ...


# -- making ------------------------------------------------------------------------------------


def blank(first_number: int = 0) -> Catalogue:
    """Return the catalogue of a file that has just been made, with an identity of its own."""
    fresh = Catalogue()
    identity = secrets.randbits(63), secrets.randbits(63)
    fresh.state.update(file_id_0=identity[0], file_id_1=identity[1], generation=1)
    fresh.state["dimensions"] = first_number + 2
    return fresh


def create(h5file: h5py.File, first_number: int = 0) -> None:
    """Make the empty catalogue of a file, with dimension numbers from ``first_number`` on."""
    group = h5g.create(h5file.id, GROUP)
    _note(group, "what", "time table of the records; a cache, rebuilt where it is absent")
    fresh = blank(first_number)
    scale = _scale(group, b"field", _STATE_SIZE, first_number)
    properties = _properties()
    properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    space = h5s.create_simple((_STATE_SIZE,))
    state = h5d.create(group, b"state", h5t.STD_I64LE, space, properties)
    h5py.h5ds.attach_scale(state, scale, 0)
    _note(state, "fields", " ".join(STATE))
    scale = _scale(group, b"byte", None, first_number + 1)
    texts = h5d.create(group, b"names", h5t.STD_U8LE, _endless(), _properties(4096))
    h5py.h5ds.attach_scale(texts, scale, 0)
    _note(texts, "long_name", "texts of the other tables in UTF-8, each ended by NUL")
    state.write(h5s.ALL, h5s.ALL, _state_values(fresh))


# -- reading -----------------------------------------------------------------------------------


def state_offset(h5file: h5py.File) -> int:
    """Return where in the file ``state`` stands; it never moves."""
    guard.check_path(h5file.id, GROUP + b"/state")
    offset = h5d.open(h5file.id, GROUP + b"/state").get_offset()
    if offset is None:
        raise ValueError(f"{h5file.filename}: catalogue/state has no place in the file")
    return int(offset)


def read(h5file: h5py.File) -> Catalogue | None:
    """Return the catalogue of a file, or None where it is absent or damaged."""
    found = Catalogue()
    found.ledger = ledger.read(h5file)
    try:
        if not guard.exists(h5file.id, GROUP):
            return None
        parts = _parts(h5file)
        _take_state(parts[b"state"], found)
        _read_new(h5file, parts, found)
    except _DAMAGES:
        return None  # a cache: whatever is wrong with it, the groups are the truth
    return found


def _parts(h5file: h5py.File) -> dict[bytes, h5d.DatasetID]:
    """Return the datasets of the catalogue that are there; raise where one is in another file."""
    group, found = h5g.open(h5file.id, GROUP), dict[bytes, h5d.DatasetID]()
    there = set(group)
    for path in (b"state", b"names", *(kind.encode() + b"/rows" for kind in KINDS)):
        # To be told that something is absent by an error takes a tenth of a millisecond.
        if path.partition(b"/")[0] in there and guard.exists(group, path):
            dataset = found[path] = h5d.open(group, path, UNCACHED)
            guard.check_dataset(dataset, f"{GROUP.decode()}/{path.decode()}")
            size = math.prod(dataset.shape) * dataset.get_type().get_size()
            guard.check_size(dataset, size, None)
    return found


def refresh(held: Catalogue, h5file: h5py.File) -> bool:
    """Bring a catalogue up to date by reading what was added since it was read.

    Returns False where it has to be read anew: rows changed that it has, it has some that the
    file has not, or it is that of another file.
    """
    if held.is_ahead():
        return False
    before, done = dict(held.state), False
    try:
        guard.check_path(h5file.id, GROUP + b"/state")
        read_state(h5file, held)
        done = is_as(held, before)
        if not done and all(held.state[name] == before[name] for name in _UNCHANGED):
            _read_new(h5file, _parts(h5file), held)
            done = True
    except _DAMAGES:
        return False
    finally:
        if not done:  # an interrupt, too: counters of rows that were not read hide them for good
            held.state = before
    return done


def is_as(held: Catalogue, state: Mapping[str, int] | None) -> bool:
    """Tell whether a catalogue is the one with these counters, and has all that they count."""
    rows = sum(table.size for table in held.tables.values())
    return held.state == state and rows == held.state["rows"] and not held.is_ahead()


_DAMAGES = (KeyError, OSError, ValueError, RuntimeError, IndexError)
#: What of the state is as it was while rows are only added.
_UNCHANGED = ("file_id_0", "file_id_1", "epoch", "rewritten")
#: What is as it was while rows are added that bring no text with them.
SAME_TABLES = (*_UNCHANGED, "texts", "texts_crc")


def state_at(descriptor: int, offset: int) -> dict[str, int] | None:
    """Return the counters of a catalogue as they stand in the file; None where they are unsound."""
    data = os.pread(descriptor, 8 * _STATE_SIZE, offset)
    if len(data) != 8 * _STATE_SIZE:
        return None
    return _state_of(data)


def _state_of(data: bytes) -> dict[str, int] | None:
    values = struct.unpack(f"<{_STATE_SIZE}q", data)
    if functools.reduce(operator.xor, values) != SOUND:
        return None
    return dict(zip(STATE, values, strict=False))


def chunk_place(h5file: h5py.File, name: str, row: int) -> int | None:
    """Return where in the file the chunk with a row of a table is, which never moves."""
    try:
        path = b"/".join((GROUP, name.encode(), b"rows"))
        dataset = h5d.open(h5file.id, path, UNCACHED)
        if dataset.get_create_plist().get_chunk() != (CHUNK,) or dataset.get_type() != ROW_TYPE:
            return None
        place = dataset.get_chunk_info_by_coord((row - row % CHUNK,)).byte_offset
    except _DAMAGES:
        return None
    return None if place is None else int(place)


def sound_rows(rows: np.ndarray[Any, Any]) -> RowsRead | None:
    """Return those of at most a chunk of rows that are, or were, records; None for unsound ones."""
    rows = rows[: tablerows.used(rows)]
    words = rows.view("<u8").reshape(len(rows), ROW.itemsize // 8)
    if not (folded(words) == SOUND).all():
        return None
    odd = tablerows.odd_rows(words)
    return RowsRead(rows, np.ascontiguousarray(rows["timestamp"]), odd, rows[odd])


def _read_new(
    h5file: h5py.File, parts: Mapping[bytes, h5d.DatasetID], catalogue: Catalogue
) -> None:
    """Read the texts and rows that a catalogue has not yet; raise where they are not sound."""
    group = h5g.open(h5file.id, GROUP)
    served = remote.of(h5file.id)
    if served is not None:
        served.anticipate(list(_places(group)))
    _read_texts(parts[b"names"], catalogue.texts)
    kept = tablerows.Descriptor(h5file)
    for kind in list(KINDS.values()):
        dataset = parts.get(kind.name.encode() + b"/rows")
        if dataset is not None:
            table = catalogue.tables.setdefault(kind.name, Table(kind))
            where = f"{GROUP.decode()}/{kind.name}/rows"
            found = tablerows.read(h5file, dataset, table.size, where, kept)
            if len(found.rows):
                catalogue.adopt(kind, found)
        elif kind.name.encode() in group:
            raise KeyError(f"catalogue/{kind.name} has no rows")
    _check_counts(group, catalogue)


def _places(group: h5g.GroupID) -> Iterator[tuple[int, int]]:
    """Yield where the tables lie, and what lies beside them: offsets and lengths."""
    for kind in KINDS:
        for path in (kind.encode() + link for link in (b"/rows", BESIDE)):
            if not guard.exists(group, path):
                continue
            dataset = h5d.open(group, path, UNCACHED)
            if dataset.get_create_plist().get_layout() == h5d.CHUNKED:
                found: list[tuple[int, int]] = []
                dataset.chunk_iter(lambda info, to=found: to.append((info.byte_offset, info.size)))
                yield from found
            elif dataset.get_offset() is not None:
                yield dataset.get_offset(), dataset.get_storage_size()


def read_state(h5file: h5py.File, catalogue: Catalogue) -> None:
    """Fill in the counters of a catalogue."""
    dataset = h5d.open(h5file.id, GROUP + b"/state")
    guard.check_dataset(dataset, f"{GROUP.decode()}/state")
    _take_state(dataset, catalogue)


def _take_state(dataset: h5d.DatasetID, catalogue: Catalogue) -> None:
    if dataset.shape != (_STATE_SIZE,):  # HDF5 would write beyond the end of the array
        raise ValueError(f"catalogue/state: shape {dataset.shape}, expected ({_STATE_SIZE},)")
    values = np.empty(_STATE_SIZE, "<i8")
    dataset.read(h5s.ALL, h5s.ALL, values)
    found = _state_of(values.tobytes())
    if found is None:
        raise ValueError("catalogue/state: it fails its check")
    catalogue.state.update(found)


def _read_texts(dataset: h5d.DatasetID, texts: Texts) -> None:
    size = dataset.shape[0] - texts.bytes
    if size <= 0:
        return
    raw = np.empty(size, "u1")
    space = dataset.get_space()
    space.select_hyperslab((texts.bytes,), (size,))
    dataset.read(h5s.create_simple((size,)), space, raw)
    new = raw.tobytes()
    texts.crc = zlib.crc32(new, texts.crc)
    texts.bytes += size
    for text in new.split(b"\0")[:-1]:
        texts.code(text.decode())
    texts.written = len(texts)


def _check_counts(group: h5g.GroupID, catalogue: Catalogue) -> None:
    """Raise where rows or texts are missing; kinds that this version lacks count too."""
    rows = sum(table.size for table in catalogue.tables.values())
    if rows != catalogue.state["rows"]:
        unknown = [link for link in group if b"/".join((link, b"rows")) in group]
        if set(unknown) <= {name.encode() for name in KINDS}:
            raise ValueError(f"catalogue: {rows} rows, expected {catalogue.state['rows']}")
    if catalogue.texts.crc != catalogue.state["texts_crc"]:
        raise ValueError("catalogue/names: its bytes fail their checksum")


# -- writing -----------------------------------------------------------------------------------


class Writer:
    """Puts what was added to a catalogue, changed and counted into one file.

    Parameters
    ----------
    h5file
        Open for writing; it closes with itself what is opened here, once, and kept.
    raw
        The same file as bytes; HDF5 keeps no copy of what is written there.
    state_at
        Where its counters stand, if that is known.
    """

    def __init__(self, h5file: h5py.File, raw: RawFile, state_at: int | None = None) -> None:
        self._group = h5g.open(h5file.id, GROUP)
        self._raw = raw
        self._state_at = state_offset(h5file) if state_at is None else state_at
        self._opened: dict[bytes, h5d.DatasetID] = {}
        #: Where in the file the chunks of the tables are.
        self._chunks: dict[tuple[bytes, int], int] = {}

    def write(self, catalogue: Catalogue) -> None:
        """Bring the file up to date; every call is one more generation."""
        for table in catalogue.tables.values():
            if table.written < table.size or table.changed:
                self._write_table(catalogue, table)
        if catalogue.texts.written < len(catalogue.texts):
            self._write_texts(catalogue.texts)
        catalogue.state["generation"] += 1
        catalogue.state["rows"] = sum(table.size for table in catalogue.tables.values())
        catalogue.state["texts"] = len(catalogue.texts)
        catalogue.state["texts_crc"] = catalogue.texts.crc
        self._raw.put(state_bytes(catalogue), self._state_at)

    def _dataset(self, link: bytes) -> h5d.DatasetID:
        """Open a dataset of the catalogue, without a chunk cache: a row is written as a row."""
        dataset = self._opened.get(link)
        if dataset is None:
            dataset = self._opened[link] = h5d.open(self._group, link, UNCACHED)
        return dataset

    def _write_texts(self, texts: Texts) -> None:
        new = b"".join(text.encode() + b"\0" for text in texts.unwritten())
        dataset = self._dataset(b"names")
        (old,) = dataset.shape
        _extend(dataset, self._dataset(b"byte"), old + len(new))
        _put(dataset, old, np.frombuffer(new, "u1"), h5t.NATIVE_UINT8)
        texts.crc = zlib.crc32(new, texts.crc)
        texts.bytes = old + len(new)
        texts.written = len(texts)

    def _write_table(self, catalogue: Catalogue, table: Table) -> None:
        link = table.kind.name.encode()
        if link + b"/rows" not in self._opened and not self._group.links.exists(link):
            self._opened |= _create_table(self._group, link, catalogue.take_numbers(1))
        for first, last in _runs(row for row in table.changed if row < table.written):
            self._put_rows(link, first, table.rows[first:last])
            catalogue.state["rewritten"] += 1
        table.changed.clear()
        if table.written < table.size:
            needed = -(-table.size // CHUNK) * CHUNK
            dataset = self._dataset(link + b"/rows")
            if dataset.shape[0] < needed:
                _extend(dataset, self._dataset(link + b"/record"), needed)
            self._put_rows(link, table.written, table.rows[table.written :])
        table.written = table.size

    def _put_rows(self, link: bytes, first: int, rows: np.ndarray[Any, Any]) -> None:
        """Write rows, with their checks, into their chunks."""
        rows, done = _checked(rows), 0
        while done < len(rows):
            number, inside = divmod(first + done, CHUNK)
            count = min(CHUNK - inside, len(rows) - done)
            where = self._chunks.get((link, number))
            if where is None:
                info = self._dataset(link + b"/rows").get_chunk_info_by_coord((number * CHUNK,))
                where = self._chunks[link, number] = int(info.byte_offset)
            self._raw.put(rows[done : done + count].tobytes(), where + inside * ROW.itemsize)
            done += count


def _runs(rows: Iterable[int]) -> list[tuple[int, int]]:
    """Return rows as half-open runs of neighbours.

    >>> _runs([3, 1, 2, 7])
    [(1, 4), (7, 8)]
    """
    runs: list[tuple[int, int]] = []
    for row in sorted(rows):
        if runs and runs[-1][1] == row:
            runs[-1] = runs[-1][0], row + 1
        else:
            runs.append((row, row + 1))
    return runs


def state_bytes(catalogue: Catalogue) -> bytes:
    """Return the counters of a catalogue as they stand in the file."""
    return _state_values(catalogue).tobytes()


def _state_values(catalogue: Catalogue) -> np.ndarray[Any, Any]:
    values = np.zeros(_STATE_SIZE, "<i8")
    values[: len(STATE)] = [catalogue.state[name] for name in STATE]
    values[-1] = np.bitwise_xor.reduce(values) ^ SOUND
    return values


def _checked(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give each row the check that makes its words fold to `SOUND`."""
    rows["check"] = 0
    if len(rows) == 1:  # most commits: the same without NumPy's overhead
        total = 0
        for word in ROW_WORDS.unpack(rows.tobytes()):
            total ^= word
        rows["check"] = (total ^ (total >> 32)) & 0xFFFFFFFF ^ SOUND
    else:
        words = np.ascontiguousarray(rows).view("<u8").reshape(len(rows), -1)
        rows["check"] = folded(words) ^ np.uint32(SOUND)
    return rows


# -- HDF5 --------------------------------------------------------------------------------------


def _create_table(group: h5g.GroupID, link: bytes, number: int) -> dict[bytes, h5d.DatasetID]:
    """Create the table of a kind; return what it consists of by its links, open for `Writer`."""
    parent = h5g.create(group, link)
    scale = _scale(parent, b"record", None, number)
    kind = ROW_TYPE.copy()
    kind.commit(parent, b"row_t")
    rows = h5d.create(parent, b"rows", kind, _endless(), _rows_properties(), dapl=UNCACHED)
    _note(rows, "comment", "rows whose removed is not 0 are no records")
    h5py.h5ds.attach_scale(rows, scale, 0)
    return {link + b"/rows": rows, link + b"/record": scale}


def _note(location: Any, name: str, text: str) -> None:
    h5attrs.write(location, h5attrs.pack(name, text))


def _scale(group: h5g.GroupID, link: bytes, size: int | None, number: int) -> h5d.DatasetID:
    """Create a netCDF dimension without a variable; ``None`` makes it unlimited."""
    if size is None:
        space, properties = _endless(), _properties(1024)
    else:
        space, properties = h5s.create_simple((size,)), _properties()
    scale = h5d.create(group, link, h5t.IEEE_F32BE, space, properties)
    h5py.h5ds.set_scale(scale, b"This is a netCDF dimension but not a netCDF variable.         0")
    h5attrs.write(scale, h5attrs.pack("_Netcdf4Dimid", np.int32(number)))
    return scale


def _endless() -> h5s.SpaceID:
    return h5s.create_simple((0,), (h5s.UNLIMITED,))


def _properties(chunk: int | None = None) -> h5p.PropDCID:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    if chunk is not None:
        properties.set_chunk((chunk,))
    return properties


@functools.cache
def _rows_properties() -> h5p.PropDCID:
    # Kept: to have HDF5 convert the fill value costs as much as the rest of a table.
    properties = _properties(CHUNK)
    properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    properties.set_fill_value(_UNUSED)
    return properties


def _extend(dataset: h5d.DatasetID, scale: h5d.DatasetID, size: int) -> None:
    scale.set_extent((size,))
    dataset.set_extent((size,))


def _put(dataset: h5d.DatasetID, first: int, values: np.ndarray[Any, Any], kind: Any) -> None:
    space = dataset.get_space()
    space.select_hyperslab((first,), (len(values),))
    dataset.write(h5s.create_simple((len(values),)), space, np.ascontiguousarray(values), kind)
