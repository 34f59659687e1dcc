"""The time table of a file in memory: which records there are, when, and under which name.

One table of rows per kind, in commit order, sorted by time when it is asked.  It knows no file:
`catalogue_file` reads and writes it, `rebuilding` makes it anew from the groups.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from neurostore import names, schema
from neurostore.errors import AmbiguousRecordError
from neurostore.ledger import Ledger, Older, Span, joined
from neurostore.schema import KINDS, Kind

__all__ = ["ROW", "STATE", "Catalogue", "Entry", "RowsRead", "Table", "Texts"]

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
    "rewritten",
)


class Unread(Protocol):
    """Rows that are still in the file."""

    def __len__(self) -> int: ...

    def all(self) -> np.ndarray[Any, Any]:
        """Return all rows."""
        ...

    def take(self, wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """Return the rows at some positions; None where reading all of them is better."""
        ...

    def row(self, row: int) -> np.void | None:
        """Return one row, or None as `take`."""
        ...


@dataclass(frozen=True)
class RowsRead:
    """Rows of one kind as they were read, and what was noted while they went by."""

    rows: np.ndarray[Any, Any] | Unread
    #: Their timestamps side by side, which are what queries by time look at.
    moments: np.ndarray[Any, Any]
    #: Positions of rows that were removed or have an id of their own, and those rows.
    odd: np.ndarray[Any, Any]
    odd_rows: np.ndarray[Any, Any]


#: Whether an id was given elsewhere at a moment; None where nobody can tell.
Taken = Callable[[str, float], bool | None]


@dataclass(frozen=True)
class Entry:
    """One record as the catalogue knows it."""

    kind: Kind
    id: str
    row: int
    serial: int


@dataclass
class Table:
    """The rows of one kind, in commit order, with an order by time made when it is asked for.

    One thread changes it, others may ask meanwhile: what they find out is kept with the version
    that it is of, and every change ends with another version.
    """

    kind: Kind
    size: int = 0
    written: int = 0
    changed: set[int] = field(default_factory=set)
    has_removed: bool = False
    _version: int = 0
    #: Version, and removed rows and their times, in time order.
    _gone: tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None
    #: Version, and times and rows of what is live, in time order; no rows: those of the times.
    _sorted: tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any] | None] | None = None
    #: Timestamps of the rows side by side, while they are those of the file.
    _moments: np.ndarray[Any, Any] | None = None
    _buffer: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(16, ROW))
    #: The rows where they are in the file, until all of them are wanted, and the removed ones.
    _unread: Unread | None = None
    _removed_unread: np.ndarray[Any, Any] | None = None
    _fetching: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_in_memory(self) -> bool:
        """Whether no row is left in the file."""
        return self._unread is None

    @property
    def buffer(self) -> np.ndarray[Any, Any]:
        """All rows, and room for more."""
        if self._unread is not None:
            with self._fetching:
                if self._unread is not None:
                    self._buffer = self._unread.all()
                    self._unread = None
        return self._buffer

    @buffer.setter
    def buffer(self, rows: np.ndarray[Any, Any]) -> None:
        self._buffer = rows

    @property
    def rows(self) -> np.ndarray[Any, Any]:
        """All rows, removed ones included."""
        return self.buffer[: self.size]

    def take(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return copies of some rows; of a long table nothing else is read."""
        unread = self._unread
        found = unread.take(rows) if unread is not None else None
        return self.rows[rows] if found is None else found

    def row(self, row: int) -> np.void:
        """Return one row as it is."""
        unread = self._unread
        found: np.void | None = unread.row(row) if unread is not None else None
        return self.rows[row] if found is None else found

    def adopt(self, found: RowsRead) -> None:
        """Take the next rows of the file for its own."""
        first, rows = self.size, found.rows
        removed = found.odd_rows["removed"] != 0
        if isinstance(rows, np.ndarray):
            if first:
                self.append(rows)
            else:
                self.buffer, self.size = rows, len(rows)
                self._moments = found.moments
        else:
            self._unread, self.size = rows, len(rows)
            self._moments, self._removed_unread = found.moments, found.odd[removed]
        self.written = self.size
        self.has_removed |= bool(removed.any())
        self._version += 1

    def gone_span(self) -> Span | None:
        """Return the first and last time of the removed rows."""
        moments = self.moments_of(self.gone())
        return (float(moments[0]), float(moments[-1])) if len(moments) else None

    def moments_of(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the timestamps of some rows."""
        found: np.ndarray[Any, Any] = self._times()[rows]
        return found

    def _times(self) -> np.ndarray[Any, Any]:
        moments = self._moments
        return self.rows["timestamp"] if moments is None else moments

    def _where_removed(self, count: int) -> np.ndarray[Any, Any]:
        """Return which of the first ``count`` rows were removed."""
        unread, removed = self._unread, self._removed_unread
        if unread is None or removed is None:
            return np.flatnonzero(self.rows["removed"][:count])
        return removed

    def append(self, rows: np.ndarray[Any, Any]) -> None:
        """Add rows at the end."""
        needed = self.size + len(rows)
        if needed > len(self.buffer):
            grown = np.zeros(max(needed, 2 * len(self.buffer)), ROW)
            grown[: self.size] = self.rows
            self.buffer = grown
        self.buffer[self.size : needed] = rows
        self._moments = None
        self.size = needed
        self._version += 1

    def remove(self, row: int) -> None:
        """Mark a row as removed."""
        self.buffer["removed"][row] = 1
        self.has_removed = True
        self.changed.add(row)
        self._version += 1

    def amend(self, row: int, **columns: int) -> None:
        """Give columns of a row, not those that it is sorted or found by, other values."""
        for name, value in columns.items():
            self.buffer[name][row] = value
        self.changed.add(row)

    def _sort(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
        version, kept = self._version, self._sorted
        if kept is not None and kept[0] == version:
            return kept[1], kept[2]
        moments = np.ascontiguousarray(self._times())
        alive = None
        if self.has_removed:
            alive = np.delete(np.arange(len(moments)), self._where_removed(len(moments)))
            moments = moments[alive]
        order = alive
        if not bool((moments[1:] >= moments[:-1]).all()):
            inner = np.argsort(moments, kind="stable")
            moments = moments[inner]
            order = inner if alive is None else alive[inner]
        self._sorted = version, moments, order
        return moments, order

    def span(self) -> Span | None:
        """Return the first and last time of all rows, removed ones included."""
        if not self.size:
            return None
        moments = self._times()
        return float(moments.min()), float(moments.max())

    def gone(self, low: float = -math.inf, high: float = math.inf) -> np.ndarray[Any, Any]:
        """Return the removed rows with ``low <= timestamp <= high``, in time order."""
        version, kept = self._version, self._gone
        if kept is None or kept[0] != version:
            times = self._times()
            removed = self._where_removed(len(times)) if self.has_removed else np.arange(0)
            moments = times[removed]
            order = np.argsort(moments, kind="stable")
            kept = self._gone = version, removed[order], moments[order]
        _, rows, moments = kept
        first, last = np.searchsorted(moments, low), np.searchsorted(moments, high, "right")
        found: np.ndarray[Any, Any] = rows[first:last]
        return found

    def between(self, low: float, high: float) -> np.ndarray[Any, Any]:
        """Return the live rows with ``low <= timestamp <= high``, in time order."""
        if not self.size:
            return np.arange(0)
        moments, order = self._sort()
        first = int(np.searchsorted(moments, low, "left"))
        last = int(np.searchsorted(moments, high, "right"))
        return np.arange(first, last) if order is None else order[first:last]


class Texts:
    """Every text of a catalogue once, by a code; the empty one has 0."""

    def __init__(self) -> None:
        self._texts: list[str] = [""]
        self._codes: dict[str, int] = {"": 0}
        #: How many are in the file, and their bytes there and a checksum over those.
        self.written = 1
        self.bytes = 0
        self.crc = 0

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, code: int) -> str:
        return self._texts[code]

    def unwritten(self) -> list[str]:
        """Return the texts that are not in the file yet."""
        return self._texts[self.written :]

    def find(self, text: str) -> int | None:
        """Return the code of a text, or None where no row has it."""
        return self._codes.get(text)

    def code(self, text: str) -> int:
        """Return the code of a text, a new one if need be."""
        code = self._codes.get(text)
        if code is None:
            code = self._codes[text] = len(self._texts)
            self._texts.append(text)
        return code


class Catalogue:
    """The tables, texts and counters of one file.

    What is added stays in memory until it is written, in the commit of the records it names.
    """

    def __init__(self) -> None:
        self.tables = {kind.name: Table(kind) for kind in KINDS.values()}
        self.state = dict.fromkeys(STATE, 0)
        self.texts = Texts()
        self._explicit: dict[str, list[tuple[str, int]]] = {}
        self.ledger = Ledger()
        self._latest: float | None = None

    # -- adding and removing -------------------------------------------------------------

    def claim(self, kind: Kind, name: str, timestamp: float, taken: Taken) -> tuple[str, str]:
        """Return an id for a record that none ever had, and the text of its ``leaf`` column.

        The text is empty where the id follows from the other columns.  Where nobody can tell
        whether an id was given, the suffix is a number beyond any that was: those count the
        records with an id, and serials count all records of the series.

        Parameters
        ----------
        taken
            Tells whether an id was given elsewhere in the series at a moment; None where files
            that could tell are gone.
        """
        plain = kind.leaf(name, timestamp)
        given = taken(plain, timestamp)
        if given is False and not self.has_given(plain, timestamp):
            return plain, ""
        count = 2 if given is not None else self.state["serial"] + 2
        while True:
            free = names.clashing(plain, count)
            if not self.has_given(free, timestamp) and not taken(free, timestamp):
                return free, free
            count += 1

    def has_given(self, record_id: str, timestamp: float) -> bool:
        """Tell whether a record of this file has an id, or had it before it was removed.

        Beyond the latest time only ids of their own can be.
        """
        if record_id in self._explicit:
            return True
        if self._latest is None:
            spans = [table.span() for table in self.tables.values()]
            self._latest = max((span[1] for span in spans if span), default=-math.inf)
        if timestamp > self._latest:
            return False
        return bool(self._matches(record_id)) or any(
            self.id_of(table, int(row)) == record_id
            for table in self.tables.values()
            if table.has_removed
            for row in table.gone(timestamp, timestamp)
        )

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
            self.texts.code(structure),
            self.texts.code(name),
            self.texts.code(leaf),
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

    def amend(self, entry: Entry, *, length: int | None, stored_bytes: int) -> None:
        """Note that a record has grown; None leaves its length, which is of another dimension."""
        columns = {"stored_bytes": stored_bytes} | ({} if length is None else {"length": length})
        self.tables[entry.kind.name].amend(entry.row, **columns)

    def adopt(self, kind: Kind, found: RowsRead) -> None:
        """Take the next rows that a file has of one kind; the texts are there already."""
        table = self.tables[kind.name]
        numbers = (table.size + found.odd).tolist()
        table.adopt(found)
        self._latest = None
        for number, row in zip(numbers, found.odd_rows, strict=True):
            if row["leaf"]:
                places = self._explicit.setdefault(self.texts[int(row["leaf"])], [])
                if not row["removed"]:  # its id is not given again, and finds nothing
                    places.append((kind.name, number))

    def is_written(self, entry: Entry) -> bool:
        """Tell whether the file has the row of a record, which no open batch can take back."""
        return entry.row < self.tables[entry.kind.name].written

    def is_ahead(self) -> bool:
        """Tell whether it holds anything that is not in the file."""
        rows = any(table.written < table.size or table.changed for table in self.tables.values())
        return rows or self.texts.written < len(self.texts)

    @property
    def file_id(self) -> tuple[int, int]:
        """Random number that names the file, whatever its path."""
        return self.state["file_id_0"], self.state["file_id_1"]

    # -- asking --------------------------------------------------------------------------

    def text(self, code: int) -> str:
        """Return the text that a row's column refers to."""
        return self.texts[code]

    def id_of(self, table: Table, row: int) -> str:
        """Return the id of a row."""
        return self._id(table, table.row(row))

    def _id(self, table: Table, record: np.void) -> str:
        code = int(record["leaf"])
        if code:
            return self.texts[code]
        return table.kind.leaf(self.texts[int(record["name"])], float(record["timestamp"]))

    def _ids(self, table: Table, rows: np.ndarray[Any, Any]) -> list[str]:
        chosen, texts = table.take(rows), self.texts
        columns = (chosen[name].tolist() for name in ("leaf", "name", "timestamp"))
        return [
            texts[leaf] if leaf else table.kind.leaf(texts[name], timestamp)
            for leaf, name, timestamp in zip(*columns, strict=True)
        ]

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
        code = self.texts.find(name)
        return rows[table.take(rows)["name"] == code] if code is not None else rows[:0]

    def ids(self, kind: Kind, rows: np.ndarray[Any, Any]) -> list[str]:
        """Return the ids of rows of one kind."""
        return self._ids(self.tables[kind.name], rows)

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

    def holds(self, record_id: str, serial: int) -> bool:
        """Tell whether the record of this id and serial is live, whichever others share its id."""
        leaf = record_id.strip("/").rpartition("/")[2]
        return any(entry.serial == serial for entry in self._matches(leaf))

    def _matches(self, leaf: str) -> list[Entry]:
        explicit = self._explicit.get(leaf, ())
        found = [self.entry(KINDS[name], row) for name, row in explicit]
        try:
            timestamp = float(leaf.rpartition("_")[2])
        except ValueError:
            return found
        for table in self.tables.values():
            for row in table.between(timestamp, timestamp).tolist():
                record = table.row(row)
                if not record["leaf"] and self._id(table, record) == leaf:
                    found.append(Entry(table.kind, leaf, row, int(record["serial"])))
        return found

    def entry(self, kind: Kind, row: int) -> Entry:
        """Return the entry of a row."""
        table = self.tables[kind.name]
        record = table.row(row)
        return Entry(kind, self._id(table, record), row, int(record["serial"]))

    def renew(self, entry: Entry) -> Entry | None:
        """Return the entry of the same record as this catalogue has it; None if it is gone."""
        table = self.tables[entry.kind.name]
        row = table.row(entry.row) if entry.row < table.size else None
        if row is not None and row["serial"] == entry.serial:
            return None if row["removed"] else entry
        found = self.find(entry.id)
        return found if found is not None and found.serial == entry.serial else None

    def entries(self) -> Iterator[Entry]:
        """Yield every live record, kind by kind, in time order."""
        for table in self.tables.values():
            for row in table.between(-math.inf, math.inf):
                yield self.entry(table.kind, int(row))

    def as_older(self, name: str, size: int) -> Older:
        """Return what a later file of the series has to know of this one, ``size`` bytes long."""
        records = {}
        for kind in KINDS.values():
            rows = self.select(kind)
            if len(rows):
                moments = self.tables[kind.name].moments_of(rows[[0, -1]])
                records[kind.name] = (len(rows), float(moments[0]), float(moments[1]))
        spans = [table.span() for table in self.tables.values()]
        return Older(
            name=name,
            file_id=self.file_id,
            position=self.ledger.position,
            bytes=size,
            records=records,
            given=joined([*spans, self.ledger.forgotten]),
            odd=self._has_odd_ids(),
        )

    def _has_odd_ids(self) -> bool:
        for leaf, places in self._explicit.items():
            for kind, row in places:
                record = self.tables[kind].row(row)
                plain = KINDS[kind].leaf(
                    self.texts[int(record["name"])], float(record["timestamp"])
                )
                if not leaf.startswith(plain + names.SUFFIX):
                    return True
        return False

    # -- other files and other catalogues ------------------------------------------------

    def take_over(self, other: Catalogue) -> None:
        """Become the catalogue of a compacted file: live rows only, all texts, same identity."""
        codes = np.array([self.texts.code(other.text(n)) for n in range(len(other.texts))])
        for name, table in other.tables.items():
            live = table.rows[table.rows["removed"] == 0].copy()
            for column in ("structure", "name", "leaf"):
                live[column] = codes[live[column]]
            self.tables[name].append(live)
        forgotten = joined(table.gone_span() for table in other.tables.values())
        self.ledger = other.ledger.forgetting(forgotten)
        self.state.update(other.state, removed=0, epoch=other.state["epoch"] + 1)

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
