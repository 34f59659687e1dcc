"""Files of older versions, and files that plain h5py wrote, brought up to date into a new file.

Every record is read, checked, written in today's form under its own id, and read back; the new
file gets its name only if all of them came through.  The old file is not touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurostore import filters, osio, records, series
from neurostore.catalogue import Entry
from neurostore.errors import DamagedError, StoreExistsError, ValidationError
from neurostore.making import Making
from neurostore.osio import Durability
from neurostore.progress import Progress, Report, reporting
from neurostore.schema import KINDS, SCHEMA_VERSION
from neurostore.session import Session, attach, release
from neurostore.stencil import Layout

__all__ = ["Migration", "migrate"]

#: What a migration that fails has cost.
_KEPT = "the old file is as it was"


@dataclass(frozen=True)
class Migration:
    """What a migration came to.

    Parameters
    ----------
    path
        The new file.
    records
        How many records it has, by kind.
    renamed
        Ids that two records of the old file had, with the new one of the later record.
    schema_version
        The version that all of them have now.
    """

    path: Path
    records: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def migrate(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    compression: str | None = "gzip",
    compression_opts: int | None = 6,
    chunk_size: int = 1024,
    durability: Durability = "power",
    progress: Progress = None,
) -> Migration:
    """Bring a file, with all files it was rotated to, up to date into a new file.

    Takes files of every older schema version, and the same tree as plain h5py writes it: bare
    datasets, no dimension scales.  Ids stay as they are.  What is no record is copied as it is.

    Parameters
    ----------
    old
        The file to read; it stays as it is.
    new
        Where the new file is to be; nothing stands there.
    compression, compression_opts, chunk_size, durability
        As for :func:`neurostore.open`.
    progress
        True shows a bar on a terminal; a function is called with the number of records that were
        written or read back, and of both together.

    Raises
    ------
    ValidationError
        Names every record that cannot be brought into today's form; there is no new file.
    DamagedError
        A record cannot be read, or did not come through as it was; there is no new file.
    StoreExistsError
        Something stands at ``new``.

    Examples
    --------
    >>> import h5py, neurostore, numpy as np
    >>> with h5py.File(tmp / "plain.h5", "w") as h5file:
    ...     h5file["activations/reservoir_states/main_2.5"] = np.ones((3, 4))
    >>> neurostore.migrate(tmp / "plain.h5", tmp / "new.h5").records
    {'reservoir_states': 1}
    >>> neurostore.open(tmp / "new.h5").ids()
    ['main_2.5']
    """
    source, target = Path(os.path.realpath(old)), Path(os.path.realpath(new))
    if target.exists():
        raise StoreExistsError(f"{target}: exists already; migration makes a new file")
    layout = Layout(*filters.check_options(compression, compression_opts), chunk_size)
    found = Migration(target)
    with reporting(progress, f"migrating {source.name}") as report, _members(source) as members:

        def build(temporary: str) -> None:
            _write(members, Path(temporary), layout, found, report)
            _check(members, Path(temporary), found, report)

        osio.create(target, build, durability=durability)
    return found


@contextmanager
def _members(path: Path) -> Iterator[list[Session]]:
    """Hold the files of a series open, the oldest first."""
    holder = _Holder()
    held: list[Session] = []
    try:
        head = attach(path, "r", holder)
        held.append(head)
        for member in series.members(head):
            if member is not head:
                held.append(attach(member.path, "r", holder))
        yield held[::-1]
    finally:
        for session in held:
            release(session, holder, close=True)


class _Holder:
    """Somebody who holds files open for as long as a migration takes."""


def _entries(members: list[Session]) -> list[tuple[Session, Entry]]:
    """Return every record, in the order in which they were stored."""
    found = []
    for member in members:
        entries = sorted(member.catalogue.entries(), key=lambda entry: entry.serial)
        found += [(member, entry) for entry in entries]
    return found


def _write(
    members: list[Session], temporary: Path, layout: Layout, found: Migration, report: Report
) -> None:
    entries = _entries(members)
    problems: list[str] = []
    with Making(temporary, layout) as new:
        for done, (member, entry) in enumerate(entries):
            try:
                ds, _ = member.open_record(entry)
                record_id = new.add(records.examine(ds), entry.id)
            except ValidationError as error:
                problems.append(f"{entry.id}: {error}")
                continue
            if record_id != entry.id:
                found.renamed[f"{entry.kind.parts[0].path}/{entry.id}"] = record_id
            found.records[entry.kind.name] = found.records.get(entry.kind.name, 0) + 1
            report(done + 1, 2 * len(entries))
        if problems:
            raise ValidationError.of(f"{members[-1].path}", problems)
        for member in members:
            with member.reading() as h5file:
                new.copy_rest(h5file, member.catalogue)


def _check(members: list[Session], temporary: Path, found: Migration, report: Report) -> None:
    """Read every record of both files and compare them; raise where something is not the same."""
    entries = _entries(members)
    holder = _Holder()
    new = attach(temporary, "r", holder)
    try:
        for done, (member, entry) in enumerate(entries):
            address = f"{entry.kind.parts[0].path}/{entry.id}"
            there = new.catalogue.find(
                f"{entry.kind.parts[0].path}/{found.renamed.get(address, entry.id)}"
            )
            if there is None:
                raise DamagedError(
                    f"{member.path}: {entry.id!r} is not in the new file, expected all; {_KEPT}"
                )
            before, after = member.open_record(entry)[0], new.open_record(there)[0]
            if problem := _differs(before, after):
                raise DamagedError(
                    f"{member.path}: {entry.id!r} did not come through: {problem}; {_KEPT}"
                )
            report(len(entries) + done + 1, 2 * len(entries))
        count = sum(len(new.catalogue.select(kind)) for kind in KINDS.values())
        if count != len(entries):
            raise DamagedError(f"{temporary}: has {count} records, expected {len(entries)}")
    finally:
        release(new, holder, close=True)


def _differs(before: xr.Dataset, after: xr.Dataset) -> str:
    """Say what is not the same in two records; what today's form adds is no difference."""
    if missing := set(before.variables) - set(after.variables):
        return f"{', '.join(sorted(map(str, missing)))} is missing"
    for name, variable in before.variables.items():
        other = after.variables[name]
        if variable.dims != other.dims:
            return f"{name} has dims {other.dims}, expected {variable.dims}"
        if not _same_values(np.asarray(variable.values), np.asarray(other.values)):
            return f"{name} has other values"
        if problem := _lost(variable.attrs, other.attrs):
            return f"{name}.attrs: {problem}"
    return _lost(before.attrs, after.attrs)


def _same_values(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if one.dtype.kind in "UO":
        return bool(one.shape == other.shape and one.tolist() == other.tolist())
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def _lost(before: Any, after: Any) -> str:
    for key, value in before.items():
        if key not in after or not np.array_equal(np.asarray(value), np.asarray(after[key])):
            if isinstance(value, float) and value != value and key in after:
                continue
            return f"{key} is {after.get(key)!r}, expected {value!r}"
    return ""
