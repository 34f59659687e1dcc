"""Answers from the catalogue of a series: ids, ranges, the table, the tree, a summary."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from neurostore import schema, times, tree
from neurostore._version import __version__
from neurostore.accounting import Usage, usage
from neurostore.catalogue import Catalogue, Entry
from neurostore.combining import RECORD, Join, Member, Opened, combine, over_records
from neurostore.errors import DamagedError, RecordNotFoundError, ValidationError
from neurostore.rebuilding import FOREIGN
from neurostore.schema import KINDS, Kind
from neurostore.series import find, members
from neurostore.session import RecordSource, Session

__all__ = ["catalogue", "groups", "ids", "info", "range_", "retrieve"]

Value = TypeVar("Value")
_log = logging.getLogger(__name__)


#: Records up to which a mistyped id is compared with all of them.
_COMPARED = 5_000


@dataclass(frozen=True)
class _Found:
    """The rows of one kind in one file that a query found, in time order."""

    session: Session
    held: Catalogue
    kind: Kind
    rows: np.ndarray[Any, Any]

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return one column of the rows."""
        return np.asarray(self.held.tables[self.kind.name].rows[name][self.rows])

    def texts(self, name: str) -> list[str]:
        """Return a column of codes as the texts they stand for."""
        return [self.held.text(code) for code in self.column(name).tolist()]

    def ids(self) -> list[str]:
        return self.held.ids(self.kind, self.rows)

    def entries(self) -> Iterator[tuple[Session, Entry]]:
        serials = self.column("serial").tolist()
        for record_id, row, serial in zip(self.ids(), self.rows.tolist(), serials, strict=True):
            yield self.session, Entry(self.kind, record_id, row, serial)


def _find(
    session: Session,
    kind: str | None,
    start: times.TimeLike | None,
    end: times.TimeLike | None,
    name: str | None,
) -> list[_Found]:
    """Return what a query finds, the oldest file first; the catalogues are brought up to date."""
    low, high = _bounds(start, end)
    kinds = _kinds(kind)
    found = []
    for member in reversed(list(members(session))):
        held = member.catalogue
        for wanted in kinds:
            rows = held.select(wanted, low, high, name)
            if len(rows):
                found.append(_Found(member, held, wanted, rows))
    return found


def _merged(found: Sequence[_Found], values: Callable[[_Found], Iterable[Value]]) -> list[Value]:
    """Return one value for every row, in time order over all kinds and files."""
    merged = [value for part in found for value in values(part)]
    if len(found) < 2:
        return merged
    moments = np.concatenate([part.column("timestamp") for part in found])
    return [merged[position] for position in np.argsort(moments, kind="stable").tolist()]


def _bounds(start: Any, end: Any) -> tuple[float, float]:
    try:
        return times.bounds(start, end)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def _kinds(kind: str | None) -> list[Kind]:
    return list(KINDS.values()) if kind is None else [kind_of(kind)]


def kind_of(kind: str) -> Kind:
    """Return the row of a kind; ValidationError where there is none."""
    try:
        return schema.kind_of(kind)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def ids(session: Session, kind: Any, start: Any, end: Any, name: str | None) -> list[str]:
    """Return ids in time order."""
    return _merged(_find(session, kind, start, end, name), _Found.ids)


def _hint(session: Session, record_id: str) -> str:
    """Name the id that may have been meant, where there are not too many to compare."""
    held = session.catalogue
    if sum(table.size for table in held.tables.values()) <= _COMPARED:
        close = difflib.get_close_matches(record_id, [e.id for e in held.entries()], 1)
        if close:
            return f"is {close[0]!r} meant? ids() lists the records there are"
    return "ids() lists the records there are"


def retrieve(session: Session, record_id: str) -> xr.Dataset:
    """Return one record, lazily."""
    if not isinstance(record_id, str):
        raise ValidationError(f"the id is {record_id!r}, expected a str as store() returns it")
    found = find(session, record_id)
    if found is None:
        raise RecordNotFoundError(
            f"{session.path}: no record {record_id!r}; {_hint(session, record_id)}"
        )
    member, entry = found
    return _from(session, member.open_record(entry)[0])


def _from(session: Session, ds: xr.Dataset) -> xr.Dataset:
    """Note in a Dataset, and in its variables as xarray's engines do, where it came from."""
    source = str(session.path)
    ds.encoding["source"] = source
    for variable in ds.variables.values():
        variable.encoding["source"] = source
    return ds


def range_(
    session: Session, kind: str, start: Any, end: Any, name: str | None, join: Join
) -> xr.Dataset:
    """Return the records of a span of time as one Dataset."""
    row = kind_of(kind)
    found = _find(session, kind, start, end, name)
    where = {entry.id: (holder, entry) for part in found for holder, entry in part.entries()}

    def opener(member: Member) -> Opened:
        holder, entry = where[member.id]
        return Opened(*holder.open_record(entry))

    return _from(session, combine(row, _merged(found, _members), opener, join))


def _members(found: _Found) -> Iterator[Member]:
    """Yield the records as a range takes them.

    Where somebody else wrote to the file, nothing is taken from the catalogue but the names.
    """
    known = found.session.is_untouched()
    path, file_id, epoch = str(found.session.path), found.held.file_id, found.held.state["epoch"]
    columns = zip(
        found.ids(),
        found.column("timestamp").tolist(),
        found.texts("name"),
        found.column("length").tolist(),
        found.texts("structure") if known else [""] * len(found.rows),
        found.column("labels").tolist(),
        found.column("serial").tolist(),
        strict=True,
    )
    trusted_from = found.held.state["trusted_from"]
    for record_id, moment, name, length, structure, labels, serial in columns:
        source = RecordSource(path, file_id, record_id, serial, epoch)
        structure = structure if serial >= trusted_from else ""
        yield Member(record_id, moment, name, length, structure, labels, source)


def catalogue(session: Session, kind: Any, start: Any, end: Any, name: str | None) -> xr.Dataset:
    """Return the table of records as a Dataset along ``record``."""
    found = _find(session, kind, start, end, name)
    columns = {
        "kind": _texts(_merged(found, lambda part: [part.kind.name] * len(part.rows))),
        "name": _texts(_merged(found, lambda part: part.texts("name"))),
        "length": np.array(_merged(found, lambda part: part.column("length")), np.int64),
        "stored_bytes": np.array(
            _merged(found, lambda part: part.column("stored_bytes")), np.int64
        ),
    }
    moments = np.array(_merged(found, lambda part: part.column("timestamp")), np.float64)
    coords = over_records(None, _merged(found, _Found.ids), moments, [])
    data = {key: (RECORD, values, _NOTES[key]) for key, values in columns.items()}
    return _from(session, xr.Dataset(data, coords, {"title": "records of a neurostore file"}))


def _texts(values: list[str]) -> np.ndarray[Any, Any]:
    return np.array(values, np.str_) if values else np.empty(0, "U1")


_NOTES = {
    "kind": {"long_name": "record kind"},
    "name": {"long_name": "reservoir, rule, mechanism, task, map or layers"},
    "length": {"long_name": "size of the dimension in which records of the kind differ"},
    "stored_bytes": {"long_name": "bytes of the values as stored", "units": "byte"},
}


def groups(
    session: Session, kind: Any, start: Any, end: Any, name: str | None
) -> dict[str, xr.Dataset]:
    """Return the parts of records by address; damaged ones are left out, and named in the log."""
    found: dict[str, xr.Dataset] = {}
    for holder, entry in _merged(_find(session, kind, start, end, name), _Found.entries):
        try:
            parts = holder.open_parts(entry)
        except DamagedError as error:
            _log.warning("%s: %r is left out: %s", session.path, entry.id, error)
            continue
        for address, ds in parts.items():
            ds.encoding.update(source=str(session.path), group=f"/{address}")
            found[address] = ds
    return found


def info(session: Session) -> dict[str, Any]:
    """Return what is to be known of a file and its series."""
    counts: Counter[str] = Counter()
    variables = 0
    moments: list[float] = []
    files = []
    versions: set[int] = set()
    used = Usage()
    for member in members(session):
        files.append(member)
        used += usage(member)
        held = member.catalogue
        for kind in KINDS.values():
            rows = held.select(kind)
            if not len(rows):
                continue
            counts[kind.name] += len(rows)
            table = held.tables[kind.name].rows[rows]
            moments += [float(table["timestamp"][0]), float(table["timestamp"][-1])]
            versions.update(np.unique(table["version"]).tolist())
            variables += _variables(member, kind, rows)
    return {
        "path": str(session.path),
        "file_size": sum(os.stat(member.path).st_size for member in files),
        "files": [str(member.path) for member in reversed(files)],
        "records": {name: counts.get(name, 0) for name in KINDS},
        "variables": variables,
        "start": min(moments, default=None),
        "end": max(moments, default=None),
        "stored_bytes": used.stored_bytes,
        "logical_bytes": used.logical_bytes,
        "compression_ratio": used.compression_ratio,
        "dead_bytes": used.dead_bytes,
        "schema_version": schema.SCHEMA_VERSION,
        "schema_versions": sorted(versions - {FOREIGN}),
        "library_versions": {"neurostore": __version__, **tree.versions()},
        "created_at": session.created_at(),
        "groups": session.top_groups(),
    }


def _variables(member: Session, kind: Kind, rows: np.ndarray[Any, Any]) -> int:
    """Count the user's variables: by structure where it is known, else by looking."""
    held = member.catalogue
    codes, repeats = np.unique(held.tables[kind.name].rows["structure"][rows], return_counts=True)
    total = 0
    for code, repeat in zip(codes, repeats, strict=True):
        text = held.text(int(code))
        if text:
            named = json.loads(text)["variables"].keys() - {schema.TIMESTAMP}
            total += int(repeat) * len(named)
    for row in rows[held.tables[kind.name].rows["structure"][rows] == 0]:
        with suppress(DamagedError):
            _, places = member.open_record(held.entry(kind, int(row)))
            total += len(places.keys() - {schema.TIMESTAMP})
    return total
