"""Collections of the global heap that hold references to objects, as bytes.

A dataset names its dimension scales by elements of the global heap (HDF5 File Format
Specification, III.E), which many datasets share.  Collections are read here into arrays, and made
anew with HDF5's own size; which dataset names which element is `relocation`'s affair.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from neurostore.objectheader import Array

__all__ = ["PER", "SIZE", "collection", "is_endless", "references"]

#: Bytes of a collection, and references in one.
SIZE = 4096
PER = (SIZE - 16) // 24
_LARGEST = 16 * 1024 * 1024
#: An element that holds one reference.
_ELEMENT = np.dtype(
    [("index", "<u2"), ("uses", "<u2"), ("", "<u4"), ("size", "<u8"), ("to", "<u8")]
)


def collection(references: Array) -> bytes:
    """Return the bytes of a collection that holds these references, the first by index 1."""
    elements = np.zeros(len(references), _ELEMENT)
    elements["index"] = np.arange(1, len(references) + 1)
    elements["size"] = 8
    elements["to"] = references
    used = b"GCOL\x01\0\0\0" + SIZE.to_bytes(8, "little") + elements.tobytes()
    free = SIZE - len(used)
    if free >= 16:  # named as the element 0; less has no room for that
        used += bytes(8) + free.to_bytes(8, "little")
    return used.ljust(SIZE, b"\0")


def references(read: Callable[[int, int], bytes], where: int) -> Array:
    """Return what the elements of a collection refer to, by index; -1 for what is no reference."""
    head = read(where, 16)
    size = int.from_bytes(head[8:16], "little")
    if head[:5] != b"GCOL\x01" or not 16 < size <= _LARGEST:
        return np.full(1, -1, np.int64)
    data = read(where, size)
    elements = np.frombuffer(data, _ELEMENT, max(0, (len(data) - 16) // _ELEMENT.itemsize), 16)
    used = elements[: int(np.append(elements["index"], 0).argmin())]
    if len(used) and (used["size"] == 8).all():
        found = np.full(int(used["index"].max()) + 1, -1, np.int64)
        found[used["index"]] = used["to"]
        return found
    return _of_all_sizes(data)


def is_endless(read: Callable[[int, int], bytes], where: int) -> bool:
    """Tell whether HDF5 would walk through a collection for ever, or out of it.

    It goes from element to element by their sizes, which have no checksum, and stays for ever at a
    free one that takes no room.  What is no collection at all it refuses by itself.
    """
    head = read(where, 16)
    size = int.from_bytes(head[8:16], "little")
    if head[:5] != b"GCOL\x01" or not 16 < size <= _LARGEST:
        return False
    data, at = read(where, size), 16
    while at + 16 <= len(data):
        index = int.from_bytes(data[at : at + 2], "little")
        length = int.from_bytes(data[at + 8 : at + 16], "little")
        taken = 16 + -(-length // 8) * 8 if index else length
        if not taken or at + taken > size:
            return True
        at += taken
    return False


def _of_all_sizes(data: bytes) -> Array:
    found = np.full(1 << 16, -1, np.int64)
    at = 16
    while at + 16 <= len(data):
        index = int.from_bytes(data[at : at + 2], "little")
        length = int.from_bytes(data[at + 8 : at + 16], "little")
        if not index:
            break
        if length == 8:
            found[index] = int.from_bytes(data[at + 16 : at + 24], "little", signed=True)
        at += 16 + -(-length // 8) * 8
    return found
