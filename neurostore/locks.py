"""Advisory locks beside a data file: one writer, and readers who are kept out of one short moment.

Everything happens on byte ranges of one small file, ``<file>-lock``, that is kept open: the
writer's byte, the byte that readers share and the applying writer takes alone, a gate that lets a
waiting writer pass a stream of readers, and a byte that says who still uses the lock file.
On Linux these are open-file-description locks, elsewhere the platform's record locks; either way
the locks of a process that dies fall with it. This module knows nothing about HDF5 or about what
is written under the locks, and holding a lock protects only from others who ask for it too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal

from neurostore.errors import LockTimeoutError, ReadOnlyError, StoreError, StoreNotFoundError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FileLocks", "hold_data_lock", "lock_path"]

# Far behind the holder's name that stands at the start of the lock file: Windows refuses to read
# bytes that another process has locked.
_WRITER: Final = 1 << 30
_GATE: Final = _WRITER + 1
_APPLY: Final = _WRITER + 2
_PRESENT: Final = _WRITER + 3
_BUSY: Final = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})
_NO_LOCK_FILE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})

_Kind = Literal["shared", "alone", "free"]

if sys.platform == "win32":

    def _lock_range(fd: int, kind: _Kind, start: int, length: int) -> bool:
        # Windows has no shared record locks in the C runtime: readers exclude each other.
        os.lseek(fd, start, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_UNLCK if kind == "free" else msvcrt.LK_NBLCK, length)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

else:
    _TYPES: Final[dict[_Kind, int]] = {
        "shared": fcntl.F_RDLCK,
        "alone": fcntl.F_WRLCK,
        "free": fcntl.F_UNLCK,
    }
    # Record locks of the older kind belong to the process and fall when any descriptor of the
    # file is closed; that is why a process keeps one descriptor per lock file (`_LockFile`).
    _SETLK: Final[int] = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)
    _FLOCK: Final = struct.Struct("hhqqi4x")

    def _lock_range(fd: int, kind: _Kind, start: int, length: int) -> bool:
        try:
            if sys.platform == "linux":
                fcntl.fcntl(fd, _SETLK, _FLOCK.pack(_TYPES[kind], os.SEEK_SET, start, length, 0))
            else:
                how = {"shared": fcntl.LOCK_SH, "alone": fcntl.LOCK_EX, "free": fcntl.LOCK_UN}
                fcntl.lockf(fd, how[kind] | (fcntl.LOCK_NB if kind != "free" else 0), length, start)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True


def lock_path(path: str | os.PathLike[str]) -> str:
    """Path of the lock file that belongs to the data file ``path``, links in it resolved.

    Examples
    --------
    >>> lock_path("/data/run.h5").endswith("run.h5-lock")
    True
    """
    return os.path.realpath(os.fspath(path)) + "-lock"


def hold_data_lock(fd: int, path: str | os.PathLike[str]) -> None:
    """Take HDF5's own shared lock on the open data file ``fd``; it falls when ``fd`` is closed.

    With it other HDF5 programs can read the file but not open it for writing.

    Raises
    ------
    LockTimeoutError
        Another HDF5 program has the file open for writing.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return  # HDF5 itself passes over file systems without locks
        if error.errno not in _BUSY:
            raise
        raise LockTimeoutError(
            f"{os.fspath(path)}: another HDF5 program has the file open for writing; "
            "expected none; close it there first"
        ) from error


class _LockFile:
    """One lock file as one process sees it: a descriptor, and who uses it among the threads."""

    def __init__(self, fd: int, writable: bool, path: str) -> None:
        self.fd = fd
        self.path = path
        self.writable = writable
        self.users = 0
        self.writer = threading.Lock()
        self.turn = threading.Condition(threading.Lock())
        self.readers = 0
        self.applying = False


_registry: dict[tuple[int, int], _LockFile] = {}
_registry_lock = threading.Lock()


def _forget_after_fork() -> None:
    # The locks belong to the parent. Closing a descriptor in the child does not release them as
    # long as the parent has it open; keeping it would hold them after the parent's death.
    global _registry_lock
    _registry_lock = threading.Lock()
    for shared in _registry.values():
        os.close(shared.fd)
        shared.fd = -1
    _registry.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _same_file(path: str, fd: int) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _open_descriptor(path: str) -> tuple[int, bool] | None:
    """Descriptor and whether it can be written; None where there is no lock file to be had."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    for access in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            fd = os.open(path, access | flags, 0o666)
        except OSError as error:
            if error.errno in _NO_LOCK_FILE or (
                error.errno == errno.ENOENT and access == os.O_RDONLY
            ):
                continue
            if error.errno == errno.ENOENT:
                raise StoreNotFoundError(
                    f"{path}: the directory does not exist; expected one to lock a file in"
                ) from error
            raise StoreError(
                f"{path}: cannot be opened as a lock file ({error.strerror}), expected a plain "
                "file or none; remove what stands there"
            ) from error
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd, access != os.O_RDONLY
        os.close(fd)
        raise StoreError(
            f"{path}: not a plain file, expected a lock file; remove what stands there"
        )
    return None


def _attach(path: str) -> _LockFile | None:
    """Become a user of the process's one `_LockFile` for ``path``, opened if need be."""
    with _registry_lock:
        for shared in _registry.values():
            if shared.path == path and _same_file(path, shared.fd):
                shared.users += 1
                return shared
        while (opened := _open_descriptor(path)) is not None:
            fd, writable = opened
            pause = _Pause(None)
            try:
                while not _lock_range(fd, "shared", _PRESENT, 1):
                    pause.wait()
            except OSError as error:
                os.close(fd)
                if error.errno in _UNSUPPORTED:
                    return None
                raise
            # Its last user may have removed the file between the opening and the lock.
            if not _same_file(path, fd):
                os.close(fd)
                continue
            info = os.fstat(fd)
            shared = _LockFile(fd, writable, path)
            shared.users = 1
            _registry[info.st_dev, info.st_ino] = shared
            return shared
        return None


def _detach(shared: _LockFile) -> None:
    """One user less; the last one of the last process removes the lock file."""
    with _registry_lock:
        shared.users -= 1
        if shared.users or shared.fd < 0:
            return
        for key in [key for key, value in _registry.items() if value is shared]:
            del _registry[key]
        fd, shared.fd = shared.fd, -1
        # Freed before it is asked for alone: two who close at once would else both see the other.
        _lock_range(fd, "free", _PRESENT, 1)
        remove = shared.writable and _lock_range(fd, "alone", _PRESENT, 1)
        if remove and _same_file(shared.path, fd):
            if sys.platform == "win32":  # no removal of an open file there
                os.close(fd)
                _remove_if_free(shared.path)
                return
            _remove_if_free(shared.path)
        os.close(fd)


def _remove_if_free(path: str) -> None:
    # Gone already, or in a directory that does not let us.
    with contextlib.suppress(FileNotFoundError, PermissionError):
        os.unlink(path)


class _Pause:
    """Sleeps that grow from 50 microseconds to 5 milliseconds, until a deadline."""

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._length = 50e-6

    def left(self) -> float:
        return 3600.0 if self._deadline is None else self._deadline - time.monotonic()

    def wait(self) -> bool:
        """Sleep a little; False when the time is up."""
        left = self.left()
        if left <= 0:
            return False
        time.sleep(min(self._length, left))
        self._length = min(self._length * 1.5, 5e-3)
        return True


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
        self._shared = _attach(self._path)
        self._writing: _LockFile | None = None
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
        shared = self._writable()
        pause = _Pause(timeout)
        if not shared.writer.acquire(blocking=False) and not shared.writer.acquire(
            timeout=max(timeout, 0)
        ):
            raise self._timeout_error(shared, timeout)
        try:
            while not _lock_range(shared.fd, "alone", _WRITER, 1):
                if not pause.wait():
                    raise self._timeout_error(shared, timeout)
            _write_at_start(shared.fd, self._holder())
        except BaseException:
            if shared.fd >= 0:
                _lock_range(shared.fd, "free", _WRITER, 1)
            shared.writer.release()
            raise
        self._writing = shared

    def release_writer(self) -> None:
        """End `acquire_writer`; without effect where this object is not the writer."""
        shared, self._writing = self._writing, None
        if shared is None or shared.fd < 0:  # a forked child has nothing to release
            return
        _lock_range(shared.fd, "free", _WRITER, 1)
        shared.writer.release()

    @property
    def holds_writer(self) -> bool:
        """Whether this object is the writer now."""
        return self._writing is not None and self._writing.fd >= 0

    def _holder(self) -> bytes:
        pid = os.getpid()
        if self._whoami[0] != pid:
            self._whoami = (pid, f"{pid} {socket.gethostname()} ".encode())
        return self._whoami[1] + b"%.3f\n" % time.time()

    def _timeout_error(self, shared: _LockFile, timeout: float) -> LockTimeoutError:
        return LockTimeoutError(
            f"{self._data_path}: still held for writing by {_named_holder(shared.fd)} after "
            f"{timeout:g} s; close the store there, or wait longer with lock_timeout="
        )

    def _writable(self) -> _LockFile:
        shared = self._live()
        if shared is None or not shared.writable:
            raise ReadOnlyError(
                f"{self._path}: no lock file can be written beside the data file; expected a "
                'directory with write permission; open the store with mode="r"'
            )
        return shared

    def _live(self) -> _LockFile | None:
        if self._shared is not None and self._shared.fd < 0:  # forked, or closed
            self._shared = _attach(self._path)
        return self._shared

    # -- readers, and the moment that excludes them ------------------------------------------------

    def reading(self) -> _Section:
        """Context manager shared by readers: nobody applies a commit meanwhile. Keep it short."""
        return self._reading

    def applying(self) -> _Section:
        """Context manager of the writer who changes committed bytes: no reader is inside."""
        return self._applying

    def _enter_shared(self) -> _LockFile | None:
        shared = self._live()
        if shared is None:
            return None
        pause = _Pause(self._patience)
        with shared.turn:
            if not shared.turn.wait_for(lambda: not shared.applying, self._patience):
                raise self._crowded("an applying writer")
            if shared.readers == 0:
                # Both bytes at once, then the gate is opened again for whoever comes next.
                while not _lock_range(shared.fd, "shared", _GATE, 2):
                    if not pause.wait():
                        raise self._crowded("an applying writer")
                _lock_range(shared.fd, "free", _GATE, 1)
            shared.readers += 1
        return shared

    def _leave_shared(self, shared: _LockFile) -> None:
        with shared.turn:
            shared.readers -= 1
            if shared.readers == 0:
                if shared.fd >= 0:
                    _lock_range(shared.fd, "free", _APPLY, 1)
                shared.turn.notify_all()

    def _enter_alone(self) -> _LockFile:
        shared = self._writable()
        pause = _Pause(self._patience)
        with shared.turn:
            if not shared.turn.wait_for(lambda: not shared.applying, self._patience):
                raise self._crowded("another writer's commit")
            shared.applying = True  # from here on no new reader of this process comes in
            try:
                if not shared.turn.wait_for(lambda: shared.readers == 0, pause.left()):
                    raise self._crowded("readers")
                for byte in (_GATE, _APPLY):
                    while not _lock_range(shared.fd, "alone", byte, 1):
                        if not pause.wait():
                            raise self._crowded("readers of another process")
            except BaseException:
                self._end_alone(shared)
                raise
        return shared

    def _leave_alone(self, shared: _LockFile) -> None:
        with shared.turn:
            self._end_alone(shared)

    def _end_alone(self, shared: _LockFile) -> None:
        shared.applying = False
        if shared.fd >= 0:
            _lock_range(shared.fd, "free", _GATE, 2)
        shared.turn.notify_all()

    def _crowded(self, who: str) -> LockTimeoutError:
        return LockTimeoutError(
            f"{self._data_path}: {who} did not let go within {self._patience:g} s; "
            "look for a suspended process that has the store open"
        )

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of everything, and remove the lock file if nobody uses it any more."""
        self.release_writer()
        shared, self._shared = self._shared, None
        if shared is not None and shared.fd >= 0:
            _detach(shared)


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
        self._entered.by = locks._enter_alone() if self._alone else locks._enter_shared()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shared: _LockFile | None = self._entered.by
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


def _named_holder(fd: int) -> str:
    """Who wrote its name into the lock file last, in words."""
    if sys.platform == "win32":
        os.lseek(fd, 0, os.SEEK_SET)
        line = os.read(fd, 512)
    else:
        line = os.pread(fd, 512, 0)
    try:
        pid, host, since = line.split(b"\n")[0].decode().split(" ")
        when = datetime.fromtimestamp(float(since), UTC).isoformat(timespec="seconds")
    except ValueError:
        return "an unnamed process"
    return f"process {int(pid)} on {host} since {when}"
