"""Values of a whole array into the chunks of a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import h5py
import numpy as np

from ..errors import ValidationError
from .codec import Array, checked, deflated, shuffled
from .pipeline import Pipeline
from .reading import name_of
from .threads import each

Slices = tuple[slice, ...]


def write(dataset: h5py.h5d.DatasetID, array: Array, pipeline: Pipeline) -> int:
    """Write a whole array into a dataset that was created with the pipeline.

    Large arrays are encoded in threads and handed over in order, a bounded number of chunks at a
    time. Do not call it while holding ``h5py._hl.base.phil``.

    Parameters
    ----------
    dataset : h5py.h5d.DatasetID
        Open for writing, its extent that of the array.
    array : numpy.ndarray
        The values, in any memory order, of the type of the dataset, byte order included.
    pipeline : Pipeline
        What the dataset was created with.

    Returns
    -------
    int
        Stored bytes of the values. What HDF5 itself filters counts once it has left HDF5's chunk
        cache: open the dataset without one to have it counted.
    """
    if dataset.dtype != array.dtype:
        name = name_of(dataset)
        raise ValidationError(f"{name}: expected values of type {dataset.dtype}, got {array.dtype}")
    if array.size == 0:
        return 0
    if not pipeline.by_hand:
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.asarray(array, order="C"))
        return int(dataset.get_storage_size())
    assert pipeline.chunks is not None
    tiles = _tiles(array.shape, pipeline.chunks)

    def encode(offset: tuple[int, ...], tile: Slices) -> tuple[tuple[int, ...], Any, int]:
        return offset, *_encoded(array[tile], pipeline)

    stored = 0
    chunk_bytes = math.prod(pipeline.chunks) * array.itemsize
    for offset, data, mask in each(encode, tiles, array.nbytes, chunk_bytes):
        dataset.write_direct_chunk(offset, data, mask)
        stored += len(data)
    return stored


def _tiles(
    shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], Slices]]:
    """Offset of every chunk and its part of the array."""
    axes = [range(0, n, c) for n, c in zip(shape, chunks, strict=True)]
    for offset in product(*axes):
        yield offset, tuple(slice(o, o + c) for o, c in zip(offset, chunks, strict=True))


def _encoded(block: Array, pipeline: Pipeline) -> tuple[Any, int]:
    """Make the stored bytes of one chunk, and its filter mask; HDF5 stores whole chunks only."""
    assert pipeline.chunks is not None
    data: Any
    if pipeline.shuffle:
        data = shuffled(block, pipeline.chunks)
    elif block.shape == pipeline.chunks:
        data = np.ascontiguousarray(block)
    else:
        data = np.zeros(pipeline.chunks, block.dtype)
        data[tuple(map(slice, block.shape))] = block
    data = data.reshape(-1).view(np.uint8)
    mask = 0
    if pipeline.codec == "gzip":
        packed = deflated(data, pipeline.encoder)
        if len(packed) < data.size:
            data = packed
        else:
            # What HDF5 does with a chunk that does not shrink: keep it, and note the filter as
            # skipped (bit n stands for the n-th filter of the pipeline).
            mask = 1 << int(pipeline.shuffle)
    return checked(data) if pipeline.fletcher32 else bytes(data), mask
