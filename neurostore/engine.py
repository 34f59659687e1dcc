"""``engine="neurostore"`` for xarray: the catalogue, a record, or the tree of a file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from neurostore.store import open as open_store
from neurostore.times import TimeLike

__all__ = ["NeurostoreBackendEntrypoint"]

_HEAD = 16 * 1024
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class NeurostoreBackendEntrypoint(BackendEntrypoint):
    """xarray backend; ``xr.open_dataset(path, engine="neurostore")``."""

    description = "Open neural-simulation records in HDF5 files written by neurostore"
    url = "https://pypi.org/project/neurostore/"
    supports_groups = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        name: str | None = None,
    ) -> xr.Dataset:
        """Return the catalogue, or with ``group`` what stands at that address.

        Parameters
        ----------
        filename_or_obj
            Path of the file.
        drop_variables
            Names to leave out.
        group
            Address of a record's part, such as ``"spike_trains/raw_data/train_12.5"``.
        kind, start, end, name
            Narrow the catalogue.
        """
        store = open_store(filename_or_obj, "r")
        ds = (
            store.catalogue(kind, start, end, name=name)
            if group is None or not group.strip("/")
            else store.open_group(group)
        )
        return _without(ds, drop_variables)

    def open_groups_as_dict(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        name: str | None = None,
    ) -> dict[str, xr.Dataset]:
        """Return the records' parts by address; the root is empty."""
        found = open_store(filename_or_obj, "r").tree(kind, start, end, name=name)
        root = xr.Dataset()
        root.encoding["source"] = os.path.abspath(os.fspath(filename_or_obj))
        groups = {f"/{address}": _without(ds, drop_variables) for address, ds in found.items()}
        return {"/": root, **groups}

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
            with open(filename_or_obj, "rb") as stream:
                head = stream.read(_HEAD)
        except (OSError, ValueError):
            return False
        return head.startswith(_SIGNATURE) and b"engine='neurostore'" in head


def _without(ds: xr.Dataset, names: str | Iterable[str] | None) -> xr.Dataset:
    if names is None:
        return ds
    dropped = [names] if isinstance(names, str) else list(names)
    return ds.drop_vars(dropped, errors="ignore")
