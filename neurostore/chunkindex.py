"""The index of the chunks of one dataset, moved as bytes: a fixed array of HDF5.

A dataset of a fixed size and several chunks has one (HDF5 File Format Specification, VII.C).
Other indexes are not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from neurostore.objectheader import UNDEFINED, Array, expect, sealed, sound

__all__ = ["ChunkIndex"]

_HEADER = 28
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
        client, width, bits = header[5], header[6], header[7]
        count, block = (int.from_bytes(header[n : n + 8], "little") for n in (8, 16))
        expect(client in (0, 1) and (width == 8 if not client else 13 <= width <= 20))
        expect(0 < count <= _MOST // width and bits < 32)
        per_page = 1 << bits
        paged = count > per_page
        number = -(-count // per_page) if paged else 0
        first = 14 + -(-number // 8)
        length = first + count * width + 4 * (number + 1)
        data = read(block, length) if block != UNDEFINED else b""
        expect(len(data) == length and data[:5] == b"FADB\0" and data[5] == client)
        expect(int.from_bytes(data[6:14], "little") == where)
        fields = [("address", "<u8")]
        if client:
            fields += [("size", f"V{width - 12}"), ("mask", "<u4")]
        dtype = np.dtype(fields)
        if not paged:
            expect(sound(data))
            pages = [np.frombuffer(data, dtype, count, first).copy()]
        else:
            expect(sound(data[: first + 4]) and _all_set(data[14:first], number))
            pages, at = [], first + 4
            for page in range(number):
                entries = min(per_page, count - page * per_page)
                end = at + entries * width + 4
                expect(sound(data[at:end]))
                pages.append(np.frombuffer(data, dtype, entries, at).copy())
                at = end
        found = cls(header, bytearray(data[:first]), pages, paged, whole)
        starts, sizes = found.extents
        inside = (sizes > 0) & (sizes <= size) & (starts >= 0) & (starts <= size - sizes)
        expect(bool(inside.all()))
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
        there = entries["address"] != UNDEFINED
        entries = entries if there.all() else entries[there]
        if entries.dtype.names == ("address",):
            sizes = np.full(len(entries), self.whole, np.int64)
        else:
            raw = np.ascontiguousarray(entries["size"]).view(np.uint8)
            padded = np.zeros((len(entries), 8), np.uint8)
            padded[:, : entries.dtype["size"].itemsize] = raw.reshape(len(padded), -1)
            sizes = padded.view("<i8")[:, 0]
        return entries["address"].astype(np.int64), sizes

    def tell(self, places: Array) -> None:
        """Take the new addresses of the chunks that are there."""
        at = 0
        for page in self.pages:
            there = page["address"] != UNDEFINED
            count = int(there.sum())
            page["address"][there] = places[at : at + count]
            at += count

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


def _all_set(bitmap: bytes, count: int) -> bool:
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8))
    return bool(bits[:count].all())
