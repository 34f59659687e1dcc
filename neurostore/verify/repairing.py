"""Repair: every record that is still what was stored, into a new file; nothing in the old one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurostore import osio
from neurostore.errors import DamagedError, StoreExistsError

from .checking import MEMORY_LIMIT, TIME_LIMIT, Contents, Progress, check_files, contents, series
from .helper import Died, Helper
from .report import Finding, RecordReport, Repair

__all__ = ["repair"]

#: What is made anew while a record is copied, so that it is no loss.
_MADE_ANEW = frozenset({"references", "numbers", "catalogue"})
#: Records copied in one request.
_AT_ONCE = 64


@dataclass(frozen=True)
class _Candidate:
    """A record that may be copied."""

    report: RecordReport
    row: dict[str, Any]
    rehash: bool

    @property
    def key(self) -> tuple[str, str]:
        return self.report.kind, self.report.id


def repair(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    series_too: bool = True,
    changed: bool = False,
    time_limit: float = TIME_LIMIT,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> Repair:
    """Copy every intact record of a file, and of those it was rotated from, into a new file.

    Chunks are moved as they are.  Damaged references between variables and dimensions, dimension
    numbers used twice and a damaged catalogue are made anew.  The new file is verified before it
    gets its name, and the old one stays as it is.

    Parameters
    ----------
    path
        The file; its catalogue and some of its groups may be damaged.
    target
        The new file; nothing stands there yet.
    series_too
        Whether the records of the older files of the series are copied, too.
    changed
        Copy also records whose stored values are sound but which are not what was stored (their
        content hash does not fit, because another program edited them), and give them a new hash.
    time_limit, memory_limit, progress
        As for `verify`.

    Returns
    -------
    Repair
        What was copied, and what was lost with the reason.

    Raises
    ------
    StoreExistsError
        Something stands at ``target``.
    DamagedError
        HDF5 cannot open the file at all.

    Examples
    --------
    >>> import neurostore
    >>> from neurostore.verify import repair
    >>> with neurostore.open(tmp / "run.h5") as store:
    ...     _ = store.store(neurostore.spike_train([0.1], [1], timestamp=12.5))
    >>> print(repair(tmp / "run.h5", tmp / "sound.h5"))
    1 record copied, 0 lost
    """
    with Helper(memory_limit) as helper:
        return save(helper, path, target, series_too, changed, time_limit, progress)


def save(
    helper: Helper,
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    series_too: bool,
    changed: bool,
    time_limit: float,
    progress: Progress | None,
) -> Repair:
    """Copy what is intact with a helper; see `repair`."""
    target = Path(os.path.realpath(target))
    if target.exists():
        raise StoreExistsError(f"{target}: exists already; repair writes a new file")
    files = list(series(helper, Path(path), series_too, time_limit))
    if not any(each.rows for each in files) and any(each.findings for each in files):
        reasons = "; ".join(str(finding) for each in files for finding in each.findings)
        raise DamagedError(
            f"{path}: nothing of it can be read, expected at least one record: {reasons}"
        )
    reports = check_files(helper, files, time_limit, progress)
    rows = [row for each in files for row in each.rows]
    run = _Run(helper, changed, time_limit)
    run.sort(zip(reports, rows, strict=True))
    osio.create(target, run.write)
    return Repair(
        str(target),
        tuple(one.report.id for one in run.candidates),
        tuple(run.lost),
        tuple(finding for each in files for finding in each.findings),
        tuple(name for each in files for name in each.others),
    )


class _Run:
    """Which records are copied, and which are lost: fewer and more with every attempt."""

    def __init__(self, helper: Helper, changed: bool, time_limit: float) -> None:
        self._helper = helper
        self._changed = changed
        self._time_limit = time_limit
        self.candidates: list[_Candidate] = []
        self.lost: list[RecordReport] = []

    def sort(self, found: Any) -> None:
        """Tell candidates from what is lost."""
        for report, row in found:
            wrong = {finding.check for finding in report.findings} - _MADE_ANEW
            edited = wrong == {"content hash"}
            # Damaged references spoil the hash, too; when they are made anew, it may fit again.
            checks = {finding.check for finding in report.findings}
            hopeful = edited and "references" in checks
            missing = any("not in the tree" in finding.message for finding in report.findings)
            if not missing and (not wrong or hopeful or (edited and self._changed)):
                self.candidates.append(_Candidate(report, row, edited and not hopeful))
            else:
                self.lost.append(report)

    def write(self, temporary: str) -> None:
        """Fill the new file, again without whatever turned out to be no good."""
        at_once = _AT_ONCE
        while True:
            bad = self._attempt(temporary, at_once)
            if not bad:
                return
            if len(bad) > 1 and bad[0].check == "process":
                at_once = 1  # one of these killed the process: find out which
                continue
            for finding in bad:
                self._lose(finding)

    def _attempt(self, temporary: str, at_once: int) -> list[Finding]:
        """Write the whole file; return what kept some record from being there and sound."""
        ask, limit = self._helper.ask, self._time_limit
        ask("begin", limit, target=temporary)
        number = 0
        for batch in self._batches(at_once):
            rows = [one.row for one in batch]
            where = {"path": batch[0].report.file, "target": temporary}
            try:
                more = {"rows": rows, "first_number": number, "rehash": batch[0].rehash}
                number = ask("copy", limit * len(rows), **where, **more)
            except Died as error:
                return [_killed(one, str(error)) for one in batch]
        rows = [one.row for one in self.candidates]
        doubted = [one.key for one in self.candidates if _is_doubted(one)]
        ask(
            "finish", limit + len(rows), target=temporary, rows=rows, doubted=doubted, number=number
        )
        made: Contents = contents(self._helper, Path(temporary), limit)
        checked = check_files(self._helper, [made], limit, None)
        ask("forget", limit, path=temporary)
        return [finding for report in checked for finding in report.findings[:1]]

    def _batches(self, at_once: int) -> list[list[_Candidate]]:
        """Return the candidates, those side by side that one request can copy."""
        batches: list[list[_Candidate]] = []
        for one in self.candidates:
            last = batches[-1] if batches else []
            alike = last and (last[0].report.file, last[0].rehash) == (one.report.file, one.rehash)
            if alike and len(last) < at_once:
                last.append(one)
            else:
                batches.append([one])
        return batches

    def _lose(self, finding: Finding) -> None:
        """Give up the record that a finding is about."""
        one = next(c for c in self.candidates if c.report.id == finding.record)
        self.candidates.remove(one)
        own = one.report
        self.lost.append(
            RecordReport(own.file, own.kind, own.id, own.hashed, (*own.findings, finding))
        )


def _is_doubted(one: _Candidate) -> bool:
    return any(finding.check == "catalogue" for finding in one.report.findings)


def _killed(one: _Candidate, message: str) -> Finding:
    return Finding(one.report.file, one.report.id, "process", "", "", message)
