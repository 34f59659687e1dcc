"""What is being recorded, as it comes: parts of one record, or new records of a kind.

A follower looks at the 24 bytes that name the file's last commit, and opens the file only when
they have changed.  It takes no part in the writing, keeps no connection, and reads no values that
it is not asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import xarray as xr

from neurostore import querying, series
from neurostore.catalogue import Entry
from neurostore.errors import RecordNotFoundError, ValidationError
from neurostore.schema import Kind
from neurostore.session import Session, again

__all__ = ["Patience", "new_records", "parts"]


@dataclass(frozen=True)
class Patience:
    """How long to wait for news, and how often to look.

    Parameters
    ----------
    interval
        Seconds between two looks.
    timeout
        Seconds without news after which following ends; None: never.
    stop
        Asked at every look; following ends when it says True and there is no news.
    clock, sleep
        Of the time that passes.
    """

    interval: float = 0.1
    timeout: float | None = None
    stop: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.interval > 0:
            raise ValidationError(f"interval is {self.interval!r}, expected seconds, more than 0")
        if self.timeout is not None and not self.timeout >= 0:
            raise ValidationError(f"timeout is {self.timeout!r}, expected seconds, at least 0")


class _Watch:
    """Waits for commits of one file, wherever it is rotated to."""

    def __init__(self, session: Callable[[], Session], patience: Patience) -> None:
        self._session = session
        self._patience = patience
        self._seen: bytes | None = None
        self._since = patience.clock()

    def found(self) -> None:
        """Note that there was news: the time-out begins anew."""
        self._since = self._patience.clock()

    def wait(self) -> bool:
        """Return True when something was committed, at once the first time; False at the end."""
        patience = self._patience
        while True:
            stopping = patience.stop()  # before the look: what was committed by then is not missed
            state = self._session().state()
            if state != self._seen:
                self._seen = state
                return True
            waited = patience.clock() - self._since
            if stopping or (patience.timeout is not None and waited >= patience.timeout):
                return False
            patience.sleep(patience.interval)


def parts(
    session: Callable[[], Session],
    retrieve: Callable[[str], xr.Dataset],
    record_id: str,
    patience: Patience,
) -> Iterator[xr.Dataset]:
    """Yield what a record has, then what is added to it, until it is finished.

    Raises
    ------
    RecordNotFoundError
        There was no such record all the time, or it was removed.
    """
    watch, seen, was_there = _Watch(session, patience), 0, False
    while watch.wait():
        found = again(lambda: _look(session(), record_id))
        if found is None and not was_there:
            continue
        if found is None:
            raise RecordNotFoundError(
                f"{session().path}: {record_id!r} was removed meanwhile; "
                "ids() lists those there are (neurostore ls FILE)"
            )
        was_there = True
        dim, finished = found
        ds = retrieve(record_id)
        if dim not in ds.sizes:
            yield ds
            return
        if ds.sizes[dim] > seen:
            watch.found()
            first, seen = seen, ds.sizes[dim]
            yield ds.isel({dim: slice(first, seen)})
        if finished:
            return
    if not was_there:
        raise RecordNotFoundError(
            f"{session().path}: no record {record_id!r} has come; ids() lists those there are "
            "(neurostore ls FILE)"
        )


def _look(session: Session, record_id: str) -> tuple[str, bool] | None:
    """Return how a record grows and whether it is finished, as it is in a file that is sealed."""
    found = series.find(session, record_id)
    if found is None:
        return None
    volume, entry = found
    if volume.file_id != session.catalogue.file_id:
        return str(entry.kind.grows), True
    return str(entry.kind.grows), not session.is_recording(entry)


def new_records(
    session: Callable[[], Session],
    retrieve: Callable[[str], xr.Dataset],
    kind: str | None,
    name: str | None,
    patience: Patience,
) -> Iterator[xr.Dataset]:
    """Yield every record that is stored from now on, in the order of storing."""
    kinds = querying.kinds_of(kind)
    serial = session().catalogue.state["serial"]
    return _new_records(session, retrieve, kinds, name, patience, serial)


def _new_records(
    session: Callable[[], Session],
    retrieve: Callable[[str], xr.Dataset],
    kinds: list[Kind],
    name: str | None,
    patience: Patience,
    serial: int,
) -> Iterator[xr.Dataset]:
    watch = _Watch(session, patience)
    while watch.wait():
        fresh = again(partial(_since, session, kinds, name, serial))
        for entry in fresh:
            watch.found()
            serial = entry.serial + 1
            yield retrieve(entry.id)


def _since(
    session: Callable[[], Session], kinds: list[Kind], name: str | None, serial: int
) -> list[Entry]:
    """Return the records whose number in the series is ``serial`` or later."""
    found = []
    for member in series.members(session()):
        held = member.catalogue
        for kind in kinds:
            rows = held.select(kind, name=name)
            fresh = rows[held.tables[kind.name].take(rows)["serial"] >= serial]
            found += [held.entry(kind, int(row)) for row in fresh]
        if any((table.rows["serial"] < serial).any() for table in held.tables.values()):
            break  # older files hold what is older still
    return sorted(found, key=lambda entry: entry.serial)
