"""A reader that follows the commits of others without HDF5 answers as one that opens the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore.catalogue import Catalogue
from neurostore.registry import Registry, key_of
from neurostore.session import Session


def train(k: int) -> xr.Dataset:
    return neurostore.spike_train(np.arange(3.0), np.arange(3), timestamp=float(k))


def another(path: Path) -> Session:
    """The file as another process has it."""
    key = key_of(path)
    assert key is not None
    return Session(path, key, Registry())


def told(held: Catalogue) -> tuple[object, ...]:
    rows = {name: table.rows.tobytes() for name, table in held.tables.items() if table.size}
    return rows, held.state, [entry.id for entry in held.entries()]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[neurostore.Store, Session]]:
    path = tmp_path / "shared.h5"
    with neurostore.open(path, "x", durability="process") as store:
        with store.batch():
            for k in range(5):
                store.store(train(k))
        reader = another(path)
        assert len(list(reader.catalogue.entries())) == 5
        yield store, reader
        reader.close()


def compare(store: neurostore.Store, reader: Session) -> None:
    fresh = another(Path(store.path))
    assert told(reader.catalogue) == told(fresh.catalogue)
    fresh.close()


def test_rows_of_the_last_chunk_are_read_without_another_handle(
    shared: tuple[neurostore.Store, Session],
) -> None:
    store, reader = shared
    opened = reader._reader
    for k in (5, 6):
        store.store(train(k))
        assert reader.catalogue.find(f"train_{float(k)!r}") is not None
        assert reader._reader is opened
        compare(store, reader)
    store.retrieve("train_6.0").load()
    with reader.reading() as h5file:  # who wants a record gets a handle that has it
        assert h5file is not opened
        assert "spike_trains/raw_data/train_6.0" in h5file


def test_what_the_last_chunk_does_not_tell_is_asked_of_hdf5(
    shared: tuple[neurostore.Store, Session],
) -> None:
    store, reader = shared
    with store.batch():
        for k in range(5, 509):
            store.store(train(k))
    compare(store, reader)
    metrics = neurostore.performance_metrics({"a": 1.0}, task_type="t", timestamp=0.5)
    changes = (
        lambda: [store.store(train(k)) for k in range(509, 514)],  # across the end of a chunk
        lambda: store.store(metrics),  # a table and texts of its own
        lambda: store.store(train(600)),
        lambda: store.cleanup(100 / 86_400, model_time=True),
        lambda: store.store(train(601)),
    )
    for change in changes:
        change()
        compare(store, reader)
    store.compact()
    with pytest.raises(neurostore.errors.MovedError):  # another file has the place
        reader.catalogue  # noqa: B018


def test_rows_that_were_damaged_are_not_taken(shared: tuple[neurostore.Store, Session]) -> None:
    store, reader = shared
    store.store(train(5))
    assert reader.catalogue.find("train_5.0") is not None
    store.store(train(6))
    tails, held = reader._tails, reader._catalogue
    assert tails is not None
    assert held is not None
    before = told(held)
    _, place = tails._places["spike_train"]
    with Path(store.path).open("r+b") as stream:
        stream.seek(place + 6 * 64 + 8)
        stream.write(b"\xff")
    assert not tails.follow(reader._state_fd, reader._state_offset, held)
    assert told(held) == before
