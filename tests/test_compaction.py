"""Compaction: what is left is what it was, to the byte; readers go on, writers wait, disks fill."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from descriptors import needs_proc, open_files
from samples import assert_same, record, variants

import neurostore
from neurostore import (
    KINDS,
    Keep,
    NoSpaceError,
    compaction,
    copying,
    emptyfile,
    globalheap,
    moving,
    osio,
)
from neurostore.errors import LockTimeoutError, StoreError, WriteError
from neurostore.osio import OsIO

_REFERENCES = {"DIMENSION_LIST", "REFERENCE_LIST"}
_NUMBERS = {"_Netcdf4Dimid", "_Netcdf4Coordinates"}


def described(item: Any) -> dict[str, Any]:
    """Everything about an object but where it is and which netCDF numbers it has."""
    found: dict[str, Any] = {
        "attrs": {
            name: (value.dtype, value.tolist()) if hasattr(value, "tolist") else value
            for name, value in item.attrs.items()
            if name not in _REFERENCES | _NUMBERS
        },
        "numbered": sorted(_NUMBERS & set(item.attrs)),
    }
    if isinstance(item, h5py.Group):
        order = item.id.get_create_plist().get_link_creation_order()
        return found | {"order": order, "links": list(item)}
    found |= {"dtype": item.dtype, "shape": item.shape, "maxshape": item.maxshape}
    found |= {"chunks": item.chunks, "plist": item.id.get_create_plist().get_nfilters()}
    found["scales"] = [[scale.name for scale in dim.values()] for dim in item.dims]
    if item.chunks:
        infos = [item.id.get_chunk_info(n) for n in range(item.id.get_num_chunks())]
        found["raw"] = {i.chunk_offset: item.id.read_direct_chunk(i.chunk_offset)[1] for i in infos}
        found["masks"] = {i.chunk_offset: i.filter_mask for i in infos}
    elif item.shape is not None:
        found["raw"] = np.asarray(item[()]).tobytes()
    return found


def walk(path: Path) -> dict[str, Any]:
    with h5py.File(path) as h5file:
        found = {"/": described(h5file)}

        def look(name: str, item: Any) -> None:
            if not name.startswith("catalogue"):
                found[name] = described(item)

        h5file.visititems(look)
    return found


@pytest.fixture(scope="module")
def half_empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind in every shape, text labels and odd dtypes among them, every other one removed."""
    path = tmp_path_factory.mktemp("compaction") / "run.h5"
    with neurostore.open(path, durability="process") as store, store.batch():
        for kind in KINDS.values():
            for variant in range(variants(kind)):
                for moment in (1.0, 2.0):
                    store.store(record(kind, variant=variant, timestamp=moment))
            for dtype in "bcV":
                store.store(record(kind, dtype=dtype, timestamp=3.0))
        labels = {"pre": [f"n{i}" for i in range(5)], "cell type": ("pre", list("abcde"))}
        big = np.random.default_rng(1).random((300, 5))
        store.store(neurostore.network_snapshot(weights=np.eye(5), timestamp=3.0, coords=labels))
        store.store(neurostore.reservoir_states(big, "big", timestamp=3.0))
    with neurostore.open(path, durability="process") as store:
        assert store.cleanup(keep=Keep(predicate=lambda t: t["timestamp"].values != 1.0))
    return path


@pytest.fixture
def path(half_empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(half_empty, tmp_path / "run.h5"))


def test_what_is_left_is_what_it_was(path: Path) -> None:
    before = walk(path)
    with neurostore.open(path, durability="process") as store:
        values = {i: store.retrieve(i).load() for i in store.ids()}
        size = path.stat().st_size
        won = store.compact()
        assert won == size - path.stat().st_size > 0
        for record_id, expected in values.items():
            assert_same(store.retrieve(record_id).load(), expected)
        assert store.info()["dead_bytes"] == 0
        assert store.compact() == 0, "compacting twice wins nothing"
    after = walk(path)
    for name in ("neurostore_series", "neurostore_older_files"):
        after["/"]["attrs"].pop(name, None)  # moments of ids that are not given again
    assert after == before
    numbers = dimension_numbers(path)
    assert len(numbers) == len(set(numbers))


def dimension_numbers(path: Path) -> list[int]:
    found: list[int] = []
    with h5py.File(path) as h5file:

        def look(_: str, item: Any) -> None:
            if "_Netcdf4Dimid" in item.attrs:
                found.append(int(item.attrs["_Netcdf4Dimid"]))

        h5file.visititems(look)
    return found


def test_links_and_references_of_others_stay_what_they_are(path: Path) -> None:
    with h5py.File(path, "r+") as h5file:
        mine = h5file.create_group("mine")
        mine["target"] = [1, 2]
        mine["again"] = mine["target"]
        mine["soft"] = h5py.SoftLink("/mine/target")
        mine["lost"] = h5py.SoftLink("/nowhere")
        mine["outside"] = h5py.ExternalLink("other.h5", "/x")
        mine.attrs["ref"] = mine["target"].ref
        mine.create_dataset(
            "refs", data=[mine["target"].ref, h5py.Reference()], dtype=h5py.ref_dtype
        )
        mine["text"] = "varying"
    with neurostore.open(path, durability="process") as store:
        store.compact()
    with h5py.File(path) as h5file:
        mine = h5file["mine"]
        assert mine["again"] == mine["target"]
        assert mine.get("soft", getlink=True).path == "/mine/target"
        assert mine.get("lost", getlink=True).path == "/nowhere"
        assert mine.get("outside", getlink=True).filename == "other.h5"
        assert h5file[mine.attrs["ref"]] == mine["target"]
        assert h5file[mine["refs"][0]] == mine["target"]
        assert not mine["refs"][1]
        assert mine["text"][()] == b"varying"


def test_what_others_added_and_changed_is_known_after_it(tmp_path: Path) -> None:
    """The new file looks as if nobody had touched it, so its catalogue has to say everything."""
    path = tmp_path / "run.h5"
    with neurostore.open(path, durability="process") as store, store.batch():
        for n in range(12):
            store.store(neurostore.spike_train([0.1, 0.2], [1, 2], timestamp=float(n)))
    with h5py.File(path, "r+") as h5file:
        trains = h5file["spike_trains/raw_data"]
        h5file.copy(trains["train_3.0"], trains, "train_77.0")
        trains["train_77.0"].attrs["timestamp"] = 77.0
        trains["train_4.0"]["later"] = np.arange(3)
    with neurostore.open(path, durability="process") as store:
        ids = store.ids()
        assert "train_77.0" in ids
        assert "later" not in store.retrieve("train_5.0")
        store.compact()
        assert store.ids() == ids
        assert "later" not in store.retrieve("train_5.0")
        assert "later" in store.retrieve("train_4.0")


def test_a_file_that_lost_its_catalogue_gets_one(path: Path) -> None:
    with neurostore.open(path, mode="r") as store:
        ids = store.ids()
    with h5py.File(path, "r+") as h5file:
        del h5file["catalogue"]
    with neurostore.open(path, durability="process") as store:
        assert store.compact() > 0
        assert set(store.ids()) == set(ids)
        assert store.verify().ok


def test_references_to_regions_are_refused_by_name(path: Path) -> None:
    with h5py.File(path, "r+") as h5file:
        mine = h5file.create_dataset("mine/data", data=[1, 2, 3])
        mine.attrs["part"] = mine.regionref[:2]
    before = path.read_bytes()
    with neurostore.open(path, durability="process") as store:
        ids = store.ids()
        with pytest.raises(StoreError, match=r"/mine/data: holds references to regions"):
            store.compact()
        assert store.ids() == ids
    assert path.stat().st_size == len(before)


def test_readers_of_the_same_process_go_on_and_writers_wait(path: Path) -> None:
    """Inside the compaction another thread reads; one that writes gets its turn after it."""
    said: list[str] = []
    threads: list[threading.Thread] = []
    with neurostore.open(path, durability="process") as store:
        wanted = store.ids()[0]
        lazy = store.retrieve(wanted)

        def read() -> None:
            said.append(f"read {len(store.ids())} {lazy.load().attrs['kind'] != ''}")

        def write() -> None:
            store.store(neurostore.spike_train([0.1], [1], timestamp=9.0))
            said.append("written")

        def give_up() -> None:
            with (
                neurostore.open(path, lock_timeout=0.01) as hasty,
                pytest.raises(LockTimeoutError, match="compacting"),
            ):
                hasty.store(neurostore.spike_train([0.1], [1], timestamp=10.0))
            said.append("gave up")

        def report(done: int, total: int) -> None:
            if done == 1:
                for task in (read, give_up):
                    thread = threading.Thread(target=task)
                    thread.start()
                    thread.join(60)
                threads.append(threading.Thread(target=write))
                threads[0].start()
            if done == total:
                said.append("copied")

        count = len(store.ids())
        store.compact(progress=report)
        threads[0].join(60)
        assert said == [f"read {count} True", "gave up", "copied", "written"]
        assert "train_9.0" in store.ids()


def test_too_little_space_is_said_before_anything_is_written(path: Path) -> None:
    before = path.read_bytes()
    with neurostore.open(path, durability="process") as store:
        session = store._session()
        with pytest.raises(NoSpaceError, match=r"needs [\d,]+ bytes .* and 1,000 are free"):
            compaction.compact(session, timeout=1, durability="process", free=lambda folder: 1000)
        assert store.ids()
    assert len(path.read_bytes()) == len(before)
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]


def test_space_that_is_being_freed_is_waited_for(path: Path) -> None:
    remove_large(path.with_name("large"))
    looks = 0

    def free(folder: Path) -> int:
        nonlocal looks
        looks += 1
        return 2**40 if looks > 1 and not osio.wait_freed() else 0

    with neurostore.open(path, durability="process") as store:
        session = store._session()
        assert compaction.compact(session, timeout=1, durability="process", free=free) > 0
    assert looks == 2


def remove_large(path: Path) -> None:
    path.write_bytes(bytes(2**20))
    with osio.freed_later(path):
        path.unlink()


class Full(OsIO):
    """A disk that is full, from the moment this is told, until what was removed is free."""

    full = False

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        if self.full:
            self.full = False
            raise OSError(errno.ENOSPC, "full")
        return os.pwrite(fd, data, offset)


def test_who_writes_to_a_full_disk_waits_for_space_that_is_being_freed(tmp_path: Path) -> None:
    io = Full()
    with neurostore.Store(tmp_path / "run.h5", durability="process", io=io) as store:
        osio.wait_freed()
        io.full = True
        with pytest.raises(WriteError, match="ENOSPC"):
            store.store(record(KINDS["spike_train"], timestamp=1.0))
        remove_large(tmp_path / "large")
        io.full = True
        store.store(record(KINDS["spike_train"], timestamp=1.0))
        assert not io.full


@needs_proc
def test_a_large_file_is_freed_by_a_thread(tmp_path: Path) -> None:
    def left() -> list[str]:
        ours = [name for name in open_files() if name.startswith(str(tmp_path))]
        return [name for name in ours if "deleted" in name]

    noise = np.random.default_rng(0).random(300_000)
    with neurostore.open(tmp_path / "run.h5", compression=None) as store:
        for second in range(2):
            store.store(neurostore.plasticity_trace(noise, "stdp", timestamp=float(second)))
        store.rotate()
        store.store(neurostore.spike_train([0.1], [1], timestamp=5.0))
        store.cleanup(keep=Keep(kind="plasticity_trace", latest=1))
        assert store.compact() > noise.nbytes
        assert osio.wait_freed()
        assert left() == []
        store.cleanup(0, kind="plasticity_trace", now=1e9, model_time=True)
        assert osio.wait_freed()
        assert left() == []
        assert store.ids() == ["train_5.0"]
        assert sorted(file.name for file in tmp_path.glob("*.h5")) == ["run.h5"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
@pytest.mark.parametrize("how", ["compact()", "repack(compression='gzip')"])
@pytest.mark.parametrize("room", [100, 30_000])
def test_a_disk_that_refuses_to_write_is_named(path: Path, how: str, room: int) -> None:
    before = path.read_bytes()
    program = f"""
import resource, signal, sys
import neurostore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = neurostore.open(sys.argv[1])
ids = store.ids()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, limits[1]))
try:
    store.{how}
except neurostore.WriteError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
assert store.ids() == ids
"""
    said = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert re.match(rf"{path}: (compaction|repacking) failed: EFBIG \(", said.stdout)
    assert said.stdout.endswith("the file is as it was\n")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]


def test_what_a_dead_compaction_left_is_written_over(path: Path) -> None:
    left = path.with_name(".run.h5-compact")
    left.write_bytes(b"half a file")
    with neurostore.open(path, durability="process") as store:
        assert store.compact() > 0
    assert not left.exists()


def test_progress_counts_up_to_all_groups(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with neurostore.open(path, durability="process") as store:
        store.compact(progress=lambda done, total: seen.append((done, total)))
        store.compact(progress=True)  # no terminal: silent
    total = seen[0][1]
    assert seen == [(n + 1, total) for n in range(total)]


def parts() -> list[str]:
    return [part.path for kind in KINDS.values() for part in kind.parts]


class Told:
    """Counts the bytes that were handed to the system."""

    total = 0

    def wrote(self, count: int) -> None:
        self.total += count


def moved_past_hdf5(path: Path, new: Path, told: Any = None) -> moving.Moved:
    emptyfile.build(str(new))
    with h5py.File(path) as old:
        moved = moving.move(old, path, new, parts(), lambda: None, few=0, ahead=told)
    with h5py.File(new) as h5file:
        targets = moving.targets(h5file, moved)
    moving.link(new, moved, targets)
    return moved


def test_every_kind_is_moved_as_bytes(path: Path, tmp_path: Path) -> None:
    told = Told()
    moved = moved_past_hdf5(path, tmp_path / "new.h5", told)
    with neurostore.open(path, mode="r") as store:
        assert 0.5 * store.info()["stored_bytes"] < told.total < path.stat().st_size
    before, after = walk(path), walk(tmp_path / "new.h5")
    for parent in parts():
        names = {name for name in before if name.startswith(f"{parent}/")}
        if parent == "activations/layer_outputs":  # of so many links HDF5 keeps a table itself
            assert f"/{parent}".encode() not in moved
            continue
        assert set(moved[f"/{parent}".encode()]) == {
            name.removeprefix(f"{parent}/").encode() for name in names if name.count("/") == 2
        }
        assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_a_sync_that_failed_while_the_copy_was_written_is_reported(tmp_path: Path) -> None:
    class Refusing(OsIO):
        def sync(self, fd: int) -> None:
            raise OSError(errno.EIO, "no medium")

    path = tmp_path / "copy"
    path.touch()

    def write() -> None:
        with copying.written_out(path, "power", Refusing()) as ahead:
            assert ahead is not None
            ahead.wrote(100 * 1024**2)

    with pytest.raises(WriteError, match="syncing a new file failed: EIO"):
        write()


def test_what_is_not_as_it_was_written_is_left_to_hdf5(tmp_path: Path) -> None:
    """Damage, references to elsewhere, other names, text of any length: none is moved as bytes."""
    path = tmp_path / "run.h5"
    with neurostore.open(path, durability="process") as store, store.batch():
        for n in range(12):
            times = np.arange(2000.0)
            store.store(neurostore.spike_train(times, np.ones(2000, int), timestamp=float(n)))
    with h5py.File(path, "r+") as h5file:
        trains = h5file["spike_trains/raw_data"]
        trains["train_0.0"].attrs["note"] = "of any length"
        h5file["elsewhere"] = trains["train_1.0/spike_times"]
        outside = h5file.create_dataset("outside", data=np.zeros(2000))
        outside.dims[0].attach_scale(trains["train_2.0/spike"])
        trains["train_3.0"].create_dataset("more", (4,), "i4", maxshape=(None,), chunks=(2,))[:] = 1
        trains["train_4.0"].attrs["large"] = np.arange(9000)
        damaged = h5py.h5o.get_info(trains["train_5.0/timestamp"].id).addr
        trains["train_6.0/again"] = h5py.SoftLink("spike_times")
    content = bytearray(path.read_bytes())
    content[damaged + 60] ^= 1
    path.write_bytes(content)
    moved = moved_past_hdf5(path, tmp_path / "new.h5")
    assert sorted(moved[b"/spike_trains/raw_data"]) == sorted(
        f"train_{n}.0".encode() for n in range(7, 12)
    )
    with neurostore.open(path, durability="process") as store:
        with pytest.raises((StoreError, OSError, RuntimeError, KeyError)):
            store.compact()
        assert len(path.read_bytes()) == len(content)
        content[damaged + 60] ^= 1
    path.write_bytes(content)
    before = walk(path)
    with neurostore.open(path, durability="process") as store:
        store.compact()
    after = walk(path)
    assert set(after) == set(before)
    with h5py.File(path) as h5file:
        trains = h5file["spike_trains/raw_data"]
        assert h5file["outside"].dims[0][0] == trains["train_2.0/spike"]
        assert h5file["elsewhere"] == trains["train_1.0/spike_times"]
        assert h5py.h5a.exists(trains["train_0.0"].id, b"note")


def test_references_in_the_global_heap_are_read_whatever_lies_between_them() -> None:
    made = [bytes(16), b"GCOL\x01\0\0\0", (104).to_bytes(8, "little")]
    for index, value in ((3, 700), (5, b"text of nine"), (2, 900)):
        data = value if isinstance(value, bytes) else value.to_bytes(8, "little")
        head = index.to_bytes(2, "little") + bytes(6) + len(data).to_bytes(8, "little")
        made += [head, data.ljust(-(-len(data) // 8) * 8, b"\0")]
    odd = b"".join(made).ljust(120, b"\0")
    full = globalheap.collection(np.arange(1000, 1000 + globalheap.PER))

    def known(data: bytes, where: int = 0) -> dict[int, int]:
        found = globalheap.references(lambda at, length: data[at : at + length], where)
        return {index: to for index, to in enumerate(found.tolist()) if to != -1}

    assert known(odd, 16) == {3: 700, 2: 900}
    assert known(full) == {n + 1: 1000 + n for n in range(globalheap.PER)}
    assert known(globalheap.collection(np.array([7, 8]))) == {1: 7, 2: 8}
    assert known(b"GCOL\x01\0\0\0" + (24).to_bytes(8, "little") + bytes(8)) == {}
    assert known(bytes(64)) == {}


def test_references_of_others_to_records_lead_to_them_after_it(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with neurostore.open(path, durability="process") as store, store.batch():
        for n in range(12):
            store.store(neurostore.spike_train([0.1], [1], timestamp=float(n)))
    with h5py.File(path, "r+") as h5file:
        h5file.create_group("mine").attrs["best"] = h5file["spike_trains/raw_data/train_3.0"].ref
    with neurostore.open(path, durability="process") as store:
        store.compact()
        assert store.verify().ok
    with h5py.File(path) as h5file:
        assert h5file[h5file["mine"].attrs["best"]].attrs["id"] == b"train_3.0"
