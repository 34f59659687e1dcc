"""The template of a part group: its dimension scales, variables and attributes, drawn in memory.

What is drawn holds no chunk and no reference; the variables that are scalars, and the attributes
that differ from record to record, stay open for whoever copies it.  This module neither copies
nor chooses filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5g, h5p, h5s, h5t

from neurostore import content, h5attrs
from neurostore.filters import Pipeline
from neurostore.h5attrs import Packed
from neurostore.records import LINK_ATTR

__all__ = ["NON_COORD", "Dim", "Handles", "Plan", "Slot", "Stencil", "draw"]

#: Text of NAME that tells netCDF readers a scale is a dimension without a variable
#: (netCDF-4 format specification, "Dimensions"); the number is not read by anyone.
_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable.         0"
#: Prefix for a variable that has the name of a dimension it does not label (netCDF-C, nc4hdf.c).
NON_COORD = "_nc4_non_coord_"
#: Type of such a scale, as netCDF-C makes it.
_BARE_DTYPE = ">f4"
_REFERENCES = h5t.vlen_create(h5t.STD_REF_OBJ)
#: For filters that HDF5 runs: without a chunk cache, the stored size is known at once.
_UNCACHED = h5p.create(h5p.DATASET_ACCESS)
_UNCACHED.set_chunk_cache(0, 0, 1.0)


@dataclass(frozen=True)
class Dim:
    """A dimension; the size of an elastic one is the most that it can have.

    An unlimited one is elastic, and its size that of a chunk.
    """

    link: str
    name: str
    size: int
    elastic: bool
    unlimited: bool = False


@dataclass(frozen=True)
class Slot:
    """One variable of a stencil; `axes` are positions in the stencil's dimensions."""

    link: str
    dtype: str
    axes: tuple[int, ...]
    pipeline: Pipeline
    attrs: tuple[Packed, ...]


@dataclass(frozen=True)
class Plan:
    """All that a template follows from."""

    dims: tuple[Dim, ...]
    slots: tuple[Slot, ...]
    attrs: tuple[Packed, ...]
    #: Bytes kept free for the id: room in the object header costs less than a second piece of it.
    id_room: int

    def scale_slot(self, axis: int) -> int | None:
        """Position of the variable that is the scale of a dimension, if one is."""
        link = self.dims[axis].link
        fitting = (i for i, s in enumerate(self.slots) if s.link == link and s.axes[0] == axis)
        return next(fitting, None)


_Stamping = tuple[bytes, bool, tuple[tuple[int, int], ...], h5p.PropDAID | None]


@dataclass(frozen=True)
class Handles:
    """Open attributes and datasets of a stencil, for what is written before it is copied."""

    id: h5a.AttrID
    hash: h5a.AttrID
    #: The number of each dimension.
    numbers: tuple[h5a.AttrID, ...]
    #: For variables with several axes that are scales, the numbers of their dimensions.
    coordinates: tuple[tuple[h5a.AttrID, tuple[int, ...]], ...]
    #: Scalars by their position among the variables: HDF5 copies them with the object header.
    scalars: dict[int, h5d.DatasetID]


@dataclass(frozen=True)
class Stencil:
    """A template in memory, and what stamping needs to know of it."""

    plan: Plan
    handles: Handles
    name: bytes
    #: For each dimension: its link, and whether its scale is elastic.
    scales: tuple[tuple[bytes, bool], ...]
    #: For each variable: link, elastic, attachments (axis, dimension), how to open it.
    slots: tuple[_Stamping, ...]
    #: Sum of those items of the content hash that all records of the stencil share.
    shared: int
    #: Text of the shapes of its datasets, cut where the elastic length goes.
    shapes: tuple[bytes, ...]


def draw(h5file: h5py.File, name: bytes, plan: Plan) -> Stencil:
    """Create the template group of ``plan``."""
    properties = h5p.create(h5p.GROUP_CREATE)
    properties.set_link_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)
    properties.set_attr_phase_change(32, 16)
    group = h5g.create(h5file.id, name, gcpl=properties)
    for attribute in plan.attrs:
        h5attrs.write(group, attribute)
    own = h5attrs.reserve(group, b"id", plan.id_room)
    hashed = h5attrs.reserve(group, content.HASH_ATTR, content.SIZE)
    scales = {plan.scale_slot(axis): axis for axis in range(len(plan.dims))}
    scales.pop(None, None)
    numbers: dict[int, h5a.AttrID] = {}
    coordinates = []
    scalars = {}
    for number, slot in enumerate(plan.slots):
        dataset = _draw_variable(group, slot, plan, number in scales)
        if number in scales:
            numbers[scales[number]], several = _make_scale(dataset, slot)
            if several is not None:
                coordinates.append((several, slot.axes))
        elif not slot.axes:
            scalars[number] = dataset
    for axis, dim in enumerate(plan.dims):
        if axis not in numbers:
            numbers[axis] = _draw_bare_dimension(group, dim)
    in_order = tuple(numbers[axis] for axis in range(len(plan.dims)))
    return Stencil(
        plan,
        Handles(own, hashed, in_order, tuple(coordinates), scalars),
        name,
        tuple((dim.link.encode(), dim.elastic) for dim in plan.dims),
        tuple(_stamping(slot, plan, number in scales) for number, slot in enumerate(plan.slots)),
        _shared(plan, {number for number in scales if number is not None}),
        content.shape_text(_shapes(plan)),
    )


def _shapes(plan: Plan) -> dict[bytes, tuple[int, ...]]:
    sizes = tuple(-1 if dim.elastic else dim.size for dim in plan.dims)
    shapes = {dim.link.encode(): (size,) for dim, size in zip(plan.dims, sizes, strict=True)}
    return shapes | {s.link.encode(): tuple(sizes[axis] for axis in s.axes) for s in plan.slots}


def _shared(plan: Plan, scales: set[int]) -> int:
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


def _stamping(slot: Slot, plan: Plan, is_scale: bool) -> _Stamping:
    """Return what is to be done to a variable after the copy.

    HDF5 forbids attaching scales to a scale, so those references are numbers only: netCDF-4
    keeps them in ``_Netcdf4Coordinates``.
    """
    elastic = any(plan.dims[axis].elastic for axis in slot.axes)
    attached = () if is_scale else tuple(enumerate(slot.axes))
    by_hdf5 = slot.pipeline.chunks is not None and not slot.pipeline.by_hand
    return slot.link.encode(), elastic, attached, _UNCACHED if by_hdf5 else None


def _draw_variable(group: h5g.GroupID, slot: Slot, plan: Plan, is_scale: bool) -> h5d.DatasetID:
    dtype = np.dtype(slot.dtype)
    sizes = tuple(plan.dims[axis].size for axis in slot.axes)
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_attr_phase_change(32, 16)
    slot.pipeline.apply(properties, dtype, sizes)
    space = _space([plan.dims[axis] for axis in slot.axes])
    dataset = h5d.create(group, slot.link.encode(), h5t.py_create(dtype), space, properties)
    for attribute in slot.attrs:
        h5attrs.write(dataset, attribute)
    if slot.axes and not is_scale:
        # Empty, for attach_scale to fill: the reference itself cannot be copied.
        h5a.create(dataset, b"DIMENSION_LIST", _REFERENCES, h5s.create_simple((len(slot.axes),)))
    return dataset


def _make_scale(dataset: h5d.DatasetID, slot: Slot) -> tuple[h5a.AttrID, h5a.AttrID | None]:
    """Make a variable the scale of a dimension; return the attributes with its numbers.

    netCDF-C wants all dimension numbers of a scale that has several axes.
    """
    h5ds.set_scale(dataset, slot.link.encode())
    number = _number(dataset)
    if len(slot.axes) < 2:
        return number, None
    zeros = np.zeros(len(slot.axes), np.int32)
    return number, h5attrs.write(dataset, h5attrs.pack("_Netcdf4Coordinates", zeros))


def _draw_bare_dimension(group: h5g.GroupID, dim: Dim) -> h5a.AttrID:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    if dim.elastic:
        properties.set_chunk((dim.size,))
    space = _space([dim])
    kind = h5t.py_create(np.dtype(_BARE_DTYPE))
    dataset = h5d.create(group, dim.link.encode(), kind, space, properties)
    h5ds.set_scale(dataset, _NO_VARIABLE)
    if dim.link != dim.name:
        h5attrs.write(dataset, h5attrs.pack(LINK_ATTR, dim.name))
    return _number(dataset)


def _space(dims: Sequence[Dim]) -> h5s.SpaceID:
    """Return a dataspace of the full size: only then HDF5 keeps no index for a single chunk.

    A dataset that is created smaller than it may become gets an index of one entry, which is two
    more pieces of metadata to write and to read.  Records shrink it to their length.  What has no
    full size begins empty.
    """
    if not dims:
        return h5s.create(h5s.SCALAR)
    shape = tuple(0 if dim.unlimited else dim.size for dim in dims)
    most = tuple(h5s.UNLIMITED if dim.unlimited else dim.size for dim in dims)
    return h5s.create_simple(shape, most)


def _number(dataset: h5d.DatasetID) -> h5a.AttrID:
    return h5attrs.write(dataset, h5attrs.pack("_Netcdf4Dimid", np.int32(0)))
