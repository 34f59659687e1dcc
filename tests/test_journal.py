"""The crash-safe file: every commit is there whole or not at all, whatever dies and when."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from children import Child, Say, needs_fork
from crash import (
    MUTANTS,
    FaultyIO,
    Image,
    NoLinks,
    Op,
    RecordingIO,
    State,
    crash_states,
    kill_states,
)
from tiers import FULL

from neurostore.errors import ClosedError, StoreError, StoreExistsError, WriteError
from neurostore.journal import HEADER, Journal, journal_path, pending, read_journal, recover
from neurostore.osio import IO, OsIO, create, replace, settle, sync_names
from neurostore.overlay import Overlay
from neurostore.safefile import CrashSafeFile, open_h5

FILE_ID = bytes(range(16))
Commit = Callable[[], None]
Step = Callable[[Any], None]


# -- a file, its content, and a workload ---------------------------------------------------------


def build(path: str, file_id: bytes = FILE_ID) -> int:
    """Write the smallest file with a state block; returns the block's offset."""
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    properties.set_file_space_strategy(h5py.h5f.FSPACE_STRATEGY_NONE, False, 1)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    raw = h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, fapl=access, fcpl=properties)
    with h5py.File(raw) as h5file:
        block = np.frombuffer(file_id + bytes(8), "u1")
        h5dataset = h5file.create_dataset("state", data=block)
        h5file.create_group("records")
        return int(h5dataset.id.get_offset())


class Writer:
    """What a session does, in short: recover, open, change, flush, commit, close."""

    def __init__(
        self,
        path: Path | str,
        *,
        io: IO | None = None,
        kind: type[CrashSafeFile] = CrashSafeFile,
        durability: Any = "power",
    ) -> None:
        recover(path, io=io, durability=durability)
        offset = state_offset(path)
        self.file = kind(path, state_offset=offset, io=io, durability=durability)
        self.h5 = open_h5(self.file)

    def commit(self) -> bool:
        generation = self.file.generation + 1
        self.h5["state"][16:] = np.frombuffer(generation.to_bytes(8, "little"), "u1")
        self.h5.flush()
        return self.file.commit()

    def rollback(self) -> None:
        self.h5.close()
        self.file.rollback()
        self.h5 = open_h5(self.file)

    def abandon(self) -> None:
        self.file.abandon()
        self.h5.close()
        self.file.release()

    def close(self) -> None:
        self.h5.close()
        self.file.close()


def state_offset(path: Path | str) -> int:
    with h5py.File(path, "r") as h5file:
        return int(h5file["state"].id.get_offset())


def content(h5file: h5py.File) -> dict[str, Any]:
    """All names, attributes and values."""
    found: dict[str, Any] = {}

    def visit(name: str, thing: h5py.Group | h5py.Dataset) -> None:
        value = thing[()].tobytes() if isinstance(thing, h5py.Dataset) else None
        found[name] = (value, {key: np.asarray(thing.attrs[key]).tobytes() for key in thing.attrs})

    h5file.visititems(visit)
    return found


def read(path: Path | str) -> dict[str, Any]:
    with h5py.File(path, "r") as h5file:
        return content(h5file)


def names(path: Path | str) -> list[str]:
    with h5py.File(path, "r") as h5file:
        return sorted(h5file["records"])


def record(h5file: h5py.File, name: str, value: float, length: int = 40) -> None:
    h5group = h5file["records"].create_group(name)
    data = np.full(length, value)
    h5group.create_dataset("x", data=data, chunks=data.shape, compression="gzip", fletcher32=True)
    h5group.attrs["value"] = value


def batch(h5file: h5py.File, start: int) -> None:
    for number in range(start, start + 12):
        record(h5file, f"batch{number}", number)


def begin(h5file: h5py.File, name: str) -> None:
    h5file.create_dataset(f"table{name}", data=np.zeros(1500))
    h5file.create_dataset(f"grow{name}", (0,), "f8", maxshape=(None,), chunks=(64,))


def overwrite(h5file: h5py.File, name: str) -> None:
    h5file[f"table{name}"][100:1400] = 3.0
    h5file["records"].attrs[f"done{name}"] = name
    h5file[f"records/{name}"].attrs["value"] = 7.0


def grow(h5file: h5py.File, name: str, count: int) -> None:
    table = h5file[f"grow{name}"]
    table.resize((len(table) + count,))
    table[-count:] = len(table)


def delete(h5file: h5py.File, name: str) -> None:
    del h5file[f"records/{name}"]
    h5file["records"].attrs["removed"] = name


def steps(rounds: int = 1) -> list[Step]:
    """One commit each."""
    done: list[Step] = []
    for number in range(rounds):
        name = f"r{number}"
        done += [
            partial(record, name=name, value=1.0),
            partial(begin, name=name),
            partial(record, name=name + "long", value=2.0, length=3000),
            partial(overwrite, name=name),
            partial(grow, name=name, count=37),
            partial(batch, start=100 * number),
            partial(grow, name=name, count=50),
            partial(delete, name=name),
            partial(grow, name=name, count=3),
        ]
    return done


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    create(path, build)
    return path


def run_workload(
    path: Path, io: RecordingIO, rounds: int = 1, **options: Any
) -> list[dict[str, Any]]:
    """Do all steps with a log; the content after each, remarked in the log when acknowledged."""
    io.adopt(str(path))
    contents = [read(path)]
    io.mark((0, os.path.getsize(path)))
    writer = Writer(path, io=io, **options)
    for number, step in enumerate(steps(rounds), 1):
        step(writer.h5)
        assert writer.commit()
        contents.append(content(writer.h5))
        io.mark((number, writer.file.committed_end))
        if number == 6:
            record(writer.h5, "never", 0.0)
            writer.h5.flush()
            writer.rollback()
            io.mark((number, writer.file.committed_end))
    writer.close()
    assert os.listdir(path.parent) == [path.name]
    assert read(path) == contents[-1]
    return contents


# -- crash enumeration ---------------------------------------------------------------------------


def lay_out(image: Image, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in image.items():
        (folder / os.path.basename(name)).write_bytes(data)
    return folder / "run.h5"


Known = dict[bytes, dict[str, Any]]


def read_once(path: Path, known: Known) -> dict[str, Any]:
    """As `read`, but the same bytes once: most of what crashes leave is recovered alike."""
    key = blake2b(path.read_bytes()).digest()
    if key not in known:
        known[key] = read(path)
    return known[key]


def bad(
    path: Path, contents: list[dict[str, Any]], acknowledged: int, append: bool, known: Known
) -> str:
    """Recover and read; what is wrong, or the empty string."""
    allowed = contents[acknowledged : acknowledged + 2]
    try:
        recover(path)
        found = read_once(path, known)
        if found not in allowed:
            return "content is neither the last commit nor the next"
        if append:
            writer = Writer(path)
            record(writer.h5, "afterwards", 9.0)
            writer.commit()
            writer.close()
            after = read(path)
            if not found.keys() < after.keys() or os.listdir(path.parent) != ["run.h5"]:
                return "appending afterwards went wrong"
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def enumerate_crashes(
    states: Iterator[State],
    contents: list[dict[str, Any]],
    folder: Path,
) -> tuple[int, str]:
    """How many states were looked at, and the first bad one in words."""
    rng, looked, known = random.Random(1), 0, Known()
    for looked, state in enumerate(states, 1):
        path = lay_out(state.image, folder)
        append = rng.random() < (0.5 if FULL else 0.05)
        problem = bad(path, contents, state.mark[0], append, known)
        if problem:
            return looked, f"operation {state.at}, after commit {state.mark[0]}: {problem}"
    return looked, ""


def started(states: Iterator[State]) -> Iterator[State]:
    return (state for state in states if state.mark is not None)


def sampled(states: Iterator[State], share: float) -> Iterator[State]:
    rng = random.Random(3)
    return (state for state in states if FULL or rng.random() < share)


def test_power_cut_at_every_operation(path: Path, tmp_path: Path) -> None:
    io = RecordingIO()
    contents = run_workload(path, io, rounds=8 if FULL else 4)
    seen: set[int] = set()
    states = (
        state
        for seed in range(20 if FULL else 1)
        for state in crash_states(io.log, seed=seed, seen=seen)
    )
    looked, problem = enumerate_crashes(started(states), contents, tmp_path / "crash")
    assert not problem
    assert looked > 600


@pytest.mark.parametrize("durability", ["power", "process"])
def test_kill_at_every_operation(path: Path, tmp_path: Path, durability: str) -> None:
    io = RecordingIO()
    contents = run_workload(path, io, rounds=4, durability=durability)
    looked, problem = enumerate_crashes(started(kill_states(io.log)), contents, tmp_path / "crash")
    assert not problem
    assert looked > 300


@pytest.mark.parametrize("mutant", MUTANTS)
def test_enumeration_catches_broken_protocol(path: Path, tmp_path: Path, mutant: str) -> None:
    io = RecordingIO()
    contents = run_workload(path, io)
    states = started(MUTANTS[mutant].states(io.log))
    _, problem = enumerate_crashes(states, contents, tmp_path / "crash")
    assert problem


def test_crash_during_recovery_then_recovery(path: Path, tmp_path: Path) -> None:
    io = RecordingIO()
    contents = run_workload(path, io)
    folder, again = tmp_path / "crash", tmp_path / "again"
    states = (s for s in started(crash_states(io.log)) if any("-journal" in n for n in s.image))
    looked, known = 0, Known()
    for state in sampled(states, 0.08):
        first = lay_out(state.image, folder)
        second = RecordingIO()
        for name in state.image:
            second.adopt(str(folder / os.path.basename(name)))
        recover(first, io=second, settle=state.at % 2 == 0)
        second.mark(state.mark)
        for later in crash_states(second.log, seed=state.at):
            if len(later.image) < len(state.image) and later.at < len(state.image):
                continue  # the log begins with laying out the files
            looked += 1
            acknowledged = state.mark[0]
            found = lay_out(later.image, again)
            assert not bad(found, contents, acknowledged, append=False, known=known)
    assert looked > 50


# -- the journal as bytes ----------------------------------------------------------------------


def interrupted(path: Path) -> tuple[bytes, bytes, bytes]:
    """Data file as a crash between journal and application leaves it, the journal, the goal."""

    class Stop(CrashSafeFile):
        def _apply(self, journal: Journal) -> None:
            raise KeyboardInterrupt

    writer = Writer(path, kind=Stop)
    record(writer.h5, "a", 1.0)
    with pytest.raises(KeyboardInterrupt):
        writer.commit()
    writer.abandon()
    data, journal = path.read_bytes(), Path(journal_path(path)).read_bytes()
    assert recover(path, settle=True)
    return data, journal, path.read_bytes()


def test_journal_cut_or_flipped_at_every_byte(path: Path) -> None:
    before = path.read_bytes()
    data, journal, after = interrupted(path)
    sidecar = Path(journal_path(path))
    spoilt = [journal[:length] for length in range(len(journal))]
    for at in range(len(journal)):
        flipped = bytearray(journal)
        flipped[at] ^= 1 << (at % 8)
        spoilt.append(bytes(flipped))
    for blob in spoilt:
        path.write_bytes(data)
        sidecar.write_bytes(blob)
        assert not pending(path)
        assert not recover(path)
        assert path.read_bytes() == before
    path.write_bytes(data)
    sidecar.write_bytes(journal + b"what an earlier, longer journal left")
    assert pending(path)
    assert recover(path)
    assert path.read_bytes() == after


def test_journal_is_applied_once_or_twice(path: Path) -> None:
    data, journal, after = interrupted(path)
    sidecar = Path(journal_path(path))
    sidecar.write_bytes(journal)
    assert not pending(path)
    assert recover(path)
    assert path.read_bytes() == after
    half = bytearray(data)
    half[: len(data) // 2] = after[: len(data) // 2]
    path.write_bytes(half)
    assert pending(path)
    assert recover(path, settle=True)
    assert path.read_bytes() == after
    assert not sidecar.exists()


def test_stale_journal_never_touches_another_file(path: Path, tmp_path: Path) -> None:
    _, journal, _ = interrupted(path)
    path.unlink()
    create(path, lambda temporary: build(temporary, bytes(16)))
    with open(path, "ab") as file:
        file.write(bytes(10_000))  # long enough for the journal to fit
    before = path.read_bytes()
    Path(journal_path(path)).write_bytes(journal)
    assert not pending(path)
    assert Overlay(path).pread(len(before), 0) == before
    assert not recover(path)
    assert path.read_bytes() == before[: len(before) - 10_000]
    aside = [name for name in os.listdir(tmp_path) if "-journal" in name]
    assert aside == [f"run.h5-journal-{FILE_ID.hex()[:8]}"]
    assert (tmp_path / aside[0]).read_bytes() == journal


def test_superseded_journal_is_dropped(path: Path) -> None:
    _, journal, _ = interrupted(path)
    writer = Writer(path)
    record(writer.h5, "b", 2.0)
    writer.commit()
    writer.close()
    expected = path.read_bytes()
    Path(journal_path(path)).write_bytes(journal)
    assert not pending(path)
    assert not recover(path)
    assert path.read_bytes() == expected
    assert os.listdir(path.parent) == ["run.h5"]


def test_journal_of_a_newer_version_is_left_alone(path: Path) -> None:
    data, journal, _ = interrupted(path)
    body = b"\x02" + journal[HEADER.size + 1 :]
    path.write_bytes(data)
    Path(journal_path(path)).write_bytes(Journal.sign(body))
    with pytest.raises(StoreError, match="version 2, expected 1"):
        recover(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("what", ["link", "directory", "fifo"])
def test_sidecar_that_is_no_plain_file_is_refused(path: Path, tmp_path: Path, what: str) -> None:
    sidecar, victim = Path(journal_path(path)), tmp_path / "victim"
    victim.write_bytes(b"precious")
    {"link": lambda: sidecar.symlink_to(victim), "directory": sidecar.mkdir}.get(
        what, lambda: os.mkfifo(sidecar)
    )()
    with pytest.raises(StoreError, match="not a plain file"):
        recover(path)
    with pytest.raises(StoreError, match="not a plain file"):
        CrashSafeFile(path, state_offset=state_offset(path))
    assert victim.read_bytes() == b"precious"


# -- faults --------------------------------------------------------------------------------------


def attempt(path: Path, io: FaultyIO) -> tuple[list[dict[str, Any]], int, WriteError | None]:
    """Work until something is refused; contents so far, how many acknowledged, and the error."""
    contents = [read(path)]
    acknowledged = 0
    writer = Writer(path, io=io)
    try:
        for step in steps():
            step(writer.h5)
            generation = writer.file.generation + 1
            writer.h5["state"][16:] = np.frombuffer(generation.to_bytes(8, "little"), "u1")
            writer.h5.flush()
            contents.append(content(writer.h5) if writer.file.error is None else {})
            writer.file.commit()
            acknowledged += 1
        writer.close()
    except WriteError as error:
        writer.abandon()
        return contents, acknowledged, error
    return contents, acknowledged, None


FAULTS = [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, True), (0, False), (0, True)]


@pytest.mark.parametrize(("number", "for_good"), FAULTS)
def test_every_refused_operation_is_reported(
    tmp_path: Path, path: Path, number: int, for_good: bool
) -> None:
    probe = FaultyIO(0, number, for_good=False)
    whole, _, _ = attempt(Path(shutil.copy(path, tmp_path / "probe.h5")), probe)
    for at in range(1, probe.count + 1, 1 if FULL else 2):
        victim = lay_out({"run.h5": path.read_bytes()}, tmp_path / "fault")
        io = FaultyIO(at, number, for_good=for_good)
        _, acknowledged, error = attempt(victim, io)
        assert io.fired
        if number or for_good:
            assert error is not None
            assert error.errno == (number or errno.ENOSPC)
            assert "fault/run.h5" in str(error)
        else:
            assert acknowledged == len(whole) - 1
        recover(victim)
        assert read(victim) in whole[acknowledged : acknowledged + 2]
        writer = Writer(victim)
        record(writer.h5, "afterwards", 1.0)
        writer.commit()
        writer.close()
        assert "records/afterwards" in read(victim)


def test_recovery_on_a_full_disk_can_be_repeated(path: Path) -> None:
    data, journal, after = interrupted(path)
    for at in count(1):
        path.write_bytes(data)
        Path(journal_path(path)).write_bytes(journal)
        io = FaultyIO(at, errno.ENOSPC, for_good=True)
        with contextlib.suppress(WriteError):
            recover(path, io=io, settle=True)
        if not io.fired:
            break
        assert recover(path, settle=True)
        assert path.read_bytes() == after
    assert at > 4


def test_read_error_is_kept_for_check(path: Path) -> None:
    class Unreadable(OsIO):
        broken = False

        def preadinto(self, fd: int, buffer: Any, offset: int) -> int:  # type: ignore[override]
            if self.broken:
                raise OSError(errno.EIO, "no")
            return OsIO.preadinto(fd, buffer, offset)

    io = Unreadable()
    writer = Writer(path, io=io)
    io.broken = True
    with contextlib.suppress(KeyError):
        writer.h5["records"]
    with pytest.raises(WriteError, match="read failed: EIO"):
        writer.file.check()
    writer.abandon()


class LateSyncs(OsIO):
    """Syncs fail once in another thread than the test's, where the file is synced ahead."""

    def __init__(self) -> None:
        self.own = threading.get_ident()
        self.ahead = 0

    def sync(self, fd: int) -> None:  # type: ignore[override]
        if threading.get_ident() != self.own:
            self.ahead += 1
            if self.ahead == 1:
                raise OSError(errno.EIO, "no")
        OsIO.sync(fd)


def large(h5file: h5py.File) -> None:
    h5file["records"].create_dataset("large", data=np.arange(500_000.0), chunks=(50_000,))


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_error_of_a_sync_ahead_is_not_lost(path: Path, end: str) -> None:
    """The system tells of it once: the sync of the commit itself succeeds."""
    before = read(path)
    io = LateSyncs()
    writer = Writer(path, io=io)
    large(writer.h5)
    with pytest.raises(WriteError, match=r"sync.* failed: EIO"):
        getattr(writer, end)()
    assert io.ahead == 1
    writer.abandon()
    assert read(path) == before
    recover(path, settle=True)
    assert read(path) == before


def test_what_is_kept_for_the_process_is_not_synced_ahead(path: Path) -> None:
    io = LateSyncs()
    writer = Writer(path, io=io, durability="process")
    large(writer.h5)
    assert writer.commit()
    writer.close()
    assert io.ahead == 0


# -- the file object -------------------------------------------------------------------------------


def test_file_object_is_a_plain_file_to_its_user(path: Path) -> None:
    """Random reads and writes agree with a bytearray; the committed file moves only in commits."""
    rng = random.Random(5)
    offset = state_offset(path)
    file = CrashSafeFile(path, state_offset=offset)
    model = bytearray(path.read_bytes())
    committed = bytes(model)
    for turn in range(1, 1500):
        at, length = rng.randrange(len(model) + 3000), rng.choice([1, 30, 500, 5000, 20_000])
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            file.seek(at)
            file.write(memoryview(data))
            model.extend(bytes(max(0, at + length - len(model))))
            model[at : at + length] = data
        else:
            buffer = bytearray(length)
            file.seek(at)
            file.readinto(buffer)
            assert buffer == model[at : at + length].ljust(length, b"\0")
        if turn % 50 == 0:
            state = file.file_id + (file.generation + 1).to_bytes(8, "little")
            file.seek(offset)
            file.write(state)
            model[offset : offset + 24] = state
            assert path.read_bytes()[: len(committed)] == committed
            if turn % 100 == 0:
                file.truncate(len(model))
                assert file.commit()
                committed = bytes(model)
                assert path.read_bytes() == committed
            else:
                file.rollback()
                model = bytearray(committed)
            file.seek(0, 2)
            assert file.tell() == len(model)
    file.close()
    assert path.read_bytes() == committed


def test_commit_without_a_new_generation_is_refused(path: Path) -> None:
    writer = Writer(path)
    record(writer.h5, "a", 1.0)
    writer.h5.flush()
    with pytest.raises(ValueError, match="raise the generation"):
        writer.file.commit()
    writer.abandon()


def test_nothing_to_commit(path: Path) -> None:
    writer = Writer(path)
    writer.h5.flush()
    assert not writer.file.commit()
    writer.close()
    assert os.listdir(path.parent) == ["run.h5"]


def test_rollback_restores_file_and_store_goes_on(path: Path) -> None:
    writer = Writer(path)
    record(writer.h5, "a", 1.0)
    writer.commit()
    committed = path.read_bytes()
    record(writer.h5, "b", 2.0, length=5000)
    writer.h5.flush()
    writer.rollback()
    assert path.read_bytes() == committed
    assert list(writer.h5["records"]) == ["a"]
    record(writer.h5, "c", 3.0)
    writer.commit()
    writer.close()
    assert names(path) == ["a", "c"]


def test_committed_end_never_falls(path: Path) -> None:
    writer = Writer(path)
    record(writer.h5, "a", 1.0)
    writer.commit()
    end = writer.file.committed_end
    del writer.h5["records/a"]
    writer.commit()
    assert writer.file.committed_end >= end
    assert path.stat().st_size >= end
    writer.close()


def test_moved_notices_other_writers(path: Path) -> None:
    writer = Writer(path)
    assert not writer.file.moved()
    record(writer.h5, "a", 1.0)
    writer.commit()
    assert not writer.file.moved()
    other = Writer(path)
    assert not writer.file.moved()
    other.close()
    assert not writer.file.moved()
    record(writer.h5, "b", 2.0)
    writer.commit()
    other = Writer(path)
    record(other.h5, "c", 3.0)
    other.commit()
    assert writer.file.moved()
    writer.abandon()
    other.close()
    assert names(path) == ["a", "b", "c"]


@pytest.mark.parametrize("inherited", [False, True])
def test_moved_notices_a_writer_that_died_between_journal_and_file(
    path: Path, inherited: bool
) -> None:
    idle = Writer(path)
    record(idle.h5, "a", 1.0)
    idle.commit()
    if inherited:
        idle.abandon()
        idle = Writer(path)
        assert not idle.file.moved()

    class Stop(CrashSafeFile):
        def _apply(self, journal: Journal) -> None:
            raise KeyboardInterrupt

    dying = Writer(path, kind=Stop)
    record(dying.h5, "b", 2.0)
    with pytest.raises(KeyboardInterrupt):
        dying.commit()
    dying.abandon()
    assert idle.file.moved()
    idle.abandon()
    assert recover(path)
    assert names(path) == ["a", "b"]


def test_moved_notices_a_replaced_file(path: Path) -> None:
    writer = Writer(path)
    copy = path.with_name("copy.h5")
    shutil.copy(path, copy)
    replace(copy, path)
    assert writer.file.moved()
    writer.abandon()


def test_overlay_shows_the_journalled_commit(path: Path) -> None:
    data, journal, after = interrupted(path)
    expected = read(path)
    path.write_bytes(data)
    Path(journal_path(path)).write_bytes(journal)
    overlay = Overlay(path)
    with open_h5(overlay, write=False) as h5file:
        assert content(h5file) == expected
    assert overlay.pread(len(after), 0) == after
    overlay.close()
    assert path.read_bytes() == data


def test_foreign_reader_sees_the_last_commit_while_another_is_written(path: Path) -> None:
    writer = Writer(path)
    record(writer.h5, "a", 1.0)
    writer.commit()
    record(writer.h5, "b", 2.0)
    writer.h5.flush()
    assert names(path) == ["a"]
    writer.close()
    assert names(path) == ["a"]


def test_link_to_the_data_file_has_the_same_journal(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.h5"
    link.symlink_to(path)
    assert journal_path(link) == journal_path(path)
    writer = Writer(link)
    record(writer.h5, "a", 1.0)
    writer.commit()
    assert os.path.exists(journal_path(path))
    writer.close()
    assert link.is_symlink()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_forked_child_writes_nothing(path: Path) -> None:
    writer = Writer(path)
    record(writer.h5, "a", 1.0)
    writer.commit()
    before = path.read_bytes(), Path(journal_path(path)).read_bytes()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            record(writer.h5, "child", 5.0, length=3000)
            writer.h5.flush()
            try:
                writer.file.commit()
            except ClosedError:
                writer.close()
                status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (path.read_bytes(), Path(journal_path(path)).read_bytes()) == before
    record(writer.h5, "b", 2.0)
    writer.commit()
    writer.close()
    assert names(path) == ["a", "b"]


@needs_fork
def test_killed_writer_loses_nothing_acknowledged(path: Path) -> None:
    rng, done = random.Random(2), -1
    for _ in range(30 if FULL else 4):

        def endless(say: Say, first: int = done + 2) -> None:
            writer = Writer(path, durability="process")
            for number in count(first):
                record(writer.h5, str(number), float(number))
                writer.commit()
                say(number)

        with Child(endless) as child:
            for _ in range(rng.randrange(1, 60)):
                done = child.hear()
            child.kill()
            done = [done, *child.rest()][-1]
        recover(path)
        with h5py.File(path) as h5file:
            found = {int(name) for name in h5file["records"]}
            assert done in found
            assert max(found) <= done + 1
            for name in found:
                assert (h5file[f"records/{name}/x"][:] == name).all()


# -- whole files -------------------------------------------------------------------------------


def test_create_is_atomic_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "new.h5"

    def fail(temporary: str) -> None:
        build(temporary)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        create(path, fail)
    assert os.listdir(tmp_path) == []
    create(path, build)
    first = path.read_bytes()
    with pytest.raises(StoreExistsError, match=r"new\.h5: exists already"):
        create(path, build)
    assert os.listdir(tmp_path) == ["new.h5"]
    assert path.read_bytes() == first


def test_create_where_there_are_no_hard_links(tmp_path: Path) -> None:
    class Copying(NoLinks, OsIO):
        pass

    path = tmp_path / "new.h5"
    create(path, build, io=Copying())
    assert read(path)
    with pytest.raises(StoreExistsError):
        create(path, build, io=Copying())
    assert os.listdir(tmp_path) == ["new.h5"]


def test_power_cut_while_creating_or_replacing(tmp_path: Path) -> None:
    path, other = tmp_path / "run.h5", tmp_path / "other.h5"
    io = RecordingIO()
    create(path, build, io=io)
    io.mark("created")
    create(other, lambda temporary: build(temporary, bytes(16)), io=io)
    settle(other, io=io)
    replace(other, path, io=io)
    sync_names(path, "replacing it", io=io)
    io.mark("replaced")
    allowed: dict[Any, set[bytes | None]] = {
        None: {None, FILE_ID},
        "created": {FILE_ID, bytes(16)},
        "replaced": {bytes(16)},
    }
    io.log.append(Op("nothing"))
    for state in crash_states(io.log):
        path = lay_out(state.image, tmp_path / "crash")
        found = read(path)["state"][0][:16] if path.exists() else None
        assert found in allowed[state.mark]


def test_refused_replacement_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    temporary = path.with_name("new.h5")
    build(str(temporary))
    with pytest.raises(WriteError, match="nothing changed"):
        settle(temporary, io=FaultyIO(1, errno.EIO, for_good=True))
    with pytest.raises(WriteError, match="the old file stands"):
        replace(temporary, path, io=FaultyIO(1, errno.EIO, for_good=True))
    assert path.read_bytes() == before


def test_journal_reads_back(path: Path) -> None:
    _, blob, _ = interrupted(path)
    sidecar = journal_path(path)
    Path(sidecar).write_bytes(blob)
    present, journal = read_journal(OsIO(), sidecar)
    assert present
    assert journal is not None
    assert journal.encode() == blob
    assert dataclasses.replace(journal, new_end=0).encode() != blob
