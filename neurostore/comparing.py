"""What changed from one record to another, as a labelled Dataset.

Numbers are subtracted, everything else is compared; spikes are compared as events.  Nothing is
read from files here but the values of the two records that are handed in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import xarray as xr

from neurostore import schema
from neurostore.errors import MisalignedRecordsError, ValidationError
from neurostore.matrices import joint_patterns

__all__ = ["difference"]

#: Attributes of a record that say what it is, not what it holds.
_OWN = frozenset({"kind"})


def difference(old: xr.Dataset, new: xr.Dataset, names: tuple[str, str]) -> xr.Dataset:
    """Return what changed from ``old`` to ``new``: only variables that did, each new minus old.

    Parameters
    ----------
    names
        How the two are called, for the result's attributes and for errors.

    Raises
    ------
    ValidationError
        The two are records of different kinds.
    MisalignedRecordsError
        A variable without labels has another shape in each.
    """
    kinds = [str(ds.attrs.get("kind")) for ds in (old, new)]
    if kinds[0] != kinds[1]:
        raise ValidationError(
            f"{names[0]!r} is a {kinds[0]} and {names[1]!r} a {kinds[1]}, expected records of one "
            "kind"
        )
    kind = schema.KINDS.get(kinds[0])
    lost: dict[str, list[Any]] = {}
    added: dict[str, list[Any]] = {}
    if kind is not None and kind.combine == "ragged":
        found, unchanged = _events(old, new)
    else:
        old, new = joint_patterns(old, new, names)
        found, unchanged = _aligned(old, new, names)
        lost, added = _labels(old, new), _labels(new, old)
    notes = {
        "from": names[0],
        "to": names[1],
        "unchanged": unchanged,
        "only_from": sorted(str(name) for name in old.data_vars if name not in new.data_vars),
        "only_to": sorted(str(name) for name in new.data_vars if name not in old.data_vars),
        "labels_only_from": json.dumps(lost, ensure_ascii=False, sort_keys=True),
        "labels_only_to": json.dumps(added, ensure_ascii=False, sort_keys=True),
        "changed_attrs": json.dumps(_attrs(old, new), ensure_ascii=False, default=str),
    }
    drift = float(new[schema.TIMESTAMP]) - float(old[schema.TIMESTAMP])
    return found.drop_vars([schema.TIMESTAMP, schema.TIME], errors="ignore").assign_attrs(
        {**notes, "seconds": drift}
    )


def _aligned(
    old: xr.Dataset, new: xr.Dataset, names: tuple[str, str]
) -> tuple[xr.Dataset, list[str]]:
    times = (schema.TIMESTAMP, schema.TIME)
    shared = [
        name
        for name in old.variables
        if name in new.variables and name not in old.indexes and name not in times
    ]
    left, right = (ds.drop_vars(set(ds.variables) - {*shared, *ds.indexes}) for ds in (old, new))
    left, right = left.load(), right.load()
    for dim, size in left.sizes.items():
        if dim not in left.indexes and right.sizes.get(dim, size) != size:
            raise MisalignedRecordsError(
                f"{dim!r} has size {size} in {names[0]!r} and {right.sizes[dim]} in {names[1]!r}, "
                "and no labels to match them by; select what is to be compared, or store labels"
            )
    left, right = xr.align(left, right, join="inner", copy=False)
    changed = {}
    for name in shared:
        before, after = left[name], right[name].transpose(*left[name].dims)
        if not _same(before.values, after.values):
            attrs = {k: v for k, v in before.attrs.items() if k in ("units", "long_name")}
            changed[name] = (before.dims, _minus(after.values, before.values), attrs)
    coords = {dim: left[dim] for dim in left.indexes}
    return xr.Dataset(changed, coords), sorted(str(n) for n in shared if n not in changed)


def _same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _minus(after: np.ndarray[Any, Any], before: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Subtract numbers, exactly where a wider type can; of anything else say where it differs."""
    kinds = {after.dtype.kind, before.dtype.kind}
    if kinds <= set("b"):
        return np.asarray(after.astype("i1") - before.astype("i1"))
    if kinds <= set("biu"):
        wide = np.int64 if max(after.dtype.itemsize, before.dtype.itemsize) < 8 else object
        gap = after.astype(wide) - before.astype(wide)
        return _narrowed(gap)
    if kinds <= set("biufc"):
        return np.asarray(after - before)
    if kinds <= set("V"):  # bfloat16 and its kin
        return np.asarray(after.astype("f4") - before.astype("f4"))
    if kinds == {"M"} or kinds == {"m"}:
        return np.asarray(after - before)
    return np.asarray(after != before)


def _narrowed(gap: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return exact differences as int64, or as float64 where one of them does not fit."""
    if gap.dtype != object:
        return np.asarray(gap)
    low, high = min(gap.flat, default=0), max(gap.flat, default=0)
    fits = low >= -(2**63) and high < 2**63
    return np.asarray(gap.astype(np.int64 if fits else np.float64))


def _events(old: xr.Dataset, new: xr.Dataset) -> tuple[xr.Dataset, list[str]]:
    """Return spikes that are in one of the two only; ``change`` is -1 for lost, 1 for new ones."""
    columns = [str(name) for name in old.variables if old[name].dims and name in new.variables]
    columns = [name for name in columns if len(old[name].dims) == 1 == len(new[name].dims)]
    dim = old[columns[0]].dims[0] if columns else "spike"
    before, after = (Counter(_rows(ds, columns)) for ds in (old, new))
    rows = [(row, -1) for row in (before - after).elements()]
    rows += [(row, 1) for row in (after - before).elements()]
    rows.sort(key=lambda found: (found[0], found[1]))
    data: dict[Hashable, Any] = {"change": (dim, np.array([sign for _, sign in rows], np.int8))}
    for position, name in enumerate(columns):
        values = np.array([row[position] for row, _ in rows], old[name].dtype)
        data[name] = (dim, values, old[name].attrs)
    coords = [name for name in columns if name in old.coords]
    found = xr.Dataset(data).set_coords(coords)
    return found, [] if rows else columns


def _rows(ds: xr.Dataset, columns: list[str]) -> Iterable[tuple[Any, ...]]:
    return zip(*(ds[name].values.tolist() for name in columns), strict=True)


def _labels(one: xr.Dataset, other: xr.Dataset) -> dict[str, list[Any]]:
    """Return the labels that only the first of two has, by dimension."""
    found = {}
    for dim in one.indexes:
        if dim in other.indexes and dim in one.dims and dim in other.dims:
            there = set(np.asarray(other[dim]).tolist())
            rest = [label for label in np.asarray(one[dim]).tolist() if label not in there]
            if rest:
                found[str(dim)] = rest
    return found


def _attrs(old: xr.Dataset, new: xr.Dataset) -> dict[str, list[Any]]:
    """Return attributes that differ: the old value and the new one, None where there is none."""
    names = dict.fromkeys([*old.attrs, *new.attrs])
    return {
        str(name): [old.attrs.get(name), new.attrs.get(name)]
        for name in names
        if name not in _OWN and not _equal(old.attrs.get(name), new.attrs.get(name))
    }


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(np.all(np.asarray(one) == np.asarray(other)))
