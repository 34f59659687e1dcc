"""A store against a dict: any order of storing, failing, ageing, reopening tells the same."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from children import Child
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from samples import assert_same, record
from tiers import examples

import neurostore
from neurostore import HDF5Storage, RecordNotFoundError, ValidationError
from neurostore.schema import KINDS
from neurostore.store import Store

#: Days after 1980, so that they have an age; few, so that records meet.
DAYS = st.integers(5_000, 5_003)
OLD_DAYS = st.integers(5_001, 5_002)
NAMES = st.sampled_from(["main", "other/0"])
DAY = 86_400.0


class Boom(Exception):
    """What a user's code raises in the middle of a batch."""


class StoreMachine(RuleBasedStateMachine):
    """Every rule is done to the store and to a plain dict of the same records."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "run.h5"
        self.model: dict[str, xr.Dataset] = {}
        self.order: list[str] = []
        #: Whether a journal may be left that a killed process had applied; the next writer ends it.
        self.orphaned = False
        self.seen: set[str] = set()
        self.rotations = 0

    @initialize(days=st.lists(DAYS, min_size=3, max_size=8))
    def begin(self, days: list[int]) -> None:
        self.open()
        self.put_a_batch(days, 1)

    def open(self) -> None:
        self.store = neurostore.open(self.path, durability="process")
        self.second = neurostore.open(self.path, durability="process", compression="lzf")

    def teardown(self) -> None:
        for store in self._stores():
            store.close()
        shutil.rmtree(self.folder)

    # -- what can happen ------------------------------------------------------------------------

    def _remember(self, record_id: str, ds: xr.Dataset) -> None:
        assert record_id not in self.model, "two records have one id"
        self.seen.add(record_id)
        self.model[record_id] = ds
        self.order.append(record_id)
        self.orphaned = False

    @rule(kind=st.sampled_from(sorted(KINDS)), day=DAYS, name=NAMES, second=st.booleans())
    def put(self, kind: str, day: int, name: str, second: bool) -> None:
        ds = record(KINDS[kind], timestamp=day * DAY, name=name, metadata={"n": len(self.seen)})
        store = self.second if second else self.store
        self._remember(store.store(ds), ds)

    @rule(days=st.lists(DAYS, min_size=1, max_size=4), length=st.integers(0, 40))
    def put_a_batch(self, days: list[int], length: int) -> None:
        made = [self._spikes(day, length + n) for n, day in enumerate(days)]
        with self.store.batch():
            ids = [self.store.store(ds) for ds in made]
            for record_id, ds in zip(ids, made, strict=True):
                assert_same(self.store.retrieve(record_id), ds)
        for record_id, ds in zip(ids, made, strict=True):
            self._remember(record_id, ds)

    def _spikes(self, day: int, count: int) -> xr.Dataset:
        return neurostore.spike_train(
            np.arange(count) * 0.1, np.arange(count), timestamp=day * DAY, metadata={"n": count}
        )

    @rule(days=st.lists(DAYS, min_size=1, max_size=3), bad=st.booleans())
    def fail_in_a_batch(self, days: list[int], bad: bool) -> None:
        def batch() -> None:
            with self.store.batch():
                for day in days:
                    self.store.store(self._spikes(day, 3))
                if bad:
                    self.store.store(xr.Dataset({"x": 1}))
                raise Boom

        with pytest.raises((Boom, ValidationError)):
            batch()

    @rule()
    def fail_to_put(self) -> None:
        with pytest.raises(ValidationError):
            self.store.store(xr.Dataset({"x": 1}))

    @rule(
        day=OLD_DAYS,
        kind=st.sampled_from([None, "spike_train", "reservoir_states"]),
        dry=st.booleans(),
    )
    def clean(self, day: int, kind: str | None, dry: bool) -> None:
        gone = {
            record_id
            for record_id in self.model
            if float(self.model[record_id]["timestamp"]) < day * DAY
            and kind in (None, self.model[record_id].attrs["kind"])
        }
        found = self.store.cleanup(1, now=(day + 1) * DAY, kind=kind, dry_run=dry)
        assert set(found) == gone
        assert len(found) == len(gone)
        if not dry:
            for record_id in gone:
                del self.model[record_id]
                self.order.remove(record_id)

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @precondition(lambda self: self.rotations < 2)
    @rule()
    def rotate(self) -> None:
        older = self.store.rotate()
        assert older.is_file()
        self.rotations += 1

    @rule(days=st.lists(DAYS, min_size=1, max_size=3), batch=st.booleans(), alone=st.booleans())
    def die_in_a_process(self, days: list[int], batch: bool, alone: bool) -> None:
        """Another process stores, begins a batch, and is killed; with or without a witness."""
        if alone:
            self.store.close()
            self.second.close()
        made = [self._spikes(day, 5) for day in days]

        def work(say: Callable[[object], None]) -> None:
            store = neurostore.open(self.path, durability="process")
            for ds in made:
                say(store.store(ds))
            unfinished = store.batch()
            if batch:
                unfinished.__enter__()
                store.store(self._spikes(5_001, 9))
            say("ready")
            time.sleep(60)

        with Child(work) as child:
            ids = [child.hear() for _ in made]
            assert child.hear() == "ready"
            child.kill()
        for record_id, ds in zip(ids, made, strict=True):
            self._remember(record_id, ds)
        self.orphaned = True
        if alone:
            self.open()

    @rule()
    def close_and_open(self) -> None:
        self.store.close()
        self.store = neurostore.open(self.path, durability="process")

    @rule()
    def close_all_and_open(self) -> None:
        self.store.close()
        self.second.close()
        assert self.orphaned or not (self.folder / "run.h5-journal").exists()
        self.open()

    # -- what can be asked ----------------------------------------------------------------------

    def _answer(self, keep: Callable[[xr.Dataset], bool]) -> list[tuple[float, str]]:
        return [
            (float(self.model[record_id]["timestamp"]), record_id)
            for record_id in self.order
            if keep(self.model[record_id])
        ]

    @rule(start=DAYS, end=DAYS, name=NAMES, data=st.data())
    def ask(self, start: int, end: int, name: str, data: st.DataObject) -> None:
        self.ask_by_time(start, end, data.draw(st.none() | st.sampled_from(sorted(KINDS))))
        self.ask_by_name(name)
        self.ask_for_one(data.draw(st.sampled_from(sorted(self.seen))))
        self.ask_the_array_face()
        self.join()

    def ask_by_time(self, start: int, end: int, kind: str | None) -> None:
        found = self.second.ids(kind, start * DAY, end * DAY)
        wanted = self._answer(
            lambda ds: (
                start * DAY <= float(ds["timestamp"]) <= end * DAY
                and kind in (None, ds.attrs["kind"])
            )
        )
        assert sorted(found) == sorted(record_id for _, record_id in wanted)
        moments = [float(self.model[record_id]["timestamp"]) for record_id in found]
        assert moments == sorted(moments)

    def ask_by_name(self, name: str) -> None:
        found = self.store.ids("reservoir_states", name=name)
        wanted = self._answer(lambda ds: ds.attrs.get("reservoir_id") == name)
        assert sorted(found) == sorted(record_id for _, record_id in wanted)

    def join(self) -> None:
        spikes = [
            self.model[record_id]
            for record_id in self.store.ids("spike_train")
            if self.model[record_id].sizes["spike"]
        ]
        joined = self.second.range("spike_train")
        wanted = [t for ds in spikes for t in ds["spike_times"].values.tolist()]
        assert joined["spike_times"].values.tolist() == wanted

    def ask_for_one(self, record_id: str) -> None:
        if record_id in self.model:
            assert_same(self.second.retrieve(record_id), self.model[record_id])
            return
        with pytest.raises(RecordNotFoundError):
            self.store.retrieve(record_id)

    def ask_the_array_face(self) -> None:
        with HDF5Storage(self.path, durability="process") as storage:
            ids = storage.get_spike_trains_in_range(0, 1e12)
            for record_id in ids:
                train = storage.retrieve_spike_train(record_id)
                assert len(train.spike_times) == self.model[record_id].sizes["spike"]

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        for store in self._stores():
            assert sorted(store.ids()) == sorted(self.model)

    def _stores(self) -> list[Store]:
        return [getattr(self, name) for name in ("store", "second") if hasattr(self, name)]


EVERYTHING: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],  # to make a failure small takes minutes; a longer run can
    "suppress_health_check": list(HealthCheck),
}


def test_a_store_is_a_dict_of_records() -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(max_examples=examples(12), stateful_step_count=30, **EVERYTHING),
    )


#: More than the 128 files that are kept open.
MANY = 132


def test_many_files_one_after_the_other(tmp_path: Path) -> None:
    """More than are kept open at a time, by the face that nobody closes."""
    spikes = neurostore.spike_train([0.1], [1], timestamp=1.0)
    for number in range(MANY):
        path = tmp_path / f"{number}.h5"
        assert spikes.neuro.store(path, durability="process") == "train_1.0"
        assert xr.open_dataset(path, engine="neurostore").sizes == {"record": 1}
    for number in range(MANY):
        assert spikes.neuro.ids(path=tmp_path / f"{number}.h5") == ["train_1.0"]


def test_many_stores_open_at_once(tmp_path: Path) -> None:
    spikes = neurostore.spike_train([0.1], [1], timestamp=1.0)
    with ExitStack() as stack:
        stores = [
            stack.enter_context(neurostore.open(tmp_path / f"{n}.h5", durability="process"))
            for n in range(MANY)
        ]
        for store in [*stores, *stores[::-1]]:
            store.store(spikes)
        assert {len(store.ids()) for store in stores} == {2}
