"""Kills and power cuts of bare h5py and of neurostore, counted.

A kill is a SIGKILL of a process that stores one small record after another and says which are
done. A power cut is played back on a model of a disk from a log of what was written: every
operation is the last one, with what was not synced dropped, kept, torn and reordered. A case is bad
when the file does not open or a record that was said to be done is not there with its values.
Whatever may crash HDF5 is read in a forked process.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import neurostore
from benchmarks.report import Line, Table

# The tools of the tests, which stand beside this folder and know each other by their bare names.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import children
import crash
import test_store_crash

HEAD = ("what writes", "kills", "of them bad", "power cuts", "of them bad")
LENGTH = 200


@dataclass(frozen=True)
class Sizes:
    """How much is tried: kills of each writer, seeds and share of the power cuts.

    ``full`` ones keep more different parts of what was not synced.
    """

    kills: int
    seeds: int
    share: float
    full: bool = False

    def __str__(self) -> str:
        ways = len(list(crash.choices(random.Random(), self.full)))
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        share = "all" if self.share == 1 else f"{self.share:.0%}"
        return (
            f"Power cuts: after each operation {share} of {ways} ways to keep what was not synced, "
            f"with up to 4 of what became of the names, for {seeds}; equal states count once."
        )

    def states(self, log: crash.Log) -> Iterator[list[crash.State]]:
        """What power cuts may leave, for each seed what is new with it."""
        seen: set[int] = set()
        for seed in range(self.seeds):
            states = crash.crash_states(log, seed=seed, share=self.share, full=self.full, seen=seen)
            yield list(states)


def run(folder: Path, sizes: Sizes) -> Table:
    """Count for every writer."""
    about = (__doc__ or "").partition("\n\n")[2].replace("\n", " ")
    table = Table("Kills and power cuts", f"{about.strip()} {sizes}")
    table.head = HEAD
    for name, options, sync in (
        ("bare h5py, flush after each record", {}, False),
        ('bare h5py, `libver="latest"`, flush', {"libver": "latest"}, False),
        ("bare h5py, flush and fsync", {}, True),
        ('bare h5py, `libver="latest"`, flush and fsync', {"libver": "latest"}, True),
    ):
        kills = killed(folder, sizes.kills, by_h5py(options, sync), h5py_holds)
        cuts = bare_cuts(folder, options, sync, sizes)
        table.rows.append(line(name, kills, cuts))
    for durability in ("process", "power"):
        kills = killed(folder, sizes.kills, by_neurostore(durability), neurostore_holds)
        run = test_store_crash.run_steps(made(folder / f"steps-{durability}"), durability)
        cuts = our_cuts(run, folder / "crash", sizes) if durability == "power" else None
        table.rows.append(line(f'neurostore, `durability="{durability}"`', kills, cuts))
    return table


Counts = tuple[int, int]


def line(name: str, kills: Counts, cuts: Counts | None) -> Line:
    """One writer's counts."""
    lost = ("not promised", "") if cuts is None else (f"{cuts[0]:,}", f"{cuts[1]:,}")
    return Line((name, f"{kills[0]:,}", f"{kills[1]:,}", *lost))


def made(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# -- kills -------------------------------------------------------------------------------------

Writer = Callable[[Path, int, children.Say], None]
Holds = Callable[[Path, Iterable[int]], bool]


def put(h5file: h5py.File, number: int) -> None:
    """One small record by plain h5py."""
    data = np.full(LENGTH, float(number))
    h5file.create_dataset(f"r{number}", data=data, chunks=data.shape, compression="gzip")


def by_h5py(options: dict[str, Any], sync: bool) -> Writer:
    """Store without end by h5py's native driver."""

    def write(path: Path, first: int, say: children.Say) -> None:
        with h5py.File(path, "a", **options) as h5file:
            descriptor = h5file.id.get_vfd_handle()
            number = first
            while True:
                put(h5file, number)
                h5file.flush()
                if sync:
                    os.fdatasync(descriptor)
                say(number)
                number += 1

    return write


def by_neurostore(durability: Any) -> Writer:
    """Store without end by neurostore."""

    def write(path: Path, first: int, say: children.Say) -> None:
        with neurostore.open(path, durability=durability) as store:
            number = first
            while True:
                values = np.full(LENGTH, float(number))
                store.store(neurostore.homeostatic_trace(values, "m", timestamp=float(number)))
                say(number)
                number += 1

    return write


def h5py_holds(path: Path, numbers: Iterable[int]) -> bool:
    """Tell whether h5py finds the records."""
    with h5py.File(path, "r") as h5file:
        return all((h5file[f"r{number}"][:] == number).all() for number in numbers)


def neurostore_holds(path: Path, numbers: Iterable[int]) -> bool:
    """Tell whether neurostore, and then h5py, find the records."""
    with neurostore.open(path) as store:
        for number in numbers:
            ds = store.retrieve(f"m_{float(number)!r}").load()
            if not (ds["changes"].values == number).all():
                return False
    return True


def killed(folder: Path, kills: int, write: Writer, holds: Holds) -> Counts:
    """Kill the writer so many times, on one file until it is bad, then on a new one.

    A file is also bad where the next writer cannot go on.
    """
    rng, bad, count = random.Random(1), 0, 0
    path, done = made(folder / "kills") / "run.h5", list[int]()
    while count < kills:
        good = True
        with children.Child(partial(write, path, max(done, default=-1) + 2)) as child:
            try:
                for _ in range(rng.randrange(1, 12)):
                    done.append(child.hear())
                time.sleep(rng.random() * 0.004)
                child.kill()
                done += child.rest()
                count += 1
            except (AssertionError, EOFError):
                if not done:  # that was no kill's fault
                    raise
                good = False
        wanted = [*done[-20:], *rng.sample(done, min(10, len(done)))]
        good = good and safely(partial(holds, path, wanted))
        bad += not good
        if not good or len(done) > 500:
            path, done = made(folder / "kills") / "run.h5", []
    return kills, bad


def safely(question: Callable[[], bool]) -> bool:
    """Ask in a forked process; whatever kills or stops it is a no."""
    with children.Child(lambda say: question()) as child:
        try:
            return bool(child.hear(60.0))
        except (AssertionError, EOFError):
            return False


# -- power cuts ----------------------------------------------------------------------------------


class Plain:
    """A file object for h5py that passes everything on: what the native driver does, with a log."""

    def __init__(self, path: Path, io: crash.RecordingIO) -> None:
        self._io = io
        self._fd = io.open(str(path), os.O_RDWR | os.O_CREAT)
        self._position = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset if whence == 0 else self._io.size(self._fd) + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, length: int = -1) -> bytes:
        """Never called; h5py knows a file object by it."""
        raise NotImplementedError

    def readinto(self, buffer: Any) -> int:
        data = self._io.pread(self._fd, len(buffer), self._position)
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        return self._io.pwrite(self._fd, bytes(data), self._position)

    def truncate(self, size: int | None = None) -> int:
        self._io.truncate(self._fd, self._position if size is None else size)
        return self._position

    def flush(self) -> None:
        pass

    def sync(self) -> None:
        self._io.sync(self._fd)


def bare_cuts(folder: Path, options: dict[str, Any], sync: bool, sizes: Sizes) -> Counts:
    """Cut the power of h5py while it stores thirty records."""
    io = crash.RecordingIO()
    file = Plain(made(folder / "bare") / "run.h5", io)
    with h5py.File(file, "w", **options) as h5file:
        h5file.flush()
        file.sync()
        io.sync_directory(str(folder))
        io.mark(-1)
        for number in range(30):
            put(h5file, number)
            h5file.flush()
            if sync:
                file.sync()
            io.mark(number)
    count = bad = 0
    for found in sizes.states(io.log):
        states = [state for state in found if state.mark is not None]
        count += len(states)
        bad += sum(not good for good in looked_at(states, folder / "crash"))
    return count, bad


def looked_at(states: list[crash.State], folder: Path) -> Iterator[bool]:
    """Read each state in a forked process, which goes on with the next as long as it lives."""
    position = 0
    while position < len(states):

        def look(say: children.Say, first: int = position) -> None:
            for state in states[first:]:
                try:
                    path = test_store_crash.lay_out(state.image, folder)
                    say(h5py_holds(path, range(state.mark + 1)))
                except Exception:  # noqa: BLE001 (any keeps the record from its reader)
                    say(False)

        with children.Child(look) as child:
            try:
                while position < len(states):
                    good = child.hear(60.0)
                    position += 1
                    yield good
            except (AssertionError, EOFError):
                position += 1
                yield False


def our_cuts(run: test_store_crash.Run, folder: Path, sizes: Sizes) -> Counts:
    """Cut the power, and kill, in everything that a store does."""
    judge = test_store_crash.Judge(run, folder)
    rng = random.Random(0)
    problems = [
        judge.problem(state, thorough=rng.random() < 0.02)
        for states in sizes.states(run.log)
        for state in states
    ]
    seen: set[int] = set()
    for seed in range(sizes.seeds):
        for state in crash.kill_states(run.log, seed=seed, share=sizes.share, seen=seen):
            problems.append(judge.problem(state, thorough=False))
    for problem in filter(None, problems):
        print("LOST", problem, file=sys.stderr, flush=True)
    return judge.looked, sum(map(bool, problems))


def mutants(folder: Path, share: float) -> Table:
    """Break the protocol in one place after the other, and look until a power cut shows it."""
    run = test_store_crash.run_steps(made(folder / "mutants"), "power")
    about = (
        "The same enumeration over protocols that leave something out: each must be caught, or the "
        "enumeration would show nothing."
    )
    table = Table("Broken protocols", about, head=("left out or wrong", "caught", "at state"))
    for name, mutant in {**crash.MUTANTS, **crash.FILE_MUTANTS}.items():
        judge = test_store_crash.Judge(run, folder / "crash")
        states = mutant.states(run.log, share=share)
        caught = any(judge.problem(state, thorough=False) for state in states)
        table.rows.append(Line((name, "yes" if caught else "**no**", f"{judge.looked:,}")))
    return table
