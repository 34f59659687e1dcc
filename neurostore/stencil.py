"""The structure of a part group: made once per shape and dtype, stamped for every record.

A stencil is a part group in an in-memory HDF5 file, with its dimension scales, attributes and
creation properties, but no data and no references.  ``stamp`` copies it into the store by one
``H5Ocopy`` and then does what differs from record to record: lengths, scale references,
dimension numbers, varying attributes, values.  It writes no chunk itself (``filters`` does) and
knows neither catalogue nor record kinds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5g, h5o, h5p, h5s, h5t

from neurostore import content, filters, h5attrs
from neurostore.filters import Pipeline
from neurostore.h5attrs import Packed
from neurostore.records import LINK_ATTR, Column, Piece

__all__ = ["Layout", "Stamped", "Stencils"]

#: Text of NAME that tells netCDF readers a scale is a dimension without a variable
#: (netCDF-4 format specification, "Dimensions"); the number is not read by anyone.
_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable.         0"
#: Prefix for a variable that has the name of a dimension it does not label (netCDF-C, nc4hdf.c).
_NON_COORD = "_nc4_non_coord_"
#: Type of such a scale, as netCDF-C makes it.
_BARE_DTYPE = ">f4"
_REFERENCES = h5t.vlen_create(h5t.STD_REF_OBJ)
#: Records for which the filters found on one are taken on trust.
_TRUSTED = 31
#: For filters that HDF5 runs: without a chunk cache, the stored size is known at once.
_UNCACHED = h5p.create(h5p.DATASET_ACCESS)
_UNCACHED.set_chunk_cache(0, 0, 1.0)


@dataclass(frozen=True)
class Layout:
    """How the variables of a store are to be laid out: its compression and chunk size."""

    compression: str | None
    level: int | None
    chunk_size: int


@dataclass(frozen=True)
class _Dim:
    link: str
    name: str
    size: int
    elastic: bool


@dataclass(frozen=True)
class _Slot:
    """One variable of a stencil; `axes` are positions in the stencil's dimensions."""

    link: str
    dtype: str
    axes: tuple[int, ...]
    pipeline: Pipeline
    attrs: tuple[Packed, ...]


@dataclass(frozen=True)
class _Plan:
    dims: tuple[_Dim, ...]
    slots: tuple[_Slot, ...]
    attrs: tuple[Packed, ...]
    #: Bytes kept free for the id: room in the object header costs less than a second piece of it.
    id_room: int

    def scale_slot(self, axis: int) -> int | None:
        """Position of the variable that is the scale of a dimension, if one is."""
        link = self.dims[axis].link
        fitting = (i for i, s in enumerate(self.slots) if s.link == link and s.axes[0] == axis)
        return next(fitting, None)


@dataclass(slots=True)
class _Choice:
    """Filters that a sample of an earlier record spoke for, and how long that counts."""

    pipeline: Pipeline
    left: int


_Stamping = tuple[bytes, bool, tuple[tuple[int, int], ...], h5p.PropDAID | None]


@dataclass(frozen=True)
class _Stencil:
    """A template in memory, and what stamping needs to know of it."""

    name: bytes
    #: For each dimension: its link, and whether its scale is elastic.
    scales: tuple[tuple[bytes, bool], ...]
    #: For each variable: link, elastic, attachments (axis, dimension), how to open it.
    slots: tuple[_Stamping, ...]
    #: Variables with several axes that are scales: netCDF-C wants their dimension numbers.
    numbered: tuple[int, ...]
    #: Sum of those items of the content hash that all records of the stencil share.
    shared: int
    #: Text of the shapes of its datasets, cut where the elastic length goes.
    shapes: tuple[bytes, ...]


@dataclass(frozen=True)
class Stamped:
    """What stamping one part came to."""

    bytes: int
    dimensions: int


class Stencils:
    """The stencils of one open file.

    Parameters
    ----------
    limit
        How many are kept; the least recently used goes first.
    """

    def __init__(self, limit: int = 512) -> None:
        self._limit = limit
        self._made: OrderedDict[_Plan, _Stencil] = OrderedDict()
        self._choices: dict[Hashable, _Choice] = {}
        self._count = 0
        self._file = h5py.File(
            f"stencils-{id(self)}", "w", driver="core", backing_store=False, libver=("v110", "v110")
        )

    def close(self) -> None:
        """Let the in-memory file go."""
        self._made.clear()
        self._file.close()

    def stamp(
        self,
        parent: h5g.GroupID,
        leaf: bytes,
        piece: Piece,
        varying: Mapping[str, Any],
        layout: Layout,
        elastic: str | None,
        first_number: int,
    ) -> Stamped:
        """Write ``piece`` as the group ``leaf`` of ``parent``.

        Parameters
        ----------
        varying
            Attributes of this record alone, in the form of ``types.attrs_to_stored``.
        elastic
            Dimension whose length differs between records, if any.
        first_number
            The first free netCDF dimension number of the file.
        """
        plan = self._plan(piece, layout, elastic, -(-len(leaf) // 16) * 16)
        stencil = self._made.get(plan)
        if stencil is None:
            stencil = self._make(plan)
        else:
            self._made.move_to_end(plan)
        h5o.copy(self._file.id, stencil.name, parent, leaf)
        group = h5g.open(parent, leaf)
        h5attrs.fill(group, b"id", leaf, plan.id_room)
        own = [h5attrs.pack(name, value) for name, value in varying.items()]
        for attribute in own:
            h5attrs.write(group, attribute)
        stored, total = _fill(group, stencil, plan, piece.columns, first_number)
        total += content.attributes(b"", [*plan.attrs, (b"id", leaf, True), *own])
        content.fill(group, total)
        return Stamped(stored, len(plan.dims))

    def _plan(self, piece: Piece, layout: Layout, elastic: str | None, id_room: int) -> _Plan:
        sizes = _sizes(piece.columns)
        capacity = 0
        if elastic is not None and _is_elastic(piece, elastic):
            capacity = filters.length_class(sizes[elastic])
        dims = tuple(
            _Dim(
                piece.links[name],
                name,
                capacity if capacity and name == elastic else size,
                bool(capacity) and name == elastic,
            )
            for name, size in sizes.items()
        )
        index = {dim.name: axis for axis, dim in enumerate(dims)}
        slots = tuple(self._slot(piece, column, dims, index, layout) for column in piece.columns)
        attrs = [h5attrs.pack(key, piece.attrs[key]) for key in ("kind", "schema_version")]
        if piece.coordinates:
            attrs.append(h5attrs.pack("coordinates", " ".join(piece.coordinates)))
        return _Plan(dims, slots, tuple(attrs), id_room)

    def _slot(
        self,
        piece: Piece,
        column: Column,
        dims: tuple[_Dim, ...],
        index: Mapping[str, int],
        layout: Layout,
    ) -> _Slot:
        axes = tuple(index[name] for name in column.dims)
        shape = tuple(dims[axis].size for axis in axes)
        is_elastic = any(dims[axis].elastic for axis in axes)
        pipeline = self._pipeline(piece.path, column, shape if is_elastic else None, layout)
        link, attrs = piece.links[column.name], column.attrs
        if column.name in index and column.dims[:1] != (column.name,):
            link = _NON_COORD + link
        if link != column.name:
            attrs = (*attrs, h5attrs.pack(LINK_ATTR, column.name))
        return _Slot(link, column.values.dtype.str, axes, pipeline, attrs)

    def _pipeline(
        self, path: str, column: Column, shape: tuple[int, ...] | None, layout: Layout
    ) -> Pipeline:
        """Choose the filters of a variable, anew for every `_TRUSTED`-th record of its shape.

        Looking at a sample costs as much as encoding it, and the records of a run are alike.
        """
        extent = shape or column.values.shape
        elastic = shape is not None
        key = (path, column.name, column.values.dtype.str, extent, elastic, layout)
        choice = self._choices.get(key)
        if choice is not None and choice.left > 0:
            choice.left -= 1
            return choice.pipeline
        pipeline = filters.choose(
            column.values, layout.compression, layout.level, layout.chunk_size, shape=shape
        )
        if len(self._choices) > self._limit:
            self._choices.clear()
        self._choices[key] = _Choice(pipeline, _TRUSTED)
        return pipeline

    def _make(self, plan: _Plan) -> _Stencil:
        name = str(self._count).encode()
        self._count += 1
        stencil = _draw(self._file, name, plan)
        self._made[plan] = stencil
        if len(self._made) > self._limit:
            _, oldest = self._made.popitem(last=False)
            del self._file[oldest.name]
        return stencil


def _sizes(columns: tuple[Column, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for column in columns:
        sizes.update(zip(column.dims, column.values.shape, strict=True))
    return sizes


def _is_elastic(piece: Piece, elastic: str) -> bool:
    """Short records are stored exactly, in the object header; long ones by size class."""
    return any(
        elastic in column.dims and column.values.nbytes > filters.COMPACT_BYTES
        for column in piece.columns
    )


def _draw(h5file: h5py.File, name: bytes, plan: _Plan) -> _Stencil:
    """Create the template group of ``plan``."""
    properties = h5p.create(h5p.GROUP_CREATE)
    properties.set_link_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)
    properties.set_attr_phase_change(32, 16)
    group = h5g.create(h5file.id, name, gcpl=properties)
    for attribute in plan.attrs:
        h5attrs.write(group, attribute)
    h5attrs.reserve(group, b"id", plan.id_room)
    h5attrs.reserve(group, content.HASH_ATTR, content.SIZE)
    scales = {plan.scale_slot(axis) for axis in range(len(plan.dims))} - {None}
    for number, slot in enumerate(plan.slots):
        _draw_variable(group, slot, plan, number in scales)
    for axis, dim in enumerate(plan.dims):
        if plan.scale_slot(axis) is None:
            _draw_bare_dimension(group, dim)
    return _Stencil(
        name,
        tuple((dim.link.encode(), dim.elastic) for dim in plan.dims),
        tuple(_stamping(slot, plan, number in scales) for number, slot in enumerate(plan.slots)),
        tuple(n for n in scales if n is not None and len(plan.slots[n].axes) > 1),
        _shared(plan, {number for number in scales if number is not None}),
        content.shape_text(_shapes(plan)),
    )


def _shapes(plan: _Plan) -> dict[bytes, tuple[int, ...]]:
    sizes = tuple(-1 if dim.elastic else dim.size for dim in plan.dims)
    shapes = {dim.link.encode(): (size,) for dim, size in zip(plan.dims, sizes, strict=True)}
    return shapes | {s.link.encode(): tuple(sizes[axis] for axis in s.axes) for s in plan.slots}


def _shared(plan: _Plan, scales: set[int]) -> int:
    """Sum up what the content hash says of attributes, types and dimensions of the variables."""
    links = [dim.link.encode() for dim in plan.dims]
    total = 0
    for number, slot in enumerate(plan.slots):
        link = slot.link.encode()
        dims = [] if number in scales else [links[axis] for axis in slot.axes]
        total += content.attributes(link, slot.attrs) + content.variable(link, slot.dtype, dims)
    for axis, dim in enumerate(plan.dims):
        if plan.scale_slot(axis) is None:
            attrs = [h5attrs.pack(LINK_ATTR, dim.name)] if dim.link != dim.name else []
            total += content.attributes(links[axis], attrs)
            total += content.variable(links[axis], _BARE_DTYPE, [])
    return total


def _stamping(slot: _Slot, plan: _Plan, is_scale: bool) -> _Stamping:
    """Return what is to be done to a variable after the copy.

    HDF5 forbids attaching scales to a scale, so those references are numbers only: netCDF-4
    keeps them in ``_Netcdf4Coordinates``.
    """
    elastic = any(plan.dims[axis].elastic for axis in slot.axes)
    attached = () if is_scale else tuple(enumerate(slot.axes))
    by_hdf5 = slot.pipeline.chunks is not None and not slot.pipeline.by_hand
    return slot.link.encode(), elastic, attached, _UNCACHED if by_hdf5 else None


def _draw_variable(group: h5g.GroupID, slot: _Slot, plan: _Plan, is_scale: bool) -> None:
    dtype = np.dtype(slot.dtype)
    sizes = tuple(plan.dims[axis].size for axis in slot.axes)
    elastic = tuple(plan.dims[axis].elastic for axis in slot.axes)
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_attr_phase_change(32, 16)
    slot.pipeline.apply(properties, dtype, sizes)
    space = _space(sizes, elastic)
    dataset = h5d.create(group, slot.link.encode(), h5t.py_create(dtype), space, properties)
    for attribute in slot.attrs:
        h5attrs.write(dataset, attribute)
    if slot.axes and not is_scale:
        # Empty, for attach_scale to fill: the reference itself cannot be copied.
        h5a.create(dataset, b"DIMENSION_LIST", _REFERENCES, h5s.create_simple((len(slot.axes),)))
    if is_scale:
        h5ds.set_scale(dataset, slot.link.encode())
        _number(dataset, 0)
        if len(slot.axes) > 1:
            zeros = np.zeros(len(slot.axes), np.int32)
            h5attrs.write(dataset, h5attrs.pack("_Netcdf4Coordinates", zeros))


def _draw_bare_dimension(group: h5g.GroupID, dim: _Dim) -> None:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    if dim.elastic:
        properties.set_chunk((dim.size,))
    space = _space((dim.size,), (dim.elastic,))
    kind = h5t.py_create(np.dtype(_BARE_DTYPE))
    dataset = h5d.create(group, dim.link.encode(), kind, space, properties)
    h5ds.set_scale(dataset, _NO_VARIABLE)
    _number(dataset, 0)
    if dim.link != dim.name:
        h5attrs.write(dataset, h5attrs.pack(LINK_ATTR, dim.name))


def _space(sizes: tuple[int, ...], elastic: tuple[bool, ...]) -> h5s.SpaceID:
    if not sizes:
        return h5s.create(h5s.SCALAR)
    shape = tuple(0 if bend else size for size, bend in zip(sizes, elastic, strict=True))
    return h5s.create_simple(shape, sizes)


def _number(dataset: h5d.DatasetID, number: int) -> None:
    h5attrs.write(dataset, h5attrs.pack("_Netcdf4Dimid", np.int32(number)))


def _fill(
    group: h5g.GroupID,
    stencil: _Stencil,
    plan: _Plan,
    columns: tuple[Column, ...],
    first_number: int,
) -> tuple[int, int]:
    """Do what differs from record to record; return stored bytes and content hash."""
    opened = [h5d.open(group, link, access) for link, _, _, access in stencil.slots]
    by_link = {slot[0]: dataset for slot, dataset in zip(stencil.slots, opened, strict=True)}
    sizes = _sizes(columns)
    length = next((sizes[dim.name] for dim in plan.dims if dim.elastic), 0)
    scales = []
    for axis, (link, elastic) in enumerate(stencil.scales):
        scale = by_link.get(link) or h5d.open(group, link)
        if elastic and link not in by_link:
            scale.set_extent((sizes[plan.dims[axis].name],))
        h5attrs.overwrite(scale, b"_Netcdf4Dimid", np.array(first_number + axis, np.int32))
        scales.append(scale)
    for number, (_, elastic, attached, _) in enumerate(stencil.slots):
        dataset, column = opened[number], columns[number]
        if elastic:
            dataset.set_extent(column.values.shape)
        for position, axis in attached:
            h5ds.attach_scale(dataset, scales[axis], position)
        if number in stencil.numbered:
            numbers = np.array([first_number + axis for axis in plan.slots[number].axes], np.int32)
            h5attrs.overwrite(dataset, b"_Netcdf4Coordinates", numbers)
    total = stencil.shared + content.sizes_with(stencil.shapes, length)
    # Chunks last: they then lie side by side, and go out in one piece.
    stored = 0
    checksums: list[filters.Checksum] = []
    for (link, *_), dataset, column, slot in zip(
        stencil.slots, opened, columns, plan.slots, strict=True
    ):
        stored += filters.write(dataset, column.values, slot.pipeline, checksums)
        if slot.pipeline.chunks is None and column.values.size:
            total += content.values(link, column.values.tobytes())
        for offset, checksum in checksums:
            total += content.chunk(link, offset, checksum)
        checksums.clear()
    return stored, total
