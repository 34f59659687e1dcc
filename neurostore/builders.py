"""Arrays in, labelled Dataset out: one builder per row of the table of kinds.

Every builder is made from its row; all problems of what it is given are reported at once.
Nothing is stored here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neurostore import gathered, names, schema, times, types
from neurostore.errors import ValidationError
from neurostore.index import with_event_index
from neurostore.patterns import with_pattern_index
from neurostore.records import ORIGINAL_NAME, Draft, Plain, odd_values
from neurostore.schema import KINDS, Kind

__all__ = ["build", "builder", "draft", *KINDS]

Coords = Mapping[Hashable, Any]


def build(
    kind: str,
    values: Mapping[str, Any],
    *,
    timestamp: times.TimeLike,
    name: str | None = None,
    details: Any = None,
    coords: Coords | None = None,
    units: str | None = None,
    labels: Any = None,
) -> xr.Dataset:
    """Return the labelled Dataset of one record.

    Parameters
    ----------
    kind
        Name of the record kind, a row of ``neurostore.schema.KINDS``.
    values
        Arrays by variable name, in the kind's order of dimensions.  NumPy, JAX and anything that
        ``numpy.asarray`` takes; dask arrays stay lazy, sparse matrices (SciPy, pydata/sparse, JAX
        ``BCOO``) sparse.
    timestamp
        Float seconds, datetime (naive means UTC), ``numpy.datetime64``, pandas Timestamp or ISO
        text.
    name
        The name of the reservoir, rule, mechanism, task or map, for kinds that have one.
    details
        What JSON can say, kept with the record.
    coords
        Further coordinates, as ``xarray.Dataset.assign_coords`` takes them.
    units
        Unit of the kind's time-like variable, where it has one.
    labels
        Labels, shape (neuron,), of all dimensions that go over the same neurons: `pre`, `post`
        and `neuron` of a snapshot.

    Raises
    ------
    ValidationError
        Names everything that is wrong with the arguments.

    Examples
    --------
    >>> import neurostore
    >>> ds = neurostore.build("homeostatic_trace", {"changes": [0.1, 0.2]},
    ...                       timestamp=1.0, name="threshold")
    >>> ds["changes"].dims
    ('neuron',)
    """
    made = draft(kind, values, timestamp=timestamp, name=name, details=details, units=units)
    row = schema.kind_of(kind)
    if labels is not None:
        coords = {**_same_labels(row, made.sizes, labels, coords or {}), **(coords or {})}
    return _labelled(row, made.to_dataset(), coords)


def draft(
    kind: str,
    values: Mapping[str, Any],
    *,
    timestamp: times.TimeLike,
    name: str | None = None,
    details: Any = None,
    units: str | None = None,
) -> Draft:
    """Return the parts of what :func:`build` makes, less all that only serves work in memory."""
    row = schema.kind_of(kind)
    found: list[str] = []
    moment = _checked(found, times.to_seconds, timestamp)
    attrs: dict[Hashable, Any] = {"kind": row.name}
    if row.label is not None:
        attrs[row.label] = _checked(found, names.check_name, name, row.label)
    if details is not None and details != {}:  # {} is read where nothing is stored
        attrs[row.details] = _checked(found, types.to_json, details, row.details)
    variables = _VARIABLES[row.mapping](row, values, found)
    found += _length_problems(variables)
    named: dict[Hashable, Any] = dict(variables.items())
    sparse, odd = gathered.take_apart(named, Plain)
    found += odd
    if found:
        raise ValidationError.of(row.name, found)
    if units is not None and row.unit_of is not None:
        plain = named[row.unit_of]
        plain.attrs = {**plain.attrs, "units": units}
    coordinates: set[Hashable] = {schema.TIMESTAMP}
    coordinates |= {r.name for r in row.variables if r.coordinate} | _LABEL_NAMES & set(variables)
    coordinates |= sparse
    stamp = Plain((), np.float64(moment), schema.TIMESTAMP_ATTRS)
    named[schema.TIMESTAMP] = stamp
    return Draft(named, frozenset(coordinates), attrs)


def _same_labels(
    row: Kind, sizes: Mapping[Hashable, int], labels: Any, coords: Coords
) -> dict[Hashable, Any]:
    """Return the labels as a coordinate of every dimension that goes over the same things."""
    array = np.asarray(labels)
    dims = [dim for dim in row.same if dim in sizes]
    found = [f"labels and coords both label {dim!r}" for dim in dims if dim in coords]
    if array.ndim != 1:
        found.append(f"labels has shape {array.shape}, expected one dimension")
    else:
        found += [
            f"labels has {len(array)} values, {dim!r} {sizes[dim]}; where they are not the same "
            f"neurons use coords={{{dim!r}: ...}}"
            for dim in dims
            if sizes[dim] != len(array)
        ]
    if not row.same:
        found.append(f"labels: {row.name} has no dimensions of the same kind; use coords")
    if found:
        raise ValidationError.of(row.name, found)
    return dict.fromkeys(dims, array)


def _checked(found: list[str], function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except (ValueError, TypeError) as error:
        found.append(str(error))
        return None


def _labelled(row: Kind, ds: xr.Dataset, coords: Coords | None) -> xr.Dataset:
    """Add the date, the user's coordinates, and the index over events."""
    decoded = times.decoded(float(ds[schema.TIMESTAMP]))
    if decoded is not None and schema.TIME not in ds.dims:
        ds = ds.assign_coords({schema.TIME: ((), decoded, dict(schema.TIME_ATTRS))})
    if coords:
        ds = _with_coords(row, ds, coords)
    if schema.TIME in ds.dims and schema.TIME in ds.coords:
        ds[schema.TIME].attrs.setdefault("axis", "T")
        ds[schema.TIMESTAMP].attrs.pop("axis", None)
    return with_event_index(ds) if row.combine == "ragged" else with_pattern_index(ds)


_LABEL_NAMES = frozenset({"layer", "metric"})


def _with_coords(row: Kind, ds: xr.Dataset, coords: Coords) -> xr.Dataset:
    try:
        return ds.assign_coords(coords)
    except (ValueError, TypeError) as error:
        raise ValidationError(
            f"{row.name}: coords: expected what assign_coords takes: {error}"
        ) from error


def _plain_variables(row: Kind, values: Mapping[str, Any], found: list[str]) -> dict[str, Plain]:
    variables: dict[str, Plain] = {}
    for rule in row.variables:
        value = values.get(rule.name)
        if value is None:
            if rule.required:
                found.append(f"{rule.name} is missing")
            continue
        sparse = value.data if isinstance(value, xr.DataArray | xr.Variable) else value
        is_sparse = gathered.is_sparse(sparse)
        array = sparse if is_sparse else _array(value, rule.name, found)
        if array is None:
            continue
        if not hasattr(value, "dtype") and not array.size and "f" not in rule.kinds:
            array = array.astype(np.int64)  # NumPy takes an empty list for floats
        problem = odd_values(rule, array)
        if problem is not None:
            found.append(problem)
        dims = rule.dims_for(array.ndim)
        if dims is None:
            expected = " or ".join(str(dims) for dims in rule.dims)
            found.append(f"{rule.name} has shape {array.shape}, expected dims {expected}")
            continue
        variables[rule.name] = Plain(dims, array, rule.attrs)
    if not variables and not found:
        found.append(f"nothing to store; expected {', '.join(r.name for r in row.variables)}")
    return variables


def _array(value: Any, what: str, found: list[str]) -> Any:
    """Return an array; duck arrays with their own chunks (dask) are left as they are."""
    if hasattr(value, "__dask_graph__") and hasattr(value, "shape"):
        return value.data if isinstance(value, xr.DataArray | xr.Variable) else value
    try:
        array = types.as_numpy(value)
    except (TypeError, ValueError) as error:
        found.append(f"{what}: {error}")
        return None
    if not types.is_storable(array.dtype):
        found.append(
            f"{what} has dtype {array.dtype}, which cannot be stored exactly; expected numbers, "
            "bool, dates or text; store each field of a structure as an array of its own"
        )
        return None
    return array


def _layers(row: Kind, values: Mapping[str, Any], found: list[str]) -> dict[str, Plain]:
    rule = row.variables[0]
    layers = values.get(rule.name)
    if not isinstance(layers, Mapping):
        found.append(f"{rule.name} is a {type(layers).__name__}, expected a dict of arrays")
        return {}
    named = [n for n in layers if _checked(found, names.check_name, n, "layer name") is not None]
    arrays = {name: _array(layers[name], f"layer {name!r}", found) for name in named}
    if found:
        return {}
    links = schema.layer_names(named)
    dims = schema.layer_dims({links[name]: array.shape for name, array in arrays.items()})
    variables: dict[str, Plain] = {}
    for name, array in arrays.items():
        attrs = dict(rule.attrs) | ({ORIGINAL_NAME: name} if links[name] != name else {})
        variables[links[name]] = Plain(dims[links[name]], array, attrs)
    labels = np.array(named, np.str_) if named else np.empty(0, "U1")
    variables["layer"] = Plain(("layer",), labels, {"long_name": "names of the layers"})
    return variables


def _metrics(row: Kind, values: Mapping[str, Any], found: list[str]) -> dict[str, Plain]:
    rule = row.variables[0]
    metrics = values.get(rule.name)
    if not isinstance(metrics, Mapping):
        found.append(f"{rule.name} is a {type(metrics).__name__}, expected a dict of numbers")
        return {}
    numbers = [_number(name, value, found) for name, value in metrics.items()]
    labels = [n for n in metrics if _checked(found, names.check_name, n, "metric name") is not None]
    if found:
        return {}
    dim = rule.dims[0][0]
    named = np.array(labels, np.str_) if labels else np.empty(0, "U1")
    return {
        rule.name: Plain((dim,), np.array(numbers, np.float64), dict(rule.attrs)),
        dim: Plain((dim,), named, {"long_name": "names of the metrics"}),
    }


def _number(name: object, value: Any, found: list[str]) -> float:
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "biufV":
        found.append(f"metric {name!r} is {value!r}, expected a number")
        return 0.0
    number = float(array.astype(np.float64))
    if array.dtype.kind in "iu" and int(number) != int(array):
        found.append(f"metric {name!r} is {value!r}, which float64 cannot hold exactly")
    return number


_VARIABLES = {None: _plain_variables, "variables": _layers, "labels": _metrics}


def _length_problems(variables: Mapping[str, Plain]) -> list[str]:
    """Compare every dimension with its first use, so that the odd array is named."""
    first: dict[Hashable, tuple[str, int]] = {}
    found = []
    for name, variable in variables.items():
        for dim, size in zip(variable.dims, variable.shape, strict=True):
            other, expected = first.setdefault(dim, (name, size))
            if size != expected:
                found.append(
                    f"{name} has {size} values along {dim!r}, expected {expected} as {other} has"
                )
    return found


def builder(kind: Kind) -> Callable[..., xr.Dataset]:
    """Return the builder of a kind: ``neurostore.<kind>``."""
    signature = _signature(kind)
    variables = [rule.name for rule in kind.variables]

    def make(*args: Any, **kwargs: Any) -> xr.Dataset:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            told = ", ".join(signature.parameters)
            raise TypeError(f"{kind.name}: {error}; expected ({told})") from None
        given.apply_defaults()
        taken = given.arguments
        return build(
            kind.name,
            {name: taken[name] for name in variables},
            timestamp=taken["timestamp"],
            name=taken.get(kind.label) if kind.label is not None else None,
            details=taken[kind.details],
            coords=taken["coords"],
            units=taken.get("units"),
            labels=taken.get("labels"),
        )

    make.__name__ = make.__qualname__ = kind.name
    make.__module__ = __name__
    make.__doc__ = _documentation(kind)
    make.__signature__ = signature  # type: ignore[attr-defined]
    return make


def _signature(kind: Kind) -> inspect.Signature:
    either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    needed = [rule for rule in kind.variables if rule.required]
    parameters = [inspect.Parameter(rule.name, either, annotation="ArrayLike") for rule in needed]
    if kind.label is not None:
        parameters.append(inspect.Parameter(kind.label, either, annotation="str"))
    parameters += [
        inspect.Parameter(rule.name, either, default=None, annotation="ArrayLike | None")
        for rule in kind.variables
        if not rule.required
    ]
    parameters.append(inspect.Parameter("timestamp", keyword, annotation="TimeLike"))
    for name, annotation in _options(kind):
        parameters.append(inspect.Parameter(name, keyword, default=None, annotation=annotation))
    return inspect.Signature(parameters, return_annotation="xarray.Dataset")


def _options(kind: Kind) -> Sequence[tuple[str, str]]:
    options = [(kind.details, "dict | None"), ("coords", "Mapping | None")]
    options += [("units", "str | None")] if kind.unit_of is not None else []
    return [*options, ("labels", "ArrayLike | None")] if kind.same else options


def _documentation(kind: Kind) -> str:
    lines = [kind.summary, "", "Parameters", "----------"]
    for rule in kind.variables:
        lines += [f"{rule.name}", f"    {_described(kind, rule)}"]
    if kind.label is not None:
        lines += [kind.label, "    str: any text but the empty one; it becomes part of the id."]
    lines += [
        "timestamp",
        "    Seconds (float), datetime (naive means UTC), datetime64 or ISO text.",
    ]
    lines += [kind.details, "    What JSON can say, kept with the record."]
    lines += ["coords", "    Further coordinates, as ``xarray.Dataset.assign_coords`` takes them."]
    if kind.unit_of is not None:
        lines += ["units", f"    Unit of {kind.unit_of}; seconds if it is not given."]
    if kind.same:
        same = ", ".join(kind.same)
        lines += ["labels", f"    Labels of {same} alike, where these are the same neurons."]
    lines += ["", "Returns", "-------", "xarray.Dataset", "    The labelled record."]
    lines += ["", "Raises", "------", "ValidationError", "    Names everything that is wrong."]
    lines += ["", "Examples", "--------", ">>> import numpy as np, neurostore"]
    lines += [f">>> neurostore.{kind.name}({kind.example}).neuro.kind", f"'{kind.name}'"]
    return "\n".join(lines)


def _described(kind: Kind, rule: schema.Variable) -> str:
    if kind.mapping == "variables":
        return "dict of layer name to array, any rank; the first axis is the sample."
    if kind.mapping == "labels":
        return "dict of name to number (float64)."
    shape = " or ".join(f"({', '.join(dims)})" for dims in rule.dims) or "any"
    optional = "" if rule.required else ", optional"
    return f"array, shape {shape}{optional}: {rule.attrs.get('long_name', rule.name)}."


globals().update({name: builder(kind) for name, kind in KINDS.items()})
