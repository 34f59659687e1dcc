"""What the groups of a record hold, from the bytes of their headers.

HDF5 and h5py take a third of a millisecond to open a dataset and tell its attributes; its header
is a few hundred bytes, which lie beside those of the rest of the record.  So headers are read past
HDF5 where it reads the file itself and nobody writes through the handle, each checked against its
checksum.  Only what neurostore writes is known here; of anything else HDF5 is to be asked.  No
values of variables are read, and nothing is made of what was found.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from h5py import h5t

from neurostore import guard
from neurostore.h5attrs import HIDDEN
from neurostore.objectheader import Unfamiliar, expect, messages, split_attribute
from neurostore.types import CRC_PREFIX

__all__ = ["Header", "contents"]

#: Messages (HDF5 File Format Specification 3.0, IV.A.2), and what may stand in which header.
_SPACE, _LINK_INFO, _TYPE, _FILL, _LINK, _LAYOUT = 0x01, 0x02, 0x03, 0x05, 0x06, 0x08
_GROUP_INFO, _FILTERS, _ATTRIBUTE, _ATTRIBUTE_INFO = 0x0A, 0x0B, 0x0C, 0x15
_OF_GROUPS = frozenset({_LINK_INFO, _GROUP_INFO, _LINK, _ATTRIBUTE, _ATTRIBUTE_INFO})
_OF_DATASETS = frozenset({_SPACE, _TYPE, _FILL, _LAYOUT, _FILTERS, _ATTRIBUTE, _ATTRIBUTE_INFO})
#: Within the header, in one piece, and in chunks: not those whose values are in other files.
_LAYOUTS = frozenset({0, 1, 2})
_INTEGER, _FLOAT, _TEXT, _COMPOUND = 0, 1, 3, 6
#: Filters from this number on are stored with their names.
_NAMED = 256
#: A reference to a dataset and one of its axes.
_REFERENCE_BYTES = 16
_CRC = CRC_PREFIX.encode()
_SCALE = "DIMENSION_SCALE"
#: Bytes that are read at once: the headers of a small record.
_AT_ONCE = 8192
#: Longer attributes are seldom the same twice.
_REMEMBERED_BYTES = 512


@dataclass(slots=True)
class Header:
    """One dataset: where its header is, its shape and dtype on disk, and its attributes.

    `attached` has address and axis of the datasets that it is the scale of; `number` is that of a
    dimension in netCDF-4, `numbers` are those of the dimensions of a scale with several axes.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]
    attached: list[tuple[int, int]]
    is_scale: bool
    scale_name: bytes
    number: int
    numbers: tuple[int, ...]


def contents(
    descriptor: int, address: int
) -> tuple[list[tuple[str, Any]], dict[bytes, Header]] | None:
    """Return the attributes of a group, and the datasets in it by name, all in their order.

    None where HDF5 is to be asked: also where there are other groups in it.
    """
    read = _Window(descriptor)
    try:
        attrs, links = _group(read, address)
        return attrs, {name: _dataset(read, where) for name, where in links.items()}
    except _ODD:
        return None


#: What a header can lead to that is not as expected, but agrees with its checksum.
_ODD = (
    Unfamiliar,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class _Window:
    """Reads bytes of a file; what lies near what was asked for before is in memory already."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._start = 0
        self._held = b""

    def __call__(self, offset: int, length: int) -> bytes:
        """Return bytes from ``offset`` on, fewer where the file ends."""
        at = offset - self._start
        if at < 0 or at + length > len(self._held):
            expect(0 <= offset < 2**63)
            self._held = os.pread(self._descriptor, max(length, _AT_ONCE), offset)
            self._start, at = offset, 0
        return self._held[at : at + length]


def _group(read: _Window, address: int) -> tuple[list[tuple[str, Any]], dict[bytes, int]]:
    """Return the attributes of a group in their order, and what is in it."""
    found = _by_kind(messages(read, address), _OF_GROUPS)
    expect(len(found.get(_LINK_INFO, ())) == 1)
    attrs = dict(map(_attribute, found.get(_ATTRIBUTE, ())))
    shown = [(name.decode(), attrs[name]) for name in sorted(attrs.keys() - HIDDEN)]
    ordered = found[_LINK_INFO][0][1] & 1
    links = sorted(_link(body, ordered) for body in found.get(_LINK, ()))
    return shown, {name: where for _, name, where in links}


def _dataset(read: _Window, address: int) -> Header:
    found = _by_kind(messages(read, address), _OF_DATASETS)
    expect(all(len(found.get(kind, ())) == 1 for kind in (_SPACE, _TYPE, _LAYOUT)))
    expect(found[_LAYOUT][0][1] in _LAYOUTS)
    for body in found.get(_FILTERS, ()):
        expect(_filters(body) <= guard.BUILT_IN | guard.BY_HAND)
    attrs = dict(map(_attribute, found.get(_ATTRIBUTE, ())))
    return Header(
        address,
        _shape(found[_SPACE][0]),
        _dtype(found[_TYPE][0]),
        {name.decode(): attrs[name] for name in sorted(attrs.keys() - HIDDEN)},
        attrs.get(b"REFERENCE_LIST", []),
        attrs.get(b"CLASS") == _SCALE,
        attrs.get(b"NAME", "").encode(),
        int(attrs.get(b"_Netcdf4Dimid", -1)),
        tuple(map(int, attrs.get(b"_Netcdf4Coordinates", ()))),
    )


def _by_kind(found: Iterable[tuple[int, bytes]], known: frozenset[int]) -> dict[int, list[bytes]]:
    """Sort messages; raise for one that is not known, and for what lies outside the header."""
    sorted_out: dict[int, list[bytes]] = {}
    for kind, body in found:
        sorted_out.setdefault(kind, []).append(body)
    expect(sorted_out.keys() <= known)
    for kind, tracked in ((_LINK_INFO, 8), (_ATTRIBUTE_INFO, 2)):
        for body in sorted_out.get(kind, ()):
            places = body[2 + (tracked if body[1] & 1 else 0) :]
            expect(body[0] == 0 and places == b"\xff" * len(places))
    return sorted_out


def _link(body: bytes, ordered: int) -> tuple[int, bytes, int]:
    """Return which link of its group a hard link is, if that is told, its name and its target."""
    expect(body[0] == 1 and not body[1] & 0x08)  # of another type than hard
    order = int.from_bytes(body[2:10], "little") if ordered and body[1] & 4 else 0
    start = 2 + (8 if body[1] & 4 else 0) + (1 if body[1] & 16 else 0)
    width = 1 << (body[1] & 3)
    stop = start + width + int.from_bytes(body[start : start + width], "little")
    expect(len(body) == stop + 8)
    return order, body[start + width : stop], int.from_bytes(body[stop:], "little")


def _attribute(body: bytes) -> tuple[bytes, Any]:
    name, value = (_remembered if len(body) <= _REMEMBERED_BYTES else _taken_apart)(body)
    return name, value.copy() if isinstance(value, np.ndarray) else value


def _taken_apart(body: bytes) -> tuple[bytes, Any]:
    """Return name and value of an attribute; of those of HDF5's book-keeping only what is used."""
    name, kind, space, start = split_attribute(body)
    expect(not name.startswith(_CRC))
    raw = body[start:]
    family, size = kind[0] & 15, int.from_bytes(kind[4:8], "little")
    if name == b"DIMENSION_LIST":
        return name, None
    if name == b"REFERENCE_LIST":
        expect(family == _COMPOUND and size == _REFERENCE_BYTES)
        return name, [struct.unpack_from("<QI", raw, at) for at in range(0, len(raw), size)]
    shape = _shape(space)
    if family == _TEXT:
        expect(shape == () and len(raw) == size)
        return name, raw.rstrip(b"\0").decode("utf-8", "surrogateescape")
    values = np.frombuffer(raw, _dtype(kind))
    expect(values.size == math.prod(shape))
    return name, values.reshape(shape)[()]


_remembered = lru_cache(maxsize=1024)(_taken_apart)


def _shape(body: bytes) -> tuple[int, ...]:
    """Return the lengths of a dataspace, none for a scalar."""
    expect(body[0] == 2 and body[3] in (0, 1) and len(body) >= 4 + 8 * body[1])
    return struct.unpack_from(f"<{body[1]}Q", body, 4)


@lru_cache(maxsize=256)
def _dtype(body: bytes) -> np.dtype[Any]:
    """Return the NumPy type of numbers and characters, as HDF5 and h5py have it."""
    family = body[0] & 15
    expect(len(body) >= {_INTEGER: 12, _FLOAT: 20, _TEXT: 8}.get(family, sys.maxsize))
    found: np.dtype[Any] = h5t.decode(b"\x03\0" + body).dtype
    return found


def _filters(body: bytes) -> frozenset[int]:
    """Return the numbers of the filters of a pipeline."""
    expect(body[0] == 2)
    found, at = set(), 2
    for _ in range(body[1]):
        code = int.from_bytes(body[at : at + 2], "little")
        named = 2 if code >= _NAMED else 0
        name = int.from_bytes(body[at + 2 : at + 2 + named], "little")
        at += 2 + named
        values = int.from_bytes(body[at + 2 : at + 4], "little")
        at += 4 + name + 4 * values
        expect(at <= len(body))
        found.add(code)
    return frozenset(found)
