"""Chunks of a variable in and out: the one place that shapes, encodes and decodes them.

HDF5 runs its filters (byte shuffle, deflate, Fletcher32) one chunk at a time under a global lock,
with zlib. This module makes and reads the same bytes itself, with faster encoders, in threads, and
hands whole chunks over by ``write_direct_chunk`` and ``read_direct_chunk``. The file stays plain:
every HDF5 tool reads it, and whatever this module does not decode (lzf, szip, foreign filters,
compact and contiguous layouts) is left to HDF5 itself.

It works on one open dataset at a time and deliberately knows nothing about record kinds, files,
catalogues or the creation of datasets.
"""

from __future__ import annotations

from .checking import check
from .choosing import quick
from .pipeline import COMPACT_BYTES, Pipeline, check_options, choose, chunk_shape, length_class
from .reading import descriptor_of, read, read_many
from .threads import each
from .writing import (
    Checksum,
    encoder_for,
    packed_chunk,
    sealed,
    single_chunk,
    write,
    write_plain,
)

__all__ = [
    "COMPACT_BYTES",
    "Checksum",
    "Pipeline",
    "check",
    "check_options",
    "choose",
    "chunk_shape",
    "descriptor_of",
    "each",
    "encoder_for",
    "length_class",
    "packed_chunk",
    "quick",
    "read",
    "read_many",
    "sealed",
    "single_chunk",
    "write",
    "write_plain",
]
