"""Moving groups from file to file as they are: chunks are neither decoded nor encoded.

``H5Ocopy`` leaves DIMENSION_LIST dangling with every flag (HDFGroup/hdf5#6200).  A group that is
one whole, with its scales inside it, is copied by it all the same and its scales are attached
again, which costs a third of making every dataset anew; everything else is made anew with its
type, space and creation properties, and its raw chunks are moved.  netCDF dimension numbers are
given anew, links stay what they are, and an object with two names stays one object.  What a
record is, this module does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
from h5py import h5, h5a, h5d, h5ds, h5g, h5l, h5o, h5p, h5r, h5s, h5t

from neurostore import h5attrs
from neurostore.errors import DamagedError, StoreError
from neurostore.scales import check, is_endless, referrers

__all__ = ["Entangled", "copy_groups", "copy_item"]

#: Attributes that hold references; attaching the scales writes them.
_REFERENCES = frozenset({b"DIMENSION_LIST", b"REFERENCE_LIST"})
_NUMBER = b"_Netcdf4Dimid"
_NUMBERS = b"_Netcdf4Coordinates"
#: A group with these attributes was stamped from a stencil: no attribute of it is a reference.
_STAMPS = (b"kind", b"id")
#: Opened for its attributes alone, a dataset needs no chunk cache.
_UNCACHED = h5p.create(h5p.DATASET_ACCESS)
_UNCACHED.set_chunk_cache(0, 0, 1.0)


class Entangled(Exception):
    """What others move must be found by name; never leaves the package."""


@dataclass(frozen=True)
class _Wiring:
    """How the datasets of one group hang together."""

    links: tuple[bytes, ...]
    scales: frozenset[bytes]
    #: Variable, axis and scale of every attachment.
    attached: tuple[tuple[bytes, int, bytes], ...]


class _Copy:
    """One run: what was copied so far, by the address it had."""

    def __init__(
        self,
        first_number: int,
        step: Callable[[], object] = lambda: None,
        left: Container[int] = frozenset(),
        alike: Mapping[bytes, Hashable] = MappingProxyType({}),
        moved: Mapping[bytes, Collection[bytes]] = MappingProxyType({}),
    ) -> None:
        self.moved = moved
        self.next_number = first_number
        self.step = step
        self.left = left
        self.alike = alike
        #: How groups are wired, by what they are said to be alike in.
        self.known: dict[Hashable, _Wiring] = {}
        self.scales: dict[int, h5d.DatasetID] = {}
        self.numbers: dict[int, int] = {}
        self.attachments: list[tuple[h5d.DatasetID, int, int]] = []
        #: Objects that have several names.
        self.shared: dict[int, Any] = {}
        #: Attributes and datasets that refer to objects: from, to, name of the attribute or None.
        self.referring: list[tuple[Any, Any, bytes | None]] = []

    def group(self, source: h5g.GroupID, target: h5g.GroupID, path: bytes) -> None:
        moved = self.moved.get(path, ())
        if len(moved) == source.get_num_objs():  # all of it: their names need not be looked at
            return
        for link in _links(source):
            if link in moved:
                continue
            where = path + b"/" + link
            wiring = self.known.get(self.alike.get(where))
            if wiring is not None:
                self.whole(source, target, link, wiring)
            else:
                self.link(source, target, link, where)

    def link(self, source: h5g.GroupID, target: h5g.GroupID, link: bytes, where: bytes) -> None:
        kind = source.links.get_info(link).type
        if kind == h5l.TYPE_SOFT:
            target.links.create_soft(link, source.links.get_val(link))
        elif kind == h5l.TYPE_EXTERNAL:
            target.links.create_external(link, *source.links.get_val(link))
        else:
            self.object(source, target, link, where)

    def object(self, source: h5g.GroupID, target: h5g.GroupID, link: bytes, where: bytes) -> None:
        item = h5o.open(source, link)
        info = h5o.get_info(item)
        if int(info.addr) in self.left:
            return
        known = self.shared.get(int(info.addr))
        if known is not None:
            h5o.link(known, target, link)
            return
        if isinstance(item, h5g.GroupID):
            made: Any = self.some_group(item, source, target, link, where)
        elif isinstance(item, h5d.DatasetID):
            made = self.dataset(item, target, link)
        else:
            made = item.copy()
            made.commit(target, link)
        if info.rc > 1:
            self.shared[int(info.addr)] = made

    def some_group(
        self,
        item: h5g.GroupID,
        source: h5g.GroupID,
        target: h5g.GroupID,
        link: bytes,
        where: bytes,
    ) -> h5g.GroupID:
        there = link in target  # made with the file; deleting it would shrink the allocation
        wiring = _wiring(item) if not there else None
        if wiring is not None:
            if where in self.alike:
                self.known[self.alike[where]] = wiring
            return self.whole(source, target, link, wiring)
        made = h5g.open(target, link) if there else h5g.create(target, link, gcpl=_like(item))
        self.shared[int(h5o.get_info(item).addr)] = made  # at once: it may contain itself
        self.attributes(item, made)
        self.group(item, made, where)
        return made

    def whole(
        self, source: h5g.GroupID, target: h5g.GroupID, link: bytes, wiring: _Wiring
    ) -> h5g.GroupID:
        item = h5g.open(source, link)
        if any(is_endless(h5d.open(item, each, _UNCACHED)) for each in wiring.links):
            return self.by_datasets(item, target, link, wiring)
        h5o.copy(source, link, target, link)
        made = h5g.open(target, link)
        if made.get_num_objs() != len(wiring.links):
            raise DamagedError(
                f"{h5py.h5i.get_name(made).decode()}: {made.get_num_objs()} variables, expected "
                f"{len(wiring.links)} as in records of the same structure"
            )
        self.wire(made, wiring)
        self.step()
        return made

    def by_datasets(
        self, item: h5g.GroupID, target: h5g.GroupID, link: bytes, wiring: _Wiring
    ) -> h5g.GroupID:
        """Copy a group whose datasets name their scales where HDF5 would search for ever."""
        made = h5g.create(target, link, gcpl=_like(item))
        self.attributes(item, made)
        for each in wiring.links:
            self.values(h5d.open(item, each), made, each)
        self.wire(made, wiring)
        self.step()
        return made

    def wire(self, group: h5g.GroupID, wiring: _Wiring) -> None:
        """Give a copied group its references, and dimension numbers of its own."""
        made = {link: h5d.open(group, link, _UNCACHED) for link in wiring.links}
        numbers: dict[int, int] = {}
        for link, dataset in made.items():
            stale = b"REFERENCE_LIST" if link in wiring.scales else b"DIMENSION_LIST"
            if h5a.exists(dataset, stale):
                h5a.delete(dataset, stale)
            if link in wiring.scales:
                self.number(dataset, numbers)
        for link in wiring.scales:
            _renumber_axes(made[link], numbers)
        for link, axis, scale in wiring.attached:
            h5ds.attach_scale(made[link], made[scale], axis)

    def number(self, dataset: h5d.DatasetID, numbers: dict[int, int]) -> None:
        old = h5attrs.read_one(dataset, _NUMBER)
        if old is None:
            return
        numbers[int(old)] = self.next_number
        h5attrs.overwrite(dataset, _NUMBER, np.array(self.next_number, np.int32))
        self.next_number += 1

    def values(self, source: h5d.DatasetID, target: h5g.GroupID, link: bytes) -> h5d.DatasetID:
        made = h5d.create(
            target, link, source.get_type(), source.get_space(), source.get_create_plist()
        )
        if source.get_type().get_class() == h5t.REFERENCE:
            self.refers(source, made, None, source.get_type())
        else:
            _copy_values(source, made)
        self.attributes(source, made)
        return made

    def dataset(self, source: h5d.DatasetID, target: h5g.GroupID, link: bytes) -> h5d.DatasetID:
        made = self.values(source, target, link)
        if h5ds.is_scale(source):
            self.scales[_address(source)] = made
            self.number(made, self.numbers)
        else:
            for axis, scale in _attached(source):
                self.attachments.append((made, axis, scale))
        return made

    def attributes(self, source: Any, target: Any) -> None:
        for index in range(h5a.get_num_attrs(source)):
            attribute = h5a.open(source, index=index)
            if attribute.name in _REFERENCES or h5a.exists(target, attribute.name):
                continue
            kind = attribute.get_type()
            made = h5a.create(target, attribute.name, kind, attribute.get_space())
            if kind.get_class() == h5t.REFERENCE:
                self.refers(source, target, attribute.name, kind)
            else:
                _copy_attribute(attribute, made)

    def refers(self, source: Any, target: Any, name: bytes | None, kind: h5t.TypeID) -> None:
        if not kind.equal(h5t.STD_REF_OBJ):
            where = (h5py.h5i.get_name(source) or b"an object").decode()
            raise StoreError(
                f"{where}: holds references to regions, which cannot be moved to another file; "
                "expected references to objects; remove it, or keep the file as it is"
            )
        if self.moved:
            raise Entangled
        self.referring.append((source, target, name))

    def finish(self) -> None:
        """Attach the scales and set the references, once everything is there."""
        for dataset, axis, address in self.attachments:
            if address in self.scales:
                h5ds.attach_scale(dataset, self.scales[address], axis)
        for dataset in self.scales.values():
            _renumber_axes(dataset, self.numbers)
        for source, target, name in self.referring:
            old = source if name is None else h5a.open(source, name)
            new = target if name is None else h5a.open(target, name)
            _move_references(source, old, target, new, by_space=name is None)


def copy_groups(
    source: h5py.File,
    target: h5py.File,
    skip: bytes,
    first_number: int,
    step: Callable[[], object] = lambda: None,
    left: Container[int] = frozenset(),
    alike: Mapping[bytes, Hashable] = MappingProxyType({}),
    moved: Mapping[bytes, Collection[bytes]] = MappingProxyType({}),
) -> int:
    """Copy every group at the top of ``source`` but ``skip``; groups of ``target`` are filled.

    Parameters
    ----------
    step
        Called after every group that was copied as a whole.
    left
        Addresses of objects that are left out.
    alike
        For paths of stamped groups something that only groups of one structure share: how such
        groups hang together is then found out once.
    moved
        By the path of a group, links of it that somebody else sees to.

    Returns
    -------
    int
        The first netCDF dimension number that is still free.

    Raises
    ------
    StoreError
        Something holds references to regions of a dataset.
    Entangled
        Something holds references to objects, which may be among those that are ``moved``.
    """
    run = _Copy(first_number, step, left, alike, moved)
    for link in source.id:
        if link != skip:
            run.link(source.id, target.id, link, b"/" + link)
    run.attributes(source.id, target.id)
    run.finish()
    return run.next_number


def copy_item(source: h5g.GroupID, target: h5g.GroupID, link: bytes, first_number: int) -> int:
    """Copy what stands at ``link`` of one group into another, as `copy_groups` does."""
    run = _Copy(first_number)
    run.object(source, target, link, link)
    run.finish()
    return run.next_number


def _wiring(group: h5g.GroupID) -> _Wiring | None:
    """Return how a stamped group is wired; None where it is more, or less, than one whole."""
    if not all(h5a.exists(group, name) for name in _STAMPS):
        return None
    opened: dict[bytes, h5d.DatasetID] = {}
    for link in group:
        if group.links.get_info(link).type != h5l.TYPE_HARD:
            return None
        item = h5o.open(group, link)
        if not isinstance(item, h5d.DatasetID) or not _is_plain(item):
            return None
        opened[link] = item
    scales = {_address(item): link for link, item in opened.items() if h5ds.is_scale(item)}
    names = frozenset(scales.values())
    links = {_address(item): link for link, item in opened.items()}
    attached = []
    for scale in names:
        for address, axis in referrers(opened[scale]):
            if address not in links:
                return None
            attached.append((links[address], axis, scale))
    return _Wiring(tuple(opened), names, tuple(attached))


def _is_here(dataset: h5d.DatasetID) -> bool:
    """Tell whether the values are in the same file; otherwise writing would change the others."""
    properties = dataset.get_create_plist()
    return bool(properties.get_layout() != h5d.VIRTUAL and not properties.get_external_count())


def _is_plain(dataset: h5d.DatasetID) -> bool:
    """Tell whether the values of a dataset mean the same in another file."""
    kind = dataset.get_type()
    return not (
        kind.detect_class(h5t.VLEN) or kind.detect_class(h5t.REFERENCE) or _is_varying_text(kind)
    ) and bool(h5o.get_info(dataset).rc == 1 and _is_here(dataset))


def _attached(dataset: h5d.DatasetID) -> list[tuple[int, int]]:
    """Return every attached scale: axis and address."""
    if not h5a.exists(dataset, b"DIMENSION_LIST"):
        return []
    check(dataset)
    found: list[tuple[int, int]] = []
    for axis in range(dataset.rank):
        on_axis: list[int] = []
        if h5ds.get_num_scales(dataset, axis) > 0:
            # A callback that returns None is called for the next one.
            h5ds.iterate(dataset, axis, lambda scale, seen=on_axis: seen.append(_address(scale)))
        found += [(axis, address) for address in on_axis]
    return found


def _renumber_axes(dataset: h5d.DatasetID, numbers: dict[int, int]) -> None:
    old = h5attrs.read_one(dataset, _NUMBERS)
    if old is not None:
        new = np.array([numbers.get(int(n), int(n)) for n in old], np.int32)
        h5attrs.overwrite(dataset, _NUMBERS, new)


def _like(group: h5g.GroupID) -> h5p.PropGCID:
    """Return fresh properties: those of a group carry the places of its links in its own file."""
    source = group.get_create_plist()
    fresh = h5p.create(h5p.GROUP_CREATE)
    fresh.set_link_creation_order(source.get_link_creation_order())
    fresh.set_attr_phase_change(*source.get_attr_phase_change())
    return fresh


def _address(dataset: h5d.DatasetID) -> int:
    return int(h5o.get_info(dataset).addr)


def _links(group: h5g.GroupID) -> list[bytes]:
    """Return the names in a group, in the order in which they came where the group knows it."""
    tracked = group.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
    found: list[bytes] = []
    group.links.iterate(found.append, idx_type=h5.INDEX_CRT_ORDER if tracked else h5.INDEX_NAME)
    return found


def _copy_values(source: h5d.DatasetID, target: h5d.DatasetID) -> None:
    if not _is_here(source):
        return  # made with the properties of the old one, it refers to the same files
    kind = source.get_type()
    by_value = kind.detect_class(h5t.VLEN) or _is_varying_text(kind)
    if source.get_create_plist().get_layout() == h5d.CHUNKED and not by_value:
        infos: list[Any] = []
        source.chunk_iter(infos.append)  # by number, HDF5 counts from the first one every time
        for info in infos:
            # HDF5 2.0 gives the filter mask right here, and 0 from read_direct_chunk.
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


def _copy_attribute(attribute: h5a.AttrID, made: h5a.AttrID) -> None:
    kind = attribute.get_type()
    if kind.get_class() == h5t.VLEN or _is_varying_text(kind):
        values = np.empty(attribute.shape, attribute.dtype)
        attribute.read(values)
        made.write(values)
    else:
        raw = np.empty((*attribute.shape, kind.get_size()), "u1")
        attribute.read(raw, kind)
        made.write(raw, kind)


def _move_references(source: Any, old: Any, target: Any, new: Any, *, by_space: bool) -> None:
    """Let references name in the other file what they named in their own."""
    held = np.empty(old.shape, h5py.ref_dtype)
    moved = np.empty(old.shape, h5py.ref_dtype)
    spaces = (h5s.ALL, h5s.ALL) if by_space else ()
    old.read(*spaces, held)
    for place in np.ndindex(old.shape):
        moved[place] = _moved(held[place], source, target)
    new.write(*spaces, moved)


def _moved(reference: Any, source: Any, target: Any) -> Any:
    name = h5r.get_name(reference, source) if reference else None
    if name is None or name not in h5g.open(h5py.h5i.get_file_id(target), b"/"):
        return h5r.Reference()
    return h5r.create(h5py.h5i.get_file_id(target), name, h5r.OBJECT)
