"""The operating system's part in safe files: the operations, and whole files put in place.

Everything that the store does to a file from Python goes through one small object, `OsIO`, so
that tests can record the operations and let each of them fail. `create`, `replace` and `completed`
make a file appear whole or not at all; `freed_later` lets nobody wait for the space of one that
goes. Nothing here knows what is in a file.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

from neurostore.errors import HDF5StorageError, StoreExistsError, StoreNotFoundError, WriteError
from neurostore.names import fitted

__all__ = [
    "IO",
    "Durability",
    "OsIO",
    "completed",
    "create",
    "discard",
    "freed_later",
    "give_name",
    "read_all",
    "refused",
    "replace",
    "settle",
    "sync_names",
    "temporary_file",
    "wait_freed",
    "write_all",
    "written",
]

T = TypeVar("T")

_log = logging.getLogger(__name__)

Durability = Literal["power", "process"]
Bytes = bytes | bytearray | memoryview
FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class IO(Protocol):
    """The operations of the operating system that this module uses; `OsIO` does them."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """Open ``path``; the descriptor."""

    def close(self, fd: int) -> None:
        """Close ``fd``."""

    def size(self, fd: int) -> int:
        """Size of the file in bytes."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Up to ``length`` bytes from ``offset``."""

    def preadinto(self, fd: int, buffer: Any, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; the number of bytes read."""

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        """Write ``data`` at ``offset``; the number of bytes written, maybe too few."""

    def truncate(self, fd: int, size: int) -> None:
        """Make the file ``size`` bytes long."""

    def sync(self, fd: int) -> None:
        """Return when the bytes and the size are on the medium."""

    def sync_directory(self, path: str) -> None:
        """Return when the names in the directory are on the medium."""

    def unlink(self, path: str) -> None:
        """Remove the name."""

    def replace(self, source: str, target: str) -> None:
        """Rename, over whatever stands at ``target``."""

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; fails where ``target`` exists."""


class OsIO:
    """`IO` by the operating system itself."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    unlink = staticmethod(os.unlink)
    replace = staticmethod(os.replace)
    link = staticmethod(os.link)
    truncate = staticmethod(os.ftruncate)

    @staticmethod
    def size(fd: int) -> int:
        """Size of the file in bytes."""
        return os.fstat(fd).st_size

    if sys.platform == "win32":

        @staticmethod
        def pread(fd: int, length: int, offset: int) -> bytes:
            """Up to ``length`` bytes from ``offset``."""
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, length)

        @staticmethod
        def preadinto(fd: int, buffer: Any, offset: int) -> int:
            """Fill ``buffer`` from ``offset``; the number of bytes read."""
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(buffer))
            memoryview(buffer)[: len(data)] = data
            return len(data)

        @staticmethod
        def pwrite(fd: int, data: Any, offset: int) -> int:
            """Write ``data`` at ``offset``; the number of bytes written."""
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, data)

        sync = staticmethod(os.fsync)

        @staticmethod
        def sync_directory(path: str) -> None:
            """Do nothing: Windows cannot sync a directory."""

    else:
        pread = staticmethod(os.pread)
        pwrite = staticmethod(os.pwrite)

        @staticmethod
        def preadinto(fd: int, buffer: Any, offset: int) -> int:
            """Fill ``buffer`` from ``offset``; the number of bytes read."""
            return os.preadv(fd, (buffer,), offset)

        if sys.platform == "darwin":

            @staticmethod
            def sync(fd: int) -> None:
                """Return when the bytes are on the medium (`fsync` stops at the drive's cache)."""
                import fcntl

                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

        else:
            sync = staticmethod(os.fdatasync)

        @staticmethod
        def sync_directory(path: str) -> None:
            """Return when the names in the directory are on the medium."""
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | FLAGS)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def write_all(io: IO, fd: int, data: Bytes, offset: int) -> None:
    """Write all of ``data``, in as many steps as the system takes."""
    done = written(io, fd, data, offset)
    if done == len(data):
        return
    rest = memoryview(data)[done:]
    while rest:
        if not done:
            raise OSError(errno.EIO, "the system wrote no bytes")
        offset += done
        done = written(io, fd, rest, offset)
        rest = rest[done:]


def written(io: IO, fd: int, data: Bytes, offset: int) -> int:
    """Write some of ``data``, on a full disk once more when what was removed is free; how much."""
    try:
        return io.pwrite(fd, data, offset)
    except OSError as error:
        if error.errno not in _FULL or not wait_freed():
            raise
        return io.pwrite(fd, data, offset)


def check_folder(path: Path) -> None:
    """Raise StoreNotFoundError if the folder that ``path`` is to stand in is not there."""
    if not path.parent.is_dir():
        raise StoreNotFoundError(f"{path}: the folder {path.parent} does not exist; make it first")


@contextmanager
def completed(target: Path, force: bool = False) -> Iterator[Path]:
    """Give a path beside ``target``, for a file or a folder, that takes its place at the end.

    Raises
    ------
    StoreExistsError
        Something stands there, and ``force`` does not say to replace it.
    StoreNotFoundError
        There is no folder for it.
    """
    check_folder(target)
    if os.path.lexists(target) and not force:
        raise StoreExistsError(
            f"{target}: already exists; give another path, or force=True (--force) to replace it"
        )
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}-", dir=target.parent))
    unfinished = folder / target.name
    try:
        yield unfinished
        if target.is_dir() and not target.is_symlink():
            os.replace(target, folder / f"{target.name}.old")  # no folder replaces a folder
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(folder)


def read_all(io: IO, fd: int, length: int, offset: int) -> bytes:
    """``length`` bytes from ``offset``, zeros where the file is shorter."""
    data = io.pread(fd, length, offset)
    while len(data) < length:
        more = io.pread(fd, length - len(data), offset + len(data))
        if not more:
            return data.ljust(length, b"\0")
        data += more
    return data


def refused(path: str, what: str, error: BaseException, remedy: str) -> WriteError:
    """Make the error that says which operation on ``path`` the system refused, and why."""
    number = _number_of(error)
    name = errno.errorcode.get(number, str(number)) if number else type(error).__name__
    text = os.strerror(number) if number and not isinstance(error, OSError) else error
    refused = WriteError(f"{path}: {what} failed: {name} ({text}); {remedy}")
    refused.errno = number
    return refused


def _number_of(error: BaseException) -> int | None:
    """Return the system's number of an error; HDF5 says it in its text, of writing alone."""
    number: int | None = getattr(error, "errno", None)
    if number is None and (said := _REFUSED_WRITE.search(str(error))):
        number = int(said[1])
    return number


@contextmanager
def temporary_file(path: Path, temporary: Path, what: str, io: IO) -> Iterator[None]:
    """Let ``temporary`` be made to take the place of ``path``; its name is gone afterwards.

    Raises
    ------
    WriteError
        The system refused to write, to HDF5 or otherwise.
    """
    try:
        with _naming_disk(os.fspath(path), what, "the file is as it was"):
            yield
    finally:
        discard(temporary, io)


@contextmanager
def _naming_disk(path: str, what: str, remedy: str) -> Iterator[None]:
    """Raise WriteError for what the system says of a disk, to HDF5 or otherwise."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 raises either
        if isinstance(error, HDF5StorageError) or _number_of(error) not in _OF_DISKS:
            raise
        raise refused(path, what, error, remedy) from error


def settle(
    path: str | os.PathLike[str], *, durability: Durability = "power", io: IO | None = None
) -> None:
    """Bring a finished file to the medium, before anybody has to wait for it to be named."""
    if durability == "power":
        try:
            _sync_path(io or OsIO(), os.fspath(path))
        except OSError as error:
            raise refused(
                os.fspath(path), "syncing a new file", error, "nothing changed"
            ) from error


def replace(
    temporary: str | os.PathLike[str], path: str | os.PathLike[str], *, io: IO | None = None
) -> None:
    """Put the finished file ``temporary`` in the place of ``path``, whole or not at all.

    `settle` comes before, and until `sync_names` was called a power cut brings the old one back.
    Both stand in one directory.
    Where ``path`` is a data file, the caller holds its writer lock and `applying`, has called
    `CrashSafeFile.checkpoint`, and the new file has another file id or a higher generation, so
    that a journal that comes back after a power cut is not applied.
    """
    path = os.path.realpath(os.fspath(path))
    try:
        (io or OsIO()).replace(os.fspath(temporary), path)
    except OSError as error:
        raise refused(path, "replacing the file", error, "the old file stands") from error


def sync_names(
    path: str | os.PathLike[str],
    what: str,
    *,
    durability: Durability = "power",
    io: IO | None = None,
) -> None:
    """Bring what was done to the name of a file to the medium.

    Raises
    ------
    WriteError
        It is done, but it is not known whether it would outlast a power cut.
    """
    if durability == "power":
        path = os.path.realpath(os.fspath(path))
        try:
            (io or OsIO()).sync_directory(os.path.dirname(path))
        except OSError as error:
            remedy = "it is done, but a power cut may undo it"
            raise refused(path, f"syncing the folder after {what}", error, remedy) from error


@contextmanager
def freed_later(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have a thread free the space of a file that loses its last name in the block.

    The system does that when the last who has it open closes it, and takes longer for it than for
    writing as many bytes.  Who finds too little space calls `wait_freed` and tries again.
    """
    fd = -1
    with suppress(OSError):  # the space of what cannot be opened is freed at once
        if sys.platform != "win32" and os.stat(path).st_size >= _LONG_TO_FREE:
            fd = os.open(path, os.O_RDONLY | FLAGS)
    try:
        yield
    finally:
        if fd >= 0:
            _close_later(fd)


def _close_later(fd: int) -> None:
    thread = threading.Thread(target=_close, args=(fd,), daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is closing down
        _close(fd)
    else:
        _freeing[:] = [*(one for one in _freeing if one.is_alive()), thread]


def _close(fd: int) -> None:
    with suppress(OSError):  # of a file without a name: nobody can do anything about it
        os.close(fd)


def wait_freed() -> bool:
    """Return when the space of what this process removed is free; whether any was not at first."""
    waiting = list(_freeing)
    for thread in waiting:
        thread.join()
    _freeing[:] = [one for one in _freeing if one not in waiting]
    return bool(waiting)


def discard(path: str | os.PathLike[str], io: IO) -> None:
    """Remove the name of a temporary file, if it is there; one that cannot be removed stays."""
    try:
        io.unlink(os.fspath(path))
    except FileNotFoundError:
        pass
    except OSError as error:  # not worth hiding the error that is under way, or a success
        _log.warning("%s: a temporary file cannot be removed: %s", path, error)


def create(
    path: str | os.PathLike[str],
    build: Callable[[str], T],
    *,
    durability: Durability = "power",
    io: IO | None = None,
) -> T:
    """Make a new file whole or not at all; return what ``build`` returned.

    Parameters
    ----------
    path
        Where it is to stand; nothing stands there yet.
    build
        Called with the path of an empty temporary file in the same directory; fills it.
    durability
        ``"process"`` leaves out the syncs.
    io
        The operations of the operating system.

    Raises
    ------
    StoreExistsError
        Something stands at ``path``, perhaps since a moment ago.
    StoreNotFoundError
        There is no folder for it.
    """
    io = io or OsIO()
    path = os.path.realpath(os.fspath(path))
    check_folder(Path(path))
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, fitted(f".{name}", f"-{secrets.token_hex(8)}"))
    try:
        io.close(io.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | FLAGS, 0o666))
        try:
            with _naming_disk(path, "making the file", "nothing was made"):
                made = build(temporary)
            if durability == "power":
                _sync_path(io, temporary)
            _name(io, temporary, path)
        finally:
            discard(temporary, io)
    except FileExistsError as error:
        raise StoreExistsError(
            f"{path}: exists already, expected no file there; open it, or choose another path"
        ) from error
    sync_names(path, "making the file", durability=durability, io=io)
    return made


def give_name(
    path: str | os.PathLike[str],
    name: str | os.PathLike[str],
    *,
    durability: Durability = "power",
    io: IO | None = None,
) -> None:
    """Give a file that nobody writes to another name beside it; a copy where there are no links.

    Raises
    ------
    WriteError
        The name is taken, or the system refused; the file has the names it had.
    """
    io = io or OsIO()
    path, name = os.fspath(path), os.fspath(name)

    def copied(temporary: str) -> None:
        shutil.copyfile(path, temporary)
        settle(temporary, durability=durability, io=io)

    try:
        try:
            io.link(path, name)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            create(name, copied, durability="process", io=io)
    except OSError as error:
        raise refused(name, f"naming {path}", error, "that file stands") from error
    try:
        sync_names(name, f"naming {path}", durability=durability, io=io)
    except WriteError:
        discard(name, io)
        raise


#: Bytes that are freed in less time than it takes to start a thread for it.
_LONG_TO_FREE: Final = 1 << 20
_freeing: list[threading.Thread] = []
#: What it says of one that is full.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: What the system says of a disk, not of a path.
_OF_DISKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
#: What HDF5 says where the system refuses a write.
_REFUSED_WRITE = re.compile(r"file write failed.*errno = (\d+)", re.DOTALL)
#: What a file system without hard links answers.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def _name(io: IO, temporary: str, path: str) -> None:
    """Name a finished file, failing where the name is taken."""
    try:
        io.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here. The empty file holds the name for the moment until the rename.
        io.close(io.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o666))
        try:
            io.replace(temporary, path)
        except OSError:
            discard(path, io)
            raise


def _sync_path(io: IO, path: str) -> None:
    fd = io.open(path, os.O_RDWR | FLAGS)
    try:
        io.sync(fd)
    finally:
        io.close(fd)
