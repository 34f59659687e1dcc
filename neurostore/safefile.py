"""The crash-safe file: HDF5 writes through it, and every commit is there whole or not at all.

`CrashSafeFile` is a Python file object for h5py's ``fileobj`` driver. It knows the committed end:
what HDF5 writes beyond goes straight to the file, where nobody looks yet; what HDF5 overwrites
before it stays in memory until `CrashSafeFile.commit` has put the differences into the journal.
This module takes no locks, does not know what the file holds beyond its state block, and waits
for no sync inside an HDF5 callback.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any, Final

import h5py

from neurostore.errors import ClosedError, StoreError
from neurostore.journal import (
    HEADER,
    STATE_SIZE,
    Applying,
    Extents,
    Journal,
    open_sidecar,
)
from neurostore.names import beside
from neurostore.osio import IO, Durability, OsIO, read_all, write_all, written
from neurostore.overlay import PAGE, View
from neurostore.writeout import WriteOut

__all__ = ["LARGE_CACHE", "CrashSafeFile", "open_h5", "resize_cache"]

# HDF5 writes a record in some twenty pieces, most of them side by side.
_GATHERED: Final = 64 * 1024
# Bytes are compared by blocks: two changes nearby are cheaper as one run, because each costs 12
# bytes of journal and a system call, and 16 slices of a page take far less than NumPy for it.
_BLOCK: Final = 256
_BIG_JOURNAL: Final = 1 << 22
SMALL_CACHE: Final = 1 << 17
LARGE_CACHE: Final = 1 << 24


def _runs(start: int, old: bytes, new: bytes) -> Extents:
    """Give the differing runs of one piece of the file, which begins at ``start``."""
    runs: Extents = []
    begin = -1
    for at in range(0, len(new) + _BLOCK, _BLOCK):
        if old[at : at + _BLOCK] != new[at : at + _BLOCK]:
            begin = at if begin < 0 else begin
        elif begin >= 0:
            changed = int.from_bytes(old[begin:at], "little") ^ int.from_bytes(
                new[begin:at], "little"
            )
            low = begin + ((changed & -changed).bit_length() - 1) // 8
            high = begin + (changed.bit_length() + 7) // 8
            runs.append((start + low, new[low:high]))
            begin = -1
    return runs


class CrashSafeFile(View):
    """Read-write file object for HDF5 whose changes reach the data file in whole commits.

    The caller holds the writer lock from before the first write until `commit` or `rollback`
    is done, and has called `recover` under it. Callbacks of HDF5 run under h5py's global lock and
    take none themselves; `commit` is not called from a callback.

    Parameters
    ----------
    path
        The data file; it exists.
    state_offset
        Where its state block stands: file id (16 bytes), generation (uint64, little-endian). HDF5
        changes the generation with every commit, as data.
    applying
        Makes the context manager that keeps readers out while committed bytes change.
    durability
        ``"power"`` syncs, so that a commit survives a power cut; ``"process"`` does not, so that
        it survives the end of the process.
    io
        The operations of the operating system.

    Attributes
    ----------
    durability
        As given; it may be changed between commits.
    error
        The first error of a callback, or None. After one, nothing is written any more.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        state_offset: int,
        applying: Applying = contextlib.nullcontext,
        durability: Durability = "power",
        io: IO | None = None,
    ) -> None:
        io = io or OsIO()
        super().__init__(os.path.realpath(os.fspath(path)), os.O_RDWR, io)
        self._ahead = WriteOut(io, self._fd)
        #: Up to where anything was handed to the system since the last commit.
        self._written_to = 0
        self._journal_path = beside(self.path, "-journal")
        self._journal_fd = -1
        self._journal_head = b""
        self._applying = applying
        self.durability: Durability = durability
        self._pid = os.getpid()
        self._doing = self._begun = ""
        self._state_offset = state_offset
        self._end = self._eoa = io.size(self._fd)
        self._state = read_all(io, self._fd, STATE_SIZE, state_offset)
        self._named = False  # whether the journal's name is on the medium
        self._unsettled = self._adopt_journal()

    def _adopt_journal(self) -> bool:
        """Take over a journal that recovery applied; the next sync brings its bytes to the medium.

        It is remembered, so that `moved` notices when another writer leaves one in its place.
        """
        try:
            self._journal_fd = open_sidecar(self._io, self._journal_path, os.O_RDWR)
        except FileNotFoundError:
            return False
        except BaseException:
            self.release()
            raise
        self._journal_head = self._io.pread(self._journal_fd, HEADER.size, 0)
        return True

    # -- callbacks of HDF5 ------------------------------------------------------------------------

    def _size(self) -> int:
        return max(self._end, self._eoa)

    def _load(self, length: int, offset: int) -> bytes:
        return read_all(self._io, self._fd, length, offset)

    def write(self, data: Any) -> int:
        """Write at the position: behind the committed end to the file, before it to memory."""
        try:
            if self.error is None and os.getpid() == self._pid:
                start, tail = self._position, self._tail
                self._position = stop = start + len(data)
                room = _GATHERED - len(tail) - len(data)
                if tail and room >= 0 and start == self._tail_start + len(tail):
                    tail += data  # most pieces of a record: what `_gather` comes to
                    self._eoa = max(self._eoa, stop)
                else:
                    self._write(data, start)
        except BaseException as error:  # noqa: BLE001 (kept, and raised by commit)
            self._keep("write", error)
        return len(data)

    def put(self, data: Any, offset: int) -> None:
        """Write at ``offset``, past HDF5, what HDF5 keeps no copy of; the position stays."""
        self._own()
        try:
            self._write(data, offset)
        except OSError as error:
            self._keep("write", error)
            self.check()

    def _write(self, data: Any, start: int) -> None:
        stop = start + len(data)
        end = self._end
        if start >= end:
            self._gather(data, start, stop)
        elif stop <= end:
            self._changed.put(data, start, self._load)
        else:
            view = memoryview(data)
            self._changed.put(view[: end - start], start, self._load)
            self._gather(view[end - start :], end, stop)
        if stop > self._eoa:
            self._eoa = stop

    def _gather(self, data: Any, start: int, stop: int) -> None:
        """Keep what is written behind the committed end, to hand it to the system in one piece.

        HDF5 writes the chunks of a record first, and the headers that lie before them later;
        until then there are zeros, but never over what was handed over already.
        """
        if stop - start > _GATHERED:  # a chunk: not copied once more
            self._spill()
            self._out(data, start)
            return
        tail = self._tail
        if not tail:
            fresh = self._written_to <= self._end and stop - self._end <= _GATHERED
            self._tail_start = self._end if fresh else start
        at, size = start - self._tail_start, len(tail)
        behind = at > size and self._tail_start + size < self._written_to
        if at < 0 or at + len(data) > _GATHERED or behind:
            self._spill()
            tail, at, size, self._tail_start = self._tail, 0, 0, start
        if at > size:
            tail += bytes(at - size)
        tail[at : at + len(data)] = data

    def _spill(self) -> None:
        tail, self._tail = self._tail, bytearray()
        if tail:
            self._out(tail, self._tail_start)

    def _out(self, data: Any, start: int) -> None:
        self._written_to = max(self._written_to, start + len(data))
        if written(self._io, self._fd, data, start) != len(data):
            write_all(self._io, self._fd, memoryview(data), start)
        if self.durability == "power":
            self._ahead.wrote(len(data))

    def truncate(self, size: int | None = None) -> int:
        """Note where HDF5 sees the end of the file; the file itself follows in `commit`."""
        if self.error is None and os.getpid() == self._pid:
            self._eoa = self._position if size is None else size
        return self._eoa

    # -- commit -------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Generation of the last commit that this object knows."""
        return int.from_bytes(self._state[16:], "little")

    @property
    def file_id(self) -> bytes:
        """The 16 bytes that name the file."""
        return self._state[:16]

    @property
    def committed_end(self) -> int:
        """Size of the file as committed, in bytes."""
        return self._end

    @property
    def changed(self) -> bool:
        """Whether anything was written since the last commit."""
        return bool(self._changed.pages) or self._eoa > self._end

    def commit(self) -> bool:
        """Make everything that HDF5 has flushed one durable, visible step.

        The caller has changed the generation in the state block and flushed the HDF5 file.

        Returns
        -------
        bool
            False when there was nothing to commit.

        Raises
        ------
        WriteError
            The system refused an operation now or in a callback since the last commit. The file
            object is of no more use: `abandon` it, close the HDF5 file, `recover`, open again.
        LockTimeoutError
            Readers did not leave; as above.
        """
        self.begin()
        self._own()
        self.check()
        extents = self._differences()
        if not extents:
            return False
        journal = self._describe(extents)
        try:
            self._append(journal)
            self._write_journal(journal.encode())
            self._doing = "waiting for readers"
            with self._applying():
                self._doing, self._begun = "applying the journal", "apply"
                self._apply(journal)
        except BaseException as error:
            self._spoil(error)
            if isinstance(error, OSError) and not isinstance(error, StoreError):
                self.check()
            raise
        self._end = journal.new_end
        self._state = journal.file_id + journal.new_generation.to_bytes(8, "little")
        self._changed.clear()
        return True

    def _differences(self) -> Extents:
        """Find the runs of bytes that differ from the committed file."""
        extents: Extents = []
        try:
            for page in sorted(self._changed.pages):
                first, last = self._changed.spans[page]
                start = page * PAGE + first
                new = bytes(self._changed.pages[page][first : min(last, self._end - page * PAGE)])
                held = self._changed.before.get(page)
                if held is None:
                    old = read_all(self._io, self._fd, len(new), start)
                else:
                    old = held[first : first + len(new)]
                if old != new:
                    extents += _runs(start, old, new)
        except OSError as error:
            self._keep("reading back committed bytes", error)
            self.check()
        return extents

    def _describe(self, extents: Extents) -> Journal:
        state = self.pread(STATE_SIZE, self._state_offset)
        generation = int.from_bytes(state[16:], "little")
        if state[:16] != self.file_id or generation <= self.generation:
            raise ValueError(
                f"{self.path}: state block at {self._state_offset} says file "
                f"{state[:16].hex()} generation {generation}, expected {self.file_id.hex()} and "
                f"more than {self.generation}; raise the generation before each commit"
            )
        return Journal(
            self._state_offset,
            self.file_id,
            self.generation,
            generation,
            self._end,
            max(self._end, self._eoa),
            extents,
        )

    def _append(self, journal: Journal) -> None:
        """Bring the bytes behind the old end, and the commit before, to the medium."""
        self._doing = "extending the file"
        self._spill()
        self._doing = "syncing appended data"
        self._ahead.wait()
        self._doing = "extending the file"
        if self._io.size(self._fd) != journal.new_end:
            self._io.truncate(self._fd, journal.new_end)
        if self.durability == "power":
            self._doing = "syncing appended data"
            self._io.sync(self._fd)

    def _write_journal(self, blob: bytes) -> None:
        io = self._io
        self._doing = "opening the journal"
        self._open_journal()
        self._doing, self._begun = "writing the journal", "journal"
        self._journal_head = blob[: HEADER.size]
        self._unsettled = True
        if io.size(self._journal_fd) > max(_BIG_JOURNAL, len(blob)):
            io.truncate(self._journal_fd, len(blob))
        write_all(io, self._journal_fd, blob, 0)
        if self.durability == "power":
            self._doing = "syncing the journal"
            io.sync(self._journal_fd)
            if not self._named:
                self._doing = "syncing the directory of the journal"
                io.sync_directory(os.path.dirname(self._journal_path))
                self._named = True

    def _open_journal(self) -> None:
        """Have the file at the journal's path open."""
        if self._journal_fd >= 0:
            if _is_at(self._journal_path, self._journal_fd):
                return
            self._close_journal()
        self._named = False
        mode = stat.S_IMODE(os.fstat(self._fd).st_mode) & 0o666
        flags = os.O_RDWR | os.O_CREAT
        self._journal_fd = open_sidecar(self._io, self._journal_path, flags, mode)
        _like(self._fd, self._journal_fd)

    def _apply(self, journal: Journal) -> None:
        journal.apply(self._io, self._fd)

    def begin(self) -> None:
        """Forget how the last commit ended; the next has not begun."""
        self._begun = ""

    @property
    def is_decided(self) -> bool:
        """Whether there was a commit since `begin`, also one that failed: its journal stays.

        The next opening finishes it; whoever took it for failed would store the same once more.
        """
        return self._begun == "apply"

    def _spoil(self, error: BaseException) -> None:
        """After a failed step: no more writes, and no journal of a commit that is not one.

        Once the first committed byte may have changed, the journal stays: recovery completes it.
        """
        self._keep(self._doing, error)
        if self._begun == "journal":
            with contextlib.suppress(OSError):
                write_all(self._io, self._journal_fd, bytes(HEADER.size), 0)
                if self.durability == "power":
                    self._io.sync(self._journal_fd)

    # -- turning back, and the end ---------------------------------------------------------------

    def moved(self) -> bool:
        """Whether anybody else has committed, or died committing, since this object's last step.

        To be asked when the writer lock has been taken. If true, what HDF5 holds in memory is
        stale: `abandon`, close the HDF5 file, `recover`, open again. Costs a few microseconds.
        """
        if not _is_at(self.path, self._fd):
            return True
        if read_all(self._io, self._fd, STATE_SIZE, self._state_offset) != self._state:
            return True
        try:
            there = os.stat(self._journal_path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if self._journal_fd < 0:
            return there.st_size > 0
        if not _is_at(self._journal_path, self._journal_fd):
            return True
        return self._io.pread(self._journal_fd, HEADER.size, 0) != self._journal_head

    def rollback(self) -> None:
        """Forget everything since the last commit, under the writer lock.

        The HDF5 file has been closed before: what it still wrote then is forgotten too.
        """
        self._own()
        try:
            self._ahead.wait()
        except OSError as error:  # the commit before may be among what did not reach the medium
            self._keep("syncing the file", error)
            self.check()
        self._changed.clear()
        self._tail.clear()
        self._written_to = 0
        self._eoa = self._end
        if self._fd >= 0 and self._io.size(self._fd) > self._end:
            try:
                self._io.truncate(self._fd, self._end)
            except OSError as error:
                self._keep("cutting the uncommitted tail", error)
                self.check()

    def checkpoint(self) -> None:
        """Bring the last commit to the medium and remove the journal, under the writer lock."""
        self._own()
        if not self._unsettled:
            return
        try:
            self._doing = "syncing the file"
            if self.durability == "power":
                self._io.sync(self._fd)
            self._doing = "removing the journal"
            self._close_journal()
            with contextlib.suppress(FileNotFoundError):
                self._io.unlink(self._journal_path)
            self._unsettled = False
        except OSError as error:
            self._keep(self._doing, error)
            self.check()

    def close(self) -> None:
        """Drop what is uncommitted, settle the last commit, close; under the writer lock.

        The HDF5 file has been closed before. After an error, or without the lock, it is
        `abandon` instead. Closing twice is fine.
        """
        if self._fd < 0:
            return
        try:
            if self.error is None and os.getpid() == self._pid:
                self.rollback()
                self.checkpoint()
        finally:
            self.abandon()
            self.release()

    def abandon(self) -> None:
        """Write nothing any more, neither here nor in HDF5's own closing.

        For a file object after an error, without the writer lock, in a forked child, or whose
        file has moved on. The journal and the data file are left to `recover`.
        """
        self._keep(
            "use of an abandoned file", ClosedError(f"{self.path}: the file object is closed")
        )

    def release(self) -> None:
        """Close the descriptors; after `abandon` and the closing of the HDF5 file."""
        self._close_journal()
        with contextlib.suppress(OSError):  # the journal stays
            self._ahead.wait()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._io.close(fd)

    def _close_journal(self) -> None:
        fd, self._journal_fd = self._journal_fd, -1
        if fd >= 0:
            self._io.close(fd)

    def _own(self) -> None:
        if os.getpid() != self._pid:
            raise ClosedError(
                f"{self.path}: opened for writing by process {self._pid}, used in its fork "
                f"{os.getpid()}; open the store anew in the child"
            )


def _like(fd: int, sidecar: int) -> None:
    """Let those use a sidecar who may use its file: the mask and the superuser's hand aside."""
    ours, there = os.fstat(sidecar), os.fstat(fd)
    with contextlib.suppress(OSError):  # not its owner: then it is theirs already
        if stat.S_IMODE(ours.st_mode) != stat.S_IMODE(there.st_mode) & 0o666:
            os.chmod(sidecar, stat.S_IMODE(there.st_mode) & 0o666)
        if (ours.st_uid, ours.st_gid) != (there.st_uid, there.st_gid):
            os.chown(sidecar, there.st_uid, there.st_gid)


def _is_at(path: str, fd: int) -> bool:
    """Whether ``path`` still names the open file ``fd``."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _fixed(cache: Any, size: int) -> Any:
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = size
    cache.incr_mode = cache.decr_mode = cache.flash_incr_mode = 0
    return cache


def resize_cache(h5file: Any, size: int = SMALL_CACHE) -> None:
    """Set the size of the metadata cache of an open file, in bytes."""
    h5file.id.set_mdc_config(_fixed(h5file.id.get_mdc_config(), size))


def open_h5(fileobj: Any, *, write: bool = True, metadata_cache: int = SMALL_CACHE) -> Any:
    """Open the HDF5 file in a file object; returns an `h5py.File` that is closed with its objects.

    Parameters
    ----------
    fileobj
        A `CrashSafeFile`, or an `Overlay` with ``write=False``.
    write
        Open for reading and writing.
    metadata_cache
        Size of HDF5's metadata cache in bytes. It is fixed and small because HDF5 walks every
        entry at each flush: 1.7 ms at its own default, 0.13 ms at 128 KiB. With many records
        before a flush a larger one is faster: `resize_cache`.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, fileobj)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_mdc_config(_fixed(access.get_mdc_config(), metadata_cache))
    # The driver takes the object from this name, which is the list entry's address in h5py.
    mode = h5py.h5f.ACC_RDWR if write else h5py.h5f.ACC_RDONLY
    return h5py.File(h5py.h5f.open(repr(fileobj).encode("ascii", "replace"), mode, fapl=access))
