"""Groups that other tools wrote, decoded by the rules of xarray and CF.

Values and attributes are handed to xarray as they are stored, with the encodings that its own
netCDF engines report, and xarray decodes them: masks, scales, dates, characters, coordinates.
Records of neurostore are decoded by `reading`, unless somebody asks to have one decoded so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np
import xarray as xr
from h5py import h5d, h5g, h5i, h5o, h5s
from xarray.backends import AbstractDataStore, StoreBackendEntrypoint

from neurostore import guard, h5attrs
from neurostore.arrays import AsStoredArray, Source, lazy
from neurostore.content import HASH_ATTR
from neurostore.filters.pipeline import ZSTD
from neurostore.reading import NON_COORD, Item, items_of

__all__ = ["OPTIONS", "applies", "check_options", "indexed", "opened"]

#: Options of `xarray.open_dataset` that say how to decode.
OPTIONS = frozenset(
    {
        "mask_and_scale",
        "decode_times",
        "concat_characters",
        "decode_coords",
        "drop_variables",
        "use_cftime",
        "decode_timedelta",
    }
)
#: A group with it is a part of a record of ours, wherever it stands.
_STAMP = b"schema_version"
_FILTERS = {
    h5py.h5z.FILTER_DEFLATE: "zlib",
    h5py.h5z.FILTER_SZIP: "szip",
    h5py.h5z.FILTER_LZF: "lzf",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
    ZSTD: "zstd",
}
#: What these say is a value of the variable, so that it stays bytes where the variable is.
_VALUES = ("_FillValue", "missing_value")


def check_options(decoding: Iterable[str]) -> None:
    """Raise TypeError for what is no option of decoding, as Python does for an argument."""
    if unknown := sorted(set(decoding) - OPTIONS):
        raise TypeError(f"unexpected {', '.join(unknown)}; expected some of {sorted(OPTIONS)}")


def applies(root: h5g.GroupID, path: str, asked: bool) -> bool:
    """Tell whether a group stands at ``path`` that is no part of a record, or is asked for so.

    A bare dataset has no dimensions that xarray could read.
    """
    guard.check_path(root, path.encode())
    found = h5o.open(root, path.encode())
    return isinstance(found, h5g.GroupID) and (asked or not h5py.h5a.exists(found, _STAMP))


def opened(
    root: h5g.GroupID, path: str, source: Source, where: str, decoding: Mapping[str, Any]
) -> xr.Dataset:
    """Return what stands in the group at ``path``, lazily and without indexes.

    Parameters
    ----------
    root, path
        The file, and a group in it.
    source
        Where values are read from later.
    where
        Path of the file, for the encodings.
    decoding
        Options of `xarray.open_dataset`: ``mask_and_scale``, ``decode_times`` and the like.

    Raises
    ------
    RefusedError
        The way there, or something there, leads elsewhere.
    """
    guard.check_path(root, path.encode())
    group = h5g.open(root, path.encode())
    made: xr.Dataset = StoreBackendEntrypoint().open_dataset(
        _Group(root, group, path, source, where), **decoding
    )
    return made


def indexed(ds: xr.Dataset) -> xr.Dataset:
    """Return a Dataset with the default index for every dimension that has labels and none."""
    bare = {
        name: coord.variable
        for name, coord in ds.coords.items()
        if coord.dims == (name,) and name not in ds.xindexes
    }
    return ds.assign_coords(bare) if bare else ds


class _Group(AbstractDataStore):
    """One group as xarray's decoding takes it."""

    def __init__(
        self, root: h5g.GroupID, group: h5g.GroupID, path: str, source: Source, where: str
    ) -> None:
        items, dims = items_of(root, group, path, None)
        self._attrs = _plain(h5attrs.read_all(group, skip=frozenset({HASH_ATTR})))
        self._variables = {
            _name_of(item): _variable(item, dims[item.link], path, source, where)
            for item in items
            if not item.bare
        }
        self._unlimited = {
            item.link.decode()
            for item in items
            if item.is_scale and None in _limits(item.dataset)[:1]
        }

    def get_attrs(self) -> dict[str, Any]:
        """Return the attributes of the group."""
        return self._attrs

    def get_variables(self) -> dict[str, xr.Variable]:
        """Return the variables as they are stored."""
        return self._variables

    def get_encoding(self) -> dict[str, Any]:
        """Return the dimensions that can grow."""
        return {"unlimited_dims": self._unlimited}


def _name_of(item: Item) -> str:
    return item.link.decode().removeprefix(NON_COORD)


def _limits(dataset: h5d.DatasetID) -> tuple[int | None, ...]:
    """Return how far each dimension can grow, None: for ever."""
    most = dataset.get_space().get_simple_extent_dims(True)
    return tuple(None if size == h5s.UNLIMITED else size for size in most)


def _variable(
    item: Item, dims: tuple[str, ...], path: str, source: Source, where: str
) -> xr.Variable:
    dataset = item.dataset
    encoding = _encoding(dataset, dims)
    address, chunks = f"{path}/{item.link.decode()}", encoding["chunksizes"]
    array = AsStoredArray(source, address, dataset.shape, dataset.dtype, chunks)
    made = lazy(dims, array, _plain(item.attrs.items(), dataset.dtype))
    made.encoding = encoding | {"source": where, "original_shape": dataset.shape}
    return made


def _plain(attrs: Iterable[tuple[str, Any]], dtype: np.dtype[Any] | None = None) -> dict[str, Any]:
    """Return attributes as netCDF readers do: what has one element is that element."""
    found: dict[str, Any] = {}
    for name, value in attrs:
        if isinstance(value, np.ndarray | list) and len(value) == 1:
            value = value[0]
        if name in _VALUES and isinstance(value, str) and dtype is not None and dtype.kind == "S":
            value = value.encode("utf-8", "surrogateescape")
        found[name] = value
    return found


def _encoding(dataset: h5d.DatasetID, dims: tuple[str, ...]) -> dict[str, Any]:
    """Return how a dataset is stored, in the words of xarray's netCDF engines."""
    dcpl = dataset.get_create_plist()
    chunked = dcpl.get_layout() == h5d.CHUNKED
    chunks = dcpl.get_chunk() if chunked else None
    found: dict[str, Any] = {
        "dtype": _noted_dtype(dataset),
        "contiguous": not chunked,
        "chunksizes": chunks,
        **dict.fromkeys(("zlib", "szip", "zstd", "shuffle", "fletcher32"), False),
    }
    if chunks is not None:
        found["preferred_chunks"] = dict(zip(dims, chunks, strict=True))
    for index in range(dcpl.get_nfilters() if chunked else 0):
        code, _, values, _ = dcpl.get_filter(index)
        name = _FILTERS.get(code, str(code))
        found[name] = True
        if name in ("zlib", "zstd"):
            found["complevel"] = values[0]
    return found


def _noted_dtype(dataset: h5d.DatasetID) -> Any:
    dtype = dataset.dtype
    if dtype.kind == "O":
        return str if h5py.check_string_dtype(dtype) is not None else dtype
    members = h5py.check_enum_dtype(dtype)
    if members is None:
        return dtype
    name = (h5i.get_name(dataset.get_type()) or b"").decode().rpartition("/")[2]
    return np.dtype(dtype, metadata={"enum": members, "enum_name": name or None})
