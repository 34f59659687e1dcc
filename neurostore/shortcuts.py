"""The objects of records by reference, beside the catalogue of a file that is laid out in pages.

To find a group by its name HDF5 reads a heap and a tree from many places of the file, each after
the other; from a server that is a request each. A finished file therefore has, for every row of
its catalogue, references to the groups of the record. They count as long as the generation is
the one they were written for. Nobody needs them: names stay the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5p, h5r, h5s, h5t

from neurostore import guard, h5attrs
from neurostore.catalogue import Catalogue, Entry
from neurostore.catalogue_file import BESIDE, GROUP
from neurostore.damage import UNREADABLE
from neurostore.schema import KINDS, Kind

__all__ = ["Shortcuts", "fill", "reserve"]

_NAME = BESIDE.removeprefix(b"/")
_GENERATION = "generation"
#: Groups that stay open.
_OPEN = 1024


def _tables(catalogue: Catalogue) -> Iterator[tuple[Kind, int]]:
    for kind in KINDS.values():
        table = catalogue.tables.get(kind.name)
        if table is not None and table.size:
            yield kind, table.size


def reserve(h5file: h5py.File, catalogue: Catalogue) -> None:
    """Make room for the references of all rows, beside the tables."""
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    for kind, rows in _tables(catalogue):
        group = h5g.open(h5file.id, GROUP + b"/" + kind.name.encode())
        space = h5s.create_simple((rows, len(kind.parts)))
        h5d.create(group, _NAME, h5t.STD_REF_OBJ, space, creation)


def fill(h5file: h5py.File, catalogue: Catalogue) -> None:
    """Write the references, when every group is in its place."""
    for kind, size in _tables(catalogue):
        held = np.empty((size, len(kind.parts)), h5py.ref_dtype)
        table = catalogue.tables[kind.name]
        for row in np.flatnonzero(table.rows["removed"] == 0).tolist():
            leaf = catalogue.id_of(table, row)
            for number, part in enumerate(kind.parts):
                address = f"{part.path}/{leaf}".encode()
                if h5file.id.links.exists(part.path.encode()) and address in h5file.id:
                    held[row, number] = h5r.create(h5file.id, address, h5r.OBJECT)
        group = h5g.open(h5file.id, GROUP + b"/" + kind.name.encode())
        dataset = h5d.open(group, _NAME)
        dataset.write(h5s.ALL, h5s.ALL, held)
        packed = h5attrs.pack(_GENERATION, np.int64(catalogue.state["generation"]))
        h5attrs.write(dataset, packed)


class Shortcuts:
    """The groups of one open file that were opened by reference, by their addresses."""

    def __init__(self) -> None:
        self._tables: dict[str, Any] = {}
        self._groups: dict[str, h5g.GroupID] = {}

    def point(self, h5file: h5py.File, catalogue: Catalogue, entry: Entry) -> None:
        """Open the groups of a record, where there are references to them that count."""
        if f"{entry.kind.parts[0].path}/{entry.id}" in self._groups:
            return
        with suppress(*UNREADABLE):  # what stands beside the tables may be anything: names do
            self._point(h5file, catalogue, entry)

    def _point(self, h5file: h5py.File, catalogue: Catalogue, entry: Entry) -> None:
        dataset = self._table(h5file, catalogue, entry.kind)
        if dataset is None:
            return
        if len(self._groups) >= _OPEN:
            self._groups.clear()
        space = dataset.get_space()
        held = np.empty((1, len(entry.kind.parts)), h5py.ref_dtype)
        space.select_hyperslab((entry.row, 0), held.shape)
        dataset.read(h5s.create_simple(held.shape), space, held)
        for part, reference in zip(entry.kind.parts, held[0], strict=True):
            if not reference:
                continue
            item = h5r.dereference(reference, h5file.id)
            if isinstance(item, h5g.GroupID) and _is(item, entry):
                self._groups[f"{part.path}/{entry.id}"] = item

    def _table(self, h5file: h5py.File, catalogue: Catalogue, kind: Kind) -> Any:
        if kind.name not in self._tables:
            path = b"/".join((GROUP, kind.name.encode(), _NAME))
            self._tables[kind.name] = None
            if path in h5file.id:
                found = h5d.open(h5file.id, path)
                guard.check_dataset(found, path.decode(), by_hdf5=True)
                written = h5attrs.read_one(found, _GENERATION.encode())
                shape = (catalogue.tables[kind.name].size, len(kind.parts))
                if written == catalogue.state["generation"] and found.shape == shape:
                    self._tables[kind.name] = found
        return self._tables[kind.name]

    def where(self, root: h5g.GroupID, address: str) -> tuple[h5g.GroupID, str]:
        """Return from where, and by which path, an address is opened."""
        group = self._groups.get(address)
        if group is not None:
            return group, "."
        parent, _, link = address.rpartition("/")
        group = self._groups.get(parent)
        return (root, address) if group is None else (group, link)


def _is(group: h5g.GroupID, entry: Entry) -> bool:
    """Whether a group says that it is the record: a reference may lead anywhere in the file."""
    said = {name: h5attrs.read_one(group, name.encode()) for name in ("kind", "id")}
    return said == {"kind": entry.kind.name, "id": entry.id}
