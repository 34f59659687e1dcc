"""Which files this process has open, by device and inode.

A store in a loop costs a ``stat`` and not an open, and notices at once when the file was moved,
replaced or removed.  The registry opens nothing: it finds, counts and lets go.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from neurostore.errors import StoreNotFoundError
from neurostore.places import Url

__all__ = ["Key", "Registry", "key_of"]

#: Device and inode.
Key = tuple[int, int]
#: Files that stay open between calls; beyond it the least recently used idle one is closed.
_MOST = 128


class OpenedFile(Protocol):
    """What the registry has to know of an open file."""

    path: Path
    key: Key

    @property
    def users(self) -> Collection[object]:
        """Who holds it; one that nobody holds may be closed."""


File = TypeVar("File", bound=OpenedFile)


def key_of(path: Path) -> Key | None:
    """Return what names the file at ``path`` whatever its path, or None where there is none."""
    if isinstance(path, Url):
        return -1, hash(path)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise StoreNotFoundError(
            f"{path}: a part of the path is a file, expected folders"
        ) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise StoreNotFoundError(
            f"{str(path)[:80]}...: a path of {len(os.fsencode(path))} bytes, of which the name has "
            f"{len(os.fsencode(path.name))}; the system takes names of 255 bytes at most"
        ) from None
    return found.st_dev, found.st_ino


class Registry(Generic[File]):
    """The open files of a process; `guard` is held around anything that reads and then changes."""

    def __init__(self) -> None:
        self.guard = threading.RLock()
        self._files: OrderedDict[Key, File] = OrderedDict()
        #: The same by the path that each was opened by.
        self._paths: dict[Path, File] = {}

    def get(self, key: Key) -> File | None:
        """Return the file with this key, now the most recently used."""
        if key in self._files:
            self._files.move_to_end(key)
        return self._files.get(key)

    def at(self, path: Path) -> File | None:
        """Return what was opened by a path, which may be that of another file by now."""
        with self.guard:
            file = self._paths.get(path)
            if file is not None and file.key in self._files:
                self._files.move_to_end(file.key)
            return file

    def add(self, file: File) -> list[File]:
        """Take in a file; return, forgotten, those that are to be closed for it.

        These are the ones that had its path before, and the longest unused beyond the limit.
        """
        replaced = self._paths.get(file.path)
        leaving = [] if replaced is None else [replaced]
        before = self._files.get(file.key)  # the same file, by the name it had
        if before is not None and before not in leaving and not before.users:
            leaving.append(before)
        self._files[file.key] = file
        if len(self._files) > _MOST:
            idle = [f for f in self._files.values() if not f.users and f is not file]
            leaving += idle[: len(self._files) - _MOST]
        for other in leaving:
            self.forget(other)
        self._paths[file.path] = file
        return leaving

    def has(self, file: File) -> bool:
        """Tell whether a file is the one found by its key."""
        return self._files.get(file.key) is file

    def forget(self, file: File) -> None:
        """Take out a file; fine where it is out already."""
        with self.guard:
            if self._files.get(file.key) is file:
                del self._files[file.key]
            if self._paths.get(file.path) is file:
                del self._paths[file.path]

    def rekey(self, file: File, key: Key) -> None:
        """Note that a file has another inode now."""
        with self.guard:
            self.forget(file)
            file.key = key
            self._files[key] = self._paths[file.path] = file

    def all(self) -> list[File]:
        """Return every file."""
        with self.guard:
            return list(self._files.values())

    def reset(self) -> list[File]:
        """Forget everything, in a forked child: its parent's threads may hold the guard."""
        self.guard = threading.RLock()
        files = list(self._files.values())
        self._files.clear()
        self._paths.clear()
        return files
