"""Shuffled chunks plane by plane: only what carries information is packed and unpacked.

After HDF5's byte shuffle a chunk lies in planes, the first bytes of all values, then the second
ones, and so on. Planes in which all bytes are equal (seven of the eight of a 0/1 matrix of int64)
become a stream made beforehand, planes of noise (the mantissa) are stored as they are, and the
others are packed. The result is one ordinary zlib stream. On the way back the constant planes are
recognised at the end and the stored ones at the beginning; what looks otherwise is inflated as
any stream is, and the stream's own checksum decides whether it was recognised rightly.

It knows the bytes of one chunk and nothing of datasets or of the choice of encoders.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import deflate
import numpy as np
from numcodecs import blosc
from zlib_ng import zlib_ng

from .encoders import ISAL, RAW, Encoder

__all__ = [
    "PLANE_BYTES",
    "joint_share",
    "packed",
    "place_planes",
    "shuffled",
    "unpacked_into",
    "unshuffled",
]

Array = np.ndarray[Any, np.dtype[Any]]

#: Planes shorter than this are packed together: looking at each costs more than it saves.
PLANE_BYTES = 16 * 1024
_LOOK_BYTES = 512
_STORED_BYTES = 65_535
#: With fewer planes of noise NumPy is as fast.
_WORTH_BLOSC = 3
_HEAD = b"\x78\x01"
#: An empty last block.
_END = b"\x01\0\0\xff\xff"
#: The same where a stream goes on at a byte: one fixed block with nothing in it.
_SHORT_END = b"\x03\0"
_ADLER = 65_521
_LITTLE = sys.byteorder == "little"
_WORDS: dict[int, np.dtype[Any]] = {
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}


def shuffled(block: Array, chunk: tuple[int, ...], planes: slice = slice(None)) -> Array:
    """Byte shuffle of a block of any strides: shape ``(planes, *chunk)``, zero beyond the block.

    numpy takes strided and Fortran-ordered input without gathering it first, and lets other
    threads run meanwhile.
    """
    values = block[..., None].view(np.uint8)[..., planes]
    full = block.shape == chunk
    out = (np.empty if full else np.zeros)((values.shape[-1], *chunk), np.uint8)
    inside = out if full else out[(slice(None), *map(slice, block.shape))]
    np.copyto(inside, values.transpose(block.ndim, *range(block.ndim)))
    return out


# -- packing -----------------------------------------------------------------------------------


def packed(
    block: Array, chunk: tuple[int, ...], encoder: Encoder, noise: int, share: float
) -> list[Any]:
    """Make one zlib stream, in parts, of the shuffled bytes of a block.

    Parameters
    ----------
    block : numpy.ndarray
        The values, of any strides; a chunk's edge beyond it is zero.
    chunk : tuple of int
        Shape of the chunk.
    encoder : Encoder
        For the planes that are neither constant nor noise.
    noise : int
        How many planes, from the first, are stored as they are if they shrink as little as
        ``share`` says.
    share : float
        What :func:`joint_share` gave for those planes when they were judged to be noise.
    """
    size = block.itemsize
    count = math.prod(chunk)
    if encoder.piece is None or count < PLANE_BYTES or size not in _WORDS:
        return [encoder.whole(shuffled(block, chunk).reshape(-1))]
    parts: list[Any] = [_HEAD]
    adler = 1
    left = _left_by_lz4(block, chunk) if noise >= _WORTH_BLOSC else []
    for start, stop, value in _runs(_constants(block, chunk)):
        if value is not None:
            parts.append(_run(value, (stop - start) * count))
            adler = _adler_of_run(adler, value, (stop - start) * count)
            continue
        raw = max(0, min(noise, stop) - start) if start < noise else 0
        known = left[start : start + raw]
        if raw and len(known) == raw and joint_share(known) >= share - 0.02:
            # One call for all, as in `_recognised`.
            joined = memoryview(b"".join([plane.data for plane in known]))
            adler = zlib_ng.adler32(joined, adler)
            for at in range(0, len(joined), count):
                parts += _stored(joined[at : at + count])
            start, raw = start + raw, 0
            if start == stop:
                continue
        planes = shuffled(block, chunk, slice(start, stop)).reshape(stop - start, count)
        adler = zlib_ng.adler32(planes.reshape(-1), adler)
        if raw and joint_share(planes[:raw]) < share - 0.02:
            raw = 0
        parts += [part for plane in planes[:raw] for part in _stored(plane)]
        if raw < len(planes):
            parts.append(encoder.piece(planes[raw:].reshape(-1)))
    parts += [_END, adler.to_bytes(4, "big")]
    return parts


def _left_by_lz4(block: Array, chunk: tuple[int, ...]) -> list[Array]:
    """First planes of a whole block, as far as LZ4 does not shrink them; maybe none.

    Blosc shuffles at 8 GB/s where NumPy reaches 2, packs each plane on its own, and keeps those as
    they are that do not shrink, which it finds out at the speed of a copy.
    """
    if block.shape != chunk or block.nbytes > _FRAME_LIMIT:
        return []
    values = np.ascontiguousarray(block).reshape(-1).view(_WORDS[block.itemsize])
    data = blosc.compress(values, b"lz4", 1, blosc.SHUFFLE, values.nbytes)
    _, _, flags, size, nbytes, block_bytes, _, at, *_ = _FRAME.unpack_from(data)
    if flags & _SPLIT_MASK != _SPLIT or (size, nbytes) != (block.itemsize, block_bytes):
        return []
    frame = np.frombuffer(data, np.uint8)
    found: list[Array] = []
    while len(found) < size and int.from_bytes(data[at : at + 4], "little") == values.size:
        found.append(frame[at + 4 : at + 4 + values.size])
        at += 4 + values.size
    return found


def joint_share(planes: Sequence[Array] | Array) -> float:
    """Share of their size to which the middle of some planes, end to end, shrinks."""
    start = max(0, (planes[0].size - _LOOK_BYTES) // 2)
    look = np.concatenate([plane[start : start + _LOOK_BYTES] for plane in planes])
    return len(ISAL.whole(look)) / look.size


def _constants(block: Array, chunk: tuple[int, ...]) -> list[int | None]:
    """Of each plane the byte that all its bytes are, or None."""
    words, size = block.view(_WORDS[block.itemsize]), block.itemsize
    any_set = int(np.bitwise_or.reduce(words, axis=None)).to_bytes(size, sys.byteorder)
    # Two values mostly tell that no plane is constant but those without a bit.
    two = int(words[(0,) * words.ndim] & words[(-1,) * words.ndim])
    all_set = bytes(size)
    pairs = zip(any_set, two.to_bytes(size, sys.byteorder), strict=True)
    if block.shape == chunk and any(one == other != 0 for one, other in pairs):
        all_set = int(np.bitwise_and.reduce(words, axis=None)).to_bytes(size, sys.byteorder)
    return [one if one == other else None for one, other in zip(any_set, all_set, strict=True)]


def _runs(values: list[int | None]) -> Iterator[tuple[int, int, int | None]]:
    """Neighbours that are equal: first, end, and the byte."""
    start = 0
    for place in range(1, len(values) + 1):
        if place == len(values) or values[place] != values[start]:
            yield start, place, values[start]
            start = place


@lru_cache(maxsize=256)
def _run(value: int, count: int) -> bytes:
    """Deflate blocks of one byte many times over: 1/1000 of it."""
    assert ISAL.piece is not None
    return ISAL.piece(np.full(count, value, np.uint8))


def _adler_of_run(before: int, value: int, count: int) -> int:
    """Go on with an Adler-32 by one byte many times over."""
    low, high = before & 0xFFFF, before >> 16
    high += count * low + value * (count * (count + 1) // 2)
    return high % _ADLER << 16 | (low + count * value) % _ADLER


def _stored(plane: Array | memoryview) -> Iterator[Any]:
    """Frame bytes as stored blocks of deflate (RFC 1951, 3.2.4)."""
    for start in range(0, len(plane), _STORED_BYTES):
        piece = plane[start : start + _STORED_BYTES]
        yield _stored_head(len(piece))
        yield piece


def _stored_head(size: int) -> bytes:
    return b"\0" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")


# -- unpacking ---------------------------------------------------------------------------------

#: Of a Blosc 1 buffer with one block: versions, flags, size of a value, bytes, block size, whole
#: length, where the block starts, its packed length (c-blosc, README_CHUNK_FORMAT.rst).
_FRAME = struct.Struct("<BBBBIIIII")
_FRAME_FLAGS = 0x01 | 0x10 | 1 << 5  # shuffled, not split, LZ4
#: Shuffled, packed, and one stream to each plane: bits 0, 1 and 4.
_SPLIT, _SPLIT_MASK = 0x01, 0x13
_FRAME_LIMIT = 2**31 - 1 - _FRAME.size


def unpacked_into(
    target: Array, data: Any, source: tuple[slice, ...], chunk: tuple[int, ...]
) -> None:
    """Put the selected part of a chunk, packed in planes, into its place.

    Parameters
    ----------
    target : numpy.ndarray
        Where it goes, of the type of the dataset; any strides.
    data : bytes-like
        One zlib stream of the shuffled chunk.
    source : tuple of slice
        The part of the chunk that is wanted.
    chunk : tuple of int
        Shape of the chunk.

    Raises
    ------
    deflate.DeflateError, ValueError
        It is not such a stream.
    """
    size, count = target.itemsize, math.prod(chunk)
    view = memoryview(data)
    found = _recognised(view, size, count) if count >= PLANE_BYTES and size in _WORDS else None
    if found is None:
        whole = deflate.zlib_decompress(data, size * count)
        if len(whole) != size * count:
            raise ValueError(f"{len(whole)} bytes after inflating, expected {size * count}")
        place_planes(target, np.frombuffer(whole, np.uint8), source, chunk)
        return
    planes, varying = found
    if varying == 1 and _LITTLE:
        words = target.view(_WORDS[size])
        np.copyto(words, planes[_FRAME.size :][:count].reshape(chunk)[source])
        return
    _place_framed(target, planes, source, chunk)


def _recognised(view: memoryview, size: int, count: int) -> tuple[Array, int] | None:
    """Planes of a stream that :func:`packed` made, after room for a frame, and how many vary.

    None where it is another stream, or something is wrong with it: the plain way finds out.
    """
    tail = len(_END) + 4
    if bytes(view[:2]) != _HEAD or bytes(view[-tail:-4]) != _END:
        return None
    end = len(view) - tail
    varying = size
    for zeros in range(size - 1, 0, -1):
        run = _run(0, zeros * count)
        if bytes(view[max(2, end - len(run)) : end]) == run:
            varying, end = size - zeros, end - len(run)
            break
    start, pieces = _stored_pieces(view[:end], varying * count)
    rest = varying * count - sum(map(len, pieces))
    if varying == size and not pieces:
        return None
    if rest:
        inflated = _inflated(view[start:end], rest)
        if inflated is None:
            return None
        pieces.append(inflated)
    elif start != end:
        return None
    padding = bytes(0 if varying == 1 and _LITTLE else (size - varying) * count)
    # One copy by one call: each that lets other threads in costs as much as copying 50 KB.
    framed = np.frombuffer(bytearray().join([bytes(_FRAME.size), *pieces, padding]), np.uint8)
    adler = zlib_ng.adler32(framed[_FRAME.size :][: varying * count])
    adler = _adler_of_run(adler, 0, (size - varying) * count)
    if adler != int.from_bytes(view[-4:], "big"):
        return None
    return framed, varying


_BROKEN: tuple[Any, ...] = (deflate.DeflateError, zlib_ng.error)


def _inflated(blocks: memoryview, size: int) -> Any:
    """Undo deflate blocks without an end that are so many bytes; None where they are not.

    zlib-ng is faster where a bit or two stand for a byte, and at its start; libdeflate else.
    """
    found: bytes | bytearray
    try:
        if 3 * len(blocks) < size:
            found = zlib_ng.decompressobj(RAW).decompress(blocks, size + 1)
        else:
            found = deflate.deflate_decompress(b"".join((blocks, _SHORT_END)), size)
    except _BROKEN:
        return None
    return found if len(found) == size else None


def _stored_pieces(view: memoryview, limit: int) -> tuple[int, list[Any]]:
    """Find the stored blocks at the beginning, of ``limit`` bytes at most; and where they end."""
    start, pieces = len(_HEAD), list[Any]()
    while start + 5 <= len(view) and view[start] == 0:
        length = int.from_bytes(view[start + 1 : start + 3], "little")
        fits = 0 < length <= limit and start + 5 + length <= len(view)
        if not fits or bytes(view[start : start + 5]) != _stored_head(length):
            break
        pieces.append(view[start + 5 : start + 5 + length])
        start, limit = start + 5 + length, limit - length
    return start, pieces


def place_planes(
    target: Array, planes: Array, source: tuple[slice, ...], chunk: tuple[int, ...]
) -> None:
    """Put the selected part of a shuffled chunk into its place."""
    if target.itemsize == 1:
        target.view(np.uint8)[...] = planes.reshape(chunk)[source]
    elif planes.size < 4096 or planes.size > _FRAME_LIMIT:
        by_plane = planes.reshape(-1, *chunk)
        targets = target[..., None].view(np.uint8)
        for place, plane in enumerate(by_plane):
            targets[..., place] = plane[source]
    else:
        framed = np.empty(_FRAME.size + planes.size, np.uint8)
        framed[_FRAME.size :] = planes
        _place_framed(target, framed, source, chunk)


def _place_framed(
    target: Array, framed: Array, source: tuple[slice, ...], chunk: tuple[int, ...]
) -> None:
    """Unshuffle by Blosc, at 8 GB/s where NumPy reaches 2.

    Blosc has no function for it, but takes a buffer whose one block was not compressed; what is
    left to do then is the shuffle, which is that of HDF5.
    """
    size, nbytes = target.itemsize, framed.size - _FRAME.size
    if nbytes > _FRAME_LIMIT:
        place_planes(target, framed[_FRAME.size :], source, chunk)
        return
    head = (2, 1, _FRAME_FLAGS, size, nbytes, nbytes, framed.size, _FRAME.size - 4, nbytes)
    framed[: _FRAME.size] = np.frombuffer(_FRAME.pack(*head), np.uint8)
    whole = all(part == slice(0, n, 1) for part, n in zip(source, chunk, strict=True))
    if whole and target.flags.c_contiguous:
        blosc.decompress(framed, target.reshape(-1).view(np.uint8))
        return
    values = np.empty(math.prod(chunk), target.dtype)
    blosc.decompress(framed, values.view(np.uint8))
    target[...] = values.reshape(chunk)[source]


def unshuffled(data: Any, size: int) -> Array:
    """Undo a byte shuffle; HDF5 leaves an incomplete value at the end as it is."""
    stored = np.frombuffer(data, np.uint8)
    whole = len(stored) // size * size
    plain = stored.copy()
    plain[:whole] = stored[:whole].reshape(size, -1).T.reshape(-1)
    return plain
