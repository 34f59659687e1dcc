"""A life longer than one file: rotation, one history, and many files side by side."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from crash import NoLinks

import neurostore
from neurostore import HDF5Storage, Store, ValidationError
from neurostore.errors import (
    AmbiguousRecordError,
    MissingFileWarning,
    ReadOnlyError,
    RecordNotFoundError,
    SealedError,
    StoreNotFoundError,
)
from neurostore.ledger import Seal
from neurostore.osio import OsIO
from neurostore.session import attach, close_all, open_paths


def train(timestamp: float, count: int = 1) -> xr.Dataset:
    return neurostore.spike_train(np.full(count, 0.1), np.arange(count), timestamp=timestamp)


def opened(path: Path, **options: Any) -> Store:
    return neurostore.open(path, durability="process", **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.h5"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Three files: seconds 0 to 9, 10 to 19, 20 to 24."""
    with opened(tmp_path / "run.h5", max_records=10) as store:
        for second in range(25):
            store.store(train(float(second)))
        yield store


ALL = [f"train_{float(second)}" for second in range(25)]

# -- when ---------------------------------------------------------------------------------------


def test_the_commit_that_fills_the_file_rotates_it(store: Store, tmp_path: Path) -> None:
    assert names(tmp_path) == ["run.000001.h5", "run.000002.h5", "run.h5"]
    assert [neurostore.open(path, "r").ids() for path in sorted(tmp_path.glob("run.0*.h5"))] == [
        ALL[:10],
        ALL[10:20],
    ]
    assert store.ids() == ALL


def test_a_batch_is_one_file(tmp_path: Path) -> None:
    with opened(tmp_path / "run.h5", max_records=3) as store:
        with store.batch():
            for second in range(7):
                store.store(train(float(second)))
            assert names(tmp_path) == ["run.h5"]
        assert names(tmp_path) == ["run.000001.h5", "run.h5"]


def test_a_file_past_its_bytes_is_rotated_and_check_size_tells(tmp_path: Path) -> None:
    with opened(tmp_path / "run.h5", max_file_size=50_000) as store:
        assert store.check_size() is False
        store.store(
            neurostore.reservoir_states(np.random.default_rng(0).random((99, 99)), "a", timestamp=0)
        )
        assert names(tmp_path) == ["run.000001.h5", "run.h5"]
        assert store.check_size() is True
        assert store.check_size() is False


def test_an_empty_file_is_not_rotated_for_its_size(tmp_path: Path) -> None:
    with opened(tmp_path / "run.h5", max_file_size=1) as store:
        assert store.check_size() is False
        store.store(train(1.0))
        assert names(tmp_path) == ["run.000001.h5", "run.h5"]


@pytest.mark.parametrize("limit", ["max_records", "max_file_size"])
def test_a_limit_is_a_positive_number(tmp_path: Path, limit: str) -> None:
    with pytest.raises(ValidationError, match=limit):
        opened(tmp_path / "run.h5", **{limit: 0})


class NoNames(OsIO):
    """A system that gives no second names, for a while."""

    refused = True

    def link(self, source: str, target: str) -> None:
        if self.refused:
            raise OSError(errno.EIO, "no names")
        super().link(source, target)


def test_a_rotation_that_fails_costs_nothing_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    NoNames.refused = False
    io = NoNames()
    with Store(tmp_path / "run.h5", durability="process", max_records=1, io=io) as store:
        io.refused = True
        with caplog.at_level(logging.WARNING):
            assert store.store(train(1.0)) == "train_1.0"
        assert "rotating it failed" in caplog.text
        with pytest.raises(neurostore.WriteError, match="no names"):
            store.rotate()
        assert store.ids() == ["train_1.0"]
        io.refused = False
        store.store(train(2.0))
        assert names(tmp_path) == ["run.000001.h5", "run.h5"]
        assert store.ids() == ["train_1.0", "train_2.0"]


class Copying(NoLinks, OsIO):
    pass


def test_where_there_are_no_hard_links_the_file_is_copied(tmp_path: Path) -> None:
    with Store(tmp_path / "run.h5", durability="process", io=Copying()) as store:
        for second in range(3):
            store.store(train(float(second)))
            store.rotate()
        assert store.ids() == ALL[:3]
    assert names(tmp_path) == [*(f"run.00000{n}.h5" for n in (1, 2, 3)), "run.h5"]


# -- names and numbers --------------------------------------------------------------------------


def test_a_number_is_not_given_twice(store: Store, tmp_path: Path) -> None:
    (tmp_path / "run.000003.h5").write_bytes(b"somebody else's")
    assert store.rotate().name == "run.000004.h5"
    (tmp_path / "run.000004.h5").rename(tmp_path / "kept.h5")
    assert store.rotate().name == "run.000005.h5"
    assert (tmp_path / "run.000003.h5").read_bytes() == b"somebody else's"


@pytest.mark.parametrize(
    "name",
    ["x" * 252 + ".h5", "x" * 255, "é" * 126 + ".h5", "no suffix", "a.b.c.h5", "日本 %~#.h5"],
)
def test_any_name_of_a_file_goes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with opened(path, max_records=2) as store:
        for second in range(5):
            store.store(train(float(second)))
        store.compact()
        assert store.ids() == ALL[:5]
        assert len({*store.info()["files"]}) == 3
    close_all()
    with neurostore.open(path, "r") as store:
        assert store.ids() == ALL[:5]


def test_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="255"):
        neurostore.open(tmp_path / ("x" * 10_000 + ".h5"))


# -- sealed -------------------------------------------------------------------------------------


def test_a_rotated_file_takes_nothing_and_can_be_read(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "run.000001.h5"
    with opened(path) as old:
        for write in (lambda: old.store(train(99.0)), old.rotate, old.check_size):
            with pytest.raises(SealedError, match=r"open run\.h5"):
                write()
        assert old.ids() == ALL[:10]
        assert old.retrieve("train_3.0").load().sizes == {"spike": 1}
    with pytest.raises(SealedError), HDF5Storage(path) as storage:
        storage.store_spike_train(1.0, [0.1], [1])
    assert store.ids() == ALL


def interrupted(folder: Path, named: bool) -> Path:
    """A file that was sealed, and perhaps named, by a rotation that went no further."""
    path = folder / "run.h5"
    with opened(path) as store:
        store.store(train(1.0))
    session = attach(path, "a")
    with session.writing(timeout=5, durability="process") as held:
        plan = held.ledger.__class__(series="abc", number=2, seal=Seal("run.000001.h5", "run.h5"))
        session.write_ledger(plan)
    session.close()
    if named:
        os.link(path, folder / "run.000001.h5")
    return path


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_the_next_writer_ends_a_rotation(tmp_path: Path, named: bool, taken: bool) -> None:
    path = interrupted(tmp_path, named)
    if taken and not named:
        (tmp_path / "run.000001.h5").write_bytes(b"somebody else's")
    with neurostore.open(path, "r") as store:
        assert store.ids() == ["train_1.0"]
    assert neurostore.open(str(tmp_path / "run.h5*"), "r").ids() == ["train_1.0"]
    with opened(path) as store:
        assert store.store(train(1.0)) == "train_1.0~2"
        assert len(names(tmp_path)) == 3 if taken and not named else 2
        assert store.ids() == ["train_1.0", "train_1.0~2"]


def test_the_series_of_a_development_version_is_read(store: Store, tmp_path: Path) -> None:
    store.close()
    close_all()
    with h5py.File(tmp_path / "run.h5", "r+") as h5file:
        del h5file.attrs["neurostore_series"]
        h5file.attrs["neurostore_older_files"] = json.dumps(["run.000001.h5", "run.000002.h5"])
    with opened(tmp_path / "run.h5") as again:
        assert again.ids() == ALL
        assert again.store(train(3.0)) == "train_3.0~2"
        assert again.rotate().name == "run.000003.h5"
        assert len(again.ids()) == 26


# -- one history --------------------------------------------------------------------------------


def test_a_question_opens_the_files_that_it_concerns(store: Store, tmp_path: Path) -> None:
    def touched(ask: Any) -> list[str]:
        close_all()
        with neurostore.open(tmp_path / "run.h5", "r") as reader:
            ask(reader)
            return sorted(path.name for path in open_paths())

    newest, first, second = "run.h5", "run.000001.h5", "run.000002.h5"
    assert touched(lambda s: s.ids("spike_train", 22, 30)) == [newest]
    assert touched(lambda s: s.range("spike_train", 12, 13).load()) == [second, newest]
    assert touched(lambda s: s.retrieve("train_3.0").load()) == [first, newest]
    assert touched(lambda s: s.open_group("spike_trains/raw_data/train_3.0")) == [first, newest]
    assert touched(lambda s: s.ids("plasticity_trace")) == [newest]
    assert touched(lambda s: s.catalogue(start=5, end=12)) == [first, second, newest]

    def store_later(_: Store) -> None:
        with opened(tmp_path / "run.h5") as writer:
            assert writer.store(train(25.0)) == "train_25.0"
            assert writer.store(train(19.5)) == "train_19.5"

    assert touched(store_later) == [newest]


def test_more_files_than_are_kept_open(tmp_path: Path) -> None:
    with opened(tmp_path / "run.h5", max_records=1) as store:
        for second in range(132):
            store.store(train(float(second)))
        assert len(store.ids()) == 132
        assert store.range("spike_train").load().sizes["record"] == 132
        assert len(store.cleanup(keep=neurostore.Keep(latest=130))) == 2
        assert len(store.ids()) == 130
        assert store.info()["records"]["spike_train"] == 130


def test_what_the_faces_say_of_a_series(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    assert xr.open_dataset(path, engine="neurostore").sizes == {"record": 25}
    part = xr.open_dataset(path, engine="neurostore", group="spike_trains/raw_data/train_3.0")
    assert part.load().sizes == {"spike": 1}
    assert len(xr.open_groups(path, engine="neurostore")) == 26
    info = store.info()
    assert info["records"]["spike_train"] == 25
    assert info["spans"] == {"spike_train": (0.0, 24.0)}
    assert [Path(file["path"]).name for file in info["per_file"]] == names(tmp_path)
    assert [file["records"] for file in info["per_file"]] == [10, 10, 5]
    assert [file["is_sealed"] for file in info["per_file"]] == [True, True, False]
    assert info["file_size"] == sum(path.stat().st_size for path in tmp_path.glob("*.h5"))
    with HDF5Storage(path) as storage:
        assert len(storage.get_file_info()["files"]) == 3
    ds = store.retrieve("train_3.0")
    assert ds.neuro.rotate().name == "run.000003.h5"
    assert ds.neuro.ids() == ALL


def test_a_record_stays_readable_through_rotations(store: Store, tmp_path: Path) -> None:
    lazy, sent = store.retrieve("train_24.0"), pickle.dumps(store.range("spike_train"))
    store.rotate()
    store.store(train(25.0))
    store.rotate()
    assert lazy.load().sizes == {"spike": 1}
    assert pickle.loads(sent).load().sizes["record"] == 25
    away = store.retrieve("train_25.0"), store.retrieve("train_24.0")
    (tmp_path / "run.000003.h5").unlink()
    assert away[0].load().sizes == {"spike": 1}
    with pytest.raises(StoreNotFoundError, match=r"run\.000003\.h5"):
        away[1].load()


def test_a_missing_file_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "run.000001.h5").rename(tmp_path / "away")
    with pytest.warns(MissingFileWarning, match=r"run\.000001\.h5.*10 records"):
        assert store.ids() == ALL[10:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.ids(start=15) == ALL[15:]
    with pytest.raises(RecordNotFoundError, match=r"run\.000001\.h5"):
        store.retrieve("train_3.0")
    with pytest.raises(RecordNotFoundError, match="no record"):
        store.retrieve("train_13.5")
    shutil.copy(tmp_path / "run.000002.h5", tmp_path / "run.000001.h5")
    with pytest.warns(MissingFileWarning, match="another file"):
        assert store.ids(end=12) == ALL[10:13]
    (tmp_path / "away").replace(tmp_path / "run.000001.h5")
    assert store.ids() == ALL


def test_a_rotated_file_that_lost_its_catalogue_is_still_its_own(
    store: Store, tmp_path: Path
) -> None:
    close_all()
    with h5py.File(tmp_path / "run.000001.h5", "r+") as h5file:
        del h5file["catalogue"]
    with opened(tmp_path / "run.h5") as again:
        assert again.ids() == ALL
        assert again.store(train(3.0)) == "train_3.0~2"


def test_a_series_that_is_moved_stays_together(store: Store, tmp_path: Path) -> None:
    store.close()
    (tmp_path / "there").mkdir()
    for path in tmp_path.glob("*.h5"):
        path.rename(tmp_path / "there" / path.name)
    (tmp_path / "there" / "run.h5").rename(tmp_path / "there" / "other.h5")
    with opened(tmp_path / "there" / "other.h5") as moved:
        assert moved.ids() == ALL
        assert moved.rotate().name == "other.000003.h5"
        assert moved.ids() == ALL


def test_exclusive_use_and_rotation_go_together(tmp_path: Path) -> None:
    with opened(tmp_path / "run.h5", exclusive=True, max_records=2) as store:
        for second in range(5):
            store.store(train(float(second)))
        assert store.ids() == ALL[:5]
        assert len(names(tmp_path)) == 3


# -- ids are given once -------------------------------------------------------------------------


def test_an_id_is_given_once_whatever_is_removed(tmp_path: Path) -> None:
    with opened(tmp_path / "run.h5") as store:
        given = [store.store(train(5.0)) for _ in range(3)]
        assert given == ["train_5.0", "train_5.0~2", "train_5.0~3"]

        def again() -> None:
            given.append(store.store(train(5.0)))
            assert len(set(given)) == len(given)

        store.cleanup(0, now=9.0, model_time=True)
        assert store.ids() == []
        again()
        store.close()
        close_all()
        with opened(tmp_path / "run.h5") as store:
            again()
            store.cleanup(0, now=9.0, model_time=True)
            store.compact()
            again()
            rotated = store.rotate()
            again()
            rotated.unlink()
            again()
            assert store.store(train(6.0)) == "train_6.0"
            close_all()
            again()
            with pytest.warns(MissingFileWarning):
                assert len(store.ids()) == 4


def test_ids_of_different_kinds_do_not_meet_in_older_files(tmp_path: Path) -> None:
    with opened(tmp_path / "run.h5") as store:
        store.store(train(5.0))
        store.rotate()
        states = neurostore.reservoir_states(np.eye(2), "train", timestamp=5.0)
        assert store.store(states) == "train_5.0~2"


# -- many files side by side --------------------------------------------------------------------


@pytest.fixture
def several(store: Store, tmp_path: Path) -> str:
    """The series, and two files of others with some equal ids."""
    (tmp_path / "sub").mkdir()
    for name, seconds in (("other.h5", (3, 30)), ("sub/run.h5", (3, 12.5))):
        with opened(tmp_path / name) as other:
            for second in seconds:
                other.store(train(float(second), 2))
            other.store(neurostore.reservoir_states(np.eye(2), "main", timestamp=50.0))
    return str(tmp_path / "**" / "*.h5")


def test_a_pattern_is_one_view(several: str, tmp_path: Path) -> None:
    with neurostore.open(several) as view:
        ids = view.ids("spike_train")
        assert len(ids) == len(set(ids)) == 29
        assert sorted(i for i in ids if "::" in i) == [
            f"{label}::train_3.0" for label in ("other", "run", "sub.run")
        ]
        moments = [float(view.retrieve(record_id).timestamp) for record_id in ids]
        assert moments == sorted(moments)
        with pytest.raises(AmbiguousRecordError, match=r"'other::train_3\.0', 'run::train_3\.0'"):
            view.retrieve("train_3.0")
        assert view.retrieve("train_12.5").load().sizes == {"spike": 2}


def test_a_view_answers_as_a_store_does(several: str) -> None:
    with neurostore.open(several) as view:
        clashing = view.ids(start=3, end=3)
        ranged = view.range("spike_train", 3, 3)
        assert ranged.record.values.tolist() == clashing
        assert ranged.load().row_size.values.tolist() == [
            view.retrieve(i).sizes["spike"] for i in clashing
        ]
        table = view.catalogue(start=3, end=3)
        assert [f"{file}::train_3.0" for file in table["file"].values] == clashing
        tree = view.tree(start=3, end=3)
        assert list(tree) == [f"spike_trains/raw_data/{i}" for i in clashing]
        for address, ds in tree.items():
            assert view.open_group(address).sizes == ds.sizes
        xr.DataTree.from_dict(tree).load()
        assert len(view.ids("reservoir_states")) == 2
        info = view.info()
        assert info["records"] == info["records"] | {"spike_train": 29, "reservoir_states": 2}
        assert len(info["labels"]) == 3
        assert len(info["files"]) == 5
        assert "31 records" in repr(view)
        assert xr.open_dataset(several, engine="neurostore").sizes["record"] == 31
        again = view.catalogue().neuro.ids("spike_train", 30, 30)
        assert again == ["train_30.0"]


def test_a_view_is_for_reading(several: str, tmp_path: Path) -> None:
    view = neurostore.open(several)
    for write in (
        lambda: view.store(train(1.0)),
        lambda: view.cleanup(1),
        view.compact,
        view.rotate,
        view.check_size,
        lambda: view.batch().__enter__(),
    ):
        with pytest.raises(ReadOnlyError, match="several files"):
            write()
    view.close()
    view.close()
    with pytest.raises(neurostore.ClosedError):
        view.ids()
    with pytest.raises(ValidationError):
        neurostore.open(several, "x")
    with pytest.raises(StoreNotFoundError, match="pattern"):
        neurostore.open(tmp_path / "none*.h5")
    assert not list(tmp_path.glob("none*"))
    with pytest.raises(StoreNotFoundError, match="empty list"):
        neurostore.open([])


def test_a_list_of_files_and_one_rotated_file_among_them(several: str, tmp_path: Path) -> None:
    files = [tmp_path / "run.000001.h5", tmp_path / "run.000002.h5", tmp_path / "other.h5"]
    with neurostore.open(files) as view:
        assert len(view.ids()) == 23
        assert view.retrieve("other::train_3.0").load().sizes == {"spike": 2}
        assert view.range("spike_train", 9, 10).load().sizes["record"] == 2
    with neurostore.open([tmp_path / "run.h5", tmp_path / "run.000001.h5"]) as view:
        assert view.ids() == ALL


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "run[1].h5"
    with opened(path) as store:
        assert store.store(train(1.0)) == "train_1.0"
    assert neurostore.open(path, "r").ids() == ["train_1.0"]


def test_a_file_that_its_series_let_go_of_is_left_out(store: Store, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "run.000001.h5", tmp_path / "copy")
    assert store.cleanup(keep=neurostore.Keep(latest=15)) == ALL[:10]
    assert names(tmp_path) == ["run.000002.h5", "run.h5"]
    (tmp_path / "copy").rename(tmp_path / "run.000001.h5")
    assert neurostore.open(tmp_path / "*.h5").ids() == ALL[10:]
    assert store.ids() == ALL[10:]
    (tmp_path / "run.000001.h5").unlink()
    assert store.store(train(3.0)) not in ALL
    assert store.store(train(40.0)) == "train_40.0"
