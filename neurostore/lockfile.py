"""The small file beside a data file that locks are taken on, one descriptor of it per process.

`lock_range` takes and frees locks on bytes, by the platform's means; `attach` and `detach` count
who uses the lock file, here and elsewhere, so that the last one removes it. On Linux these are
open-file-description locks, elsewhere the platform's record locks; either way the locks of a
process that dies fall with it. What the bytes mean is decided in `neurostore.locks`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
import threading
import time
from typing import Final, Literal

from neurostore.errors import StoreError, StoreNotFoundError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["BUSY", "FIRST", "UNSUPPORTED", "LockFile", "Pause", "attach", "detach", "lock_range"]

# Far behind the holder's name that stands at the start of the lock file: Windows refuses to read
# bytes that another process has locked.
FIRST: Final = 1 << 30
_PRESENT: Final = FIRST + 3
BUSY: Final = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})
_NO_LOCK_FILE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})

_Kind = Literal["shared", "alone", "free"]

if sys.platform == "win32":

    def lock_range(fd: int, kind: _Kind, start: int, length: int) -> bool:
        """Take or free a lock on bytes of ``fd``; False where somebody else is in the way.

        Windows has no shared record locks in the C runtime: readers exclude each other.
        """
        os.lseek(fd, start, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_UNLCK if kind == "free" else msvcrt.LK_NBLCK, length)
        except OSError as error:
            if error.errno in BUSY:
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
    # file is closed; that is why a process keeps one descriptor per lock file (`LockFile`).
    _SETLK: Final[int] = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)
    _FLOCK: Final = struct.Struct("hhqqi4x")

    def lock_range(fd: int, kind: _Kind, start: int, length: int) -> bool:
        """Take or free a lock on bytes of ``fd``; False where somebody else is in the way."""
        try:
            if sys.platform == "linux":
                fcntl.fcntl(fd, _SETLK, _FLOCK.pack(_TYPES[kind], os.SEEK_SET, start, length, 0))
            else:
                how = {"shared": fcntl.LOCK_SH, "alone": fcntl.LOCK_EX, "free": fcntl.LOCK_UN}
                fcntl.lockf(fd, how[kind] | (fcntl.LOCK_NB if kind != "free" else 0), length, start)
        except OSError as error:
            if error.errno in BUSY:
                return False
            raise
        return True


class LockFile:
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


_registry: dict[tuple[int, int], LockFile] = {}
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


def _open_descriptor(path: str, data_path: str) -> tuple[int, bool] | None:
    """Descriptor and whether it can be written; None where there is no lock file to be had."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    # Asked for without making it first: in folders like /tmp Linux refuses O_CREAT on the file of
    # another user.
    for access in (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            fd = os.open(path, access | flags, 0o666)
        except OSError as error:
            if error.errno in _NO_LOCK_FILE or (
                error.errno == errno.ENOENT and not access & os.O_CREAT
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
            if access & os.O_CREAT:
                _offer(fd, data_path)
            return fd, access != os.O_RDONLY
        os.close(fd)
        raise StoreError(
            f"{path}: not a plain file, expected a lock file; remove what stands there"
        )
    return None


def _offer(fd: int, data_path: str) -> None:
    """Let the owner of the data file use a lock file that somebody else makes beside it."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        owner = os.stat(data_path)
        if owner.st_uid == os.geteuid():
            return
        try:
            os.fchown(fd, owner.st_uid, owner.st_gid)
        except PermissionError:
            os.fchmod(fd, 0o666)


def attach(path: str, data_path: str) -> LockFile | None:
    """Become a user of the process's one `LockFile` for ``path``, opened if need be."""
    with _registry_lock:
        for shared in _registry.values():
            if shared.path == path and _same_file(path, shared.fd):
                shared.users += 1
                return shared
        while (opened := _open_descriptor(path, data_path)) is not None:
            fd, writable = opened
            pause = Pause(None)
            try:
                while not lock_range(fd, "shared", _PRESENT, 1):
                    pause.wait()
            except OSError as error:
                os.close(fd)
                if error.errno in UNSUPPORTED:
                    return None
                raise
            # Its last user may have removed the file between the opening and the lock.
            if not _same_file(path, fd):
                os.close(fd)
                continue
            info = os.fstat(fd)
            shared = LockFile(fd, writable, path)
            shared.users = 1
            _registry[info.st_dev, info.st_ino] = shared
            return shared
        return None


def detach(shared: LockFile) -> None:
    """One user less; the last one of the last process removes the lock file."""
    with _registry_lock:
        shared.users -= 1
        if shared.users or shared.fd < 0:
            return
        for key in [key for key, value in _registry.items() if value is shared]:
            del _registry[key]
        fd, shared.fd = shared.fd, -1
        # Freed before it is asked for alone: two who close at once would else both see the other.
        lock_range(fd, "free", _PRESENT, 1)
        remove = shared.writable and lock_range(fd, "alone", _PRESENT, 1)
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


class Pause:
    """Sleeps that grow from 50 microseconds to 5 milliseconds, until a deadline."""

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._length = 50e-6

    def left(self) -> float:
        """Seconds until the deadline."""
        return 3600.0 if self._deadline is None else self._deadline - time.monotonic()

    def wait(self) -> bool:
        """Sleep a little; False when the time is up."""
        left = self.left()
        if left <= 0:
            return False
        time.sleep(min(self._length, left))
        self._length = min(self._length * 1.5, 5e-3)
        return True
