"""A disk that forgets: records what is done to files, and gives every state a power cut may leave.

`RecordingIO` does the operations for real and keeps a log. `crash_states` plays the log back on a
model of a disk where only what was synced is sure: writes since then are dropped, kept, cut
short, torn in the middle or kept in part out of order, and changes of directories are lost, kept
in part out of order, or kept. `MUTANTS` are protocols that leave something out. `FaultyIO` lets a
chosen operation fail, once or for good.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tiers import FULL

from neurostore.journal import HEADER, Journal
from neurostore.osio import OsIO

Image = dict[str, bytes]


@dataclass(frozen=True)
class Op:
    """One operation: what, on which file (a number), and its arguments."""

    what: str
    file: int = -1
    offset: int = 0
    data: bytes = b""
    name: str = ""
    target: str = ""
    mark: Any = None


class PlainIO:
    """The operations that change nothing, by the operating system."""

    close = staticmethod(OsIO.close)
    size = staticmethod(OsIO.size)
    pread = staticmethod(OsIO.pread)
    preadinto = staticmethod(OsIO.preadinto)


class RecordingIO(PlainIO):
    """The operating system, and a log of all that changes files."""

    def __init__(self) -> None:
        self.log: list[Op] = []
        self._numbers: dict[str, int] = {}
        self._open: dict[int, int] = {}
        self._unwritten: dict[int, str] = {}
        self._count = 0

    def adopt(self, path: str) -> None:
        """Start with a file that is wholly on the disk."""
        with open(path, "rb") as file:
            data = file.read()
        self._numbers[path] = self._count
        self.log.append(Op("durable", self._count, data=data, name=path))
        self._count += 1

    def mark(self, mark: Any) -> None:
        """Put a remark of the test into the log."""
        self.log.append(Op("mark", mark=mark))

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        fd = os.open(path, flags, mode)
        if flags & (os.O_RDWR | os.O_WRONLY):
            self._notice(path)
        if path in self._numbers:
            self._open[fd] = self._numbers[path]
        return fd

    def _notice(self, path: str) -> None:
        """Take in a file that was made just now, or that HDF5 has made behind our back."""
        if path not in self._numbers:
            self._numbers[path] = self._count
            self._unwritten[self._count] = path
            self.log.append(Op("create", self._count, name=path))
            self._count += 1

    def _see(self, path: str) -> None:
        """Log, as one write, what HDF5 has written to a file behind our back."""
        self._notice(path)
        number = self._numbers[path]
        if self._unwritten.pop(number, None) is not None:
            with open(path, "rb") as file:
                self.log.append(Op("write", number, 0, file.read()))

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        done = os.pwrite(fd, data, offset)
        self._unwritten.pop(self._open[fd], None)
        self.log.append(Op("write", self._open[fd], offset, bytes(data)[:done]))
        return done

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)
        self.log.append(Op("truncate", self._open[fd], size))

    def sync(self, fd: int) -> None:
        number = self._open[fd]
        if number in self._unwritten:
            self._see(self._unwritten[number])
        self.log.append(Op("sync", number))

    def sync_directory(self, path: str) -> None:
        self.log.append(Op("sync names"))

    def unlink(self, path: str) -> None:
        os.unlink(path)
        self._numbers.pop(path, None)
        self.log.append(Op("unlink", name=path))

    def replace(self, source: str, target: str) -> None:
        self._see(source)
        os.replace(source, target)
        self._numbers[target] = self._numbers.pop(source)
        self.log.append(Op("rename", name=source, target=target))

    def link(self, source: str, target: str) -> None:
        self._see(source)
        os.link(source, target)
        self._numbers[target] = self._numbers[source]
        self.log.append(Op("link", name=source, target=target))


def change(content: bytearray, op: Op) -> None:
    """Do one write or truncation."""
    if op.what == "truncate":
        del content[op.offset :]
        content.extend(bytes(op.offset - len(content)))
        return
    if len(content) < op.offset:
        content.extend(bytes(op.offset - len(content)))
    content[op.offset : op.offset + len(op.data)] = op.data


@dataclass
class Disk:
    """What is surely on the disk, and what is on its way."""

    files: dict[int, bytearray] = field(default_factory=dict)
    waiting: dict[int, list[Op]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    renamings: list[Op] = field(default_factory=list)

    def do(self, op: Op, synced: Callable[[Op], bool]) -> None:
        """Take one operation of the log; ``synced(write)`` says whether a sync covers it."""
        if op.what == "durable":
            self.files[op.file] = bytearray(op.data)
            self.names[op.name] = op.file
        elif op.what in ("write", "truncate"):
            self.waiting.setdefault(op.file, []).append(op)
        elif op.what in ("create", "unlink", "rename", "link"):
            self.renamings.append(op)
        elif op.what == "sync":
            left = []
            for write in self.waiting.pop(op.file, ()):
                if synced(write):
                    change(self.files.setdefault(op.file, bytearray()), write)
                else:
                    left.append(write)
            if left:
                self.waiting[op.file] = left
        elif op.what == "sync names":
            self.names = self._named(self.renamings)
            self.renamings = []

    def _named(self, ops: list[Op]) -> dict[str, int]:
        names = dict(self.names)
        for op in ops:
            if op.what == "create":
                names[op.name] = op.file
            elif op.what == "unlink":
                names.pop(op.name, None)
            elif op.what == "link" and op.name in names:
                names[op.target] = names[op.name]
            elif op.what == "rename" and op.name in names:
                names[op.target] = names.pop(op.name)
        return names

    def image(self, choose: Callable[[list[Op]], list[Op]], renamings: list[Op]) -> Image:
        """The files after a power cut that keeps the chosen writes and some renamings."""
        files = {}
        for name, number in self._named(renamings).items():
            content = bytearray(self.files.get(number, b""))
            for op in choose(self.waiting.get(number, [])):
                change(content, op)
            files[name] = bytes(content)
        return files


def torn(ops: list[Op], rng: random.Random) -> list[Op]:
    """All writes, the last one cut short."""
    if not ops or len(ops[-1].data) < 2:
        return ops
    last = ops[-1]
    return [
        *ops[:-1],
        Op("write", last.file, last.offset, last.data[: rng.randrange(1, len(last.data))]),
    ]


def choices(rng: random.Random, full: bool) -> Iterator[Callable[[list[Op]], list[Op]]]:
    """The ways to keep a part of what was not synced."""
    yield lambda ops: []
    yield lambda ops: ops
    yield lambda ops: torn(ops, rng)
    yield lambda ops: ops[: rng.randrange(len(ops) + 1)]
    yield lambda ops: ops[-1:]
    for share in (0.3, 0.7, 0.9) if not full else (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        yield lambda ops, share=share: [op for op in ops if rng.random() < share]  # type: ignore[misc]


def _renamings(ops: list[Op], rng: random.Random) -> Iterator[list[Op]]:
    yield ops
    if ops:
        yield []
    if len(ops) > 1:
        yield ops[: rng.randrange(1, len(ops))]
        yield [op for op in ops if rng.random() < 0.5]


@dataclass(frozen=True)
class State:
    """What one power cut leaves, and the remark of the test that came before it."""

    at: int
    mark: Any
    image: Image


def crash_states(
    log: list[Op],
    *,
    seed: int = 0,
    share: float = 1.0,
    ignored: Callable[[Op], bool] = lambda op: False,
    covers: Callable[[Op], bool] = lambda op: True,
    full: bool = FULL,
    seen: set[int] | None = None,
) -> Iterator[State]:
    """Every operation is a crash point, each with its power-loss states, or a share of them.

    ``ignored`` syncs do nothing and ``covers(write)`` says which writes a sync reaches: with them
    a mutant makes the protocol worse than it is. ``full`` keeps more parts of the writes, and the
    same set of ``seen`` for each seed leaves out the states that another seed gave.
    """
    rng, pick = random.Random(seed), random.Random(seed)
    disk, mark = Disk(), None
    seen = set() if seen is None else seen
    for at, op in enumerate(log):
        if op.what == "mark":
            mark = op.mark
            continue
        if not ignored(op):
            disk.do(op, covers)
        for choose in choices(rng, full):
            for renamings in _renamings(disk.renamings, rng):
                if pick.random() >= share:
                    continue
                image = disk.image(choose, renamings)
                state = State(at, mark, image)
                if _is_new(state, seen):
                    yield state


def _is_new(state: State, seen: set[int]) -> bool:
    key = hash((repr(state.mark), tuple(sorted(state.image.items()))))
    new = key not in seen
    seen.add(key)
    return new


def kill_states(
    log: list[Op], *, seed: int = 0, share: float = 1.0, seen: set[int] | None = None
) -> Iterator[State]:
    """Every operation is the last of a killed process: all before is kept, a write may be torn.

    ``seen`` as in `crash_states`.
    """
    seen = set() if seen is None else seen
    return (state for state in _killed(log, seed, share) if _is_new(state, seen))


def _killed(log: list[Op], seed: int, share: float) -> Iterator[State]:
    rng, pick = random.Random(seed), random.Random(seed)
    disk, mark = Disk(), None
    for at, op in enumerate(log):
        if op.what == "mark":
            mark = op.mark
            continue
        disk.do(op, lambda write: True)
        if pick.random() >= share:
            continue
        yield State(at, mark, disk.image(lambda ops: ops, disk.renamings))
        if op.what == "write":
            yield State(
                at,
                mark,
                disk.image(
                    lambda ops, op=op: torn(ops, rng) if ops and ops[-1] is op else ops,  # type: ignore[misc]
                    disk.renamings,
                ),
            )


# -- protocols that leave something out -----------------------------------------------------------

Log = list[Op]


def _of(log: Log, end: str = "", start: str = "") -> set[int]:
    """The numbers of the files that were made under such a name."""
    return {
        op.file
        for op in log
        if op.what == "create"
        and op.name.endswith(end)
        and os.path.basename(op.name).startswith(start)
    }


def appended(log: Log) -> set[int]:
    """The writes, by identity, behind what was synced of their file; others change old bytes."""
    size: dict[int, int] = {}
    synced: dict[int, int] = {}
    found = set()
    for op in log:
        if op.what == "durable":
            size[op.file] = synced[op.file] = len(op.data)
        elif op.what == "write":
            size[op.file] = max(size.get(op.file, 0), op.offset + len(op.data))
            if op.offset >= synced.get(op.file, 0):
                found.add(id(op))
        elif op.what == "truncate":
            size[op.file] = op.offset
            found.add(id(op))
        elif op.what == "sync":
            synced[op.file] = size.get(op.file, 0)
    return found


def applied_first(log: Log) -> Log:
    """The log of a writer that changes committed bytes before the journal has them."""
    journals, new = _of(log, "-journal"), appended(log)
    changed: Log = []
    waiting: Log = []
    for op in reversed(log):
        if op.what == "write" and op.file not in journals and id(op) not in new:
            waiting.append(op)
            continue
        changed.append(op)
        if (op.what == "write" and op.file in journals) or op.what == "mark":
            changed += waiting
            waiting = []
    return (changed + waiting)[::-1]


def resigned(image: Image) -> Image:
    """What a recovery sees that does not look at the checksum: every journal is right."""
    treated = dict(image)
    for name, data in image.items():
        if name.endswith("-journal") and len(data) >= HEADER.size:
            magic, length, _ = HEADER.unpack_from(data)
            if length < 1 << 20:
                body = data[HEADER.size :].ljust(length, b"\0")[:length]
                whole = Journal.sign(body)
                treated[name] = HEADER.pack(magic, *HEADER.unpack_from(whole)[1:]) + body
    return treated


@dataclass(frozen=True)
class Mutant:
    """What a broken protocol does otherwise; every part takes the log that it is made from."""

    log: Callable[[Log], Log] = lambda log: log
    ignored: Callable[[Log], Callable[[Op], bool]] = lambda log: lambda op: False
    covers: Callable[[Log], Callable[[Op], bool]] = lambda log: lambda op: True
    treat: Callable[[Image], Image] = lambda image: image

    def states(self, log: Log, *, seed: int = 0, share: float = 1.0) -> Iterator[State]:
        """What a power cut leaves under this protocol."""
        log = self.log(log)
        ignored, covers = self.ignored(log), self.covers(log)
        for state in crash_states(log, seed=seed, share=share, ignored=ignored, covers=covers):
            yield State(state.at, state.mark, self.treat(state.image))


def _sync_of(end: str = "", start: str = "") -> Callable[[Log], Callable[[Op], bool]]:
    def ignored(log: Log) -> Callable[[Op], bool]:
        files = _of(log, end, start)
        return lambda op: op.what == "sync" and op.file in files

    return ignored


def _only(new: bool) -> Callable[[Log], Callable[[Op], bool]]:
    def covers(log: Log) -> Callable[[Op], bool]:
        behind, journals = appended(log), _of(log, "-journal")
        return lambda op: op.file in journals or (id(op) in behind) == new

    return covers


MUTANTS: dict[str, Mutant] = {
    "journal not synced": Mutant(ignored=_sync_of("-journal")),
    "directory not synced": Mutant(ignored=lambda log: lambda op: op.what == "sync names"),
    "appended data not synced": Mutant(covers=_only(new=False)),
    "applied bytes not synced before the next journal": Mutant(covers=_only(new=True)),
    "applied before journalled": Mutant(log=applied_first),
    "no checksum": Mutant(treat=resigned),
}
#: Those that show only where files are made and put in the place of others.
FILE_MUTANTS: dict[str, Mutant] = {
    "new file not synced": Mutant(ignored=_sync_of(start=".")),
    "no recovery": Mutant(
        treat=lambda image: {k: v for k, v in image.items() if not k.endswith("-journal")}
    ),
}


class NoLinks:
    """A file system without hard links, before one of the others in a class's bases."""

    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EPERM, "no links here")


class FaultyIO(PlainIO):
    """The operating system, except that the n-th changing operation fails, or each from then on.

    ``number`` is an errno; 0 is a short write (half of the bytes), after which ENOSPC comes if
    the fault stays.
    """

    def __init__(self, at: int, number: int, *, for_good: bool) -> None:
        self.at = at
        self.number = number
        self.for_good = for_good
        self.count = 0
        self.fired = False

    def _hit(self) -> bool:
        self.count += 1
        hit = self.count == self.at or (self.for_good and self.count > self.at)
        self.fired |= hit
        return hit

    def _maybe(self) -> None:
        if not self.number and not (self.fired and self.for_good):
            return  # a short write is a fault of writes
        if self._hit():
            number = self.number or errno.ENOSPC
            raise OSError(number, os.strerror(number))

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        if flags & os.O_CREAT:
            self._maybe()
        return os.open(path, flags, mode)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        if self._hit():
            if self.number or self.count > self.at:
                number = self.number or errno.ENOSPC
                raise OSError(number, os.strerror(number))
            return os.pwrite(fd, memoryview(data)[: max(1, len(data) // 2)], offset)
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        self._maybe()
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        self._maybe()

    def sync_directory(self, path: str) -> None:
        self._maybe()

    def unlink(self, path: str) -> None:
        self._maybe()
        os.unlink(path)

    def replace(self, source: str, target: str) -> None:
        self._maybe()
        os.replace(source, target)

    def link(self, source: str, target: str) -> None:
        self._maybe()
        os.link(source, target)
