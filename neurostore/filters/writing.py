"""Values of a whole array into the chunks of a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from operator import add
from typing import Any

import h5py
import numpy as np

from .blocks import Blocks, pieces
from .choosing import Choice, trial
from .codec import Array, checked, zstd_packed
from .pipeline import Pipeline
from .planes import packed, shuffled
from .threads import each

Slices = tuple[slice, ...]
#: Offset and checksum of a chunk: the last four of its stored bytes.
Checksum = tuple[tuple[int, ...], bytes]
#: Offset and stored bytes of a chunk.
Encoded = tuple[tuple[int, ...], Any]


def write(
    dataset: h5py.h5d.DatasetID,
    array: Array | Blocks,
    pipeline: Pipeline,
    checksums: list[Checksum] | None = None,
) -> int:
    """Write a whole array into a dataset that was created with the pipeline.

    Large arrays are encoded in threads and handed over in order, a bounded number of chunks at a
    time. Do not call it while holding ``h5py._hl.base.phil``.

    Parameters
    ----------
    dataset : h5py.h5d.DatasetID
        Open for writing, its extent that of the array.
    array : numpy.ndarray or Blocks
        The values, in any memory order, of the type of the dataset, byte order included; that is
        not checked, since the one caller has just created the dataset for them. Blocks are made
        and written one after the other.
    pipeline : Pipeline
        What the dataset was created with.
    checksums : list, optional
        Takes the offset and the Fletcher32 of every chunk that is written.

    Returns
    -------
    int
        Stored bytes of the values. What HDF5 itself filters counts once it has left HDF5's chunk
        cache: open the dataset without one to have it counted.
    """
    if math.prod(array.shape) == 0:
        return 0
    if not isinstance(array, np.ndarray):
        return _write_blocks(dataset, array, pipeline, checksums)
    if not pipeline.by_hand:
        write_plain(dataset, array)
        if checksums is not None and pipeline.chunks is not None:
            checksums += _of_hdf5(dataset)
        return int(dataset.get_storage_size())
    assert pipeline.chunks is not None
    data = single_chunk(array, pipeline)
    if data is not None:
        dataset.write_direct_chunk((0,) * array.ndim, data)
        if checksums is not None:
            checksums.append(((0,) * array.ndim, data[-4:]))
        return len(data)
    return _write_tiles(dataset, array, (0,) * array.ndim, pipeline, checksums)


def _write_tiles(
    dataset: h5py.h5d.DatasetID,
    array: Array,
    start: tuple[int, ...],
    pipeline: Pipeline,
    checksums: list[Checksum] | None,
) -> int:
    """Write the chunks of an array that begins at ``start`` of the dataset."""
    assert pipeline.chunks is not None

    def encode(offset: tuple[int, ...], tile: Slices) -> Encoded:
        return offset, encoded(array[tile], pipeline)

    chunk_bytes = math.prod(pipeline.chunks) * array.itemsize
    stored = 0
    tiled = tiles(array.shape, pipeline.chunks)
    for inner, data in each(encode, tiled, array.nbytes, chunk_bytes):
        offset = tuple(map(add, start, inner))
        dataset.write_direct_chunk(offset, data)
        stored += len(data)
        if checksums is not None:
            checksums.append((offset, data[-4:]))
    return stored


def _write_blocks(
    dataset: h5py.h5d.DatasetID,
    array: Blocks,
    pipeline: Pipeline,
    checksums: list[Checksum] | None,
) -> int:
    """Write an array of which one piece is in memory at a time."""
    if not pipeline.by_hand:
        for offset, block in pieces(array, pipeline.chunks or array.shape):
            space = dataset.get_space()
            space.select_hyperslab(offset, block.shape)
            memory = h5py.h5s.create_simple(block.shape)
            values = np.asarray(block, order="C")
            dataset.write(memory, space, values, _type_of(block.dtype))
        if checksums is not None and pipeline.chunks is not None:
            checksums += _of_hdf5(dataset)
        return int(dataset.get_storage_size())
    assert pipeline.chunks is not None
    stored = 0
    for offset, block in pieces(array, pipeline.chunks):
        stored += _write_tiles(dataset, block, offset, pipeline, checksums)
        del block  # before the next one is made
    return stored


def write_plain(dataset: h5py.h5d.DatasetID, array: Array) -> None:
    """Write a whole array by HDF5, of the type of the dataset."""
    kind = _type_of(array.dtype)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.asarray(array, order="C"), kind)


@lru_cache(maxsize=64)
def _type_of(dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    # Kept: to make it costs more than to write a small array.
    return h5py.h5t.py_create(dtype)


def single_chunk(array: Array | Blocks, pipeline: Pipeline) -> Any:
    """Make the stored bytes of an array that is one chunk encoded here; None for any other.

    The last four are its checksum. Making them needs no dataset.
    """
    if pipeline.chunks is None or not pipeline.by_hand or not isinstance(array, np.ndarray):
        return None
    if not array.size:
        return None
    if any(n > chunk for n, chunk in zip(array.shape, pipeline.chunks, strict=True)):
        return None
    return encoded(array, pipeline)


def _of_hdf5(dataset: h5py.h5d.DatasetID) -> Iterator[Checksum]:
    """Read back what the filters of HDF5 made; without a chunk cache it is in the file."""
    for number in range(dataset.get_num_chunks()):
        offset = dataset.get_chunk_info(number).chunk_offset
        yield offset, dataset.read_direct_chunk(offset)[1][-4:]


def tiles(
    shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], Slices]]:
    """Offset of every chunk and its part of the array."""
    axes = [range(0, n, c) for n, c in zip(shape, chunks, strict=True)]
    for offset in product(*axes):
        yield offset, tuple(slice(o, o + c) for o, c in zip(offset, chunks, strict=True))


def encoded(block: Array, pipeline: Pipeline) -> Any:
    """Make the stored bytes of one chunk; HDF5 stores whole chunks, so edges are filled up.

    Every filter of the pipeline is applied, even where deflate does not shrink: HDF5 2.0 forgets
    the filter mask of the chunk that was written last and of one that is overwritten.
    """
    parts = _packed(block, pipeline)
    return checked(parts) if pipeline.fletcher32 else b"".join(parts)


def packed_chunk(block: Array, pipeline: Pipeline) -> bytes:
    """Shuffle and compress one chunk, as far as the pipeline has it; the checksum is left out."""
    return b"".join(_packed(block, pipeline))


def _packed(block: Array, pipeline: Pipeline) -> list[Any]:
    """Shuffle and compress one chunk, as far as the pipeline has it; return it in parts."""
    chunks, choice = pipeline.chunks, pipeline.packing
    assert chunks is not None
    if pipeline.shuffle and pipeline.codec == "gzip":
        return packed(block, chunks, choice.encoder, choice.noise, choice.noise_share)
    if pipeline.shuffle:
        return [_compressed(shuffled(block, chunks).reshape(-1), pipeline)]
    if block.shape == chunks:
        plain = np.ascontiguousarray(block)
    else:
        plain = np.zeros(chunks, block.dtype)
        plain[tuple(map(slice, block.shape))] = block
    return [_compressed(plain.reshape(-1).view(np.uint8), pipeline)]


def _compressed(data: Array, pipeline: Pipeline) -> Any:
    """Compress what lies in its final order already."""
    if pipeline.codec == "gzip":
        return pipeline.packing.encoder.whole(data)
    if pipeline.codec == "zstd":
        return zstd_packed(data, pipeline.level or 3)
    return data


def sealed(body: Any, size: int) -> Any:
    """Add the checksum to a packed chunk, and zeros before it, so that it has ``size`` bytes.

    HDF5 and zlib stop at the end of a deflate stream and do not look at what is behind.
    """
    packed: bytearray = checked([body, bytes(size - 4 - len(body))])
    return packed


def encoder_for(block: Array, pipeline: Pipeline) -> Pipeline:
    """Return a pipeline that exists already with the encoder that suits a whole chunk."""
    if pipeline.codec != "gzip" or pipeline.chunks is None or pipeline.level is None:
        return pipeline
    choice = trial(block, pipeline.chunks, pipeline.level)
    if choice.shuffle != pipeline.shuffle:
        choice = Choice(pipeline.shuffle, choice.encoder)
    return replace(pipeline, choice=choice)
