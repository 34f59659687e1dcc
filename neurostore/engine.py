"""``engine="neurostore"`` for xarray: the catalogue, a record, or the tree of a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from neurostore import foreign
from neurostore.chunking import with_preferred
from neurostore.errors import NotAStoreError, ValidationError
from neurostore.store import Store
from neurostore.store import open as open_store
from neurostore.times import TimeLike

__all__ = ["NeurostoreBackendEntrypoint"]

_HEAD = 16 * 1024
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class NeurostoreBackendEntrypoint(BackendEntrypoint):
    """xarray backend; ``xr.open_dataset(path, engine="neurostore")``."""

    description = "Open neural-simulation records in HDF5 files written by neurostore"
    supports_groups = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        mask_and_scale: Any = None,
        decode_times: Any = None,
        concat_characters: Any = None,
        decode_coords: Any = None,
        drop_variables: str | Iterable[str] | None = None,
        use_cftime: Any = None,
        decode_timedelta: Any = None,
        group: str | None = None,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        name: str | None = None,
        range: str | None = None,  # noqa: A002 (as Store.range)
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Return the catalogue, with ``group`` what stands there, with ``range`` many records.

        Parameters
        ----------
        filename_or_obj
            Path of the file, a pattern such as ``"runs/*.h5"``, or a list of files; of a series
            the newest.  A URL such as ``"s3://bucket/run.h5"`` needs the extra ``remote``.
        mask_and_scale, decode_times, concat_characters, decode_coords, use_cftime, decode_timedelta
            As for `xarray.open_dataset`, with ``group``.  What other tools wrote is decoded by
            xarray's rules; a record is decoded by neurostore's, exactly, unless one of these is
            given: then by xarray's, as ``engine="h5netcdf"`` would.
        drop_variables
            Names to leave out.
        group
            Address of a record's part, such as ``"spike_trains/raw_data/train_12.5"``, or of a
            group that another tool wrote.
        kind, start, end, name
            Narrow the catalogue; all but the first narrow a range, too.
        range
            A record kind: all its records as one Dataset, as :meth:`neurostore.Store.range` has it.
        storage_options
            What fsspec needs for a URL: keys, an endpoint.

        Raises
        ------
        ValidationError
            ``range`` is given together with ``group`` or ``kind``, the group is no str, or there is
            nothing to decode.
        """
        decoding = _given(
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            concat_characters=concat_characters,
            decode_coords=decode_coords,
            use_cftime=use_cftime,
            decode_timedelta=decode_timedelta,
        )
        if group is not None and not isinstance(group, str):
            raise ValidationError(f"the group is {group!r}; it must be a string, an address")
        store = _opened(filename_or_obj, storage_options)
        if range is None and group is not None and group.strip("/"):
            ds = store.open_group(group, set_indexes=False, **decoding)
            if "unlimited_dims" not in ds.encoding:  # what xarray decoded says its own chunks
                ds = with_preferred(ds)
        elif any(decoding.values()):  # decode_cf=False sets all of them, where none matters
            raise ValidationError(
                f"{filename_or_obj}: {', '.join(decoding)}: only what stands in a group is "
                "encoded; name it by group="
            )
        elif range is not None:
            if group is not None or kind is not None:
                raise ValidationError("range= names the kind; leave out group= and kind=")
            ds = with_preferred(store.range(range, start, end, name=name))
        else:
            ds = store.catalogue(kind, start, end, name=name)
        return _without(ds, drop_variables)

    def open_groups_as_dict(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        name: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **decoding: Any,
    ) -> dict[str, xr.Dataset]:
        """Return the records' parts by address; the root is empty.

        Parameters
        ----------
        filename_or_obj, drop_variables, storage_options
            As for `open_dataset`.
        group
            Only what stands there and below; it becomes the root.
        kind, start, end, name
            Only these records.
        **decoding
            The options of decoding of `open_dataset`.
        """
        foreign.check_options(decoding)
        store = _opened(filename_or_obj, storage_options)
        found = store.tree(kind, start, end, name=name)
        if decoding := _given(**decoding):
            found = {one: store.open_group(one, set_indexes=False, **decoding) for one in found}
        root = xr.Dataset()
        root.encoding["source"] = str(store.path)
        groups = {f"/{address}": _without(ds, drop_variables) for address, ds in found.items()}
        return {"/": root} | (groups if group is None else _below(group.strip("/"), groups))

    def open_datatree(  # type: ignore[override]
        self, filename_or_obj: str | os.PathLike[str], **options: Any
    ) -> xr.DataTree:
        """Return the tree of records; options as for `open_groups_as_dict`."""
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **options))

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Tell whether a file was made by neurostore, from its first bytes."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        try:
            if not os.path.isfile(filename_or_obj):  # a pipe would be waited for
                return False
            with open(filename_or_obj, "rb") as stream:
                head = stream.read(_HEAD)
        except (OSError, ValueError):
            return False
        return head.startswith(_SIGNATURE) and b"engine='neurostore'" in head


def _given(**decoding: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in decoding.items() if value is not None}


def _opened(path: object, options: Mapping[str, Any] | None) -> Store:
    """Open for reading what xarray was given; its own engines take ``~`` for the home, too."""
    if isinstance(path, list | tuple) and all(isinstance(p, str | os.PathLike) for p in path):
        return open_store([os.path.expanduser(one) for one in path], "r")
    if not isinstance(path, str | os.PathLike):
        raise NotAStoreError(
            f"engine='neurostore' opens files by their path, not a {type(path).__name__}; "
            "save it to a file, or use engine='h5netcdf' with group="
        )
    return open_store(os.path.expanduser(path), "r", storage_options=options)


def _below(group: str, groups: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Return the groups at and below ``group``, by their address from there."""
    head = f"/{group}" if group else ""
    return {
        address.removeprefix(head) or "/": ds
        for address, ds in groups.items()
        if f"{address}/".startswith(f"{head}/")
    }


def _without(ds: xr.Dataset, names: str | Iterable[str] | None) -> xr.Dataset:
    """Leave variables out, and the indexes that need them."""
    if names is None:
        return ds
    dropped = {names} if isinstance(names, str) else set(names)
    broken = [
        name
        for _, coords in ds.xindexes.group_by_index()
        if dropped & coords.keys()
        for name in coords
    ]
    return ds.drop_indexes(broken).drop_vars(dropped, errors="ignore")
