"""Answers from the catalogue of a series: ids, ranges, the table, the tree, a summary."""

from __future__ import annotations

import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from neurostore import schema, times
from neurostore.combining import RECORD, Join, Member, Opened, combine, over_records
from neurostore.errors import RecordNotFoundError, ValidationError
from neurostore.schema import KINDS, Kind
from neurostore.series import find, members
from neurostore.session import RecordSource, Session

__all__ = ["catalogue", "groups", "ids", "info", "range_", "retrieve"]


@dataclass(frozen=True)
class _Hit:
    """One record that a query found."""

    session: Session
    kind: Kind
    row: int
    timestamp: float


def _hits(
    session: Session,
    kind: str | None,
    start: times.TimeLike | None,
    end: times.TimeLike | None,
    name: str | None,
) -> Iterator[_Hit]:
    """Yield what a query finds, in time order over all kinds and files."""
    low, high = _bounds(start, end)
    found = []
    for member in members(session):
        held = member.catalogue
        for wanted in _kinds(kind):
            rows = held.select(wanted, low, high, name)
            if len(rows):
                moments = held.tables[wanted.name].rows["timestamp"][rows].tolist()
                found.append(
                    [
                        _Hit(member, wanted, row, t)
                        for row, t in zip(rows.tolist(), moments, strict=True)
                    ]
                )
    if len(found) == 1:
        yield from found[0]
    else:
        yield from heapq.merge(*reversed(found), key=lambda hit: hit.timestamp)


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
    return [_id(hit) for hit in _hits(session, kind, start, end, name)]


def _id(hit: _Hit) -> str:
    held = hit.session.catalogue
    return held.id_of(held.tables[hit.kind.name], hit.row)


def retrieve(session: Session, record_id: str) -> xr.Dataset:
    """Return one record, lazily."""
    if not isinstance(record_id, str):
        raise ValidationError(f"the id is {record_id!r}, expected a str as store() returns it")
    found = find(session, record_id)
    if found is None:
        raise RecordNotFoundError(
            f"{session.path}: no record {record_id!r}; ids() lists the records there are"
        )
    member, entry = found
    return member.open_record(entry)[0]


def range_(
    session: Session, kind: str, start: Any, end: Any, name: str | None, join: Join
) -> xr.Dataset:
    """Return the records of a span of time as one Dataset."""
    row = kind_of(kind)
    by_id: dict[str, tuple[Session, int]] = {}
    found = []
    for hit in _hits(session, kind, start, end, name):
        member = _member(hit)
        by_id[member.id] = (hit.session, hit.row)
        found.append(member)

    def opener(member: Member) -> Opened:
        holder, number = by_id[member.id]
        ds, places = holder.open_record(holder.catalogue.entry(row, number))
        return Opened(ds, places)

    ds = combine(row, found, opener, join)
    ds.encoding["source"] = str(session.path)
    return ds


def _member(hit: _Hit) -> Member:
    held = hit.session.catalogue
    table = held.tables[hit.kind.name]
    row = table.rows[hit.row]
    record_id = held.id_of(table, hit.row)
    return Member(
        id=record_id,
        timestamp=hit.timestamp,
        name=held.text(int(row["name"])),
        length=int(row["length"]),
        structure=held.text(int(row["structure"])) if hit.session.is_untouched() else "",
        labels=int(row["labels"]),
        source=RecordSource(
            str(hit.session.path), held.file_id, record_id, int(row["serial"]), held.state["epoch"]
        ),
    )


def catalogue(session: Session, kind: Any, start: Any, end: Any, name: str | None) -> xr.Dataset:
    """Return the table of records as a Dataset along ``record``."""
    found = list(_hits(session, kind, start, end, name))
    columns: dict[str, list[Any]] = {"kind": [], "name": [], "length": [], "stored_bytes": []}
    for hit in found:
        held = hit.session.catalogue
        row = held.tables[hit.kind.name].rows[hit.row]
        columns["kind"].append(hit.kind.name)
        columns["name"].append(held.text(int(row["name"])))
        columns["length"].append(int(row["length"]))
        columns["stored_bytes"].append(int(row["stored_bytes"]))
    moments = np.array([hit.timestamp for hit in found], np.float64)
    coords = over_records(None, [_id(hit) for hit in found], moments, [])
    data = {
        key: (
            RECORD,
            np.array(values, np.str_ if key in ("kind", "name") else np.int64),
            _NOTES[key],
        )
        for key, values in columns.items()
    }
    ds = xr.Dataset(data, coords, {"title": "records of a neurostore file"})
    ds.encoding["source"] = str(session.path)
    return ds


_NOTES = {
    "kind": {"long_name": "record kind"},
    "name": {"long_name": "reservoir, rule, mechanism, task, map or layers"},
    "length": {"long_name": "size of the dimension in which records of the kind differ"},
    "stored_bytes": {"long_name": "bytes of the values as stored", "units": "byte"},
}


def groups(
    session: Session, kind: Any, start: Any, end: Any, name: str | None
) -> dict[str, xr.Dataset]:
    """Return the parts of records by address."""
    found: dict[str, xr.Dataset] = {}
    for hit in _hits(session, kind, start, end, name):
        entry = hit.session.catalogue.entry(hit.kind, hit.row)
        found.update(hit.session.open_parts(entry))
    return found


def info(session: Session) -> dict[str, Any]:
    """Return what is to be known of a file and its series."""
    counts: Counter[str] = Counter()
    variables = 0
    stored = 0
    moments: list[float] = []
    files = []
    for member in members(session):
        files.append(member)
        held = member.catalogue
        for kind in KINDS.values():
            rows = held.select(kind)
            if not len(rows):
                continue
            counts[kind.name] += len(rows)
            table = held.tables[kind.name].rows[rows]
            moments += [float(table["timestamp"][0]), float(table["timestamp"][-1])]
            stored += int(table["stored_bytes"].sum())
            variables += _variables(member, kind, rows)
    return {
        "path": str(session.path),
        "file_size": sum(os.stat(member.path).st_size for member in files),
        "files": [str(member.path) for member in reversed(files)],
        "records": {name: counts.get(name, 0) for name in KINDS},
        "variables": variables,
        "start": min(moments, default=None),
        "end": max(moments, default=None),
        "stored_bytes": stored,
        "schema_version": schema.SCHEMA_VERSION,
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
            total += int(repeat) * len(json.loads(text)["variables"])
    for row in rows[held.tables[kind.name].rows["structure"][rows] == 0]:
        ds, places = member.open_record(held.entry(kind, int(row)))
        total += len(places)
    return total
