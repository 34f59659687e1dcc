"""The checksum and the compression of one chunk, each way, as HDF5 has them.

It knows buffers and nothing of datasets, chunk shapes or the choice between filters.
"""

from __future__ import annotations

from typing import Any

import deflate
import numpy as np

from .checksum import fletcher32

Array = np.ndarray[Any, np.dtype[Any]]

CODEC_ERRORS = (deflate.DeflateError, ValueError)


def checked(data: Any) -> bytearray:
    """Append the Fletcher32 of HDF5, to the same buffer where it can grow."""
    grown = data if isinstance(data, bytearray) else bytearray(data)
    grown += fletcher32(grown).to_bytes(4, "little")
    return grown


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
