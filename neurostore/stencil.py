"""The structure of a part group: made once per shape and dtype, stamped for every record.

A stencil is a part group in an in-memory HDF5 file, with its dimension scales, attributes and
creation properties, but no chunks and no references.  ``stamp`` first changes in the stencil what
can be told beforehand (id, content hash, dimension numbers, scalars), which through handles that
stay open costs a fifth of what it costs in the copy; then copies it into the store by one
``H5Ocopy``; and does there what cannot be copied: lengths, scale references, varying attributes,
chunks.  It makes no chunk itself (``filters`` does) and knows neither catalogue nor record kinds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5ds, h5g, h5o

from neurostore import content, filters, h5attrs
from neurostore.records import LINK_ATTR, Column, Piece
from neurostore.template import NON_COORD, Dim, Plan, Slot, Stencil, draw

__all__ = ["Growth", "Layout", "Stamped", "Stencils"]

#: Records for which the filters found on one are taken on trust.
_TRUSTED = 31
#: Bytes of an array of which a sample costs little beside the rest.
_LARGE = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How the variables of a store are to be laid out: its compression and chunk size."""

    compression: str | None
    level: int | None
    chunk_size: int


@dataclass(frozen=True)
class Growth:
    """That a record is to grow along ``dim``, by about ``rows`` to a chunk."""

    dim: str
    rows: int

    def emptied(self, column: Column) -> Column:
        """Return a column without its values, where they lie along the dimension."""
        if self.dim not in column.dims:
            return column
        nothing = tuple(slice(0) if dim == self.dim else slice(None) for dim in column.dims)
        return replace(column, values=column.values[nothing])


@dataclass(slots=True)
class _Ready:
    """The stencil that records like an earlier one get, and for how many more that counts."""

    stencil: Stencil
    left: int


@dataclass(frozen=True)
class Stamped:
    """What stamping one part came to."""

    bytes: int
    dimensions: int


#: Stencils that no open file uses, and how many of them are kept.
_left: list[Stencils] = []
_KEPT = 2


class Stencils:
    """The stencils of one open file.

    Parameters
    ----------
    limit
        How many are kept; the least recently used goes first.
    """

    def __init__(self, limit: int = 512) -> None:
        self._limit = limit
        self._made: OrderedDict[Plan, Stencil] = OrderedDict()
        self._ready: dict[Hashable, _Ready] = {}
        self._count = 0
        self._file = h5py.File(
            f"stencils-{id(self)}", "w", driver="core", backing_store=False, libver=("v110", "v110")
        )

    @classmethod
    def take(cls) -> Stencils:
        """Return stencils for a file that is opened: such as another one left, if there are any.

        They are drawn already; which filters they have is chosen anew.
        """
        try:
            return _left.pop()
        except IndexError:
            return cls()

    def leave(self) -> None:
        """Keep what was drawn for the next file."""
        self._ready.clear()
        if len(_left) < _KEPT:
            _left.append(self)
        else:
            self.close()

    def close(self) -> None:
        """Let the in-memory file go."""
        self._made.clear()
        self._ready.clear()
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
        growth: Growth | None = None,
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
        growth
            Make a record that grows: of what lies along its dimension the values are looked at
            for the choice of filters, and not written.
        """
        room, columns = -(-len(leaf) // 16) * 16, piece.columns
        if growth is None:
            stencil = self._stencil(piece, layout, elastic, room)
        else:
            stencil = self._stencil_of(self._growing_plan(piece, layout, growth, room))
            elastic, columns = growth.dim, tuple(map(growth.emptied, columns))
        plan = stencil.plan
        own = [h5attrs.pack(name, value) for name, value in varying.items()]
        chunks = tuple(
            filters.single_chunk(column.values, slot.pipeline)
            for column, slot in zip(columns, plan.slots, strict=True)
        )
        total = stencil.shared + content.sizes_with(stencil.shapes, _length(columns, elastic))
        total += content.attributes(b"", [*plan.attrs, (b"id", leaf, True), *own])
        total += _known(stencil, columns, chunks)
        _prepare(stencil, leaf, total, columns, first_number)
        h5o.copy(self._file.id, stencil.name, parent, leaf)
        group = h5g.open(parent, leaf)
        for attribute in own:
            h5attrs.write(group, attribute)
        stored, rest = _fill(group, stencil, columns, chunks)
        if rest:
            content.fill(group, total + rest)
        return Stamped(stored, len(plan.dims))

    def _stencil(
        self,
        piece: Piece,
        layout: Layout,
        elastic: str | None,
        id_room: int,
    ) -> Stencil:
        """Return the stencil of a record; its filters are chosen anew for one in `_TRUSTED`.

        Looking at a sample of a small record costs as much as encoding it, and so does going
        through the whole plan; the records of a run are alike.
        """
        length = _length(piece.columns, elastic)
        capacity = 0
        if elastic is not None and _is_elastic(piece, elastic):
            capacity = filters.length_class(length)
        alike = tuple([(column.name, column.values.dtype) for column in piece.columns])
        kind = piece.attrs["kind"]
        key = (piece.path, kind, piece.structure, alike, capacity or -length, layout, id_room)
        ready = self._ready.get(key)
        large = any(
            isinstance(column.values, np.ndarray) and column.values.nbytes > _LARGE
            for column in piece.columns
        )
        if ready is not None and ready.left > 0 and not large:
            ready.left -= 1
            return ready.stencil
        plan = self._plan(piece, layout, elastic if capacity else None, capacity, id_room)
        stencil = self._stencil_of(plan)
        if len(self._ready) > 4 * self._limit:
            self._ready.clear()
        self._ready[key] = _Ready(stencil, _TRUSTED)
        return stencil

    def _stencil_of(self, plan: Plan) -> Stencil:
        stencil = self._made.get(plan)
        if stencil is None:
            return self._make(plan)
        self._made.move_to_end(plan)
        return replace(stencil, plan=plan)  # equal plans may differ in the encoder

    def _growing_plan(self, piece: Piece, layout: Layout, growth: Growth, id_room: int) -> Plan:
        if layout.compression not in (None, "gzip"):  # HDF5 itself would have to encode
            layout = replace(layout, compression="gzip", level=None)
        plan = self._plan(piece, layout, growth.dim, growth.rows, id_room)
        dims = tuple(replace(dim, unlimited=dim.name == growth.dim) for dim in plan.dims)
        return replace(plan, dims=dims)

    def _plan(
        self,
        piece: Piece,
        layout: Layout,
        elastic: str | None,
        capacity: int,
        id_room: int,
    ) -> Plan:
        dims = tuple(
            Dim(piece.links[name], name, capacity if name == elastic else size, name == elastic)
            for name, size in _sizes(piece.columns).items()
        )
        index = {dim.name: axis for axis, dim in enumerate(dims)}
        slots = tuple(self._slot(piece, column, dims, index, layout) for column in piece.columns)
        attrs = [h5attrs.pack(key, piece.attrs[key]) for key in ("kind", "schema_version")]
        if piece.coordinates:
            attrs.append(h5attrs.pack("coordinates", " ".join(piece.coordinates)))
        return Plan(dims, slots, tuple(attrs), id_room)

    def _slot(
        self,
        piece: Piece,
        column: Column,
        dims: tuple[Dim, ...],
        index: Mapping[str, int],
        layout: Layout,
    ) -> Slot:
        axes = tuple(index[name] for name in column.dims)
        shape = tuple(dims[axis].size for axis in axes)
        is_elastic = any(dims[axis].elastic for axis in axes)
        pipeline = filters.choose(
            column.values,
            layout.compression,
            layout.level,
            layout.chunk_size,
            shape=shape if is_elastic else None,
        )
        link, attrs = piece.links[column.name], column.attrs
        if column.name in index and column.dims[:1] != (column.name,):
            link = NON_COORD + link
        if link != column.name:
            attrs = (*attrs, h5attrs.pack(LINK_ATTR, column.name))
        return Slot(link, column.values.dtype.str, axes, pipeline, attrs)

    def _make(self, plan: Plan) -> Stencil:
        name = str(self._count).encode()
        self._count += 1
        stencil = draw(self._file, name, plan)
        self._made[plan] = stencil
        if len(self._made) > self._limit:
            _, oldest = self._made.popitem(last=False)
            self._ready.clear()
            del self._file[oldest.name]
        return stencil


def _sizes(columns: tuple[Column, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for column in columns:
        sizes.update(zip(column.dims, column.values.shape, strict=True))
    return sizes


def _length(columns: tuple[Column, ...], elastic: str | None) -> int:
    """Return the size of the elastic dimension, 0 where there is none."""
    for column in columns:
        if elastic in column.dims:
            return int(column.values.shape[column.dims.index(str(elastic))])
    return 0


def _is_elastic(piece: Piece, elastic: str) -> bool:
    """Short records are stored exactly, in the object header; long ones by size class."""
    return any(
        elastic in column.dims and column.values.nbytes > filters.COMPACT_BYTES
        for column in piece.columns
    )


def _known(stencil: Stencil, columns: tuple[Column, ...], chunks: tuple[Any, ...]) -> int:
    """Sum up what the content hash says of values that need not be written first."""
    total = 0
    for (link, *_), slot, column, data in zip(
        stencil.slots, stencil.plan.slots, columns, chunks, strict=True
    ):
        if data is not None:
            total += content.chunk(link, (0,) * column.values.ndim, data[-4:])
        elif slot.pipeline.chunks is None and column.values.size:
            total += content.values(link, column.values.tobytes())
    return total


def _prepare(
    stencil: Stencil, leaf: bytes, total: int, columns: tuple[Column, ...], first_number: int
) -> None:
    """Give the stencil what its next copy is to have."""
    handles = stencil.handles
    h5attrs.put_text(handles.id, leaf, stencil.plan.id_room)
    content.put(handles.hash, total)
    for axis, attribute in enumerate(handles.numbers):
        h5attrs.put_numbers(attribute, np.array(first_number + axis, np.int32))
    for attribute, axes in handles.coordinates:
        h5attrs.put_numbers(attribute, np.array([first_number + a for a in axes], np.int32))
    for number, dataset in handles.scalars.items():
        filters.write_plain(dataset, columns[number].values)


def _fill(
    group: h5g.GroupID,
    stencil: Stencil,
    columns: tuple[Column, ...],
    chunks: tuple[Any, ...],
) -> tuple[int, int]:
    """Do what cannot be copied; return stored bytes, and the content hash of unknown chunks."""
    scalars = stencil.handles.scalars
    opened = {
        number: h5d.open(group, link, access)
        for number, (link, _, _, access) in enumerate(stencil.slots)
        if number not in scalars
    }
    by_link = {stencil.slots[number][0]: dataset for number, dataset in opened.items()}
    sizes = _sizes(columns)
    scales = []
    for (link, elastic), dim in zip(stencil.scales, stencil.plan.dims, strict=True):
        scale = by_link.get(link) or h5d.open(group, link)
        if elastic and link not in by_link:
            scale.set_extent((sizes[dim.name],))
        scales.append(scale)
    for number, dataset in opened.items():
        _, elastic, attached, _ = stencil.slots[number]
        if elastic:
            dataset.set_extent(columns[number].values.shape)
        for position, axis in attached:
            h5ds.attach_scale(dataset, scales[axis], position)
    # Chunks last: they then lie side by side, and go out in one piece.
    stored = sum(columns[number].values.nbytes for number in scalars)
    total = 0
    checksums: list[filters.Checksum] = []
    for number, dataset in opened.items():
        data, column = chunks[number], columns[number]
        if data is not None:
            dataset.write_direct_chunk((0,) * column.values.ndim, data)
            stored += len(data)
            continue
        pipeline = stencil.plan.slots[number].pipeline
        stored += filters.write(dataset, column.values, pipeline, checksums)
        for offset, checksum in checksums:
            total += content.chunk(stencil.slots[number][0], offset, checksum)
        checksums.clear()
    return stored, total
