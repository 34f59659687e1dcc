"""What happens to a file as it ages: records removed, space won back, the file rotated."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from neurostore import times, tree
from neurostore.errors import ValidationError
from neurostore.osio import Durability, discard
from neurostore.querying import kind_of
from neurostore.schema import KINDS
from neurostore.session import Session

__all__ = ["compact", "expired", "remove", "rotate"]

_log = logging.getLogger(__name__)
_DAY = 86_400.0


def expired(
    session: Session,
    retention_days: float,
    kind: str | None,
    name: str | None,
    now: times.TimeLike | None,
    model_time: bool,
) -> list[str]:
    """Return the ids of the file's records older than ``retention_days``."""
    if not retention_days >= 0:
        raise ValidationError(f"retention_days is {retention_days!r}, expected at least 0")
    moment = time.time() if now is None else times.to_seconds(now, "now")
    limit = moment - retention_days * _DAY
    held = session.catalogue
    found: list[str] = []
    kept = 0
    for row in [kind_of(kind)] if kind is not None else KINDS.values():
        rows = held.select(row, high=limit, name=name)
        moments = held.tables[row.name].rows["timestamp"][rows]
        dated = rows if model_time else rows[moments >= times.EARLIEST_DATE]
        kept += len(rows) - len(dated)
        gone = dated[held.tables[row.name].rows["timestamp"][dated] < limit]
        found += held.ids(row, gone)
    if kept:
        _log.warning(
            "%s: %d records have timestamps before 1980 and were kept as model time; "
            "model_time=True removes them too",
            session.path,
            kept,
        )
    return found


def remove(session: Session, ids: Sequence[str]) -> None:
    """Take records out of the file, inside a commit."""
    for record_id in ids:
        entry = session.catalogue.find(record_id)
        if entry is not None:
            session.remove(entry)


def compact(session: Session, durability: Durability) -> None:
    """Write the file anew without removed records, inside ``session.exclusive``."""
    temporary = _beside(session.path, "compact")
    try:
        tree.copy_live(session.path, temporary)
        session.replace(temporary, durability)
    finally:
        discard(temporary, session.io)


def rotate(session: Session, durability: Durability) -> Path:
    """Give the file a name of its own and put an empty one in its place."""
    fresh = _beside(session.path, "rotate")
    rotated = _free_name(session.path, len(session.catalogue.older) + 1)
    session.release_reader()
    try:
        tree.build_next(session.path, fresh, rotated.name)
        # Two names for one file, then one of them for the new one: there is always a file.
        session.io.link(str(session.path), str(rotated))
        if durability == "power":  # or a power cut might keep the second step and lose the first
            session.io.sync_directory(str(rotated.parent))
        try:
            session.replace(fresh, durability)
        except BaseException:
            discard(rotated, session.io)
            raise
    finally:
        discard(fresh, session.io)
    return rotated


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name[:200]}-{os.getpid()}-{what}")


def _free_name(path: Path, number: int) -> Path:
    """Return a sortable name that nothing has: ``run.000001.h5``."""
    while True:
        candidate = path.with_name(f"{path.stem}.{number:06d}{path.suffix}")
        if not candidate.exists():
            return candidate
        number += 1
