"""The time table of a file: which records there are, when, and under which name.

One growable compound table per kind, in commit order, written in the commit of its records and
kept in memory sorted by time.  It is a cache: where it is absent, short or damaged it is rebuilt
from the groups.  It opens no file and reads no record.

Tables grow by whole chunks, whose unused rows count as removed: a commit then changes the bytes
of its own rows and no metadata.  Those bytes are put where HDF5 would put them, since one
``H5Dwrite`` of a row costs as much as storing a variable.

On disk, under ``/catalogue``: ``state`` (a few 64-bit numbers at a fixed place in the file),
``names`` (all texts, each ended by NUL) and ``<kind>/rows``.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5s, h5t

from neurostore import h5attrs, names, schema
from neurostore.errors import AmbiguousRecordError
from neurostore.schema import KINDS, Kind

__all__ = ["Catalogue", "Entry", "Table"]

GROUP = b"catalogue"
ROW = np.dtype(
    [
        ("timestamp", "<f8"),
        ("labels", "<u8"),
        ("length", "<u8"),
        ("stored_bytes", "<u8"),
        ("serial", "<u8"),
        ("structure", "<u4"),
        ("name", "<u4"),
        ("leaf", "<u4"),
        ("removed", "<u4"),
        ("version", "<u4"),
        ("check", "<u4"),
    ]
)
_ROW_TYPE = h5t.py_create(ROW)
_ROW_WORDS = struct.Struct(f"<{ROW.itemsize // 8}Q")
_SOUND = 0x6E657572
#: The word of a row that is 0 unless the record was removed or has an id of its own.
_ODD_WORD = 6
#: A row that is no record yet; a real one has a version.
_UNUSED = np.zeros((), ROW)
_UNUSED["timestamp"] = np.nan
_UNUSED["removed"] = 1
_UNCACHED = h5p.create(h5p.DATASET_ACCESS)
_UNCACHED.set_chunk_cache(0, 0, 1.0)
#: Attribute of the root: the names of the files that this one goes on from, as JSON.
_OLDER = b"neurostore_older_files"
#: Rows in one chunk of a table: 32 KB; a million rows are then 1,954 chunks.
_CHUNK = 512
#: Version of records that others wrote; rows that are not used have 0.
FOREIGN = 2**32 - 1
#: What ``state`` holds, in its order.
STATE = (
    "file_id_0",
    "file_id_1",
    "generation",
    "epoch",
    "dimensions",
    "removed",
    "serial",
    "modified",
    "rows",
    "texts",
    "texts_crc",
    "trusted_from",
)
_STATE_SIZE = 16


def _words(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(rows).view("<u8").reshape(len(rows), -1)


def _folded(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """All words of each row, xored and folded to 32 bits: `_SOUND` where the row is as written."""
    total = np.bitwise_xor.reduce(_words(rows), axis=1)
    folded: np.ndarray[Any, Any] = (total ^ (total >> np.uint64(32))).astype("<u4")
    return folded


class RawFile(Protocol):
    """A file as bytes."""

    def put(self, data: bytes, offset: int) -> object:
        """Write ``data`` at ``offset``."""
        ...


@dataclass(frozen=True)
class Entry:
    """One record as the catalogue knows it."""

    kind: Kind
    id: str
    row: int
    serial: int


@dataclass
class Table:
    """The rows of one kind, in commit order, with an order by time made when it is asked for."""

    kind: Kind
    buffer: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(16, ROW))
    size: int = 0
    written: int = 0
    changed: set[int] = field(default_factory=set)
    #: Where in the file the chunks of the table are.
    chunks: dict[int, int] = field(default_factory=dict)
    has_removed: bool = False
    _order: np.ndarray[Any, Any] | None = None
    _times: np.ndarray[Any, Any] | None = None

    @property
    def rows(self) -> np.ndarray[Any, Any]:
        """All rows, removed ones included."""
        return self.buffer[: self.size]

    def adopt(self, rows: np.ndarray[Any, Any]) -> None:
        """Take the rows of a file for its own."""
        self.buffer = rows
        self.size = self.written = len(rows)
        odd = rows[np.nonzero(_words(rows)[:, _ODD_WORD])[0]]
        self.has_removed = bool(odd["removed"].any())
        self._order = self._times = None

    def append(self, rows: np.ndarray[Any, Any]) -> None:
        """Add rows at the end."""
        needed = self.size + len(rows)
        if needed > len(self.buffer):
            grown = np.zeros(max(needed, 2 * len(self.buffer)), ROW)
            grown[: self.size] = self.rows
            self.buffer = grown
        self.buffer[self.size : needed] = rows
        self.size = needed
        self._order = self._times = None

    def remove(self, row: int) -> None:
        """Mark a row as removed."""
        self.buffer["removed"][row] = 1
        self.has_removed = True
        self.changed.add(row)
        self._order = self._times = None

    def _sort(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
        if self._times is None:
            rows = self.rows
            alive = np.flatnonzero(rows["removed"] == 0) if self.has_removed else None
            moments = np.ascontiguousarray(rows["timestamp"])
            if alive is not None:
                moments = moments[alive]
            order = alive
            if not bool((moments[1:] >= moments[:-1]).all()):
                inner = np.argsort(moments, kind="stable")
                moments = moments[inner]
                order = inner if alive is None else alive[inner]
            self._times, self._order = moments, order
        return self._times, self._order

    def latest(self) -> float:
        """Return the latest time of a record."""
        moments, _ = self._sort()
        return float(moments[-1]) if len(moments) else -math.inf

    def between(self, low: float, high: float) -> np.ndarray[Any, Any]:
        """Return the live rows with ``low <= timestamp <= high``, in time order."""
        moments, order = self._sort()
        first = int(np.searchsorted(moments, low, "left"))
        last = int(np.searchsorted(moments, high, "right"))
        return np.arange(first, last) if order is None else order[first:last]


class Catalogue:
    """The tables, texts and counters of one file.

    What is added stays in memory until :meth:`write` puts it into the file, in the commit of
    the records it names.
    """

    def __init__(self) -> None:
        self.tables = {kind.name: Table(kind) for kind in KINDS.values()}
        self.state = dict.fromkeys(STATE, 0)
        self._texts: list[str] = [""]
        self._codes: dict[str, int] = {"": 0}
        self._texts_written = 1
        self._texts_crc = 0
        self._explicit: dict[str, list[tuple[str, int]]] = {}
        #: Names of the files that this one was rotated to, oldest first.
        self.older: list[str] = []
        self._latest: float | None = None
        #: Datasets of the file that this is written to, opened once; it closes them with itself.
        self._opened: dict[bytes, h5d.DatasetID] = {}
        self._state_at = -1

    # -- adding and removing -------------------------------------------------------------

    def claim(
        self, kind: Kind, name: str, timestamp: float, taken: Callable[[str], bool]
    ) -> tuple[str, str]:
        """Return a free id for a record, and the text of its ``leaf`` column.

        The text is empty where the id follows from the other columns.  ``taken`` tells of ids
        that other files of the series have.
        """
        plain = kind.leaf(name, timestamp)
        if not self._has(plain, timestamp) and not taken(plain):
            return plain, ""
        count = 2
        while self._has(names.clashing(plain, count), timestamp) or taken(
            names.clashing(plain, count)
        ):
            count += 1
        free = names.clashing(plain, count)
        return free, free

    def _has(self, record_id: str, timestamp: float) -> bool:
        """Tell whether an id is taken; beyond the latest time only ids of their own can be."""
        if record_id in self._explicit:
            return True
        if self._latest is None:
            self._latest = max(table.latest() for table in self.tables.values())
        return timestamp <= self._latest and bool(self._matches(record_id))

    def add(
        self,
        kind: Kind,
        *,
        timestamp: float,
        name: str,
        leaf: str = "",
        structure: str = "",
        labels: int = 0,
        length: int = 0,
        stored_bytes: int = 0,
        version: int = schema.SCHEMA_VERSION,
    ) -> int:
        """Add one record and return its row."""
        row = np.zeros(1, ROW)
        row[0] = (
            timestamp,
            labels,
            length,
            stored_bytes,
            self.state["serial"],
            self._code(structure),
            self._code(name),
            self._code(leaf),
            0,
            version,
            0,
        )
        self.state["serial"] += 1
        table = self.tables.setdefault(kind.name, Table(kind))
        table.append(row)
        if self._latest is not None:
            self._latest = max(self._latest, timestamp)
        if leaf:
            self._explicit.setdefault(leaf, []).append((kind.name, table.size - 1))
        return table.size - 1

    def remove(self, entry: Entry) -> int:
        """Take one record out of every query; return how many were before it."""
        self.tables[entry.kind.name].remove(entry.row)
        places = self._explicit.get(entry.id, [])
        if (entry.kind.name, entry.row) in places:
            places.remove((entry.kind.name, entry.row))
        self.state["removed"] += 1
        self.state["epoch"] += 1
        return self.state["removed"] - 1

    @property
    def file_id(self) -> tuple[int, int]:
        """Random number that names the file, whatever its path."""
        return self.state["file_id_0"], self.state["file_id_1"]

    def _code(self, text: str) -> int:
        code = self._codes.get(text)
        if code is None:
            code = self._codes[text] = len(self._texts)
            self._texts.append(text)
        return code

    # -- asking --------------------------------------------------------------------------

    def text(self, code: int) -> str:
        """Return the text that a row's column refers to."""
        return self._texts[code]

    def id_of(self, table: Table, row: int) -> str:
        """Return the id of a row."""
        record = table.rows[row]
        leaf = int(record["leaf"])
        if leaf:
            return self._texts[leaf]
        return table.kind.leaf(self._texts[int(record["name"])], float(record["timestamp"]))

    def select(
        self, kind: Kind, low: float = -math.inf, high: float = math.inf, name: str | None = None
    ) -> np.ndarray[Any, Any]:
        """Return the rows of ``kind`` in a closed interval, in time order."""
        table = self.tables.get(kind.name)
        if table is None:
            return np.arange(0)
        rows = table.between(low, high)
        if name is None:
            return rows
        code = self._codes.get(name)
        return rows[table.rows["name"][rows] == code] if code is not None else rows[:0]

    def ids(self, kind: Kind, rows: np.ndarray[Any, Any]) -> list[str]:
        """Return the ids of rows of one kind."""
        table = self.tables[kind.name]
        return [self.id_of(table, int(row)) for row in rows]

    def find(self, record_id: str) -> Entry | None:
        """Return the live record with this id, or full address, or None.

        Raises
        ------
        AmbiguousRecordError
            Several records of a file that others wrote have the id.
        """
        path, _, leaf = record_id.strip("/").rpartition("/")
        found = self._matches(leaf)
        if path:
            found = [e for e in found if any(part.path == path for part in e.kind.parts)]
        if len(found) > 1:
            addresses = ", ".join(f"/{entry.kind.parts[0].path}/{leaf}" for entry in found)
            raise AmbiguousRecordError(f"{leaf!r} names several records; use one of {addresses}")
        return found[0] if found else None

    def _matches(self, leaf: str) -> list[Entry]:
        explicit = self._explicit.get(leaf, ())
        found = [self.entry(KINDS[name], row) for name, row in explicit]
        try:
            timestamp = float(leaf.rpartition("_")[2])
        except ValueError:
            return found
        for table in self.tables.values():
            for row in table.between(timestamp, timestamp):
                if not table.rows["leaf"][row] and self.id_of(table, int(row)) == leaf:
                    found.append(self.entry(table.kind, int(row)))
        return found

    def entry(self, kind: Kind, row: int) -> Entry:
        """Return the entry of a row."""
        table = self.tables[kind.name]
        return Entry(kind, self.id_of(table, row), row, int(table.rows["serial"][row]))

    def renew(self, entry: Entry) -> Entry | None:
        """Return the entry of the same record as this catalogue has it; None if it is gone."""
        rows = self.tables[entry.kind.name].rows
        if entry.row < len(rows) and rows["serial"][entry.row] == entry.serial:
            return None if rows["removed"][entry.row] else entry
        found = self.find(entry.id)
        return found if found is not None and found.serial == entry.serial else None

    def entries(self) -> Iterator[Entry]:
        """Yield every live record, kind by kind, in time order."""
        for table in self.tables.values():
            for row in table.between(-math.inf, math.inf):
                yield self.entry(table.kind, int(row))

    # -- the file ------------------------------------------------------------------------

    def take_over(self, other: Catalogue) -> None:
        """Become the catalogue of a compacted file: live rows only, all texts, same identity."""
        for text in other._texts:
            self._code(text)
        for name, table in other.tables.items():
            live = table.rows[table.rows["removed"] == 0].copy()
            for column in ("structure", "name", "leaf"):
                live[column] = [self._code(other.text(int(code))) for code in live[column]]
            self.tables[name].append(live)
        self.older = list(other.older)
        self.state.update(other.state, removed=0, epoch=other.state["epoch"] + 1)

    def write_older(self, h5file: h5py.File) -> None:
        """Note at the root of the file which older files it goes on from."""
        if h5py.h5a.exists(h5file.id, _OLDER):
            h5py.h5a.delete(h5file.id, _OLDER)
        _note(h5file.id, _OLDER.decode(), json.dumps(self.older))

    def settle(self, fresh: Catalogue) -> None:
        """Take the place of a fresh catalogue, for a file that had lost its own."""
        dimensions = max(self.state["dimensions"], fresh.state["dimensions"])
        identity = self.state if self.state["generation"] else fresh.state
        serial = max(self.state["serial"], identity["serial"])
        self.state.update(identity, dimensions=dimensions, serial=serial, removed=0)
        self.state["epoch"] += 1
        for table in self.tables.values():
            table.buffer["serial"][: table.size] += serial
        self.state["serial"] = 2 * serial

    def take_numbers(self, count: int) -> int:
        """Return the first of ``count`` netCDF dimension numbers that nobody else has."""
        first = self.state["dimensions"]
        self.state["dimensions"] += count
        return first

    @staticmethod
    def create(h5file: h5py.File, first_number: int = 0) -> None:
        """Make the empty catalogue of a file, with dimension numbers from ``first_number`` on."""
        group = h5g.create(h5file.id, GROUP)
        _note(group, "what", "time table of the records; a cache, rebuilt where it is absent")
        fresh = Catalogue()
        identity = secrets.randbits(63), secrets.randbits(63)
        fresh.state.update(file_id_0=identity[0], file_id_1=identity[1], generation=1)
        fresh.state["dimensions"] = first_number + 2
        scale = _scale(group, b"field", _STATE_SIZE, first_number)
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        properties.set_obj_track_times(False)
        space = h5s.create_simple((_STATE_SIZE,))
        state = h5d.create(group, b"state", h5t.STD_I64LE, space, properties)
        h5py.h5ds.attach_scale(state, scale, 0)
        _note(state, "fields", " ".join(STATE))
        scale = _scale(group, b"byte", None, first_number + 1)
        texts = _growing(group, b"names", h5t.STD_U8LE, 4096)
        h5py.h5ds.attach_scale(texts, scale, 0)
        _note(texts, "long_name", "texts of the other tables in UTF-8, each ended by NUL")
        state.write(h5s.ALL, h5s.ALL, fresh._state_values())

    @staticmethod
    def state_offset(h5file: h5py.File) -> int:
        """Return where in the file ``state`` stands; it never moves."""
        offset = h5d.open(h5file.id, GROUP + b"/state").get_offset()
        return int(offset)

    @classmethod
    def read(cls, h5file: h5py.File) -> Catalogue | None:
        """Return the catalogue of a file, or None where it is absent or damaged."""
        found = cls()
        try:
            if GROUP not in h5file.id:
                return None
            group = h5g.open(h5file.id, GROUP)
            found._read_state(group)
            found._read_texts(group)
            found.older = _older(h5file)
            for name in list(KINDS):
                if name.encode() in group:
                    found._read_table(group, name)
            found._check_counts(group)
        except (KeyError, OSError, ValueError, RuntimeError, IndexError):
            return None  # a cache: whatever is wrong with it, the groups are the truth
        return found

    def write(self, h5file: h5py.File, raw: RawFile) -> None:
        """Put what was added, changed and counted into the file.

        Parameters
        ----------
        h5file
            Always the same open file: what is opened there is kept.
        raw
            The same file as bytes; HDF5 keeps no copy of what is written there.
        """
        for table in self.tables.values():
            if table.written < table.size or table.changed:
                self._write_table(h5file.id, raw, table)
        if self._texts_written < len(self._texts):
            self._write_texts(h5file.id)
        self.state["generation"] += 1
        self.state["rows"] = sum(table.size for table in self.tables.values())
        self.state["texts"] = len(self._texts)
        self.state["texts_crc"] = self._texts_crc
        if self._state_at < 0:
            self._state_at = self.state_offset(h5file)
        raw.put(self._state_values().tobytes(), self._state_at)

    def _dataset(self, root: h5g.GroupID, link: bytes) -> h5d.DatasetID:
        """Open a dataset of the catalogue, without a chunk cache: a row is written as a row."""
        dataset = self._opened.get(link)
        if dataset is None:
            dataset = self._opened[link] = h5d.open(root, GROUP + b"/" + link, _UNCACHED)
        return dataset

    def _check_counts(self, group: h5g.GroupID) -> None:
        """Raise where rows or texts are missing; kinds that this version lacks count too."""
        rows = sum(table.size for table in self.tables.values())
        unknown = [link for link in group if b"/".join((link, b"rows")) in group]
        known = {name.encode() for name in KINDS}
        if set(unknown) <= known and rows != self.state["rows"]:
            raise ValueError(f"catalogue: {rows} rows, expected {self.state['rows']}")
        if self._texts_crc != self.state["texts_crc"]:
            raise ValueError("catalogue/names: its bytes fail their checksum")

    def _read_state(self, group: h5g.GroupID) -> None:
        values = np.empty(_STATE_SIZE, "<i8")
        h5d.open(group, b"state").read(h5s.ALL, h5s.ALL, values)
        if int(np.bitwise_xor.reduce(values)) != _SOUND:
            raise ValueError("catalogue/state: it fails its check")
        self.state.update(zip(STATE, (int(value) for value in values), strict=False))

    def _state_values(self) -> np.ndarray[Any, Any]:
        values = np.zeros(_STATE_SIZE, "<i8")
        values[: len(STATE)] = [self.state[name] for name in STATE]
        values[-1] = np.bitwise_xor.reduce(values) ^ _SOUND
        return values

    def _read_texts(self, group: h5g.GroupID) -> None:
        dataset = h5d.open(group, b"names")
        raw = np.empty(dataset.shape, "u1")
        dataset.read(h5s.ALL, h5s.ALL, raw)
        self._texts_crc = zlib.crc32(raw.tobytes())
        for text in raw.tobytes().split(b"\0")[:-1]:
            self._code(text.decode())
        self._texts_written = len(self._texts)

    def _write_texts(self, root: h5g.GroupID) -> None:
        new = b"".join(text.encode() + b"\0" for text in self._texts[self._texts_written :])
        dataset = self._dataset(root, b"names")
        (old,) = dataset.shape
        _extend(dataset, self._dataset(root, b"byte"), old + len(new))
        _put(dataset, old, np.frombuffer(new, "u1"), h5t.NATIVE_UINT8)
        self._texts_crc = zlib.crc32(new, self._texts_crc)
        self._texts_written = len(self._texts)

    def _read_table(self, group: h5g.GroupID, name: str) -> None:
        dataset = h5d.open(group, f"{name}/rows".encode(), _UNCACHED)
        rows = np.empty(dataset.shape, ROW)
        if len(rows):
            dataset.read(h5s.ALL, h5s.ALL, rows, _ROW_TYPE)
        rows = rows[: _used(rows)]
        if not (_folded(rows) == _SOUND).all():
            raise ValueError(f"catalogue/{name}/rows: a row fails its check")
        table = self.tables[name]
        table.adopt(rows)
        for row in np.nonzero(_words(rows)[:, _ODD_WORD])[0]:
            if rows["leaf"][row] and not rows["removed"][row]:
                leaf = self._texts[int(rows["leaf"][row])]
                self._explicit.setdefault(leaf, []).append((name, int(row)))

    def _write_table(self, root: h5g.GroupID, raw: RawFile, table: Table) -> None:
        link = table.kind.name.encode()
        if link + b"/rows" not in self._opened and GROUP + b"/" + link not in root:
            self._create_table(h5g.open(root, GROUP), link)
        dataset = self._dataset(root, link + b"/rows")
        for row in sorted(table.changed):
            if row < table.written:
                _put_rows(dataset, raw, row, _checked(table.rows[row : row + 1]), table.chunks)
        table.changed.clear()
        if table.written < table.size:
            needed = -(-table.size // _CHUNK) * _CHUNK
            if dataset.shape[0] < needed:
                _extend(dataset, self._dataset(root, link + b"/record"), needed)
            _put_rows(
                dataset, raw, table.written, _checked(table.rows[table.written :]), table.chunks
            )
        table.written = table.size

    def _create_table(self, group: h5g.GroupID, link: bytes) -> None:
        parent = h5g.create(group, link)
        scale = _scale(parent, b"record", None, self.take_numbers(1))
        kind = h5t.py_create(ROW)
        kind.commit(parent, b"row_t")
        rows = _growing(parent, b"rows", kind, _CHUNK, _UNUSED)
        _note(rows, "comment", "rows whose removed is not 0 are no records")
        h5py.h5ds.attach_scale(rows, scale, 0)


def _used(rows: np.ndarray[Any, Any]) -> int:
    """Return how many rows are, or were, records: those before the first without a version.

    A damaged version fails the check of its row or, in the last chunk, ends the table early,
    which the count of serials shows.
    """
    tail = rows["version"][-_CHUNK:] == 0
    return len(rows) - len(tail) + int(np.argmax(tail)) if tail.any() else len(rows)


def _checked(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give each row the check that makes its words fold to `_SOUND`."""
    rows["check"] = 0
    if len(rows) == 1:  # most commits: the same without NumPy's overhead
        total = 0
        for word in _ROW_WORDS.unpack(rows.tobytes()):
            total ^= word
        rows["check"] = (total ^ (total >> 32)) & 0xFFFFFFFF ^ _SOUND
    else:
        rows["check"] = _folded(rows) ^ np.uint32(_SOUND)
    return rows


def _note(location: Any, name: str, text: str) -> None:
    h5attrs.write(location, h5attrs.pack(name, text))


def _scale(group: h5g.GroupID, link: bytes, size: int | None, number: int) -> h5d.DatasetID:
    """Create a netCDF dimension without a variable; ``None`` makes it unlimited."""
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    if size is None:
        properties.set_chunk((1024,))
    space = h5s.create_simple((size or 0,), (h5s.UNLIMITED if size is None else size,))
    scale = h5d.create(group, link, h5t.IEEE_F32BE, space, properties)
    h5py.h5ds.set_scale(scale, b"This is a netCDF dimension but not a netCDF variable.         0")
    h5attrs.write(scale, h5attrs.pack("_Netcdf4Dimid", np.int32(number)))
    return scale


def _growing(
    group: h5g.GroupID,
    link: bytes,
    kind: Any,
    chunk: int,
    fill: np.ndarray[Any, Any] | None = None,
) -> h5d.DatasetID:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_chunk((chunk,))
    if fill is not None:
        properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        properties.set_fill_value(fill)
    return h5d.create(group, link, kind, h5s.create_simple((0,), (h5s.UNLIMITED,)), properties)


def _extend(dataset: h5d.DatasetID, scale: h5d.DatasetID, size: int) -> None:
    scale.set_extent((size,))
    dataset.set_extent((size,))


def _put(dataset: h5d.DatasetID, first: int, values: np.ndarray[Any, Any], kind: Any) -> None:
    space = dataset.get_space()
    space.select_hyperslab((first,), (len(values),))
    dataset.write(h5s.create_simple((len(values),)), space, np.ascontiguousarray(values), kind)


def _put_rows(
    dataset: h5d.DatasetID,
    raw: RawFile,
    first: int,
    rows: np.ndarray[Any, Any],
    chunks: dict[int, int],
) -> None:
    """Write rows into their chunks; ``chunks`` remembers where those are."""
    done = 0
    while done < len(rows):
        number, inside = divmod(first + done, _CHUNK)
        count = min(_CHUNK - inside, len(rows) - done)
        where = chunks.get(number)
        if where is None:
            info = dataset.get_chunk_info_by_coord((number * _CHUNK,))
            where = chunks[number] = int(info.byte_offset)
        raw.put(rows[done : done + count].tobytes(), where + inside * ROW.itemsize)
        done += count


# -- rebuilding ------------------------------------------------------------------------------


def rebuild(h5file: h5py.File) -> Catalogue:
    """Return the catalogue of a file from its groups.

    Nothing is known of shapes and labels then: `structure` stays empty, and a range looks at
    the records themselves.
    """
    found = Catalogue()
    found.older = _older(h5file)
    with contextlib.suppress(KeyError, OSError, ValueError, RuntimeError):
        found._read_state(h5g.open(h5file.id, GROUP))
    for kind in KINDS.values():
        seen: set[str] = set()
        for part in kind.parts:
            parent = h5file.get(part.path)
            if not isinstance(parent, h5py.Group):
                continue
            for leaf in parent:
                if leaf not in seen and (row := _foreign_row(parent, leaf, kind)) is not None:
                    seen.add(leaf)
                    _add_found(found, kind, leaf, row)
    found.state["dimensions"] = _highest_number(h5file) + 1
    return found


def _older(h5file: h5py.File) -> list[str]:
    text = h5attrs.read_one(h5file.id, _OLDER)
    return list(json.loads(text)) if text else []


def _add_found(found: Catalogue, kind: Kind, leaf: str, row: Mapping[str, Any]) -> None:
    explicit = "" if kind.leaf(row["name"], row["timestamp"]) == leaf else leaf
    found.add(kind, leaf=explicit, **row)


def _foreign_row(parent: h5py.Group, leaf: str, kind: Kind) -> dict[str, Any] | None:
    """Return what can be told of a record without reading it; None for what is no record."""
    if parent.get(leaf, getlink=True).__class__ is not h5py.HardLink:
        return None
    item = parent[leaf]
    stem, _, stamp = leaf.rpartition("_")
    timestamp = h5attrs.read_one(item.id, b"timestamp")
    if isinstance(item, h5py.Group) and "timestamp" in item:
        timestamp = item["timestamp"][()]
    try:
        moment = float(timestamp if timestamp is not None else stamp.partition("~")[0])
    except (TypeError, ValueError):
        return None
    if not math.isfinite(moment):
        return None
    name = h5attrs.read_one(item.id, kind.label.encode()) if kind.label else None
    return {
        "timestamp": moment,
        "name": str(name) if name is not None else (stem if kind.label else ""),
        "length": _foreign_length(item, kind),
        "version": int(h5attrs.read_one(item.id, b"schema_version") or FOREIGN),
    }


def _foreign_length(item: h5py.Group | h5py.Dataset, kind: Kind) -> int:
    if kind.elastic is None or not isinstance(item, h5py.Group):
        return 0
    sized = (row.name for row in kind.variables if row.name in item)
    first = next(sized, None)
    return int(item[first].shape[0]) if first is not None and item[first].shape else 0


def _highest_number(h5file: h5py.File) -> int:
    highest = -1

    def look(_: str, item: Any) -> None:
        nonlocal highest
        number = h5attrs.read_one(item.id, b"_Netcdf4Dimid")
        if number is not None:
            highest = max(highest, int(number))

    h5file.visititems(look)
    return highest
