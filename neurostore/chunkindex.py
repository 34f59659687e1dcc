"""The index of the chunks of one dataset, moved as bytes: a fixed array of HDF5.

A dataset of a fixed size and several chunks has one (HDF5 File Format Specification, VII.C).
Other indexes are not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from neurostore.objectheader import UNDEFINED, Array, expect, sealed, sound

__all__ = ["ChunkIndex"]

_HEADER = 28
#: Behind signature and version: client, bytes of an entry, entries of a page, entries, data block.
_FIELDS = struct.Struct("<BBBQQ")
#: An entry: address, then of an encoded chunk its size and its filter mask.
_ADDRESS, _MASK = 8, 4
_NOWHERE = -1
_PLACE_VALUES = 256 ** np.arange(8, dtype=np.int64)
_MOST = 256 * 1024 * 1024


@dataclass
class ChunkIndex:
    """Header, data block and entries of a fixed array; ``place`` is where it is to stand."""

    header: bytearray
    #: What stands before the entries: signature, version, client, address of the header, bitmap.
    prefix: bytearray
    pages: list[Array]
    paged: bool
    whole: int
    place: int = 0

    @classmethod
    def read(cls, read: Callable[[int, int], bytes], where: int, whole: int, size: int) -> Self:
        """Read the index whose header stands at ``where``; ``whole`` is the size of a chunk."""
        header = bytearray(read(where, _HEADER))
        expect(len(header) == _HEADER and header[:5] == b"FAHD\0" and sound(header))
        client, width, bits, count, block = _FIELDS.unpack_from(header, 5)
        expect(client in (0, 1) and (width == 8 if not client else 13 <= width <= 20))
        expect(0 < count <= _MOST // width and bits < 32)
        per_page = 1 << bits
        paged = count > per_page
        number = -(-count // per_page) if paged else 0
        first = 14 + -(-number // 8)
        length = first + count * width + 4 * (number + 1)
        data = bytearray(read(block, length) if block != UNDEFINED else b"")
        expect(len(data) == length and data[:5] == b"FADB\0" and data[5] == client)
        expect(int.from_bytes(data[6:14], "little") == where)
        if not paged:
            expect(sound(data))
            pages = [_entries(data, first, count, width)]
        else:
            expect(sound(data[: first + 4]) and _all_set(bytes(data[14:first]), number))
            pages, at = [], first + 4
            for page in range(number):
                entries = min(per_page, count - page * per_page)
                end = at + entries * width + 4
                expect(sound(data[at:end]))
                pages.append(_entries(data, at, entries, width))
                at = end
        found = cls(header, data[:first], pages, paged, whole)
        starts, sizes = found.extents
        if starts.size:
            expect(starts.min() >= 0 < sizes.min() and sizes.max() <= size)
            expect((size - sizes - starts).min() >= 0)
        return found

    @property
    def length(self) -> int:
        """Bytes of header and data block."""
        entries = sum(page.nbytes for page in self.pages)
        return _HEADER + len(self.prefix) + entries + 4 * (len(self.pages) + self.paged)

    @cached_property
    def extents(self) -> tuple[Array, Array]:
        """Address and size of every chunk that was there when it was read."""
        entries = np.concatenate(self.pages) if len(self.pages) > 1 else self.pages[0]
        starts = _addresses(entries)
        if entries.shape[1] == _ADDRESS:
            expect(self.whole < 1 << 63)
            sizes = np.full(len(entries), self.whole, np.int64)
        else:
            sizes = (
                entries[:, _ADDRESS:-_MASK] @ _PLACE_VALUES[: entries.shape[1] - _ADDRESS - _MASK]
            )
        there = starts != _NOWHERE
        return (starts, sizes) if there.all() else (starts[there], sizes[there])

    def tell(self, places: Array) -> None:
        """Take the new addresses of the chunks that are there."""
        at = 0
        for page in self.pages:
            there = (_addresses(page) != _NOWHERE).nonzero()[0]
            new = places[at : at + len(there)].astype("<i8").view(np.uint8)
            page[there, :_ADDRESS] = new.reshape(-1, _ADDRESS)
            at += len(there)

    def image(self) -> bytes:
        """Return header and data block as they are to stand, one behind the other."""
        self.header[16:24] = (self.place + _HEADER).to_bytes(8, "little")
        self.prefix[6:14] = self.place.to_bytes(8, "little")
        parts = [sealed(bytes(self.header[:-4]))]
        if self.paged:
            parts += [sealed(bytes(self.prefix)), *(sealed(p.tobytes()) for p in self.pages)]
        else:
            parts.append(sealed(bytes(self.prefix) + self.pages[0].tobytes()))
        return b"".join(parts)


def _entries(data: bytearray, at: int, count: int, width: int) -> Array:
    """Return one entry a row, to be written to."""
    return np.frombuffer(data, np.uint8, count * width, at).reshape(count, width)


def _addresses(entries: Array) -> Array:
    return np.ascontiguousarray(entries[:, :_ADDRESS]).view("<i8")[:, 0]


def _all_set(bitmap: bytes, count: int) -> bool:
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8))
    return bool(bits[:count].all())
