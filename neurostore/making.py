"""A whole store file made at one go, record by record, before anybody sees it.

For files that are written anew in another form: repacked, or brought up to date.  What the new
file is for, and how it gets its name, is decided elsewhere.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from h5py import h5g, h5o

from neurostore import catalogue_file, emptyfile, ledger, names, tree
from neurostore.catalogue import Catalogue
from neurostore.rawcopy import copy_groups
from neurostore.records import Record
from neurostore.schema import SCHEMA_VERSION, Kind
from neurostore.stencil import Layout, Stencils

__all__ = ["Making"]


class Making:
    """A file that is being made at ``path``; leaving without an exception finishes it.

    Parameters
    ----------
    path
        A temporary place.
    layout
        How the values of records are laid out.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._stack = ExitStack()
        emptyfile.build(str(path))
        self._h5file = self._stack.enter_context(tree.open_new(path))
        stencils = Stencils()
        self._stack.callback(stencils.close)
        stream = self._stack.enter_context(path.open("r+b", buffering=0))
        self._stamper = tree.Stamper(self._h5file, tree.Raw(stream), stencils)
        found = catalogue_file.read(self._h5file)
        assert found is not None
        self.catalogue = found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            if kind is None:
                ledger.write(self._h5file, self.catalogue.ledger)
                self.catalogue.state["modified"] = time.time_ns()
                self._h5file.flush()
                self._stamper.write_catalogue(self.catalogue)
                self._h5file.flush()
        if kind is None:
            os.utime(self._path, ns=(self.catalogue.state["modified"],) * 2)

    def add(self, record: Record, record_id: str) -> str:
        """Write a record, by this id if none has it; return the id it got."""
        held = self.catalogue
        for count in itertools.count(2):
            if held.find(record_id) is None:
                break
            record_id = names.clashing(record_id.partition("~")[0], count)
        plain = record.kind.leaf(record.name, record.timestamp)
        stored = self._stamp(record, record_id)
        held.add(
            record.kind,
            timestamp=record.timestamp,
            name=record.name,
            leaf="" if plain == record_id else record_id,
            structure=record.structure,
            labels=record.labels,
            length=record.length,
            stored_bytes=stored,
        )
        return record_id

    def rewrite(self, kind: Kind, row: int, record: Record) -> None:
        """Write the record of a row that the catalogue took over from another."""
        held = self.catalogue
        table = held.tables[kind.name]
        stored = self._stamp(record, held.id_of(table, row))
        found = table.rows[row]
        found["structure"] = held.texts.code(record.structure)
        found["labels"] = record.labels
        found["length"] = record.length
        found["stored_bytes"] = stored
        found["version"] = SCHEMA_VERSION

    def _stamp(self, record: Record, record_id: str) -> int:
        stored = 0
        for piece in record.pieces:
            first = self.catalogue.state["dimensions"]
            done = self._stamper.stamp(piece, record_id, self._layout, record.kind.elastic, first)
            self.catalogue.take_numbers(done.dimensions)
            stored += done.bytes
        return stored

    def copy_rest(self, old: tree.H5File, held: Catalogue) -> None:
        """Copy everything that is no record, the attributes of the root and its age included."""
        left = set(_record_addresses(old, held))
        first = self.catalogue.state["dimensions"]
        numbers = copy_groups(old, self._h5file, catalogue_file.GROUP, first, left=left)
        self.catalogue.state["dimensions"] = numbers
        tree.keep_creation_time(old, self._h5file)


def _record_addresses(h5file: tree.H5File, held: Catalogue) -> Iterable[int]:
    for entry in held.entries():
        for part in entry.kind.parts:
            if tree.has(h5file, f"{part.path}/{entry.id}"):
                parent = h5g.open(h5file.id, part.path.encode())
                yield int(h5o.get_info(parent, entry.id.encode()).addr)
