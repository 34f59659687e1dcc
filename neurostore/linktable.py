"""The links of a group with many members, written as bytes: a fractal heap and a B-tree of names.

HDF5 takes some ten microseconds for a link, and cannot make one to an object that was written
past it.  What is written here is what HDF5 would have made of the same links (dense link storage:
HDF5 File Format Specification, III.A.2, III.G and IV.A.2.c), with its parameters, so it goes on
with it: free space in the heap is not offered again, and the next link gets a block of its own.
It knows nothing of records.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from neurostore.objectheader import UNDEFINED, checksum, sealed

__all__ = ["Link", "dense_links"]

#: Name, address of the object, whether the name is said to be UTF-8.
Link: TypeAlias = tuple[bytes, int, bool]

# What HDF5 makes the heap and the tree of a group with (H5Gdense.c).
_WIDTH, _START, _LARGEST, _BITS = 4, 512, 65536, 32
_DIRECT_ROWS = 9  # rows of blocks that hold links; from there on blocks hold blocks
_OVERHEAD = 4 + 1 + 8 + 4 + 4
_ID_BYTES, _MOST_BYTES = 7, 4096
_ID = struct.Struct("<xIH")
_NODE, _RECORD, _SPLIT, _MERGE = 512, 11, 100, 40
_PREFIX = 10
_LEAF_RECORDS = (_NODE - _PREFIX) // _RECORD


def dense_links(links: Sequence[Link], end: int) -> tuple[bytes, int, int]:
    """Lay out a table of links that is to stand at ``end``.

    Returns
    -------
    bytes, int, int
        What is to be written there, and the addresses of heap and tree.
    """
    heap = _Heap(end)
    ids = heap.put_all([_message(link) for link in links])
    image = heap.image()
    hashes = [checksum(name) for name, *_ in links]
    order = sorted(range(len(links)), key=lambda n: (hashes[n], links[n][0]))
    records = [hashes[n].to_bytes(4, "little") + ids[n] for n in order]
    tree = end + len(image)
    return image + _tree(records, tree), end, tree


def _message(link: Link) -> bytes:
    name, address, unicode = link
    return _head(len(name), unicode) + name + address.to_bytes(8, "little")


@lru_cache(maxsize=1024)
def _head(length: int, unicode: bool) -> bytes:
    width = 0 if length < 256 else 1
    head = bytes((1, width | (0x10 if unicode else 0))) + (b"\x01" if unicode else b"")
    return head + length.to_bytes(1 << width, "little")


def _row_size(row: int) -> int:
    return _START << max(0, row - 1)


def _row_offset(row: int) -> int:
    return 0 if not row else _WIDTH * _START << (row - 1)


def _rows_within(size: int) -> int:
    """Rows of the block of blocks that spans ``size`` bytes of the heap."""
    return size.bit_length() - (_WIDTH * _START).bit_length() + 1


@dataclass
class _Block:
    """A direct block: where it begins in the heap, how long it is, what it holds."""

    offset: int
    size: int
    data: bytearray


class _Heap:
    """A fractal heap whose header stands at ``where``, its blocks behind it."""

    def __init__(self, where: int) -> None:
        self._where = where
        self._blocks: list[_Block] = []
        self._next = 0
        self._count = 0

    def put_all(self, objects: Sequence[bytes]) -> list[bytes]:
        """Add objects; return their ids."""
        ids = []
        end = room = 0
        for data in objects:
            length = len(data)
            assert length <= _MOST_BYTES
            while length > room:
                block = self._another()
                end, room = block.offset + _OVERHEAD, block.size - _OVERHEAD
            block.data += data
            ids.append(_ID.pack(end, length))
            end, room = end + length, room - length
        self._count += len(ids)
        return ids

    def _another(self) -> _Block:
        size = _size_at(self._next)
        self._blocks.append(_Block(self._next, size, bytearray()))
        self._next += size
        return self._blocks[-1]

    def image(self) -> bytes:
        parts = [b""]
        at = self._where + _HEAP_HEADER
        if len(self._blocks) == 1:
            rows, span = 0, self._blocks[0].size
            root, direct = at, self._direct(self._blocks[0])
            parts.append(direct)
        else:
            rows = _rows_for(self._next)
            span = _row_offset(rows)
            root = self._indirect(parts, at, 0, rows, iter(self._blocks))
        room = _room(rows) if rows else span - _OVERHEAD
        free = room - sum(len(block.data) for block in self._blocks)
        allocated = sum(block.size for block in self._blocks)
        parts[0] = self._header(root, rows, span, allocated, free)
        return b"".join(parts)

    def _header(self, root: int, rows: int, span: int, allocated: int, free: int) -> bytes:
        numbers = (0, UNDEFINED, free, UNDEFINED, span, allocated, self._next, self._count)
        return sealed(
            b"FRHP\0"
            + _ID_BYTES.to_bytes(2, "little")
            + bytes(2)
            + b"\x02"
            + _MOST_BYTES.to_bytes(4, "little")
            + b"".join(n.to_bytes(8, "little") for n in (*numbers, 0, 0, 0, 0))
            + _WIDTH.to_bytes(2, "little")
            + _START.to_bytes(8, "little")
            + _LARGEST.to_bytes(8, "little")
            + _BITS.to_bytes(2, "little")
            + (1).to_bytes(2, "little")
            + root.to_bytes(8, "little")
            + rows.to_bytes(2, "little")
        )

    def _direct(self, block: _Block) -> bytes:
        head = b"FHDB\0" + self._where.to_bytes(8, "little") + block.offset.to_bytes(4, "little")
        data = bytes(block.data).ljust(block.size - _OVERHEAD, b"\0")
        total = checksum(head + bytes(4) + data)
        return head + total.to_bytes(4, "little") + data

    def _indirect(
        self, parts: list[bytes], at: int, offset: int, rows: int, blocks: Iterator[_Block]
    ) -> int:
        """Write a block of blocks at ``at``, those that it names behind it; return its address."""
        head = b"FHIB\0" + self._where.to_bytes(8, "little") + offset.to_bytes(4, "little")
        length = len(head) + 8 * _WIDTH * rows + 4
        slot = len(parts)
        parts.append(b"")
        entries = []
        behind = at + length
        for row in range(rows):
            for column in range(_WIDTH):
                begin = offset + _row_offset(row) + column * _row_size(row)
                if begin >= self._next:
                    entries.append(UNDEFINED)
                    continue
                entries.append(behind)
                before = sum(map(len, parts[slot + 1 :])) if row >= _DIRECT_ROWS else 0
                if row < _DIRECT_ROWS:
                    parts.append(self._direct(next(blocks)))
                    behind += len(parts[-1])
                else:
                    within = _rows_within(_row_size(row))
                    self._indirect(parts, behind, begin, within, blocks)
                    behind += sum(map(len, parts[slot + 1 :])) - before
        parts[slot] = sealed(head + b"".join(e.to_bytes(8, "little") for e in entries))
        return at


_HEAP_HEADER = 146


def _rows_for(used: int) -> int:
    rows = 1
    while _row_offset(rows) < used:
        rows += 1
    return rows


def _size_at(offset: int) -> int:
    """Return the size of the direct block that begins at an offset of the heap."""
    while True:
        row = 0
        while _row_offset(row + 1) <= offset:
            row += 1
        if row < _DIRECT_ROWS:
            return _row_size(row)
        offset = (offset - _row_offset(row)) % _row_size(row)


def _room(rows: int) -> int:
    """Bytes for objects in all blocks of a block of blocks, made or not."""
    return sum(_WIDTH * _room_of(row) for row in range(rows))


def _room_of(row: int) -> int:
    size = _row_size(row)
    return size - _OVERHEAD if row < _DIRECT_ROWS else _room(_rows_within(size))


def _tree(records: Sequence[bytes], where: int) -> bytes:
    """Lay out a B-tree, version 2, of sorted records; its header stands at ``where``."""
    most = [_LEAF_RECORDS]  # records of a node, by its height
    below = [_LEAF_RECORDS]  # and of all under it
    while below[-1] < len(records):
        pointer = _pointer(len(most), below)
        most.append((_NODE - _PREFIX - pointer) // (_RECORD + pointer))
        below.append((most[-1] + 1) * below[-1] + most[-1])
    parts = [b""]
    depth = len(most) - 1
    root, count = _node(parts, where + 38, records, depth, below)
    parts[0] = sealed(
        b"BTHD\0\x05"
        + _NODE.to_bytes(4, "little")
        + _RECORD.to_bytes(2, "little")
        + depth.to_bytes(2, "little")
        + bytes((_SPLIT, _MERGE))
        + root.to_bytes(8, "little")
        + count.to_bytes(2, "little")
        + len(records).to_bytes(8, "little")
    )
    return b"".join(parts)


def _node(
    parts: list[bytes], base: int, records: Sequence[bytes], depth: int, below: Sequence[int]
) -> tuple[int, int]:
    """Append a node and all under it; return its address and the number of its records."""
    if depth == 0:
        body, count = b"BTLF\0\x05" + b"".join(records), len(records)
    else:
        children, kept = [], []
        for number, piece in enumerate(_shares(records, below[depth - 1])):
            if number:
                kept.append(piece[0])
                piece = piece[1:]
            children.append((*_node(parts, base, piece, depth - 1, below), len(piece)))
        body, count = b"BTIN\0\x05" + b"".join(kept), len(kept)
        for address, own, total in children:
            body += address.to_bytes(8, "little") + own.to_bytes(1, "little")
            if depth > 1:
                body += total.to_bytes(_bytes_for(below[depth - 1]), "little")
    address = base + _NODE * (len(parts) - 1)
    parts.append(sealed(body).ljust(_NODE, b"\0"))
    return address, count


def _shares(records: Sequence[bytes], most: int) -> list[Sequence[bytes]]:
    """Cut records for as few children as hold them, evenly; each but the first gives its first."""
    number = max(2, -(-(len(records) + 1) // (most + 1)))
    cuts = [n * (len(records) + 1) // number for n in range(1, number)]
    cuts = [0, *(cut - 1 for cut in cuts), len(records)]
    return [records[a:b] for a, b in itertools.pairwise(cuts)]


def _pointer(height: int, below: Sequence[int]) -> int:
    """Bytes of a pointer in a node of some height: address, records, records under it."""
    return 8 + 1 + (_bytes_for(below[height - 1]) if height > 1 else 0)


def _bytes_for(number: int) -> int:
    return (number.bit_length() - 1) // 8 + 1
