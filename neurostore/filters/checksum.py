"""The Fletcher32 of HDF5, over buffers of any size.

numcodecs has it in C, and holds Python's lock meanwhile.  Over large buffers the function of HDF5
itself is called instead, outside that lock, where it can be found: it is no part of HDF5's public
interface.  What a checksum that does not agree means is not decided here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import h5py
import numpy as np
from numcodecs.fletcher32 import Fletcher32

__all__ = ["appended", "fletcher32"]

#: To let other threads in, and to be let in again, costs as much as summing a smaller buffer.
_UNLOCKED_BYTES = 64 * 1024

_numcodecs = Fletcher32()


def fletcher32(data: Any) -> int:
    """Fletcher32 of a contiguous buffer, as HDF5 computes it (H5checksum.c).

    Examples
    --------
    >>> hex(fletcher32(b"abcdef"))
    '0x50562a2d'
    """
    buffer = np.frombuffer(data, np.uint8)
    if not buffer.size:
        return 0
    by_hdf5 = _of_hdf5() if buffer.size >= _UNLOCKED_BYTES else None
    if by_hdf5 is not None:
        return by_hdf5(buffer.__array_interface__["data"][0], buffer.size)
    return int.from_bytes(_numcodecs.encode(buffer)[-4:], "little")


@cache
def _of_hdf5() -> Callable[[int, int], int] | None:
    """Return the function of the HDF5 that h5py has loaded, if it is there and is the one."""
    try:
        # Symbols of what a library was linked with are found through it.
        found = ctypes.CDLL(h5py.h5.__file__).H5_checksum_fletcher32
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint32
    known = np.arange(1001, dtype=np.uint8)  # an odd number of bytes
    expected = int.from_bytes(_numcodecs.encode(known)[-4:], "little")
    right: bool = found(known.ctypes.data, known.size) == expected
    return found if right else None


def appended(data: Any) -> Any:
    """Return a contiguous buffer with its checksum behind it."""
    if len(data) < _UNLOCKED_BYTES:
        return _numcodecs.encode(data)
    whole = bytearray(len(data) + 4)
    view = memoryview(whole)
    view[:-4] = data
    view[-4:] = fletcher32(view[:-4]).to_bytes(4, "little")
    return whole
