"""A file and those it was rotated to, seen as one history.

The list of older files, and the spans of time that they hold, stand in the ledger of the newest.
This module opens those that a question concerns, one after the other.  It neither rotates nor
writes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from neurostore.catalogue import Catalogue, Entry, Taken
from neurostore.errors import (
    MissingFileWarning,
    MovedError,
    RecordNotFoundError,
    StoreNotFoundError,
)
from neurostore.ledger import Ledger, Older, meets
from neurostore.names import moment_of
from neurostore.session import Session, pinned, reading_from

__all__ = ["Found", "Volume", "find", "given_elsewhere", "members"]


class Found(NamedTuple):
    """A record, and the file that has it."""

    volume: Volume
    entry: Entry


@dataclass(frozen=True)
class Volume:
    """One file of a history, by its path and identity, whether it is open now or not."""

    path: Path
    file_id: tuple[int, int]
    #: Bytes that reading one variable may take.
    limit: int | None = None

    @classmethod
    def of(cls, session: Session, held: Catalogue) -> Volume:
        """Return the file that a session has open, by its catalogue."""
        return cls(session.path, held.file_id, session.max_variable_bytes)

    @contextmanager
    def open(self, *, close: bool = False) -> Iterator[Session]:
        """Open it for a moment, as `pinned`; MovedError where another file has its path now."""
        with pinned(self.path, close=close) as session:
            yield self._checked(session)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open it for a moment in which nothing of it changes; as `open` otherwise."""
        with reading_from(self.path) as (session, _):
            yield self._checked(session)

    def _checked(self, session: Session) -> Session:
        if session.catalogue.file_id != self.file_id:
            raise MovedError(f"{self.path}: another file took its place; ask again")
        session.max_variable_bytes = self.limit
        return session


def _warn(message: str) -> None:
    warnings.warn(message, MissingFileWarning, stacklevel=3)


def members(
    session: Session,
    low: float = -math.inf,
    high: float = math.inf,
    kinds: Sequence[str] | None = None,
    *,
    missing: Callable[[str], object] = _warn,
) -> Iterator[Session]:
    """Yield the files of a series that may hold what is asked for, the newest first.

    Each is held open until the next is asked for: of a long series not all can be.

    Parameters
    ----------
    session
        The newest file.
    low, high, kinds
        Records of these kinds, or of all, in this closed interval of seconds; an older file
        without any is not opened.  By default every file is.
    missing
        Told of a file that is not there.

    Warns
    -----
    MissingFileWarning
        An older file that is concerned is not there; its records are left out.
    """
    yield session
    ledger = session.catalogue.ledger
    is_all = low == -math.inf and high == math.inf and kinds is None
    for older in reversed(ledger.before(session.path.name)):
        if not is_all and not older.holds(kinds, low, high):
            continue
        try:
            with _opened(session, ledger, older) as member:
                yield member
        except StoreNotFoundError as error:
            if older.records or older.position < 0:
                missing(f"{error}; {_lost(older)}")


@contextmanager
def _opened(session: Session, head: Ledger, older: Older) -> Iterator[Session]:
    """Open an older file; StoreNotFoundError where it is gone, or another one has its name."""
    path = session.path.with_name(older.name)
    try:
        with pinned(path, session.io) as member:
            member.max_variable_bytes = session.max_variable_bytes
            held = member.catalogue
            # A file whose catalogue was lost may have lost its identity with it, not its place.
            place = (held.ledger.series, held.ledger.position)
            is_same = held.file_id == older.file_id or place == (head.series, older.position)
            if older.position >= 0 and not is_same:
                raise StoreNotFoundError(
                    f"{path}: is another file than the one that {session.path.name} was rotated "
                    "to; put that one in its place"
                )
            yield member
    except StoreNotFoundError as error:
        if path.exists():
            raise
        raise StoreNotFoundError(
            f"{path}: file {older.position + 1} of the series of {session.path.name} is not "
            "there; put it back beside it"
        ) from error


def _lost(older: Older) -> str:
    count = sum(number for number, _, _ in older.records.values())
    return f"its {count} records are left out"


def find(session: Session, record_id: str) -> Found | None:
    """Return the record with this id, or full address, and the file that has it.

    Raises
    ------
    RecordNotFoundError
        No file has it, and one that may have it is not there.
    """
    held = session.catalogue
    entry = held.find(record_id)
    if entry is not None:
        return Found(Volume.of(session, held), entry)
    moment = moment_of(record_id)
    gone = []
    ledger = held.ledger
    for older in reversed(ledger.before(session.path.name)):
        if not _may_have(older, moment):
            continue
        try:
            with _opened(session, ledger, older) as member:
                held = member.catalogue
                entry = held.find(record_id)
                if entry is not None:
                    return Found(Volume.of(member, held), entry)
        except StoreNotFoundError as error:
            gone.append(str(error))
    if gone:
        raise RecordNotFoundError(
            f"{session.path}: no record {record_id!r} in the files that are there; "
            + "; ".join(gone)
        )
    return None


def _may_have(older: Older, moment: float | None) -> bool:
    if older.odd:
        return True
    return moment is not None and older.holds(None, moment, moment)


def given_elsewhere(session: Session) -> Taken:
    """Return a test whether older files, or some that are gone, gave an id.

    Only files that gave ids at the same moment are opened, and their catalogues kept with the
    session: they give no more.
    """
    ledger = session.catalogue.ledger
    if not ledger.older and ledger.forgotten is None:
        return lambda record_id, moment: False

    def given(record_id: str, moment: float) -> bool | None:
        if ledger.is_forgotten(moment):
            return None
        found = False
        for older in ledger.older:
            if not older.odd and not meets(older.given, moment, moment):
                continue
            held = _kept(session, ledger, older)
            if held is None or held.ledger.is_forgotten(moment):
                return None
            found = found or held.has_given(record_id, moment)
        return found

    return given


def _kept(session: Session, ledger: Ledger, older: Older) -> Catalogue | None:
    held = session.elsewhere.get(older.name)
    if held is None:
        with suppress(StoreNotFoundError), _opened(session, ledger, older) as member:
            held = session.elsewhere[older.name] = member.catalogue
    return held
