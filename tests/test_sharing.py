"""One file among processes, threads and users: who waits, who is refused, and what is seen."""

from __future__ import annotations

import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
from children import NOBODY, Child, Say, needs_fork, needs_root

import neurostore
from neurostore import HDF5Storage, LockTimeoutError, ReadOnlyError, RecordNotFoundError
from neurostore.catalogue import ROW, Table
from neurostore.errors import ClosedError, HDF5StorageError, MovedError
from neurostore.journal import journal_path
from neurostore.locks import lock_path
from neurostore.osio import OsIO
from neurostore.schema import KINDS
from neurostore.session import close_all
from neurostore.store import Store

pytestmark = needs_fork


def states(value: float, name: str = "m") -> Any:
    return neurostore.reservoir_states(np.full((20, 30), value), name, timestamp=value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    with neurostore.open(path, durability="process") as store:
        for value in range(3):
            store.store(states(float(value)))
    close_all()
    return path


# -- writers ------------------------------------------------------------------------------


def test_a_writer_that_waits_in_vain_names_the_holder(path: Path) -> None:
    def hold(say: Say) -> None:
        with neurostore.open(path, durability="process") as store, store.batch():
            say("held")
            time.sleep(60)

    with Child(hold) as child:
        assert child.hear() == "held"
        with neurostore.open(path, lock_timeout=0.05) as store:
            with pytest.raises(LockTimeoutError, match=rf"by process {child.pid} on \S+ since 20"):
                store.store(states(9.0))
            assert len(store.ids()) == 3


def test_a_file_just_made_may_have_been_written_by_another_process(tmp_path: Path) -> None:
    made = tmp_path / "made.h5"

    def write(say: Say) -> str:
        with neurostore.open(made, durability="process") as store:
            return store.store(states(1.0, "theirs"))

    with neurostore.open(made, durability="process") as store:
        with Child(write) as child:
            theirs = child.hear()
        ours = store.store(states(2.0, "ours"))
        assert store.ids() == [theirs, ours]
    close_all()
    with h5py.File(made) as h5file:
        assert h5file.attrs["created_at"] == pytest.approx(time.time(), abs=600)
    with neurostore.open(made, mode="r") as store:
        assert store.verify().ok
    with neurostore.open(made, mode="r") as store:
        assert store.ids() == [theirs, ours]


def test_a_file_just_closed_may_have_been_written_by_another_process(path: Path) -> None:
    def write(say: Say) -> str:
        with neurostore.open(path, durability="process") as store:
            return store.store(states(7.0, "theirs"))

    with Child(write) as child:
        theirs = child.hear()
    with neurostore.open(path, durability="process") as store:
        assert theirs in store.ids()
        ours = store.store(states(8.0, "ours"))
    close_all()
    with neurostore.open(path, mode="r") as store:
        assert store.ids()[-2:] == [theirs, ours]
        assert store.verify().ok


def test_a_file_just_closed_may_hold_what_another_did(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with neurostore.open(other, durability="process") as store:
        theirs = [store.store(states(float(n), "theirs")) for n in range(5)]
    close_all()
    shutil.copyfile(other, path)  # into the same file of the system
    with neurostore.open(path, mode="r") as store:
        assert store.ids() == theirs


def test_a_file_just_made_may_have_been_written_by_another_tool(tmp_path: Path) -> None:
    made = tmp_path / "made.h5"
    other = tmp_path / "other.h5"
    with neurostore.open(other, durability="process") as store:
        theirs = store.store(states(1.0, "theirs"))
    close_all()
    with neurostore.open(made, durability="process") as store:
        address = "/activations/reservoir_states/" + theirs
        with h5py.File(other) as source, h5py.File(made, "r+") as target:
            source.copy(address, target["/activations/reservoir_states"])
        os.utime(made)  # within the clock's step otherwise
        ours = store.store(states(2.0, "ours"))
        assert store.ids() == [theirs, ours]


def test_writers_take_turns_with_cleaning_and_compaction(path: Path) -> None:
    """A simulation, a notebook and the command line: all that each acknowledged is there."""

    def simulate(first: int) -> Callable[[Say], list[str]]:
        def work(say: Say) -> list[str]:
            with neurostore.open(path, durability="process") as store:
                return [store.store(states(float(n), str(first))) for n in range(first, first + 25)]

        return work

    def clean(say: Say) -> list[str]:
        gone: list[str] = []
        for _ in range(4):
            with neurostore.open(path, durability="process") as store:
                gone += store.cleanup(0, name="m", now=1e9, model_time=True)
                store.compact()
        return gone

    with Child(simulate(1000)) as one, Child(simulate(2000)) as two, Child(clean) as cleaner:
        stored = one.hear() + two.hear()
        gone = cleaner.hear()
    with neurostore.open(path) as store:
        assert len(gone) == 3
        assert sorted(store.ids()) == sorted(stored)
        for record_id in stored:
            ds = store.retrieve(record_id).load()
            assert (ds["states"].values == float(ds["timestamp"])).all()


def test_three_readers_and_two_writers(path: Path) -> None:
    """No error, no torn record, no answer that is older than one given before."""

    def write(first: int) -> Callable[[Say], int]:
        def work(say: Say) -> int:
            with neurostore.open(path, durability="process") as store:
                for value in range(first, first + 40):
                    store.store(states(float(value)))
            return 40

        return work

    def read(say: Say) -> tuple[int, int]:
        rng, most, looks = random.Random(os.getpid()), 0, 0
        lazy = None
        with neurostore.open(path, "r") as store:
            while most < 83:
                ids = store.ids("reservoir_states")
                assert len(ids) >= most, "an answer older than the one before"
                most, looks = len(ids), looks + 1
                for record_id in rng.sample(ids, 3):
                    ds = store.retrieve(record_id).load()
                    assert (ds["states"].values == float(ds["timestamp"])).all()
                if lazy is not None:
                    assert (lazy["states"].values == float(lazy["timestamp"])).all()
                lazy = store.retrieve(rng.choice(ids))
        return most, looks

    with Child(read) as a, Child(read) as b, Child(read) as c:
        with Child(write(1000)) as one, Child(write(2000)) as two:
            assert one.hear() + two.hear() == 80
        for reader in (a, b, c):
            most, looks = reader.hear()
            assert most == 83
            assert looks > 1


def test_a_killed_writer_loses_nothing_acknowledged(path: Path) -> None:
    rng, acknowledged = random.Random(4), {0.0, 1.0, 2.0}
    for turn in range(5):

        def write(say: Say, first: float = 100.0 * (turn + 1)) -> None:
            with neurostore.open(path, durability="process") as store:
                value = first
                while True:
                    store.store(states(value))
                    say(value)
                    value += 1

        with Child(write) as child:
            acknowledged |= {child.hear() for _ in range(rng.randrange(1, 20))}
            last = max(acknowledged)
            child.kill()
        with neurostore.open(path) as store:
            found = {float(record_id.split("_")[1]) for record_id in store.ids()}
            assert acknowledged <= found
            acknowledged = found
            ds = store.retrieve(f"m_{last!r}").load()
            assert (ds["states"].values == last).all()


# -- threads ------------------------------------------------------------------------------


def in_thread(work: Callable[[], Any]) -> Any:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 (raised again below)
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert result, "the thread still waits"
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def test_other_threads_read_beside_a_batch(path: Path) -> None:
    with neurostore.open(path, durability="process", lock_timeout=0.05) as store:
        lazy = store.retrieve("m_1.0")
        with store.batch():
            store.store(states(9.0))
            assert len(store.ids()) == 4
            assert in_thread(lambda: len(store.ids())) == 3
            assert in_thread(lambda: float(lazy["states"].values[0, 0])) == 1.0
            with pytest.raises(LockTimeoutError, match="another thread of this process"):
                in_thread(lambda: store.store(states(10.0)))
        assert in_thread(lambda: len(store.ids())) == 4
        store.compact()
        with store.batch():
            store.store(states(11.0))
            assert in_thread(lambda: len(store.ids())) == 4


# -- exclusive use ------------------------------------------------------------------------


def test_exclusive_use_keeps_everybody_out(path: Path) -> None:
    def look(say: Say) -> None:
        for mode in ("r", "a"):
            try:
                with neurostore.open(path, mode) as store:  # type: ignore[arg-type]
                    store.ids()
            except LockTimeoutError as error:
                say(str(error))
        try:
            h5py.File(path, "r")
        except OSError as error:
            say(error.errno)

    storage = HDF5Storage(path, enable_swmr=False, durability="process")
    storage.store_reservoir_states(7.0, np.ones((2, 2)), "m")
    for _ in range(2):
        with Child(look) as child:
            for _ in range(2):
                assert f"exclusive use by process {os.getpid()} " in child.hear()
            assert child.hear() == 11
        storage.compact_file()
        storage.rotate_file()
        assert storage.retrieve_reservoir_states("m_7.0") is not None
    storage.close()

    def read(say: Say) -> list[str]:
        with neurostore.open(path, "r") as store:
            return store.ids()

    with Child(read) as child:
        assert len(child.hear()) == 4
    assert not os.path.exists(lock_path(path))


def test_exclusive_use_waits_for_others_and_ends_with_its_store(path: Path) -> None:
    def hold(say: Say) -> None:
        with neurostore.open(path, "r") as store:
            store.ids()
            say("open")
            time.sleep(60)

    with Child(hold) as child:
        child.hear()
        with pytest.raises(LockTimeoutError, match="has the file open"):
            neurostore.open(path, exclusive=True, lock_timeout=0.05)
    store = neurostore.open(path, exclusive=True)
    store.store(states(5.0))
    del store
    gc.collect()
    with Child(lambda say: len(neurostore.open(path, "r").ids())) as child:
        assert child.hear() == 4


def test_exclusive_use_is_not_for_reading(path: Path) -> None:
    with pytest.raises(neurostore.ValidationError, match="exclusive"):
        neurostore.open(path, "r", exclusive=True)


# -- forks and exits ----------------------------------------------------------------------


def test_a_fork_has_a_store_of_its_own(path: Path) -> None:
    store = neurostore.open(path, durability="process")
    first = store.store(states(5.0))

    def work(say: Say) -> tuple[str, int]:
        return store.store(states(6.0)), len(store.ids())

    with Child(work) as child:
        assert child.hear() == ("m_6.0", 5)
        child.wait()
    assert store.store(states(7.0)) in store.ids()
    assert {first, "m_6.0", "m_7.0"} <= set(store.ids())
    store.close()


def test_a_fork_inside_a_batch_commits_nothing(path: Path) -> None:
    with neurostore.open(path, durability="process") as store, store.batch():
        store.store(states(5.0))

        def work(say: Say) -> str:
            try:
                store.store(states(6.0))
            except (ClosedError, LockTimeoutError, HDF5StorageError) as error:
                return type(error).__name__
            return "stored"

        store._timeout = 0.05
        with Child(work) as child:
            assert child.hear() == "LockTimeoutError"
            child.wait()
        store.store(states(7.0))
    with neurostore.open(path) as store:
        assert set(store.ids()) == {"m_0.0", "m_1.0", "m_2.0", "m_5.0", "m_7.0"}


EXITS = {
    "with an open store": "",
    "inside a batch": "batch = store.batch(); batch.__enter__(); store.store(states(20.0))",
    "while a thread is in a batch": """
import threading, time
inside = threading.Event()
def work():
    with store.batch():
        store.store(states(20.0))
        inside.set()
        time.sleep(60)
threading.Thread(target=work, daemon=True).start()
inside.wait()
""",
}


@pytest.mark.parametrize("how", EXITS)
def test_the_interpreter_ends(path: Path, how: str) -> None:
    code = f"""
import sys
import numpy as np, neurostore
def states(value):
    return neurostore.reservoir_states(np.full((20, 30), value), "m", timestamp=value)
store = neurostore.open(sys.argv[1])
store.store(states(10.0))
{EXITS[how]}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with neurostore.open(path) as store:
        assert len(store.ids()) == 4
        assert "m_10.0" in store.ids()
        store.store(states(30.0))
    close_all()
    assert os.listdir(path.parent) == ["run.h5"]


def test_a_fork_that_ends_leaves_its_parent_the_lock(path: Path) -> None:
    """Whether it ends in order, with what is closed at exit, or at once, and whatever it read."""
    code = """
import fcntl, os, sys
import neurostore
path = sys.argv[1]
def is_locked():
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
found = []
for mode in "r", "a":
    store = neurostore.open(path, mode)
    if mode == "a":
        store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
    store.retrieve(store.ids()[0]).load()
    for end in sys.exit, os._exit, None:
        pid = os.fork()
        if pid == 0:
            if end is not None:
                end(0)
            store.ids()
            store.close()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        found.append(is_locked())
    store.close()
    found.append(is_locked())
print(found)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str([True, True, True, False] * 2)


# -- users who may not write --------------------------------------------------------------


def leave_a_journal(path: Path) -> None:
    """Let a process die when its commit is in the journal and not yet in the file."""

    class Dying(OsIO):
        journals: ClassVar[list[int]] = []

        def open(self, name: str, flags: int, mode: int = 0o666) -> int:  # type: ignore[override]
            fd = os.open(name, flags, mode)
            if name.endswith("-journal"):
                self.journals.append(fd)
            return fd

        def pwrite(self, fd: int, data: Any, offset: int) -> int:  # type: ignore[override]
            done = os.pwrite(fd, data, offset)
            if fd in self.journals:
                os._exit(0)
            return done

    def die(say: Say) -> None:
        Store(path, durability="process", io=Dying()).store(states(9.0))

    with Child(die) as child:
        child.wait()
    assert os.path.exists(journal_path(path))


@pytest.fixture
def common(path: Path) -> Iterator[Path]:
    """The file in a folder that every user can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(shutil.copy(path, folder))
        os.chmod(folder, 0o755)


def lock_away(path: Path, *, folder: int, file: int) -> None:
    for name in path.parent.iterdir():
        name.chmod(file)
    path.parent.chmod(folder)


@needs_root
@pytest.mark.parametrize("journal", [False, True])
@pytest.mark.parametrize(("folder", "file"), [(0o555, 0o444), (0o777, 0o444), (0o755, 0o644)])
def test_a_user_who_may_not_write_reads_the_last_commit(
    common: Path, journal: bool, folder: int, file: int
) -> None:
    if journal:
        leave_a_journal(common)
    before = common.read_bytes()
    lock_away(common, folder=folder, file=file)

    def read(say: Say) -> tuple[list[str], float, str]:
        with neurostore.open(common, "r") as store:
            ids = store.ids()
            last = store.retrieve(ids[-1]).load()
            mean = float(last["states"].values.mean())  # that user may not import what xarray needs
        with neurostore.open(common) as store:
            try:
                store.store(states(11.0))
            except ReadOnlyError as error:
                return ids, mean, str(error)
        raise AssertionError("a user without permission has written")

    with Child(read, user=NOBODY) as child:
        ids, mean, error = child.hear()
    assert ids == ["m_0.0", "m_1.0", "m_2.0", *["m_9.0"] * journal]
    assert mean == (9.0 if journal else 2.0)
    assert str(common) in error
    assert common.read_bytes() == before
    common.parent.chmod(0o777)
    with neurostore.open(common) as store:  # and whoever may write finishes the commit
        assert store.ids() == ids
        assert store.store(states(12.0)) in store.ids()


@needs_root
def test_a_reader_who_may_not_write_follows_a_living_writer(common: Path) -> None:
    lock_away(common, folder=0o755, file=0o644)

    def read(say: Say) -> int:
        with neurostore.open(common, "r") as store:
            most = len(store.ids())
            say(most)
            while most < 43:
                ids = store.ids()
                assert len(ids) >= most
                most = len(ids)
                last = store.retrieve(ids[-1]).load()
                assert (last["states"].values == float(last["timestamp"])).all()
            return most

    with Child(read, user=NOBODY) as child:
        assert child.hear() == 3
        with neurostore.open(common) as store:
            for value in range(100, 140):
                store.store(states(float(value)))
            assert child.hear() == 43


@needs_root
def test_a_reader_of_another_user_does_not_keep_the_owner_from_writing(common: Path) -> None:
    lock_away(common, folder=0o777, file=0o644)

    def read(say: Say) -> None:
        with neurostore.open(common, "r") as store:
            say(len(store.ids()))
            time.sleep(60)

    def write(say: Say) -> str:
        with neurostore.open(common) as store:
            return store.store(states(20.0))

    os.chown(common, NOBODY - 1, NOBODY - 1)
    with Child(read, user=NOBODY) as reader:
        assert reader.hear() == 3
        with Child(write, user=NOBODY - 1) as writer:
            assert writer.hear() == "m_20.0"


# -- what was opened lazily ---------------------------------------------------------------


def test_a_lazy_record_in_another_process_is_right_or_says_that_it_was_removed(path: Path) -> None:
    def look(say: Say) -> list[Any]:
        with neurostore.open(path, "r") as store:
            kept, gone = store.retrieve("m_2.0"), store.retrieve("m_0.0")
            say("open")
            found: list[Any] = []
            for _ in range(4):
                os.read(go[0], 1)
                found.append(float(kept["states"][0, 0].values))
                try:
                    found.append(float(gone["states"][0, 0].values))
                except RecordNotFoundError as error:
                    found.append("removed" if "removed" in str(error) else str(error))
                say("looked")
            return found

    go = os.pipe()
    with Child(look) as child, neurostore.open(path, durability="process") as store:
        assert child.hear() == "open"
        store.store(states(50.0))
        steps: list[Callable[[], Any]] = [
            lambda: store.store(states(51.0)),
            lambda: store.cleanup(0, now=1.5, model_time=True),
            lambda: store.compact(),
            lambda: store.rotate(),
        ]
        for step in steps:
            step()
            os.write(go[1], b"x")
            assert child.hear() == "looked"
        assert child.hear() == [2.0, 0.0, 2.0, "removed", 2.0, "removed", 2.0, "removed"]
    for end in go:
        os.close(end)


# -- other handles in this process -----------------------------------------------------------------


def many_after_one(path: Path) -> tuple[Store, list[str], list[Any]]:
    """A store with many records, and what h5py was shown of it when there was one."""
    store = neurostore.open(path, durability="process")
    store.store(neurostore.spike_train([0.5], [1], timestamp=0.0))
    h5file = h5py.File(path)
    names = ("catalogue", "catalogue/spike_train/rows", "catalogue/state", "spike_trains/raw_data")
    seen: list[Any] = [h5file, *(h5file[name] for name in names), list(h5file[names[-1]])]
    with store.batch():
        for n in range(1, 600):
            store.store(neurostore.spike_train([0.5], [n], timestamp=float(n)))
    return store, [f"train_{float(n)}" for n in range(600)], seen


def test_compaction_beside_a_handle_of_h5py_keeps_what_came_after_it(tmp_path: Path) -> None:
    store, ids, seen = many_after_one(tmp_path / "run.h5")
    store.compact()
    assert store.ids() == ids
    assert int(store.retrieve(ids[-1])["neuron_ids"][0]) == 599
    seen[0].close()
    store.close()


def test_a_file_rotated_beside_a_handle_of_h5py_has_what_came_after_it(tmp_path: Path) -> None:
    store, ids, seen = many_after_one(tmp_path / "run.h5")
    store.rotate()
    assert store.ids() == ids
    assert int(store.retrieve(ids[-1])["neuron_ids"][0]) == 599
    seen[0].close()
    store.close()


def test_rotation_does_not_wait_for_threads_that_wait_for_it(tmp_path: Path) -> None:
    has_turn, in_batch, replacing = threading.Event(), threading.Event(), threading.Event()

    class Telling(OsIO):
        def replace(self, source: str, target: str) -> None:
            replacing.set()
            super().replace(source, target)

    store = Store(tmp_path / "run.h5", durability="process", io=Telling())
    store.store(neurostore.spike_train([0.5], [1], timestamp=1.0))
    session = store._session()
    found: list[type] = []

    def read() -> None:
        assert in_batch.wait(10)
        aside = session.beside_batch()
        aside._locks._patience = 0.5
        with aside.mutex:
            has_turn.set()
            assert replacing.wait(10)
            try:
                found.append(type(aside.catalogue))
            except HDF5StorageError as error:
                found.append(type(error))

    reader = threading.Thread(target=read)
    reader.start()
    with store.batch():
        in_batch.set()
        assert has_turn.wait(10)
    store.rotate()
    reader.join(10)
    assert found == [MovedError]
    store.close()


def test_what_a_thread_finds_in_a_table_that_changes_is_not_kept() -> None:
    table = Table(KINDS["spike_train"])
    table.append(np.zeros(1, ROW))
    changes = [lambda: table.append(np.zeros(1, ROW)), lambda: table.remove(0)]

    class Interrupted(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, key: Any) -> Any:
            value = super().__getitem__(key)
            if isinstance(key, str) and key == "timestamp" and changes:
                value = value.copy()
                changes.pop(0)()
            return value

    table.buffer = table.buffer.view(Interrupted)
    assert len(table.between(0, 1)) == 1
    table.between(0, 1)
    assert table.between(0, 1).tolist() == [1]
