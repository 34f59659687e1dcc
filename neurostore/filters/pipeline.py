"""Which chunk shape, filters and encoder a variable gets.

It looks at the values and decides; it neither writes nor reads a dataset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import h5py
import numpy as np

from ..errors import ValidationError
from ..optional import needs
from .blocks import Blocks, first, fitting
from .choosing import Choice, prefers_shuffle, trial
from .codec import zstd_packed
from .encoders import Encoder, libdeflate

Array = np.ndarray[Any, np.dtype[Any]]

CODECS = ("gzip", "lzf", "szip", "zstd")
#: What this package encodes itself.
CHUNKED_HERE = (None, "gzip", "zstd")
#: Number of Zstandard in the HDF Group's list of registered filters.
ZSTD = 32015
COMPACT_BYTES = 1024
VALUES_PER_CHUNK_SIZE = 64

_GZIP_LEVEL = 4
_ZSTD_LEVEL = 3
#: Of a filter the lowest, the highest and the usual level.
_LEVELS = {"gzip": (0, 9, _GZIP_LEVEL), "zstd": (1, 22, _ZSTD_LEVEL)}
# HDF5 stores the size of a chunk in 32 bits.
_CHUNK_BYTES = 2**32 - 1
# szip packs blocks of eight values; a chunk with fewer cannot be created.
_SZIP_BLOCK = 8


@dataclass(frozen=True)
class Pipeline:
    """Chunk shape and filters of one dataset; equal pipelines make equal datasets.

    Parameters
    ----------
    codec : {"gzip", "lzf", "szip", "zstd"} or None
        Compression filter.
    level : int or None
        Level of gzip, 0 to 9, or of zstd, 1 to 22; None for the others.
    shuffle : bool
        Whether the bytes of the values are transposed before compression.
    fletcher32 : bool
        Whether every chunk carries a checksum.
    chunks : tuple of int or None
        Chunk shape. None: compact (up to 1024 bytes) or contiguous, without any filter.
    choice : Choice or None
        Which encoder makes the gzip streams, and what it need not pack. It changes size and speed
        but not the format, so it is no part of equality or hash, and is not recorded.

    Examples
    --------
    >>> Pipeline("gzip", 6, shuffle=True, chunks=(1000,)).fletcher32
    True
    """

    codec: str | None
    level: int | None
    shuffle: bool
    fletcher32: bool = True
    chunks: tuple[int, ...] | None = None
    choice: Choice | None = field(default=None, compare=False)

    def apply(self, dcpl: h5py.h5p.PropDCID, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Set layout, chunk shape and filters on a dataset creation property list.

        Parameters
        ----------
        dcpl : h5py.h5p.PropDCID
            Creation properties of the dataset to come.
        dtype : numpy.dtype
            Its type in the file.
        shape : tuple of int
            Its shape.
        """
        if self.chunks is None:
            nbytes = math.prod(shape) * dtype.itemsize
            compact = 0 < nbytes <= COMPACT_BYTES
            dcpl.set_layout(h5py.h5d.COMPACT if compact else h5py.h5d.CONTIGUOUS)
            return
        dcpl.set_chunk(self.chunks)
        if self.shuffle:
            dcpl.set_shuffle()
        if self.codec == "gzip":
            dcpl.set_deflate(_GZIP_LEVEL if self.level is None else self.level)
        elif self.codec == "lzf":
            dcpl.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)
        elif self.codec == "zstd":
            level = _ZSTD_LEVEL if self.level is None else self.level
            dcpl.set_filter(ZSTD, h5py.h5z.FLAG_OPTIONAL, (level,))
        elif self.codec == "szip":
            dcpl.set_szip(h5py.h5z.SZIP_NN_OPTION_MASK, _SZIP_BLOCK)
        if self.fletcher32:
            dcpl.set_fletcher32()

    @property
    def by_hand(self) -> bool:
        """Whether this module, and not HDF5, encodes the chunks."""
        return self.chunks is not None and self.codec in CHUNKED_HERE

    @property
    def packing(self) -> Choice:
        """How to make the gzip streams: as chosen, or else as the level alone says."""
        if self.choice is not None:
            return self.choice
        return Choice(
            self.shuffle, _standing_for(_GZIP_LEVEL if self.level is None else self.level)
        )


def _standing_for(level: int) -> Encoder:
    """Get the level of libdeflate whose streams are about as small as those of zlib."""
    return libdeflate(min(level + 1, 12) if level else 0)


def check_options(compression: Any, compression_opts: Any) -> tuple[str | None, int | None]:
    """Compression filter and level, checked.

    Parameters
    ----------
    compression : {"gzip", "lzf", "szip", "zstd"} or None
        Compression filter; None stores the values as they are, with a checksum. "zstd" needs the
        extra ``zstd``, so that h5py can read what is written.
    compression_opts : int or None
        Level of gzip, 0 to 9, None meaning 4 as in h5py; level of zstd, 1 to 22, None meaning 3.
        The other filters have no level and ignore it.

    Returns
    -------
    tuple of (str or None, int or None)
        Filter and level.

    Raises
    ------
    ValidationError
        There is no such filter or level.
    MissingPackageError
        The filter needs a package that is not installed.

    Examples
    --------
    >>> check_options("gzip", 6), check_options("gzip", None), check_options("lzf", 6)
    (('gzip', 6), ('gzip', 4), ('lzf', None))
    """
    allowed = ", ".join(map(repr, CODECS))
    if compression is not None and compression not in CODECS:
        raise ValidationError(f"compression: expected {allowed} or None, got {compression!r}")
    if compression not in _LEVELS:
        return compression, None
    low, high, usual = _LEVELS[compression]
    if compression == "zstd":
        with needs("zstd", "compression='zstd'"):
            import hdf5plugin  # noqa: F401 (registers the filter with HDF5)
    if compression_opts is None:
        return compression, usual
    number = isinstance(compression_opts, int | np.integer)
    if not number or isinstance(compression_opts, bool) or not low <= compression_opts <= high:
        raise ValidationError(
            f"compression_opts: expected an integer from {low} (fast) to {high} (small) or None "
            f"for {compression}, got {compression_opts!r}"
        )
    return compression, int(compression_opts)


@lru_cache(maxsize=1024)
def chunk_shape(shape: tuple[int, ...], itemsize: int, chunk_size: int) -> tuple[int, ...]:
    """Chunk shape of an array: at most ``64 * chunk_size`` values, near to a cube, no waste.

    Short axes are taken whole and the long ones share what is left, so that a slice along any axis
    touches few chunks. Each axis is cut evenly: the last chunk is hardly ever mostly padding.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array, every axis at least 1.
    itemsize : int
        Bytes of one value; a chunk never exceeds the 4 GiB that HDF5 allows.
    chunk_size : int
        The store's option: 1024 makes chunks of at most 65,536 values, 512 KiB of float64.

    Examples
    --------
    >>> chunk_shape((1000, 1000), 8, 1024)
    (250, 250)
    >>> chunk_shape((1_000_000,), 8, 1024), chunk_shape((9, 30_000), 8, 1024)
    ((62500,), (9, 6000))
    """
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int | np.integer):
        raise ValidationError(f"chunk_size: expected an integer of at least 1, got {chunk_size!r}")
    if chunk_size < 1:
        raise ValidationError(f"chunk_size: expected at least 1, got {chunk_size}")
    room = min(VALUES_PER_CHUNK_SIZE * int(chunk_size), _CHUNK_BYTES // itemsize)
    chunks = list(shape)
    by_length = sorted(range(len(shape)), key=lambda axis: shape[axis])
    for left, axis in zip(range(len(shape), 0, -1), by_length, strict=True):
        edge = max(1, min(shape[axis], _root(room, left)))
        chunks[axis] = math.ceil(shape[axis] / math.ceil(shape[axis] / edge))
        room //= chunks[axis]
    return tuple(chunks)


def _root(value: int, degree: int) -> int:
    """Largest integer whose power does not exceed ``value``."""
    root: int = round(value ** (1 / degree))
    return root if root**degree <= value else root - 1


def length_class(n: int) -> int:
    """Capacity of a dataset for ``n`` values: the next of eight sizes per octave.

    Datasets of similar lengths then share one shape in the file, at up to 12.5 % of padding, which
    compresses to nearly nothing.

    Examples
    --------
    >>> [length_class(n) for n in (0, 1, 9, 17, 1000, 1024, 1025)]
    [1, 1, 9, 18, 1024, 1024, 1152]
    """
    if n < 1:
        return 1
    step = 1 << max(0, (n - 1).bit_length() - 4)
    return -(-n // step) * step


def choose(
    array: Array | Blocks,
    compression: str | None,
    level: int | None,
    chunk_size: int,
    *,
    shape: tuple[int, ...] | None = None,
) -> Pipeline:
    """Chunk shape, filters and encoder for one array; the same array always gets the same.

    A level keeps its meaning: the stored size aims at not exceeding what zlib makes of the
    unshuffled values at that level. The fastest encoder and filter order that keep to it on a
    sample of the values are taken. Levels 7 to 9 look for the smallest size instead.

    Parameters
    ----------
    array : numpy.ndarray or Blocks
        The values: bool, integers, floats, complex or S1. Of blocks, the first piece is looked at,
        and the chunks are made to divide the pieces.
    compression, level
        As :func:`check_options` returns them. Where szip cannot encode (not built in, complex or
        character data, fewer than eight values in a chunk) gzip takes its place.
    chunk_size : int
        See :func:`chunk_shape`.
    shape : tuple of int, optional
        Capacity of a dataset that is longer than the array.

    Returns
    -------
    Pipeline
        Without chunks for arrays of up to 1024 bytes, which live in the object header.

    Examples
    --------
    >>> import numpy as np
    >>> choose(np.arange(1000.0), "gzip", 6, 1024).chunks
    (1000,)
    >>> choose(np.arange(5.0), "gzip", 6, 1024).chunks is None
    True
    """
    extent = array.shape if shape is None else shape
    nbytes = math.prod(array.shape) * array.dtype.itemsize
    if 0 in extent or (shape is None and nbytes <= COMPACT_BYTES):
        return Pipeline(None, None, shuffle=False, fletcher32=False)
    chunks = chunk_shape(extent, array.dtype.itemsize, chunk_size)
    if not isinstance(array, np.ndarray):
        chunks = fitting(chunks, array.edges) if array.costly else chunks
        array = first(array)
    if compression == "szip" and not _szip_encodes(array.dtype, chunks):
        compression, level = "gzip", _GZIP_LEVEL
    if compression is None or compression == "szip":
        return Pipeline(compression, None, shuffle=False, chunks=chunks)
    if compression == "lzf":
        return Pipeline("lzf", None, shuffle=prefers_shuffle(array, chunks), chunks=chunks)
    if compression == "zstd":
        level = _ZSTD_LEVEL if level is None else level
        shuffle = prefers_shuffle(array, chunks, partial(zstd_packed, level=level))
        return Pipeline("zstd", level, shuffle=shuffle, chunks=chunks)
    level = _GZIP_LEVEL if level is None else level
    choice = trial(array, chunks, level)
    return Pipeline("gzip", level, shuffle=choice.shuffle, chunks=chunks, choice=choice)


def _szip_encodes(dtype: np.dtype[Any], chunks: tuple[int, ...]) -> bool:
    z = h5py.h5z
    if not z.filter_avail(z.FILTER_SZIP):
        return False
    encodes = z.get_filter_info(z.FILTER_SZIP) & z.FILTER_CONFIG_ENCODE_ENABLED
    fits = dtype.kind in "biuf" and dtype.itemsize <= 8 and math.prod(chunks) >= _SZIP_BLOCK
    return bool(encodes and fits)
