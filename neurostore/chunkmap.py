"""Where the stored bytes of a part are: what a reader of chunks needs to know of it.

The values stay where they are; only those without a place of their own in the file (compact
datasets) are taken along. It writes nothing and knows no format that it is to be written in, but
names filters as numcodecs does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from h5py import h5d, h5g, h5i, h5o, h5s, h5z

from neurostore import guard, h5attrs
from neurostore.errors import RefusedError, ValidationError
from neurostore.filters.pipeline import ZSTD
from neurostore.reading import NON_COORD, items_of
from neurostore.records import LINK_ATTR
from neurostore.schema import Kind

__all__ = ["Extent", "Mapped", "look"]

#: Offset in the file, and length.
Extent = tuple[int, int]

#: Filters that numcodecs has too, by their number in HDF5: what makes its configuration.
_CODECS: dict[int, Callable[[Sequence[int]], dict[str, Any]]] = {
    h5z.FILTER_SHUFFLE: lambda values: {"id": "shuffle", "elementsize": int(values[0])},
    h5z.FILTER_DEFLATE: lambda values: {"id": "zlib", "level": int(values[0])},
    h5z.FILTER_FLETCHER32: lambda _: {"id": "fletcher32"},
    ZSTD: lambda values: {"id": "zstd", "level": int(values[0]) if values else 3},
}


@dataclass(frozen=True)
class Mapped:
    """One variable: its description, and where each of its chunks is.

    Parameters
    ----------
    filters
        In the order in which they were applied, as numcodecs configures them.
    chunks
        Shape of a chunk; every stored chunk is whole, those at the edges too.
    stored
        By position in the grid of chunks: the extent in the file, or the bytes themselves. What
        is left out was never written and has the value ``fill``.
    """

    name: str
    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    filters: list[dict[str, Any]]
    fill: np.ndarray[Any, Any]
    attrs: dict[str, Any]
    stored: dict[tuple[int, ...], Extent | bytes]


def look(root: h5g.GroupID, address: str, kind: Kind) -> tuple[dict[str, Any], list[Mapped]]:
    """Return the attributes of the part at ``address``, and its variables.

    Raises
    ------
    ValidationError
        A variable is stored in a way that only HDF5 reads.
    RefusedError
        The values are elsewhere, or are more than so few stored bytes can be.
    """
    guard.check_path(root, address.encode())
    group = h5o.open(root, address.encode())
    if isinstance(group, h5d.DatasetID):
        raise ValidationError(
            f"/{address}: is a bare dataset that another tool wrote, expected the group of a "
            "record; store it anew to publish it"
        )
    if h5i.get_file_id(group).get_create_plist().get_userblock():
        raise RefusedError(f"/{address}: the file has a user block; repack it with h5repack -u")
    items, dims = items_of(root, group, address, kind)
    found = [
        _mapped(item.dataset, f"/{address}/{item.link.decode()}", item.name, dims[item.link])
        for item in items
        if not item.bare
    ]
    return dict(h5attrs.read_all(group)), found


def _mapped(dataset: h5d.DatasetID, where: str, name: str, dims: tuple[str, ...]) -> Mapped:
    dtype, shape = dataset.dtype, dataset.shape
    if dtype.kind not in "biufcS" or "/" in name:
        raise ValidationError(
            f"{where}: {dtype if '/' not in name else repr(name)} cannot be said in zarr, expected "
            "numbers, bool or text of fixed length, and a name without '/'; export() takes it along"
        )
    dcpl = dataset.get_create_plist()
    fill = np.zeros((), dtype)
    if dcpl.fill_value_defined() != h5d.FILL_VALUE_UNDEFINED:
        dcpl.get_fill_value(fill)
    chunks, filters, stored = shape, list[dict[str, Any]](), dict[tuple[int, ...], Extent | bytes]()
    if dcpl.get_layout() == h5d.CHUNKED:
        chunks = dcpl.get_chunk()
        # Those never written are told one by one; a small file may claim any number of them.
        guard.check_size(dataset, max(math.prod(shape), math.prod(chunks)) * dtype.itemsize, None)
        mask, stored = _chunks(dataset, where, chunks)
        filters = _filters(dcpl, where, mask)
    elif dcpl.get_layout() == h5d.CONTIGUOUS:
        start = dataset.get_offset()
        if start is not None and dataset.get_storage_size():
            stored = {(0,) * len(shape): (start, dataset.get_storage_size())}
    elif dataset.get_storage_size():
        values = np.empty(shape, dtype)
        dataset.read(h5s.ALL, h5s.ALL, values)
        stored = {(0,) * len(shape): values.tobytes()}
    attrs = {key: value for key, value in h5attrs.read_all(dataset) if key != LINK_ATTR}
    name = name.removeprefix(NON_COORD)
    return Mapped(name, dims, dtype, shape, chunks, filters, fill, attrs, stored)


def _chunks(
    dataset: h5d.DatasetID, where: str, chunks: tuple[int, ...]
) -> tuple[int, dict[tuple[int, ...], Extent | bytes]]:
    """Return the filters that all chunks leave out, as a mask, and where the chunks are."""
    stored: dict[tuple[int, ...], Extent | bytes] = {}
    masks: set[int] = set()

    def note(info: Any) -> None:
        position = tuple(o // c for o, c in zip(info.chunk_offset, chunks, strict=True))
        stored[position] = (info.byte_offset, info.size)
        masks.add(info.filter_mask)

    dataset.chunk_iter(note)
    if len(masks) > 1:
        raise ValidationError(
            f"{where}: its chunks went through different filters, which zarr cannot say; "
            "repack(compression='gzip') encodes them alike"
        )
    return masks.pop() if masks else 0, stored


def _filters(dcpl: Any, where: str, mask: int) -> list[dict[str, Any]]:
    filters = []
    for index in range(dcpl.get_nfilters()):
        code, _, values, name = dcpl.get_filter(index)
        if mask >> index & 1:
            continue
        if code not in _CODECS:
            raise ValidationError(
                f"{where}: is stored with the filter {name.decode() or code}, which zarr readers "
                "do not have; expected gzip or zstd; repack(compression='gzip') encodes it anew"
            )
        filters.append(_CODECS[code](values))
    return filters
