"""Records shown to zarr readers where they are, without a copy of their values.

The references of kerchunk, one JSON file, say which bytes of which file are which chunk; fsspec
shows them as a zarr store of version 2, with a group for every part at the address that it has in
the file. That is also what can be turned into a virtual Icechunk store. Values are neither read
nor copied, but for those of a few bytes that have no place of their own in the file. VirtualiZarr
does not make the references itself: its reader of HDF5 cannot open labels of text.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from neurostore import chunkmap, osio, series, tree
from neurostore.chunkmap import Mapped
from neurostore.errors import RefusedError, StoreNotFoundError, ValidationError
from neurostore.session import Session

__all__ = ["publish", "references"]

#: Of zarr's version 2; NaN and the infinities are texts in its JSON.
_FORMAT = {"zarr_format": 2}


def publish(
    session: Session,
    target: str | os.PathLike[str],
    *,
    base: str | None = None,
    unsealed: bool = False,
    force: bool = False,
) -> int:
    """Write the references of a series to a JSON file; return the number of records.

    Parameters
    ----------
    session
        The newest file of the series.
    target
        The JSON file to make.
    base
        URL of the folder in which readers will find the files; None: where they are now.
    unsealed
        Take the newest file along, which must not change after that.
    force
        Replace what stands at `target`.

    Raises
    ------
    ValidationError
        No file of the series is sealed, or a variable is stored in a way that zarr cannot say.
    StoreExistsError
        Something stands at `target`.
    """
    with osio.completed(Path(target), force) as unfinished:
        count, found = references(session, base=base, unsealed=unsealed)
        text = json.dumps({"version": 1, "refs": found}, separators=(",", ":"))
        unfinished.write_text(text, encoding="utf-8")
    return count


def references(
    session: Session, *, base: str | None = None, unsealed: bool = False
) -> tuple[int, dict[str, Any]]:
    """Return the number of records, and kerchunk's references; arguments as for `publish`."""
    metadata: dict[str, Any] = {".zgroup": _FORMAT}
    chunks: dict[str, Any] = {}
    count = 0
    for member in _members(session, unsealed):
        url = f"{base.rstrip('/')}/{member.path.name}" if base else os.fspath(member.path)
        with member.reading() as h5file, _naming(str(member.path)):
            for entry in member.catalogue.entries():
                count += 1
                for part in entry.kind.parts:
                    address = f"{part.path}/{entry.id}"
                    if tree.has(h5file, address):
                        attrs, variables = chunkmap.look(h5file.id, address, entry.kind)
                        _add_group(metadata, address, attrs)
                        for variable in variables:
                            _add(metadata, chunks, f"{address}/{variable.name}", variable, url)
    found: dict[str, Any] = {key: _compact(value) for key, value in metadata.items()}
    for address, described in _parts(metadata).items():
        key = f"{address}/.zmetadata".lstrip("/")
        found[key] = _compact({"zarr_consolidated_format": 1, "metadata": described})
    return count, found | chunks


def _parts(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what is opened at once, by address: the whole, and each part; readers list nothing."""
    # Zarr-python takes what is consolidated for a tree only if siblings stand together.
    found: dict[str, dict[str, Any]] = {"": dict(sorted(metadata.items()))}
    for key, value in metadata.items():
        owner, _, name = key.rpartition("/")
        is_array = f"{owner}/.zarray" in metadata
        part, _, link = owner.rpartition("/") if is_array else (owner, "", "")
        if f"{part}/.zattrs" in metadata:
            found.setdefault(part, {})[f"{link}/{name}".lstrip("/")] = value
    return found


def _members(session: Session, unsealed: bool) -> Iterator[Session]:
    """Yield the files whose bytes stay where they are."""
    published = 0
    for member in series.members(session, missing=_refuse):
        if unsealed or member.catalogue.ledger.seal is not None:
            published += 1
            yield member
    if not published:
        raise ValidationError(
            f"{session.path}: no file of it is sealed, and what may still change is not published; "
            "rotate() seals it; unsealed=True (--unsealed) publishes a file that is finished"
        )


def _refuse(message: str) -> None:
    raise StoreNotFoundError(f"{message}; a series is published whole")


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Put the file before what is said of something in it."""
    try:
        yield
    except (ValidationError, RefusedError) as error:
        raise type(error)(f"{path}: {error}") from error


def _add_group(metadata: dict[str, Any], address: str, attrs: Mapping[str, Any]) -> None:
    parts = address.split("/")
    for depth in range(1, len(parts) + 1):
        metadata.setdefault("/".join([*parts[:depth], ".zgroup"]), _FORMAT)
    metadata[f"{address}/.zattrs"] = {key: _json(value) for key, value in attrs.items()}


def _add(
    metadata: dict[str, Any], chunks: dict[str, Any], key: str, found: Mapped, url: str
) -> None:
    """Add one variable: its description, and a reference for each of its chunks."""
    attrs = {name: _json(value) for name, value in found.attrs.items()}
    metadata[f"{key}/.zarray"] = _FORMAT | {
        "shape": found.shape,
        # Zarr has no chunk of size 0; nothing is stored of a dimension of size 0 either.
        "chunks": [max(1, size) for size in found.chunks],
        "dtype": found.dtype.str,
        # What xarray masks: none but what the variable itself names.
        "fill_value": attrs.pop("_FillValue", None),
        "order": "C",
        "filters": found.filters or None,
        "compressor": None,
        "dimension_separator": ".",
    }
    metadata[f"{key}/.zattrs"] = attrs | {"_ARRAY_DIMENSIONS": found.dims}
    for position in np.ndindex(*_grid(found)):
        stored = found.stored.get(position)
        name = f"{key}/{'.'.join(map(str, position)) or '0'}"
        chunks[name] = [url, *stored] if isinstance(stored, tuple) else _inline(stored, found)


def _grid(found: Mapped) -> list[int]:
    return [
        -(-size // max(1, chunk)) for size, chunk in zip(found.shape, found.chunks, strict=True)
    ]


def _inline(stored: bytes | None, found: Mapped) -> str:
    """Return bytes that are not in the file as text; a chunk never written has the fill value."""
    if stored is None:
        stored = np.full(found.chunks, found.fill, found.dtype).tobytes()
        for config in found.filters:
            stored = bytes(numcodecs.get_codec(config).encode(stored))
    return "base64:" + base64.b64encode(stored).decode("ascii")


def _json(value: Any) -> Any:
    """Return the value of an attribute as JSON has it."""
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(plain, float) and not math.isfinite(plain):
        return str(plain).replace("inf", "Infinity").replace("nan", "NaN")
    return plain.decode("utf-8", "replace") if isinstance(plain, bytes) else plain


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
