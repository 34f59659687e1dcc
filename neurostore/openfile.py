"""One open file: who may touch it when, and the one place that commits.

An `OpenFile` gives its handles out by turns.  Writing goes through the crash-safe file under the
writer lock; reading goes through the same handle while it is current, or else through HDF5's native
driver under the reading lock.  What is stored, and as what, is decided elsewhere.
"""

from __future__ import annotations

import errno
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from neurostore import journal, osio, overlay, tree
from neurostore.catalogue import Catalogue
from neurostore.errors import (
    ClosedError,
    HDF5StorageError,
    LockTimeoutError,
    MovedError,
    ReadOnlyError,
    SealedError,
    StoreError,
    WriteError,
)
from neurostore.handles import Handles
from neurostore.ledger import Ledger
from neurostore.locks import hold_data_lock
from neurostore.osio import IO, Durability
from neurostore.places import Url
from neurostore.registry import Key, Registry, key_of
from neurostore.tree import H5File

__all__ = ["OpenFile", "drop_inherited"]

File = TypeVar("File", bound="OpenFile")

_of_the_parent: list[OpenFile] = []

#: Seconds that a reader waits for a commit to be applied.
_PATIENCE = 30.0
#: Seconds that a reader waits for another thread before it reads through a handle of its own.
_TURN = 0.05
#: Seconds that the end of the interpreter waits for a thread.
_LAST_TURN = 2.0
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Spoiling(Generic[File]):
    """See `OpenFile.spoiling`; a generator would take a twentieth of storing a small record."""

    def __init__(self, file: File) -> None:
        self._file = file

    def __enter__(self) -> File:
        self._file._depth += 1
        return self._file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file._depth -= 1
        if error is not None:
            self._file._spoiled = error


class OpenFile(Handles):
    """One open file of this process; parameters as for `Handles`."""

    def __init__(self, path: Path, key: Key, registry: Registry[Any], io: IO | None = None) -> None:
        super().__init__(path, key, registry, io)
        #: Threads wait here that would write, or close, while another makes the file anew.
        self._turn = threading.Condition(self.mutex)
        self._guarded = False
        #: Stores that hold this file; those that nobody holds any more leave by themselves.
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Bytes that reading one variable may take, for what is opened from here on.
        self.max_variable_bytes: int | None = None
        #: What a thread is reading through at the moment, under the mutex.
        self._within: H5File | None = None
        self._spoiled: BaseException | None = None
        #: What others took for stored while a batch was open, and have to take back.
        self._undo: list[Callable[[], object]] = []
        #: What others have to know once it is stored.
        self._told: list[Callable[[], object]] = []
        #: Serials below it were given, also in batches that came to nothing.
        self._given = 0
        #: The thread whose batch is open.
        self._batch_of = 0
        self._replacing = False
        #: Stores that keep everybody else out.
        self._owners: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Whether an unfinished commit is to be read through, as it cannot be finished.
        self._may_not_recover = False

    # -- reading ---------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[H5File]:
        """Give the file as of the last commit, or as this thread's open batch sees it.

        Nothing that is handed out may be kept for later look-ups of names.
        """
        with self.mutex:
            self._check_open()
            if self._depth:
                assert self._writer is not None
                yield self._writer
                self._check_reads()
                return
            if self.is_remote:
                handle = self._current_reader()
                assert self._remote is not None
                with self._remote.checked():
                    yield handle
                return
            within = self._within
            if within is not None and (within is self._reader or within is self._writer):
                yield within  # this thread is reading already, so nothing changes meanwhile
                return
            if self._locks.alone and not self._replacing:
                self._open_writer("power")
            deadline = time.monotonic() + _PATIENCE
            while True:
                with self._locks.reading():
                    self._check_in_place()
                    if self._writer is not None and self._is_current():
                        handle = self._writer
                    else:
                        handle = self._current_reader() if self._is_readable() else None
                    if handle is not None:
                        self._within = handle
                        try:
                            yield handle
                        finally:
                            self._within = None
                        if handle is self._writer:
                            self._check_reads()
                        return
                self._finish_commit(deadline)

    @property
    def is_remote(self) -> bool:
        """Whether it is read from a server; then nobody locks it and nobody writes."""
        return isinstance(self.path, Url)

    def _check_in_place(self) -> None:
        """Raise where another file has the path now, under a lock that keeps it there.

        After a rotation the file lives on under another name, with locks of its own: what is read
        of it under these could be torn.
        """
        if key_of(self.path) != self.key:
            raise MovedError(
                f"{self.path}: another file took its place while it was opened; asked again, the "
                "store answers from that one"
            )

    def _is_readable(self) -> bool:
        """Tell whether no commit is left half-way, under the reading lock."""
        if self._reader is not None and self._state() == self._reader_state:
            return True
        self._close_reader()
        if not journal.pending(self.path, io=self.io):
            return True
        if self._may_not_recover:
            # Made and opened under one lock: nobody's next commit comes in between.
            self._overlay = overlay.Overlay(self.path, io=self.io)
        return self._may_not_recover

    @property
    def catalogue(self) -> Catalogue:
        """The time table, brought up to date."""
        with self.mutex:
            held = self._catalogue
            if self._depth and held is not None and self._catalogue_of is self._writer:
                return held  # of this thread's open batch
            if self._is_behind():
                with self._locks.reading():
                    self._check_in_place()
                    found = self._followed()
                if found is not None:
                    return found
            with self.reading() as h5file:
                return self._catalogue_for(h5file)

    def _is_behind(self) -> bool:
        """Tell whether others committed since this process opened its handle for reading."""
        self._check_open()
        mine = self._depth or self._within is not None or self._writer is not None
        if mine or self._overlay is not None or self._locks.alone or self.is_remote:
            return False
        return self._reader is not None and self._state() != self._reader_state

    def _finish_commit(self, deadline: float) -> None:
        """Apply what a dead writer left; read through it where the file cannot be written.

        A living writer is about to apply it: that takes a moment.
        """
        try:
            self._locks.acquire_writer(0.05)
        except LockTimeoutError:
            if time.monotonic() > deadline:
                raise
            return
        except ReadOnlyError:
            self._may_not_recover = True
            return
        try:
            journal.recover(self.path, applying=self._locks.applying, settle=True, io=self.io)
        except WriteError as error:
            if error.errno not in _FORBIDDEN:
                raise
            self._may_not_recover = True
        finally:
            self._locks.release_writer()

    # -- writing ---------------------------------------------------------------------------

    @contextmanager
    def writing(
        self, *, timeout: float, durability: Durability, sealed: bool = False
    ) -> Iterator[Catalogue]:
        """Hold the file for writing; leaving without an exception is one commit.

        Calls may be nested: the outermost commits.  After an exception nothing of it is left,
        neither in the file nor in memory.

        Raises
        ------
        SealedError
            The file was rotated and takes no records; ``sealed=True`` is for whoever removes some.
        """
        with self._at_turn(timeout):
            if self._depth:
                with self.spoiling():
                    assert self._writer is not None
                    yield self._catalogue_for(self._writer)
                return
            self._await_turn(timeout)
            with self._as_writer(timeout):
                self._open_writer(durability)
                self._depth = 1
                self._batch_of = threading.get_ident()
                self._spoiled = None
                assert self._file is not None
                file = self._file
                file.begin()
                try:
                    assert self._writer is not None
                    held = self._catalogue_for(self._writer)
                    if held.ledger.seal is not None and not sealed:
                        raise self.sealed(held.ledger)
                    self._distrust_if_touched(held)
                    held.state["serial"] = max(held.state["serial"], self._given)
                    yield held
                    if self._spoiled is not None:
                        raise StoreError(
                            f"{self.path}: something failed inside the batch, so nothing of the "
                            f"batch was stored; store the rest in a new one: {self._spoiled}"
                        ) from self._spoiled
                    self.commit()
                    self._tell_stored()
                except BaseException:
                    if file.is_decided:  # interrupted afterwards: what was stored is stored
                        self._drop_writer()
                        self._tell_stored()
                        raise
                    if self._catalogue is not None:
                        self._given = max(self._given, self._catalogue.state["serial"])
                    self._roll_back()
                    for undo in reversed(self._undo):
                        undo()
                    raise
                finally:
                    self._undo.clear()
                    self._told.clear()
                    self._depth = self._batch_of = 0

    @contextmanager
    def _as_writer(self, timeout: float) -> Iterator[None]:
        """Hold the writer lock; inside :meth:`exclusive` it is held already."""
        if self._locks.holds_writer:
            yield
            return
        self._locks.acquire_writer(timeout)
        try:
            self._check_in_place()
            yield
        finally:
            self._locks.release_writer()

    @contextmanager
    def _at_turn(self, timeout: float) -> Iterator[None]:
        """Hold the file among the threads of this process, to write."""
        if not self.mutex.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX)):
            raise LockTimeoutError(
                f"{self.path}: another thread of this process has a batch open after {timeout:g} "
                "s; end it there, or wait longer with lock_timeout= (--wait)"
            )
        try:
            self._check_open()
            yield
        finally:
            self._let_in_if_unowned()
            self.mutex.release()

    @property
    def in_batch(self) -> bool:
        """Whether this thread has a batch open."""
        return self._batch_of == threading.get_ident()

    def beside_batch(self) -> Self:
        """Return what this thread reads through: this, or a handle beside another's batch.

        A batch may last for hours; what it has stored so far is its own affair until its end.
        """
        if not self._batch_of or self.in_batch or self._locks.alone:
            return self
        if self.mutex.acquire(timeout=_TURN):
            self.mutex.release()
            return self
        with self._registry.guard:
            if self._aside is None or self._aside.closed:
                self._aside = type(self)(self.path, self.key, self._registry, self.io)
            beside: Self = self._aside
            return beside

    def spoiling(self) -> Spoiling[Self]:
        """Remember a failure in mid-write: half a record must not be committed with the rest."""
        return Spoiling(self)

    def sealed(self, held: Ledger) -> SealedError:
        """Make the error that says where to go on from a file that was rotated."""
        assert held.seal is not None
        return SealedError(
            f"{self.path}: is file {held.position + 1} of the series of {held.seal.head}, closed "
            f"off when that was rotated; expected one that goes on; open {held.seal.head} to "
            "store, this one to read"
        )

    @contextmanager
    def exclusive(self, *, timeout: float, durability: Durability) -> Iterator[None]:
        """Hold the writer lock with no handle open, to put another file in this one's place.

        Commits inside are ended by :meth:`settle`.
        """
        with self._at_turn(timeout):
            self._take_alone(timeout, durability)
            try:
                yield
            except (OSError, RuntimeError) as error:  # HDF5 raises either when a disk is full
                if isinstance(error, HDF5StorageError):
                    raise
                raise osio.refused(
                    str(self.path), "putting a new file in its place", error, "the old one stands"
                ) from error
            finally:
                self._replacing = False
                self._locks.release_writer()

    @contextmanager
    def undisturbed(
        self, *, timeout: float, durability: Durability, adopting: bool = True
    ) -> Iterator[None]:
        """Do as :meth:`exclusive`, for long: threads of this process go on reading meanwhile.

        Without ``adopting``, a file that has no sound catalogue is not given one first.
        """
        with self._at_turn(timeout):
            self._take_alone(timeout, durability, adopting)
            self._guarded = True
        try:
            yield
        finally:
            with self.mutex:
                self._guarded = self._replacing = False
                self._locks.release_writer()
                self._turn.notify_all()

    def _take_alone(self, timeout: float, durability: Durability, adopting: bool = True) -> None:
        if self._depth:
            raise ClosedError(f"{self.path}: not inside a batch; end the batch first")
        self._await_turn(timeout)
        self._locks.acquire_writer(timeout)
        try:
            self._check_in_place()
            if adopting or self._writer is not None:
                self._open_writer(durability)
            else:
                self._check_writable()
            self.settle()
            self._replacing = True
        except BaseException:
            self._locks.release_writer()
            raise

    def _await_turn(self, timeout: float) -> None:
        """Wait until no other thread makes the file anew."""
        if not self._turn.wait_for(lambda: not self._guarded, timeout):
            raise LockTimeoutError(
                f"{self.path}: another thread of this process was still compacting it after "
                f"{timeout:g} s; wait longer with lock_timeout= (--wait)"
            )

    def if_undone(self, undo: Callable[[], object]) -> None:
        """Have a function called if the batch of this thread comes to nothing, the last first."""
        assert self._batch_of
        self._undo.append(undo)

    def when_stored(self, tell: Callable[[], object]) -> None:
        """Have a function called, once or twice, when the commit stands, interrupted or not."""
        assert self._batch_of
        self._told.append(tell)

    def _tell_stored(self) -> None:
        for tell in self._told:
            tell()

    @property
    def is_outermost(self) -> bool:
        """Whether the end of this :meth:`writing` is the commit; asked inside it."""
        return self._depth == 1

    def hold_alone(self, user: object, *, timeout: float, durability: Durability) -> None:
        """Keep everybody outside this process out until ``user`` lets go, or is no more."""
        if user in self._owners:
            return
        with self._at_turn(timeout):
            try:
                if not self._locks.alone:
                    self._locks.hold_alone(timeout)
                self._open_writer(durability)
                assert self._file is not None
                hold_data_lock(self._file.fileno(), self.path, alone=True, timeout=timeout)
                self._owners.add(user)
            finally:
                if not self._owners:
                    self._let_in()
        weakref.finalize(user, self._let_in_if_unowned).atexit = False

    def let_go(self, user: object) -> None:
        """End :meth:`hold_alone`; without effect where there was none."""
        self._owners.discard(user)
        self._let_in_if_unowned()

    def _let_in_if_unowned(self) -> None:
        """Let others in where nobody owns the file any more; in mid-use, its end does it."""
        if self._locks.alone and self.mutex.acquire(blocking=False):
            try:
                if not self._depth and not list(self._owners):
                    self._let_in()
            finally:
                self.mutex.release()

    def _let_in(self) -> None:
        if self._file is not None and self._locks.alone:
            hold_data_lock(self._file.fileno(), self.path)
        self._locks.let_in()

    def write_ledger(self, ledger: Ledger) -> None:
        """Note the file's place in its series, inside :meth:`writing`."""
        assert self._writer is not None
        held = self.catalogue
        held.ledger = ledger
        held.state["rewritten"] += 1  # readers take in what was added, unless more has changed
        tree.write_ledger(self._writer, ledger)

    # -- the end ---------------------------------------------------------------------------

    def check_idle(self) -> None:
        """Raise inside a batch of this thread; wait for the end of another's."""
        with self.mutex:
            if self._depth:
                raise StoreError(f"{self.path}: closed inside a batch; end the batch first")

    def close(self) -> None:
        """Settle the last commit and let the file go; closing twice is fine."""
        with self.mutex:
            if self.closed:
                return
            self.check_idle()
            self._turn.wait_for(lambda: not self._guarded)
            self._end()

    def _end(self) -> None:
        self.closed = True
        with ExitStack() as last:  # all of it, whatever fails
            last.callback(self._registry.forget, self)
            last.callback(self._locks.close)
            last.callback(self._close_state)
            last.callback(self._leave_catalogue)
            if self._stencils is not None:
                last.callback(self._stencils.leave)
            if self._aside is not None:
                last.callback(self._aside.close)
            last.callback(self._close_writer)
            last.callback(self._close_reader)

    def close_at_exit(self) -> None:
        """Close whatever is going on: a batch that is still open is rolled back.

        Where another thread is at work, one that the interpreter does not wait for, nothing more
        is written, and HDF5 is closed under its hands: a file object that is still open when the
        interpreter is gone would crash it.
        """
        if not self._last_turn():
            if self._file is not None:
                self._file.abandon()
            for handle in (self._writer, self._reader):
                if handle is not None:
                    handle.close()
            return
        try:
            if self._depth:
                self._roll_back()
                self._depth = self._batch_of = 0
                self._locks.release_writer()
            self.close()
        finally:
            self.mutex.release()

    def _last_turn(self) -> bool:
        if not self.mutex.acquire(timeout=_LAST_TURN):
            return False
        if self._turn.wait_for(lambda: not self._guarded, _LAST_TURN):
            return True
        self.mutex.release()
        return False

    def disown(self) -> None:
        """Leave the file to the parent, in a forked child: write nothing, hold no lock of it."""
        self.mutex = threading.RLock()
        self.closed = True
        self._aside, self._batch_of = None, 0
        if self._file is not None:
            self._file.abandon()
            self._file.release()
        self._close_state()
        # HDF5 may free its lock when it closes a file, and the lock is the parent's, too.
        _of_the_parent.append(self)

    def _drop_inherited(self) -> None:
        """Close what HDF5 has open through Python: nothing is written, and no lock is HDF5's."""
        handles = [self._writer, self._reader if self._overlay is not None else None]
        self._writer = None
        for handle in handles:
            if handle is not None:
                with suppress(OSError, RuntimeError):  # its descriptor is closed
                    handle.close()


def drop_inherited() -> None:
    """At the end of a forked child, close those files of its parent that would crash it.

    HDF5 closes what is open when it ends, after the interpreter, whose file objects are gone then.
    """
    for file in _of_the_parent:
        file._drop_inherited()
