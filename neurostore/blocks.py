"""What is appended to a record that grows: arrays made into a labelled block, and held against it.

`draft` labels the values of one append; a `Mould` knows the dimensions, dtypes, labels and
attributes that every block of one record has to have.  It changes no value and writes nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from neurostore import builders, schema, types
from neurostore.errors import ValidationError
from neurostore.records import Column, Draft, Plain, Record
from neurostore.schema import Kind, Variable

__all__ = ["Mould", "draft", "joined"]

Array = np.ndarray[Any, Any]
Dims = Mapping[str, tuple[str, ...]]
#: The kinds that may grow, for messages.
GROWING = ", ".join(kind.name for kind in schema.KINDS.values() if kind.grows is not None)


def draft(
    kind: Kind,
    values: Mapping[str, Any],
    coords: Mapping[Any, Any],
    *,
    timestamp: float,
    name: str | None,
    known: Dims,
) -> Draft:
    """Return the values of one append as a labelled block.

    Parameters
    ----------
    values
        Arrays by variable, with the growing dimension (many steps) or without it (one); a dict
        of layers or of metrics where the kind takes one.
    coords
        Coordinates along the growing dimension, as arrays or one value.
    known
        Dimensions of the variables, where a block was appended before.
    """
    assert kind.grows is not None
    found: list[str] = []
    variables: dict[Hashable, Plain] = {}
    variables.update(_MAKERS[kind.mapping](kind, values, known, found))
    for key, value in coords.items():
        variables[key] = _along(kind.grows, value)
    if found:
        raise ValidationError.of(kind.name, found)
    attrs: dict[Hashable, Any] = {"kind": kind.name}
    if kind.label is not None:
        attrs[kind.label] = name
    labels = {row.name for row in kind.variables if row.coordinate} | {"layer", "metric"}
    variables[schema.TIMESTAMP] = Plain((), np.float64(timestamp), schema.TIMESTAMP_ATTRS)
    named = frozenset({schema.TIMESTAMP, *coords} | (labels & variables.keys()))
    return Draft(variables, named, attrs)


def joined(kind: Kind, appends: Sequence[Mapping[str, Any]], known: Dims) -> dict[str, Any] | None:
    """Return the values of several appends as those of one; None where they do not go together.

    Parameters
    ----------
    appends
        Bare arrays, or dicts of them, by variable, as `draft` takes them.
    """
    assert kind.grows is not None
    first = appends[0]
    if any(append.keys() != first.keys() for append in appends):
        return None
    made: dict[str, Any] = {}
    for name in first:
        values = [append[name] for append in appends]
        if isinstance(first[name], Mapping):
            if any(value.keys() != first[name].keys() for value in values):
                return None
            each = {key: _joined_arrays([v[key] for v in values], 0, 0) for key in first[name]}
            made[name] = each
            if any(array is None for array in each.values()):
                return None
            continue
        row = kind.variable(name)
        try:
            dims = (
                _dims_of(kind.grows, row, np.asarray(first[name]), known.get(name)) if row else ()
            )
        except ValueError:
            return None
        full = known.get(name) or (row and next(iter(_full(kind.grows, row)))) or ()
        if kind.grows in dims:
            axis, steps = dims.index(kind.grows), len(dims)
        else:
            axis, steps = (full.index(kind.grows) if len(full) == len(dims) + 1 else 0), len(dims)
        made[name] = _joined_arrays(values, axis, steps if kind.grows not in dims else steps - 1)
        if made[name] is None:
            return None
    return made


def _joined_arrays(values: Sequence[Any], axis: int, step_rank: int) -> Array | None:
    """Stack steps of a rank, or join blocks of one more, along ``axis``; None if they differ."""
    arrays = [np.asarray(value) for value in values]
    kinds = {(array.ndim, array.dtype) for array in arrays}
    if len(kinds) > 1:
        return None
    try:
        if arrays[0].ndim == step_rank:
            return np.stack(arrays, axis)
        return np.concatenate(arrays, axis)
    except ValueError:
        return None


def _along(dim: str, value: Any) -> Plain:
    if isinstance(value, xr.DataArray | xr.Variable):
        return Plain(tuple(map(str, value.dims)), value.values, dict(value.attrs))
    array = types.as_numpy(value)
    return Plain((dim,), array.reshape(1) if array.ndim == 0 else array, {})


def _plain(
    kind: Kind, values: Mapping[str, Any], known: Dims, found: list[str]
) -> dict[str, Plain]:
    made: dict[str, Plain] = {}
    rows = {row.name: row for row in kind.variables}
    found += [
        f"{name!r} is no variable of the kind; expected {', '.join(rows)}"
        for name in values
        if name not in rows
    ]
    for name, row in rows.items():
        value = values.get(name)
        if value is None:
            if row.required:
                found.append(f"{name} is missing")
            continue
        try:
            made[name] = _labelled(kind, row, value, known.get(name))
        except (TypeError, ValueError) as error:
            found.append(f"{name}: {error}")
    return made


def _labelled(kind: Kind, row: Variable, value: Any, known: tuple[str, ...] | None) -> Plain:
    assert kind.grows is not None
    if isinstance(value, xr.DataArray | xr.Variable):
        dims, array = tuple(map(str, value.dims)), types.as_numpy(value.values)
        attrs = {**row.attrs, **value.attrs}
    else:
        array, attrs = types.as_numpy(value), dict(row.attrs)
        if not array.size and "f" not in row.kinds and not hasattr(value, "dtype"):
            array = array.astype(np.int64)  # NumPy takes an empty list for floats
        dims = _dims_of(kind.grows, row, array, known)
    if kind.grows not in dims:
        wanted = known or next(full for full in _full(kind.grows, row))
        where = wanted.index(kind.grows) if len(wanted) == len(dims) + 1 else 0
        array = np.expand_dims(array, where)
        dims = (*dims[:where], kind.grows, *dims[where:])
    return Plain(dims, array, attrs)


def _full(grows: str, row: Variable) -> list[tuple[str, ...]]:
    """Return the dimensions that a variable may have in a record that grows."""
    rules = row.dims or ((row.any_rank or "value",),)
    return [rule if grows in rule else (grows, *rule) for rule in rules]


def _dims_of(
    grows: str, row: Variable, array: Array, known: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Tell the dimensions of a bare array by its rank: one step first, then many."""
    fulls = [known] if known is not None else _full(grows, row)
    for full in fulls:
        if array.ndim == len(full) - 1:
            return tuple(dim for dim in full if dim != grows)
        if array.ndim == len(full):
            return full
    shown = " or ".join(str(full) for full in fulls)
    raise ValueError(f"has shape {array.shape}, expected dims {shown}, or one step without {grows}")


def _layers(
    kind: Kind, values: Mapping[str, Any], known: Dims, found: list[str]
) -> dict[str, Plain]:
    assert kind.grows is not None
    try:
        made = builders.draft(kind.name, values, timestamp=0.0).variables
    except ValidationError as error:
        found += error.problems or [str(error)]
        return {}
    del made[schema.TIMESTAMP]
    odd = [key for key, var in made.items() if key != "layer" and kind.grows not in var.dims]
    if odd or len(made) < 2:
        found.append(
            f"layers have to have equally many samples (first axis) to grow; see {odd or 'none'}"
        )
    return {str(key): value for key, value in made.items()}


def _metrics(
    kind: Kind, values: Mapping[str, Any], known: Dims, found: list[str]
) -> dict[str, Plain]:
    """Take a dict of numbers for one step, of arrays for as many steps as they have values."""
    assert kind.grows is not None
    (row,) = kind.variables
    metrics = values.get(row.name)
    if not isinstance(metrics, Mapping) or not metrics:
        found.append(f"{row.name} is {metrics!r}, expected a dict of numbers or of arrays")
        return {}
    arrays = {str(key): np.atleast_1d(types.as_numpy(value)) for key, value in metrics.items()}
    for key, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in "biufV":
            found.append(f"metric {key!r} is {metrics[key]!r:.80}, expected numbers")
    if len({array.shape for array in arrays.values()}) > 1:
        found.append("metrics have different numbers of values")
    if found:
        return {}
    (dim,) = row.dims[0]
    table = np.stack([array.astype(np.float64) for array in arrays.values()], axis=1)
    for column, (key, array) in enumerate(arrays.items()):
        if array.dtype.kind in "iu" and not _same(table[:, column], array):
            found.append(f"metric {key!r} has values that float64 cannot hold exactly")
    labels = Plain((dim,), np.array(list(arrays), np.str_), {"long_name": "names of the metrics"})
    return {row.name: Plain((kind.grows, dim), table, dict(row.attrs)), dim: labels}


_MAKERS = {None: _plain, "variables": _layers, "labels": _metrics}


@dataclass(frozen=True)
class _Form:
    """What every block has of one variable that grows."""

    dims: tuple[str, ...]
    #: Sizes on disk; that of the growing dimension counts as 0.
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    logical: str
    units: str

    @classmethod
    def of(cls, column: Column, dim: str, width: int | None = None) -> _Form:
        shape = [
            0 if d == dim else n for d, n in zip(column.dims, column.values.shape, strict=True)
        ]
        if width is not None:
            shape[-1] = width
        return cls(column.dims, tuple(shape), column.values.dtype, column.logical, column.units)


@dataclass(frozen=True)
class Mould:
    """What a block must be to go into one record; `record` is the first block."""

    record: Record
    grown: dict[str, _Form]
    fixed: dict[str, Array]
    attrs: dict[str, Any]

    @property
    def kind(self) -> Kind:
        """Row of the table of kinds."""
        return self.record.kind

    @property
    def timestamp(self) -> float:
        """Time of the record."""
        return self.record.timestamp

    @property
    def name(self) -> str:
        """Name of the reservoir, rule, mechanism, task or map."""
        return self.record.name

    def going_on_from(self, record_id: str) -> Record:
        """Return the record that goes on with another one, in the next file of a series."""
        first, *rest = self.record.pieces
        first = replace(first, attrs={**first.attrs, "continues": record_id})
        return replace(self.record, pieces=(first, *rest))

    @classmethod
    def of(cls, record: Record, widths: Mapping[str, int] | None = None) -> Mould:
        """Return the mould of blocks like ``record``.

        Parameters
        ----------
        widths
            Bytes of the texts of those variables that grow and are text in the file already.

        Raises
        ------
        ValidationError
            Nothing of the record grows, or it has a dimension of size 0.
        """
        dim = record.kind.grows
        if dim is None:
            raise ValidationError(
                f"{record.kind.name} records are written whole; those that grow are {GROWING}"
            )
        columns = {column.name: column for piece in record.pieces for column in piece.columns}
        forms = {
            name: _Form.of(column, dim, (widths or {}).get(name))
            for name, column in columns.items()
            if dim in column.dims
        }
        found = [] if forms else [f"no variable has the dimension {dim!r}, along which it grows"]
        for name, form in forms.items():
            if 0 in (n for d, n in zip(form.dims, form.shape, strict=True) if d != dim):
                found.append(f"{name} has shape {form.shape}: a dimension of size 0 cannot grow")
        if found:
            raise ValidationError.of(record.kind.name, found)
        fixed = {name: c.values for name, c in columns.items() if name not in forms}
        attrs = {k: v for piece in record.pieces for k, v in piece.attrs.items()}
        return cls(record, forms, fixed, attrs)

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Dimensions of the variables that grow, as they are in memory."""
        return {
            name: form.dims[:-1] if types.drops_last_dim(form.logical) else form.dims
            for name, form in self.grown.items()
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the widest variable."""
        return max(
            form.dtype.itemsize * int(np.prod([max(1, n) for n in form.shape]))
            for form in self.grown.values()
        )

    def fit(self, record: Record) -> dict[str, Array]:
        """Return the rows of a block by variable, as they go to disk.

        Raises
        ------
        ValidationError
            Names everything about the block that is not as in the record.
        """
        columns = {column.name: column for piece in record.pieces for column in piece.columns}
        found = self._differences(record, columns)
        rows: dict[str, Array] = {}
        for name, form in self.grown.items():
            if name not in columns:
                found.append(f"{name} is missing")
                continue
            try:
                rows[name] = self._row(columns[name], form)
            except ValueError as error:
                found.append(f"{name} {error}")
        lengths = {name: array.shape[self._axis(name)] for name, array in rows.items()}
        if len(set(lengths.values())) > 1:
            found.append(f"variables have different numbers of rows: {lengths}")
        if found:
            raise ValidationError.of(f"{self.kind.name}: a block that does not fit", found)
        return rows

    def _axis(self, name: str) -> int:
        return self.grown[name].dims.index(str(self.kind.grows))

    def _differences(self, record: Record, columns: Mapping[str, Column]) -> list[str]:
        found = []
        if record.timestamp != self.timestamp:
            found.append(f"timestamp is {record.timestamp!r}, the record has {self.timestamp!r}")
        if record.kind is not self.kind:
            found.append(f"it is a {record.kind.name}")
        if record.name != self.name and self.kind.mapping != "variables":
            found.append(f"{self.kind.label} is {record.name!r}, the record has {self.name!r}")
        for piece in record.pieces:
            for key, value in piece.attrs.items():
                if key not in self.attrs or not np.array_equal(self.attrs[key], value):
                    found.append(f"attrs[{key!r}] is not as in the record")
        for name, column in columns.items():
            if name in self.grown:
                continue
            if name not in self.fixed:
                found.append(f"{name!r} is new; the record has {', '.join(self.grown)}")
            elif not np.array_equal(self.fixed[name], column.values):
                found.append(f"{name} does not have the values that the record has")
        return found

    def _row(self, column: Column, form: _Form) -> Array:
        text = types.drops_last_dim(form.logical) and form.logical.lstrip("<>|=")[:1] != "c"
        dims, values = column.dims, column.values
        if text and dims[:-1] == form.dims[:-1]:
            dims, values = form.dims, _widened(values, form.shape[-1])
        if set(dims) != set(form.dims):
            raise ValueError(f"has dims {dims}, the record has {form.dims}")
        values = np.transpose(values, [dims.index(dim) for dim in form.dims])
        grows = str(self.kind.grows)
        sizes = zip(form.dims, values.shape, form.shape, strict=True)
        odd = [f"{dim}: {n} instead of {m}" for dim, n, m in sizes if dim != grows and n != m]
        if odd:
            raise ValueError(f"has other sizes than the record ({', '.join(odd)})")
        if column.units != form.units:
            raise ValueError(f"is in {column.units!r}, the record in {form.units!r}")
        if column.logical == form.logical and values.dtype == form.dtype:
            return values
        return _exact(values, column, form)


def _widened(values: Array, width: int) -> Array:
    if values.shape[-1] > width:
        raise ValueError(
            f"has text of {values.shape[-1]} bytes, the record has room for {width}: begin it "
            "with its longest text, or with a wider dtype"
        )
    wide = np.zeros((*values.shape[:-1], width), values.dtype)
    wide[..., : values.shape[-1]] = values
    return wide


def _exact(values: Array, column: Column, form: _Form) -> Array:
    """Return values in the record's dtype where that changes none of them."""
    plain = column.logical == values.dtype.str and form.logical == form.dtype.str
    if plain and values.dtype.kind in "iuf" and form.dtype.kind in "iuf":
        with np.errstate(all="ignore"):
            cast = values.astype(form.dtype)
        if _same(cast, values):
            return cast
    raise ValueError(
        f"has dtype {column.logical}, the record has {form.logical}, which does not hold these "
        "values exactly"
    )


def _same(a: Array, b: Array) -> bool:
    """Tell whether numbers of two dtypes are equal, integers beyond 2**53 included."""
    with np.errstate(all="ignore"):
        back = a.astype(b.dtype)
        equal = (back == b) & ((a < 0) == (b < 0))
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        equal |= np.isnan(a) & np.isnan(b)
    return bool(np.all(equal))
