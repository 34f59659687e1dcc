"""From many records of one kind to one labelled, lazy Dataset.

Equal-shaped records are stacked along ``record``; those with an elastic dimension are joined end
to end as a CF contiguous ragged array, or put side by side under the union of their labels.  One
record per structure is opened; of the others the catalogue already says everything.  It opens
nothing itself: the records are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurostore import schema, times
from neurostore.arrays import (
    Missing,
    Place,
    RaggedArray,
    RowIndexArray,
    ScatteredArray,
    Source,
    StackedArray,
    lazy,
)
from neurostore.errors import MisalignedRecordsError, RecordNotFoundError
from neurostore.index import with_event_index
from neurostore.schema import Kind

__all__ = ["RECORD", "Join", "Member", "Opened", "combine", "over_records"]

#: The dimension that records are put along.
RECORD = "record"
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

    `structure` is equal for records of equal structure, and 0 where nothing is known of it.
    """

    id: str
    timestamp: float
    name: str
    length: int
    structure: Hashable
    labels: int
    source: Source


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

    def place(self, member: Member, name: str) -> Place | None:
        """Return where a variable of ``member`` is, from the record opened in its stead."""
        first, opened = self.templates[self.key(member)]
        place = opened.places.get(name)
        if place is None or first is member:
            return place
        dims = opened.ds.variables[name].dims
        shape = tuple(
            member.length if dim == self.kind.elastic else size
            for dim, size in zip(dims, place.shape, strict=True)
        )
        address = place.address.replace(f"/{first.id}/", f"/{member.id}/", 1)
        return replace(place, source=member.source, address=address, shape=shape)

    @property
    def reference(self) -> Opened:
        return self.templates[self.key(self.members[0])][1]

    def variables(self, scalar: bool) -> dict[str, xr.Variable]:
        """Variables of the first record, without its times; scalar ones or the others."""
        own = {schema.TIMESTAMP}
        if schema.TIME not in self.reference.places:
            own.add(schema.TIME)
        return {
            str(name): variable
            for name, variable in self.reference.ds.variables.items()
            if name not in own and (variable.ndim == 0) == scalar
        }

    def differing(self) -> Member | None:
        """Return the first record whose labels are not those of the first, if there is one."""
        known = self.members[0].labels
        seen = {known}
        for member in self.members:
            if member.structure and member.labels in seen and known:
                continue
            seen.add(member.labels)
            if not self._same_labels(self.open(member).ds):
                return member
        return None

    def _same_labels(self, ds: xr.Dataset) -> bool:
        return all(
            name in ds.coords and ds.coords[name].variable.equals(variable)
            for name, variable in self.reference.ds.coords.variables.items()
            if variable.ndim and self.kind.elastic not in variable.dims
        )


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
    """A range without records: no data, but the coordinates that every range has."""
    ds = xr.Dataset(coords=over_records(kind, [], np.empty(0), []), attrs={"kind": kind.name})
    if kind.combine == "ragged":
        empty = np.empty(0)
        ds = ds.assign(row_size=(RECORD, np.empty(0, np.int64), _ROW_SIZE_ATTRS))
        columns = {
            row.name: (
                row.dims[0],
                empty.astype(np.int64 if "u" in row.kinds and "f" not in row.kinds else np.float64),
            )
            for row in kind.variables
            if row.required
        }
        ds = with_event_index(ds.assign_coords(columns))
    return ds


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
    if schema.TIME in found.reference.ds.dims and schema.TIME in coords:
        return coords.to_dataset().drop_vars(schema.TIME).coords
    return coords


# -- what has to be alike --------------------------------------------------------------------


def _check_alike(found: _Range) -> None:
    for member, opened in found.templates.values():
        problem = _difference(found, opened)
        if problem is not None:
            raise MisalignedRecordsError(
                f"{found.kind.name}: {member.id!r} {problem} (as {found.members[0].id!r} has); "
                "select records that fit together by start=, end= or name=, "
                "or retrieve them one by one"
            )


def _difference(found: _Range, opened: Opened) -> str | None:
    kind, first, other = found.kind, found.reference.ds, opened.ds
    may_miss = {row.name for row in kind.variables if not row.required}
    if kind.combine != "ragged":
        may_miss = set()
    odd = (set(first.variables) ^ set(other.variables)) - may_miss - {schema.TIME}
    if odd:
        name = sorted(map(str, odd))[0]
        return f"has {name!r}, which is not expected" if name in other else f"lacks {name!r}"
    for name, variable in first.variables.items():
        if name not in other.variables:
            continue
        problem = _variable_difference(kind, str(name), variable, other.variables[name])
        if problem is not None and not (found.join in ("inner", "outer") and "shape" in problem):
            return problem
    return None


def _variable_difference(
    kind: Kind, name: str, first: xr.Variable, other: xr.Variable
) -> str | None:
    if first.dims != other.dims:
        return f"has {name!r} with dims {other.dims}, expected {first.dims}"
    sizes = [
        (a, b)
        for a, b, dim in zip(first.shape, other.shape, first.dims, strict=True)
        if dim != kind.elastic and a != b
    ]
    if sizes:
        return f"has {name!r} with shape {other.shape}, expected {first.shape}"
    if first.attrs.get("units") != other.attrs.get("units"):
        return (
            f"has {name!r} in {other.attrs.get('units')!r}, expected {first.attrs.get('units')!r}"
        )
    if _common(first.dtype, other.dtype) is None:
        return f"has {name!r} as {other.dtype}, expected {first.dtype}"
    return None


def _common(*dtypes: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return the dtype that holds all of them exactly, or None."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    try:
        joint = np.result_type(*dtypes)
    except TypeError:
        return None
    return (
        joint
        if all(np.can_cast(dtype, joint, "safe") and _exact(dtype, joint) for dtype in dtypes)
        else None
    )


def _exact(dtype: np.dtype[Any], joint: np.dtype[Any]) -> bool:
    """NumPy calls int64 to float64 safe; ids above 2**53 would become others."""
    return not (dtype.kind in "iu" and joint.kind in "fc" and dtype.itemsize > 4)


# -- stacked ---------------------------------------------------------------------------------


def _stacked(found: _Range) -> xr.Dataset:
    odd = (
        found.differing()
        if any(v.ndim for v in found.reference.ds.coords.variables.values())
        else None
    )
    if odd is not None and found.join == "exact":
        raise MisalignedRecordsError(
            f"{found.kind.name}: the labels of {odd.id!r} are not those of "
            f"{found.members[0].id!r}; pass join='inner' or 'outer' to align them, "
            "'override' to take the first record's"
        )
    if found.join in ("inner", "outer"):
        return _aligned(found)
    first = found.reference.ds
    data = {}
    kept = {}
    for name, variable in found.variables(scalar=False).items():
        if name in first.coords and (odd is None or name in first.dims):
            kept[name] = variable
        else:
            data[name] = _stack(found, name, variable)
    for name, variable in found.variables(scalar=True).items():
        data[name] = _stack(found, name, variable)
    return _assembled(found, data, kept)


def _stack(found: _Range, name: str, variable: xr.Variable) -> xr.Variable:
    places = [found.place(member, name) for member in found.members]
    if any(place is None for place in places):
        values = [found.open(member).ds.variables[name].values for member in found.members]
        return xr.Variable((RECORD, *variable.dims), np.stack(values), variable.attrs)
    known = [place for place in places if place is not None]
    dtype = _common(*{place.dtype for place in known})
    return lazy((RECORD, *map(str, variable.dims)), StackedArray(known, dtype), variable.attrs)


def _assembled(
    found: _Range, data: Mapping[str, xr.Variable], kept: Mapping[str, xr.Variable]
) -> xr.Dataset:
    first = found.reference.ds
    ds = xr.Dataset({k: v for k, v in data.items() if k not in first.coords}, _coords(found))
    extra: dict[Hashable, Any] = {k: v for k, v in data.items() if k in first.coords}
    return ds.assign_coords(extra | dict(kept))


def _aligned(found: _Range) -> xr.Dataset:
    """Align the labels; this reads what has to be moved."""
    datasets = [
        found.open(member).ds.drop_vars([schema.TIMESTAMP, schema.TIME], errors="ignore")
        for member in found.members
    ]
    for ds in datasets:
        ds.attrs = {}
    joined = xr.concat(
        datasets,
        dim=RECORD,
        join=found.join,
        combine_attrs="drop_conflicts",
        data_vars="all",
        coords="different",
        compat="equals",
    )
    return joined.assign_coords(_coords(found))


# -- ragged ----------------------------------------------------------------------------------

_ROW_SIZE_ATTRS = {"long_name": "number of events of the record"}


def _ragged(found: _Range) -> xr.Dataset:
    kind = found.kind
    assert kind.elastic is not None
    sizes = np.array([member.length for member in found.members], np.int64)
    data: dict[str, xr.Variable] = {}
    kept: dict[str, xr.Variable] = {}
    union: dict[str, xr.Variable] = {}
    for _, opened in found.templates.values():
        for name, variable in opened.ds.variables.items():
            union.setdefault(str(name), variable)
    for name, variable in union.items():
        if name in (schema.TIMESTAMP, schema.TIME):
            continue
        if kind.elastic in variable.dims:
            data[name] = _join_ends(found, name, variable)
        elif variable.ndim == 0:
            data[name] = _stack(found, name, variable)
        else:
            kept[name] = variable
    odd = found.differing() if kept else None
    if odd is not None and found.join != "override":
        raise MisalignedRecordsError(
            f"{kind.name}: the labels of {odd.id!r} are not those of {found.members[0].id!r}; "
            "pass join='override' to take the first record's"
        )
    coordinates = {
        name for _, opened in found.templates.values() for name in map(str, opened.ds.coords)
    }
    row_size = xr.Variable(RECORD, sizes, {"sample_dimension": kind.elastic, **_ROW_SIZE_ATTRS})
    index = lazy(
        (kind.elastic,), RowIndexArray(sizes), {"long_name": "position of the event's record"}
    )
    variables = {name: variable for name, variable in data.items() if name not in coordinates}
    ds = xr.Dataset({**variables, "row_size": row_size}, _coords(found))
    extra: dict[Hashable, Any] = {name: v for name, v in data.items() if name in coordinates}
    ds = ds.assign_coords({**extra, **kept, "record_index": index})
    return with_event_index(ds)


def _join_ends(found: _Range, name: str, variable: xr.Variable) -> xr.Variable:
    places: list[Place | Missing] = []
    for member in found.members:
        place = found.place(member, name)
        places.append(Missing((member.length, *variable.shape[1:])) if place is None else place)
    dtype = _common(*{place.dtype for place in places})
    if dtype is None:
        raise MisalignedRecordsError(
            f"{found.kind.name}: {name} is missing in some records and has dtype "
            f"{variable.dtype}, which cannot say so; select records by start=, end= or name="
        )
    return lazy(tuple(map(str, variable.dims)), RaggedArray(places, dtype), variable.attrs)


# -- under the union of labels -----------------------------------------------------------------


def _united(found: _Range) -> xr.Dataset:
    dim = found.kind.elastic
    assert dim is not None
    by_labels: dict[Hashable, list[str]] = {}
    per_member: list[list[str]] = []
    for member in found.members:
        key = (member.structure, member.labels) if member.structure else member.id
        if key not in by_labels:
            by_labels[key] = _labels_of(found.open(member).ds, dim)
        per_member.append(by_labels[key])
    union = list(dict.fromkeys(label for labels in by_labels.values() for label in labels))
    position = {label: number for number, label in enumerate(union)}
    columns = {
        key: np.array([position[label] for label in labels], np.intp)
        for key, labels in by_labels.items()
    }
    chosen = [columns[(m.structure, m.labels) if m.structure else m.id] for m in found.members]
    data: dict[str, xr.Variable] = {}
    for name, variable in found.variables(scalar=False).items():
        if name != dim:
            places = [p for m in found.members if (p := found.place(m, name)) is not None]
            array = ScatteredArray(places, chosen, len(union))
            data[name] = lazy((RECORD, dim), array, variable.attrs)
    for name, variable in found.variables(scalar=True).items():
        data[name] = _stack(found, name, variable)
    labels = np.array(union, np.str_) if union else np.empty(0, "U1")
    first = found.reference.ds
    attrs = first[dim].attrs if dim in first.coords else {}
    return _assembled(found, data, {dim: xr.Variable((dim,), labels, attrs)})


def _labels_of(ds: xr.Dataset, dim: str) -> list[str]:
    """Labels along ``dim``; numbered ones for records of plain h5py, which have none."""
    if dim in ds.coords:
        return [str(label) for label in ds[dim].values]
    return [f"{dim}_{number}" for number in range(ds.sizes.get(dim, 0))]


_BY_RULE = {"stack": _stacked, "ragged": _ragged, "union": _united}
