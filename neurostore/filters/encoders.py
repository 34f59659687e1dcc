"""The encoders of deflate that a chunk may be packed with, the fastest first.

All write streams that any zlib reads; they differ in speed and in which data they suit. What suits
which data is not decided here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import deflate
from isal import isal_zlib
from zlib_ng import zlib_ng

__all__ = ["ISAL", "RAW", "RLE", "Encoder", "libdeflate", "plain_zlib", "zng"]

#: What zlib calls raw deflate with the largest window.
RAW = -15


@dataclass(frozen=True)
class Encoder:
    """One way to make deflate streams.

    Parameters
    ----------
    name : str
        Library and level, for messages and tables.
    whole : callable
        Makes the zlib stream of a contiguous buffer.
    piece : callable or None
        Makes raw deflate blocks of a buffer, none of them the last and ending at a byte, so that
        more can follow. None where the library offers whole streams only.
    """

    name: str
    whole: Callable[[Any], Any]
    piece: Callable[[Any], bytes] | None = None


def _isal_piece(data: Any) -> bytes:
    packer = isal_zlib.compressobj(1, isal_zlib.DEFLATED, RAW)
    return bytes(packer.compress(data) + packer.flush(isal_zlib.Z_SYNC_FLUSH))


#: One pass with one table: 1-3 GB/s where there is little to find, and 400 MB/s at worst.
ISAL = Encoder("isal 1", lambda data: isal_zlib.compress(data, 1), _isal_piece)


@lru_cache(maxsize=16)
def zng(level: int, *, runs: bool = False) -> Encoder:
    """Take zlib-ng; with ``runs`` it looks for repetitions of the last byte alone."""
    strategy = zlib_ng.Z_RLE if runs else zlib_ng.Z_DEFAULT_STRATEGY

    def whole(data: Any) -> bytes:
        packer = zlib_ng.compressobj(level, zlib_ng.DEFLATED, 15, 9, strategy)
        return bytes(packer.compress(data) + packer.flush())

    def piece(data: Any) -> bytes:
        packer = zlib_ng.compressobj(level, zlib_ng.DEFLATED, RAW, 9, strategy)
        return bytes(packer.compress(data) + packer.flush(zlib_ng.Z_SYNC_FLUSH))

    return Encoder(f"zlib-ng {'runs' if runs else level}", whole, piece)


#: Zeros between values: sparse matrices shrink more than by zlib's level 6, at 1 GB/s.
RLE = zng(1, runs=True)


@lru_cache(maxsize=16)
def libdeflate(level: int) -> Encoder:
    """Take libdeflate; from level 10 on it searches for the shortest stream."""
    return Encoder(f"libdeflate {level}", lambda data: deflate.zlib_compress(data, level))


@lru_cache(maxsize=16)
def plain_zlib(level: int) -> Encoder:
    """Take zlib itself: the measure that a level is held to."""
    return Encoder(f"zlib {level}", lambda data: zlib.compress(data, level))
