"""Answers from the catalogues of a view: ids, records, ranges, the table, the tree."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from neurostore import arrays, schema, times
from neurostore.catalogue import Catalogue, Entry
from neurostore.combining import RECORD, Join, Member, Opened, combine, over_records
from neurostore.errors import (
    AmbiguousRecordError,
    DamagedError,
    RecordNotFoundError,
    ValidationError,
)
from neurostore.places import spot
from neurostore.schema import KINDS, Kind
from neurostore.series import Volume, members
from neurostore.session import RecordSource
from neurostore.views import View, clashing, shown

__all__ = ["catalogue", "groups", "ids", "kind_of", "kinds_of", "open_group", "range_", "retrieve"]

Value = TypeVar("Value")
_log = logging.getLogger(__name__)


#: Records up to which a mistyped id is compared with all of them.
_COMPARED = 5_000


@dataclass(frozen=True)
class _Found:
    """The rows of one kind in one file that a query found, in time order.

    `clashes` are ids that other histories have too; there, the label of this one stands before.
    """

    volume: Volume
    held: Catalogue
    kind: Kind
    rows: np.ndarray[Any, Any]
    is_known: bool
    label: str
    clashes: frozenset[str] = frozenset()

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return one column of the rows."""
        return np.asarray(self.held.tables[self.kind.name].take(self.rows)[name])

    def texts(self, name: str) -> list[str]:
        """Return a column of codes as the texts they stand for."""
        return [self.held.text(code) for code in self.column(name).tolist()]

    def links(self) -> list[str]:
        """Return the ids as they are in the file."""
        return self.held.ids(self.kind, self.rows)

    def ids(self) -> list[str]:
        """Return the ids as the view shows them."""
        if not self.clashes:
            return self.links()
        return [shown(self.label, i) if i in self.clashes else i for i in self.links()]

    def entries(self) -> Iterator[tuple[str, Volume, Entry]]:
        """Yield the records with the ids as the view shows them."""
        columns = self.ids(), self.links(), self.rows.tolist(), self.column("serial").tolist()
        for record_id, link, row, serial in zip(*columns, strict=True):
            yield record_id, self.volume, Entry(self.kind, link, row, serial)


def _find(
    view: View,
    kind: str | None,
    start: times.TimeLike | None,
    end: times.TimeLike | None,
    name: str | None,
) -> list[_Found]:
    """Return what a query finds, the oldest file first; the catalogues are brought up to date."""
    low, high = _bounds(start, end)
    kinds = kinds_of(kind)
    # Another kind may have the same id, so that a view of several histories looks at all.
    looked_at = None if view.is_joint or kind is None else [one.name for one in kinds]
    found: list[_Found] = []
    catalogues: list[tuple[int, Catalogue]] = []
    for number, origin in enumerate(view.origins):
        parts: list[list[_Found]] = []
        for member in members(origin.session, low, high, looked_at):
            held = member.catalogue
            volume, known = Volume.of(member, held), member.is_untouched()
            catalogues.append((number, held))
            chosen = [(wanted, held.select(wanted, low, high, name)) for wanted in kinds]
            parts.append(
                [
                    _Found(volume, held, wanted, rows, known, origin.label)
                    for wanted, rows in chosen
                    if len(rows)
                ]
            )
        found += [one for part in reversed(parts) for one in part]
    clashes = clashing(catalogues, low, high) if view.is_joint else frozenset()
    return [replace(one, clashes=clashes) for one in found] if clashes else found


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


def kinds_of(kind: str | None) -> list[Kind]:
    """Return the rows of the kinds that are meant: one, or all."""
    return list(KINDS.values()) if kind is None else [kind_of(kind)]


def kind_of(kind: str) -> Kind:
    """Return the row of a kind; ValidationError where there is none."""
    try:
        return schema.kind_of(kind)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def ids(view: View, kind: Any, start: Any, end: Any, name: str | None) -> list[str]:
    """Return ids in time order."""
    return _merged(_find(view, kind, start, end, name), _Found.ids)


def _hint(view: View, record_id: str) -> str:
    """Name the id that may have been meant, where there are not too many to compare."""
    catalogues = [origin.session.catalogue for origin in view.origins]
    if sum(table.size for held in catalogues for table in held.tables.values()) <= _COMPARED:
        known = [entry.id for held in catalogues for entry in held.entries()]
        close = difflib.get_close_matches(record_id, known, 1)
        if close:
            return f"is {close[0]!r} meant? ids() lists the records there are (neurostore ls FILE)"
    return "ids() lists the records there are (neurostore ls FILE)"


def retrieve(view: View, record_id: str, load: bool | str = False) -> xr.Dataset:
    """Return one record, lazily or, if it is of the kind that ``load`` names, with its values."""
    if not isinstance(record_id, str):
        raise ValidationError(f"the id is {record_id!r}, expected a str as store() returns it")
    located = view.locate(record_id)
    if located is None:
        raise RecordNotFoundError(f"{view}: no record {record_id!r}; {_hint(view, record_id)}")
    origin, (volume, entry) = located
    with volume.read() as member:
        ds, places = member.open_record(entry)
    if load is True or load == entry.kind.name:
        arrays.load(ds.variables, places)
        ds.load()
    return _from(str(origin.session.path), ds)


def open_group(view: View, address: str, decoding: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Return what stands at one address of the tree, lazily; see `Session.open_group`."""
    plain = address.strip("/")
    parent = plain.rpartition("/")[0]
    is_record = any(part.path == parent for kind in KINDS.values() for part in kind.parts)
    located = view.locate(plain) if is_record else None
    if located is not None:
        origin, (volume, entry) = located
        with volume.read() as member:
            ds = member.open_group(f"{parent}/{entry.id}", decoding)
        ds.encoding["source"] = str(origin.session.path)
        return ds
    several = [origin.session for origin in view.origins if origin.session.has_group(plain)]
    if len(several) > 1:
        places = ", ".join(str(session.path) for session in several)
        raise AmbiguousRecordError(f"/{plain} stands in several files; open one of {places}")
    if not several and view.is_joint:
        raise RecordNotFoundError(f"{view}: nothing stands at /{plain}; tree() lists the addresses")
    return (several or [view.origins[0].session])[0].open_group(plain, decoding)


def _from(source: str | list[str], ds: xr.Dataset) -> xr.Dataset:
    """Note in a Dataset, and in its variables as xarray's engines do, where it came from."""
    ds.encoding["source"] = source
    for variable in ds.variables.values():
        variable.encoding["source"] = source
    return ds


def range_(view: View, kind: str, start: Any, end: Any, name: str | None, join: Join) -> xr.Dataset:
    """Return the records of a span of time as one Dataset."""
    row = kind_of(kind)
    found = _find(view, kind, start, end, name)
    where = {
        record_id: (volume, entry) for part in found for record_id, volume, entry in part.entries()
    }

    def opener(member: Member) -> Opened:
        volume, entry = where[member.id]
        with volume.read() as holder:
            return Opened(*holder.open_record(entry))

    return _from(view.source, combine(row, _merged(found, _members), opener, join))


def _members(found: _Found) -> Iterator[Member]:
    """Yield the records as a range takes them.

    Where somebody else wrote to the file, nothing is taken from the catalogue but the names.
    """
    known = found.is_known
    path, file_id, epoch = spot(found.volume.path), found.held.file_id, found.held.state["epoch"]
    columns = zip(
        found.ids(),
        found.links(),
        found.column("timestamp").tolist(),
        found.texts("name"),
        found.column("length").tolist(),
        found.texts("structure") if known else [""] * len(found.rows),
        found.column("labels").tolist(),
        found.column("serial").tolist(),
        strict=True,
    )
    trusted_from = found.held.state["trusted_from"]
    for record_id, link, moment, name, length, structure, labels, serial in columns:
        source = RecordSource(path, file_id, link, serial, epoch, found.volume.limit)
        structure = structure if serial >= trusted_from else ""
        yield Member(record_id, moment, name, length, structure, labels, source, link)


def catalogue(view: View, kind: Any, start: Any, end: Any, name: str | None) -> xr.Dataset:
    """Return the table of records as a Dataset along ``record``."""
    found = _find(view, kind, start, end, name)
    columns = {
        "kind": _texts(_merged(found, lambda part: [part.kind.name] * len(part.rows))),
        "name": _texts(_merged(found, lambda part: part.texts("name"))),
        "length": np.array(_merged(found, lambda part: part.column("length")), np.int64),
        "stored_bytes": np.array(
            _merged(found, lambda part: part.column("stored_bytes")), np.int64
        ),
    }
    if view.is_joint:
        columns["file"] = _texts(_merged(found, lambda part: [part.label] * len(part.rows)))
    moments = np.array(_merged(found, lambda part: part.column("timestamp")), np.float64)
    coords = over_records(None, _merged(found, _Found.ids), moments, [])
    data = {key: (RECORD, values, _NOTES[key]) for key, values in columns.items()}
    return _from(view.source, xr.Dataset(data, coords, {"title": "records of a neurostore file"}))


def _texts(values: list[str]) -> np.ndarray[Any, Any]:
    return np.array(values, np.str_) if values else np.empty(0, "U1")


_NOTES = {
    "kind": {"long_name": "record kind"},
    "name": {"long_name": "reservoir, rule, mechanism, task, map or layers"},
    "length": {"long_name": "size of the dimension in which records of the kind differ"},
    "file": {"long_name": "file, or newest file of a series, that has the record"},
    "stored_bytes": {"long_name": "bytes of the values as stored", "units": "byte"},
}


def groups(view: View, kind: Any, start: Any, end: Any, name: str | None) -> dict[str, xr.Dataset]:
    """Return the parts of records by address; damaged ones are left out, and named in the log."""
    found: dict[str, xr.Dataset] = {}
    source = view.source
    for shown_id, volume, entry in _merged(_find(view, kind, start, end, name), _Found.entries):
        try:
            with volume.read() as holder:
                parts = holder.open_parts(entry)
        except DamagedError as error:
            _log.warning("%s: %r is left out: %s", volume.path, entry.id, error)
            continue
        for address, ds in parts.items():
            place = f"{address.rpartition('/')[0]}/{shown_id}"
            ds.encoding.update(source=source, group=f"/{place}")
            found[place] = ds
    return found
