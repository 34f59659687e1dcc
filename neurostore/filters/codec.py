"""The bytes of one chunk: byte shuffle, zlib stream and Fletcher32, each way, as HDF5 has them.

It knows buffers and nothing of datasets, chunk shapes or the choice between filters.
"""

from __future__ import annotations

from typing import Any

import deflate
import numpy as np
from isal import isal_zlib
from numcodecs.fletcher32 import Fletcher32

Array = np.ndarray[Any, np.dtype[Any]]

ISAL = 0
CODEC_ERRORS = (deflate.DeflateError, ValueError)

_fletcher32 = Fletcher32()


def deflated(data: Any, effort: int) -> bytes | bytearray:
    """Make one zlib stream of a contiguous buffer; ``effort`` as in ``Pipeline``."""
    if effort == ISAL:
        return isal_zlib.compress(data, 1)
    return deflate.zlib_compress(data, effort)


def shuffled(block: Array, chunk: tuple[int, ...]) -> Array:
    """Byte shuffle of a block of any strides: shape ``(itemsize, *chunk)``, zero beyond the block.

    numpy moves the bytes as fast as a dedicated shuffle, takes strided and Fortran-ordered input
    without gathering it first, and lets other threads run meanwhile.
    """
    full = block.shape == chunk
    planes = (np.empty if full else np.zeros)((block.itemsize, *chunk), np.uint8)
    inside = planes if full else planes[(slice(None), *map(slice, block.shape))]
    values = block[..., None].view(np.uint8)
    np.copyto(inside, values.transpose(block.ndim, *range(block.ndim)))
    return planes


def checked(data: Array) -> bytes:
    """Append the Fletcher32 of HDF5."""
    return _fletcher32.encode(data)  # type: ignore[no-any-return]


def verified(data: Any) -> Any:
    """Verify the Fletcher32 at the end and cut it off."""
    if len(data) < 4:
        raise ValueError(f"{len(data)} stored bytes hold no checksum")
    try:
        return _fletcher32.decode(data)
    except RuntimeError as error:
        raise ValueError("the values do not agree with their Fletcher32 checksum") from error


def inflated(data: Any, limit: int) -> Any:
    """Undo one zlib stream of at most ``limit`` bytes; its own checksum is verified too."""
    return deflate.zlib_decompress(data, limit)


def unshuffled(data: Any, size: int) -> Array:
    """Undo a byte shuffle; HDF5 leaves an incomplete value at the end as it is."""
    stored = np.frombuffer(data, np.uint8)
    whole = len(stored) // size * size
    plain = stored.copy()
    plain[:whole] = stored[:whole].reshape(size, -1).T.reshape(-1)
    return plain
