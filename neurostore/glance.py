"""What is to be seen of a store, a catalogue or a record at a glance: counts, times, size, health.

A store is summed up from its catalogue, whatever its size, and no record is opened.  Pages are
laid out in ``neurostore.page``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from neurostore import records, schema
from neurostore.page import Item, Page, Section
from neurostore.schema import KINDS, Kind
from neurostore.series import members
from neurostore.session import Session
from neurostore.views import View
from neurostore.wording import human_bytes, moment, span

__all__ = ["of_dataset", "of_store"]

#: Characters of metadata that stand in a line.
_LONGEST = 120


@dataclass
class _Tally:
    """Records of one kind, over all files of a series."""

    count: int = 0
    start: float = np.inf
    end: float = -np.inf
    stored: int = 0

    def add(self, stamps: np.ndarray[Any, Any], stored: np.ndarray[Any, Any]) -> None:
        if len(stamps):
            self.count += len(stamps)
            self.start = min(self.start, float(stamps.min()))
            self.end = max(self.end, float(stamps.max()))
            self.stored += int(stored.sum())


@dataclass
class _Health:
    """What is known of the files without reading records; verification reads them."""

    files: int = 0
    size: int = 0
    removed: int = 0
    is_untouched: bool = True
    missing: list[str] = field(default_factory=list)

    def add(self, member: Session) -> None:
        self.files += 1
        self.size += member.file_size()
        self.removed += member.catalogue.state["removed"]
        # A file without a commit has noted no time yet that could differ.
        noted = member.catalogue.state["modified"] != 0
        self.is_untouched = self.is_untouched and (member.is_untouched() or not noted)

    def said(self) -> list[str]:
        said = [f"{self.files} file" + ("s" if self.files > 1 else "")]
        if self.missing:
            count = len(self.missing)
            said.append(f"{count} rotated away and missing, their records are left out")
        waiting = f"{self.removed:,} removed, compact() wins their space"
        said.append(waiting if self.removed else "none removed")
        return (
            said
            if self.is_untouched
            else [*said, "written to since its last commit, by a crash or another program"]
        )


def of_store(view: View, mode: str) -> Page:
    """Return the page of an open store."""
    tallies = {name: _Tally() for name in KINDS}
    names: dict[str, set[str]] = {name: set() for name in KINDS}
    health = _Health()
    for origin in view.origins:
        for member in members(origin.session, missing=health.missing.append):
            health.add(member)
            held = member.catalogue
            for kind in KINDS.values():
                found = held.tables[kind.name].take(held.select(kind))
                tallies[kind.name].add(found["timestamp"], found["stored_bytes"])
                if kind.label:
                    codes = np.unique(found["name"]).tolist()
                    names[kind.name] |= {held.text(code) for code in codes}
    sections = [Section("File", f"{view}, mode {mode!r}")]
    sections += _counted(tallies, names)
    sections.append(Section("Health", "; ".join(health.said())))
    title = f"{_count(tallies.values())}, {human_bytes(health.size)}"
    return Page("neurostore.Store", title, sections)


def _count(tallies: Iterable[_Tally]) -> str:
    total = sum(tally.count for tally in tallies)
    return f"{total:,} record" + ("" if total == 1 else "s")


def _counted(tallies: Mapping[str, _Tally], names: Mapping[str, set[str]]) -> list[Section]:
    present = {name: tally for name, tally in tallies.items() if tally.count}
    if not present:
        return [Section("Records", "none yet")]
    first = min(tally.start for tally in present.values())
    last = max(tally.end for tally in present.values())
    items = [
        Item(
            name,
            f"{tally.count:,}",
            human_bytes(tally.stored),
            span(tally.start, tally.end),
            _named(KINDS[name], names[name]),
        )
        for name, tally in present.items()
    ]
    return [Section("Time", span(first, last)), Section("Records", items=items)]


def _named(kind: Kind, names: set[str]) -> dict[str, str]:
    about = {"holds": kind.summary}
    return about | ({kind.label: ", ".join(sorted(names))} if kind.label else {})


# -- Datasets --------------------------------------------------------------------------------------


def of_dataset(ds: xr.Dataset) -> Page:
    """Return the page of a catalogue, a range, a record, or of what is none of them."""
    if {"kind", "stored_bytes"} <= set(ds.data_vars):
        return _catalogue(ds)
    kind = records.infer_kind(ds)
    if kind is None:
        return _no_record(ds)
    return _range(ds, kind) if "record" in ds.dims else _record(ds, kind)


def _source(ds: xr.Dataset) -> list[Section]:
    source = ds.encoding.get("source")
    return [Section("File", str(source))] if source is not None else []


def _catalogue(ds: xr.Dataset) -> Page:
    kinds, stamps = ds["kind"].values, ds["timestamp"].values
    tallies, names = {}, {}
    for name, kind in KINDS.items():
        there = kinds == name
        tallies[name] = _Tally()
        tallies[name].add(stamps[there], ds["stored_bytes"].values[there])
        names[name] = set(np.unique(ds["name"].values[there]).tolist()) if kind.label else set()
    title = f"{_count(tallies.values())}, {human_bytes(sum(t.stored for t in tallies.values()))}"
    return Page("neurostore catalogue", title, _source(ds) + _counted(tallies, names))


def _range(ds: xr.Dataset, kind: Kind) -> Page:
    stamps = ds[schema.TIMESTAMP].values
    ends = (float(stamps.min()), float(stamps.max())) if len(stamps) else (None, None)
    title = f"{ds.sizes['record']:,} of {kind.name}, {human_bytes(ds.nbytes)}"
    sections = [*_source(ds), Section("Time", span(*ends)), *_variables(ds)]
    return Page("neurostore range", title, sections)


def _record(ds: xr.Dataset, kind: Kind) -> Page:
    name = ds.attrs.get(kind.label) if kind.label else None
    title = " ".join(filter(None, [kind.name, repr(name) if name else "", human_bytes(ds.nbytes)]))
    sections = _source(ds)
    if schema.TIMESTAMP in ds.coords and not ds[schema.TIMESTAMP].ndim:
        sections.append(Section("Time", moment(float(ds[schema.TIMESTAMP]))))
    details = str(ds.attrs.get(kind.details, ""))
    if details:
        short = details if len(details) <= _LONGEST else f"{details[:_LONGEST]}…"
        sections.append(Section(kind.details.capitalize(), short))
    return Page("neurostore record", title, [*sections, *_variables(ds)])


def _variables(ds: xr.Dataset) -> list[Section]:
    coords = [_item(name, da) for name, da in ds.coords.items() if not _is_said(name, da)]
    values = [_item(name, da) for name, da in ds.data_vars.items()]
    found = [Section("Values", items=values)] if values else []
    return [*found, Section("Labels", items=coords)] if coords else found


def _is_said(name: Any, da: xr.DataArray) -> bool:
    """Tell whether a section of its own says it: when the record or records were made."""
    return name in {schema.TIMESTAMP, schema.TIME, "record"} and da.dims in ((), ("record",))


def _item(name: Any, da: xr.DataArray) -> Item:
    dims = "(" + ", ".join(f"{dim}: {size}" for dim, size in da.sizes.items()) + ")"
    units = str(da.attrs.get("units", "1"))
    said = [str(da.attrs.get("long_name", "")), f"[{units}]" if units != "1" else ""]
    about = " ".join(filter(None, said))
    return Item(
        str(name), dims, str(da.dtype), about, {str(k): str(v) for k, v in da.attrs.items()}
    )


def _no_record(ds: xr.Dataset) -> Page:
    missing = "no kind fits its variables and dimensions"
    return Page(
        "neurostore",
        "not a record",
        [Section("Why", missing), Section("Kinds", ", ".join(KINDS)), *_variables(ds)],
    )
