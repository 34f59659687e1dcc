"""The journal of one commit, and recovery from it before HDF5 sees the file.

``<file>-journal`` holds the committed bytes that a commit changes, the new end of the file, whose
file it is, and a checksum over all of it. `recover` finishes or forgets what a dead writer left.
This module takes no locks (the caller holds the writer's, and hands in the one that keeps readers
out of the apply step) and knows of the data file no more than its state block and, in the
superblock, where it ends. Who writes journals is `neurostore.safefile`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

from neurostore.errors import StoreError
from neurostore.names import beside
from neurostore.osio import FLAGS, IO, Durability, OsIO, read_all, refused, write_all

__all__ = [
    "Applying",
    "Journal",
    "journal_path",
    "pending",
    "read_journal",
    "recover",
    "stated_end",
]

Applying = Callable[[], AbstractContextManager[Any]]
Extents = list[tuple[int, bytes]]

STATE_SIZE: Final = 24  # file id (16), generation (8, little-endian)
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_MAGIC: Final = b"NSjournl"
_VERSION: Final = 1
HEADER: Final = struct.Struct("<8sQ32s")  # magic, length of the body, its checksum
_BODY: Final = struct.Struct("<IIQ16sQQQQ")
_EXTENT: Final = struct.Struct("<QI")


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=32, person=b"neurostore").digest()


@dataclass(frozen=True, slots=True)
class Journal:
    """One commit: where it belongs, and the bytes that it changes below the old end."""

    state_offset: int
    file_id: bytes
    old_generation: int
    new_generation: int
    old_end: int
    new_end: int
    extents: Extents

    def encode(self) -> bytes:
        """Give the journal as the bytes of its file."""
        head = _BODY.pack(
            _VERSION,
            len(self.extents),
            self.state_offset,
            self.file_id,
            self.old_generation,
            self.new_generation,
            self.old_end,
            self.new_end,
        )
        table = [_EXTENT.pack(offset, len(data)) for offset, data in self.extents]
        body = b"".join((head, *table, *(data for _, data in self.extents)))
        return self.sign(body)

    @staticmethod
    def sign(body: bytes) -> bytes:
        """Put magic number, length and checksum before the body of a journal."""
        return HEADER.pack(_MAGIC, len(body), _digest(body)) + body

    @classmethod
    def decode(cls, blob: bytes, path: str) -> Journal | None:
        """Take the journal out of ``blob``; None if it is torn, empty or not one."""
        if len(blob) < HEADER.size + _BODY.size:
            return None
        magic, length, digest = HEADER.unpack_from(blob)
        body = blob[HEADER.size : HEADER.size + length]
        if magic != _MAGIC or len(body) != length or digest != _digest(body):
            return None
        version, count, offset, file_id, old, new, old_end, new_end = _BODY.unpack_from(body)
        if version != _VERSION:
            raise StoreError(
                f"{path}: journal of version {version}, expected {_VERSION}; "
                "open the store with the newer neurostore that wrote it"
            )
        extents = []
        data_at = _BODY.size + count * _EXTENT.size
        for at in range(_BODY.size, data_at, _EXTENT.size):
            start, size = _EXTENT.unpack_from(body, at)
            extents.append((start, body[data_at : data_at + size]))
            data_at += size
        return cls(offset, file_id, old, new, old_end, new_end, extents)

    def verdict(self, io: IO, fd: int) -> Literal["apply", "superseded", "foreign"]:
        """Say what this journal is to the data file ``fd``.

        A generation that the apply step tore is made of bytes of the old and of the new one.
        """
        state = io.pread(fd, STATE_SIZE, self.state_offset)
        if len(state) < STATE_SIZE or state[:16] != self.file_id:
            return "foreign"
        generation = state[16:]
        pairs = zip(_u64(self.old_generation), _u64(self.new_generation), strict=True)
        if all(byte in pair for byte, pair in zip(generation, pairs, strict=True)):
            return "apply" if io.size(fd) >= self.new_end else "foreign"
        newer = int.from_bytes(generation, "little") > self.new_generation
        return "superseded" if newer else "foreign"

    def missing(self, io: IO, fd: int) -> bool:
        """Whether the data file ``fd`` lacks any byte of this commit."""
        return any(read_all(io, fd, len(data), at) != data for at, data in self.extents)

    def apply(self, io: IO, fd: int) -> None:
        """Write the changed bytes in their places; twice is as good as once."""
        for offset, data in self.extents:
            write_all(io, fd, data, offset)


def open_sidecar(io: IO, path: str, flags: int, mode: int = 0o666) -> int:
    """Open a journal without following links; FileNotFoundError where there is none."""
    try:
        fd = io.open(path, flags | _NOFOLLOW | FLAGS, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise StoreError(_NOT_PLAIN.format(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        io.close(fd)
        raise StoreError(_NOT_PLAIN.format(path))
    return fd


_NOT_PLAIN: Final = "{}: not a plain file, expected a journal or nothing; remove what stands there"


def read_journal(io: IO, path: str) -> tuple[bool, Journal | None]:
    """Whether there is a journal file of any content, and the journal if it is a valid one."""
    try:
        fd = open_sidecar(io, path, os.O_RDONLY)
    except FileNotFoundError:
        return False, None
    try:
        size = io.size(fd)
        head = io.pread(fd, HEADER.size, 0)
        if len(head) < HEADER.size or head[:8] != _MAGIC:
            return True, None
        length = HEADER.unpack(head)[1]
        if HEADER.size + length > size:
            return True, None
        return True, Journal.decode(read_all(io, fd, HEADER.size + length, 0), path)
    finally:
        io.close(fd)


def journal_path(path: str | os.PathLike[str]) -> str:
    """Path of the journal of the data file ``path``, links in it resolved.

    Examples
    --------
    >>> journal_path("/data/run.h5").endswith("run.h5-journal")
    True
    """
    return beside(os.path.realpath(os.fspath(path)), "-journal")


def pending(path: str | os.PathLike[str], *, io: IO | None = None) -> bool:
    """Whether a valid journal stands beside ``path`` that the file does not wholly contain yet.

    True for a moment in each commit of a living writer, and after a crash until `recover`. Costs
    a failed `open` where there is no journal, and about 50 microseconds where there is one.
    """
    io = io or OsIO()
    path = os.path.realpath(os.fspath(path))
    journal = read_journal(io, journal_path(path))[1]
    if journal is None:
        return False
    fd = io.open(path, os.O_RDONLY | FLAGS)
    try:
        return journal.verdict(io, fd) == "apply" and journal.missing(io, fd)
    finally:
        io.close(fd)


def recover(
    path: str | os.PathLike[str],
    *,
    applying: Applying = contextlib.nullcontext,
    durability: Durability = "power",
    settle: bool = False,
    io: IO | None = None,
) -> bool:
    """Finish or forget what the last writer left; to be called before HDF5 opens the file.

    A valid journal is applied, a torn one discarded, and bytes behind the committed end are cut.
    The caller holds the writer lock.

    Parameters
    ----------
    path
        The data file.
    applying
        Makes the context manager that keeps readers out while committed bytes change.
    durability
        ``"process"`` leaves out the syncs.
    settle
        Sync the file and remove the journal. Without it an applied journal stays until the next
        commit or `CrashSafeFile.close`, which saves its syncs when a writer follows.
    io
        The operations of the operating system.

    Returns
    -------
    bool
        Whether a commit was applied.

    Raises
    ------
    WriteError
        The system refused; nothing is lost, and `recover` can be called again.
    """
    io = io or OsIO()
    path = os.path.realpath(os.fspath(path))
    try:
        return _Recovery(io, path, applying, durability == "power").run(settle)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise refused(
            path, "recovery", error, "the journal stays; make room and open it again"
        ) from error


class _Recovery:
    """The steps of `recover`."""

    def __init__(self, io: IO, path: str, applying: Applying, power: bool) -> None:
        self.io = io
        self.path = path
        self.journal = beside(path, "-journal")
        self.applying = applying
        self.power = power

    def run(self, settle: bool) -> bool:
        io = self.io
        fd = io.open(self.path, os.O_RDWR | FLAGS)
        try:
            present, journal = read_journal(io, self.journal)
            verdict = journal.verdict(io, fd) if journal else None
            if journal is not None and verdict == "apply":
                with self.applying():
                    journal.apply(io, fd)
                    if io.size(fd) > journal.new_end:
                        io.truncate(fd, journal.new_end)
                if settle:
                    self._sync(fd)
                    io.unlink(self.journal)
                return True
            if journal is not None and verdict == "foreign":
                # Not of this file, but perhaps all that completes another one.
                io.replace(self.journal, f"{self.journal}-{journal.file_id.hex()[:8]}")
            elif present:
                self._discard()
            self._cut_tail(fd)
        finally:
            io.close(fd)
        return False

    def _discard(self) -> None:
        # What looks torn to us may be whole on the medium, where a zeroed header was not synced.
        # New bytes are about to land where that journal expects its own, so it goes for good.
        fd = open_sidecar(self.io, self.journal, os.O_RDWR)
        try:
            self.io.truncate(fd, 0)
            self._sync(fd)
        finally:
            self.io.close(fd)
        self.io.unlink(self.journal)

    def _cut_tail(self, fd: int) -> None:
        end = stated_end(self.io, fd)
        if end is not None and end < self.io.size(fd):
            with self.applying():
                self.io.truncate(fd, end)

    def _sync(self, fd: int) -> None:
        if self.power:
            self.io.sync(fd)


def stated_end(io: IO, fd: int) -> int | None:
    """End of file as the superblock states it; None where that cannot be trusted.

    Superblocks of version 2 and 3 (HDF5 file format specification, II.A): signature, version,
    size of offsets, size of lengths, flags, then base address, extension, end of file, root group
    and a checksum of all before. Others have no checksum and are left as they are.
    """
    block = io.pread(fd, 48, 0)
    if (
        len(block) < 48
        or block[:8] != b"\x89HDF\r\n\x1a\n"
        or block[8] not in (2, 3)
        or block[9] != 8
    ):
        return None
    base, _, end = struct.unpack_from("<QQQ", block, 12)
    (checksum,) = struct.unpack_from("<I", block, 44)
    return int(end) if base == 0 and end >= 48 and checksum == _lookup3(block[:44]) else None


def _lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 hash with a zero seed, HDF5's checksum of metadata."""

    def rotate(word: int, by: int) -> int:
        return (word << by | word >> (32 - by)) & mask

    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask
    padded = data + bytes(-len(data) % 12)
    words = struct.unpack(f"<{len(padded) // 4}I", padded)
    for at in range(0, len(words), 3):
        a, b, c = (a + words[at]) & mask, (b + words[at + 1]) & mask, (c + words[at + 2]) & mask
        if at + 3 == len(words):
            break
        for first, second, third in ((4, 6, 8), (16, 19, 4)):
            a = ((a - c) & mask) ^ rotate(c, first)
            c = (c + b) & mask
            b = ((b - a) & mask) ^ rotate(a, second)
            a = (a + c) & mask
            c = ((c - b) & mask) ^ rotate(b, third)
            b = (b + a) & mask
    for left, by in ((14, 0), (11, 1), (25, 2), (16, 0), (4, 1), (14, 2), (24, 0)):
        if by == 0:
            c = ((c ^ b) - rotate(b, left)) & mask
        elif by == 1:
            a = ((a ^ c) - rotate(c, left)) & mask
        else:
            b = ((b ^ a) - rotate(a, left)) & mask
    return c
