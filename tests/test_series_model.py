"""A series against a dict: any order of storing, rotating, removing, moving tells the same."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tiers import examples

import neurostore
from neurostore.errors import MissingFileWarning, RecordNotFoundError, StoreNotFoundError
from neurostore.session import close_all

#: Few, so that ids meet; the later ones more often, as time goes on.
SECONDS = st.integers(0, 12)


class SeriesMachine(RuleBasedStateMachine):
    """Records are spike trains; the model knows each one's second, length and file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "away").mkdir()
        self.store = self.open()
        self.model: dict[str, tuple[int, int, str]] = {}
        self.given: set[str] = set()
        self.clock = 0
        self.away: set[str] = set()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def open(self) -> neurostore.Store:
        return neurostore.open(self.folder / "run.h5", durability="process", max_records=4)

    def _put(self, second: int) -> None:
        length = len(self.given) % 5
        ds = neurostore.spike_train(np.zeros(length), np.arange(length), timestamp=float(second))
        record_id = self.store.store(ds)
        assert record_id not in self.given, "given twice"
        self.given.add(record_id)
        self.model[record_id] = (second, length, "")
        self._follow_rotation()

    def _follow_rotation(self) -> None:
        """Note the file of records that were in the newest, if that was rotated."""
        newest = [i for i, (_, _, name) in self.model.items() if not name]
        with neurostore.open(self.folder / "run.h5", "r") as reader, reader.h5file() as h5file:
            there = set(h5file["spike_trains/raw_data"])
        rotated = sorted(path.name for path in self.folder.glob("run.0*.h5"))
        for record_id in newest:
            if record_id not in there:
                second, length, _ = self.model[record_id]
                self.model[record_id] = (second, length, rotated[-1])

    @rule(back=st.sampled_from([0, 0, 0, 1, 5]))
    def store_one(self, back: int) -> None:
        self.clock += 1
        self._put(max(0, self.clock - back))

    @rule(second=SECONDS, count=st.integers(1, 3))
    def store_many(self, second: int, count: int) -> None:
        for _ in range(count):
            self._put(second)

    @rule()
    def rotate(self) -> None:
        self.store.rotate()
        self._follow_rotation()

    @precondition(lambda self: not self.away)
    @rule(count=st.integers(0, 6))
    def keep_latest(self, count: int) -> None:
        gone = self.store.cleanup(keep=neurostore.Keep(latest=count))
        assert len(self.model) - len(gone) == min(count, len(self.model))
        for record_id in gone:
            del self.model[record_id]

    @rule()
    def compact(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MissingFileWarning)
            self.store.compact()

    @rule()
    def close_everything(self) -> None:
        self.store.close()
        close_all()
        self.store = self.open()

    @rule(data=st.data())
    def move_away(self, data: st.DataObject) -> None:
        rotated = sorted(path.name for path in self.folder.glob("run.0*.h5"))
        if rotated:
            name = data.draw(st.sampled_from(rotated))
            (self.folder / name).rename(self.folder / "away" / name)
            self.away.add(name)

    @rule()
    def put_back(self) -> None:
        for name in self.away:
            (self.folder / "away" / name).rename(self.folder / name)
        self.away.clear()

    def _there(self) -> dict[str, tuple[int, int, str]]:
        return {i: row for i, row in self.model.items() if row[2] not in self.away}

    @rule(low=SECONDS, length=SECONDS)
    def ask(self, low: int, length: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MissingFileWarning)
            found = self.store.ids("spike_train", low, low + length)
            joined = self.store.range("spike_train", low, low + length).load()
        wanted = {i for i, row in self._there().items() if low <= row[0] <= low + length}
        assert set(found) == wanted
        assert len(found) == len(wanted)
        moments = [self.model[i][0] for i in found]
        assert moments == sorted(moments)
        if found:
            lengths = [self.model[i][1] for i in found]
            assert joined["row_size"].values.tolist() == lengths

    @rule(data=st.data())
    def retrieve(self, data: st.DataObject) -> None:
        if not self.given:
            return
        record_id = data.draw(st.sampled_from(sorted(self.given)))
        if record_id in self._there():
            ds = self.store.retrieve(record_id)
            assert ds.load().sizes.get("spike", 0) == self.model[record_id][1]
        else:
            with pytest.raises((RecordNotFoundError, StoreNotFoundError)):
                self.store.retrieve(record_id)

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MissingFileWarning)
            found = self.store.ids()
        assert sorted(found) == sorted(self._there())


QUICK: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


def test_a_series_is_a_dict_of_records() -> None:
    run_state_machine_as_test(
        SeriesMachine, settings=settings(max_examples=examples(8), stateful_step_count=25, **QUICK)
    )
