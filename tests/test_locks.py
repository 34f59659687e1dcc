"""One writer at a time, readers kept out of the apply step only, and no lock file left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neurostore.errors import LockTimeoutError, ReadOnlyError, StoreError, StoreNotFoundError
from neurostore.locks import FileLocks, hold_data_lock, lock_path

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
needs_user = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere"
)

HOLD = """
import sys
from neurostore.locks import FileLocks
locks = FileLocks(sys.argv[1])
how = {"writer": lambda: locks.writer(5), "reading": locks.reading, "applying": locks.applying}
with how[sys.argv[2]]():
    print("held", flush=True)
    sys.stdin.readline()
locks.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    path.write_bytes(b"data")
    return path


@pytest.fixture
def locks(path: Path) -> Iterator[FileLocks]:
    locks = FileLocks(path, patience=0.2)
    yield locks
    locks.close()


@contextlib.contextmanager
def held_elsewhere(path: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock until the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.communicate("\n")


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_writer_is_alone_in_the_process(path: Path, locks: FileLocks) -> None:
    other = FileLocks(path)
    with locks.writer(1):
        assert locks.holds_writer
        with pytest.raises(LockTimeoutError, match=rf"held for writing by process {os.getpid()} "):
            other.acquire_writer(0.01)
        assert not other.holds_writer
    with other.writer(0):
        pass
    other.close()


def test_writer_is_alone_among_processes(path: Path, locks: FileLocks) -> None:
    with held_elsewhere(path, "writer") as process:
        with pytest.raises(TimeoutError, match=rf"process {process.pid} on \S+ since 20") as caught:
            locks.acquire_writer(0.02)
        assert str(path) in str(caught.value)
        assert "lock_timeout" in str(caught.value)
    with locks.writer(1):
        pass


def test_lock_of_a_killed_writer_falls(path: Path, locks: FileLocks) -> None:
    with held_elsewhere(path, "writer") as process:
        process.kill()
        process.wait()
        with locks.writer(5):
            pass


def test_threads_take_turns(path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        locks = FileLocks(path)
        for _ in range(100):
            with locks.writer(30):
                inside += 1
                most = max(most, inside)
                inside -= 1
        locks.close()

    threads = [in_thread(work) for _ in range(4)]
    for thread in threads:
        thread.join()
    assert most == 1
    assert not os.path.exists(lock_path(path))


def test_lock_acquired_in_one_call_and_released_in_another(locks: FileLocks) -> None:
    locks.acquire_writer(1)
    assert locks.holds_writer
    locks.release_writer()
    locks.release_writer()
    assert not locks.holds_writer


def test_readers_share_and_exclude_the_applying_writer(path: Path, locks: FileLocks) -> None:
    with held_elsewhere(path, "reading"):
        with locks.reading():
            pass
        with (
            locks.writer(1),
            pytest.raises(LockTimeoutError, match="readers of another process"),
            locks.applying(),
        ):
            pass
        with locks.reading():
            pass
    with locks.applying():
        pass


def test_applying_writer_excludes_readers_of_other_processes(path: Path, locks: FileLocks) -> None:
    with (
        held_elsewhere(path, "applying"),
        pytest.raises(LockTimeoutError, match="an applying writer"),
        locks.reading(),
    ):
        pass
    with locks.reading():
        pass


def test_applying_waits_for_readers_of_the_same_process(path: Path, locks: FileLocks) -> None:
    other, seen = FileLocks(path), []
    inside, leave = threading.Event(), threading.Event()

    def read() -> None:
        with other.reading():
            inside.set()
            leave.wait(5)
            seen.append("reader")

    thread = in_thread(read)
    inside.wait(5)
    patient = FileLocks(path, patience=5)
    threading.Timer(0.02, leave.set).start()
    with patient.applying():
        seen.append("writer")
    thread.join()
    assert seen == ["reader", "writer"]
    other.close()
    patient.close()


def test_applying_writer_passes_a_stream_of_readers(path: Path) -> None:
    stop = threading.Event()

    def read() -> None:
        mine = FileLocks(path)
        while not stop.is_set():
            with mine.reading():
                time.sleep(0.001)
        mine.close()

    threads = [in_thread(read) for _ in range(4)]
    locks = FileLocks(path, patience=20)
    for _ in range(20):
        with locks.applying():
            pass
    stop.set()
    for thread in threads:
        thread.join()
    locks.close()


def test_close_leaves_only_the_data_file(path: Path) -> None:
    first, second = FileLocks(path), FileLocks(path)
    first.close()
    assert os.path.exists(lock_path(path))
    second.close()
    second.close()
    assert os.listdir(path.parent) == ["run.h5"]


def test_close_leaves_the_lock_file_to_other_processes(path: Path, locks: FileLocks) -> None:
    with held_elsewhere(path, "writer"):
        locks.close()
        assert os.path.exists(lock_path(path))
    assert os.listdir(path.parent) == ["run.h5"]


def test_lock_file_removed_from_outside(path: Path, locks: FileLocks) -> None:
    """Locks on a removed file exclude nobody; who comes later starts a new one."""
    os.unlink(lock_path(path))
    later = FileLocks(path)
    with later.writer(1):
        pass
    later.close()
    assert os.listdir(path.parent) == ["run.h5"]


def test_link_to_the_data_file_has_the_same_lock(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.h5"
    link.symlink_to(path)
    assert lock_path(link) == lock_path(path)


@pytest.mark.parametrize("what", ["link", "directory", "fifo"])
def test_lock_file_that_is_no_plain_file_is_refused(path: Path, tmp_path: Path, what: str) -> None:
    place, victim = Path(lock_path(path)), tmp_path / "victim"
    victim.write_bytes(b"precious")
    if what == "link":
        place.symlink_to(victim)
    elif what == "directory":
        place.mkdir()
    else:
        os.mkfifo(place)
    with pytest.raises(StoreError, match="lock file"):
        FileLocks(path)
    assert victim.read_bytes() == b"precious"


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="directory does not exist"):
        FileLocks(tmp_path / "nowhere" / "run.h5")


def read_only(path: Path) -> None:
    locks = FileLocks(path)
    with locks.reading():
        pass
    with pytest.raises(ReadOnlyError, match="no lock file can be written"):
        locks.acquire_writer(0)
    locks.close()


@needs_user
@pytest.mark.parametrize("lock_file", [False, True])
def test_reading_works_where_nothing_can_be_written(path: Path, lock_file: bool) -> None:
    if lock_file:
        Path(lock_path(path)).touch(0o444)
    path.parent.chmod(0o555)
    try:
        read_only(path)
    finally:
        path.parent.chmod(0o755)


def test_other_hdf5_program_cannot_open_for_writing(path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with open(path, "rb") as ours, open(path, "rb") as theirs:
        hold_data_lock(ours.fileno(), path)
        fcntl.flock(theirs, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(path, "rb") as ours, open(path, "rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(LockTimeoutError, match="another HDF5 program"):
            hold_data_lock(ours.fileno(), path)


@needs_fork
def test_forked_child_neither_has_nor_frees_the_lock(path: Path, locks: FileLocks) -> None:
    locks.acquire_writer(1)
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            held = locks.holds_writer
            locks.release_writer()
            try:
                locks.acquire_writer(0.01)
            except LockTimeoutError:
                locks.close()
                status = int(held)
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert locks.holds_writer
    other = FileLocks(path)
    with pytest.raises(LockTimeoutError):
        other.acquire_writer(0)
    other.close()
    locks.release_writer()


@needs_fork
def test_orphaned_child_does_not_keep_the_lock(path: Path, locks: FileLocks) -> None:
    ready, go = os.pipe(), os.pipe()
    middle = os.fork()
    if middle == 0:
        mine = FileLocks(path)
        mine.acquire_writer(5)
        if os.fork() == 0:
            os.write(ready[1], b"x")
            os.close(go[1])
            os.read(go[0], 1)
        os._exit(0)
    os.close(go[0])
    os.read(ready[0], 1)
    os.waitpid(middle, 0)
    with locks.writer(5):
        pass
    for fd in (go[1], *ready):
        os.close(fd)
