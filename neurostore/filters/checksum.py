"""The Fletcher32 of HDF5, over buffers of any size, mostly outside Python's lock.

numcodecs has it in C, at 2 GB/s and holding the lock; from some 200 KB on, sums by NumPy are half
as fast again and let other threads run. This module appends and verifies nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numcodecs.fletcher32 import Fletcher32

__all__ = ["appended", "fletcher32"]

Array = np.ndarray[Any, np.dtype[Any]]

_MODULUS = 65_535
#: Below it the calls of NumPy cost more than they save.
_NUMPY_BYTES = 192 * 1024
#: The sums of one piece stay below 2**32 in every lane.
_PIECE_BYTES = 512 * 1024
_COLUMNS = 1024
_ROW_BYTES = 8 * _COLUMNS
_LOW = np.uint64(0x0000_FFFF_0000_FFFF)
_HALF = np.uint64(0x0000_0000_FFFF_FFFF)
_SIXTEEN, _THIRTY_TWO = np.uint64(16), np.uint64(32)
_NUMBERS = np.arange(_COLUMNS, dtype=np.uint64)

_numcodecs = Fletcher32()


def fletcher32(data: Any) -> int:
    """Fletcher32 of a contiguous buffer, as HDF5 computes it (H5checksum.c).

    Of its 16-bit words ``w`` the low half is the sum, the high half the sum of ``(n - i) * w[i]``,
    both in ones' complement. HDF5 takes the words as big-endian; ones' complement sums of swapped
    words are the swapped sums (RFC 1071, 2B), so here they are taken as they lie and the results
    are swapped. An odd last byte is a word with a zero.

    Examples
    --------
    >>> hex(fletcher32(b"abcdef"))
    '0x50562a2d'
    """
    buffer = np.frombuffer(data, np.uint8)
    whole = buffer.size - buffer.size % _ROW_BYTES if buffer.size >= _NUMPY_BYTES else 0
    total = running = 0
    for start in range(0, whole, _PIECE_BYTES):
        piece = buffer[start : min(start + _PIECE_BYTES, whole)]
        words, by_place = _sums(piece)
        count = piece.size // 2
        running += count * (total + words) - by_place
        total += words
    if whole < buffer.size:
        rest = _numcodecs.encode(buffer[whole:])[-4:]
        running += (buffer.size - whole + 1) // 2 * total + int.from_bytes(rest[2:], "big")
        total += int.from_bytes(rest[:2], "big")
    return _folded(running) << 16 | _folded(total)


def appended(data: Any) -> Any:
    """Return a contiguous buffer with its checksum behind it."""
    if len(data) < _NUMPY_BYTES:
        return _numcodecs.encode(data)
    whole = bytearray(len(data) + 4)
    view = memoryview(whole)
    view[:-4] = data
    view[-4:] = fletcher32(view[:-4]).to_bytes(4, "little")
    return whole


def _sums(piece: Array) -> tuple[int, int]:
    """Sum of the words of whole rows, and the sum of each times its place.

    Four words are taken at once, two to a lane of 32 bits; 2**16 is 1 in this arithmetic, so which
    half of a lane a word came from matters for its place only.
    """
    four = piece.view(np.uint64)
    odd = np.right_shift(four, _SIXTEEN)
    np.bitwise_and(odd, _LOW, out=odd)
    pairs = np.bitwise_and(four, _LOW)
    np.add(pairs, odd, out=pairs)
    table = pairs.reshape(-1, _COLUMNS)
    first, second = _lanes(np.add.reduce(table, axis=1))
    row_sums = first + second
    columns = np.add(*_lanes(np.add.reduce(table, axis=0)))
    early, late = int(np.add.reduce(first)), int(np.add.reduce(second))
    fours = _COLUMNS * int(np.dot(row_sums, _NUMBERS[: len(row_sums)]))
    fours += int(np.dot(columns, _NUMBERS))
    odd_sum = int(np.add.reduce(odd))
    # Places 4j, 4j + 1, 4j + 2 and 4j + 3; the odd ones are the halves that were shifted down.
    return early + late, 4 * fours + 2 * late + (odd_sum & 0xFFFF_FFFF) + (odd_sum >> 32)


def _lanes(sums: Array) -> tuple[Array, Array]:
    return np.bitwise_and(sums, _HALF), np.right_shift(sums, _THIRTY_TWO)


def _folded(value: int) -> int:
    """Bring a sum to 16 bits in ones' complement, where only nothing sums to zero; swap bytes."""
    rest = value % _MODULUS or (_MODULUS if value else 0)
    return (rest & 0xFF) << 8 | rest >> 8
