"""Records that grow: every kind, every reader, any sizes of appends, and recorders that die."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import NAME, array, assert_same_values, dtype_of
from tiers import examples

import neurostore
from neurostore import content, growing
from neurostore.errors import (
    ClosedError,
    LockTimeoutError,
    RecordNotFoundError,
    ValidationError,
    WriteError,
)
from neurostore.following import Patience, new_records, parts
from neurostore.osio import OsIO
from neurostore.schema import KINDS, Kind
from neurostore.session import attach
from neurostore.store import Store

T = 12.5
GROWING = [kind for kind in KINDS.values() if kind.grows is not None]
WHOLE = [kind for kind in KINDS.values() if kind.grows is None]
#: Rows of the appends of the contract; 0 and 1 are the odd ones.
SIZES = (3, 0, 1, 7, 2)


def full_dims(kind: Kind, rule: Any, variant: int = 0) -> tuple[str, ...]:
    """Dimensions of a variable in a record that grows."""
    if rule.any_rank is not None:
        return (str(kind.grows), "unit") if kind.mapping == "variables" else (str(kind.grows),)
    dims: tuple[str, ...] = rule.dims[min(variant, len(rule.dims) - 1)]
    return dims if kind.grows in dims else (str(kind.grows), *dims)


def rows_of(kind: Kind, count: int, dtype: str = "f") -> dict[str, Any]:
    """Values of ``count`` rows, as ``append`` takes them."""
    if kind.mapping == "variables":
        return {
            kind.variables[0].name: {
                "in/put": array((count, 3), np.dtype("f4")),
                "hidden": array((count, 2, 2), np.dtype("f4")),
            }
        }
    if kind.mapping == "labels":
        steps = np.arange(count, dtype="f8")
        return {kind.variables[0].name: {"loss": steps, "Ünï code": -steps}}
    sizes = {"pre": 2, "post": 3, "neuron": 4, "head": 2, "query": 3, "key": 2}
    sizes[str(kind.grows)] = count
    return {
        rule.name: array(tuple(sizes[dim] for dim in full_dims(kind, rule)), dtype_of(rule, dtype))
        for rule in kind.variables
    }


def split(kind: Kind, values: Mapping[str, Any], sizes: tuple[int, ...]) -> Iterator[Any]:
    """The same values in blocks along the growing dimension."""
    ends = np.cumsum(sizes)
    for stop, count in zip(ends, sizes, strict=True):
        part = slice(int(stop) - count, int(stop))
        yield {
            name: {key: v[part] for key, v in value.items()}
            if isinstance(value, dict)
            else value[(slice(None),) * axis_of(kind, name) + (part,)]
            for name, value in values.items()
        }


def axis_of(kind: Kind, name: str) -> int:
    rule = kind.variable(name)
    return full_dims(kind, rule).index(str(kind.grows))


def named(kind: Kind) -> dict[str, Any]:
    given: dict[str, Any] = {kind.details: {"seed": 1}}
    return given | ({kind.label: NAME} if kind.label is not None else {})


def address_of(kind: Kind, record_id: str) -> str:
    return f"{kind.parts[0].path}/{record_id}"


def check_values(kind: Kind, got: xr.Dataset, values: Mapping[str, Any]) -> None:
    """The first rows of the values, as many as are there."""
    count = got.sizes[str(kind.grows)]
    (wanted,) = split(kind, values, (count,))
    if kind.mapping == "variables":
        originals = {str(v.attrs.get("original_name", k)): v for k, v in got.data_vars.items()}
        for key, value in wanted[kind.variables[0].name].items():
            assert_same_values(originals[key].values, value, key)
    elif kind.mapping == "labels":
        (name,) = wanted
        assert got["metric"].values.tolist() == list(wanted[name])
        table = np.stack(list(wanted[name].values()), axis=1)
        assert_same_values(got[name].values, table, name)
    else:
        for name, value in wanted.items():
            assert_same_values(got[name].values, value, name)


def check_stock(path: Path, kind: Kind, record_id: str, count: int) -> None:
    """What tools that know nothing of neurostore see: a netCDF-4 unlimited dimension."""
    address = address_of(kind, record_id)
    with h5py.File(path, "r") as h5file:
        h5group = h5file[address]
        grown = [d for d in h5group.values() if None in d.maxshape]
        assert grown
        assert {d.shape[d.maxshape.index(None)] for d in grown} == {count}
        assert content.read(h5group.id) == content.of_group(h5group.id)
    with xr.open_dataset(path, group=address, engine="h5netcdf") as ds:
        assert ds.sizes[str(kind.grows)] == count
        assert ds.encoding["unlimited_dims"] == {kind.grows}
        ds.load()
    with netCDF4.Dataset(path) as nc:
        nc_group = nc[address]
        assert nc_group.dimensions[str(kind.grows)].isunlimited()
        assert nc_group.dimensions[str(kind.grows)].size == count
        for variable in nc_group.variables.values():
            variable[...]


@pytest.mark.parametrize("kind", GROWING, ids=lambda kind: kind.name)
def test_every_append_is_there_for_everybody(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    values = rows_of(kind, sum(SIZES))
    with neurostore.open(path, durability="process") as store:
        assert store.ids() == []
        with store.record(kind.name, timestamp=T, chunk=4, **named(kind)) as rec:
            for number, block in enumerate(split(kind, values, SIZES)):
                rec.append(**block)
                count = sum(SIZES[: number + 1])
                assert rec.length == count
                assert rec.id is not None
                check_values(kind, store.retrieve(rec.id), values)
                check_stock(path, kind, rec.id, count)
        ds = store.retrieve(rec.id)
        check_values(kind, ds, values)
        assert ds.attrs["kind"] == kind.name
        assert ds.neuro.metadata == {"seed": 1}
        length = 2 if kind.elastic == "metric" else sum(SIZES)
        assert store.catalogue()["length"].values.tolist() == [length]
        assert store.verify().ok
    check_stock(path, kind, rec.id, sum(SIZES))
    with neurostore.open(path, "r") as again:
        check_values(kind, again.retrieve(rec.id), values)


@pytest.mark.parametrize("kind", GROWING, ids=lambda kind: kind.name)
def test_one_step_is_an_array_without_the_growing_dimension(kind: Kind, tmp_path: Path) -> None:
    if kind.mapping == "variables":
        pytest.skip("layers always come with samples")
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        values = rows_of(kind, 3)
        with store.record(kind.name, timestamp=T, **named(kind)) as rec:
            for step in range(3):
                rec.append(
                    **{
                        name: {key: v[step] for key, v in value.items()}
                        if isinstance(value, dict)
                        else np.take(value, step, axis_of(kind, name))
                        for name, value in values.items()
                    }
                )
        check_values(kind, store.retrieve(str(rec.id)), values)


@pytest.mark.parametrize("kind", GROWING, ids=lambda kind: kind.name)
def test_a_dataset_of_a_record_goes_on_in_another(kind: Kind, tmp_path: Path) -> None:
    """Datasets that came from a store are blocks; range, compaction and tree take what grew."""
    path = tmp_path / "run.h5"
    values = rows_of(kind, 5)
    with neurostore.open(path, durability="process") as store:
        with store.record(kind.name, timestamp=T, **named(kind)) as rec:
            rec.append(**values)
        first = store.retrieve(str(rec.id)).load()
        grown = first.neuro.append(path=path)
        assert grown != rec.id
        first.neuro.append(grown)
        dim = str(kind.grows)
        assert store.retrieve(grown).sizes[dim] == 10
        assert first.neuro.refresh().sizes[dim] == 5
        assert store.retrieve(grown).isel({dim: slice(5, None)}).load().equals(first)
        store.compact()
        check_stock(path, kind, grown, 10)
        first.neuro.append(grown)
        check_stock(path, kind, grown, 15)
        assert f"{address_of(kind, grown)}" in store.tree()
        assert store.info()["records"][kind.name] == 2


@pytest.mark.parametrize("dtype", ["b", "i", "u", "c", "V", "M"])
def test_dtypes_that_netcdf_lacks_grow_too(dtype: str, tmp_path: Path) -> None:
    kind = KINDS["compressed_spike_train"]
    wanted = array((9,), dtype_of(kind.variables[0], dtype))
    with (
        neurostore.open(tmp_path / "run.h5", durability="process") as store,
        store.record(kind.name, timestamp=T, chunk=4) as rec,
    ):
        for start in (0, 3, 6):
            rec.append(wanted[start : start + 3])
        assert_same_values(store.retrieve(str(rec.id))["data"].values, wanted)


def test_texts_have_the_room_of_the_first_append(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        with store.record("spike_train", timestamp=T) as rec:
            rec.append([0.1, 0.2], ["gränule", "b"])
            rec.append([0.3], ["c"])
            with pytest.raises(ValidationError, match="room for 8"):
                rec.append([0.4], ["a longer name"])
        with store.record(id=rec.id) as again:
            again.append([0.5], ["dd"])
        ds = store.retrieve(str(rec.id))
        assert ds["neuron_ids"].values.tolist() == ["gränule", "b", "c", "dd"]


def test_coordinates_grow_with_their_dimension_or_stay(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with neurostore.open(path, durability="process") as store:
        labels = {"cell": ("neuron", ["a", "b"])}
        with store.record(
            "reservoir_states", timestamp=T, reservoir_id="main", coords=labels
        ) as rec:
            for step in range(5):
                rec.append([step, -step], coords={"time": 0.5 * step})
            rec.append(np.ones((2, 2)), coords={"time": [9.0, 9.5]})
            with pytest.raises(ValidationError, match="time is missing"):
                rec.append([1, 1])
        ds = store.retrieve(str(rec.id))
        assert ds["time"].values.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 9.0, 9.5]
        assert ds["time"].attrs["axis"] == "T"
        assert "axis" not in ds["timestamp"].attrs
        assert ds["cell"].values.tolist() == ["a", "b"]
        assert ds.sel(time=9.5)["states"].values.tolist() == [1.0, 1.0]
    with netCDF4.Dataset(path) as nc:
        assert nc[address_of(rec.kind, str(rec.id))]["time"].shape == (7,)


def test_the_array_face_returns_metrics_of_many_steps_as_arrays(tmp_path: Path) -> None:
    with neurostore.HDF5Storage(tmp_path / "run.h5", durability="process") as storage:
        with storage.store.record("performance_metrics", timestamp=T, task_type="a") as rec:
            rec.append({"loss": [1.0, 0.5], "accuracy": [0.0, 0.5]})
        values, *_ = storage.retrieve_performance_metrics(rec.id)
        assert {k: v.tolist() for k, v in values.items()} == {
            "loss": [1.0, 0.5],
            "accuracy": [0.0, 0.5],
        }


def test_a_range_of_recorded_metrics_wants_the_same_labels(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        for moment, metrics in ((1.0, {"a": [1, 2]}), (2.0, {"a": [3, 4]}), (3.0, {"b": [5, 6]})):
            with store.record("performance_metrics", timestamp=moment, task_type="t") as rec:
                rec.append(metrics)
        alike = store.range("performance_metrics", end=2.0)
        assert alike["values"].dims == ("record", "time", "metric")
        assert alike["values"].values[..., 0].tolist() == [[1, 2], [3, 4]]
        with pytest.raises(neurostore.MisalignedRecordsError, match=r"'t_3\.0'"):
            store.range("performance_metrics")


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WHOLE, ids=lambda kind: kind.name)
def test_kinds_that_do_not_grow_say_so(kind: Kind, tmp_path: Path) -> None:
    with (
        neurostore.open(tmp_path / "run.h5") as store,
        pytest.raises(ValidationError, match="written whole"),
    ):
        store.record(kind.name, timestamp=T)


BAD_APPENDS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "lengths": (([0.1, 0.2], [1]), {}, "different numbers of rows"),
    "missing": (([0.1],), {}, "neuron_ids is missing"),
    "too many": (([0.1], [1], [0.5]), {}, "'spike_amplitudes' is new"),
    "twice": (([0.1], [1]), {"neuron_ids": [1]}, "given twice"),
    "unknown": (([0.1], [1]), {"voltage": [1]}, "'voltage' is no variable"),
    "inexact": (([2**53 + 1], [1]), {}, "does not hold these values exactly"),
    "wrapped": (([0.1], [2**64 - 1]), {}, "does not hold these values exactly"),
    "fraction": (([0.1], [1.5]), {}, "neuron_ids"),
    "shape": (([[0.1]], [[1]]), {}, "expected dims"),
    "text": ((["a"], [1]), {}, "spike_times"),
}


@pytest.mark.parametrize("what", BAD_APPENDS)
def test_a_bad_append_leaves_no_trace(what: str, tmp_path: Path) -> None:
    args, values, message = BAD_APPENDS[what]
    path = tmp_path / "run.h5"
    with neurostore.open(path, durability="process") as store:
        with store.record("spike_train", timestamp=T) as rec:
            rec.append([0.1], [1])
            before = path.read_bytes()
            with pytest.raises(ValidationError, match=message):
                rec.append(*args, **values)
            assert path.read_bytes() == before
            rec.append([1], np.array([2], "u1"))  # other dtypes, the same values
        assert store.retrieve(str(rec.id))["spike_times"].values.tolist() == [0.1, 1.0]


def test_datasets_that_belong_elsewhere_are_refused(tmp_path: Path) -> None:
    block = neurostore.spike_train([0.1], [1], timestamp=T)
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        train = store.append(block)
        for other, message in (
            (neurostore.spike_train([0.1], [1], timestamp=T + 1), "timestamp is 13.5"),
            (neurostore.spike_train([0.1], [1], timestamp=T, units="ms"), "is in 'ms'"),
            (neurostore.spike_train([0.1], [1], timestamp=T, metadata={"a": 1}), "attrs"),
            (neurostore.homeostatic_trace([1.0], "m", timestamp=T), "it is a homeostatic_trace"),
        ):
            with pytest.raises(ValidationError, match=message):
                store.append(other, train)
        whole = store.store(neurostore.reservoir_states(np.ones((2, 3)), "main", timestamp=T))
        with pytest.raises(ValidationError, match="was stored whole"):
            store.append(store.retrieve(whole), whole)
        with pytest.raises(RecordNotFoundError):
            store.append(block, "train_99.0")
        with pytest.raises(ValidationError, match="it is a spike_train"):
            store.record("reservoir_states", id=train)
        assert store.retrieve(train).sizes["spike"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "spike_trains", "timestamp": T}, "no record kind"),
        ({"kind": "spike_train"}, "timestamp is missing"),
        ({"kind": "spike_train", "timestamp": T, "reservoir_id": "a"}, "no argument"),
        ({"kind": "reservoir_states", "timestamp": T}, "reservoir_id"),
        ({"kind": "reservoir_states", "timestamp": T, "name": "a", "units": "ms"}, "units"),
        ({"kind": "spike_train", "timestamp": T, "commit_every": 0}, "commit_every"),
        ({"kind": "spike_train", "timestamp": T, "commit_every": True}, "commit_every"),
        ({"kind": "spike_train", "timestamp": T, "chunk": 0}, "chunk"),
    ],
)
def test_bad_arguments_are_named(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with (
        neurostore.open(tmp_path / "run.h5") as store,
        pytest.raises(ValidationError, match=message),
    ):
        store.record(**given)


def test_a_dimension_of_no_size_cannot_grow(tmp_path: Path) -> None:
    with (
        neurostore.open(tmp_path / "run.h5", durability="process") as store,
        store.record("homeostatic_trace", timestamp=T, mechanism="m") as rec,
    ):
        with pytest.raises(ValidationError, match="size 0 cannot grow"):
            rec.append(np.empty((3, 0)))
        assert store.ids() == []


# -- when it is committed --------------------------------------------------------------------------


def test_commits_come_after_so_many_appends_or_seconds(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        lengths = []
        with store.record("spike_train", timestamp=T, commit_every=3) as rec:
            for n in range(7):
                rec.append(0.1 * n, n)
                lengths.append(rec.length)
            assert rec.pending == 1
            rec.flush()
            lengths.append(rec.length)
        assert lengths == [0, 0, 3, 3, 3, 6, 6, 7]


def test_seconds_are_those_of_the_clock(tmp_path: Path) -> None:
    from neurostore.recording import Target, recorder

    now = [0.0]
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        target = Target(store._writing, store._session, store._layout)
        rec = recorder(
            target,
            "spike_train",
            timestamp=T,
            coords=None,
            units=None,
            commit_every=2.0,
            chunk=None,
            record_id=None,
            clock=lambda: now[0],
            options={},
        )
        lengths = []
        for second in (0.0, 1.9, 2.0, 3.0, 4.1):
            now[0] = second
            rec.append(second, 1)
            lengths.append(rec.length)
        assert lengths == [0, 0, 3, 3, 5]
        rec.close()
        rec.close()
        with pytest.raises(ClosedError):
            rec.append(0.0, 1)


def test_a_buffer_that_the_caller_uses_again_is_copied(tmp_path: Path) -> None:
    buffer = np.zeros(2)
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        with store.record("homeostatic_trace", timestamp=T, mechanism="m", commit_every=9) as rec:
            for n in range(4):
                buffer[:] = n
                rec.append(buffer)
        assert store.retrieve(str(rec.id))["changes"].values[:, 0].tolist() == [0, 1, 2, 3]


def test_leaving_by_an_exception_keeps_what_was_appended(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        rec = store.record("spike_train", timestamp=T, commit_every=100)
        with contextlib.suppress(ZeroDivisionError), rec:
            rec.append([0.1, 0.2], [1, 2])
            _ = 1 / 0
        assert store.retrieve(str(rec.id)).sizes["spike"] == 2


def test_nothing_appended_is_no_record(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        with store.record("spike_train", timestamp=T) as rec:
            pass
        assert rec.id is None
        assert store.ids() == []
        with store.record("spike_train", timestamp=T) as rec:
            rec.append([], [])
        assert store.retrieve(str(rec.id)).sizes["spike"] == 0


def test_a_batch_that_fails_takes_its_appends_along(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        with store.record("spike_train", timestamp=T) as rec:
            rec.append([0.1], [1])
            with contextlib.suppress(ZeroDivisionError), store.batch():
                rec.append([0.2], [2])
                _ = 1 / 0
            rec.append([0.3], [3])
        assert store.retrieve(str(rec.id))["neuron_ids"].values.tolist() == [1, 3]


def test_a_batch_that_fails_leaves_what_was_appended_before_it(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        with store.record("spike_train", timestamp=T, commit_every=2) as rec:
            rec.append([0.1], [1])
            with contextlib.suppress(ZeroDivisionError), store.batch():
                rec.append([0.2], [2])
                _ = 1 / 0
            assert (rec.id, rec.length, rec.pending) == (None, 0, 1)
            rec.append([0.3], [3])
            assert (rec.length, rec.pending) == (2, 0)
        assert store.retrieve(str(rec.id))["neuron_ids"].values.tolist() == [1, 3]


def test_a_record_of_a_failed_batch_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        first = store.record("spike_train", timestamp=T, units="ms")
        with contextlib.suppress(ZeroDivisionError), store.batch():
            first.append([1.0], [1])
            again = store.record(id=first.id)
            again.append([2.0], [2])
            _ = 1 / 0
        second = store.append(neurostore.spike_train([3.0], [3], timestamp=T))
        with pytest.raises(ValidationError, match="is in 'ms', the record in 's'"):
            store.append(neurostore.spike_train([4.0], [4], timestamp=T, units="ms"), id=second)
        first.append([5.0], [5])
        again.append([6.0], [6])
        found = {i: store.retrieve(i)["neuron_ids"].values.tolist() for i in store.ids()}
        assert found == {second: [3], first.id: [5], again.id: [6]}


def test_closing_after_a_rotation_begins_no_record(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        with store.record("spike_train", timestamp=T) as rec:
            rec.append([0.1], [1])
            store.rotate()
        assert store.ids() == rec.ids == [rec.id]


def test_rows_that_could_not_be_committed_go_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with (
        neurostore.open(path, durability="process", lock_timeout=0.05) as store,
        store.record("spike_train", timestamp=T) as rec,
    ):
        rec.append([0.1], [1])
        with held_by_another(path), pytest.raises(LockTimeoutError):
            rec.append([0.2], [2])
        assert (rec.length, rec.pending) == (1, 1)
        rec.append([0.3], [3])
        assert (rec.length, rec.pending) == (3, 0)
        assert store.retrieve(str(rec.id))["neuron_ids"].values.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("how", "in_batch"),
    [("refused", False), ("interrupted after", False), ("interrupted before", True)],
)
def test_no_write_that_fails_makes_rows_come_twice(
    how: str, in_batch: bool, tmp_path: Path
) -> None:
    class Failing(OsIO):
        left = -1

        def pwrite(self, fd: int, data: Any, offset: int) -> int:  # type: ignore[override]
            self.left -= 1
            if self.left == 0 and how == "refused":
                raise OSError(errno.EIO, "refused")
            if self.left == 0 and how == "interrupted before":
                raise KeyboardInterrupt
            done = super().pwrite(fd, data, offset)
            if self.left == 0:
                raise KeyboardInterrupt
            return done

    failed = 0
    for number in range(1, 40):
        io = Failing()
        with Store(tmp_path / f"{number}.h5", durability="process", io=io) as store:
            rec = store.record("spike_train", timestamp=T)
            rec.append([0.1], [1])
            io.left = number
            batch = store.batch() if in_batch else contextlib.nullcontext()
            with contextlib.suppress(WriteError, KeyboardInterrupt), batch:
                rec.append([0.2], [2])
            done, io.left = io.left > 0, -1
            stored = store.retrieve(str(rec.id))["neuron_ids"].values.tolist()
            assert stored in ([1], [1, 2])
            assert (rec.length, rec.pending) == (len(stored), 0 if in_batch else 2 - len(stored))
            rec.append([0.3], [3])
            kept = stored if in_batch else [1, 2]
            assert store.retrieve(str(rec.id))["neuron_ids"].values.tolist() == [*kept, 3]
            if done:
                break
            failed += 1
    assert failed > 2


class held_by_another:  # noqa: N801 (reads as a statement)
    """The writer lock of a file, held by another process."""

    def __init__(self, path: Path) -> None:
        code = """
            import sys
            from neurostore.locks import FileLocks
            locks = FileLocks(sys.argv[1])
            with locks.writer(timeout=5.0):
                print("held", flush=True)
                sys.stdin.readline()
        """
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "held\n"

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._process.communicate("\n", timeout=60)


# -- others in the same file ---------------------------------------------------------------------


def test_other_records_and_recorders_may_come_between(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with (
        neurostore.open(path, durability="process") as store,
        neurostore.open(path, durability="process") as other,
        store.record("spike_train", timestamp=T, chunk=8) as spikes,
        other.record("reservoir_states", timestamp=T, name="a", chunk=8) as states,
    ):
        for n in range(40):
            spikes.append([0.1 * n], [n])
            states.append([n, -n])
            other.store(neurostore.spike_train([0.5], [n], timestamp=100.0 + n))
        assert store.retrieve(str(spikes.id))["neuron_ids"].values.tolist() == list(range(40))
        found = store.retrieve(str(states.id))["states"]
        assert found.values[0].tolist() == list(range(40))
        assert len(store.ids("spike_train")) == 41
        both = store.range("spike_train")
        assert both.sizes == {"record": 41, "spike": 80}
        assert both["row_size"].values.tolist() == [40, *[1] * 40]


def test_a_lazy_dataset_keeps_its_length_while_the_record_grows(tmp_path: Path) -> None:
    with (
        neurostore.open(tmp_path / "run.h5", durability="process") as store,
        store.record("reservoir_states", timestamp=T, name="a", chunk=2) as rec,
    ):
        rec.append(np.arange(6.0).reshape(2, 3))
        before = store.retrieve(str(rec.id))
        rec.append(np.full((2, 4), 9.0))
        assert before["states"].values.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert before["states"][1].values.tolist() == [3, 4, 5]
        assert before["states"][:, 1:].values.tolist() == [[1, 2], [4, 5]]
        after = before.neuro.refresh()
        assert after.sizes["time"] == 7
        assert after["states"][0, 2:5].values.tolist() == [2, 9, 9]


def test_compaction_and_removal_while_it_is_recorded(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        rec = store.record("spike_train", timestamp=T, chunk=4)
        for n in range(6):
            rec.append([n], [n])
            if n == 2:
                store.compact()
        assert store.retrieve(str(rec.id))["neuron_ids"].values.tolist() == list(range(6))
        assert store.cleanup(0, now=1e9, model_time=True) == [rec.id]
        after = store.store(neurostore.spike_train([0.5], [1], timestamp=T))
        with pytest.raises(RecordNotFoundError):
            rec.append([6.0], [6])
        assert store.retrieve(after).sizes["spike"] == 1


def test_a_record_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    wanted = []
    for turn in range(4):
        with (
            neurostore.open(path, durability="process") as store,
            store.record(
                *(["spike_train"] if not turn else []),
                chunk=None if turn else 8,
                **({"timestamp": T, "metadata": {"a": 1}} if not turn else {"id": "train_12.5"}),
            ) as rec,
        ):
            for n in range(5):
                rec.append([n], [10 * turn + n])
                wanted.append(10 * turn + n)
            ds = store.retrieve("train_12.5")
            assert ds["neuron_ids"].values.tolist() == wanted
            assert ds.neuro.metadata == {"a": 1}
    check_stock(path, rec.kind, str(rec.id), 20)


def test_a_recorder_goes_on_beside_what_was_encoded_anew(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        with store.record("spike_train", timestamp=T) as rec:
            rec.append([0.1], [1])
            store.repack(compression="gzip", compression_opts=9)
            rec.append([0.2], [2])
            store.repack(compression="gzip", compression_opts=9)
        assert store.ids() == rec.ids
        found = [store.retrieve(i)["neuron_ids"].values.tolist() for i in rec.ids]
        assert found == [[1], [2]]
        assert store.retrieve(rec.ids[1]).attrs["continues"] == rec.ids[0]


def test_a_recorder_goes_on_in_the_next_file_of_a_series(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with neurostore.open(path, durability="process", max_file_size=60_000) as store:
        with store.record(
            "homeostatic_trace",
            timestamp=T,
            mechanism="m",
            coords={"cell": ("neuron", np.arange(50))},
        ) as rec:
            for n in range(60):
                rec.append(np.random.default_rng(n).random((5, 50)))
        assert rec.length == 300
        assert len(rec.ids) > 1
        sealed = attach(min(tmp_path.glob("run.*.h5")), "r")  # what is in it is finished
        assert not any(map(sealed.is_recording, sealed.catalogue.entries()))
        pieces = [store.retrieve(record_id) for record_id in rec.ids]
        for before, after in itertools.pairwise(pieces):
            assert after.attrs["continues"] == before.encoding["id"]
            assert after["cell"].values.tolist() == list(range(50))
        found = np.concatenate([piece["changes"].values for piece in pieces])
        wanted = [np.random.default_rng(n).random((5, 50)) for n in range(60)]
        assert_same_values(found, np.concatenate(wanted))
        first = list(store.follow(rec.ids[0]))  # it was sealed while it was recorded
        assert [part.sizes for part in first] == [pieces[0].sizes]


# -- any sizes -----------------------------------------------------------------------------------


@settings(
    max_examples=examples(12),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    chunk=st.sampled_from([1, 3, 16, None]),
    every=st.sampled_from([1, 2]),
    codec=st.sampled_from(["gzip", None, "lzf"]),
    seed=st.integers(0, 2**16),
)
def test_any_appends_come_back(
    sizes: list[int],
    chunk: int | None,
    every: int,
    codec: str | None,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("any") / "run.h5"
    rng = np.random.default_rng(seed)
    noisy = rng.random((3, sum(sizes))) * rng.integers(0, 2, sum(sizes))
    with neurostore.open(path, compression=codec, durability="process") as store:
        with store.record(
            "reservoir_states", timestamp=T, name="a", chunk=chunk, commit_every=every
        ) as rec:
            start = 0
            for size in sizes:
                rec.append(noisy[:, start : start + size])
                start += size
        got = store.retrieve(str(rec.id))["states"]
        assert got.dims == ("neuron", "time")
        assert_same_values(got.values, noisy)
    check_stock(path, rec.kind, str(rec.id), sum(sizes))


# -- how large the file gets ----------------------------------------------------------------------


def columns(rng: np.random.Generator, count: int, start: float) -> tuple[Any, Any, Any]:
    times = start + np.sort(rng.random(count))
    return times, rng.integers(0, 1000, count), rng.normal(1, 0.1, count)


@pytest.mark.parametrize("appends", [(100, 100), (30, 1000), (6, 10_000)])
@pytest.mark.parametrize("codec", ["gzip", None])
def test_small_appends_do_not_bloat_the_file(
    appends: tuple[int, int], codec: str | None, tmp_path: Path
) -> None:
    """The whole file counts, what every file and every first record of a kind needs included."""
    count, size = appends
    rng = np.random.default_rng(1)
    path = tmp_path / "run.h5"
    with neurostore.open(path, compression=codec, durability="process") as store:
        with store.record("spike_train", timestamp=T) as rec:
            for number in range(count):
                rec.append(*columns(rng, size, number))
                done = (number + 1) * size * 24
                running = path.stat().st_size
                if done > 50_000:  # an empty store has 13 KB, the table of a kind 33 KB
                    assert running < 4 * done
        data = count * size * 24
        closed = path.stat().st_size
        assert closed < 1.5 * data
        whole = tmp_path / "whole.h5"
        with neurostore.open(whole, compression=codec, durability="process") as peer:
            peer.store(store.retrieve(str(rec.id)).load())
    if codec is not None and data > 500_000:
        assert closed < 1.25 * whole.stat().st_size


def test_chunks_that_turn_out_larger_than_expected_leave_little_behind(tmp_path: Path) -> None:
    """Silence and noise in turns: rooms are too small now and then, and never twice in a row."""
    rng = np.random.default_rng(2)
    path = tmp_path / "run.h5"
    with neurostore.open(path, durability="process") as store:
        with store.record("homeostatic_trace", timestamp=T, mechanism="m") as rec:
            for number in range(400):
                loud = number // 40 % 2
                rec.append(rng.random((20, 10)) * loud)
        data = 400 * 200 * 8
        assert path.stat().st_size < 1.5 * data
        written = store.retrieve(str(rec.id))["changes"].values
        assert np.count_nonzero(written) == data // 16


def test_rows_per_chunk_fit_the_first_append() -> None:
    assert growing.rows_per_chunk(7, 8) == 2048
    assert growing.rows_per_chunk(50_000, 8) == 50_000


# -- recorders that die --------------------------------------------------------------------------

RECORDER = """
    import sys, numpy as np, neurostore
    store = neurostore.open(sys.argv[1], durability="process")
    rec = store.record("spike_train", timestamp=12.5, chunk=64)
    for n in range(100_000):
        rec.append(np.full(7, n / 10), np.arange(7 * n, 7 * n + 7))
        print(rec.length, flush=True)
"""


@pytest.mark.parametrize("after", [1, 23])
def test_a_killed_recorder_leaves_every_acknowledged_append(after: int, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RECORDER), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    acknowledged = 0
    for _ in range(after):
        acknowledged = int(process.stdout.readline())
    beside = neurostore.open(path, "r")
    seen = beside.retrieve("train_12.5")  # while it goes on
    assert seen.sizes["spike"] >= acknowledged
    assert seen["neuron_ids"].values.tolist() == list(range(seen.sizes["spike"]))
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    acknowledged = int(rest[-1]) if rest and rest[-1].isdigit() else acknowledged
    process.stdout.close()
    process.wait(timeout=60)
    beside.close()  # an open reader may stay at the commit before the one that was interrupted
    with neurostore.open(path, durability="process") as store:
        ds = store.retrieve("train_12.5")
        count = ds.sizes["spike"]
        assert count in (acknowledged, acknowledged + 7)
        assert ds["neuron_ids"].values.tolist() == list(range(count))
        with store.record(id="train_12.5") as again:
            again.append([0.0], [count])
        assert store.retrieve("train_12.5")["neuron_ids"].values.tolist() == list(range(count + 1))
    check_stock(path, KINDS["spike_train"], "train_12.5", count + 1)


def test_a_damaged_open_chunk_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with (
        neurostore.open(path, durability="process") as store,
        store.record("spike_train", timestamp=T, chunk=1000) as rec,
    ):
        for n in range(3):
            rec.append(np.random.default_rng(n).random(200), np.arange(200))
    with h5py.File(path, "r") as h5file:
        dataset = h5file[address_of(rec.kind, str(rec.id))]["spike_times"].id
        info = dataset.get_chunk_info(0)
    blob = bytearray(path.read_bytes())
    for at in (info.byte_offset + 100, info.byte_offset + info.size - 10):  # values, and padding
        broken = blob.copy()
        broken[at] ^= 1
        path.write_bytes(broken)
        with (
            neurostore.open(path, "r") as store,
            pytest.raises(neurostore.DamagedError, match="spike_times: chunk at") as caught,
        ):
            store.retrieve(str(rec.id))["spike_times"].load()
        assert str(caught.value).count("spike_times") == 1


# -- following -----------------------------------------------------------------------------------


class Ticks:
    """A clock that moves, and things that happen, while somebody sleeps."""

    def __init__(self, *events: Any) -> None:
        self.now = 0.0
        self.events = list(events)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.events:
            self.events.pop(0)()

    def clock(self) -> float:
        return self.now


def follow(store: neurostore.Store, ticks: Ticks, **given: Any) -> Iterator[xr.Dataset]:
    """``store.follow``, in the time of the test."""
    patience = Patience(
        1.0, given.pop("timeout", None), given.pop("stop", lambda: False), ticks.clock, ticks.sleep
    )
    if "record_id" in given:
        return parts(store._session, store.retrieve, given["record_id"], patience)
    return new_records(
        store._session, store.retrieve, given.get("kind"), given.get("name"), patience
    )


def test_parts_of_a_record_come_once_and_end_with_it(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        rec = store.record("spike_train", timestamp=T, chunk=4)
        ticks = Ticks(
            lambda: None,
            lambda: rec.append([0.1, 0.2], [1, 2]),
            lambda: store.store(neurostore.spike_train([0.5], [9], timestamp=99.0)),
            lambda: rec.append([0.3, 0.4, 0.5], [3, 4, 5]),
            lambda: (rec.append([0.6], [6]), rec.close()),
        )
        found = list(follow(store, ticks, record_id="train_12.5"))
        assert [part["neuron_ids"].values.tolist() for part in found] == [[1, 2], [3, 4, 5], [6]]
        assert found[1].sel(neuron_ids=4).sizes["spike"] == 1
        assert ticks.now == 5.0
        (whole,) = follow(store, Ticks(), record_id="train_12.5")
        assert whole.sizes["spike"] == 6


def test_following_ends_by_time_out_stop_and_removal(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        with pytest.raises(RecordNotFoundError, match="has come"):
            list(follow(store, Ticks(), record_id="train_12.5", timeout=3.0))
        rec = store.record("spike_train", timestamp=T)
        rec.append([0.1], [1])
        others = [lambda: store.store(neurostore.spike_train([0.5], [9], timestamp=99.0))] * 9
        ticks = Ticks(*others)
        assert len(list(follow(store, ticks, record_id="train_12.5", timeout=3.0))) == 1
        assert ticks.now == 3.0  # what others store is no news
        ticks = Ticks(lambda: rec.append([0.2], [2]))
        found = follow(store, ticks, record_id="train_12.5", stop=lambda: ticks.now >= 1.0)
        assert [part.sizes["spike"] for part in found] == [1, 1]
        gone = follow(
            store,
            Ticks(lambda: store.cleanup(0, now=1e9, model_time=True)),
            record_id="train_12.5",
            timeout=9.0,
        )
        assert next(gone).sizes["spike"] == 2
        with pytest.raises(RecordNotFoundError, match="removed"):
            next(gone)


def test_new_records_come_in_the_order_of_storing(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        store.store(neurostore.spike_train([0.1], [1], timestamp=50.0))

        def train(moment: float) -> None:
            store.store(neurostore.spike_train([0.1], [1], timestamp=moment))

        def trace(moment: float) -> None:
            store.store(neurostore.homeostatic_trace([1.0], "m", timestamp=moment))

        def several() -> None:
            with store.batch():
                trace(3.0)
                train(2.0)
                train(1.0)

        ticks = Ticks(lambda: train(60.0), several, store.rotate, lambda: train(0.5))
        found = follow(store, ticks, kind="spike_train", timeout=5.0)
        assert [float(ds["timestamp"]) for ds in found] == [60.0, 2.0, 1.0, 0.5]
        ticks = Ticks(several)
        every = [ds.attrs["kind"] for ds in follow(store, ticks, timeout=2.0)]
        assert every == ["homeostatic_trace", "spike_train", "spike_train"]
        with pytest.raises(ValidationError, match="no record kind"):
            store.follow(kind="spikes")
        with pytest.raises(ValidationError, match="leave out kind"):
            store.follow("train_1.0", kind="spike_train")
        with store.record("spike_train", timestamp=70.0) as rec:  # it has no id before it has rows
            with pytest.raises(ValidationError, match="first commit"):
                store.follow(rec.id)
            rec.append([0.1], [1])
            assert rec.id is not None


def test_another_process_follows_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    code = """
        import sys, neurostore
        store = neurostore.open(sys.argv[1], "r")
        for part in store.follow("train_12.5", interval=0.01, timeout=60):
            print(*part["neuron_ids"].values, flush=True)
    """
    with neurostore.open(path, durability="process") as store:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with store.record("spike_train", timestamp=T, chunk=16) as rec:
            for n in range(60):
                rec.append([0.1] * 3, np.arange(3 * n, 3 * n + 3))
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert [int(number) for number in printed.split()] == list(range(180))
