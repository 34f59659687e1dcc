"""Crashes and faults of the whole store: every operation of the system is one to die in.

The recovered content is that of the last acknowledged step or of the one in flight, and storing
goes on afterwards; a full disk is reported and costs nothing. `NEUROSTORE_TESTS=full` looks at
every state instead of a seeded sample.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import pytest
from crash import (
    FILE_MUTANTS,
    MUTANTS,
    FaultyIO,
    Image,
    Log,
    NoLinks,
    RecordingIO,
    State,
    crash_states,
    kill_states,
)
from tiers import FULL
from workload import STEPS, Content, content, content_at, fits, spikes

import neurostore
from neurostore.errors import ClosedError, HDF5StorageError, WriteError
from neurostore.journal import recover
from neurostore.session import close_all
from neurostore.store import Store


@dataclass
class Run:
    """What one run of all steps did to the disk, and what the store held after each."""

    log: Log
    contents: list[Content]


def run_steps(folder: Path, durability: str, contents: list[Content] | None = None) -> Run:
    """Do every step with a log, remarked with the number of the steps that are acknowledged.

    The contents after each are the same in every run.
    """
    io = RecordingIO()
    store = Store(folder / "run.h5", durability=durability, io=io)  # type: ignore[arg-type]
    found = [content(store)]
    io.mark(0)
    for number, step in enumerate(STEPS, 1):
        step.do(store)
        found.append(content(store) if contents is None else contents[number])
        io.mark(number)
    assert content(store) == found[-1]
    store.close()
    close_all()
    assert not [name for name in os.listdir(folder) if not name.endswith(".h5")]
    return Run(io.log, found)


@pytest.fixture(scope="module")
def power(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_steps(tmp_path_factory.mktemp("power"), "power")


@pytest.fixture(scope="module")
def process(power: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_steps(tmp_path_factory.mktemp("process"), "process", power.contents)


def lay_out(image: Image, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in image.items():
        (folder / os.path.basename(name)).write_bytes(data)
    return folder / "run.h5"


@dataclass
class Judge:
    """Recovers states and compares what is there; the same bytes are read once."""

    run: Run
    folder: Path
    known: dict[bytes, Content] = field(default_factory=dict)
    looked: int = 0

    def problem(self, state: State, thorough: bool) -> str:
        """What is wrong with what a crash left, or the empty string."""
        self.looked += 1
        done = -1 if state.mark is None else state.mark
        try:
            path = lay_out(state.image, self.folder)
            found = self._appended(path) if thorough else self._recovered(path)
        except (HDF5StorageError, OSError, RuntimeError, KeyError, ValueError) as error:
            return f"{self._where(state, done)}: {type(error).__name__}: {error}"
        before = self.run.contents[max(done, 0)]
        after = self.run.contents[min(done + 1, len(STEPS))]
        if fits(found, before, after, done < len(STEPS) and STEPS[max(done, 0)].gradual):
            return ""
        lost, new = before.keys() - found.keys(), found.keys() - before.keys()
        return f"{self._where(state, done)}: lost {sorted(lost)[:3]}, new {sorted(new)[:3]}"

    def _where(self, state: State, done: int) -> str:
        inside = STEPS[done].name if 0 <= done < len(STEPS) else "the beginning or the end"
        return f"operation {state.at}, in {inside!r}"

    def _recovered(self, path: Path) -> Content:
        for file in sorted(self.folder.glob("*.h5")):
            recover(file, settle=True, durability="process")
        digest = blake2b()
        for file in sorted(self.folder.glob("[!.]*.h5")):
            data = file.read_bytes()
            digest.update(f"{file.name} {len(data)} ".encode() + data)
        key = digest.digest()
        if key not in self.known:
            self.known[key] = content_at(path)
        return self.known[key]

    def _appended(self, path: Path) -> Content:
        """Let the store itself recover, store something, and take that out of the answer."""
        found = content_at(path)
        with neurostore.open(path, durability="process") as store:
            added = store.store(spikes(5.0, 7))
            after = content(store)
        close_all()
        del after[added]
        if after != found or added in found:
            raise ValueError("storing afterwards changed what was there")
        return found


def judged(run: Run, states: Iterator[State], folder: Path) -> Judge:
    """Look at states, the store itself recovering some of them; fail on a bad one."""
    rng, judge = random.Random(0), Judge(run, folder)
    for state in states:
        problem = judge.problem(state, thorough=rng.random() < 0.04)
        assert not problem
    return judge


def test_power_cut_at_every_operation(power: Run, tmp_path: Path) -> None:
    for seed in range(5 if FULL else 1):
        states = crash_states(power.log, seed=seed, share=1.0 if FULL else 0.3)
        assert judged(power, states, tmp_path / "crash").looked > 400


@pytest.mark.parametrize("durability", ["power", "process"])
def test_kill_at_every_operation(
    durability: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(durability)
    states = kill_states(run.log, share=1.0 if FULL else 0.5)
    assert judged(run, states, tmp_path / "crash").looked > 100


@pytest.mark.parametrize("name", [*MUTANTS, *FILE_MUTANTS])
def test_enumeration_catches_broken_protocol(power: Run, tmp_path: Path, name: str) -> None:
    mutant = {**MUTANTS, **FILE_MUTANTS}[name]
    judge = Judge(power, tmp_path / "crash")
    states = mutant.states(power.log, share=1.0 if FULL else 0.3)
    assert any(judge.problem(state, thorough=False) for state in states)


FAULTS = [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, True), (0, False), (0, True)]


def stopped_by(folder: Path, io: FaultyIO) -> tuple[Store | None, int, HDF5StorageError | None]:
    """Do the steps until one is refused; the store, the number done (-1: not made), the error."""
    store, done = None, -1
    try:
        store = Store(folder / "run.h5", durability="power", io=io)
        for step in STEPS:
            done += 1
            step.do(store)
        done = len(STEPS)
        store.close()
    except HDF5StorageError as error:
        return store, max(done, 0) if store else -1, error
    return store, done, None


@pytest.mark.parametrize(("number", "for_good"), FAULTS)
def test_every_refused_operation_is_reported(
    power: Run, tmp_path: Path, number: int, for_good: bool
) -> None:
    """Nothing acknowledged is lost, for the store that goes on and for one that opens later."""
    probe = FaultyIO(0, number, for_good=False)
    (tmp_path / "probe").mkdir()
    stopped_by(tmp_path / "probe", probe)
    points = range(1, probe.count + 1)
    for at in points if FULL else random.Random(number + for_good).sample(points, 5):
        folder = tmp_path / "fault"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        io = FaultyIO(at, number, for_good=for_good)
        store, done, failure = stopped_by(folder, io)
        if not io.fired:  # how many pieces HDF5 writes in is not always the same
            assert at > 0.9 * probe.count
            continue
        assert failure is not None or done == len(STEPS)
        path = folder / "run.h5"
        if store is None:
            assert not path.exists() or content_at(path) == {}
            continue
        before = power.contents[done]
        after = power.contents[min(done + 1, len(STEPS))]
        gradual = done < len(STEPS) and STEPS[done].gradual
        with contextlib.suppress(WriteError, ClosedError):  # where recovery is refused, too
            assert fits(content(store), before, after, gradual)
        close_all()
        assert fits(content_at(path), before, after, gradual)
        with neurostore.open(path, durability="process") as again:
            assert again.store(spikes(5.0, 7)) in again.ids()
        close_all()


class Copying(NoLinks, FaultyIO):
    pass


@pytest.mark.parametrize("kind", [FaultyIO, Copying])
def test_every_refused_operation_of_a_rotation(tmp_path: Path, kind: type[FaultyIO]) -> None:
    """The history is whole, and a folder holds no file that is not of it."""
    whole = ["train_1.0", "train_2.0"]
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        io = kind(0, errno.EIO, for_good=False)
        with Store(folder / "run.h5", durability="power", io=io) as store:
            store.store(spikes(1.0))
            store.rotate()
            store.store(spikes(2.0))
            io.at = io.count + at
            try:
                store.rotate()
            except WriteError as error:
                stands = "after replacing the file" in str(error)
                assert len(store.info()["files"]) == (3 if stands else 2)
            assert store.ids() == whole
        close_all()
        assert list(content_at(folder / "run.h5")) == whole
        with Store(folder / "run.h5") as store:
            store.store(spikes(3.0))
            store.rotate()
            assert store.ids() == [*whole, "train_3.0"]
            assert sorted(map(str, folder.glob("run*.h5"))) == sorted(store.info()["files"])
        if not io.fired:
            break
    assert at > 10


class Dying(FaultyIO):
    """Nothing works any more from the last step of a rotation on."""

    dies = False

    def replace(self, source: str, target: str) -> None:
        if self.dies and target.endswith("run.h5"):
            self.at = self.count + 1
        super().replace(source, target)


class DyingCopying(NoLinks, Dying):
    pass


def interrupt(path: Path, kind: type[Dying]) -> None:
    """Leave a rotation that has given the second name, and no more."""
    io = kind(10**9, errno.EIO, for_good=True)
    with contextlib.suppress(HDF5StorageError), Store(path, durability="power", io=io) as store:
        store.store(spikes(1.0))
        io.dies = True
        store.rotate()
    close_all()
    assert path.with_name("run.000001.h5").exists()


@pytest.mark.parametrize(("dying", "kind"), [(Dying, FaultyIO), (DyingCopying, Copying)])
@pytest.mark.parametrize("at", range(10) if FULL else [0, 1, 2, 3, 7])
def test_an_interrupted_rotation_is_ended(
    tmp_path: Path, dying: type[Dying], kind: type[FaultyIO], at: int
) -> None:
    """Also where another operation is refused meanwhile: no name is left behind."""
    path = tmp_path / "run.h5"
    interrupt(path, dying)
    io = kind(at, errno.EIO, for_good=False)
    with contextlib.suppress(WriteError), Store(path, durability="power", io=io) as store:
        store.store(spikes(2.0))
    close_all()
    with Store(path) as store:
        store.store(spikes(3.0))
        store.rotate()
        assert {"train_1.0", "train_3.0"} <= set(store.ids())
        assert sorted(map(str, tmp_path.glob("run*.h5"))) == sorted(store.info()["files"])


class RecordingCopying(NoLinks, RecordingIO):
    pass


@pytest.mark.parametrize("kind", [RecordingIO, RecordingCopying])
def test_names_are_on_the_medium_before_the_next_step(
    tmp_path: Path, kind: type[RecordingIO]
) -> None:
    io, path = kind(), tmp_path / "run.h5"

    def renamed(work: Callable[[Store], object]) -> list[str]:
        with Store(path, durability="power", io=io) as store:
            store.store(spikes(1.0))
            io.log.clear()
            work(store)
        made = {op.file: op.name for op in io.log if op.what == "create"}
        synced = {made.get(op.file, "") for op in io.log if op.what == "sync"}
        renames = [op for op in io.log if op.what == "rename"]
        assert {op.name for op in renames} <= synced
        return [op.what for op in io.log if op.what in ("link", "rename", "sync names")]

    assert renamed(lambda store: store.compact())[-2:] == ["rename", "sync names"]
    second = "link" if kind is RecordingIO else "rename"
    steps = [second, "sync names", "rename", "sync names"]
    assert renamed(lambda store: store.rotate())[-4:] == steps


def test_an_interrupted_rotation_syncs_the_second_name(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    interrupt(path, Dying)
    io = RecordingIO()
    with Store(path, durability="power", io=io) as store:
        store.rotate()
    steps = [op.what for op in io.log if op.what in ("link", "rename", "sync names")]
    assert steps[: steps.index("rename")][-1:] == ["sync names"]
