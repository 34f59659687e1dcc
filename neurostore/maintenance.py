"""Cleanup, compaction when it pays, and rotation in one call, and a thread that calls it.

Safe to run from cron beside a running simulation: every step takes the writer lock for itself and
is a commit of its own, and where the simulation does not let go in time nothing is lost.  What a
step does is decided elsewhere; this module knows a store by a few methods.
"""

from __future__ import annotations

import logging
import threading
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, Self

from neurostore.errors import HDF5StorageError, ValidationError
from neurostore.progress import Progress
from neurostore.retention import Keep, keep_rules
from neurostore.times import TimeLike

__all__ = ["Maintained", "MaintenanceThread", "Policy", "maintain"]

_log = logging.getLogger(__name__)


class Maintainable(Protocol):
    """What a store has to offer to be maintained."""

    path: Path

    def cleanup(
        self,
        *,
        keep: Any,
        now: TimeLike | None,
        model_time: bool,
        dry_run: bool,
    ) -> list[str]:
        """Remove records by rules; return their ids."""

    def compact(self, *, progress: Progress = None) -> int:
        """Win back space; return how much."""

    def rotate(self) -> Path | None:
        """Go on in a new file; return the name of the old one."""

    def dead_share(self) -> float:
        """Return the share of the file that compaction would win."""

    def is_empty(self) -> bool:
        """Tell whether nothing was stored in the newest file yet."""


@dataclass(frozen=True)
class Policy:
    """What maintenance is to do; plain data, also from a TOML file.

    Parameters
    ----------
    keep
        Rules of retention; without any, nothing is removed.
    model_time
        Whether timestamps before 1980 have an age in days, too.
    compact_above
        Share of the file, 0 to 1, from which on compaction pays; None: never compact.
    compact_bytes
        Bytes that compaction has to win, too.
    rotate_above
        Bytes of the file from which on it is rotated, if it has any records; None: never.

    Examples
    --------
    >>> Policy.from_toml('''
    ... compact_above = 0.25
    ... [[keep]]
    ... kind = "network_snapshot"
    ... latest = 10
    ... ''').keep[0].latest
    10
    """

    keep: tuple[Keep, ...] = ()
    model_time: bool = False
    compact_above: float | None = 0.25
    compact_bytes: int = 1024**2
    rotate_above: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.compact_above is not None and not 0 <= self.compact_above <= 1:
            problems.append(f"compact_above is {self.compact_above!r}, expected 0 to 1 or None")
        if self.compact_bytes < 0:
            problems.append(f"compact_bytes is {self.compact_bytes!r}, expected at least 0")
        if self.rotate_above is not None and self.rotate_above < 1:
            problems.append(f"rotate_above is {self.rotate_above!r}, expected a number of bytes")
        if problems:
            raise ValidationError.of("Policy", problems)
        object.__setattr__(self, "keep", keep_rules(self.keep))

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Return the policy that a TOML text says; unknown keys are refused."""
        try:
            found = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValidationError(
                f"the policy is no TOML, expected a table for each rule: {error}"
            ) from None
        return cls.of(found)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """Return the policy that a mapping says."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(found) - known):
            raise ValidationError(
                f"the policy has {', '.join(map(repr, unknown))}, expected some of "
                f"{', '.join(sorted(known))}"
            )
        wrong = [
            f"{key} is {found[key]!r}, expected {what}"
            for key, kinds, what in _EXPECTED
            if key in found and (not isinstance(found[key], kinds) or _is_odd_bool(found, key))
        ]
        if wrong:
            raise ValidationError.of("the policy", wrong)
        return cls(**{**found, "keep": keep_rules(found.get("keep", ()))})


_EXPECTED: tuple[tuple[str, Any, str], ...] = (
    ("keep", list | tuple, "tables [[keep]]"),
    ("model_time", bool, "true or false"),
    ("compact_above", int | float, "a share from 0 to 1"),
    ("compact_bytes", int, "a number of bytes"),
    ("rotate_above", int, "a number of bytes"),
)


def _is_odd_bool(found: Mapping[str, Any], key: str) -> bool:
    return isinstance(found[key], bool) and key != "model_time"


@dataclass(frozen=True)
class Maintained:
    """What one run of maintenance did, or in a dry run would do.

    Parameters
    ----------
    removed
        Ids of the records that went.
    compacted
        Bytes won back; None: the file was not compacted.
    rotated
        The name that the file has now; None: it was not rotated.
    """

    removed: list[str] = field(default_factory=list)
    compacted: int | None = None
    rotated: Path | None = None


def maintain(
    store: Maintainable,
    policy: Policy,
    *,
    now: TimeLike | None = None,
    dry_run: bool = False,
    progress: Progress = None,
) -> Maintained:
    """Do what a policy says, step by step; each step is whole or not at all.

    Raises
    ------
    LockTimeoutError
        Another process wrote all the time; the steps before stand.
    """
    removed: list[str] = []
    if policy.keep:
        removed = store.cleanup(
            keep=policy.keep, now=now, model_time=policy.model_time, dry_run=dry_run
        )
    if dry_run:
        return Maintained(removed)
    won = store.compact(progress=progress) if _pays(store, policy) else None
    rotated = None
    limit = policy.rotate_above
    if limit is not None and not store.is_empty() and store.path.stat().st_size > limit:
        rotated = store.rotate()
    return Maintained(removed, won, rotated)


def _pays(store: Maintainable, policy: Policy) -> bool:
    if policy.compact_above is None:
        return False
    share = store.dead_share()
    dead = share * store.path.stat().st_size
    return share > 0 and share >= policy.compact_above and dead >= policy.compact_bytes


class MaintenanceThread(threading.Thread):
    """Maintains a store again and again, beside whatever else the process does with it.

    A run that fails is logged, and the next one tries again.  As a context manager it starts, and
    in the end it is stopped and waited for.

    Parameters
    ----------
    store
        The store; it has to stay open.
    policy
        What is to be done.
    every
        Seconds from the end of a run to the next; the first starts at once.
    report
        Called with what each run did.
    wait
        Waits for some seconds, or less if it is told to stop, and returns whether it was; by
        default that of the thread's own event, which :meth:`stop` sets.
    now
        The clock that ages are counted from, in seconds since 1970; the system's if it is None.

    Examples
    --------
    >>> import neurostore
    >>> store = neurostore.open(tmp / "run.h5")
    >>> policy = neurostore.Policy(rotate_above=9 * 1000**3)
    >>> with neurostore.MaintenanceThread(store, policy, every=3600):
    ...     pass  # the simulation
    """

    def __init__(
        self,
        store: Maintainable,
        policy: Policy,
        *,
        every: float = 3600.0,
        report: Callable[[Maintained], object] | None = None,
        wait: Callable[[float], bool] | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        if not every > 0:
            raise ValidationError(f"every is {every!r}, expected a number of seconds above 0")
        super().__init__(name=f"neurostore maintenance of {store.path.name}", daemon=True)
        self._store = store
        self._policy = policy
        self._every = every
        self._report = report
        self._stop_event = threading.Event()
        self._wait = wait or self._stop_event.wait
        self._now = now
        #: The error of the last run, or None if it went well.
        self.error: Exception | None = None

    def run(self) -> None:
        """Maintain until :meth:`stop`; not to be called from outside."""
        while True:
            try:
                now = self._now() if self._now is not None else None
                done = maintain(self._store, self._policy, now=now)
            except (HDF5StorageError, OSError) as error:
                self.error = error
                _log.warning("%s: maintenance: %s", self._store.path, error)
            else:
                self.error = None
                if self._report is not None:
                    self._report(done)
            if self._wait(self._every) or self._stop_event.is_set():
                return

    def stop(self) -> None:
        """End after the run that is under way."""
        self._stop_event.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()
