"""What rules of retention keep and let go, in one file and over a series."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import neurostore
from neurostore import (
    ClosedError,
    Keep,
    RecordNotFoundError,
    Store,
    StoreNotFoundError,
    ValidationError,
)
from neurostore.osio import OsIO

DAY = 86_400.0
NOW = 1_700_000_000.0


def train(timestamp: float, **metadata: Any) -> Any:
    return neurostore.spike_train([0.1], [1], timestamp=timestamp, metadata=metadata)


def reservoir(name: str, timestamp: float) -> Any:
    return neurostore.reservoir_states(np.zeros((2, 2)), name, timestamp=timestamp)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Ten trains a day apart, the last of today; two reservoirs, four records each."""
    made = neurostore.open(tmp_path / "run.h5", durability="process")
    with made.batch():
        for day in range(10):
            made.store(train(NOW - (9 - day) * DAY, pinned=day == 1, loss=float(abs(day - 4))))
        for second in range(4):
            for name in ("a", "b"):
                made.store(reservoir(name, NOW + second))
    return made


def days(ids: list[str]) -> list[int]:
    """The numbers of the trains among some ids."""
    moments = (float(i.removeprefix("train_")) for i in ids if i.startswith("train_"))
    return [9 - round((NOW - moment) / DAY) for moment in moments]


TRAIN = "spike_train"


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ([Keep(kind=TRAIN, days=3)], [6, 7, 8, 9]),
        ([Keep(kind=TRAIN, latest=2)], [8, 9]),
        ([Keep(kind=TRAIN, latest=0)], []),
        ([Keep(kind=TRAIN, latest=2), Keep(kind=TRAIN, days=3)], [6, 7, 8, 9]),
        ([Keep(kind=TRAIN, latest=2, days=0.5)], [9]),
        ([Keep(kind=TRAIN, every=4)], [0, 4, 8]),
        ([Keep(kind=TRAIN, interval=3 * DAY)], None),
        ([Keep(kind=TRAIN, best=2, metric="loss", mode="min")], [3, 4]),
        ([Keep(kind=TRAIN, best=1, metric="loss")], [9]),
        ([Keep(kind=TRAIN, best=1, metric="absent")], []),
        ([Keep(kind=TRAIN, where={"pinned": True})], [1]),
        ([Keep(kind=TRAIN, latest=1), Keep(where={"pinned": True})], [1, 9]),
        ([Keep(kind=TRAIN, predicate=lambda t: t["timestamp"].values < NOW - 8 * DAY)], [0]),
        ([Keep(kind=TRAIN), Keep(kind=TRAIN, latest=1)], list(range(10))),
        ([Keep(kind="network_snapshot", latest=0)], list(range(10))),
    ],
)
def test_what_a_rule_keeps(store: Store, rules: list[Keep], kept: list[int] | None) -> None:
    before = store.ids()
    gone = store.cleanup(keep=rules, now=NOW, dry_run=True)
    assert store.ids() == before
    assert store.cleanup(keep=rules, now=NOW) == gone
    assert store.ids() == [i for i in before if i not in gone]
    left = days(store.ids())
    if kept is None:
        buckets = [int((NOW - (9 - d) * DAY) // (3 * DAY)) for d in range(10)]
        kept = [d for d in range(10) if d == 0 or buckets[d] != buckets[d - 1]]
    assert left == kept
    assert store.cleanup(keep=rules, now=NOW) == [], "a second run removes more"


def test_counts_are_for_every_name_of_every_kind(store: Store) -> None:
    def left(per: Any) -> list[str]:
        rule = Keep(kind="reservoir_states", latest=1, per=per)
        gone = store.cleanup(keep=rule, dry_run=True)
        return [i for i in store.ids("reservoir_states") if i not in gone]

    assert left("name") == [f"a_{NOW + 3!r}", f"b_{NOW + 3!r}"]
    assert left("kind") == left("all") == [f"b_{NOW + 3!r}"]
    gone = store.cleanup(keep=Keep(latest=1, per="all"), dry_run=True)
    assert len(gone) == len(store.ids()) - 1
    only_a = store.cleanup(keep=Keep(name="a", latest=0), dry_run=True)
    assert only_a == [f"a_{NOW + n!r}" for n in range(4)]


def test_the_best_by_a_metric_of_their_own(store: Store) -> None:
    for step, accuracy in enumerate([0.2, 0.9, 0.5]):
        metrics = {"accuracy": accuracy, "loss": 1 - accuracy}
        store.store(neurostore.performance_metrics(metrics, "task", timestamp=NOW + step))
    gone = store.cleanup(keep=Keep(kind="performance_metrics", best=1, metric="accuracy"))
    assert gone == [f"task_{NOW!r}", f"task_{NOW + 2!r}"]


def test_model_seconds_are_not_old(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with neurostore.open(tmp_path / "model.h5", durability="process") as store:
        for second in range(3):
            store.store(train(float(second)))
        with caplog.at_level(logging.WARNING):
            assert store.cleanup(30) == []
        assert "3 records have timestamps before 1980" in caplog.text
        assert store.cleanup(keep=[Keep(days=30), Keep(latest=1)]) == []
        assert store.cleanup(2 / DAY, now=3.0, model_time=True) == ["train_0.0"]


def test_a_series_is_one_history(store: Store) -> None:
    older = store.rotate()
    with store.batch():
        for day in range(10, 14):
            store.store(train(NOW - (9 - day) * DAY))
    assert len(store.cleanup(keep=Keep(kind=TRAIN, latest=6))) == 8
    assert [
        path.name for path in older.parent.glob(f"{older.name}-*")
    ] == []  # nothing is left open
    assert days(store.ids(TRAIN)) == list(range(8, 14))
    with neurostore.open(older, mode="r") as alone:
        assert days(alone.ids(TRAIN)) == [8, 9]


def test_a_failure_removes_nothing(store: Store) -> None:
    before = store.ids()
    with pytest.raises(ValidationError, match=r"predicate returned .* expected bool"):
        store.cleanup(keep=[Keep(latest=0), Keep(predicate=lambda table: [1, 2])])
    assert store.ids() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kind": "spikes"}, "kind is 'spikes'"),
        ({"days": -1}, "days is -1"),
        ({"days": float("nan")}, "days is nan"),
        ({"latest": 1.5}, "latest is 1.5, expected an integer"),
        ({"every": 0}, "every is 0"),
        ({"interval": 0}, "interval is 0"),
        ({"best": 3}, "best and metric go together"),
        ({"mode": "most"}, "mode is 'most'"),
        ({"per": "file"}, "per is 'file'"),
    ],
)
def test_a_wrong_rule_says_what_is_wrong(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Keep(**arguments)


def test_arguments_that_contradict_each_other(store: Store) -> None:
    for arguments in ({}, {"retention_days": 3, "keep": Keep()}, {"keep": Keep(), "kind": TRAIN}):
        with pytest.raises(ValidationError, match=r"expected|belong"):
            store.cleanup(**arguments)
    with pytest.raises(ValidationError, match="rule 1 has 'newest', expected some of"):
        store.cleanup(keep=[{"newest": 3}])


def test_a_file_with_things_of_others_is_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with neurostore.open(path) as store:
        store.store(train(NOW - DAY))
    with h5py.File(path, "r+") as h5file:
        h5file["my_notes"] = np.arange(5)
    with neurostore.open(path) as store:
        older = store.rotate()
        store.store(train(NOW))
        assert store.cleanup(keep=Keep(latest=1)) == [f"train_{NOW - DAY!r}"]
        assert store.ids() == [f"train_{NOW!r}"]
    with h5py.File(older) as h5file:
        assert h5file["my_notes"][()].tolist() == [0, 1, 2, 3, 4]


def test_a_file_that_loses_all_is_dropped(store: Store) -> None:
    first = store.rotate()
    for day in range(10, 14):
        store.store(train(NOW - (9 - day) * DAY))
    second = store.rotate()
    store.store(train(NOW + 6 * DAY))
    lazy = store.retrieve(store.ids(TRAIN)[0])
    rules = [Keep(latest=3, kind=TRAIN), Keep(kind="reservoir_states", latest=0)]
    assert len(store.cleanup(keep=rules, dry_run=True)) == 20
    assert first.exists()
    with pytest.raises(ClosedError, match="inside a batch"), store.batch():
        store.cleanup(keep=rules)
    assert len(store.ids()) == 23
    assert len(store.cleanup(keep=rules)) == 20
    assert not first.exists()
    assert second.exists()
    assert len(store.ids()) == 3
    assert len(store.info()["files"]) == 2
    with pytest.raises((RecordNotFoundError, StoreNotFoundError)):
        lazy.load()
    assert store.store(train(NOW - 9 * DAY)) != f"train_{NOW - 9 * DAY!r}", "ids are given once"
    size = second.stat().st_size
    won = store.compact()
    assert second.stat().st_size < size
    assert won >= size - second.stat().st_size
    assert len(store.ids()) == 4
    assert store.verify().ok


class Stubborn(OsIO):
    """A system that keeps a file, as if the process had ended before it was removed."""

    keeps = True

    def unlink(self, path: str) -> None:
        if self.keeps and path.endswith(".000001.h5"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        super().unlink(path)


def test_a_file_that_was_let_go_of_is_removed_later(tmp_path: Path) -> None:
    """After a crash between the commit and the removal, by the next cleanup."""
    io = Stubborn()
    with Store(tmp_path / "run.h5", durability="process", io=io) as store:
        store.store(train(NOW - 3 * DAY))
        first = store.rotate()
        store.store(train(NOW - 2 * DAY))
        second = store.rotate()
        store.store(train(NOW))
        assert store.cleanup(2.5, now=NOW) == [f"train_{NOW - 3 * DAY!r}"]
        assert first.exists()
        assert store.ids() == [f"train_{NOW - 2 * DAY!r}", f"train_{NOW!r}"]
        kept = first.read_bytes()
        io.keeps = False
    with neurostore.open(tmp_path / "run.h5") as store:
        store.rotate()
        assert store.cleanup(2.5, now=NOW) == []
        assert not first.exists()
        assert store.cleanup(1.0, now=NOW) == [f"train_{NOW - 2 * DAY!r}"]
        assert not second.exists()
        first.write_bytes(kept)
        assert store.cleanup(1.0, now=NOW) == []
        assert first.read_bytes() == kept, "what was removed is forgotten"
        assert store.verify().ok


def test_a_predicate_tells_records_of_one_id_apart(tmp_path: Path) -> None:
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as h5file:
        h5file["activations/reservoir_states/main_1.0"] = np.ones((2, 3))
        h5file["activations/attention_maps/main_1.0"] = np.ones((2, 3, 3))
    with neurostore.open(path, durability="process") as store:
        rule = neurostore.Keep(predicate=lambda found: found["kind"].values == "reservoir_states")
        assert store.cleanup(keep=rule) == ["main_1.0"]
        assert store.ids("reservoir_states") == ["main_1.0"]
        assert store.ids("attention_maps") == []
