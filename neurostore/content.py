"""The content hash of a part: one number over everything that the part says.

It is a sum, modulo 2**128, of one BLAKE2b-128 digest for each item of the part, so that a record
that grows takes the old items off and adds the new ones.  Values count by the checksums that
their chunks carry already; to hash them again would cost as much as compressing them.  What
compaction changes (addresses, references, dimension numbers) does not count.  The items are
described in ``docs/layout.md``, well enough to be made without this module.  It neither knows
record kinds nor checks that values agree with their checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

import numpy as np
from h5py import h5a, h5d, h5ds, h5g, h5o, h5s

from neurostore import h5attrs
from neurostore.filters import Checksum
from neurostore.h5attrs import Packed
from neurostore.scales import address_of, attached_to

__all__ = [
    "HASH_ATTR",
    "RECORDING_ATTR",
    "SIZE",
    "attributes",
    "chunk",
    "chunks_of",
    "fill",
    "of_group",
    "opened",
    "put",
    "read",
    "shape_text",
    "sizes",
    "sizes_with",
    "values",
    "variable",
]

#: Attribute of every part that holds the hash: `SIZE` hexadecimal digits.
HASH_ATTR = b"content_hash"
SIZE = 32
#: Attribute that says whether a part is still being recorded; it is no part of what it says.
RECORDING_ATTR = b"recording"
_MODULUS = 1 << 128


def _digest(item: bytes) -> int:
    return int.from_bytes(blake2b(item, digest_size=16).digest(), "little")


def attributes(owner: bytes, found: Iterable[Packed]) -> int:
    """Return the item of the attributes of a group (no owner) or of one of its datasets."""
    item = [b"attributes\0", owner]
    for name, value, is_text in sorted(found):
        if is_text:
            item += (b"\0", name, b"\0text\0", value.rstrip(b"\0"))
        else:
            dtype, shape, raw = value
            item += (
                b"\0",
                name,
                b"\0",
                b"%b[%b]" % (dtype.encode(), _comma(shape).encode()),
                b"\0",
                raw,
            )
    return _digest(b"".join(item))


def variable(link: bytes, dtype: str, dims: Sequence[bytes]) -> int:
    """Return the item of a dataset's type and dimensions; a scale has no dimensions here."""
    return _digest(b"\0".join((b"variable", link, dtype.encode(), *dims)))


def sizes(shapes: Mapping[bytes, tuple[int, ...]]) -> int:
    """Return the item of the shapes of all datasets of a part."""
    return sizes_with(shape_text(shapes), 0)


def shape_text(shapes: Mapping[bytes, tuple[int, ...]]) -> tuple[bytes, ...]:
    """Return the text of shapes in which -1 stands for one length, cut where that goes."""
    item = b"sizes"
    for link in sorted(shapes):
        # A slash is in no link name.
        shape = ",".join("/" if size == -1 else str(size) for size in shapes[link])
        item += b"\0%b\0%b" % (link, shape.encode())
    return tuple(item.split(b"/"))


def sizes_with(text: tuple[bytes, ...], length: int) -> int:
    """Return the item of the shapes of all datasets, whose text was prepared."""
    return _digest((b"%d" % length).join(text))


def values(link: bytes, raw: bytes) -> int:
    """Return the item of values that have no chunks: their bytes, in C order."""
    return _digest(b"values\0%b\0%b" % (link, raw))


def chunk(link: bytes, offset: tuple[int, ...], checksum: bytes) -> int:
    """Return the item of one chunk, by the four bytes of its Fletcher32."""
    where = b"%d" % offset if len(offset) == 1 else _comma(offset).encode()
    return _digest(b"chunk\0%b\0%b\0%b" % (link, where, checksum))


def _comma(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def fill(group: h5g.GroupID, total: int) -> None:
    """Write the sum of all items into the attribute that the group has for it.

    Examples
    --------
    A record that grows takes off the items that changed, and adds what they are now:

    >>> before, after = sizes({b"x": (3,)}), sizes({b"x": (4,)})
    >>> fill(group, read(group) - before + after)  # doctest: +SKIP
    """
    put(opened(group), total)


def opened(group: h5g.GroupID) -> h5a.AttrID:
    """Open the attribute that a group has for its hash."""
    return h5a.open(group, HASH_ATTR)


def put(attribute: h5a.AttrID, total: int) -> None:
    """Write the sum of all items into that attribute, which is open."""
    h5attrs.put_text(attribute, b"%032x" % (total % _MODULUS), SIZE)


def read(group: h5g.GroupID) -> int | None:
    """Return the hash that a part carries; None for parts of schema version 1 and of others."""
    text = h5attrs.read_one(group, HASH_ATTR)
    return None if text is None else int(text, 16)


def of_group(
    group: h5g.GroupID, checksums: Mapping[bytes, Iterable[Checksum]] | None = None
) -> int:
    """Return the hash of a part from what stands in the file now.

    Parameters
    ----------
    checksums
        Those of the chunks of a dataset, by its link, where they were read already.

    Raises
    ------
    OSError, RuntimeError, ValueError, KeyError
        Something of it cannot be read.
    """
    total = attributes(b"", h5attrs.packed(group, skip=_OWN))
    opened = {link: item for link in group if (item := h5o.open(group, link)) is not None}
    datasets = {link: item for link, item in opened.items() if isinstance(item, h5d.DatasetID)}
    scales = {address_of(item): link for link, item in datasets.items() if h5ds.is_scale(item)}
    total += sizes({link: item.shape for link, item in datasets.items()})
    for link, item in datasets.items():
        total += attributes(link, h5attrs.packed(item))
        total += variable(link, item.dtype.str, _dims(item, scales))
        total += _stored(link, item, checksums.get(link) if checksums else None)
    return total % _MODULUS


_OWN = frozenset({HASH_ATTR, RECORDING_ATTR})


def _dims(dataset: h5d.DatasetID, scales: Mapping[int, bytes]) -> list[bytes]:
    if h5ds.is_scale(dataset):
        return []
    return [scales.get(address or 0, b"?") for address in attached_to(dataset)]


def _stored(link: bytes, dataset: h5d.DatasetID, known: Iterable[Checksum] | None) -> int:
    if dataset.get_create_plist().get_layout() == h5d.CHUNKED:
        found = chunks_of(dataset) if known is None else known
        return sum(chunk(link, offset, checksum) for offset, checksum in found)
    if dataset.get_storage_size() == 0:
        return 0
    raw = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5s.ALL, h5s.ALL, raw)
    return values(link, raw.tobytes())


def chunks_of(dataset: h5d.DatasetID) -> Iterator[Checksum]:
    """Yield offset and checksum, its last four bytes, of every chunk that is stored."""
    found: list[tuple[int, ...]] = []
    dataset.chunk_iter(lambda info: found.append(tuple(info.chunk_offset)))
    for offset in found:
        yield offset, dataset.read_direct_chunk(offset)[1][-4:]
