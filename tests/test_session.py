"""One file among symlinks, threads, other tools and failures: nothing of it is lost or mixed up."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from descriptors import needs_proc, open_files

import neurostore
from neurostore import catalogue_file, schema, tablerows
from neurostore.catalogue import ROW
from neurostore.errors import DamagedError, RecordNotFoundError, StoreError, ValidationError
from neurostore.schema import KINDS
from neurostore.session import attach, close_all


def train(count: int, timestamp: float, **options: object) -> xr.Dataset:
    return neurostore.spike_train(
        np.linspace(0, 1, count), np.arange(count), timestamp=timestamp, **options
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        for second in range(3):
            store.store(train(300, float(second)))
    return tmp_path / "run.h5"


def test_rotation_through_a_symlink_keeps_the_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.h5"
    link.symlink_to(path)
    with neurostore.open(link) as store:
        rotated = store.rotate()
        assert not rotated.is_symlink()
        assert len(store.ids()) == 3
        assert store.store(train(5, 1.0)) == "train_1.0~2"
        assert len(set(store.ids())) == 4


def test_compaction_keeps_what_others_put_into_the_file(path: Path) -> None:
    with h5py.File(path, "r+") as h5file:
        h5file.attrs["experiment"] = "mouse 7"
        h5file["pair"] = np.dtype([("a", "i4"), ("b", "f8")])
        text = h5py.string_dtype()
        h5file.create_dataset("notes", data=["a", "bc"], dtype=text, chunks=(2,))
    with neurostore.open(path) as store:
        store.compact()
        assert len(store.ids()) == 3
    with h5py.File(path) as h5file:
        assert h5file.attrs["experiment"] == "mouse 7"
        assert isinstance(h5file["pair"], h5py.Datatype)
        assert list(h5file["notes"].asstr()[:]) == ["a", "bc"]


def test_an_edit_by_another_tool_is_seen_also_after_the_next_commit(path: Path) -> None:
    with neurostore.open(path, "r") as store:
        assert store.retrieve("train_0.0").spike_times.attrs["units"] == "s"
    with h5py.File(path, "r+") as h5file:
        h5file["spike_trains/raw_data/train_1.0/spike_times"].attrs["units"] = "ms"
    os.utime(path)
    for _ in range(2):
        with neurostore.open(path) as store:
            assert store.retrieve("train_0.0").spike_times.attrs["units"] == "s"
            assert store.retrieve("train_1.0").spike_times.attrs["units"] == "ms"
            with pytest.raises(neurostore.MisalignedRecordsError, match=r"train_1\.0"):
                store.range("spike_train", 0, 2)
            store.store(train(300, 100.0))


def test_a_record_that_another_tool_removed_is_missed_and_no_other(path: Path) -> None:
    with h5py.File(path, "r+") as h5file:
        del h5file["spike_trains/raw_data/train_1.0"]
    with neurostore.open(path) as store:
        store.store(train(300, 7.0))
        with pytest.raises(neurostore.DamagedError, match=r"train_1\.0"):
            store.retrieve("train_1.0")
        assert store.retrieve("train_0.0").sizes["spike"] == 300
        assert store.retrieve("train_7.0").sizes["spike"] == 300


@pytest.mark.parametrize("damage", ["removed", "row", "table", "names", "state", "version"])
def test_a_damaged_catalogue_costs_nothing(path: Path, damage: str) -> None:
    with neurostore.open(path) as store:
        store.rotate()
        store.store(neurostore.reservoir_states(np.eye(3), "main", timestamp=9.0))
        store.store(neurostore.reservoir_states(np.eye(3), "main", timestamp=10.0))
        before = store.ids()
    with h5py.File(path, "r+") as h5file:
        table = h5file["catalogue/reservoir_states/rows"]
        if damage == "removed":
            del h5file["catalogue"]
        elif damage in ("row", "version"):
            rows = table[:]
            rows["length" if damage == "row" else "version"][0] = 0 if damage == "version" else 77
            table[:] = rows
        elif damage == "table":
            table.resize((0,))
        elif damage == "names":
            h5file["catalogue/names"][1] ^= 1
        else:
            h5file["catalogue/state"][4] = 3
    with neurostore.open(path) as store:
        assert store.ids() == before
        np.testing.assert_array_equal(store.retrieve("main_9.0").states, np.eye(3))
        again = store.store(neurostore.reservoir_states(np.eye(3), "main", timestamp=9.0))
        assert again == "main_9.0~2"
        assert store.store(train(5, 1.0)) == "train_1.0~2"
        store.compact()
        assert set(store.ids()) == {*before, "main_9.0~2", "train_1.0~2"}


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with rows for more blocks than one, which threads read, and a record for the first."""
    return with_rows(tmp_path_factory.mktemp("rows") / "run.h5", 2 * tablerows.BLOCK + 700)


def with_rows(path: Path, count: int) -> Path:
    with neurostore.open(path, durability="process") as store:
        store.store(train(5, 0.0))
    session = attach(path, "a")
    with session.writing(timeout=10, durability="process") as catalogue:
        table = catalogue.tables["spike_train"]
        rows = np.repeat(table.rows[:1], count)
        rows["timestamp"] = rows["serial"] = np.arange(1, len(rows) + 1)
        catalogue.state["serial"] += len(rows)
        table.append(rows)
    session.close()
    return path


def test_many_rows_are_read_in_order(many_rows: Path) -> None:
    with h5py.File(many_rows) as h5file:
        held = catalogue_file.read(h5file)
    assert held is not None
    rows = held.tables["spike_train"].rows
    assert len(rows) == 2 * tablerows.BLOCK + 701
    assert (rows["timestamp"] == np.arange(len(rows))).all()
    found = held.select(KINDS["spike_train"], len(rows) - 3.0)
    assert found.tolist() == [len(rows) - 3, len(rows) - 2, len(rows) - 1]


@pytest.mark.parametrize("column", ["length", "version"])
@pytest.mark.parametrize("back", [1, -1])
def test_damage_is_seen_in_every_block(
    many_rows: Path, tmp_path: Path, column: str, back: int
) -> None:
    path = Path(shutil.copy(many_rows, tmp_path))
    with h5py.File(path, "r+") as h5file:  # beside the end of the first block
        table = h5file["catalogue/spike_train/rows"]
        row = table[tablerows.BLOCK - back]
        row[column] = 0
        table[tablerows.BLOCK - back] = row
        h5file.flush()
        assert catalogue_file.read(h5file) is None


def test_of_a_long_table_the_rows_stay_in_the_file(many_rows: Path, tmp_path: Path) -> None:
    path, kind = Path(shutil.copy2(many_rows, tmp_path)), KINDS["spike_train"]
    session = attach(path, "a")
    with session.writing(timeout=10, durability="process") as catalogue:
        gone = catalogue.find("train_70000.0")
        assert gone is not None
        catalogue.remove(gone)
        catalogue.add(kind, timestamp=70_000.5, name="", leaf="of its own")
    session.close()
    with h5py.File(path) as h5file:
        held = catalogue_file.read(h5file)
        assert held is not None
        rows = h5file["catalogue/spike_train/rows"].id
        offset = rows.get_chunk_info_by_coord((20 * tablerows.CHUNK,)).byte_offset
    expected = ["train_69999.0", "of its own", "train_70001.0"]
    with path.open("r+b") as file:  # what nobody asks for is not looked at
        file.seek(offset)
        row = file.read(ROW.itemsize)
        file.seek(offset)
        file.write(row[:8] + b"?" + row[9:])
    assert held.ids(kind, held.select(kind, 69_999.0, 70_001.0)) == expected
    assert [each.id for each in map(held.find, expected) if each is not None] == expected
    assert held.find("train_70000.0") is None
    assert held.has_given("train_70000.0", 70_000.0)
    assert held.tables["spike_train"].gone().tolist() == [70_000]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(row)
    # Asked often enough, it reads all of them, and says the same.
    for record in (*range(600), 69_999, 70_001, 70_002):
        found = held.find(f"train_{record}.0")
        assert found is not None
        assert (found.row, found.serial) == (record, record)
    every = held.select(kind)
    assert held.ids(kind, every)[70_000:70_002] == ["of its own", "train_70001.0"]
    assert len(every) == len(held.tables["spike_train"].rows) - 1


def test_a_row_that_is_damaged_after_it_was_read_is_named(many_rows: Path) -> None:
    with many_rows.open("rb") as file:
        unread = tablerows.Unread(file, np.arange(8), 4000, "rows", patience=0.01)
        with pytest.raises(DamagedError, match="rows: of rows 5 to 5 one fails"):
            unread.row(5)
        with pytest.raises(DamagedError, match="rows: of rows 1 to 2 one fails"):
            unread.take(np.array([1, 2]))
        with pytest.raises(DamagedError, match="rows 0 to 3999"):
            unread.all()


def test_a_reader_reads_new_rows_alone(path: Path) -> None:
    with neurostore.open(path) as store:
        with h5py.File(path) as h5file:
            held = catalogue_file.read(h5file)
        assert held is not None
        before = store.ids()
        new = store.store(train(5, 50.0))
    with h5py.File(path, "r+") as h5file:  # a row that is read again would fail its check
        table = h5file["catalogue/spike_train/rows"]
        rows = table[:]
        rows["length"][0] = 77
        table[:] = rows
    with h5py.File(path) as h5file:
        assert catalogue_file.read(h5file) is None
        assert catalogue_file.refresh(held, h5file)
    found = [entry.id for entry in held.entries()]
    assert found == [*before, new]
    assert held.find(new) is not None


def test_rows_that_cannot_be_read_are_not_counted_as_read(path: Path) -> None:
    with h5py.File(path) as h5file:
        held = catalogue_file.read(h5file)
    assert held is not None
    before = dict(held.state)
    with neurostore.open(path) as store:
        store.store(train(5, 50.0))
    close_all()
    with h5py.File(path, "r+") as h5file:
        table = h5file["catalogue/spike_train/rows"]
        rows = table[:]
        good = rows["length"][3]
        rows["length"][3] = 77
        table[:] = rows
    with h5py.File(path) as h5file:
        assert not catalogue_file.refresh(held, h5file)
    assert held.state == before
    with h5py.File(path, "r+") as h5file:
        rows["length"][3] = good
        h5file["catalogue/spike_train/rows"][:] = rows
    with h5py.File(path) as h5file:
        assert catalogue_file.refresh(held, h5file)
    assert [entry.id for entry in held.entries()][-1] == "train_50.0"


def test_a_catalogue_without_the_rows_that_it_counts_is_not_the_one_of_the_file(path: Path) -> None:
    with h5py.File(path) as h5file:
        held = catalogue_file.read(h5file)
        assert held is not None
        assert catalogue_file.is_as(held, held.state)
        for table in held.tables.values():
            table.size = min(table.size, 2)
        assert not catalogue_file.is_as(held, held.state)


def open_descriptors(path: Path) -> list[str]:
    return [name for name in open_files() if name.split(" ")[0] == str(path)]


@needs_proc
def test_a_closed_file_keeps_its_catalogue_and_no_descriptor(path: Path) -> None:
    for _ in range(3):
        with neurostore.open(path, mode="r") as store:
            ids = store.ids()
        close_all()
        assert open_descriptors(path) == []
        session = attach(path, "r")  # nothing was read yet
        assert session._catalogue is not None
        assert [entry.id for entry in session._catalogue.entries()] == ids
        session.close()
        assert open_descriptors(path) == []


@needs_proc
def test_a_file_in_the_place_of_a_closed_one_leaves_no_descriptor(path: Path) -> None:
    for turn in range(5):  # the system gives the number of the old file to the new one
        with neurostore.open(path, durability="process") as store:
            store.store(train(5, float(turn)))
        close_all()
        path.unlink()
        assert open_descriptors(path) == []


@needs_proc
def test_rows_that_stay_in_a_file_are_not_kept_beyond_its_closing(tmp_path: Path) -> None:
    made = with_rows(tmp_path / "run.h5", tablerows.LONG - 300)
    path = Path(shutil.copy2(made, tmp_path / "fresh.h5"))  # as untouched as the other
    session = attach(path, "r")
    with session.reading():
        assert not session.catalogue.tables["spike_train"].is_in_memory
    session.close()
    del session
    gc.collect()
    assert open_descriptors(path) == []


@pytest.mark.parametrize("change", ["remove", "compact", "store", "rotate"])
def test_a_catalogue_that_lost_rows_is_read_anew(path: Path, change: str) -> None:
    with neurostore.open(path) as store:
        with h5py.File(path) as h5file:
            held = catalogue_file.read(h5file)
        assert held is not None
        if change == "store":
            held.add(schema.KINDS["spike_train"], timestamp=3.0, name="")  # not in the file
        elif change == "remove":
            store.cleanup(0, model_time=True)
        else:
            getattr(store, change)()
        with h5py.File(path) as h5file:
            assert not catalogue_file.refresh(held, h5file)


def test_another_process_sees_what_comes_and_goes(path: Path) -> None:
    with neurostore.open(path, mode="r") as store:
        before = store.ids()
        elsewhere(path, "s.store(neurostore.spike_train([0.1], [1], timestamp=99.0))")
        assert store.ids() == [*before, "train_99.0"]
        elsewhere(path, "s.cleanup(0, model_time=True)")
        assert store.ids() == []


def elsewhere(path: Path, code: str) -> None:
    """Do something with the store in another process."""
    run = f"import neurostore\nwith neurostore.open({str(path)!r}) as s: {code}"
    subprocess.run([sys.executable, "-c", run], check=True, timeout=120)


def swallow_an_inner_failure(store: neurostore.Store) -> None:
    with store.batch():
        store.store(train(5, 50.0))
        try:
            with store.batch():
                store.store(train(5, 51.0))
                raise RuntimeError("inner")
        except RuntimeError:
            pass


def test_a_failure_inside_a_batch_takes_the_batch_with_it(path: Path) -> None:
    with neurostore.open(path) as store:
        with pytest.raises(StoreError, match="nothing of the batch"):
            swallow_an_inner_failure(store)
        assert len(store.ids()) == 3
        with store.batch(), pytest.raises(neurostore.ValidationError):
            store.store(xr.Dataset())
        store.store(train(5, 52.0))
        assert len(store.ids()) == 4


def test_closing_inside_a_batch_is_refused(path: Path) -> None:
    store = neurostore.open(path)
    with store.batch():
        store.store(train(5, 50.0))
        with pytest.raises(StoreError, match="inside a batch"):
            store.close()
    assert "train_50.0" in store.ids()
    store.close()


def test_lengths_around_the_limits_of_stencils(path: Path) -> None:
    with neurostore.open(path, durability="process") as store:
        for number, count in enumerate([128, 64, 127, 129, 128, 1024, 1025, 1, 0, 129]):
            labels = np.array(["a cell with a long name"] * count)
            coords = {"cell": ("spike", labels)} if number % 2 else {}
            name = store.store(train(count, 100.0 + number, coords=coords))
            found = store.retrieve(name)
            np.testing.assert_array_equal(found.neuron_ids, np.arange(count))
            if coords:
                np.testing.assert_array_equal(found.cell, labels)


def test_lazy_records_survive_compaction_and_rotation(path: Path) -> None:
    with neurostore.open(path) as store:
        one, many = store.retrieve("train_1.0"), store.range("spike_train")
        store.compact()
        store.rotate()
        store.rotate()
        assert one.load().sizes["spike"] == 300
        assert many.load().sizes["spike"] == 900


def test_a_lazy_record_that_was_removed_says_so(path: Path) -> None:
    with neurostore.open(path) as store:
        lazy = store.retrieve("train_1.0")
        assert len(store.cleanup(1, model_time=True)) == 3
        store.store(train(7, 1.0))
        with pytest.raises(RecordNotFoundError, match="removed"):
            lazy.load()


def test_a_dask_record_of_the_file_itself_inside_a_batch(path: Path) -> None:
    with neurostore.open(path) as store, store.batch():
        lazy = store.retrieve("train_1.0").drop_indexes(["spike_times", "neuron_ids"])
        again = store.store(lazy.chunk({"spike": 100}).assign_coords(timestamp=70.0))
        np.testing.assert_array_equal(store.retrieve(again).neuron_ids, np.arange(300))


def test_threads_open_read_and_close_while_one_compacts(path: Path) -> None:
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(40):
                with neurostore.open(path, "r") as store:
                    assert store.retrieve("train_2.0").load().sizes["spike"] == 300
        except BaseException as error:  # noqa: BLE001 (shown by the assertion below)
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    with neurostore.open(path, durability="process") as store:
        for number in range(10):
            store.store(train(10, 200.0 + number))
            store.compact()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def test_every_new_file_is_its_own(tmp_path: Path) -> None:
    found = set()
    for name in ("a.h5", "b.h5"):
        with neurostore.open(tmp_path / name) as store:
            found.add(store._session().catalogue.file_id)
            assert store.info()["created_at"] == pytest.approx(time.time(), abs=3600)
    assert len(found) == 2


def test_stencils_of_a_closed_file_serve_the_next_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sparse = np.where(rng.random((200, 200)) < 0.05, rng.random((200, 200)), 0)
    shuffled = []
    for name, array in {"a.h5": sparse, "b.h5": rng.random((200, 200))}.items():
        with neurostore.HDF5Storage(tmp_path / name) as storage:
            storage.store_plasticity_trace(1.0, array, "stdp")
        with h5py.File(tmp_path / name) as h5file:
            dataset = h5file["learning_traces/plasticity/stdp_1.0/changes"]
            assert (dataset[:] == array).all()
            shuffled.append(dataset.shuffle)
    assert shuffled == [False, True]


def test_what_a_failed_batch_showed_is_not_read_from_the_next_record(path: Path) -> None:
    with neurostore.open(path, durability="process") as store:
        with contextlib.suppress(ZeroDivisionError), store.batch():
            first = store.store(neurostore.reservoir_states(np.ones((9, 99)), "a", timestamp=1.0))
            seen = store.retrieve(first)
            _ = 1 / 0
        made = neurostore.reservoir_states(np.zeros((9, 99)), "a", timestamp=1.0)
        assert store.store(made) == first
        with pytest.raises(RecordNotFoundError):
            seen.load()


def test_a_record_read_at_once_is_what_it_is_lazily(path: Path) -> None:
    rng = np.random.default_rng(2)
    weights = rng.random((300, 300)).astype("f2")  # float32 on disk
    ds = neurostore.network_snapshot(
        rng.integers(0, 2, (300, 300)), weights, np.ones(300), timestamp=1.0
    )
    ds = ds.assign_coords(cell_type=("neuron", np.array(["a", "bc"] * 150)))
    with neurostore.open(path) as store:
        record = store.store(ds)
        lazily, at_once = store.retrieve(record), store.retrieve(record, load="network_snapshot")
        other = store.retrieve(record, load="spike_train")
        xr.testing.assert_identical(at_once, lazily.load())
        assert at_once.weights.dtype == np.float16
        with pytest.raises(ValidationError, match="one of the two"):
            store.retrieve(record, chunks={}, load=True)
        store.cleanup(1, model_time=True)
        with pytest.raises(RecordNotFoundError):  # it was left lazy
            other.load()
