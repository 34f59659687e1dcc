"""A file and those it was rotated to, seen as one history.

The list of older files stands in the catalogue of the newest; this module opens them as they
are needed.  It neither rotates nor writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from neurostore.catalogue import Entry
from neurostore.errors import StoreNotFoundError
from neurostore.session import Session, attach

__all__ = ["find", "is_taken", "members"]

_log = logging.getLogger(__name__)


def members(session: Session) -> Iterator[Session]:
    """Yield the sessions of a series, the newest first."""
    yield session
    for name in reversed(session.catalogue.older):
        path = session.path.parent / name
        try:
            yield attach(path, "r", io=session.io)
        except StoreNotFoundError:
            _log.warning(
                "%s: the rotated file %s is not there; its records are left out", session.path, path
            )


def find(session: Session, record_id: str) -> tuple[Session, Entry] | None:
    """Return the record with this id and the session of the file that has it."""
    for member in members(session):
        entry = member.catalogue.find(record_id)
        if entry is not None:
            return member, entry
    return None


def is_taken(session: Session) -> Callable[[str], bool]:
    """Return a test whether an older file of the series has an id."""
    if not session.catalogue.older:
        return lambda record_id: False
    older = [member for member in members(session) if member is not session]
    return lambda record_id: any(member.catalogue.find(record_id) for member in older)
