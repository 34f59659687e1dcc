"""Records of one file, and their rows, into a new one: what repair does to HDF5.

The new file is nobody's yet, so it is written without a journal; whoever calls this decides which
records are worth it, and starts again where it fails.
"""

from __future__ import annotations

from collections.abc import Sequence

import h5py
from h5py import h5g

from neurostore import catalogue_file, content, rawcopy, schema
from neurostore.emptyfile import build
from neurostore.soundness import Row, rows_in_tree
from neurostore.tree import H5File, write_catalogue

__all__ = ["begin", "copy", "finish", "other_groups"]

_V110 = ("v110", "v110")
begin = build


def copy(source: H5File, target: str, rows: Sequence[Row], first_number: int, rehash: bool) -> int:
    """Copy the parts of records; return the first netCDF dimension number that is still free.

    Parameters
    ----------
    target
        Path of a file that `begin` made.
    first_number
        What the last call returned; 0 in the first one.
    rehash
        Give every part the content hash of what it holds now.
    """
    with h5py.File(target, "r+", libver=_V110) as new:
        number = first_number or _first_number(new)
        for row in rows:
            for part in schema.kind_of(row.kind).parts:
                address = f"{part.path}/{row.id}".encode()
                if address not in source.id:
                    continue
                here = h5g.open(source.id, part.path.encode())
                there = h5g.open(new.id, part.path.encode())
                number = rawcopy.copy_item(here, there, row.id.encode(), number)
                if rehash:
                    _rehash(new, address)
    return number


def _first_number(h5file: h5py.File) -> int:
    fresh = catalogue_file.read(h5file)
    assert fresh is not None
    return fresh.state["dimensions"]


def _rehash(h5file: h5py.File, address: bytes) -> None:
    group = h5g.open(h5file.id, address)
    if content.read(group) is not None:
        content.fill(group, content.of_group(group))


def finish(target: str, rows: Sequence[Row], doubted: set[tuple[str, str]], number: int) -> None:
    """Write the catalogue of the copied records.

    Parameters
    ----------
    doubted
        Kind and id of records whose row is not to be believed: the groups tell instead.
    number
        The first free dimension number.
    """
    with h5py.File(target, "r+", libver=_V110) as new:
        told = {
            (row.kind, row.id): row
            for kind in {kind for kind, _ in doubted}
            for row in rows_in_tree(new, schema.kind_of(kind))
        }
        fresh = catalogue_file.read(new)
        assert fresh is not None
        for row in rows:
            own = told[row.kind, row.id] if (row.kind, row.id) in doubted else row
            kind = schema.kind_of(own.kind)
            fresh.add(
                kind,
                timestamp=own.timestamp,
                name=own.name,
                leaf="" if kind.leaf(own.name, own.timestamp) == own.id else own.id,
                structure=own.structure,
                labels=own.labels,
                length=own.length,
                stored_bytes=own.stored_bytes,
                version=own.version,
            )
        fresh.state["dimensions"] = number
        write_catalogue(fresh, new)


def other_groups(h5file: H5File) -> list[str]:
    """Return what stands at the top of a file and is no part of the tree of records."""
    known = {part.path.partition("/")[0] for kind in schema.KINDS.values() for part in kind.parts}
    known |= {path.partition("/")[0] for path in schema.EMPTY_GROUPS}
    return [name for name in h5file if name not in known | {catalogue_file.GROUP.decode()}]
