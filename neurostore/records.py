"""What a Dataset must be to become a record, and the record it then is.

``examine`` collects every problem of a Dataset and raises once; what it returns holds nothing
that could still fail for the data's sake, so the file is only touched for records that fit.
It knows the table of kinds and netCDF's dtypes, and neither files nor HDF5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import xarray as xr

from neurostore import gathered, names, schema, times, types
from neurostore.deferred import Deferred, deferred, is_dask
from neurostore.errors import ValidationError
from neurostore.h5attrs import Packed, pack
from neurostore.schema import Kind

__all__ = [
    "Column",
    "Draft",
    "Piece",
    "Plain",
    "Record",
    "examine",
    "examine_tree",
    "infer_kind",
    "misfits",
    "odd_values",
    "problems",
]

#: Attribute with the name a user gave to what xarray, DataTree or HDF5 calls otherwise.
ORIGINAL_NAME = "original_name"
#: Attribute with the name in memory, where the link name had to be escaped.
LINK_ATTR = types.LINK_ATTR


@dataclass(frozen=True, slots=True)
class Column:
    """One variable in the form it takes on disk."""

    name: str
    dims: tuple[str, ...]
    values: Any  #: A NumPy array, or a `Deferred` one.
    attrs: tuple[Packed, ...]
    coordinate: bool
    logical: str
    units: str


@dataclass(frozen=True)
class Piece:
    """What one part group of a record holds."""

    path: str
    columns: tuple[Column, ...]
    attrs: dict[str, Any]
    coordinates: tuple[str, ...]
    #: Link name of every variable and dimension of the record.
    links: dict[str, str]
    #: That of the record; with it, pieces of one path differ in the order of the columns alone.
    structure: str


@dataclass(frozen=True)
class Record:
    """A Dataset that fits the table of kinds, ready to be written.

    `structure` is the JSON of its dimensions, dtypes and coordinates, equal for records that
    stack; `labels` a hash over the values of its coordinates; `length` the size of the kind's
    elastic dimension, 0 where it has none.
    """

    kind: Kind
    timestamp: float
    name: str
    pieces: tuple[Piece, ...]
    structure: str
    labels: int
    length: int


@dataclass(slots=True)
class Plain:
    """A variable without xarray's: it costs a fortieth and serves a record as well."""

    dims: tuple[Hashable, ...]
    values: Any
    attrs: Mapping[str, Any]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        shape: tuple[int, ...] = self.values.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values."""
        dtype: np.dtype[Any] = self.values.dtype
        return dtype


@dataclass(frozen=True)
class Draft:
    """What a Dataset is made of: a record can be stored without making one first."""

    variables: dict[Hashable, Any]
    coordinates: frozenset[Hashable]
    attrs: dict[Hashable, Any]

    @classmethod
    def of(cls, ds: xr.Dataset) -> Draft:
        """Take a Dataset apart, sparse matrices too."""
        if not isinstance(ds, xr.Dataset):
            raise ValidationError(
                f"a {type(ds).__name__} is no record; expected an xarray.Dataset, as the builders "
                "make it: neurostore.spike_train(...)"
            )
        variables: dict[Hashable, Any] = {
            key: Plain(variable.dims, _data(variable), variable.attrs)
            for key, variable in ds.variables.items()
        }
        added, problems = gathered.take_apart(variables, Plain)
        if problems:
            raise ValidationError.of("Dataset", problems)
        return cls(variables, frozenset({*ds.coords, *added}), ds.attrs)

    def to_dataset(self) -> xr.Dataset:
        """Put it together."""
        made = {}
        for key, var in self.variables.items():
            try:
                made[key] = xr.Variable(var.dims, var.values, dict(var.attrs))
            except ValueError as error:  # days, of which xarray makes seconds
                if var.values.dtype.kind not in "mM":
                    raise
                raise ValidationError(
                    f"{key}: xarray cannot hold the times ({error}), of which it makes seconds; "
                    "expected them within 290,000,000,000 years of 1970; give numbers instead"
                ) from error
        coords = {key: var for key, var in made.items() if key in self.coordinates}
        data = {key: var for key, var in made.items() if key not in self.coordinates}
        return xr.Dataset(data, coords, self.attrs)

    @cached_property
    def sizes(self) -> dict[Hashable, int]:
        """Sizes of the dimensions."""
        return {
            dim: size
            for variable in self.variables.values()
            for dim, size in zip(variable.dims, variable.shape, strict=True)
        }


def _data(variable: xr.Variable) -> Any:
    """Return what a variable holds: an array in memory, or one that dask is still to compute."""
    data = variable.data
    if type(data) is np.ndarray or is_dask(data) or gathered.is_sparse(data):
        return data
    return variable.values


@dataclass
class _Findings:
    """Problems found so far; every check adds to it and none stops the others."""

    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        self.problems.append(problem)

    def check(self, function: Any, *args: Any) -> Any:
        """Call ``function``; a ValueError or TypeError becomes a problem, the result None."""
        try:
            return function(*args)
        except (ValueError, TypeError) as error:
            self.add(str(error))
            return None


def infer_kind(ds: xr.Dataset | Draft) -> Kind | None:
    """Return the kind of ``ds`` from its stamp, or else its variables and dims."""
    found = gathered.patterns(ds.variables)
    dims = {name: gathered.expanded(var.dims, found) for name, var in ds.variables.items()}
    return schema.infer(dims, ds.attrs)


def problems(ds: xr.Dataset) -> list[str]:
    """Return what keeps ``ds`` from being stored; an empty list means nothing does.

    >>> problems(xr.Dataset({"weights": (("pre", "post"), [[1.0]])}))
    ['timestamp is missing; expected a scalar coordinate: ds.assign_coords(timestamp=...)']
    """
    try:
        examine(ds)
    except ValidationError as error:
        return list(error.problems)
    return []


def misfits(variables: Mapping[Hashable, xr.Variable], kind: Kind) -> list[str]:
    """Return where names, dimensions, sizes and dtypes are no record's; no value is read."""
    found = _Findings()
    draft = Draft(dict(variables), frozenset(), {})
    _check_variables(draft.variables, draft, kind, found, gathered.patterns(draft.variables))
    for name, variable in variables.items():
        for dim, size in zip(variable.dims, variable.shape, strict=True):
            if draft.sizes[dim] != size:
                found.add(f"{name}: {dim} is {size} long, elsewhere {draft.sizes[dim]}")
    return found.problems


def examine(given: xr.Dataset | Draft) -> Record:
    """Return the record that a Dataset is.

    Raises
    ------
    ValidationError
        Names every problem of the Dataset at once.
    """
    ds = given if isinstance(given, Draft) else Draft.of(given)
    found = _Findings()
    kind = _kind(ds, found)
    record = _record(ds, kind, found) if kind is not None else None
    if found.problems or record is None:
        raise ValidationError.of(kind.name if kind else "Dataset", found.problems)
    return record


def examine_tree(tree: xr.DataTree) -> dict[str, Record]:
    """Return the records of a tree by node path; nodes that hold nothing are no records."""
    found = {
        node.path: node.to_dataset()
        for node in tree.subtree
        if node.data_vars or node.to_dataset(inherit=False).attrs.get("kind")
    }
    if not found:
        raise ValidationError("the tree has no node with variables, expected at least one record")
    return {path: examine(ds) for path, ds in found.items()}


def _kind(ds: Draft, found: _Findings) -> Kind | None:
    if "kind" in ds.attrs:
        kind: Kind | None = found.check(schema.kind_of, ds.attrs["kind"])
        return kind
    kind = infer_kind(ds)
    if kind is None:
        held = ", ".join(f"{name!r} {var.dims}" for name, var in ds.variables.items()) or "nothing"
        found.add(
            f"no record kind fits its variables ({held}); use a builder such as "
            f"neurostore.spike_train(), or set attrs['kind'] to one of {', '.join(schema.KINDS)}"
        )
    return kind


def _record(ds: Draft, kind: Kind, found: _Findings) -> Record | None:
    timestamp = found.check(_timestamp, ds)
    name = found.check(_name, ds, kind)
    attrs = found.check(_attrs, ds, kind)
    variables = dict(ds.variables)
    taken = frozenset(variables) | ds.sizes.keys()
    _drop_derived_time(variables, timestamp)
    patterns = gathered.patterns(variables)
    _check_variables(variables, ds, kind, found, patterns)
    for odd in gathered.odd_patterns(variables, ds.sizes) if patterns else ():
        found.add(odd)
    stamp = variables.pop(schema.TIMESTAMP, None)
    columns = [
        column
        for key, variable in variables.items()
        if (column := found.check(_column, key, variable, key in ds.coordinates, taken)) is not None
    ]
    for rule in kind.variables:
        if rule.finite:
            values = next((c.values for c in columns if c.name == rule.name), None)
            if isinstance(values, Deferred):
                values.examine = partial(_refuse_odd, kind, rule)
            problem = odd_values(rule, values)
            if problem is not None:
                found.add(problem)
    if found.problems:
        return None
    own = stamp.attrs if stamp is not None else schema.TIMESTAMP_ATTRS
    stamped = _timestamp_column(timestamp, own, columns)
    return _assemble(ds.sizes, kind, name, attrs, columns, stamped, patterns)


def _timestamp(ds: Draft) -> float:
    stamp = ds.variables.get(schema.TIMESTAMP)
    if stamp is not None and stamp.ndim:
        raise ValueError(f"timestamp has dims {stamp.dims}, expected a scalar coordinate")
    for source in (schema.TIMESTAMP, schema.TIME):
        variable = ds.variables.get(source)
        if variable is not None and variable.ndim == 0:
            return times.to_seconds(variable.values[()], "timestamp")
    raise ValueError(
        "timestamp is missing; expected a scalar coordinate: ds.assign_coords(timestamp=...)"
    )


def _name(ds: Draft, kind: Kind) -> str:
    if kind.label is not None:
        if kind.label not in ds.attrs:
            raise ValueError(f"attrs[{kind.label!r}] is missing; expected the name as text")
        return names.check_name(ds.attrs[kind.label], kind.label)
    if kind.mapping == "variables":
        layers = (key for key in ds.variables if key not in ds.coordinates)
        return ",".join(_original(key, ds.variables[key].attrs) for key in layers)
    return ""


def _original(name: Hashable, attrs: Mapping[Any, Any]) -> str:
    return str(attrs.get(ORIGINAL_NAME, name))


def _attrs(ds: Draft, kind: Kind) -> dict[str, Any]:
    """Attributes for the first part; those for every part are added where it is written."""
    rest = {
        key: value
        for key, value in ds.attrs.items()
        if key not in ("kind", kind.label, kind.details)
    }
    stored = types.attrs_to_stored(rest, "attrs", taken=_STAMPS)
    if kind.details in ds.attrs:
        stored[kind.details] = _details(ds.attrs[kind.details], kind.details)
    return stored


_STAMPS = frozenset({"kind", "id", "schema_version", "coordinates", "content_hash", "recording"})


def _details(value: Any, what: str) -> str:
    """JSON text is kept to the letter, so that what was written is what comes back."""
    if not isinstance(value, str):
        return types.to_json(value, what)
    try:
        json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is text that is not JSON ({error}); pass a dict") from None
    return value


def _drop_derived_time(variables: dict[Hashable, Plain], timestamp: float | None) -> None:
    """Leave out the decoded ``time``, which follows from the timestamp."""
    variable = variables.get(schema.TIME)
    if timestamp is None or variable is None or variable.ndim or variable.dtype.kind != "M":
        return
    if variable.values[()] == times.decoded(timestamp) or schema.TIMESTAMP not in variables:
        del variables[schema.TIME]


#: Names, dimensions and dtypes that were found to be right, and for which row: the records of a
#: run are alike.
_right: dict[tuple[Any, ...], Kind] = {}
_REMEMBERED = 256


def _check_variables(
    variables: Mapping[Hashable, Plain],
    ds: Draft,
    kind: Kind,
    found: _Findings,
    patterns: gathered.Patterns,
) -> None:
    if kind.check is not None:
        for problem in kind.check(ds.sizes):
            found.add(problem)
    form = tuple([(name, each.dims, each.dtype) for name, each in variables.items()])
    if not patterns and _right.get((kind.name, *form)) is kind:
        return
    before = len(found.problems)
    if kind.mapping != "variables":
        _check_against_rows(variables, kind, found, patterns)
    for name, variable in variables.items():
        if not isinstance(name, str):
            found.add(f"variable {name!r} has a name that is a {type(name).__name__}, expected str")
        for dim in variable.dims:
            if not isinstance(dim, str):
                found.add(f"{name!r} has the dimension {dim!r}, expected a str")
    if len(found.problems) == before and not patterns:
        if len(_right) >= _REMEMBERED:
            _right.clear()
        _right[kind.name, *form] = kind


def _check_against_rows(
    variables: Mapping[Hashable, Plain],
    kind: Kind,
    found: _Findings,
    patterns: gathered.Patterns,
) -> None:
    for row in kind.variables:
        variable = variables.get(row.name)
        if variable is None:
            if row.required:
                found.add(f"{row.name} is missing; expected dims {_shown(row)}")
            continue
        if not row.allows(gathered.expanded(variable.dims, patterns), kind.grows):
            found.add(f"{row.name} has dims {variable.dims}, expected {_shown(row)}")
        if variable.dtype.kind not in row.kinds + "OT":
            found.add(f"{row.name} has dtype {variable.dtype}, expected numbers")
    if not any(row.name in variables for row in kind.variables):
        expected = ", ".join(row.name for row in kind.variables)
        found.add(f"no variable of the kind is there; expected at least one of {expected}")


def odd_values(row: schema.Variable, values: Any, start: int = 0) -> str | None:
    """Return what is wrong with the values of a variable that must be finite, if anything is.

    Values that are not in memory yet are looked at when they are made, piece by piece.

    Parameters
    ----------
    start
        Position of the first.
    """
    if not row.finite or not isinstance(values, np.ndarray) or values.dtype.kind not in "fc":
        return None
    fine = np.isfinite(values)
    if fine.all():
        return None
    odd = np.flatnonzero(~fine.reshape(-1))
    return (
        f"{row.name} has {len(odd)} values that are NaN or infinite, the first at position "
        f"{start + odd[0]}; an event without a time cannot be found again, leave it out"
    )


def _refuse_odd(
    kind: Kind, row: schema.Variable, made: np.ndarray[Any, Any], start: tuple[int, ...]
) -> None:
    """Raise while a piece is written, which undoes the commit."""
    problem = odd_values(row, made, start[0])
    if problem is not None:
        raise ValidationError.of(kind.name, [problem])


def _shown(row: schema.Variable) -> str:
    return " or ".join(str(dims) for dims in row.dims) or "any"


def _column(
    name: Hashable, variable: Plain, coordinate: bool, taken: frozenset[Hashable]
) -> Column:
    text = names.check_name(name, "variable name")
    values, extra_dims, ours = _in_store(variable, text, coordinate)
    dims = tuple(map(str, variable.dims))
    attrs = variable.attrs
    shown = text
    if "/" in text:  # xarray takes it, DataTree and HDF5 do not
        shown = _free(names.escape_variable(text), taken)
        attrs = {**attrs, ORIGINAL_NAME: text}
    if name == schema.TIME and coordinate and "axis" not in attrs:
        attrs = {**attrs, "axis": "T"}
    return Column(
        name=shown,
        dims=dims + tuple(_free(dim, taken) for dim in extra_dims),
        values=values,
        attrs=_packed(attrs, ours, text),
        coordinate=coordinate,
        logical=types.logical_dtype(values.dtype, ours),
        units=str(attrs.get("units", "")),
    )


def _in_store(
    variable: Plain, name: str, coordinate: bool
) -> tuple[Any, tuple[str, ...], dict[str, Any]]:
    """Return values in the form they take on disk, dimensions of ours, attributes to undo it."""
    data = variable.values
    later = deferred(data, coordinate) if is_dask(data) else None
    if later is None:
        array = _at_once(data, name)
        later = deferred(array, coordinate)
    if later is not None:
        return later, later.extra_dims, later.attrs
    try:
        stored = types.to_stored(array)
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds text that UTF-8 cannot hold: {error}") from None
    return stored.values, stored.extra_dims, stored.attrs


def _at_once(data: Any, name: str) -> np.ndarray[Any, Any]:
    """Return values in memory; those of dask are computed in this thread.

    Others may be waiting for the file that it holds.
    """
    odd = is_dask(data) and data.dtype.kind not in "OT" and not types.is_storable(data.dtype)
    if is_dask(data) and not odd:
        data = data.compute(scheduler="synchronous")
    try:
        array = types.as_numpy(data) if not odd else data
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    if not types.is_storable(array.dtype):
        raise TypeError(f"{name} has dtype {array.dtype}, which netCDF-4 cannot hold exactly")
    return array


def _free(dim: str, taken: frozenset[Hashable]) -> str:
    """Return a name for a dimension of our own that the user has not given to one of theirs."""
    while dim in taken:
        dim = f"_{dim}"
    return dim


def _packed(attrs: Mapping[Any, Any], ours: Mapping[str, Any], where: str) -> tuple[Packed, ...]:
    """Return the attributes of a variable, ready to be written; the common ones from memory."""
    try:
        return _packed_once(tuple(attrs.items()), tuple(ours.items()), where)
    except TypeError:  # an attribute that cannot be hashed, or not be stored: say which
        return _pack(attrs, ours, where)


@lru_cache(maxsize=1024, typed=True)
def _packed_once(
    attrs: tuple[tuple[Any, Any], ...], ours: tuple[tuple[str, Any], ...], where: str
) -> tuple[Packed, ...]:
    if not all(type(value) is str for _, value in attrs):
        raise TypeError("only text is told apart by its hash: 1, 1.0 and True are not")
    return _pack(dict(attrs), dict(ours), where)


def _pack(attrs: Mapping[Any, Any], ours: Mapping[str, Any], where: str) -> tuple[Packed, ...]:
    stored = types.attrs_to_stored(attrs, f"{where}.attrs", taken=ours.keys())
    return tuple(pack(key, value) for key, value in {**stored, **ours}.items())


def _assemble(
    sizes: Mapping[Hashable, int],
    kind: Kind,
    name: str,
    attrs: dict[str, Any],
    columns: list[Column],
    stamp: Column,
    patterns: gathered.Patterns,
) -> Record:
    coordinates = [column for column in columns if column.coordinate]
    structure = _structure(sizes, kind, [*columns, stamp])
    return Record(
        kind=kind,
        timestamp=float(stamp.values),
        name=name,
        pieces=_pieces(kind, columns, stamp, name, attrs, structure, patterns),
        structure=structure,
        labels=_labels(coordinates, kind.elastic if kind.combine == "ragged" else None),
        length=int(sizes.get(kind.elastic, 0)) if kind.elastic else 0,
    )


def _pieces(
    kind: Kind,
    columns: list[Column],
    stamp: Column,
    name: str,
    attrs: dict[str, Any],
    structure: str,
    patterns: gathered.Patterns,
) -> tuple[Piece, ...]:
    """Deal the variables to the parts: a coordinate goes wherever all its dims are used."""
    dealt: list[tuple[str, list[Column]]] = []
    for part in kind.parts:
        own = {row.name for row in part.variables}
        mine = [c for c in columns if c.name in own] if kind.mapping != "variables" else columns
        if mine or kind.mapping == "variables":
            dealt.append((part.path, list(mine)))
    rows = {row.name for row in kind.variables}
    for column in columns:
        if column.name not in rows and kind.mapping != "variables":
            for target in _homes(column, dealt, patterns):
                target.append(column)
    named = [name for column in [*columns, stamp] for name in (column.name, *column.dims)]
    links = names.links(tuple(dict.fromkeys(named)))
    return tuple(
        _piece(path, [*mine, stamp], kind, name, attrs if number == 0 else {}, links, structure)
        for number, (path, mine) in enumerate(dealt)
    )


def _homes(
    column: Column, dealt: list[tuple[str, list[Column]]], patterns: gathered.Patterns
) -> list[list[Column]]:
    own = set(column.dims)
    fitting = []
    for _, mine in dealt:
        dims = {dim for c in mine for dim in c.dims} | _extra_dims(column)
        if own <= dims | set(gathered.expanded(dims, patterns)):
            fitting.append(mine)
    if column.coordinate and fitting:
        return fitting
    return fitting[:1] or [dealt[0][1]]


def _extra_dims(column: Column) -> set[str]:
    return set(column.dims[-1:]) if types.drops_last_dim(column.logical) else set()


def _timestamp_column(timestamp: float, own: Mapping[Any, Any], columns: list[Column]) -> Column:
    """Exactly one T axis: ``time`` where it is a coordinate of the record, else ``timestamp``."""
    has_time = any(column.name == schema.TIME and column.coordinate for column in columns)
    attrs = {**schema.TIMESTAMP_ATTRS, **own}
    if has_time:
        del attrs["axis"]
    packed = _packed(attrs, {}, schema.TIMESTAMP)
    stamp = np.asarray(timestamp)
    return Column(schema.TIMESTAMP, (), stamp, packed, True, stamp.dtype.str, "s")


def _piece(
    path: str,
    columns: list[Column],
    kind: Kind,
    name: str,
    attrs: dict[str, Any],
    links: dict[str, str],
    structure: str,
) -> Piece:
    stamped: dict[str, Any] = {"kind": kind.name, "schema_version": schema.SCHEMA_VERSION}
    if kind.label is not None:
        stamped[kind.label] = name
    stamped.update(attrs)
    auxiliary = tuple(links[c.name] for c in columns if c.coordinate and c.dims[:1] != (c.name,))
    return Piece(path, tuple(columns), stamped, auxiliary, links, structure)


def _structure(sizes: Mapping[Hashable, int], kind: Kind, columns: Iterable[Column]) -> str:
    fixed = tuple((str(dim), size) for dim, size in sizes.items() if dim != kind.elastic)
    described = tuple((c.name, c.logical, c.dims, c.coordinate, c.units, c.attrs) for c in columns)
    return _structure_text(fixed, described)


@lru_cache(maxsize=1024)
def _structure_text(
    sizes: tuple[tuple[str, int], ...],
    columns: tuple[tuple[str, str, tuple[str, ...], bool, str, tuple[Packed, ...]], ...],
) -> str:
    """Canonical JSON; the elastic size is left out, since records differ in it.

    A dimension of characters has its width in its name, so texts of equal structure are equally
    wide; attributes count as a hash.
    """
    variables = {
        name: [logical, dims, int(label), units, _fingerprint(attrs)]
        for name, logical, dims, label, units, attrs in columns
    }
    return json.dumps(
        {"sizes": dict(sizes), "variables": variables}, sort_keys=True, ensure_ascii=False
    )


def _fingerprint(attrs: tuple[Packed, ...]) -> str:
    return hashlib.blake2b(repr(sorted(attrs)).encode(), digest_size=6).hexdigest()


def _labels(coordinates: Iterable[Column], skipped: str | None) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for column in sorted(coordinates, key=lambda column: column.name):
        if column.dims and skipped not in column.dims:
            digest.update(f"{column.name}{column.dims}{column.values.shape}".encode())
            digest.update(column.values.tobytes())
    return int.from_bytes(digest.digest(), "little")
