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
_PLANE_BYTES = 16 * 1024
_LOOK_BYTES = 4 * 1024
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


def deflated_planes(planes: Array, effort: int) -> bytes | bytearray:
    """Make one zlib stream of shuffled bytes, the planes that do not shrink stored as they are.

    ISA-L spends as long on the noise of a mantissa as on everything else, and so does whoever
    inflates it; a look at the middle of each plane tells which ones it is not worth it.
    """
    flat = planes.reshape(len(planes), -1)
    if effort != ISAL or flat.shape[1] < _PLANE_BYTES:
        return deflated(flat.reshape(-1), effort)
    start = (flat.shape[1] - _LOOK_BYTES) // 2
    noise = [len(deflated(p[start : start + _LOOK_BYTES], ISAL)) > _LOOK_BYTES for p in flat]
    if not any(noise):
        return deflated(flat.reshape(-1), effort)
    parts = [b"\x78\x01"]
    for plane, stored in zip(flat, noise, strict=True):
        if stored:
            parts += _stored_blocks(plane)
        else:
            packer = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
            parts += [packer.compress(plane), packer.flush(isal_zlib.Z_SYNC_FLUSH)]
    # An empty last block, and the checksum of zlib over everything.
    parts += [b"\x01\0\0\xff\xff", isal_zlib.adler32(flat.reshape(-1)).to_bytes(4, "big")]
    return b"".join(parts)


def _stored_blocks(plane: Array) -> list[Any]:
    """Frame bytes as stored blocks of deflate (RFC 1951, 3.2.4)."""
    parts: list[Any] = []
    for start in range(0, plane.size, 65_535):
        piece = plane[start : start + 65_535]
        size = piece.size
        parts += [b"\0", size.to_bytes(2, "little"), (size ^ 0xFFFF).to_bytes(2, "little"), piece]
    return parts


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
