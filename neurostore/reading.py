"""From the groups of a record to its labelled, lazy Dataset.

Reading is more tolerant than writing: groups without dimension scales and bare datasets, as
plain h5py code writes them for this tree, get the default dimensions of their kind.  This module
reads structure and attributes; values are left to the lazy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from h5py import h5d, h5ds, h5g, h5o, h5s

from neurostore import filters, guard, h5attrs, headers, schema, times, types
from neurostore.arrays import Place, Source, StoredArray, lazy
from neurostore.content import HASH_ATTR, RECORDING_ATTR
from neurostore.damage import UNREADABLE
from neurostore.errors import DamagedError
from neurostore.index import with_event_index
from neurostore.patterns import pattern_coords
from neurostore.records import LINK_ATTR
from neurostore.scales import address_of, attached, referrers
from neurostore.schema import Kind

__all__ = ["NON_COORD", "Item", "Part", "dataset", "items_of", "look", "record"]

_BARE = b"This is a netCDF dimension but not a netCDF variable"
#: Before the name of a variable that is named like a dimension and holds no labels of it.
NON_COORD = "_nc4_non_coord_"


@dataclass(frozen=True)
class Part:
    """One part group as it was found: variables, which of them are coordinates, attributes."""

    variables: dict[str, xr.Variable]
    coordinates: frozenset[str]
    attrs: dict[str, Any]
    places: dict[str, Place]

    def of_another(
        self, path: str, attrs: dict[str, Any], source: Source, elastic: str | None, length: int
    ) -> Part:
        """Return the part at ``path``, of a record whose structure is known to be this one's."""
        variables: dict[str, xr.Variable] = {}
        places: dict[str, Place] = {}
        for name, variable in self.variables.items():
            old = self.places[name]
            shape = tuple(
                length if dim == elastic else size
                for dim, size in zip(variable.dims, old.shape, strict=True)
            )
            link = old.address.rpartition("/")[2]
            address = f"{path}/{link}"
            place = Place(source, address, old.logical, old.dtype, shape, old.stored)
            places[name] = place
            dims = tuple(map(str, variable.dims))
            variables[name] = lazy(dims, StoredArray(place), dict(variable.attrs))
        return Part(variables, self.coordinates, attrs, places)


@dataclass(frozen=True, slots=True)
class Item:
    """One dataset of a group, before its dimensions are known by name."""

    link: bytes
    name: str
    address: int
    is_scale: bool
    bare: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]
    #: None where its header was read past HDF5.
    opened: h5d.DatasetID | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dataset(self) -> h5d.DatasetID:
        """The open dataset; what `items_of` returns has it."""
        assert self.opened is not None
        return self.opened


def look(
    parent: h5g.GroupID,
    path: str,
    source: Source,
    kind: Kind | None,
    known: h5g.GroupID | None = None,
) -> Part:
    """Return what stands at ``path``: the group that is ``known``, or what is found there.

    Raises
    ------
    KeyError
        Nothing does.
    RefusedError
        The way there, or something there, leads elsewhere.
    """
    if known is None:
        guard.check_path(parent, path.encode())
    seen = _in_headers(parent, path) if known is None and kind is not None else None
    if seen is None:
        found = known or h5o.open(parent, path.encode())
        if isinstance(found, h5d.DatasetID):
            guard.check_dataset(found, path)
            return _look_at_leaf(found, path, source, kind)
        seen = h5attrs.read_all(found), *items_of(parent, found, path, kind)
    attrs, items, dims = seen
    group_attrs = dict(attrs)
    listed = str(group_attrs.get("coordinates", "")).split()
    variables: dict[str, xr.Variable] = {}
    places: dict[str, Place] = {}
    coordinates = set()
    for item in items:
        if not item.bare:
            address = f"{path}/{item.link.decode()}"
            variables[item.name] = _variable(item, address, dims[item.link], source, places)
            if item.is_scale or item.link.decode() in listed:
                coordinates.add(item.name)
    if kind is not None and "kind" not in group_attrs:
        _complete(variables, kind)
    if kind is not None:
        coordinates |= {row.name for row in kind.variables if row.coordinate} & variables.keys()
    return Part(variables, frozenset(coordinates), _record_attrs(attrs), places)


Seen = tuple[list[tuple[str, Any]], list[Item], dict[bytes, tuple[str, ...]]]


def _in_headers(parent: h5g.GroupID, path: str) -> Seen | None:
    """Return what :func:`look` wants of a group as neurostore wrote it, past HDF5.

    None where there is anything else, or it cannot be read so.
    """
    descriptor = filters.descriptor_of(parent)
    found = None
    if descriptor >= 0:
        found = headers.contents(descriptor, parent.links.get_info(path.encode()).u)
    if found is None:
        return None
    attrs, datasets = found
    pairs = [
        (
            _item_of(
                link, h.address, h.scale_name if h.is_scale else None, h.shape, h.dtype, h.attrs
            ),
            h,
        )
        for link, h in datasets.items()
    ]
    scales = [(item, header) for item, header in pairs if item.is_scale]
    told = {place: item.name for item, header in scales for place in header.attached}
    by_number = {header.number: item.name for item, header in scales if header.number >= 0}
    dims = {}
    for item, header in pairs:
        axes: list[str | None] = [told.get((item.address, axis)) for axis in range(item.rank)]
        if item.is_scale:
            axes = [item.name] if item.rank == 1 else [by_number.get(n) for n in header.numbers]
        dims[item.link] = tuple(axis for axis in axes if axis is not None)
        if len(dims[item.link]) != item.rank:
            return None
    return attrs, [item for item, _ in pairs], dims


def items_of(
    parent: h5g.GroupID, group: h5g.GroupID, path: str, kind: Kind | None
) -> tuple[list[Item], dict[bytes, tuple[str, ...]]]:
    """Return the datasets of the group at ``path``, and the dimensions of each by its link.

    Raises
    ------
    RefusedError
        Something there leads elsewhere.
    """
    opened = _opened(parent, group, path)
    items = [_item(link, item) for link, item in opened if isinstance(item, h5d.DatasetID)]
    # Only others have dimensions from the groups around: those of a record have many neighbours.
    return items, _dimensions(items, kind, lambda: {} if kind else _scales_above(parent, path))


def _scales_above(root: h5g.GroupID, path: str) -> dict[int, str]:
    """Return the dimensions that a group has from those around it, by address; inner ones win."""
    above: dict[int, str] = {}
    parts = path.split("/")[:-1]
    for depth in range(len(parts) + 1):
        group = h5g.open(root, "/".join(parts[:depth]).encode()) if depth else root
        for link in group:
            with suppress(*UNREADABLE):  # damage there is not the affair of this group
                item = h5o.open(group, link) if guard.is_hard(group, link) else None
                if isinstance(item, h5d.DatasetID) and h5ds.is_scale(item):
                    above[address_of(item)] = link.decode()
    return above


def _opened(
    parent: h5g.GroupID, group: h5g.GroupID, path: str
) -> Iterator[tuple[bytes, h5d.DatasetID | h5g.GroupID]]:
    """Open what stands in a group, if it may be."""
    for link in group:
        if not guard.is_hard(group, link):
            guard.check_path(parent, path.encode() + b"/" + link)
        item = h5o.open(group, link)
        if isinstance(item, h5d.DatasetID):
            guard.check_dataset(item, f"{path}/{link.decode('utf-8', 'replace')}")
        yield link, item


def _complete(variables: dict[str, xr.Variable], kind: Kind) -> None:
    """Add what others leave unsaid: the usual unit, and names that stand in an attribute."""
    for row in kind.variables:
        variable = variables.get(row.name)
        if variable is None:
            continue
        if "units" in row.attrs:
            variable.attrs.setdefault("units", row.attrs["units"])
        for key in (kind.elastic, "names"):
            labels = variable.attrs.get(key)
            if kind.elastic not in variables and isinstance(labels, list):
                variables[str(kind.elastic)] = xr.Variable(kind.elastic, labels)
                del variable.attrs[key]


def own_attrs(parent: h5g.GroupID, path: str) -> dict[str, Any]:
    """Return the attributes of a part that records of equal structure differ in.

    Of the way there only the last link is checked: the others are those of the record whose
    structure is known, and were checked when it was looked at.
    """
    if path != "." and not guard.is_hard(parent, path.encode()):
        guard.check_path(parent, path.encode())
    return _record_attrs(h5attrs.read_all(h5g.open(parent, path.encode()), skip=_STAMPED))


_STAMPED = frozenset({b"kind", b"id", b"schema_version", b"coordinates", HASH_ATTR, RECORDING_ATTR})


def _record_attrs(found: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return types.attrs_from_stored((k, v) for k, v in found if k.encode() not in _STAMPED)


def _item(link: bytes, dataset: h5d.DatasetID) -> Item:
    scale = h5ds.get_scale_name(dataset) if h5ds.is_scale(dataset) else None
    attrs = dict(h5attrs.read_all(dataset))
    return _item_of(link, address_of(dataset), scale, dataset.shape, dataset.dtype, attrs, dataset)


def _item_of(
    link: bytes,
    address: int,
    scale: bytes | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    attrs: dict[str, Any],
    opened: h5d.DatasetID | None = None,
) -> Item:
    name = str(attrs.get(LINK_ATTR, link.decode()))
    bare = scale is not None and scale.startswith(_BARE)
    return Item(link, name, address, scale is not None, bare, shape, dtype, attrs, opened)


class _Scales:
    """Names of scales by address: those of a group, and if need be of the groups around it."""

    def __init__(self, own: Mapping[int, str], above: Callable[[], dict[int, str]]) -> None:
        self._known = dict(own)
        self._above: Callable[[], dict[int, str]] | None = above

    def of(self, dataset: h5d.DatasetID, axis: int) -> str | None:
        """Return the name of the scale that a dataset says its axis has, or None."""
        found = attached(dataset, axis)
        if found is not None and found not in self._known and self._above is not None:
            self._known = self._above() | self._known
            self._above = None
        return None if found is None else self._known.get(found)


def _dimensions(
    items: Sequence[Item], kind: Kind | None, above: Callable[[], dict[int, str]]
) -> dict[bytes, tuple[str, ...]]:
    """Names of the dimensions of every dataset, by the scales attached to it.

    Scales are matched by object address, and asked first: see ``neurostore.scales``.  Those of
    the groups around are looked up with ``above`` where one is missing.
    """
    by_address = {item.address: item.name for item in items if item.is_scale}
    told = {
        place: item.name for item in items if item.is_scale for place in referrers(item.dataset)
    }
    by_number = (
        {
            int(number): item.name
            for item in items
            if item.is_scale
            and (number := h5attrs.read_one(item.dataset, b"_Netcdf4Dimid")) is not None
        }
        if any(item.is_scale and item.rank > 1 for item in items)
        else {}
    )
    scales = _Scales(by_address, above)
    dims = {item.link: _dims_of(item, told, scales, by_number) for item in items}
    bare_names = {item.link.decode().removeprefix(NON_COORD): item for item in items}
    if any(None in found for found in dims.values()):
        defaults = default_dims({name: it.shape for name, it in bare_names.items()}, kind)
        for name, item in bare_names.items():
            dims[item.link] = tuple(
                known or default
                for known, default in zip(dims[item.link], defaults[name], strict=True)
            )
    return {link: tuple(str(dim) for dim in found) for link, found in dims.items()}


def _dims_of(
    item: Item,
    told: Mapping[tuple[int, int], str],
    scales: _Scales,
    by_number: Mapping[int, str],
) -> tuple[str | None, ...]:
    if item.is_scale:
        if item.rank <= 1:
            return (item.name,) * item.rank
        numbers = h5attrs.read_one(item.dataset, b"_Netcdf4Coordinates")
        if numbers is None:
            return (item.name, *(None,) * (item.rank - 1))
        return tuple(by_number.get(int(number)) for number in numbers)
    return tuple(
        told.get((item.address, axis)) or scales.of(item.dataset, axis) for axis in range(item.rank)
    )


def default_dims(
    shapes: Mapping[str, tuple[int, ...]], kind: Kind | None
) -> dict[str, tuple[str, ...]]:
    """Return dimensions for arrays that have no scales: those of the kind, else numbered ones.

    A column with the name of a dimension of the kind holds its labels.
    """
    if kind is not None and kind.mapping == "variables":
        return schema.layer_dims(shapes)
    known = {dim for row in kind.variables for rule in row.dims for dim in rule} if kind else set()
    result = {}
    for name, shape in shapes.items():
        row = kind.variable(name) if kind is not None else None
        dims = row.dims_for(len(shape)) if row is not None else None
        if len(shape) == 1 and name in known:
            dims = (name,)
        result[name] = dims or tuple(f"{name}_dim_{axis}" for axis in range(len(shape)))
    return result


def _look_at_leaf(dataset: h5d.DatasetID, path: str, source: Source, kind: Kind | None) -> Part:
    """Take a bare dataset for the first variable of its kind, its attributes for the record's."""
    name = kind.variables[0].name if kind is not None else path.rsplit("/", 1)[-1]
    attrs = h5attrs.read_all(dataset)
    item = _item_of(name.encode(), 0, None, dataset.shape, dataset.dtype, {}, dataset)
    dims = default_dims({name: dataset.shape}, kind)[name]
    places: dict[str, Place] = {}
    variables = {name: _variable(item, path, dims, source, places)}
    return Part(variables, frozenset(), types.attrs_from_stored(attrs), places)


def _variable(
    item: Item, address: str, dims: tuple[str, ...], source: Source, places: dict[str, Place]
) -> xr.Variable:
    stored = item.dtype
    attrs = dict(item.attrs)
    logical = types.logical_dtype(stored, attrs)
    if stored.kind == "O":
        return _variable_text(item, address, dims)
    place = Place.of(source, address, logical, stored, item.shape)
    places[item.name] = place
    for carried in {"M": ("units", "calendar"), "m": ("units",)}.get(place.dtype.kind, ()):
        attrs.pop(carried, None)
    shown = types.attrs_from_stored(attrs.items())
    return lazy(dims[: len(place.shape)], StoredArray(place), shown)


def _variable_text(item: Item, address: str, dims: tuple[str, ...]) -> xr.Variable:
    """Strings of varying length, which only other people write: read at once, as text."""
    raw = np.empty(item.shape, item.dtype)
    try:
        item.dataset.read(h5s.ALL, h5s.ALL, raw)
    except OSError as error:
        raise DamagedError(f"{address}: cannot be read: {error}") from error
    text = [t.decode("utf-8", "surrogateescape") if isinstance(t, bytes) else t for t in raw.flat]
    values = np.array(text, np.str_).reshape(raw.shape)
    return xr.Variable(dims, values, types.attrs_from_stored(item.attrs.items()))


def record(parts: Sequence[Part], kind: Kind, timestamp: float, name: str) -> xr.Dataset:
    """Merge the parts of one record into its Dataset.

    Raises
    ------
    DamagedError
        Its variables disagree about the size of a dimension.
    """
    variables: dict[str, xr.Variable] = {}
    coordinates: set[str] = set()
    for part in parts:
        for key, variable in part.variables.items():
            variables.setdefault(key, variable)
        coordinates |= part.coordinates
    attrs: dict[str, Any] = {"kind": kind.name}
    if kind.label is not None:
        attrs[kind.label] = name
    for part in parts:
        for key, value in part.attrs.items():
            attrs.setdefault(key, value)
    _add_times(variables, coordinates, timestamp)
    try:
        return dataset(variables, coordinates, attrs, kind)
    except ValueError as error:
        addresses = ", ".join(place.address for part in parts for place in part.places.values())
        raise DamagedError(
            f"variables that are no record together: {error} ({addresses})"
        ) from None


def _add_times(variables: dict[str, xr.Variable], coordinates: set[str], timestamp: float) -> None:
    stored = variables.get(schema.TIMESTAMP)
    attrs = stored.attrs if stored is not None else schema.TIMESTAMP_ATTRS
    variables[schema.TIMESTAMP] = xr.Variable((), np.asarray(timestamp), attrs, fastpath=True)
    coordinates.add(schema.TIMESTAMP)
    taken = schema.TIME in variables or any(schema.TIME in v.dims for v in variables.values())
    moment = times.decoded(timestamp)
    if not taken and moment is not None:
        date = np.asarray(moment)
        variables[schema.TIME] = xr.Variable((), date, schema.TIME_ATTRS, fastpath=True)
        coordinates.add(schema.TIME)


def dataset(
    variables: Mapping[str, xr.Variable],
    coordinates: set[str] | frozenset[str],
    attrs: Mapping[str, Any],
    kind: Kind | None,
) -> xr.Dataset:
    """Put variables together; spike trains get the event index."""
    data = {key: variable for key, variable in variables.items() if key not in coordinates}
    coords = {key: variable for key, variable in variables.items() if key in coordinates}
    ds = xr.Dataset(data, pattern_coords(coords), dict(attrs))
    if kind is not None and kind.combine == "ragged":
        ds = with_event_index(ds)
    return ds
