"""Where a file stands in its series: which files came before it, and what those hold.

Two attributes of the root, in JSON, so that it outlives the catalogue and travels with the file.
The spans of time in it say which older files a question concerns, and which ids may have been
given already.  It opens no file and knows nothing of sessions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import h5py

from neurostore import h5attrs, names
from neurostore.errors import DamagedError

__all__ = ["Ledger", "Older", "Seal", "Span", "read", "rotated_name", "rotated_number", "write"]

_ATTRIBUTE = b"neurostore_series"
_OLDER = b"neurostore_older_files"

_NUMBERED = re.compile(r"\.(\d{6,})(\.[^.]{0,16})?$")
#: First and last of some moments, both included.
Span = tuple[float, float]
#: All of time, in numbers that JSON has.
ALWAYS: Span = (-1.7976931348623157e308, 1.7976931348623157e308)


def joined(spans: Iterable[Span | None]) -> Span | None:
    """Return the span over all ``spans``; None where there is none.

    >>> joined([(1.0, 2.0), None, (0.0, 0.5)])
    (0.0, 2.0)
    """
    present = [span for span in spans if span is not None]
    if not present:
        return None
    return min(low for low, _ in present), max(high for _, high in present)


def meets(span: Span | None, low: float, high: float) -> bool:
    """Tell whether a span and a closed interval have a moment in common."""
    return span is not None and span[0] <= high and low <= span[1]


@dataclass(frozen=True)
class Older:
    """One file that the series was rotated to, as it was when it was closed off."""

    name: str
    file_id: tuple[int, int] = (0, 0)
    position: int = -1
    bytes: int = 0
    #: Number of records, first and last moment by kind; kinds without records are left out.
    records: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)
    #: Moments of every id that the file ever gave; None if it gave none.
    given: Span | None = ALWAYS
    #: Whether some of its ids do not end in the moment of their record.
    odd: bool = True

    def holds(self, kinds: Iterable[str] | None, low: float, high: float) -> bool:
        """Tell whether it may have records of ``kinds``, or of any, in a closed interval."""
        if self.position < 0:
            return True
        for kind in self.records if kinds is None else kinds:
            counted = self.records.get(kind)
            if counted is not None and counted[1] <= high and low <= counted[2]:
                return True
        return False


@dataclass(frozen=True)
class Seal:
    """What a file that is closed off knows of itself: its own name, and who goes on."""

    name: str
    head: str


@dataclass(frozen=True)
class Ledger:
    """The series as one of its files knows it.

    Parameters
    ----------
    series
        Names the series, wherever its files are; empty for a file that was never rotated.
    position
        How many files came before this one, those that are gone included.
    number
        The next number for a rotated file; none is given twice.
    forgotten
        Moments of ids that were given and are no longer written anywhere.
    older_text
        The files before this one as JSON: a rotated file is opened without a look at them.
    seal
        Set when the file is closed off for good.
    leaving
        Names and identities of files that were let go of: they are removed after that was
        committed, or by whoever cleans up next.
    """

    series: str = ""
    position: int = 0
    number: int = 1
    forgotten: Span | None = None
    older_text: str = "[]"
    seal: Seal | None = None
    leaving: tuple[tuple[str, tuple[int, int]], ...] = ()

    @property
    def older(self) -> tuple[Older, ...]:
        """The files before this one, the oldest first."""
        return _parsed_older(self.older_text)

    def following(self, older: Sequence[Older]) -> Ledger:
        """Return the ledger with other files before this one."""
        rows = [vars(one) for one in older]
        text = json.dumps(rows, separators=(",", ":"), allow_nan=False)
        return replace(self, older_text=text)

    def forgetting(self, span: Span | None) -> Ledger:
        """Return the ledger after ids at the moments of ``span`` were forgotten."""
        return replace(self, forgotten=joined([self.forgotten, span]))

    def without(self, gone: Collection[str]) -> Ledger:
        """Return the ledger after some of the older files left, whose ids stay given."""
        left = [older for older in self.older if older.name in gone]
        kept = [older for older in self.older if older.name not in gone]
        leaving = (*self.leaving, *((older.name, older.file_id) for older in left))
        following = self.forgetting(joined(older.given for older in left)).following(kept)
        return replace(following, leaving=leaving)

    def before(self, name: str) -> tuple[Older, ...]:
        """Return the files before this one, which is called ``name`` now, the oldest first.

        A file that was rotated is alone: the newest speaks for the series.
        """
        return self.older if self.seal is None or self.seal.head == name else ()

    def after_rotation(self, file_id: tuple[int, int]) -> list[str]:
        """Return the names that the file of this identity may have now."""
        return [
            older.name
            for older in reversed(self.older)
            if older.file_id == file_id or older.position < 0
        ]

    def is_forgotten(self, moment: float) -> bool:
        """Tell whether an id at this moment may have been given, and nobody can tell which."""
        return meets(self.forgotten, moment, moment)

    def _text(self) -> str:
        found = asdict(self)
        del found["older_text"]
        return json.dumps(found, separators=(",", ":"), allow_nan=False)


def _parsed(text: str, older_text: str) -> Ledger:
    found = json.loads(text)
    seal = found["seal"]
    if seal is not None:
        _check_name(seal["name"])
        _check_name(seal["head"])
    return Ledger(
        series=found["series"],
        position=found["position"],
        number=found["number"],
        forgotten=_span(found["forgotten"]),
        older_text=older_text,
        seal=None if seal is None else Seal(**seal),
        leaving=tuple(_leaving(*pair) for pair in found.get("leaving", ())),
    )


def _leaving(name: str, file_id: Sequence[int]) -> tuple[str, tuple[int, int]]:
    _check_name(name)
    first, second = file_id
    return name, (first, second)


@lru_cache(maxsize=64)
def _parsed_older(text: str) -> tuple[Older, ...]:
    try:
        return tuple(_older(row) for row in json.loads(text))
    except _ODD as error:
        raise _unreadable(_OLDER, error) from error


def _older(row: dict[str, Any] | str) -> Older:
    if isinstance(row, str):  # as the first development versions wrote it
        row = {"name": row, "file_id": (0, 0), "records": {}, "given": ALWAYS}
    _check_name(row["name"])
    records = {kind: tuple(counted) for kind, counted in row.pop("records").items()}
    first, second = row.pop("file_id")
    return Older(records=records, given=_span(row.pop("given")), file_id=(first, second), **row)


def _check_name(name: str) -> None:
    """Raise for what would lead out of the folder of the series."""
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"{name!r} is no name of a file")


def _span(found: list[float] | None) -> Span | None:
    return None if found is None else (float(found[0]), float(found[1]))


def read(h5file: h5py.File) -> Ledger:
    """Return the ledger of a file; an empty one where it has none."""
    try:
        older = str(h5attrs.read_one(h5file.id, _OLDER) or "[]")
        text = h5attrs.read_one(h5file.id, _ATTRIBUTE)
        if text is not None:
            return _parsed(str(text), older)
        count = len(_parsed_older(older))
        return Ledger(position=count, number=count + 1, older_text=older)
    except _ODD as error:
        raise _unreadable(_ATTRIBUTE, error) from error


_ODD = (ValueError, KeyError, TypeError, IndexError, AttributeError)


def _unreadable(attribute: bytes, error: Exception) -> DamagedError:
    return DamagedError(
        f"the attribute {attribute.decode()} cannot be read ({error!r}), expected the JSON that "
        "rotation wrote; the files of the series are whole, one by one"
    )


def write(h5file: h5py.File, ledger: Ledger) -> None:
    """Put the ledger at the root of a file that is open for writing."""
    for name, text in ((_ATTRIBUTE, ledger._text()), (_OLDER, ledger.older_text)):
        if h5attrs.read_one(h5file.id, name) == text:
            continue
        h5attrs.remove(h5file.id, name)
        h5attrs.write(h5file.id, h5attrs.pack(name.decode(), text))


def rotated_name(name: str, number: int) -> str:
    """Return the name of the file that ``name`` is rotated to.

    Names of one series sort as its files came.

    >>> rotated_name("run.h5", 12)
    'run.000012.h5'
    """
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > 16:
        stem, dot, suffix = name, "", ""
    return names.fitted(stem, f".{number:06d}{dot}{suffix}")


def rotated_number(name: str) -> int | None:
    """Return the number in the name of a rotated file; None where it looks like none.

    >>> rotated_number("run.000012.h5"), rotated_number("run.h5")
    (12, None)
    """
    found = _NUMBERED.search(name)
    return int(found[1]) if found else None
