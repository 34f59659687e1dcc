"""The catalogue of a file made anew from its groups, where it has none or a damaged one.

It reads names and attributes of records and no values.  Nothing is known of shapes and labels
then: `structure` stays empty, and a range looks at the records themselves.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from typing import Any

import h5py
from h5py import h5d, h5g, h5o

from neurostore import catalogue_file, guard, h5attrs, ledger
from neurostore.catalogue import Catalogue
from neurostore.content import RECORDING_ATTR
from neurostore.damage import UNREADABLE
from neurostore.errors import RefusedError
from neurostore.records import LINK_ATTR, ORIGINAL_NAME
from neurostore.schema import KINDS, Kind

__all__ = ["FOREIGN", "add_kind", "merge", "rebuild"]

_log = logging.getLogger(__name__)

#: Version of records that others wrote; rows that are not used have 0.
FOREIGN = 2**32 - 1


def rebuild(h5file: h5py.File) -> Catalogue:
    """Return the catalogue of a file from its groups."""
    found = Catalogue()
    found.ledger = ledger.read(h5file)
    with contextlib.suppress(*UNREADABLE):
        catalogue_file.read_state(h5file, found)
    if found.state["removed"]:  # under which ids is not to be known any more
        found.ledger = found.ledger.forgetting(ledger.ALWAYS)
    for kind in KINDS.values():
        add_kind(found, h5file, kind)
    found.state["dimensions"] = _highest_number(h5file) + 1
    return found


def merge(held: Catalogue, h5file: h5py.File) -> None:
    """Add to a catalogue the records that somebody else put into the tree.

    For a file that was touched since its last commit.  A group with no more links than the kind
    has records costs a look at their number; a kind of several parts, where a link may lack
    here and be too many there, one at all names.
    """
    for kind in KINDS.values():
        live = held.select(kind)
        parents = [h5file.get(part.path) for part in kind.parts]
        groups = [parent for parent in parents if isinstance(parent, h5py.Group)]
        if len(kind.parts) > 1 or any(len(group) > len(live) for group in groups):
            add_kind(held, h5file, kind, set(held.ids(kind, live)))


def add_kind(
    found: Catalogue, h5file: h5py.File, kind: Kind, known: set[str] | None = None
) -> None:
    """Add the records of one kind that stand in the tree, but for those that are ``known``."""
    seen = set() if known is None else known
    for part in kind.parts:
        try:
            guard.check_path(h5file.id, part.path.encode())
        except RefusedError as error:
            _log.warning("%s: its records are left out: %s", h5file.filename, error)
            continue
        parent = h5file.get(part.path)
        if not isinstance(parent, h5py.Group):
            continue
        for leaf in parent:
            if leaf not in seen and (row := _foreign_row(parent, leaf, kind)) is not None:
                seen.add(leaf)
                _add_found(found, kind, leaf, row)
                if known is not None:
                    _keep_numbers(found, parent, leaf)


def _add_found(found: Catalogue, kind: Kind, leaf: str, row: Mapping[str, Any]) -> None:
    explicit = "" if kind.leaf(row["name"], row["timestamp"]) == leaf else leaf
    found.add(kind, leaf=explicit, **row)


def _keep_numbers(found: Catalogue, parent: h5py.Group, leaf: str) -> None:
    """See that the numbers of a record's dimensions are not given to another."""
    with contextlib.suppress(*UNREADABLE):  # named when it is read
        item = parent[leaf]
        highest = _highest_number(item) if isinstance(item, h5py.Group) else -1
        found.state["dimensions"] = max(found.state["dimensions"], highest + 1)


def _foreign_row(parent: h5py.Group, leaf: str, kind: Kind) -> dict[str, Any] | None:
    """Return what can be told of a record without reading it; None for what is no record."""
    if not guard.is_hard(parent.id, leaf.encode()):
        _log.warning(
            "%s: %s/%s is a link, which is not followed", parent.file.filename, parent.name, leaf
        )
        return None
    stem, _, stamp = leaf.rpartition("_")
    moment = stamp.partition("~")[0]
    try:
        return _told_row(parent[leaf], kind, stem, moment)
    except UNREADABLE:  # damaged: known by its name, and named when it is read
        return _row_of(moment, stem if kind.label else "", 0, FOREIGN)


def _told_row(
    item: h5py.Group | h5py.Dataset, kind: Kind, stem: str, moment: str
) -> dict[str, Any] | None:
    timestamp = h5attrs.read_one(item.id, b"timestamp")
    if isinstance(item, h5py.Group) and guard.exists(item.id, b"timestamp"):
        dataset = item["timestamp"]
        guard.check_dataset(dataset.id, str(dataset.name))
        timestamp = dataset[()] if dataset.size == 1 else None
    return _row_of(
        timestamp if timestamp is not None else moment,
        _name(item, kind, stem),
        _foreign_length(item, kind),
        int(h5attrs.read_one(item.id, b"schema_version") or FOREIGN),
    )


def _name(item: h5py.Group | h5py.Dataset, kind: Kind, stem: str) -> str:
    """Return the user-given name of a record; of layers, the names of all of them."""
    if kind.label is not None:
        name = h5attrs.read_one(item.id, kind.label.encode())
        return stem if name is None else str(name)
    if kind.mapping != "variables" or not h5py.h5a.exists(item.id, b"schema_version"):
        return ""
    auxiliary = str(h5attrs.read_one(item.id, b"coordinates") or "").split()
    found = []
    for link in item:
        dataset = item[link] if guard.is_hard(item.id, link.encode()) else None
        if isinstance(dataset, h5py.Dataset) and not dataset.is_scale and link not in auxiliary:
            found.append(_own_name(dataset, link))
    return ",".join(found)


def _own_name(dataset: h5py.Dataset, link: str) -> str:
    """Return the name that the user gave to what stands at a link."""
    for attribute in (ORIGINAL_NAME, LINK_ATTR):
        found = h5attrs.read_one(dataset.id, attribute.encode())
        if found is not None:
            return str(found)
    return link


def _row_of(timestamp: Any, name: str, length: int, version: int) -> dict[str, Any] | None:
    try:
        moment = float(timestamp)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(moment):
        return None
    return {"timestamp": moment, "name": name, "length": length, "version": version}


def _foreign_length(item: h5py.Group | h5py.Dataset, kind: Kind) -> int:
    if isinstance(item, h5py.Group) and h5py.h5a.exists(item.id, RECORDING_ATTR):
        return _recorded_length(item)
    if kind.elastic is None or not isinstance(item, h5py.Group):
        return 0
    sized = (row.name for row in kind.variables if guard.exists(item.id, row.name.encode()))
    first = next(sized, None)
    return int(item[first].shape[0]) if first is not None and item[first].shape else 0


def _recorded_length(group: h5py.Group) -> int:
    """Return the length of a record that grows: that of its dimension without an end."""
    for link in group:
        dataset = group[link] if guard.is_hard(group.id, link.encode()) else None
        if isinstance(dataset, h5py.Dataset) and None in dataset.maxshape:
            return int(dataset.shape[dataset.maxshape.index(None)])
    return 0


def _highest_number(found: h5py.Group) -> int:
    """Return the highest netCDF dimension number; what cannot be opened has none."""
    highest, seen, pending = -1, set(), [found.id]
    while pending:
        group = pending.pop()
        with contextlib.suppress(*UNREADABLE):
            for link in group:
                with contextlib.suppress(*UNREADABLE):
                    if not guard.is_hard(group, link):
                        continue
                    item = h5o.open(group, link)
                    if isinstance(item, h5g.GroupID):
                        address = h5o.get_info(item).addr
                        if address not in seen:
                            seen.add(address)
                            pending.append(item)
                    elif isinstance(item, h5d.DatasetID):
                        number = h5attrs.read_one(item, b"_Netcdf4Dimid")
                        highest = max(highest, -1 if number is None else int(number))
    return highest
