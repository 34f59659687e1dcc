"""How values and attributes are carried by netCDF-4, which cannot say all of NumPy.

Every dtype that netCDF-4 lacks travels as one that it has, exactly, with an attribute naming the
original; attributes that it lacks travel together as JSON.  This module turns values into that
form and back.  It does not open files and knows no record kinds.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

__all__ = [
    "Stored",
    "as_numpy",
    "attrs_from_stored",
    "attrs_to_stored",
    "decoded_dtype",
    "from_stored",
    "is_converted",
    "is_storable",
    "logical_dtype",
    "same_bytes",
    "to_json",
    "to_stored",
]

#: Attribute that names the dtype a variable had in memory, where netCDF-4 cannot say it.
DTYPE_ATTR = "_neurostore_dtype"
#: Attribute that holds, as JSON, the attributes which netCDF-4 cannot say.
JSON_ATTR = "_neurostore_attrs"
#: Attribute with the name in memory, where the link name had to be escaped.
LINK_ATTR = "_neurostore_name"
#: Where the CRC-32 of a long attribute stands: here, and then its name.
CRC_PREFIX = "_neurostore_crc32_"
#: Names that HDF5, netCDF-4, xarray or this package write on their own account.
RESERVED_ATTRS = frozenset(
    {
        "CLASS",
        "NAME",
        "DIMENSION_LIST",
        "REFERENCE_LIST",
        "_Netcdf4Dimid",
        "_Netcdf4Coordinates",
        "_NCProperties",
        "_nc3_strict",
        "_Encoding",
        "_FillValue",
        "missing_value",
        "scale_factor",
        "add_offset",
        "coordinates",
        "dtype",
        DTYPE_ATTR,
        JSON_ATTR,
        LINK_ATTR,
    }
)
#: The last dimension that complex numbers and strings get on disk.
COMPLEX_DIM = "complex_part"

_NATIVE = frozenset({"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"})
_QUIET_NAN = np.uint32(0x7FC00000)
_VIA_INT8 = frozenset({"int4", "int2"})
_VIA_UINT8 = frozenset({"uint4", "uint2"})
_EXTENDED: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in dir(ml_dtypes)
    if name.startswith(("bfloat16", "float", "int", "uint"))
    and isinstance(getattr(ml_dtypes, name), type)
}


@dataclass(frozen=True)
class Stored:
    """An array as it goes to disk: its values, and what a reader has to know to undo it."""

    values: np.ndarray[Any, Any]
    attrs: dict[str, Any] = field(default_factory=dict)
    extra_dims: tuple[str, ...] = ()


def as_numpy(value: Any) -> np.ndarray[Any, Any]:
    """Return ``value`` as a NumPy array, without a copy where the memory can be shared.

    JAX arrays are taken as they are, bfloat16 included; jax itself is not imported.

    >>> as_numpy([1, 2]).dtype
    dtype('int64')
    """
    if hasattr(value, "nnz") or hasattr(value, "nse"):
        raise TypeError(
            f"a sparse {type(value).__name__} is not taken here; expected a dense array "
            "(toarray(), todense())"
        )
    array = np.asarray(value)
    if array.dtype.kind == "O":
        return _objects_as_text(array)
    if array.dtype.kind == "T":
        return array.astype(np.str_)
    return array


def _objects_as_text(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Object arrays are only accepted where every element is a str (pandas labels)."""
    if not all(isinstance(item, str) for item in array.flat):
        odd = next(item for item in array.flat if not isinstance(item, str))
        raise TypeError(
            f"object array of shape {array.shape} holding {type(odd).__name__}; "
            "expected numbers, booleans, dates or text in a dtype of their own: convert it first"
        )
    return array.astype(np.str_) if array.size else np.empty(array.shape, "U1")


def is_storable(dtype: np.dtype[Any]) -> bool:
    """Tell whether arrays of ``dtype`` can be stored exactly.

    >>> is_storable(np.dtype("f8")), is_storable(np.dtype("O"))
    (True, False)
    """
    return (
        dtype.str[1:] in _NATIVE
        or dtype.kind in "bUSMm"
        or dtype.str[1:] in {"f2", "c8", "c16"}
        or dtype.name in _EXTENDED
    )


def to_stored(array: np.ndarray[Any, Any]) -> Stored:
    """Give ``array`` the form in which netCDF-4 can hold it exactly.

    >>> to_stored(np.array([1.5], "f2")).values.dtype, to_stored(np.array([True])).attrs["dtype"]
    (dtype('float32'), 'bool')
    """
    dtype = array.dtype
    if dtype.str[1:] in _NATIVE:
        return Stored(array)
    if dtype.name in _EXTENDED:
        return Stored(_extended_to_stored(array), {DTYPE_ATTR: dtype.name})
    if dtype.kind == "b":
        return Stored(array.view(np.int8), {"dtype": "bool"})
    if dtype.kind == "f":
        return Stored(array.astype(_like(dtype, "f4")), {DTYPE_ATTR: dtype.str})
    if dtype.kind == "c":
        return _complex_to_stored(array)
    if dtype.kind in "Mm":
        return _dates_to_stored(array)
    return _text_to_stored(array)


def is_converted(array: np.ndarray[Any, Any]) -> bool:
    """Tell whether :func:`to_stored` makes a copy of ``array``.

    >>> is_converted(np.zeros(3, "f2")), is_converted(np.zeros(3, bool))
    (True, False)
    """
    dtype = array.dtype
    if dtype.kind == "c":
        return not array.flags.c_contiguous
    return dtype.str[1:] not in _NATIVE and dtype.kind not in "bMm"


def _like(dtype: np.dtype[Any], code: str) -> np.dtype[Any]:
    return np.dtype(code).newbyteorder(dtype.byteorder)


def _extended_to_stored(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Widen by value; casts make all NaN alike, so the code of each goes into its payload."""
    if array.dtype.name == "bfloat16":  # the upper half of a float32
        upper = np.ascontiguousarray(array).reshape(array.shape).view("u2")
        return np.asarray(np.left_shift(upper, 16, dtype="u4")).view("f4")
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = array.astype(_extended_carrier(array.dtype))
    if wide.dtype.kind == "f" and (odd := np.isnan(wide)).any():
        wide.view("u4")[odd] = _QUIET_NAN | _codes(array)[odd]
    return wide


def _extended_from_stored(
    values: np.ndarray[Any, Any], dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    if dtype.name == "bfloat16" and not (values.view("u4") & 0xFFFF).any():
        return np.asarray(np.right_shift(values.view("u4"), 16)).astype("u2").view(dtype)
    narrow = values.astype(dtype)
    if values.dtype.kind == "f" and (odd := np.isnan(values)).any():
        codes = values.view("u4")[odd].astype(_codes(narrow).dtype)
        ours = np.isnan(codes.view(dtype).astype("f4"))
        _codes(narrow)[odd] = np.where(ours, codes, _codes(narrow)[odd])
    return narrow


def _codes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.view(f"u{array.dtype.itemsize}")


def _extended_carrier(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.name in _VIA_INT8:
        return np.dtype("i1")
    return np.dtype("u1") if dtype.name in _VIA_UINT8 else np.dtype("f4")


def _complex_to_stored(array: np.ndarray[Any, Any]) -> Stored:
    part = _like(array.dtype, f"f{array.dtype.itemsize // 2}")
    pairs = np.ascontiguousarray(array).reshape(array.shape).view(part) if array.ndim else None
    if pairs is None:
        pairs = np.ascontiguousarray(array).reshape(1).view(part)
    return Stored(
        pairs.reshape((*array.shape, 2)), {DTYPE_ATTR: array.dtype.str}, extra_dims=(COMPLEX_DIM,)
    )


def _dates_to_stored(array: np.ndarray[Any, Any]) -> Stored:
    unit = np.datetime_data(array.dtype)
    attrs: dict[str, Any] = {DTYPE_ATTR: array.dtype.str}
    names = {"ns": "nanoseconds", "us": "microseconds", "ms": "milliseconds", "s": "seconds"}
    if unit[0] in names and unit[1] == 1:
        since = " since 1970-01-01" if array.dtype.kind == "M" else ""
        attrs["units"] = names[unit[0]] + since
        if array.dtype.kind == "M":
            attrs["calendar"] = "proleptic_gregorian"
    attrs["_FillValue"] = np.int64(np.iinfo(np.int64).min)
    return Stored(array.view(_like(array.dtype, "i8")), attrs)


def _text_to_stored(array: np.ndarray[Any, Any]) -> Stored:
    """Fixed-length UTF-8 bytes, one character dimension: HDF5 cannot checksum varying lengths."""
    if array.dtype.kind == "U":
        attrs: dict[str, Any] = {DTYPE_ATTR: "str", "_Encoding": "utf-8"}
        packed = np.char.encode(array, "utf-8") if array.size else np.empty(array.shape, "S1")
    else:
        attrs = {DTYPE_ATTR: array.dtype.str}
        packed = array
    width = max(1, packed.dtype.itemsize)
    packed = np.ascontiguousarray(packed.astype(f"S{width}")).reshape(array.shape)
    chars = (
        packed.reshape((*array.shape, 1)).view("S1") if array.ndim else packed.reshape(1).view("S1")
    )
    return Stored(chars, attrs, extra_dims=(f"string{width}",))


def logical_dtype(stored: np.dtype[Any], attrs: Mapping[str, Any]) -> str:
    """Name of the dtype that a variable has in memory, from its dtype and attributes on disk.

    >>> logical_dtype(np.dtype("i1"), {"dtype": "bool"})
    'bool'
    """
    if attrs.get("dtype") == "bool" and stored == np.int8:
        return "bool"
    named = attrs.get(DTYPE_ATTR)
    if named is not None:
        return str(named)
    return "str" if stored == np.dtype("S1") and "_Encoding" in attrs else stored.str


def value_bytes(logical: str, dims: Sequence[str]) -> int:
    """Return the bytes of one value in memory; text is as wide as its dimension of characters.

    >>> value_bytes("<f8", ("time",)), value_bytes("bfloat16", ()), value_bytes("str", ("string5",))
    (8, 2, 20)
    """
    if logical == "str":
        width = dims[-1].removeprefix("string") if dims else ""
        return 4 * int(width) if width.isdigit() else 4
    return decoded_dtype(logical, np.dtype("S1"), 1).itemsize


def drops_last_dim(logical: str) -> bool:
    """Tell whether the last dimension on disk is ours (characters, complex parts)."""
    return logical == "str" or logical.lstrip("<>|=")[:1] in ("S", "c")


def decoded_dtype(logical: str, stored: np.dtype[Any], last: int) -> np.dtype[Any]:
    """Return the dtype in memory; ``last`` is the length of the last dimension on disk.

    Text is given as wide as its bytes: never too narrow for what is there.
    """
    if logical == "str":
        return np.dtype(f"U{max(1, last)}")
    if logical in _EXTENDED:
        return _EXTENDED[logical]
    return np.dtype(logical)


def same_bytes(logical: str, stored: np.dtype[Any]) -> bool:
    """Tell whether :func:`from_stored` leaves the bytes as they are.

    >>> same_bytes("<f8", np.dtype("f8")), same_bytes("bool", np.dtype("i1"))
    (True, True)
    """
    return logical in (stored.str, "bool") or logical.lstrip("<>|=")[:1] in ("M", "m")


def from_stored(values: np.ndarray[Any, Any], logical: str) -> np.ndarray[Any, Any]:
    """Undo :func:`to_stored` for values whose dtype in memory is ``logical``.

    >>> from_stored(np.array([1.5], "f4"), "bfloat16").dtype.name
    'bfloat16'
    """
    if logical == values.dtype.str:
        return values
    if logical == "str":
        return _text_from_stored(values)
    if logical in _EXTENDED:
        return _extended_from_stored(values, _EXTENDED[logical])
    dtype = np.dtype(logical)
    if dtype.kind == "f":
        return values.astype(dtype)
    if dtype.kind == "S":
        return np.ascontiguousarray(values).view(dtype).reshape(values.shape[:-1])
    if dtype.kind == "c":
        return np.ascontiguousarray(values).view(dtype).reshape(values.shape[:-1])
    return values.view(dtype)


def _text_from_stored(chars: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shape, width = chars.shape[:-1], chars.shape[-1]
    if not chars.size:
        return np.empty(shape, f"U{max(1, width)}")
    packed = np.ascontiguousarray(chars).view(f"S{width}").reshape(shape)
    return (
        np.asarray(np.char.decode(packed, "utf-8")).reshape(shape).astype(f"U{width}", copy=False)
    )


def to_json(value: Any, where: str = "metadata") -> str:
    """Return ``value`` as JSON text; NumPy scalars become numbers, tuples lists.

    Raises
    ------
    TypeError
        Names the place of what JSON cannot say, such as a key that is not a str.

    >>> to_json({"a": (1, None), "b": np.float32(0.5)})
    '{"a": [1, null], "b": 0.5}'
    """
    text = json.dumps(_plain(value, where), ensure_ascii=False)
    _check_text(text, where)
    return text


def _check_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds text that UTF-8 cannot hold: {error}") from None


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    hint = _IN_JSON.get(kind, ": use .tolist()") if hasattr(value, "tolist") else ""
    raise TypeError(
        f"{where} is a {type(value).__name__}; expected what JSON can say "
        f"(dict, list, str, number, bool or None){hint}"
    )


#: By kind of dtype, what to do where ``tolist`` alone gives what JSON cannot say either.
_IN_JSON = {
    **dict.fromkeys("mMS", ": use .astype(str).tolist()"),
    "c": ": keep .real.tolist() and .imag.tolist()",
}


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{where} has the key {key!r}, a {type(key).__name__}; expected str keys")
    return key


def attrs_to_stored(
    attrs: Mapping[Any, Any], where: str, taken: Container[str] = ()
) -> dict[str, Any]:
    """Return attributes as HDF5 can hold them; the rest goes into one JSON attribute.

    Names that are ``taken`` by somebody else at that place go there too.

    >>> attrs_to_stored({"units": "s", "ok": True}, "x")
    {'units': 's', '_neurostore_attrs': '{"ok": true}'}
    """
    native: dict[str, Any] = {}
    awkward: dict[str, Any] = {}
    for name, value in attrs.items():
        key = _key(name, where)
        _check_text(key, f"{where}, the name {key!r}")
        if isinstance(value, str):
            _check_text(value, f"{where}[{key!r}]")
        target = native if key not in taken and _is_native(key, value) else awkward
        target[key] = value
    if awkward:
        native[JSON_ATTR] = to_json(awkward, where)
    return native


def _is_native(name: str, value: Any) -> bool:
    if (
        name in RESERVED_ATTRS
        or not name
        or "/" in name
        or "\0" in name
        or len(name.encode()) > 200
        or name.startswith(CRC_PREFIX)
    ):
        return False
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, float):
        return True
    if isinstance(value, np.generic | np.ndarray):
        return value.dtype.str[1:] in _NATIVE and value.ndim < 2 and value.size > 0
    return False


def attrs_from_stored(attrs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Undo :func:`attrs_to_stored`.

    >>> attrs_from_stored([("units", "s"), ("_neurostore_attrs", '{"ok": true}')])
    {'units': 's', 'ok': True}
    """
    result: dict[str, Any] = {}
    for name, value in attrs:
        if name == JSON_ATTR:
            result.update(json.loads(value))
        elif name not in RESERVED_ATTRS:
            result[name] = value
    return result
