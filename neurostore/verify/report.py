"""What verification found: plain data that can be printed, counted and turned into JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Finding", "RecordReport", "Repair", "Report"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and where.

    Attributes
    ----------
    file
        Path of the file.
    record
        Id of the record; empty for the file as a whole.
    check
        Which check found it: ``"structure"`` (a part cannot be opened), ``"values"`` (stored
        values fail their checksum), ``"references"`` (between variables and their dimensions),
        ``"content hash"``, ``"schema"``, ``"catalogue"``, ``"numbers"`` (of netCDF dimensions, used
        twice), ``"process"`` (reading it killed HDF5, or took too long) or ``"file"``.
    address
        Group that it is about, or empty.
    variable
        Variable of that group, or empty.
    message
        What is wrong with it.
    """

    file: str
    record: str
    check: str
    address: str
    variable: str
    message: str

    @property
    def place(self) -> str:
        """Address and variable as one path."""
        return "/".join(filter(None, (self.address, self.variable)))

    def __str__(self) -> str:
        said = (self.record or self.file, self.check, self.place, self.message)
        return ": ".join(filter(None, said))


@dataclass(frozen=True)
class RecordReport:
    """One record and what is wrong with it.

    Attributes
    ----------
    hashed
        Whether it carries a content hash; records of schema version 1 and of others do not.
    """

    file: str
    kind: str
    id: str
    hashed: bool
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.findings

    @property
    def status(self) -> str:
        """``"ok"``, ``"ok, no content hash"`` or the checks that failed."""
        if self.ok:
            return "ok" if self.hashed else "ok, no content hash"
        return ", ".join(dict.fromkeys(finding.check for finding in self.findings))


@dataclass(frozen=True)
class Report:
    """The state of a file, or of a series of rotated files.

    Attributes
    ----------
    files
        Paths of what was read, the oldest first.
    records
        One entry for each record.
    findings
        What is wrong with files as a whole.

    Examples
    --------
    >>> import neurostore
    >>> store = neurostore.open(tmp / "run.h5")
    >>> store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
    'train_12.5'
    >>> report = store.verify()
    >>> report.ok, len(report.records)
    (True, 1)
    >>> print(report)
    1 record in 1 file: all sound
    >>> store.close()
    """

    files: tuple[str, ...]
    records: tuple[RecordReport, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.findings and all(record.ok for record in self.records)

    @property
    def damaged(self) -> list[RecordReport]:
        """The records with something wrong."""
        return [record for record in self.records if not record.ok]

    def all_findings(self) -> Iterator[Finding]:
        """Yield every finding, those about files first."""
        yield from self.findings
        for record in self.records:
            yield from record.findings

    def summary(self) -> str:
        """Return one line that says how many records are sound."""
        what = f"{_count(len(self.records), 'record')} in {_count(len(self.files), 'file')}"
        wrong = len(self.damaged)
        state = f"{wrong} with something wrong" if wrong else "all sound"
        if self.findings and not self.records:
            state = "none could be checked"
        if self.findings:
            state += f", {_count(len(self.findings), 'finding')} about the files"
        unhashed = sum(record.ok and not record.hashed for record in self.records)
        return f"{what}: {state}" + (f" ({unhashed} without a content hash)" if unhashed else "")

    def __str__(self) -> str:
        return "\n".join([self.summary(), *(f"  {each}" for each in self.all_findings())])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON can hold."""
        return {
            "ok": self.ok,
            "files": list(self.files),
            "records": [asdict(r) | {"ok": r.ok, "status": r.status} for r in self.records],
            "findings": [asdict(finding) for finding in self.findings],
        }


@dataclass(frozen=True)
class Repair:
    """What repair saved, and what it could not.

    Attributes
    ----------
    target
        Path of the new file.
    copied
        Ids of the records in it.
    lost
        The other records, each with what is wrong with it.
    findings
        What was wrong with the old file as a whole.
    left_out
        Groups at the top of the old file that hold no records and were not copied.
    """

    target: str
    copied: tuple[str, ...]
    lost: tuple[RecordReport, ...]
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every record was saved."""
        return not self.lost

    def summary(self) -> str:
        """Return one line that says how many records were saved."""
        said = f"{_count(len(self.copied), 'record')} copied, {len(self.lost):,} lost"
        return said + (f"; not copied: {', '.join(self.left_out)}" if self.left_out else "")

    def __str__(self) -> str:
        wrong = [*self.findings, *(finding for record in self.lost for finding in record.findings)]
        return "\n".join([self.summary(), *(f"  {each}" for each in wrong)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON can hold."""
        return asdict(self) | {"ok": self.ok}


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
