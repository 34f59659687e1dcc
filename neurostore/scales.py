"""Which dimension scales a dataset has, as the scales themselves tell it.

HDF5 keeps the references both ways: DIMENSION_LIST of a dataset names its scales, and stands in
the global heap, which has no checksum; REFERENCE_LIST of a scale names the datasets, and stands
in the object header, which has one.  So names of dimensions are taken from the scales; the
other direction serves files that lack this one, and verification.  Objects are known by address:
the *name* of an object behind a reference makes HDF5 search the whole file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from h5py import h5a, h5d, h5ds, h5o, h5t

from neurostore import filters, globalheap, objectheader
from neurostore.errors import DamagedError

__all__ = ["address_of", "attached", "attached_to", "check", "referrers", "unlike"]

_REFERENCE_BYTES = 8


def address_of(dataset: h5d.DatasetID) -> int:
    """Return where the header of an object stands in the file."""
    return int(h5o.get_info(dataset).addr)


def referrers(scale: h5d.DatasetID) -> list[tuple[int, int]]:
    """Return address and axis of every dataset that a scale says it is attached to."""
    if not h5a.exists(scale, b"REFERENCE_LIST"):
        return []
    attribute = h5a.open(scale, b"REFERENCE_LIST")
    kind = attribute.get_type()
    if kind.get_class() != h5t.COMPOUND or kind.get_nmembers() != 2:
        return []
    # An object reference is the address of the object; taking it apart is a fifth of following it.
    raw = np.empty((*attribute.shape, kind.get_size()), "u1")
    attribute.read(raw, kind)
    where, axis = kind.get_member_offset(0), kind.get_member_offset(1)
    return [
        (
            int.from_bytes(row[where : where + _REFERENCE_BYTES].tobytes(), "little"),
            int.from_bytes(row[axis : axis + 4].tobytes(), "little"),
        )
        for row in raw.reshape(-1, raw.shape[-1])
    ]


def check(dataset: h5d.DatasetID) -> None:
    """Raise DamagedError where HDF5 would look for the scales of a dataset for ever."""
    if is_endless(dataset):
        raise DamagedError(
            "the references to scales in HDF5's global heap are damaged: sizes of elements lead "
            "nowhere; repair() copies the record without them (neurostore repair FILE -o NEW)"
        )


def is_endless(dataset: h5d.DatasetID) -> bool:
    """Tell whether HDF5 would look for the scales of a dataset for ever.

    That can be told of files that HDF5 itself reads, and headers as neurostore writes them.
    """
    descriptor = filters.descriptor_of(dataset)
    if descriptor < 0:
        return False

    def read(where: int, length: int) -> bytes:
        return os.pread(descriptor, length, where)

    try:
        places = objectheader.heaps(read, address_of(dataset))
    except objectheader.Unfamiliar:
        return False
    return any(globalheap.is_endless(read, where) for where in places)


def attached(dataset: h5d.DatasetID, axis: int) -> int | None:
    """Return the address of the scale that a dataset says its axis has, or None."""
    check(dataset)
    return _attached(dataset, axis)


def attached_to(dataset: h5d.DatasetID) -> list[int | None]:
    """Return the same for every axis."""
    check(dataset)
    return [_attached(dataset, axis) for axis in range(dataset.rank)]


def _attached(dataset: h5d.DatasetID, axis: int) -> int | None:
    if h5ds.get_num_scales(dataset, axis) < 1:
        return None
    found: int | None = h5ds.iterate(dataset, axis, address_of)
    return found


def unlike(
    datasets: Iterable[tuple[str, h5d.DatasetID]], scales: Iterable[h5d.DatasetID]
) -> list[tuple[str, str]]:
    """Return the datasets whose references and those of the scales disagree, each with how."""
    told = {place: address_of(scale) for scale in scales for place in referrers(scale)}
    wrong = []
    for name, dataset in datasets:
        address = address_of(dataset)
        try:
            check(dataset)
        except DamagedError as error:
            wrong.append((name, str(error)))
            continue
        for axis in range(dataset.rank):
            try:
                own = _attached(dataset, axis)
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                wrong.append(
                    (name, f"the reference to the scale of axis {axis} is damaged: {error}")
                )
                continue
            if own != told.get((address, axis)):
                wrong.append((name, f"axis {axis} and its scale do not refer to each other"))
    return wrong
