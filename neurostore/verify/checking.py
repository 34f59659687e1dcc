"""Verification of a series, seen from outside: which files, which records, what was answered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurostore.errors import StoreNotFoundError
from neurostore.schema import KINDS

from .helper import Died, Helper
from .report import Finding, RecordReport, Report

__all__ = [
    "MEMORY_LIMIT",
    "TIME_LIMIT",
    "Contents",
    "Progress",
    "check",
    "check_files",
    "contents",
    "report",
    "series",
    "verify",
]

#: Called with the number of records done and of all records.
Progress = Callable[[int, int], object]
TIME_LIMIT = 60.0
MEMORY_LIMIT = 4 * 1024**3
#: Bytes a second that a slow disk gives; the time for large records is added to the limit.
_SLOW = 10_000_000


@dataclass
class Contents:
    """What is to be read in one file, and what was found before reading any record."""

    path: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    older: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    #: Records that the catalogue does not know, although it is sound.
    unlisted: set[tuple[str, str]] = field(default_factory=set)
    #: Who uses a netCDF dimension number: an id, or the catalogue.
    owners: dict[int, str] = field(default_factory=dict)
    #: Groups at the top of the file that hold no records.
    others: list[str] = field(default_factory=list)

    def add(self, check: str, message: str, address: str = "") -> None:
        """Note something wrong with the file as a whole."""
        self.findings.append(Finding(self.path, "", check, address, "", message))


def verify(
    path: str | os.PathLike[str],
    *,
    series_too: bool = True,
    time_limit: float = TIME_LIMIT,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> Report:
    """Check every record of a file, and of the files that it was rotated from.

    Of each record: that it can be opened, the checksum of every stored chunk, its content hash,
    the references between variables and dimensions, the table of kinds, what the catalogue says
    of it, and that no netCDF dimension number is used twice.  Nothing is changed, and others may
    read and write meanwhile.

    Parameters
    ----------
    path
        The HDF5 file.
    series_too
        Whether the older files of the series are read, too.
    time_limit
        Seconds that reading one record may take; large ones get more.
    memory_limit
        Bytes of memory that reading may take, on Linux.
    progress
        Called with the number of records done and the number of all.

    Raises
    ------
    StoreNotFoundError
        There is no such file.

    Examples
    --------
    >>> import neurostore
    >>> from neurostore.verify import verify
    >>> with neurostore.open(tmp / "run.h5") as store:
    ...     _ = store.store(neurostore.spike_train([0.1], [1], timestamp=12.5))
    >>> verify(tmp / "run.h5").ok
    True
    """
    with Helper(memory_limit) as helper:
        return check(helper, path, series_too, time_limit, progress)


def check(
    helper: Helper,
    path: str | os.PathLike[str],
    series_too: bool,
    time_limit: float,
    progress: Progress | None,
) -> Report:
    """Check all records with a helper; see `verify`."""
    files = list(series(helper, Path(path), series_too, time_limit))
    return report(files, check_files(helper, files, time_limit, progress))


def check_files(
    helper: Helper, files: list[Contents], time_limit: float, progress: Progress | None
) -> list[RecordReport]:
    """Return what is to be said of every record of the files."""
    total = sum(len(each.rows) for each in files)
    reports: list[RecordReport] = []
    for each in files:
        for row in each.rows:
            reports.append(_record(helper, each, row, time_limit))
            if progress is not None:
                progress(len(reports), total)
    return reports


def report(files: list[Contents], reports: list[RecordReport]) -> Report:
    """Put together what was found."""
    findings = tuple(finding for each in files for finding in each.findings)
    return Report(tuple(each.path for each in files), tuple(reports), findings)


def series(helper: Helper, path: Path, series_too: bool, time_limit: float) -> Iterator[Contents]:
    """Yield what is in a file and in the older ones of its series, the oldest first."""
    path = Path(os.path.realpath(path))
    if not path.exists():
        raise StoreNotFoundError(f"{path}: there is no such file; expected one to verify")
    newest = contents(helper, path, time_limit)
    for name in newest.older if series_too else ():
        member = path.parent / name
        if member.is_file():
            yield contents(helper, member, time_limit)
        else:
            newest.add("file", f"the rotated file {member} is not there; its records are lost")
    yield newest


def contents(helper: Helper, path: Path, time_limit: float) -> Contents:
    """Return what is in one file by its catalogue and by its tree: either may be damaged."""
    found = Contents(str(path))
    listed: dict[tuple[str, str], dict[str, Any]] | None = None
    try:
        answer = helper.ask("contents", time_limit, path=str(path))
        if "error" in answer:
            found.add("file", answer["error"])
            return found
        found.older, found.others = answer["older"], answer["others"]
        for problem in answer["problems"]:
            found.add(problem["check"], problem["message"], problem["address"])
        _own(found, answer["numbers"], "the catalogue")
        if answer["rows"] is not None:
            listed = {(row["kind"], row["id"]): row for row in answer["rows"]}
    except Died as error:
        found.add("process", f"{error}", "catalogue")
    rows = dict(listed or {})
    for kind in KINDS:
        for row in _in_tree(helper, found, kind, time_limit):
            key = row["kind"], row["id"]
            if key not in rows:
                rows[key] = row
                if listed is not None:
                    found.unlisted.add(key)
    found.rows = list(rows.values())
    return found


def _in_tree(helper: Helper, found: Contents, kind: str, time_limit: float) -> list[dict[str, Any]]:
    where = KINDS[kind].parts[0].path
    try:
        answer = helper.ask("in_tree", time_limit, path=found.path, kind=kind)
    except Died as error:
        found.add("process", str(error), where)
        return []
    if "error" in answer:
        found.add("structure", answer["error"], where)
        return []
    rows: list[dict[str, Any]] = answer["rows"]
    return rows


def _own(found: Contents, numbers: list[int], owner: str) -> list[int]:
    """Note who uses dimension numbers, and return those that somebody else uses already."""
    return [number for number in numbers if found.owners.setdefault(number, owner) != owner]


def _record(helper: Helper, file: Contents, row: dict[str, Any], time_limit: float) -> RecordReport:
    size = min(row["stored_bytes"], os.path.getsize(file.path))
    hashed = False
    try:
        answer = helper.ask("record", time_limit + size / _SLOW, path=file.path, row=row)
        problems, hashed = answer["problems"], answer["hashed"]
        for number in _own(file, answer["numbers"], f"{row['kind']} {row['id']}"):
            message = f"netCDF dimension number {number} belongs to {file.owners[number]} already"
            problems.append(_problem("numbers", message))
    except Died as error:
        problems = [_problem("process", str(error))]
    if (row["kind"], row["id"]) in file.unlisted:
        problems.append(_problem("catalogue", "in the tree and not in the catalogue"))
    findings = tuple(Finding(file.path, row["id"], **problem) for problem in problems)
    return RecordReport(file.path, row["kind"], row["id"], hashed, findings)


def _problem(check: str, message: str) -> dict[str, str]:
    return {"check": check, "address": "", "variable": "", "message": message}
