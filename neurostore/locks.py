"""Advisory locks beside a data file: one writer, and readers who are kept out of one short moment.

Everything happens on byte ranges of one small file, ``<file>-lock``, that is kept open: the
writer's byte, the byte that readers share and the applying writer takes alone, a gate that lets a
waiting writer pass a stream of readers, and a byte that says who still uses the lock file.
The file itself is the affair of `neurostore.lockfile`. This module knows nothing about HDF5 or
about what is written under the locks, and holding a lock protects only from others who ask too.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal

from neurostore.errors import LockTimeoutError, ReadOnlyError
from neurostore.lockfile import (
    BUSY,
    FIRST,
    UNSUPPORTED,
    LockFile,
    Pause,
    attach,
    detach,
    lock_range,
)
from neurostore.names import beside
from neurostore.places import Url

if sys.platform != "win32":
    import fcntl

__all__ = ["FileLocks", "hold_data_lock", "lock_path"]

_WRITER: Final = FIRST
_GATE: Final = FIRST + 1
_APPLY: Final = FIRST + 2
#: Ends the holder's line where it keeps readers out for good.
_ALONE: Final = b" alone"


def lock_path(path: str | os.PathLike[str]) -> str:
    """Path of the lock file that belongs to the data file ``path``, links in it resolved.

    Examples
    --------
    >>> lock_path("/data/run.h5").endswith("run.h5-lock")
    True
    """
    return beside(os.path.realpath(os.fspath(path)), "-lock")


def hold_data_lock(
    fd: int, path: str | os.PathLike[str], *, alone: bool = False, timeout: float = 0.0
) -> None:
    """Take HDF5's own lock on the open data file ``fd``; it falls when ``fd`` is closed.

    With a shared one other HDF5 programs can read the file but not open it for writing; with
    ``alone`` they cannot open it at all.

    Raises
    ------
    LockTimeoutError
        Another HDF5 program has the file open for writing, or at all.
    """
    if sys.platform == "win32":
        return
    pause = Pause(timeout)
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return  # HDF5 itself passes over file systems without locks
            if error.errno not in BUSY:
                raise
            if pause.wait():
                continue
            raise LockTimeoutError(
                f"{os.fspath(path)}: another HDF5 program, or a neurostore of another process, "
                f"has the file open{'' if alone else ' for writing'}; expected none; close it "
                "there first"
            ) from error
        return


class FileLocks:
    """The advisory locks of one data file.

    Objects for the same file, in one process or in many, exclude each other. A lock that is held
    is not taken again by the thread that holds it.

    Parameters
    ----------
    path
        The data file; the locks are kept in ``<path>-lock``.
    patience
        Seconds after which waiting in `reading` and `applying` is given up.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     locks = FileLocks(pathlib.Path(folder) / "run.h5")
    ...     with locks.writer(timeout=1.0), locks.applying():
    ...         print(locks.holds_writer)
    ...     locks.close()
    True
    """

    def __init__(self, path: str | os.PathLike[str], *, patience: float = 60.0) -> None:
        self._path = lock_path(path)
        self._data_path = os.fspath(path)
        self._patience = patience
        #: Nobody locks a remote file, and nobody writes to it.
        self._shared = None if isinstance(path, Url) else attach(self._path, self._data_path)
        self._writing: LockFile | None = None
        self._sole: LockFile | None = None
        self._reading = _Section(self, "shared")
        self._applying = _Section(self, "alone")
        self._whoami = (-1, b"")

    # -- the writer -----------------------------------------------------------------------------

    def writer(self, timeout: float) -> _Writer:
        """Context manager: the only writer of the file, across threads and processes.

        Parameters
        ----------
        timeout
            Seconds to wait for another writer.

        Raises
        ------
        LockTimeoutError
            Somebody else held it all the time; the message names who.
        ReadOnlyError
            No lock file can be written beside the data file.
        """
        return _Writer(self, timeout)

    def acquire_writer(self, timeout: float) -> None:
        """Become the writer; `release_writer` ends it. Parameters and errors as for `writer`."""
        if self.alone:
            return
        shared = self._writable()
        pause = Pause(timeout)
        if not shared.writer.acquire(blocking=False) and not shared.writer.acquire(
            timeout=min(max(timeout, 0), threading.TIMEOUT_MAX)
        ):
            raise self._timeout_error(shared, timeout)
        try:
            while not lock_range(shared.fd, "alone", _WRITER, 1):
                if not pause.wait():
                    raise self._timeout_error(shared, timeout)
            _write_at_start(shared.fd, self._holder())
        except BaseException:
            if shared.fd >= 0:
                lock_range(shared.fd, "free", _WRITER, 1)
            shared.writer.release()
            raise
        self._writing = shared

    def release_writer(self) -> None:
        """End `acquire_writer`; without effect where this object is not the writer, or `alone`."""
        if self.alone:
            return
        shared, self._writing = self._writing, None
        if shared is None or shared.fd < 0:  # a forked child has nothing to release
            return
        lock_range(shared.fd, "free", _WRITER, 1)
        shared.writer.release()

    @property
    def holds_writer(self) -> bool:
        """Whether this object is the writer now."""
        return self._writing is not None and self._writing.fd >= 0

    def _holder(self, how: bytes = b"") -> bytes:
        pid = os.getpid()
        if self._whoami[0] != pid:
            self._whoami = (pid, f"{pid} {socket.gethostname()} ".encode())
        return self._whoami[1] + b"%.3f%s\n" % (time.time(), how)

    # -- nobody else at all -----------------------------------------------------------------------

    @property
    def alone(self) -> bool:
        """Whether this object keeps everybody else out, since `hold_alone`."""
        return self._sole is not None and self._sole.fd >= 0

    def hold_alone(self, timeout: float) -> None:
        """Keep out other writers and readers until `let_in`; errors as for `writer`.

        All other locks of this object are had without asking meanwhile.
        """
        self.acquire_writer(timeout)
        try:
            shared = self._enter_alone()
            _write_at_start(shared.fd, self._holder(_ALONE))
        except BaseException:
            self.release_writer()
            raise
        self._sole = shared

    def let_in(self) -> None:
        """End `hold_alone`; without effect where there was none."""
        shared, self._sole = self._sole, None
        if shared is not None and shared.fd >= 0:
            _write_at_start(shared.fd, self._holder())
            self._leave_alone(shared)
            self.release_writer()

    def _timeout_error(self, shared: LockFile, timeout: float) -> LockTimeoutError:
        return LockTimeoutError(
            f"{self._data_path}: still held for writing by {_named_holder(shared.fd)} after "
            f"{timeout:g} s; close the store there, or wait longer with lock_timeout= (--wait)"
        )

    def _writable(self) -> LockFile:
        shared = self._live()
        if shared is None or not shared.writable:
            raise ReadOnlyError(
                f"{self._path}: no lock file can be written beside the data file; expected a "
                'directory with write permission; open the store with mode="r"'
            )
        return shared

    def _live(self) -> LockFile | None:
        # None there, forked, or closed: somebody may have made one since.
        if self._shared is None or self._shared.fd < 0:
            self._shared = attach(self._path, self._data_path)
        return self._shared

    # -- readers, and the moment that excludes them ------------------------------------------------

    def reading(self) -> _Section:
        """Context manager shared by readers: nobody applies a commit meanwhile. Keep it short."""
        return self._reading

    def applying(self) -> _Section:
        """Context manager of the writer who changes committed bytes: no reader is inside."""
        return self._applying

    def _enter_shared(self) -> LockFile | None:
        if self.alone:
            return None
        shared = self._live()
        if shared is None:
            return None
        pause = Pause(self._patience)
        with shared.turn:
            if not shared.turn.wait_for(lambda: not shared.applying, self._patience):
                raise self._crowded("an applying writer")
            if shared.readers == 0:
                # Both bytes at once, then the gate is opened again for whoever comes next.
                while not lock_range(shared.fd, "shared", _GATE, 2):
                    if _read_start(shared.fd).endswith(_ALONE):
                        raise self._kept_out(shared)
                    if not pause.wait():
                        raise self._crowded("an applying writer")
                lock_range(shared.fd, "free", _GATE, 1)
            shared.readers += 1
        return shared

    def _leave_shared(self, shared: LockFile) -> None:
        with shared.turn:
            shared.readers -= 1
            if shared.readers == 0:
                if shared.fd >= 0:
                    lock_range(shared.fd, "free", _APPLY, 1)
                shared.turn.notify_all()

    def _kept_out(self, shared: LockFile) -> LockTimeoutError:
        return LockTimeoutError(
            f"{self._data_path}: held for exclusive use by {_named_holder(shared.fd)}; close the "
            "store there, or open it there without exclusive=True (enable_swmr=False)"
        )

    def _enter_alone(self) -> LockFile:
        shared = self._writable()
        pause = Pause(self._patience)
        with shared.turn:
            if not shared.turn.wait_for(lambda: not shared.applying, self._patience):
                raise self._crowded("another writer's commit")
            shared.applying = True  # from here on no new reader of this process comes in
            try:
                if not shared.turn.wait_for(lambda: shared.readers == 0, pause.left()):
                    raise self._crowded("readers")
                for byte in (_GATE, _APPLY):
                    while not lock_range(shared.fd, "alone", byte, 1):
                        if not pause.wait():
                            raise self._crowded("readers of another process")
            except BaseException:
                self._end_alone(shared)
                raise
        return shared

    def _leave_alone(self, shared: LockFile) -> None:
        with shared.turn:
            self._end_alone(shared)

    def _end_alone(self, shared: LockFile) -> None:
        shared.applying = False
        if shared.fd >= 0:
            lock_range(shared.fd, "free", _GATE, 2)
        shared.turn.notify_all()

    def _crowded(self, who: str) -> LockTimeoutError:
        return LockTimeoutError(
            f"{self._data_path}: {who} did not let go within {self._patience:g} s; "
            "look for a suspended process that has the store open"
        )

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of everything, and remove the lock file if nobody uses it any more."""
        self.let_in()
        self.release_writer()
        shared, self._shared = self._shared, None
        if shared is not None and shared.fd >= 0:
            detach(shared)


class _Writer:
    """What `FileLocks.writer` returns."""

    def __init__(self, locks: FileLocks, timeout: float) -> None:
        self._locks = locks
        self._timeout = timeout

    def __enter__(self) -> FileLocks:
        self._locks.acquire_writer(self._timeout)
        return self._locks

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._locks.release_writer()


class _Section:
    """What `FileLocks.reading` and `FileLocks.applying` return; made once, entered often."""

    def __init__(self, locks: FileLocks, kind: Literal["shared", "alone"]) -> None:
        self._locks = locks
        self._alone = kind == "alone"
        self._entered = threading.local()

    def __enter__(self) -> None:
        locks = self._locks
        if locks.alone:
            self._entered.by = None
        else:
            self._entered.by = locks._enter_alone() if self._alone else locks._enter_shared()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shared: LockFile | None = self._entered.by
        if shared is None:
            return
        if self._alone:
            self._locks._leave_alone(shared)
        else:
            self._locks._leave_shared(shared)


def _write_at_start(fd: int, text: bytes) -> None:
    if sys.platform == "win32":
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, text)
    else:
        os.pwrite(fd, text, 0)


def _read_start(fd: int) -> bytes:
    """Return the first line of the lock file."""
    if sys.platform == "win32":
        os.lseek(fd, 0, os.SEEK_SET)
        return os.read(fd, 512).split(b"\n")[0]
    return os.pread(fd, 512, 0).split(b"\n")[0]


def _named_holder(fd: int) -> str:
    """Who wrote its name into the lock file last, in words."""
    try:
        pid, host, since = _read_start(fd).removesuffix(_ALONE).decode().split(" ")
        when = datetime.fromtimestamp(float(since), UTC).isoformat(timespec="seconds")
    except ValueError:
        return "an unnamed process"
    return f"process {int(pid)} on {host} since {when}"
