"""From many records of one kind to one labelled, lazy Dataset.

Equal-shaped records are stacked along ``record``; those with an elastic dimension are joined end
to end as a CF contiguous ragged array, or put side by side under the union of their labels.  One
record per structure is opened; of the others the catalogue already says everything.  It opens
nothing itself: the records are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurostore import schema, times
from neurostore.aligning import aligned
from neurostore.arrays import (
    Held,
    Missing,
    Place,
    RaggedArray,
    RowIndexArray,
    ScatteredArray,
    Source,
    StackedArray,
    lazy,
)
from neurostore.errors import MisalignedRecordsError
from neurostore.index import with_event_index
from neurostore.likeness import common_dtype, difference, gapped_dtype
from neurostore.patterns import pattern_coords
from neurostore.schema import Kind

__all__ = ["RECORD", "Join", "Member", "Opened", "combine", "over_records"]

#: The dimension that records are put along.
RECORD = "record"
#: Coordinate of the events of a ragged range.
RECORD_INDEX = "record_index"
Join = Literal["exact", "override", "inner", "outer"]
JOINS = ("exact", "override", "inner", "outer")


@dataclass(frozen=True)
class Opened:
    """A record that was looked at: its Dataset, and where each variable's values are."""

    ds: xr.Dataset
    places: Mapping[str, Place]


@dataclass(frozen=True)
class Member:
    """One record of a range, as the catalogue knows it.

    `structure` is equal for records of equal structure, and empty where nothing is known of it;
    then neither `length` nor `labels` is.  `link` is the name of its groups, where that is not the
    `id`: records of several files may share it.
    """

    id: str
    timestamp: float
    name: str
    length: int
    structure: Hashable
    labels: int
    source: Source
    link: str = ""


@dataclass
class _Range:
    """The records of one range, with one opened record for each structure."""

    kind: Kind
    members: Sequence[Member]
    open: Callable[[Member], Opened]
    join: Join

    def __post_init__(self) -> None:
        self.templates: dict[Hashable, tuple[Member, Opened]] = {}
        for member in self.members:
            key = self.key(member)
            if key not in self.templates:
                self.templates[key] = (member, self.open(member))

    @staticmethod
    def key(member: Member) -> Hashable:
        return member.structure or ("unknown", member.id)

    def opened(self, member: Member) -> Opened:
        """Return a record that was looked at, opened now if it was not."""
        first, opened = self.templates[self.key(member)]
        return opened if first is member else self.open(member)

    def length(self, member: Member) -> int:
        """Return the size of the record's elastic dimension."""
        if member.structure or self.kind.elastic is None:
            return member.length
        return self.opened(member).ds.sizes.get(self.kind.elastic, 0)

    def place(self, member: Member, name: str) -> Place | Held | None:
        """Return where a variable of ``member`` is, from the record opened in its stead."""
        first, opened = self.templates[self.key(member)]
        place = opened.places.get(name)
        if place is None:
            variable = opened.ds.variables.get(name)
            return None if variable is None else Held(variable.values)
        if first is member:
            return place
        dims = opened.ds.variables[name].dims
        shape = tuple(
            member.length if dim == self.kind.elastic else size
            for dim, size in zip(dims, place.shape, strict=True)
        )
        address = place.address.replace(
            f"/{first.link or first.id}/", f"/{member.link or member.id}/", 1
        )
        return replace(place, source=member.source, address=address, shape=shape)

    def places(self, name: str) -> list[Place | Held | None]:
        """Return where a variable of every record is; None for records that lack it."""
        return [self.place(member, name) for member in self.members]

    def joint(
        self, name: str, places: Iterable[Place | Held | None], gaps: bool = False
    ) -> np.dtype[Any]:
        """Return the dtype that holds a variable of all records, and gaps, exactly."""
        several = {place.dtype for place in places if place is not None}
        dtype = common_dtype(*several)
        if gaps and dtype is not None:
            dtype = gapped_dtype(dtype)
        if dtype is None:
            shown = ", ".join(sorted(map(str, several))) + (", and gaps" if gaps else "")
            raise MisalignedRecordsError(
                f"{self.kind.name}: no dtype holds {name!r} of all records exactly ({shown}); "
                f"{_SELECT}"
            )
        return dtype

    @property
    def reference(self) -> Opened:
        return self.templates[self.key(self.members[0])][1]

    def variables(self) -> dict[str, xr.Variable]:
        """Variables of the first record, without its own time."""
        own = {schema.TIMESTAMP}
        if schema.TIME not in self.reference.places:
            own.add(schema.TIME)
        return {
            str(name): variable
            for name, variable in self.reference.ds.variables.items()
            if name not in own
        }

    def differing(self) -> Member | None:
        """Return the first record whose labels are not those of the first, if there is one."""
        seen = {member.labels for member in self.members[:1] if member.structure}
        for member in self.members[1:]:
            if member.structure and member.labels in seen:
                continue
            if not self._same_labels(self.opened(member).ds):
                return member
            if member.structure:
                seen.add(member.labels)
        return None

    def unequal(self) -> bool:
        """Tell whether records differ in size."""
        return any(o.ds.sizes != self.reference.ds.sizes for _, o in self.templates.values())

    def _same_labels(self, ds: xr.Dataset) -> bool:
        mine, others = self._labels(self.reference.ds), self._labels(ds)
        return mine.keys() == others.keys() and all(
            others[name].equals(variable)  # type: ignore[no-untyped-call]
            for name, variable in mine.items()
        )

    def _labels(self, ds: xr.Dataset) -> dict[Hashable, xr.Variable]:
        """Coordinates that records have to share: those along dimensions of equal size."""
        return {
            name: variable
            for name, variable in ds.coords.variables.items()
            if variable.ndim and self.kind.elastic not in variable.dims
        }


_SELECT = "select records that fit together by start=, end= or name=, or retrieve them one by one"


def combine(
    kind: Kind,
    members: Sequence[Member],
    opener: Callable[[Member], Opened],
    join: Join = "exact",
) -> xr.Dataset:
    """Return the records as one Dataset along ``record``.

    Raises
    ------
    MisalignedRecordsError
        A record has other variables, shapes, units or (with ``join="exact"``) labels than the
        first; it is named.
    """
    if not members:
        return _empty(kind)
    found = _Range(kind, members, opener, join)
    _check_alike(found)
    ds = _BY_RULE[kind.combine](found)
    ds.attrs["kind"] = kind.name
    return ds


def _empty(kind: Kind) -> xr.Dataset:
    """Return a range without records: what every range of the kind has, of size 0."""
    dims = {
        row.name: (() if kind.combine == "ragged" else (RECORD,)) + (row.dims_for(1) or row.dims[0])
        for row in kind.variables
        if row.required or not any(other.required for other in kind.variables)
        if kind.mapping != "variables"
    }
    coords = over_records(kind, [], np.empty(0), [])
    if any(schema.TIME in names for names in dims.values()):
        coords = coords.to_dataset().drop_vars(schema.TIME).coords
    rows = {row.name: row for row in kind.variables}
    data = {
        name: xr.Variable(names, np.empty((0,) * len(names), _empty_dtype(rows[name])))
        for name, names in dims.items()
    }
    for name, variable in data.items():
        variable.attrs.update(rows[name].attrs)
    labels = {row.name for row in kind.variables if row.coordinate}
    if kind.combine == "ragged":
        assert kind.elastic is not None
        data |= _rows(np.empty(0, np.int64), kind.elastic)
        labels.add(RECORD_INDEX)
    ds = xr.Dataset(data, coords, {"kind": kind.name})
    if kind.combine == "union":
        ds = ds.assign_coords({kind.elastic: (kind.elastic, np.empty(0, "U1"))})
    return with_event_index(ds.set_coords(sorted(labels & {*map(str, ds)})))


def _empty_dtype(row: schema.Variable) -> type[np.generic]:
    return np.float64 if "f" in row.kinds else np.int64


def over_records(
    kind: Kind | None, ids: Sequence[str], moments: np.ndarray[Any, Any], labels: Sequence[str]
) -> xr.Coordinates:
    """Return the coordinates along ``record``: ids, timestamps, dates and names.

    The timestamps are an index too, so ``ds.sel(timestamp=slice(a, b))`` works.
    """
    variables: dict[Hashable, Any] = {
        RECORD: (RECORD, np.array(ids, np.str_) if len(ids) else np.empty(0, "U1")),
        schema.TIMESTAMP: (RECORD, moments, dict(schema.TIMESTAMP_ATTRS)),
    }
    dates = times.decoded_many(moments)
    if dates is not None:
        variables[schema.TIME] = (RECORD, dates, dict(schema.TIME_ATTRS))
    if kind is not None and kind.label is not None:
        texts = np.array(labels, np.str_) if len(labels) else np.empty(0, "U1")
        variables[kind.label] = (RECORD, texts)
    ds = xr.Dataset(coords=variables)
    for name in (schema.TIMESTAMP, schema.TIME):
        if name in ds.coords:
            ds = ds.set_xindex(name)
    return ds.coords


def _coords(found: _Range) -> xr.Coordinates:
    moments = np.array([member.timestamp for member in found.members])
    coords = over_records(
        found.kind,
        [member.id for member in found.members],
        moments,
        [member.name for member in found.members],
    )
    if schema.TIME not in found.reference.ds.dims:
        return coords
    if schema.TIME in found.reference.ds.coords:  # it is the one T axis then
        coords[schema.TIMESTAMP].attrs.pop("axis", None)
    return coords.to_dataset().drop_vars(schema.TIME, errors="ignore").coords


# -- what has to be alike --------------------------------------------------------------------


def _check_alike(found: _Range) -> None:
    for member, opened in found.templates.values():
        problem = difference(
            found.kind, found.reference.ds, opened.ds, sizes=found.join in ("exact", "override")
        )
        if problem is not None:
            raise MisalignedRecordsError(
                f"{found.kind.name}: {member.id!r} {problem} (as {found.members[0].id!r} has); "
                f"{_SELECT}"
            )


# -- stacked ---------------------------------------------------------------------------------


def _stacked(found: _Range) -> xr.Dataset:
    odd = found.differing()
    if odd is not None and found.join == "exact":
        raise MisalignedRecordsError(
            f"{found.kind.name}: the labels of {odd.id!r} are not those of "
            f"{found.members[0].id!r}; pass join='inner' or 'outer' to align them, "
            "'override' to take the first record's"
        )
    if found.join in ("inner", "outer") and (odd is not None or found.unequal()):
        return _aligned(found, found.join)
    first = found.reference.ds
    data = {}
    kept = {}
    for name, variable in found.variables().items():
        if variable.ndim and name in first.coords and (odd is None or name in first.dims):
            kept[name] = variable
        else:
            data[name] = _stack(found, name, variable)
    return _assembled(found, data, kept)


def _stack(found: _Range, name: str, variable: xr.Variable) -> xr.Variable:
    places = [place for place in found.places(name) if place is not None]
    array = StackedArray(places, found.joint(name, places))
    return lazy((RECORD, *map(str, variable.dims)), array, variable.attrs)


def _assembled(
    found: _Range, data: Mapping[str, xr.Variable], kept: Mapping[str, xr.Variable]
) -> xr.Dataset:
    first = found.reference.ds
    ds = xr.Dataset({k: v for k, v in data.items() if k not in first.coords}, _coords(found))
    extra: dict[Hashable, Any] = {k: v for k, v in data.items() if k in first.coords}
    return ds.assign_coords(extra).assign_coords(pattern_coords(kept))


def _aligned(found: _Range, join: Literal["inner", "outer"]) -> xr.Dataset:
    own = [schema.TIMESTAMP]
    if schema.TIME not in found.reference.ds.dims:
        own.append(schema.TIME)
    datasets = [found.opened(member).ds.drop_vars(own, errors="ignore") for member in found.members]
    for ds in datasets:
        ds.attrs = {}
    try:
        joined = aligned(datasets, RECORD, join)
    except MisalignedRecordsError as error:
        raise MisalignedRecordsError(f"{found.kind.name}: {error}; {_SELECT}") from error
    return joined.assign_coords(_coords(found))


# -- ragged ----------------------------------------------------------------------------------


def _ragged(found: _Range) -> xr.Dataset:
    kind = found.kind
    assert kind.elastic is not None
    union: dict[str, xr.Variable] = {}
    coordinates = {RECORD_INDEX}
    for _, opened in found.templates.values():
        union = {str(name): v for name, v in opened.ds.variables.items()} | union
        coordinates |= {str(name) for name in opened.ds.coords}
    data: dict[str, xr.Variable] = {}
    kept: dict[str, xr.Variable] = {}
    for name, variable in union.items():
        if name in (schema.TIMESTAMP, schema.TIME):
            continue
        if kind.elastic in variable.dims:
            data[name] = _join_ends(found, name, variable)
        elif variable.ndim == 0:
            data[name] = _stack(found, name, variable)
        else:
            kept[name] = variable
    _refuse_other_labels(found)
    sizes = np.array([found.length(member) for member in found.members], np.int64)
    ds = xr.Dataset({**data, **kept, **_rows(sizes, kind.elastic)}, _coords(found))
    return with_event_index(ds.set_coords(sorted(coordinates & {*map(str, ds)})))


def _refuse_other_labels(found: _Range) -> None:
    odd = found.differing()
    if odd is not None and found.join != "override":
        raise MisalignedRecordsError(
            f"{found.kind.name}: the labels of {odd.id!r} are not those of "
            f"{found.members[0].id!r}; pass join='override' to take the first record's"
        )


def _rows(sizes: np.ndarray[Any, Any], dim: str) -> dict[str, xr.Variable]:
    """Return what tells the events of one record from those of the next."""
    size_attrs = {
        "sample_dimension": dim,
        "long_name": "number of events of the record",
        "comment": "of the whole record, whichever events are selected afterwards",
    }
    index_attrs = {
        "long_name": "position of the event's record",
        "comment": f"among the records of the range; a selection of records leaves {dim} as it is",
    }
    return {
        "row_size": xr.Variable(RECORD, sizes, size_attrs),
        RECORD_INDEX: lazy((dim,), RowIndexArray(sizes), index_attrs),
    }


def _join_ends(found: _Range, name: str, variable: xr.Variable) -> xr.Variable:
    places = found.places(name)
    dtype = found.joint(name, places, gaps=None in places)
    filled = [
        place or Missing((found.length(member), *variable.shape[1:]))
        for member, place in zip(found.members, places, strict=True)
    ]
    return lazy(tuple(map(str, variable.dims)), RaggedArray(filled, dtype), variable.attrs)


# -- under the union of labels -----------------------------------------------------------------


def _united(found: _Range) -> xr.Dataset:
    dim = found.kind.elastic
    assert dim is not None
    columns, labels = _columns(found, dim)
    _refuse_other_labels(found)
    first = found.reference.ds
    attrs = first[dim].attrs if dim in first.coords else {}
    kept = {dim: xr.Variable((dim,), labels, attrs)}
    data: dict[str, xr.Variable] = {}
    for name, variable in found.variables().items():
        if name == dim:
            continue
        if variable.dims == (dim,):
            data[name] = _scatter(found, name, variable, columns, len(labels))
        elif variable.ndim and name in first.coords:
            kept[name] = variable
        else:
            if dim in variable.dims:
                _check_same_columns(found, name, columns)
            data[name] = _stack(found, name, variable)
    return _assembled(found, data, kept)


def _check_same_columns(found: _Range, name: str, columns: Sequence[np.ndarray[Any, Any]]) -> None:
    """Raise where a variable of several dimensions does not have the same labels everywhere."""
    for member, own in zip(found.members, columns, strict=True):
        if not np.array_equal(own, columns[0]):
            raise MisalignedRecordsError(
                f"{found.kind.name}: {member.id!r} has {name!r} with other labels along "
                f"{found.kind.elastic!r} than {found.members[0].id!r}, and has several steps; "
                f"{_SELECT}"
            )


def _columns(found: _Range, dim: str) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return for every record the columns that its values go to, and the labels of all columns.

    Records with equal labels are looked at once.
    """
    keys = [(m.structure, m.labels) if m.structure else m.id for m in found.members]
    by_key: dict[Hashable, list[str]] = {}
    for key, member in zip(keys, found.members, strict=True):
        if key not in by_key:
            by_key[key] = _labels_of(found.opened(member).ds, dim)
    union = list(dict.fromkeys(label for labels in by_key.values() for label in labels))
    position = {label: number for number, label in enumerate(union)}
    columns = {
        key: np.array([position[label] for label in labels], np.intp)
        for key, labels in by_key.items()
    }
    named = np.array(union, np.str_) if union else np.empty(0, "U1")
    return [columns[key] for key in keys], named


def _scatter(
    found: _Range,
    name: str,
    variable: xr.Variable,
    columns: Sequence[np.ndarray[Any, Any]],
    width: int,
) -> xr.Variable:
    """Return a variable with one row for each record; gaps hold NaN, NaT or no text."""
    places = found.places(name)
    dtype = found.joint(name, places, gaps=any(len(own) < width for own in columns))
    filled = [place or Missing((0,)) for place in places]
    array = ScatteredArray(filled, columns, width, dtype)
    return lazy((RECORD, *map(str, variable.dims)), array, variable.attrs)


def _labels_of(ds: xr.Dataset, dim: str) -> list[str]:
    """Labels along ``dim``; numbered ones for records of plain h5py, which have none."""
    if dim in ds.coords:
        return [str(label) for label in ds[dim].values]
    return [f"{dim}_{number}" for number in range(ds.sizes.get(dim, 0))]


_BY_RULE = {"stack": _stacked, "ragged": _ragged, "union": _united}
