"""The checksum and the compression of one chunk, each way, as HDF5 has them.

It knows buffers and nothing of datasets, chunk shapes or the choice between filters.
"""

from __future__ import annotations

from typing import Any

import deflate
import numpy as np
from numcodecs import zstd

from .checksum import appended, fletcher32

Array = np.ndarray[Any, np.dtype[Any]]

CODEC_ERRORS = (deflate.DeflateError, ValueError, RuntimeError)


def checked(parts: list[Any]) -> Any:
    """Join the parts of a chunk, and append the Fletcher32 of HDF5."""
    if len(parts) == 1:
        return appended(parts[0])
    whole = bytearray().join([*parts, bytes(4)])
    view = memoryview(whole)
    view[-4:] = fletcher32(view[:-4]).to_bytes(4, "little")
    return whole


def verified(data: Any) -> Any:
    """Verify the Fletcher32 at the end and cut it off."""
    if len(data) < 4:
        raise ValueError(f"{len(data)} stored bytes hold no checksum")
    view = memoryview(data)
    if fletcher32(view[:-4]) != int.from_bytes(view[-4:], "little"):
        raise ValueError("the values do not agree with their Fletcher32 checksum")
    return view[:-4]


def inflated(data: Any, limit: int) -> Any:
    """Undo one zlib stream of at most ``limit`` bytes; its own checksum is verified too."""
    return deflate.zlib_decompress(data, limit)


def zstd_packed(data: Any, level: int) -> bytearray:
    """Make one Zstandard frame, which tells how long its content is."""
    return bytearray(zstd.compress(np.ascontiguousarray(data), level))


def zstd_unpacked(data: Any, limit: int) -> Any:
    """Undo one Zstandard frame of at most ``limit`` bytes."""
    size = _zstd_size(data)
    if size > limit:
        raise ValueError(f"a Zstandard frame of {size} bytes, expected at most {limit}")
    return zstd.decompress(data, np.empty(size, np.uint8)) if size else b""


def _zstd_size(data: Any) -> int:
    """Length of the content as the frame's header tells it (RFC 8878, 3.1.1.1)."""
    head = bytes(memoryview(data)[:18])
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 6:
        raise ValueError("not a Zstandard frame")
    flags = head[4]
    single, width = flags >> 5 & 1, flags >> 6
    length = 1 << width if width or single else 0
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if not length or len(head) < start + length:
        raise ValueError("a Zstandard frame that does not tell its length")
    return int.from_bytes(head[start : start + length], "little") + (256 if width == 1 else 0)
