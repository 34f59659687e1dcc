"""The headers of HDF5 objects as bytes: where in them addresses stand, and what is all the same.

Of one object a `Form` is read: its pieces, the places of every address in them, and which bytes
say what the object is.  Headers that agree in those bytes have their addresses at the same places;
that is compared for many at once.  `messages` yields what one header says, for those who want to
know it.  Only what neurostore writes is known here (HDF5 File Format Specification 3.0, IV.A:
version-2 headers, version-3 attributes, version-4 layouts, compact links); of anything else both
raise `Unfamiliar`, and nothing is guessed.  It reads no file, moves nothing, and does not look at
values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numcodecs.jenkins import jenkins_lookup3

__all__ = [
    "UNDEFINED",
    "Form",
    "Place",
    "Unfamiliar",
    "checksum",
    "checksums",
    "expect",
    "heaps",
    "messages",
    "read_form",
    "sealed",
    "sound",
    "split_attribute",
]

Array: TypeAlias = np.ndarray[Any, Any]
Read: TypeAlias = Callable[[int, int], bytes]
#: Piece of the header and offset in it.
Place: TypeAlias = tuple[int, int]

UNDEFINED = 2**64 - 1
#: Longer headers than any that neurostore makes; a length beyond is damage.
_MOST = 1024 * 1024
_PIECES = 16
#: No fewer bytes tell how long a header is.
_BEGIN = 40
_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10
_VARIABLE, _REFERENCE, _COMPOUND = 9, 7, 6
_PLAIN_CLASSES = frozenset({0, 1, 3, 8})  # integers, floats, fixed text, enumerations


class Unfamiliar(Exception):
    """What stands here is not known to this module; never leaves the package."""


@dataclass
class Form:
    """What all headers of one form share.

    Parameters
    ----------
    pieces
        The header itself, and its continuations.
    masks
        For each piece 255 where a byte says what the object is, 0 where it may differ.
    continued
        Where the address of each piece but the first stands.
    links, references
        Where addresses of objects stand: in links, and in lists of what a scale is attached to.
    heap
        Where an element of the global heap is named, by address and index.
    data
        Where the address of values stands, and their size: a number, or where that stands.
    index
        Where the address of a fixed array of chunks stands, and the bytes of a whole chunk.
    """

    pieces: list[bytes] = field(default_factory=list)
    masks: list[Array] = field(default_factory=list)
    continued: list[Place] = field(default_factory=list)
    links: list[Place] = field(default_factory=list)
    references: list[Place] = field(default_factory=list)
    heap: list[Place] = field(default_factory=list)
    data: tuple[Place, int | Place] | None = None
    index: tuple[Place, int] | None = None
    #: Where links and the addresses of a table of links stand; for groups that hold records.
    own_links: list[tuple[Place, int]] = field(default_factory=list)
    table: Place | None = None
    #: Bytes before each message, and at the end of each piece those too few for one.
    prefix: int = 4
    gaps: list[int] = field(default_factory=list)

    def open(self, piece: int, offset: int, length: int) -> None:
        """Let bytes differ between headers of this form."""
        self.masks[piece][offset : offset + length] = 0


def checksum(data: Any) -> int:
    """HDF5's checksum of metadata."""
    return int(jenkins_lookup3(data, 0))


def checksums(rows: Array) -> Array:
    """HDF5's checksums of pieces of metadata of one length, one in each row.

    One call for each costs half a microsecond; the same in NumPy, all at once, no less for the
    lengths there are.
    """
    return np.array([jenkins_lookup3(row, 0) for row in rows], "<u4")


def sound(data: bytes | bytearray | memoryview) -> bool:
    """Tell whether metadata that ends in its checksum agrees with it."""
    view = memoryview(data)
    return checksum(view[:-4]) == int.from_bytes(view[-4:], "little")


def sealed(data: bytes) -> bytes:
    """Return metadata with its checksum behind it."""
    return data + checksum(data).to_bytes(4, "little")


def expect(known: bool) -> None:
    """Raise Unfamiliar where something is not as it is known here."""
    if not known:
        raise Unfamiliar


def read_form(read: Read, address: int) -> Form:
    """Read the form of the object whose header stands at ``address``.

    Raises
    ------
    Unfamiliar
        It is damaged, or has something that neurostore does not write.
    """
    form = Form()
    length, start, form.prefix = _begin(read(address, _BEGIN))
    _add(form, read, address, length)
    if form.pieces[0][5] & 0x20:
        form.open(0, 6, 16)
    _messages(form, 0, start)
    for piece, (within, offset) in enumerate(form.continued, 1):  # grows meanwhile
        where, length = _numbers(form.pieces[within], offset, 2)
        _add(form, read, where, length)
        expect(form.pieces[piece][:4] == b"OCHK")
        _messages(form, piece, 4)
    return form


def messages(read: Read, address: int) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of every message of the header at ``address``.

    Raises
    ------
    Unfamiliar
        It is damaged, or has something that neurostore does not write.
    """
    length, at, prefix = _begin(read(address, _BEGIN))
    pieces = [(address, length)]
    for number, (where, length) in enumerate(pieces):  # grows meanwhile
        expect(8 < length <= _MOST and number < _PIECES)
        data = read(where, length)
        expect(len(data) == length and sound(data) and (not number or data[:4] == b"OCHK"))
        at, end = at if not number else 4, length - 4
        while at + prefix <= end:
            kind, size = data[at], data[at + 1] | data[at + 2] << 8
            stop = at + prefix + size
            expect(stop <= end and not data[at + 3] & 0x02 and kind in _READERS)
            body, at = data[at + prefix : stop], stop
            if kind == _CONTINUATION:
                expect(size == 16)
                first, second = _numbers(body, 0, 2)
                pieces.append((first, second))
            elif kind:
                yield kind, body


def _begin(head: bytes) -> tuple[int, int, int]:
    """Return the length of the first piece, where messages begin in it, and bytes before each."""
    expect(head[:5] == b"OHDR\x02" and len(head) > 5)
    flags = head[5]
    at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    start = at + (1 << (flags & 3))
    length = start + int.from_bytes(head[at:start], "little") + 4
    return length, start, 6 if flags & 4 else 4


def _add(form: Form, read: Read, address: int, length: int) -> None:
    expect(8 < length <= _MOST and len(form.pieces) < _PIECES)
    data = read(address, length)
    expect(len(data) == length and sound(data))
    form.pieces.append(data)
    form.masks.append(np.full(length, 255, np.uint8))
    form.open(len(form.pieces) - 1, length - 4, 4)


def _messages(form: Form, piece: int, at: int) -> None:
    data, prefix = form.pieces[piece], form.prefix
    end = len(data) - 4
    while at + prefix <= end:
        kind, size, flags = data[at], int.from_bytes(data[at + 1 : at + 3], "little"), data[at + 3]
        at += prefix
        expect(at + size <= end and not flags & 0x02 and kind in _READERS)
        _READERS[kind](form, piece, at, data[at : at + size])
        at += size
    form.open(piece, at, end - at)
    form.gaps.append(end - at)


def _nothing(form: Form, piece: int, at: int, body: bytes) -> None:
    """Every byte says what the object is."""


def _free(form: Form, piece: int, at: int, body: bytes) -> None:
    form.open(piece, at, len(body))


def _space(form: Form, piece: int, at: int, body: bytes) -> None:
    expect(body[0] == 2)
    form.open(piece, at + 4, len(body) - 4)


def _link_info(form: Form, piece: int, at: int, body: bytes) -> None:
    expect(body[0] == 0)
    first = 2
    if body[1] & 1:
        form.open(piece, at + first, 8)
        first += 8
    form.table = (piece, at + first)
    expect(body[first:] == b"\xff" * (len(body) - first))


def _kind(form: Form, piece: int, at: int, body: bytes) -> None:
    expect(body[0] & 15 in _PLAIN_CLASSES)


def _link(form: Form, piece: int, at: int, body: bytes) -> None:
    expect(body[0] == 1 and not body[1] & 0x08)  # of another type than hard
    first = 2 + (8 if body[1] & 4 else 0) + (1 if body[1] & 16 else 0)
    width = 1 << (body[1] & 3)
    length = int.from_bytes(body[first : first + width], "little")
    expect(len(body) == first + width + length + 8)
    place = piece, at + len(body) - 8
    form.open(*place, 8)
    form.links.append(place)
    form.own_links.append(((piece, at), len(body)))


def _layout(form: Form, piece: int, at: int, body: bytes) -> None:
    expect(body[0] in (3, 4) and body[1] in (0, 1, 2))
    if body[1] == 0:
        expect(len(body) >= 4 + int.from_bytes(body[2:4], "little"))
        form.open(piece, at + 4, len(body) - 4)
    elif body[1] == 1:
        form.open(piece, at + 2, 16)
        form.data = (piece, at + 2), (piece, at + 10)
    else:
        expect(body[0] == 4)
        _chunked(form, piece, at, body)


def _chunked(form: Form, piece: int, at: int, body: bytes) -> None:
    flags, rank, width = body[2], body[3], body[4]
    expect(flags in (0, 2))
    where = 5 + rank * width
    sizes = [int.from_bytes(body[n : n + width], "little") for n in range(5, where, width)]
    whole, kind, where = int(np.prod(sizes, dtype=object)), body[where], where + 1
    if kind == 1:
        place = _single(form, piece, at, body, where, whole)
    else:
        expect(kind == 3 and flags == 0)
        place = piece, at + where + 1
        form.open(*place, 8)
        form.index = place, whole
    expect(len(body) == place[1] + 8 - at)


def _single(form: Form, piece: int, at: int, body: bytes, where: int, whole: int) -> Place:
    """One chunk.  Encoded, its size stands here; of one that is not there none is needed."""
    size: int | Place = whole
    if body[2] & 2:
        size = piece, at + where
        form.open(*size, 12)
        where += 12
    place = piece, at + where
    absent = body[where : where + 8] == b"\xff" * 8
    if not absent:
        form.open(*place, 8)
        form.data = place, size
    if absent or body[2] & 2:
        form.open(piece, at + 5, body[3] * body[4])
    return place


def split_attribute(body: bytes) -> tuple[bytes, bytes, bytes, int]:
    """Return name, type and dataspace of an attribute, and where in the message its data begins."""
    expect(len(body) > 8 and body[0] == 3 and not body[1] & 3)
    name, kind, space = (int.from_bytes(body[n : n + 2], "little") for n in (2, 4, 6))
    first = 9 + name
    second = first + kind
    expect(kind >= 8 and second + space <= len(body))
    return body[9 : first - 1], body[first:second], body[second : second + space], second + space


def heaps(read: Read, address: int) -> set[int]:
    """Return which collections of the global heap the scales of a dataset are named in.

    Raises
    ------
    Unfamiliar
        As :func:`messages`.
    """
    found = set()
    for kind, body in messages(read, address):
        if kind == _ATTRIBUTE:
            name, _, _, start = split_attribute(body)
            if name == b"DIMENSION_LIST":
                places = range(start + 4, len(body) - 8, 16)
                found |= {int.from_bytes(body[at : at + 8], "little") for at in places}
    return found


def _attribute(form: Form, piece: int, at: int, body: bytes) -> None:
    label, kind, _, start = split_attribute(body)
    family, size = kind[0] & 15, int.from_bytes(kind[4:8], "little")
    if label == b"DIMENSION_LIST":
        expect(family == _VARIABLE and size == 16 and (len(body) - start) % 16 == 0)
        _dimension_list(form, piece, at, body, start)
    elif label == b"REFERENCE_LIST":
        expect(family == _COMPOUND and size == 16 and (len(body) - start) % 16 == 0)
        form.open(piece, at + start, len(body) - start)
        form.references += [(piece, at + n) for n in range(start, len(body), 16)]
    else:
        expect(family in _PLAIN_CLASSES)
        form.open(piece, at + start, len(body) - start)


def _dimension_list(form: Form, piece: int, at: int, body: bytes, start: int) -> None:
    """Elements of variable length: how many, and where in the global heap; none have no place."""
    for n in range(start, len(body), 16):
        count = int.from_bytes(body[n : n + 4], "little")
        expect(count in (0, 1))
        if count:
            form.open(piece, at + n + 4, 12)
            form.heap.append((piece, at + n + 4))


def _attribute_info(form: Form, piece: int, at: int, body: bytes) -> None:
    first = 4 if body[1] & 1 else 2
    form.open(piece, at + 2, first - 2)
    expect(body[0] == 0 and body[first:] == b"\xff" * (len(body) - first))


def _continuation(form: Form, piece: int, at: int, body: bytes) -> None:
    form.open(piece, at, 8)
    form.continued.append((piece, at))


#: By the type of the message (HDF5 File Format Specification, IV.A.2).
_READERS: dict[int, Callable[[Form, int, int, bytes], None]] = {
    0x00: _free,
    0x01: _space,
    0x02: _link_info,
    0x03: _kind,
    0x05: _nothing,  # fill value
    0x06: _link,
    0x08: _layout,
    0x0A: _nothing,  # group info
    0x0B: _nothing,  # filters
    _ATTRIBUTE: _attribute,
    _CONTINUATION: _continuation,
    0x15: _attribute_info,
}


def _numbers(data: bytes, offset: int, count: int) -> list[int]:
    return [int(n) for n in np.frombuffer(data, "<u8", count, offset)]
