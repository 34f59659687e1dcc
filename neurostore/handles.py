"""The HDF5 handles on one file: opened, current or not, committed through, and given up.

`Handles` has one for writing, through the crash-safe file, and one for reading, through HDF5's
native driver or the overlay of an unfinished commit, and the catalogue of whichever was asked
last.  Whose turn it is, and which locks are held, is the affair of `neurostore.openfile`.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from neurostore import catalogue_file, journal, osio, overlay, safefile, tree
from neurostore.catalogue import Catalogue
from neurostore.damage import naming_damage
from neurostore.errors import (
    LockTimeoutError,
    MovedError,
    ReadOnlyError,
    RefusedError,
    WriteError,
)
from neurostore.locks import FileLocks, hold_data_lock
from neurostore.osio import IO, Durability, OsIO
from neurostore.places import Url
from neurostore.reading import Part
from neurostore.rebuilding import merge, rebuild
from neurostore.registry import Key, Registry, key_of
from neurostore.remote import RemoteFile
from neurostore.stencil import Stencils
from neurostore.tablerows import LONG
from neurostore.tails import Tails
from neurostore.tree import H5File

__all__ = ["Handles"]

_log = logging.getLogger(__name__)

#: Records in one commit from which on HDF5 gets a larger cache.
_MANY = 16
#: Catalogues of files that were closed, with where their counters stand: a loop that opens and
#: closes need not read them again.  Long ones are left to be read.
_left: dict[Key, tuple[Catalogue, int]] = {}
_KEPT = 8


class Handles:
    """What a process has open of one file.

    Parameters
    ----------
    path, key
        Where it is, and device and inode of what is there.
    registry
        The files of this process, this one among them.
    io
        The operations of the operating system, for all that is written.
    """

    def __init__(self, path: Path, key: Key, registry: Registry[Any], io: IO | None = None) -> None:
        self.path = path
        self.key = key
        self.closed = False
        self.io: IO = io or OsIO()
        self._registry = registry
        self.mutex = threading.RLock()
        self._locks = FileLocks(path)
        self._stencils: Stencils | None = None
        self._file: safefile.CrashSafeFile | None = None
        self._writer: H5File | None = None
        self._puts = 0
        self._stamper: tree.Stamper | None = None
        self._reader: H5File | None = None
        self._reader_state = b""
        self._overlay: overlay.Overlay | None = None
        self._remote: RemoteFile | None = None
        self._state_fd = -1
        self._state_offset = -1
        self._catalogue: Catalogue | None = None
        self._catalogue_of: object = None
        self._tails: Tails | None = None
        #: One part of each structure, for the catalogue's codes.
        self._templates: dict[int, dict[str, Part]] = {}
        self._untouched = False
        #: Whether what is left of a file that was cut short is read: for whoever checks it all.
        self.reads_cut = False
        self._depth = 0
        #: What other threads read through while one has a batch open.
        self._aside: Any = None
        #: Bytes and rows of the file as of this process's last commit.
        self.size = self.rows = 0
        self._recall_catalogue()

    def _check_reads(self) -> None:
        """HDF5 takes a failed read for zeros; say that it failed."""
        if self._file is not None:
            self._file.check()

    def is_untouched(self) -> bool:
        """Tell whether only neurostore has written to the file since its last commit.

        Then the catalogue's word on the structure of a record can be taken.  A commit sets the
        file's time of modification to the one it notes; anybody else's writing changes it.
        """
        with self.mutex:
            self._check_open()
            if self._depth == 0 and self._catalogue is not None:
                self._untouched = self._is_as_noted(self._catalogue)
            return self._untouched

    def _is_as_noted(self, held: Catalogue) -> bool:
        """Compare the time of modification; a remote file has one of its own, of its upload."""
        return self._remote is not None or self._modified() == held.state["modified"]

    def _modified(self) -> int:
        return os.fstat(self._state_fd).st_mtime_ns

    def file_size(self) -> int:
        """Return the size of the file in bytes."""
        return self._remote.size if self._remote is not None else self.path.stat().st_size

    @property
    def traffic(self) -> dict[str, int]:
        """Requests that were made to the server of a remote file, and bytes that came."""
        held = self._remote
        return {} if held is None else {"requests": held.requests, "received_bytes": held.received}

    def _catalogue_for(self, h5file: H5File) -> Catalogue:
        held = self._catalogue
        if held is not None and self._catalogue_of is h5file:
            return held
        with naming_damage(f"{self.path}: its catalogue and its groups cannot be read"):
            # The handle for writing was opened for the file as it is; one for reading may be older.
            known = h5file is self._writer and self._is_known()
            if held is None or not (known or catalogue_file.refresh(held, h5file)):
                held = catalogue_file.read(h5file)
                self._templates = {}
            if held is None:
                held = rebuild(h5file)
            elif not self._is_as_noted(held):
                merge(held, h5file)
        self._catalogue, self._catalogue_of = held, h5file
        return held

    def _followed(self) -> Catalogue | None:
        """Return the catalogue as of another process's commit, if that is told without HDF5.

        Under the reading lock.  The handle for reading stays as old as it is: whoever reads a
        record finds that it is, and opens another.
        """
        held = self._catalogue
        if held is None or self._state_fd < 0 or self._state_offset < 0:
            return None
        if self._tails is None and self._reader is not None and self._catalogue_of is self._reader:
            self._tails = Tails(self._reader, held)
        if self._tails is None or journal.pending(self.path, io=self.io):
            return None
        if not self._tails.follow(self._state_fd, self._state_offset, held):
            self._tails = None
            return None
        return held if self._is_as_noted(held) else None

    def _is_current(self) -> bool:
        assert self._file is not None
        return self._state() == self._file.file_id + self._file.generation.to_bytes(8, "little")

    def _state(self) -> bytes:
        """Read the file id and generation as they are on disk, without HDF5."""
        if self._state_fd < 0 or self._state_offset < 0:
            return b""
        return os.pread(self._state_fd, journal.STATE_SIZE, self._state_offset)

    def state(self) -> bytes:
        """Return what changes with every commit, by one small read; b"" before the first look."""
        with self.mutex:
            self._check_open()
            return self._state()

    def _current_reader(self) -> H5File:
        if self._reader is None:
            if isinstance(self.path, Url):
                self._remote = RemoteFile(self.path)
                with self._remote.checked():
                    self._reader = tree.open_served(self._remote)
            elif self._overlay is not None:
                self._reader = safefile.open_h5(self._overlay, write=False)
            else:
                self._reader = tree.open_native(self.path, cut=self.reads_cut)
            with naming_damage(f"{self.path}: its root group cannot be read"):
                self._remember_state(self._reader)
            self._reader_state = self._state()
        return self._reader

    def _remember_state(self, h5file: H5File) -> None:
        if self._state_offset < 0:
            # Without a catalogue, or with one that is in another file, there is no state; of a
            # damaged one neither (to h5py a RuntimeError): it is a cache, and is made anew.
            with suppress(RefusedError):
                if tree.has_catalogue(h5file):
                    with suppress(KeyError, ValueError, RuntimeError):
                        self._state_offset = catalogue_file.state_offset(h5file)
        if self._state_fd < 0 and self._remote is None:
            self._state_fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def _distrust_if_touched(self, held: Catalogue) -> None:
        """Note that somebody else wrote: this commit would hide it from :meth:`is_untouched`."""
        if self._modified() != held.state["modified"] and held.state["modified"]:
            held.state["trusted_from"] = held.state["serial"]

    def settle(self) -> None:
        """Bring the last commit to the medium and close every handle, under the writer lock."""
        self._close_reader()
        writer, self._writer, self._stamper = self._writer, None, None
        file, self._file = self._file, None
        self._catalogue = self._catalogue_of = None
        if writer is not None and file is not None:
            if file.moved():
                file.abandon()
            writer.close()
            file.close()
        journal.recover(self.path, applying=self._locks.applying, settle=True, io=self.io)

    def replace(self, temporary: Path, durability: Durability) -> None:
        """Put a finished file in the place of this one, with the writer lock and no handle.

        Nobody looks a path up between the new file's name and its key: the old one would be
        taken for a file that was replaced by others, and be closed.  The space of the old one is
        freed when nobody waits for these locks.
        """
        shutil.copymode(self.path, temporary)
        osio.settle(temporary, durability=durability, io=self.io)
        with osio.freed_later(self.path):
            with self.mutex:
                self._close_reader()
                with self._locks.applying(), self._registry.guard:
                    osio.replace(temporary, self.path, io=self.io)
                    aside, self._aside = self._aside, None
                    self._forget_inode()
                if aside is not None:  # now: a thread that has its turn there waits for this lock
                    aside.close()
            osio.sync_names(self.path, "replacing the file", durability=durability, io=self.io)

    def _forget_inode(self) -> None:
        if self._state_fd >= 0:
            os.close(self._state_fd)
        self._state_fd = self._state_offset = -1
        self._tails = None
        self.size = self.rows = 0
        key = key_of(self.path)
        assert key is not None
        self._registry.rekey(self, key)

    def commit(self) -> None:
        """Make everything written so far one durable step; the only place that does."""
        assert self._writer is not None
        assert self._file is not None
        assert self._stamper is not None
        assert self._catalogue is not None
        now = time.time_ns()
        self._catalogue.state["modified"] = now
        self._stamper.write_catalogue(self._catalogue)
        self._writer.flush()
        try:
            self._file.commit()
        except WriteError as error:
            if not self._file.is_decided:
                raise
            _log.warning("%s: committed, to be applied by the next opening: %s", self.path, error)
            self.rows = self._catalogue.state["rows"]
            self._drop_writer()
            return
        self.size, self.rows = self._file.committed_end, self._catalogue.state["rows"]
        if self._puts >= _MANY:
            safefile.resize_cache(self._writer)
        self._puts = 0
        with suppress(OSError):  # not the owner: then the catalogue is not taken at its word
            os.utime(self.path, ns=(now, now))

    def _count_puts(self) -> None:
        """Give HDF5 room when a commit turns out to be one of many records: 1.2x as fast."""
        self._puts += 1
        if self._puts == _MANY and self._writer is not None:
            safefile.resize_cache(self._writer, safefile.LARGE_CACHE)

    def _open_writer(self, durability: Durability) -> None:
        if self._writer is not None:
            assert self._file is not None
            if not self._file.moved() and self._file.error is None:
                self._file.durability = durability
                return
            self._drop_writer()
        self._check_writable()
        self._close_reader()
        journal.recover(self.path, applying=self._locks.applying, durability=durability, io=self.io)
        self._ensure_catalogue(durability)
        self._file = safefile.CrashSafeFile(
            self.path,
            state_offset=self._state_offset,
            applying=self._locks.applying,
            durability=durability,
            io=self.io,
        )
        try:
            hold_data_lock(self._file.fileno(), self.path, alone=self._locks.alone)
            self._writer = safefile.open_h5(self._file)
            self._stencils = self._stencils or Stencils.take()
            self._stamper = tree.Stamper(
                self._writer, self._file, self._stencils, self._state_offset
            )
        except BaseException:
            self._drop_writer()
            raise

    def _check_writable(self) -> None:
        if not os.access(self.path, os.W_OK):
            raise ReadOnlyError(
                f"{self.path}: may not be written to; expected a file with write permission on a "
                "file system that takes it; open the store with mode='r'"
            )

    def know(self, held: Catalogue, offset: int) -> None:
        """Take the catalogue of a file that this process has just made, or closed.

        Parameters
        ----------
        held
            Forgotten unless it is the one of the file as it is.
        offset
            Where in the file its counters stand.
        """
        fd = self._state_fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._state_offset, self._catalogue, known = offset, held, False
        try:
            there = os.fstat(fd)
            known = (there.st_dev, there.st_ino) == self.key and self._is_known()
        finally:
            if not known:
                self._close_state()
                self._state_offset, self._catalogue = -1, None

    def _leave_catalogue(self) -> None:
        """Keep the catalogue for who opens the file next; before its descriptor is closed."""
        held = self._catalogue
        with suppress(OSError):  # then it is read again
            if held is None or held.state["rows"] >= LONG or not self._is_known():
                return
            if all(table.is_in_memory for table in held.tables.values()):
                while len(_left) >= _KEPT:
                    _left.pop(next(iter(_left)), None)
                _left[self.key] = held, self._state_offset

    def _recall_catalogue(self) -> None:
        left = _left.pop(self.key, None)
        if left is not None:
            with suppress(OSError):  # whoever opens the file finds out
                self.know(*left)

    def _ensure_catalogue(self, durability: Durability) -> None:
        """Give a file that others wrote its catalogue: in a copy, so that no step can hurt it."""
        if self._is_known():
            return
        with tree.open_native(self.path) as h5file:
            held, self._catalogue_of = self._catalogue, None
            if held is None or not catalogue_file.refresh(held, h5file):
                self._catalogue, self._templates = catalogue_file.read(h5file), {}
            if self._catalogue is not None:  # to be brought up to date from the writer's handle
                self._remember_state(h5file)
                return
        temporary = tree.beside(self.path, "adopted")
        try:
            tree.adopt(self.path, str(temporary))
            self.replace(temporary, durability)
        finally:
            osio.discard(temporary, self.io)
        with tree.open_native(self.path) as h5file:
            self._remember_state(h5file)

    def _is_known(self) -> bool:
        """Tell whether the catalogue is that of the file as it is, which nobody else touched."""
        held = self._catalogue
        if held is None or self._state_fd < 0 or self._state_offset < 0:
            return False
        state = catalogue_file.state_at(self._state_fd, self._state_offset)
        return catalogue_file.is_as(held, state) and self._is_as_noted(held)

    def _roll_back(self) -> None:
        """Forget what is uncommitted; the handle is opened anew when it is next needed."""
        self._catalogue = self._catalogue_of = None
        writer, self._writer, self._stamper = self._writer, None, None
        self._puts = 0
        file, self._file = self._file, None
        if writer is None or file is None:
            return
        if file.error is not None:
            file.abandon()
        try:
            writer.close()
        finally:
            file.close()  # forgets what is uncommitted

    def _drop_writer(self) -> None:
        """Let go of a handle whose file has moved on, without writing a byte through it."""
        self._catalogue_of = None
        writer, self._writer, self._stamper = self._writer, None, None
        file, self._file = self._file, None
        if file is not None:
            file.abandon()
        if writer is not None:
            writer.close()
        if file is not None:
            file.release()

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        overlay, self._overlay = self._overlay, None
        remote, self._remote = self._remote, None
        if reader is not None:
            if self._catalogue_of is reader:
                self._catalogue_of = None  # to be brought up to date from the next handle
            reader.close()
        if overlay is not None:
            overlay.close()
        if remote is not None:
            remote.close()

    def _close_state(self) -> None:
        fd, self._state_fd = self._state_fd, -1
        if fd >= 0:
            os.close(fd)

    def _close_writer(self) -> None:
        if self._writer is None or self._file is None:
            return
        try:
            self._locks.acquire_writer(0.5)
        except (LockTimeoutError, ReadOnlyError):
            self._drop_writer()  # somebody else writes; what we committed is in the file already
            return
        try:
            if self._file.error is not None or self._file.moved():
                self._drop_writer()
                return
            writer, self._writer, self._stamper = self._writer, None, None
            writer.close()
            self._file.close()
            self._file = None
        finally:
            self._locks.release_writer()

    def _check_open(self) -> None:
        if self.closed:  # the registry needed its place, or another file has the path
            raise MovedError(f"{self.path}: was closed meanwhile; open it again")
