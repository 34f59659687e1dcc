"""Whether the stored chunks of a dataset are what was written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from .reading import name_of, read
from .writing import Checksum


def check(dataset: h5py.h5d.DatasetID) -> Iterator[tuple[Checksum, str]]:
    """Yield offset and checksum of every stored chunk, and what is wrong with it, if anything.

    Every chunk is verified and decoded, one at a time. Values without chunks have no checksum of
    their own: of them nothing is yielded.

    Parameters
    ----------
    dataset : h5py.h5d.DatasetID
        Any dataset of numbers or S1.
    """
    dcpl = dataset.get_create_plist()
    if dcpl.get_layout() != h5py.h5d.CHUNKED:
        return
    shape, chunks = dataset.shape, dcpl.get_chunk()
    limit = 2 * math.prod(chunks) * dataset.dtype.itemsize + 1024
    found: list[Any] = []
    dataset.chunk_iter(found.append)  # by number, HDF5 counts from the first one every time
    for info in found:
        offset = tuple(info.chunk_offset)
        checksum, problem = b"", ""
        try:
            if info.size > limit:
                raise ValueError(f"{info.size} stored bytes, expected at most {limit}")
            checksum = dataset.read_direct_chunk(offset)[1][-4:]
            read(dataset, _box(offset, chunks, shape))
        except (OSError, RuntimeError, ValueError) as error:
            problem = str(error).removeprefix(f"{name_of(dataset)}: ")
            if not problem.startswith("chunk at"):
                problem = f"chunk at {offset}: {problem}"
        yield (offset, checksum), problem


def _box(
    offset: tuple[int, ...], chunks: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[slice, ...]:
    ends = np.minimum(np.add(offset, chunks), shape)
    return tuple(slice(start, int(end)) for start, end in zip(offset, ends, strict=True))
