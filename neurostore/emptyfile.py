"""The file of an empty store: made by HDF5 once, and from then on written as bytes.

HDF5 takes ten times as long to make the groups as a copy of them takes to write.  What tells one
copy from another, its identity and its age, is put into the bytes.  Nothing is opened or synced
here.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from h5py import h5f, h5o, h5p

from neurostore import catalogue_file, h5attrs, schema
from neurostore.catalogue import Catalogue
from neurostore.objectheader import read_form, sealed

__all__ = ["build", "lay"]

#: What a stranger who opens the file is told; text as NUL-free UTF-8 of fixed length.
ROOT_ATTRS: Mapping[str, Any] = {
    "Conventions": "CF-1.11",
    "title": "neural-simulation records, each one labelled netCDF-4 group",
    "neurostore": "xarray.open_dataset(path, engine='neurostore') is the table of records; "
    "xarray.open_dataset(path, group=..., engine='h5netcdf') reads one of them without neurostore",
    "schema_version": np.int64(schema.SCHEMA_VERSION),
}
#: In place of the time at which the file is made, to be found again: 1,700 years before Christ.
_WHEN = -1.1588412345678e11
_TIME = struct.Struct("=d")


@dataclass(frozen=True)
class _Empty:
    """An empty store as bytes, and where in them its age, the header with it and the state are."""

    data: bytes
    age: int
    header: slice
    state: int


def build(temporary: str) -> tuple[Catalogue, int]:
    """Fill the file at ``temporary`` with the empty tree of a store.

    Returns its catalogue, and where in the file the counters of that stand.

    ``FSPACE_STRATEGY_NONE``: the others reuse freed space, and a reader of a deleted dataset
    then reads another record's values without an error.
    """
    now = time.time_ns()
    empty = _empty(0)
    data = bytearray(empty.data)
    data[empty.age : empty.age + _TIME.size] = _TIME.pack(now / 1e9)
    data[empty.header] = sealed(bytes(data[empty.header][:-4]))
    held = catalogue_file.blank()
    held.state["modified"] = now
    values = catalogue_file.state_bytes(held)
    data[empty.state : empty.state + len(values)] = values
    with open(temporary, "wb") as stream:
        stream.write(data)
    os.utime(temporary, ns=(now, now))  # so that nobody looks for what others put into it
    return held, empty.state


def lay(temporary: str | os.PathLike[str], page_size: int = 0) -> None:
    """Do as :func:`build` for a file that gets the identity and the age of another.

    A finished file may be laid out in pages of ``page_size`` bytes for object storage.
    """
    with open(temporary, "wb") as stream:
        stream.write(_empty(page_size).data)


@lru_cache(maxsize=4)
def _empty(page_size: int) -> _Empty:
    """Make an empty store.

    It is made on the disk: HDF5 1.14 gives the image of a file in memory with its flags cleared
    and the checksum of the superblock as it was before.
    """
    creation = h5p.create(h5p.FILE_CREATE)
    if page_size:
        creation.set_file_space_strategy(h5f.FSPACE_STRATEGY_PAGE, False, 1)
        creation.set_file_space_page_size(page_size)
    else:
        creation.set_file_space_strategy(h5f.FSPACE_STRATEGY_NONE, False, 1)
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "empty.h5")
        made = h5f.create(os.fsencode(path), h5f.ACC_TRUNC, fcpl=creation, fapl=access)
        with h5py.File(made) as h5file:
            root, state = _fill(h5file)
        with open(path, "rb") as stream:
            data = stream.read()
    form = read_form(lambda offset, length: data[offset : offset + length], root)
    mark = _TIME.pack(_WHEN)
    (header,) = [piece for piece in form.pieces if mark in piece]
    start = data.index(header)
    return _Empty(data, start + header.index(mark), slice(start, start + len(header)), state)


def _fill(h5file: h5py.File) -> tuple[int, int]:
    """Make the groups of an empty store; return where its root and its state are."""
    for key, value in ROOT_ATTRS.items():
        h5attrs.write(h5file.id, h5attrs.pack(key, value))
    h5attrs.write(h5file.id, h5attrs.pack("created_at", np.float64(_WHEN)))
    catalogue_file.create(h5file)
    for kind in schema.KINDS.values():
        for part in kind.parts:
            h5file.require_group(part.path)
    for empty in schema.EMPTY_GROUPS:
        h5file.require_group(empty)
    return int(h5o.get_info(h5file["/"].id).addr), catalogue_file.state_offset(h5file)
