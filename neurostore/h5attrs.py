"""Attributes of HDF5 objects, read and written by the low-level calls.

h5py's attribute manager costs 50 us an attribute; a record has about twenty.  Text is written
with a fixed length, because HDF5 keeps no checksum over strings of varying length.  Nor does it
keep one over values of more than 4 KB that it stores outside the object header (the "huge objects"
of its fractal heap), so these are given one, in an attribute beside them.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5s, h5t

from neurostore.errors import DamagedError
from neurostore.types import CRC_PREFIX

__all__ = [
    "Packed",
    "fill",
    "number_type",
    "overwrite",
    "pack",
    "packed",
    "put_numbers",
    "put_text",
    "read_all",
    "read_one",
    "remove",
    "reserve",
    "write",
]

#: Name, value and whether the value is text: an attribute ready to be written.
Packed = tuple[bytes, Any, bool]

_SCALAR = h5s.create(h5s.SCALAR)
#: Written by netCDF-4 and HDF5 for their own book-keeping; nobody asks for their values.
HIDDEN = frozenset(
    {
        b"CLASS",
        b"NAME",
        b"DIMENSION_LIST",
        b"REFERENCE_LIST",
        b"_Netcdf4Dimid",
        b"_Netcdf4Coordinates",
        b"_NCProperties",
        b"_nc3_strict",
    }
)


_CRC = CRC_PREFIX.encode()
_LONG = 4000


def pack(name: str, value: Any) -> Packed:
    """Return an attribute in hashable form: text as bytes, numbers as (dtype, shape, bytes)."""
    if isinstance(value, str):
        return name.encode(), value.encode(), True
    array = np.asarray(value)
    return name.encode(), (array.dtype.str, array.shape, array.tobytes()), False


def write(location: Any, attribute: Packed) -> h5a.AttrID:
    """Create an attribute of the object ``location``, and return it."""
    name, value, is_text = attribute
    raw = value if is_text else value[2]
    if len(raw) > _LONG:
        write(location, pack(CRC_PREFIX + name.decode(), np.uint32(zlib.crc32(raw))))
    if is_text:
        kind = _text_type(len(value))
        made = h5a.create(location, name, kind, _SCALAR)
        made.write(np.array(value or b"\0"), kind)
        return made
    dtype, shape, raw = value
    array = np.frombuffer(raw, dtype).reshape(shape)
    space = h5s.create_simple(shape) if shape else _SCALAR
    kind = number_type(array.dtype)
    made = h5a.create(location, name, kind, space)
    made.write(array, kind)
    return made


def remove(location: Any, name: bytes) -> None:
    """Take an attribute out, and its checksum; fine where there is none."""
    for one in (name, _CRC + name):
        if h5a.exists(location, one):
            h5a.delete(location, one)


def reserve(location: Any, name: bytes, size: int) -> h5a.AttrID:
    """Create a text attribute with room for ``size`` bytes, for :func:`fill` to write."""
    return h5a.create(location, name, _text_type(size), _SCALAR)


def fill(location: Any, name: bytes, text: bytes, size: int) -> None:
    """Write text into the ``size`` bytes reserved for it; NULs fill the rest."""
    put_text(h5a.open(location, name), text, size)


def put_text(attribute: h5a.AttrID, text: bytes, size: int) -> None:
    """Write text into an open attribute of ``size`` bytes; NULs fill the rest."""
    attribute.write(np.array(text, f"S{size}"), _text_type(size))


def overwrite(location: Any, name: bytes, values: np.ndarray[Any, Any]) -> None:
    """Give an existing numeric attribute of the same shape new values."""
    put_numbers(h5a.open(location, name), values)


def put_numbers(attribute: h5a.AttrID, values: np.ndarray[Any, Any]) -> None:
    """Give an open numeric attribute of the same shape new values."""
    attribute.write(values, number_type(values.dtype))


@lru_cache(maxsize=256)
def number_type(dtype: np.dtype[Any]) -> Any:
    """Return the HDF5 type of numbers."""
    # Kept, because h5py would make it anew for every attribute, which costs as much as the rest.
    return h5t.py_create(dtype)


@lru_cache(maxsize=256)
def _text_type(size: int) -> Any:
    kind = h5t.C_S1.copy()
    kind.set_size(max(1, size))
    kind.set_cset(h5t.CSET_UTF8)
    kind.set_strpad(h5t.STR_NULLPAD)
    return kind


def read_all(location: Any, skip: frozenset[bytes] = frozenset()) -> list[tuple[str, Any]]:
    """Return the attributes of an object, those of HDF5's book-keeping left out."""
    names: list[bytes] = []
    h5a.iterate(location, names.append)
    return [
        (name.decode(), _checked(location, name))
        for name in names
        if name not in HIDDEN and name not in skip and not name.startswith(_CRC)
    ]


def packed(location: Any, skip: frozenset[bytes] = frozenset()) -> list[Packed]:
    """Return the attributes of an object in the form in which they were written."""
    found = []
    for name, value in read_all(location, skip):
        if isinstance(value, str):
            found.append((name.encode(), value.encode("utf-8", "surrogateescape"), True))
        elif isinstance(value, list):  # a list of texts, which only others write
            found.append((name.encode(), repr(value).encode(), True))
        else:
            found.append(pack(name, value))
    return found


def read_one(location: Any, name: bytes) -> Any:
    """Return one attribute, or None where it is absent."""
    return _checked(location, name) if h5a.exists(location, name) else None


def _checked(location: Any, name: bytes) -> Any:
    """Return a value; a long one only if it agrees with its checksum."""
    value = _value(h5a.open(location, name))
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape") if 4 * len(value) > _LONG else b""
    else:
        raw = value.tobytes() if isinstance(value, np.ndarray) else b""
    if len(raw) > _LONG and h5a.exists(location, _CRC + name):
        expected = _value(h5a.open(location, _CRC + name))
        if zlib.crc32(raw) != expected:
            raise DamagedError(
                f"attribute {name.decode()!r}: the CRC-32 of its {len(raw)} bytes is "
                f"{zlib.crc32(raw):#x}, expected {int(expected):#x}: it is damaged, or another "
                f"program changed it; if the change is right, delete {CRC_PREFIX + name.decode()!r}"
            )
    return value


def _value(attribute: Any) -> Any:
    kind = attribute.get_type()
    if kind.get_class() == h5t.STRING and not kind.is_variable_str() and attribute.shape == ():
        text = np.empty((), f"S{kind.get_size()}")
        attribute.read(text, kind)
        return text.item().decode("utf-8", "surrogateescape")
    if kind.get_class() in (h5t.INTEGER, h5t.FLOAT):
        numbers = np.empty(attribute.shape, attribute.dtype)
        attribute.read(numbers)
        return numbers[()]
    return _odd_value(attribute)


def _odd_value(attribute: Any) -> Any:
    """Other people's types, such as strings of varying length."""
    values = np.empty(attribute.shape, attribute.dtype)
    attribute.read(values)
    if h5py.check_string_dtype(attribute.dtype) is None:
        return values[()]
    texts = [item.decode() if isinstance(item, bytes) else item for item in values.flat]
    return texts[0] if values.shape == () else texts
