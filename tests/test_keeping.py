"""Differences between records, repacking, maintenance and its thread, and their commands."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from samples import assert_same, record
from typer.testing import CliRunner, Result

import neurostore
from neurostore import (
    KINDS,
    Keep,
    LockTimeoutError,
    MaintenanceThread,
    MisalignedRecordsError,
    NoSpaceError,
    Policy,
    Store,
    ValidationError,
    cli,
    repacking,
)
from neurostore.locks import FileLocks
from neurostore.stencil import Layout


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with neurostore.open(tmp_path / "run.h5", durability="process") as made:
        yield made


# -- differences -------------------------------------------------------------------------------


def snapshot(timestamp: float, **changes: Any) -> xr.Dataset:
    given: dict[str, Any] = {
        "adjacency": np.eye(3, dtype=bool),
        "weights": np.arange(9.0).reshape(3, 3),
        "states": np.array([1, 2, 3], "u1"),
        "metadata": {"step": 1},
        "coords": {"pre": list("abc"), "post": list("abc"), "neuron": list("abc")},
    }
    return neurostore.network_snapshot(**{**given, **changes}, timestamp=timestamp)


def test_only_what_changed_is_in_a_difference(store: Store) -> None:
    weights = np.arange(9.0).reshape(3, 3)
    weights[1, 2] += 0.5
    states = np.array([1, 1, 3], "u1")
    store.store(snapshot(1.0))
    store.store(snapshot(3.0, weights=weights, states=states, metadata={"step": 2}))
    found = store.diff("snapshot_1.0", "snapshot_3.0")
    assert set(found.data_vars) == {"weights", "states"}
    assert float(found["weights"].sel(pre="b", post="c")) == 0.5
    assert found["states"].values.tolist() == [0, -1, 0], "unsigned numbers do not wrap"
    assert found.attrs["unchanged"] == ["adjacency"]
    assert found.attrs["seconds"] == 2.0
    assert json.loads(found.attrs["changed_attrs"]) == {"metadata": ['{"step": 1}', '{"step": 2}']}
    again = store.retrieve("snapshot_3.0").neuro.diff("snapshot_3.0", "snapshot_3.0")
    assert not again.data_vars


def test_a_difference_matches_labels(store: Store) -> None:
    store.store(neurostore.performance_metrics({"a": 1.0, "b": 2.0}, "t", timestamp=1.0))
    store.store(neurostore.performance_metrics({"b": 5.0, "c": 2.0}, "t", timestamp=2.0))
    found = store.diff("t_1.0", "t_2.0")
    assert found["values"].sel(metric="b").item() == 3.0
    assert json.loads(found.attrs["labels_only_from"]) == {"metric": ["a"]}
    assert json.loads(found.attrs["labels_only_to"]) == {"metric": ["c"]}


def test_spikes_are_compared_as_events(store: Store) -> None:
    store.store(neurostore.spike_train([0.1, 0.2, 0.2], [1, 2, 2], timestamp=1.0))
    store.store(neurostore.spike_train([0.2, 0.3, 0.1], [2, 1, 1], timestamp=2.0))
    found = store.diff("train_1.0", "train_2.0")
    rows = zip(found["change"].values, found["spike_times"].values, strict=True)
    assert [(int(c), float(t)) for c, t in rows] == [(-1, 0.2), (1, 0.3)]
    assert found.attrs["unchanged"] == []


def test_what_cannot_be_compared_says_why(store: Store) -> None:
    for size in (2, 3):
        states = np.zeros((size, 4))
        store.store(neurostore.reservoir_states(states, "r", timestamp=float(size)))
    with pytest.raises(MisalignedRecordsError, match=r"'neuron' has size 2 in 'r_2\.0' and 3"):
        store.diff("r_2.0", "r_3.0")
    store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
    with pytest.raises(ValidationError, match=r"'train_1\.0' a spike_train"):
        store.diff("r_2.0", "train_1.0")


# -- repacking ---------------------------------------------------------------------------------


def fill(store: Store) -> dict[str, xr.Dataset]:
    rng = np.random.default_rng(1)
    with store.batch():
        for kind in KINDS.values():
            for moment in (1.0, 2.0):
                store.store(record(kind, timestamp=moment))
        big = rng.integers(0, 9, (300, 300))
        store.store(neurostore.reservoir_states(big, "big", timestamp=3.0))
    store.cleanup(keep=Keep(predicate=lambda table: table["timestamp"].values > 1.0))
    return {record_id: store.retrieve(record_id).load() for record_id in store.ids()}


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "compression_opts": 9},
        {"compression": None},
        {"compression": "lzf", "paged": True},
        {"chunk_size": 16},
        {"paged": True, "page_size": 8192},
    ],
)
def test_a_repacked_file_has_the_same_records(store: Store, options: dict[str, Any]) -> None:
    expected = fill(store)
    lazy = store.retrieve("big%20_3.0" if "big%20_3.0" in expected else "big_3.0")
    store.repack(**options)
    assert store.ids() == list(expected)
    for record_id, ds in expected.items():
        assert_same(store.retrieve(record_id).load(), ds)
    assert lazy.load().identical(expected["big_3.0"]), "it was opened before"
    with h5py.File(store.path) as h5file:
        plist = h5file.id.get_create_plist()
        paged = plist.get_file_space_strategy()[0] == h5py.h5f.FSPACE_STRATEGY_PAGE
        assert paged is options.get("paged", False)
        if options.get("page_size"):
            assert plist.get_file_space_page_size() == options["page_size"]
        states = h5file["activations/reservoir_states/big_3.0/states"]
        if "compression" in options:
            assert states.compression == options["compression"]
        if "chunk_size" in options:
            assert np.prod(states.chunks) <= 64 * 16
    with netCDF4.Dataset(store.path) as dataset:
        assert dataset["activations/reservoir_states/big_3.0"]["states"].shape == (300, 300)
    assert store.verify().ok
    assert store.store(neurostore.spike_train([0.1], [1], timestamp=9.0)) == "train_9.0"
    assert store.retrieve("train_9.0").sizes["spike"] == 1


def test_repacking_says_what_it_cannot_do(store: Store) -> None:
    fill(store)
    with pytest.raises(ValidationError, match="page_size is 100"):
        store.repack(paged=True, page_size=100)
    with pytest.raises(NoSpaceError, match="repacking needs"):
        repacking.repack(
            store._session(),
            Layout("gzip", 6, 1024),
            0,
            timeout=1,
            durability="process",
            free=lambda folder: 10,
        )


# -- maintenance -------------------------------------------------------------------------------


def trains(store: Store, count: int, spikes: int = 3000) -> None:
    rng = np.random.default_rng(3)
    with store.batch():
        for number in range(count):
            data = rng.random(spikes), rng.integers(0, 99, spikes)
            store.store(neurostore.spike_train(*data, timestamp=float(number)))


def test_one_call_cleans_compacts_if_it_pays_and_rotates(store: Store) -> None:
    trains(store, 10)
    size = store.path.stat().st_size
    policy = Policy(keep=(Keep(latest=8),), compact_above=0.5, compact_bytes=0)
    assert store.maintain(policy, dry_run=True).removed == ["train_0.0", "train_1.0"]
    assert len(store.ids()) == 10
    done = store.maintain(policy)
    assert (len(done.removed), done.compacted, done.rotated) == (2, None, None)
    done = store.maintain({"keep": [{"latest": 2}], "compact_above": 0.5, "compact_bytes": 0})
    assert len(done.removed) == 6
    assert done.compacted is not None
    assert store.path.stat().st_size < size / 2
    done = store.maintain(Policy(rotate_above=1000))
    assert done.rotated is not None
    assert store.maintain(Policy(rotate_above=1000)).rotated is None  # there is nothing in it
    assert store.ids() == ["train_8.0", "train_9.0"]


def test_a_policy_is_read_from_toml(store: Store, tmp_path: Path) -> None:
    trains(store, 3, spikes=5)
    file = tmp_path / "policy.toml"
    file.write_text("[[keep]]\nkind = 'spike_train'\nlatest = 1\n", encoding="utf-8")
    assert store.maintain(file).removed == ["train_0.0", "train_1.0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep = [", "no TOML"),
        ("retain = 3", "'retain', expected some of"),
        ("compact_above = 7", "compact_above is 7"),
        ("compact_above = 'much'", "compact_above is 'much'"),
        ("rotate_above = true", "rotate_above is True"),
        ("[[keep]]\nnewest = 3", "rule 1 has 'newest'"),
        ("[[keep]]\nlatest = 'all'", "latest is 'all'"),
        ("keep = 3", "keep is 3"),
    ],
)
def test_a_wrong_policy_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Policy.from_toml(text)


def test_the_thread_goes_on_until_it_is_stopped(store: Store, tmp_path: Path) -> None:
    """Runs one after the other, by a clock and a wait of the test's own; a failed one is passed."""
    trains(store, 4, spikes=5)
    moments = iter([3.0 * 86_400, 3.0 * 86_400 + 1, 3.0 * 86_400 + 2])
    waits: list[float] = []
    reports: list[list[str]] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 1:
            store.mode = "r"  # the next run fails
        if len(waits) == 2:
            assert thread.error is not None
            store.mode = "a"
        return len(waits) == 3

    thread = MaintenanceThread(
        store,
        Policy(keep=(Keep(days=3),), model_time=True, compact_above=None),
        every=5.0,
        wait=wait,
        now=lambda: next(moments),
        report=lambda done: reports.append(done.removed),
    )
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert waits == [5.0] * 3
    assert reports == [[], ["train_0.0", "train_1.0"]]
    assert thread.error is None


def test_the_thread_stops_at_the_end_of_the_block(store: Store) -> None:
    ran = threading.Event()
    with MaintenanceThread(store, Policy(), report=lambda done: ran.set()) as thread:
        assert ran.wait(60)
    assert not thread.is_alive()


# -- the command line --------------------------------------------------------------------------


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def parsed(*arguments: object) -> Any:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_command_line_keeps_a_file(store: Store, tmp_path: Path) -> None:
    trains(store, 6)
    path = store.path
    store.close()
    said = invoke("cleanup", path, "--latest", "2")
    assert said.stdout.split() == [f"train_{n}.0" for n in range(4)]
    assert "--yes" in said.stderr
    assert parsed("cleanup", path, "--latest", "2", "--yes")["removed"] == said.stdout.split()
    assert parsed("compact", path)["bytes_won"] > 0
    assert parsed("repack", path, "--compression", "none", "--paged")["bytes_won"] < 0
    policy = tmp_path / "policy.toml"
    policy.write_text("rotate_above = 1000\n[[keep]]\nlatest = 1\n", encoding="utf-8")
    assert parsed("maintain", path, "--policy", policy, "--dry-run")["removed"] == ["train_4.0"]
    done = parsed("maintain", path, "--policy", policy)
    assert (done["removed"], Path(done["rotated"]).exists()) == (["train_4.0"], True)
    found = parsed("migrate", path, "-o", tmp_path / "new.h5")
    assert found["records"] == {"spike_train": 1}
    assert invoke("cleanup", path).exit_code == 2
    assert invoke("compact", tmp_path / "none.h5").exit_code == 1
    assert not (tmp_path / "none.h5").exists()


def test_a_command_that_waited_in_vain_says_try_later(store: Store) -> None:
    trains(store, 2, spikes=5)
    locks = FileLocks(store.path)
    with locks.writer(1):
        done = invoke("cleanup", store.path, "--latest", "1", "--yes", "--wait", "0.01")
    assert done.exit_code == 75
    assert "still held for writing" in done.stderr
    with pytest.raises(LockTimeoutError), locks.writer(1):
        neurostore.open(store.path, lock_timeout=0.01).compact()
    locks.close()
    assert len(store.ids()) == 2
