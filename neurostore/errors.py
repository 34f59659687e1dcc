"""The one tree of errors; it says what went wrong and nothing about how to find out.

::

    HDF5StorageError
    ├── RecordError                the data that was handed in, or asked for
    │   ├── ValidationError        ValueError: an argument or Dataset is not a record
    │   ├── RecordNotFoundError    KeyError: no record has this id
    │   ├── AmbiguousRecordError   KeyError: several records of a foreign file have it
    │   └── MisalignedRecordsError ValueError: records that one Dataset cannot hold
    ├── StoreError                 the file as a whole
    │   ├── StoreNotFoundError     FileNotFoundError
    │   ├── StoreExistsError       FileExistsError
    │   ├── NotAStoreError         OSError: a directory, or not HDF5
    │   ├── ReadOnlyError          PermissionError
    │   │   └── SealedError        a rotated file, which is closed off for good
    │   ├── MovedError             OSError: another file took its place just now
    │   ├── ClosedError            ValueError: the store was closed
    │   ├── LockTimeoutError       TimeoutError: another writer holds the file
    │   ├── NoSpaceError           OSError: the disk has too little room for what was asked
    │   └── WriteError             OSError: the disk refused; nothing committed is lost
    ├── DamagedError               OSError: stored bytes fail their checksum
    ├── RefusedError               PermissionError: a file asks for other files, code, or memory
    └── MissingPackageError        ModuleNotFoundError: an extra is not installed

The class after each name is the builtin that it also derives from.  `MissingFileWarning` is a
warning: it says which file of a series an answer leaves out.
"""

from __future__ import annotations

from typing import Self

__all__ = [
    "AmbiguousRecordError",
    "ClosedError",
    "DamagedError",
    "HDF5StorageError",
    "LockTimeoutError",
    "MisalignedRecordsError",
    "MissingFileWarning",
    "MissingPackageError",
    "MovedError",
    "NoSpaceError",
    "NotAStoreError",
    "ReadOnlyError",
    "RecordError",
    "RecordNotFoundError",
    "RefusedError",
    "SealedError",
    "StoreError",
    "StoreExistsError",
    "StoreNotFoundError",
    "ValidationError",
    "WriteError",
]


class HDF5StorageError(Exception):
    """Root of every error that neurostore raises on its own account."""


class RecordError(HDF5StorageError):
    """Something about one record, or the data meant to become one."""


class ValidationError(RecordError, ValueError):
    """Data or an argument cannot be stored as asked; nothing was written.

    `problems` holds all that is wrong, one line each.
    """

    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, what: str, problems: list[str]) -> Self:
        """One error for all ``problems`` of ``what``."""
        if len(problems) == 1:
            error = cls(f"{what}: {problems[0]}")
        else:
            lines = "".join(f"\n  - {problem}" for problem in problems)
            error = cls(f"{what}: {len(problems)} problems{lines}")
        error.problems = tuple(problems)
        return error


class RecordNotFoundError(RecordError, KeyError):
    """No record has the id that was asked for."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would quote the whole sentence.
        return str(self.args[0]) if self.args else ""


class AmbiguousRecordError(RecordError, KeyError):
    """Several records of a foreign file share the leaf name; a full address decides."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MisalignedRecordsError(RecordError, ValueError):
    """Records differ in shape or labels, so one Dataset cannot hold them."""


class StoreError(HDF5StorageError):
    """Something about the file as a whole."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no file at the path."""


class StoreExistsError(StoreError, FileExistsError):
    """There already is a file at the path, and a new one was asked for."""


class NotAStoreError(StoreError, OSError):
    """What stands at the path is not an HDF5 file."""


class ReadOnlyError(StoreError, PermissionError):
    """The store, or its file system, does not allow writing."""


class SealedError(ReadOnlyError):
    """A file that was rotated takes no records any more; the newest of its series does."""


class MovedError(StoreError, OSError):
    """Another file took the place of an open one; asked again, the store answers from that."""


class ClosedError(StoreError, ValueError):
    """The store has been closed."""


class LockTimeoutError(StoreError, TimeoutError):
    """Another writer held the file for longer than the time-out."""


class NoSpaceError(StoreError, OSError):
    """The disk has too little room for a new copy of the file; nothing was written."""


class WriteError(StoreError, OSError):
    """The operating system refused a write; the last commit stands."""


class DamagedError(HDF5StorageError, OSError):
    """Stored bytes do not agree with their checksum, or cannot be decoded."""


class MissingPackageError(HDF5StorageError, ModuleNotFoundError):
    """A package that only some users need is not installed; the message names the extra."""


class MissingFileWarning(UserWarning):
    """A file of a series is not where it was; its records are left out of an answer."""


class RefusedError(HDF5StorageError, PermissionError):
    """A file asks for what is not done for strangers: other files, foreign code, endless memory."""
