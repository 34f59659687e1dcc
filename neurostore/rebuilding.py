"""The catalogue of a file made anew from its groups, where it has none or a damaged one.

It reads names and attributes of records and no values.  Nothing is known of shapes and labels
then: `structure` stays empty, and a range looks at the records themselves.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import h5py

from neurostore import catalogue_file, h5attrs, ledger
from neurostore.catalogue import Catalogue
from neurostore.schema import KINDS, Kind

__all__ = ["FOREIGN", "add_kind", "rebuild"]

#: Version of records that others wrote; rows that are not used have 0.
FOREIGN = 2**32 - 1


def rebuild(h5file: h5py.File) -> Catalogue:
    """Return the catalogue of a file from its groups."""
    found = Catalogue()
    found.ledger = ledger.read(h5file)
    with contextlib.suppress(KeyError, OSError, ValueError, RuntimeError):
        catalogue_file.read_state(h5file, found)
    if found.state["removed"]:  # under which ids is not to be known any more
        found.ledger = found.ledger.forgetting(ledger.ALWAYS)
    for kind in KINDS.values():
        add_kind(found, h5file, kind)
    found.state["dimensions"] = _highest_number(h5file) + 1
    return found


def add_kind(found: Catalogue, h5file: h5py.File, kind: Kind) -> None:
    """Add the records of one kind that stand in the tree."""
    seen: set[str] = set()
    for part in kind.parts:
        parent = h5file.get(part.path)
        if not isinstance(parent, h5py.Group):
            continue
        for leaf in parent:
            if leaf not in seen and (row := _foreign_row(parent, leaf, kind)) is not None:
                seen.add(leaf)
                _add_found(found, kind, leaf, row)


def _add_found(found: Catalogue, kind: Kind, leaf: str, row: Mapping[str, Any]) -> None:
    explicit = "" if kind.leaf(row["name"], row["timestamp"]) == leaf else leaf
    found.add(kind, leaf=explicit, **row)


def _foreign_row(parent: h5py.Group, leaf: str, kind: Kind) -> dict[str, Any] | None:
    """Return what can be told of a record without reading it; None for what is no record."""
    if parent.get(leaf, getlink=True).__class__ is not h5py.HardLink:
        return None
    stem, _, stamp = leaf.rpartition("_")
    try:
        item = parent[leaf]
    except (KeyError, OSError, RuntimeError):  # damaged: known by its name, and named when read
        return _row_of(stamp.partition("~")[0], stem if kind.label else "", 0, FOREIGN)
    timestamp = h5attrs.read_one(item.id, b"timestamp")
    if isinstance(item, h5py.Group) and "timestamp" in item:
        timestamp = item["timestamp"][()]
    name = h5attrs.read_one(item.id, kind.label.encode()) if kind.label else None
    return _row_of(
        timestamp if timestamp is not None else stamp.partition("~")[0],
        str(name) if name is not None else (stem if kind.label else ""),
        _foreign_length(item, kind),
        int(h5attrs.read_one(item.id, b"schema_version") or FOREIGN),
    )


def _row_of(timestamp: Any, name: str, length: int, version: int) -> dict[str, Any] | None:
    try:
        moment = float(timestamp)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(moment):
        return None
    return {"timestamp": moment, "name": name, "length": length, "version": version}


def _foreign_length(item: h5py.Group | h5py.Dataset, kind: Kind) -> int:
    if kind.elastic is None or not isinstance(item, h5py.Group):
        return 0
    sized = (row.name for row in kind.variables if row.name in item)
    first = next(sized, None)
    return int(item[first].shape[0]) if first is not None and item[first].shape else 0


def _highest_number(h5file: h5py.File) -> int:
    highest = -1

    def look(_: str, item: Any) -> None:
        nonlocal highest
        number = h5attrs.read_one(item.id, b"_Netcdf4Dimid")
        if number is not None:
            highest = max(highest, int(number))

    h5file.visititems(look)
    return highest
