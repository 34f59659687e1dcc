"""Moving groups from file to file as they are: chunks are neither decoded nor encoded.

``H5Ocopy`` leaves DIMENSION_LIST dangling with every flag (HDFGroup/hdf5#6200), so every dataset
is made anew with its type, space and creation properties, its raw chunks are moved, its scales
are attached again and its netCDF dimension numbers given anew.  What a record is, it does not
know.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5g, h5o, h5p, h5s, h5t

from neurostore import h5attrs

__all__ = ["copy_groups"]

#: Attributes that hold references; attaching the scales writes them.
_REFERENCES = frozenset({b"DIMENSION_LIST", b"REFERENCE_LIST"})
_NUMBER = b"_Netcdf4Dimid"
_NUMBERS = b"_Netcdf4Coordinates"


class _Copy:
    """One run: what was copied so far, by the address it had."""

    def __init__(self, first_number: int) -> None:
        self.next_number = first_number
        self.made: dict[int, h5d.DatasetID] = {}
        self.numbers: dict[int, int] = {}
        self.attachments: list[tuple[h5d.DatasetID, int, int]] = []

    def group(self, source: h5g.GroupID, target: h5g.GroupID) -> None:
        for link in source:
            self.link(source, target, link)

    def link(self, source: h5g.GroupID, target: h5g.GroupID, link: bytes) -> None:
        item = h5o.open(source, link)
        if isinstance(item, h5g.GroupID):
            if link in target:  # made with the file; deleting it would shrink the allocation
                made = h5g.open(target, link)
            else:
                made = h5g.create(target, link, gcpl=_like(item.get_create_plist()))
            _copy_attributes(item, made)
            self.group(item, made)
        elif isinstance(item, h5d.DatasetID):
            self.dataset(item, target, link)
        else:
            item.copy().commit(target, link)

    def dataset(self, source: h5d.DatasetID, target: h5g.GroupID, link: bytes) -> None:
        made = h5d.create(
            target, link, source.get_type(), source.get_space(), source.get_create_plist()
        )
        _copy_values(source, made)
        _copy_attributes(source, made)
        if h5ds.is_scale(source):
            self.made[_address(source)] = made
            self._renumber(source, made)
        else:
            for axis in range(source.rank):
                if h5ds.get_num_scales(source, axis) > 0:
                    scale = h5ds.iterate(source, axis, _address)
                    self.attachments.append((made, axis, scale))

    def _renumber(self, source: h5d.DatasetID, made: h5d.DatasetID) -> None:
        old = h5attrs.read_one(source, _NUMBER)
        if old is None:
            return
        self.numbers[int(old)] = self.next_number
        h5attrs.overwrite(made, _NUMBER, np.array(self.next_number, np.int32))
        self.next_number += 1

    def finish(self) -> None:
        """Attach the scales, once all of them are there."""
        for dataset, axis, address in self.attachments:
            h5ds.attach_scale(dataset, self.made[address], axis)
        for dataset in self.made.values():
            old = h5attrs.read_one(dataset, _NUMBERS)
            if old is not None:
                new = np.array([self.numbers.get(int(n), int(n)) for n in old], np.int32)
                h5attrs.overwrite(dataset, _NUMBERS, new)


def copy_groups(source: h5py.File, target: h5py.File, skip: bytes, first_number: int) -> int:
    """Copy every group at the top of ``source`` but ``skip``; groups of ``target`` are filled.

    Returns
    -------
    int
        The first netCDF dimension number that is still free.
    """
    run = _Copy(first_number)
    for link in source.id:
        if link != skip:
            run.link(source.id, target.id, link)
    _copy_attributes(source.id, target.id)
    run.finish()
    return run.next_number


def _like(source: h5p.PropGCID) -> h5p.PropGCID:
    """Return fresh properties: those of a group carry the places of its links in its own file."""
    fresh = h5p.create(h5p.GROUP_CREATE)
    fresh.set_link_creation_order(source.get_link_creation_order())
    fresh.set_attr_phase_change(*source.get_attr_phase_change())
    return fresh


def _address(dataset: h5d.DatasetID) -> int:
    return int(h5o.get_info(dataset).addr)


def _copy_values(source: h5d.DatasetID, target: h5d.DatasetID) -> None:
    kind = source.get_type()
    by_value = kind.detect_class(h5t.VLEN) or _is_varying_text(kind)
    if source.get_create_plist().get_layout() == h5d.CHUNKED and not by_value:
        for number in range(source.get_num_chunks()):
            # HDF5 2.0 gives the filter mask right here, and 0 from read_direct_chunk.
            info = source.get_chunk_info(number)
            _, raw = source.read_direct_chunk(info.chunk_offset)
            target.write_direct_chunk(info.chunk_offset, raw, filter_mask=info.filter_mask)
        return
    if source.get_storage_size() == 0 or 0 in source.shape:
        return
    if by_value:  # its chunks hold places in the other file
        values = np.empty(source.shape, source.dtype)
        source.read(h5s.ALL, h5s.ALL, values)
        target.write(h5s.ALL, h5s.ALL, values)
        return
    raw_values = np.empty((*source.shape, kind.get_size()), "u1")
    source.read(h5s.ALL, h5s.ALL, raw_values, kind)
    target.write(h5s.ALL, h5s.ALL, raw_values, kind)


def _is_varying_text(kind: h5t.TypeID) -> bool:
    return bool(kind.get_class() == h5t.STRING and kind.is_variable_str())


def _copy_attributes(source: Any, target: Any) -> None:
    for index in range(h5a.get_num_attrs(source)):
        attribute = h5a.open(source, index=index)
        if attribute.name in _REFERENCES or h5a.exists(target, attribute.name):
            continue
        kind = attribute.get_type()
        made = h5a.create(target, attribute.name, kind, attribute.get_space())
        if kind.get_class() == h5t.VLEN or _is_varying_text(kind):
            values = np.empty(attribute.shape, attribute.dtype)
            attribute.read(values)
            made.write(values)
        else:
            raw = np.empty((*attribute.shape, kind.get_size()), "u1")
            attribute.read(raw, kind)
            made.write(raw, kind)
