"""What every record kind promises, clause by clause, over every row of the table of kinds."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse
import xarray as xr
from samples import (
    DTYPES,
    METADATA,
    NAME,
    Sparse,
    T,
    array,
    assert_same,
    assert_same_values,
    metadata_of,
    record,
    values,
    variants,
)
from tiers import FULL

import neurostore
from neurostore import HDF5Storage, builders
from neurostore.schema import KINDS, SCHEMA_VERSION, Kind, Part, Variable
from neurostore.store import Store

ENGINE = "neurostore"


def opened(tmp_path: Path, **settings: Any) -> Store:
    return neurostore.open(tmp_path / "run.h5", durability="process", **settings)


def array_face(path: Path, kind: Kind) -> HDF5Storage:
    """Return the array face; a subclass of it knows the rows that were added since."""
    face = HDF5Storage
    if not hasattr(face, f"store_{kind.name}"):
        face = type("Extended", (HDF5Storage,), {})
    return face(path, durability="process")


# -- the clauses ---------------------------------------------------------------------------------


def has_a_builder_whose_record_is_valid(kind: Kind, tmp_path: Path) -> None:
    for variant in range(variants(kind)):
        ds = record(kind, variant=variant)
        ds.neuro.validate()
        assert ds.neuro.kind == kind.name
        assert ds.attrs["kind"] == kind.name
        assert ds.neuro.metadata == METADATA
        assert float(ds["timestamp"]) == T
        axes = [name for name, var in ds.variables.items() if var.attrs.get("axis") == "T"]
        assert len(axes) == 1


def comes_back_as_it_was(kind: Kind, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        stored = {}
        for variant in range(variants(kind)):
            ds = record(kind, variant=variant, timestamp=float(variant))
            stored[store.store(ds)] = ds
        for record_id, ds in stored.items():
            assert_same(store.retrieve(record_id), ds)
    with opened(tmp_path, mode="r") as store:
        for record_id, ds in stored.items():
            assert_same(store.retrieve(record_id), ds)
            assert store.retrieve(record_id).neuro.metadata == METADATA


def keeps_every_dtype_that_its_row_allows(kind: Kind, tmp_path: Path) -> None:
    codes = [code for code in DTYPES if any(code in rule.kinds for rule in kind.variables)]
    with opened(tmp_path) as store:
        for number, code in enumerate(codes):
            ds = record(kind, dtype=code, timestamp=float(number))
            assert_same(store.retrieve(store.store(ds)), ds)


def can_do_without_what_is_optional(kind: Kind, tmp_path: Path) -> None:
    ds = record(kind, only_required=True, metadata=None)
    with opened(tmp_path) as store:
        back = store.retrieve(store.store(ds))
    assert_same(back, ds)
    assert back.neuro.metadata == {}


def is_lazy_until_it_is_asked(kind: Kind, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        back = store.retrieve(store.store(record(kind)))
        waiting = [name for name, var in back.data_vars.items() if not var.variable._in_memory]
        assert waiting == list(back.data_vars)
        assert "source" in back.encoding


def has_an_id_that_says_its_time(kind: Kind, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        record_id = store.store(record(kind, timestamp=T))
        assert record_id.endswith(f"_{T!r}")
        assert record_id.startswith(kind.stem or "main")
        assert "/" not in record_id
        for address in store.retrieve(record_id).encoding["groups"]:
            assert_same(store.retrieve(address), record(kind, timestamp=T))


def takes_every_kind_of_time(kind: Kind, tmp_path: Path) -> None:
    moment = datetime(2026, 5, 1, 12, tzinfo=UTC)
    given = [
        moment,
        moment.replace(tzinfo=None),
        np.datetime64("2026-05-01T12:00:00"),
        "2026-05-01T12:00:00Z",
        int(moment.timestamp()),
        np.float32(1.5),
    ]
    with opened(tmp_path) as store:
        for time in given[:-1]:
            back = store.retrieve(store.store(record(kind, timestamp=time)))
            assert float(back["timestamp"]) == moment.timestamp()
            if "time" not in back.dims:
                assert back["time"].values == np.datetime64("2026-05-01T12:00:00")
        assert len(store.ids(kind.name, moment, moment)) == len(given) - 1
        assert (
            float(store.retrieve(store.store(record(kind, timestamp=given[-1]))).timestamp) == 1.5
        )


def answers_by_time_and_by_name(kind: Kind, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        ids = {}
        for moment in (3.0, 1.0, 2.0):
            ids[moment] = store.store(record(kind, timestamp=moment))
        other = store.store(record(kind, timestamp=2.5, name="other"))
        everything = [ids[1.0], ids[2.0], other, ids[3.0]]
        assert store.ids(kind.name) == store.ids() == everything
        assert store.ids(kind.name, 1.0, 2.0) == [ids[1.0], ids[2.0]]
        assert store.ids(kind.name, start=2.0) == everything[1:]
        assert store.ids(kind.name, end=2.0) == everything[:2]
        assert store.ids(kind.name, 4.0) == []
        if kind.label is not None:
            assert store.ids(kind.name, name="other") == [other]
            assert store.ids(kind.name, name=NAME) == [ids[1.0], ids[2.0], ids[3.0]]
            assert store.ids(kind.name, name="nobody") == []
        assert all(store.ids(another) == [] for another in KINDS if another != kind.name)


def makes_one_dataset_of_a_range(kind: Kind, tmp_path: Path) -> None:
    given = {moment: record(kind, timestamp=moment) for moment in (1.0, 2.0, 3.0)}
    with opened(tmp_path) as store:
        for ds in given.values():
            store.store(ds)
        joined = store.range(kind.name, 2.0)
        chosen = [given[2.0], given[3.0]]
        if kind.combine == "ragged":
            rows = [ds.sizes[kind.elastic] for ds in chosen]
            assert joined.sizes[kind.elastic] == sum(rows)
        else:
            assert joined["timestamp"].values.tolist() == [2.0, 3.0]
            assert joined["record"].values.tolist() == store.ids(kind.name, 2.0)
        for name, first in chosen[0].data_vars.items():
            assert_same_values(joined[name].values, _joined(kind, chosen, name, joined), name)
            assert joined[name].attrs == first.attrs


def _joined(kind: Kind, chosen: list[xr.Dataset], name: Any, joined: xr.Dataset) -> Any:
    if kind.combine == "ragged":
        return np.concatenate([ds[name].values for ds in chosen])
    if kind.combine == "union":
        chosen = [ds.sel({kind.elastic: joined[kind.elastic].values}) for ds in chosen]
    return np.stack([ds[name].values for ds in chosen])


def has_a_row_in_the_catalogue(kind: Kind, tmp_path: Path) -> None:
    ds = record(kind)
    with opened(tmp_path) as store:
        record_id = store.store(ds)
        rows = store.catalogue(kind.name)
        info = store.info()
    assert rows.sizes == {"record": 1}
    row = rows.isel(record=0)
    assert row["record"].item() == record_id
    assert row["kind"].item() == kind.name
    assert row["timestamp"].item() == T
    if kind.label is not None:
        assert row["name"].item() == NAME
    if kind.elastic is not None:
        assert row["length"].item() == ds.sizes[kind.elastic]
    assert row["stored_bytes"].item() > 0
    assert info["records"][kind.name] == 1
    assert info["start"] == info["end"] == T
    catalogue = xr.open_dataset(tmp_path / "run.h5", engine=ENGINE)
    assert catalogue["record"].values.tolist() == [record_id]


def opens_part_by_part_through_the_engine(kind: Kind, tmp_path: Path) -> None:
    ds = record(kind, coords={"note": "all"})
    with opened(tmp_path) as store:
        record_id = store.store(ds)
        addresses = store.retrieve(record_id).encoding["groups"]
    assert addresses == [f"{part.path}/{record_id}" for part in kind.parts]
    tree = xr.open_datatree(tmp_path / "run.h5", engine=ENGINE)
    groups = xr.open_groups(tmp_path / "run.h5", engine=ENGINE)
    seen: set[Any] = set()
    for address in addresses:
        part = xr.open_dataset(tmp_path / "run.h5", engine=ENGINE, group=address)
        wanted = ds.drop_vars(set(ds.variables) - set(part.variables))
        assert_same(part, wanted, attrs=False)
        assert part.attrs["kind"] == kind.name
        assert_same(tree[address].to_dataset(), part)
        assert_same(groups[f"/{address}"], part)
        seen |= set(part.variables)
    assert seen == set(ds.variables)
    first = xr.open_dataset(tmp_path / "run.h5", engine=ENGINE, group=addresses[0])
    assert metadata_of(first, kind) == METADATA


def is_stamped_in_every_part(kind: Kind, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        record_id = store.store(record(kind))
        addresses = store.retrieve(record_id).encoding["groups"]
    with h5py.File(tmp_path / "run.h5") as h5file:
        for address in addresses:
            attrs = h5file[address].attrs
            assert attrs["kind"] == kind.name.encode() or attrs["kind"] == kind.name
            assert attrs["schema_version"] == SCHEMA_VERSION
            found = attrs["id"]
            assert (found.decode() if isinstance(found, bytes) else found) == record_id


def is_known_without_its_stamp(kind: Kind, tmp_path: Path) -> None:
    for variant in range(variants(kind)):
        ds = record(kind, variant=variant, timestamp=float(variant))
        del ds.attrs["kind"]
        assert ds.neuro.kind == kind.name
        with opened(tmp_path) as store:
            back = store.retrieve(store.store(ds))
        assert_same(back, ds.assign_attrs(kind=kind.name))


def has_its_methods_on_the_array_face(kind: Kind, tmp_path: Path) -> None:
    given = {rule.argument: values(kind)[rule.name] for rule in kind.variables}
    label = {} if kind.label is None else {kind.label: NAME}
    with array_face(tmp_path / "run.h5", kind) as storage:
        record_id = getattr(storage, f"store_{kind.name}")(
            T, **given, **label, **{kind.details: METADATA}
        )
        back = getattr(storage, f"retrieve_{kind.name}")(record_id)
        within = getattr(storage, f"get_{kind.plural}_in_range")
        assert within(T, T) == within(start_time=0, end_time=2 * T) == [record_id]
        assert within(0, 1) == []
        assert getattr(storage, f"retrieve_{kind.name}")("nothing_1.0") is None
        for another in KINDS:
            if another != kind.name and hasattr(storage, f"retrieve_{another}"):
                assert getattr(storage, f"retrieve_{another}")(record_id) is None
        assert storage.store.retrieve(record_id).neuro.metadata == METADATA
    if is_dataclass(back):
        answer = {field: getattr(back, field) for field in asdict(back)}
        assert answer.pop("timestamp") == T
        assert answer.pop("metadata") == METADATA
        found, wanted = list(answer.values()), list(given.values())
    else:
        found = list(back)
        wanted = [*given.values(), T, *label.values()]
        wanted += [METADATA] if kind.details != "metadata" else []
    assert len(found) == len(wanted)
    for have, want in zip(found, wanted, strict=True):
        _assert_same_answer(have, want)


def _assert_same_answer(have: Any, want: Any) -> None:
    if isinstance(want, np.ndarray):
        assert_same_values(have, want)
    elif scipy.sparse.issparse(want):
        assert have.shape == want.shape
        for name in ("data", "indices", "indptr"):
            assert_same_values(getattr(have, name), getattr(want, name), name)
    elif isinstance(want, dict) and any(isinstance(v, np.ndarray) for v in want.values()):
        assert list(have) == list(want)
        for name in want:
            assert_same_values(have[name], want[name], name)
    else:
        assert have == want
        assert list(have) == list(want) if isinstance(want, dict) else True


def shares_a_moment_with_others(kind: Kind, tmp_path: Path) -> None:
    codes = itertools.cycle(code for code in "fiu" if code in kind.variables[0].kinds)
    given = [record(kind, dtype=next(codes), metadata={"n": n}) for n in range(4)]
    with opened(tmp_path) as store:
        ids = [store.store(ds) for ds in given[:2]]
    with opened(tmp_path) as store:
        ids += [store.store(ds) for ds in given[2:]]
        assert len(set(ids)) == 4
        assert all(record_id.startswith(ids[0]) for record_id in ids)
        for record_id, ds in zip(ids, given, strict=True):
            assert_same(store.retrieve(record_id), ds)
        assert store.ids(kind.name, T, T) == ids


def stays_in_one_history_when_its_file_is_rotated(kind: Kind, tmp_path: Path) -> None:
    ds, later = record(kind), record(kind, timestamp=T + 1)
    with opened(tmp_path) as store:
        first = store.store(ds)
        rotated = store.rotate()
        second = store.store(ds)
        third = store.store(later)
        assert second == f"{first}~2"
        assert store.ids(kind.name) == [first, second, third]
        for record_id, expected in ((first, ds), (second, ds), (third, later)):
            assert_same(store.retrieve(record_id), expected)
        joined = store.range(kind.name, T, T + 1).load()
        assert joined["record"].values.tolist() == [first, second, third]
    with neurostore.open(rotated, "r") as old:
        assert old.ids() == [first]


def keeps_extra_coordinates(kind: Kind, tmp_path: Path) -> None:
    ds = record(kind)
    dims = [dim for dim in ds.dims if dim not in ds.coords]
    coords: dict[Any, Any] = {
        "animal": "mouse Ü",
        "depth": ((), np.float16(0.5), {"units": "mm"}),
        "begun": np.datetime64("2026-05-01T12:00:00.000000001"),
        "is_test": True,
    }
    for number, dim in enumerate(dims):
        size = ds.sizes[dim]
        coords[dim if number == 0 else f"{dim}_label"] = (
            dim,
            np.array([f"{dim} {n} é" for n in range(size)]),
            {"long_name": "labels"},
        )
        coords[f"{dim}_at"] = (dim, np.datetime64(0, "ms") + np.arange(size))
        coords[f"{dim}_position"] = ((dim, "xyz"), array((size, 3), np.dtype("f4")))
        coords[f"{dim}_tags"] = ((dim, "tag"), np.full((size, 2), "a"))
    if len(dims) > 1:
        sizes = (ds.sizes[dims[0]], ds.sizes[dims[1]])
        coords["delay"] = ((dims[0], dims[1]), array(sizes, np.dtype("i2")))
    labelled = record(kind, coords=coords)
    with opened(tmp_path) as store:
        back = store.retrieve(store.store(labelled))
        assert_same(back, labelled)
        twice = store.retrieve(store.store(back))
        assert_same(twice, labelled)


def goes_with_any_compression(kind: Kind, tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {"compression": "gzip", "compression_opts": level} for level in (0, 6, 9, None)
    ]
    settings += [{"compression": name} for name in ("lzf", "szip", None)]
    settings += [{"compression_opts": 9, "compression": "lzf"}, {"chunk_size": 1}]
    if not FULL:  # each way by every third kind
        settings = settings[sum(kind.name.encode()) % 3 :: 3]
    for number, chosen in enumerate(settings):
        ds = record(kind, timestamp=float(number))
        with opened(tmp_path, **chosen) as store:
            record_id = store.store(ds)
        with opened(tmp_path, mode="r") as store:
            assert_same(store.retrieve(record_id), ds)


def goes_through_the_accessor(kind: Kind, tmp_path: Path) -> None:
    ds = record(kind)
    record_id = ds.neuro.store(tmp_path / "run.h5", durability="process")
    catalogue = xr.open_dataset(tmp_path / "run.h5", engine=ENGINE)
    assert_same(catalogue.neuro.retrieve(record_id), ds)
    assert catalogue.neuro.ids(kind.name) == [record_id]
    assert ds.neuro.range(kind.name, path=tmp_path / "run.h5").sizes["record"] == 1
    assert ds.neuro.info(tmp_path / "run.h5")["records"][kind.name] == 1


def goes_in_as_one_variable(kind: Kind, tmp_path: Path) -> None:
    ds = record(kind)
    if kind.mapping is not None or len(ds.data_vars) != 1 or isinstance(kind, Sparse):
        return  # a DataArray of synapses does not say how many neurons there are
    (name,) = ds.data_vars
    alone = ds[name].assign_attrs(ds.attrs)
    record_id = alone.neuro.store(tmp_path / "run.h5", durability="process")
    with opened(tmp_path) as store:
        back = store.retrieve(record_id)
    assert_same(back, ds)


def goes_in_as_a_tree(kind: Kind, tmp_path: Path) -> None:
    tree = xr.DataTree.from_dict(
        {f"/trial/{n}": record(kind, timestamp=float(n)) for n in range(3)}
    )
    ids = tree.neuro.store(tmp_path / "run.h5", durability="process")
    assert list(ids) == ["/trial/0", "/trial/1", "/trial/2"]
    with opened(tmp_path) as store:
        for path, record_id in ids.items():
            assert_same(store.retrieve(record_id), tree[path].to_dataset())


CLAUSES: list[Callable[[Kind, Path], None]] = [
    has_a_builder_whose_record_is_valid,
    comes_back_as_it_was,
    keeps_every_dtype_that_its_row_allows,
    can_do_without_what_is_optional,
    is_lazy_until_it_is_asked,
    has_an_id_that_says_its_time,
    takes_every_kind_of_time,
    answers_by_time_and_by_name,
    makes_one_dataset_of_a_range,
    has_a_row_in_the_catalogue,
    opens_part_by_part_through_the_engine,
    is_stamped_in_every_part,
    is_known_without_its_stamp,
    has_its_methods_on_the_array_face,
    shares_a_moment_with_others,
    keeps_extra_coordinates,
    goes_with_any_compression,
    goes_through_the_accessor,
    goes_in_as_one_variable,
    goes_in_as_a_tree,
    stays_in_one_history_when_its_file_is_rotated,
]
by_name = {"ids": lambda value: getattr(value, "__name__", None) or value.name}


WITH_MATRICES = [
    Sparse.of(kind)
    for kind in KINDS.values()
    if any(("pre", "post") in rule.dims for rule in kind.variables)
]


@pytest.mark.parametrize("kind", WITH_MATRICES, **by_name)
@pytest.mark.parametrize("clause", CLAUSES, **by_name)
def test_every_kind_with_sparse_matrices(
    clause: Callable[[Kind, Path], None], kind: Kind, tmp_path: Path
) -> None:
    clause(kind, tmp_path)


@pytest.mark.parametrize("kind", list(KINDS.values()), **by_name)
@pytest.mark.parametrize("clause", CLAUSES, **by_name)
def test_every_kind(clause: Callable[[Kind, Path], None], kind: Kind, tmp_path: Path) -> None:
    clause(kind, tmp_path)


# -- a kind is a row -----------------------------------------------------------------------------

CALCIUM = Kind(
    name="calcium_trace",
    plural="calcium_traces",
    summary="Fluorescence of the cells under one indicator.",
    label="indicator",
    parts=(
        Part(
            "imaging/calcium",
            (
                Variable(
                    "fluorescence",
                    (("cell", "frame"), ("frame",)),
                    "fluorescence",
                    {"long_name": "fluorescence", "units": "1"},
                ),
            ),
        ),
        Part(
            "imaging/baseline",
            (Variable("baseline", (("cell",),), "baseline_values", {"long_name": "baseline"}),),
        ),
    ),
    example="fluorescence=np.zeros((3, 4)), baseline=np.zeros(3), indicator='g', timestamp=12.5",
)
FRAMES = Kind(
    name="frame_times",
    plural="frame_times",
    summary="When the frames were taken.",
    stem="frames",
    label=None,
    elastic="frame_number",
    combine="stack",
    details="camera",
    parts=(
        Part(
            "imaging/frames",
            (
                Variable("exposure", (("frame_number",),), "exposure", kinds="f"),
                Variable("dropped", (("frame_number",),), "dropped", kinds="b", required=False),
            ),
        ),
    ),
    example="exposure=np.zeros(3), timestamp=12.5",
)
NAMED_AND_OPTIONAL = Kind(
    name="probe_trace",
    plural="probe_traces",
    summary="Voltage at the sites of one probe.",
    label="probe",
    parts=(
        Part(
            "probes",
            (
                Variable("voltage", (("site", "moment"),), "voltage"),
                Variable("quality", (("site",),), "site_quality", required=False, kinds="iu"),
            ),
        ),
    ),
    example="voltage=np.zeros((3, 4)), probe='a', timestamp=12.5",
)


@pytest.mark.parametrize("kind", [CALCIUM, FRAMES, NAMED_AND_OPTIONAL], **by_name)
@pytest.mark.parametrize("clause", CLAUSES, **by_name)
def test_a_row_added_to_the_table_is_a_kind(
    clause: Callable[[Kind, Path], None],
    kind: Kind,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(KINDS, kind.name, kind)
    clause(kind, tmp_path)


@pytest.mark.parametrize("kind", [CALCIUM, *KINDS.values()], **by_name)
def test_a_builder_documents_its_row(kind: Kind) -> None:
    make = builders.builder(kind)
    assert make.__name__ == kind.name
    for rule in kind.variables:
        assert rule.name in (make.__doc__ or "")
    assert f"neurostore.{kind.name}({kind.example})" in (make.__doc__ or "")


def test_a_row_can_be_added_to_a_file_that_was_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = record(KINDS["spike_train"])
    with opened(tmp_path) as store:
        store.store(old)
    monkeypatch.setitem(KINDS, CALCIUM.name, CALCIUM)
    new = record(CALCIUM)
    with opened(tmp_path) as store:
        ids = [*store.ids(), store.store(new)]
        assert_same(store.retrieve(ids[0]), old)
        assert_same(store.retrieve(ids[1]), new)
    monkeypatch.delitem(KINDS, CALCIUM.name)
    with opened(tmp_path) as store:
        assert store.ids() == ids[:1]
        assert_same(store.retrieve(ids[0]), old)
        again = store.store(old)
    monkeypatch.setitem(KINDS, CALCIUM.name, CALCIUM)
    with opened(tmp_path) as store:
        assert store.ids() == [ids[0], again, ids[1]]
        assert_same(store.retrieve(ids[1]), new)


# -- another process -----------------------------------------------------------------------------

LOADER = """
import pickle, sys
lazy = pickle.load(sys.stdin.buffer)
loaded = {key: (ds.load(), len(pickle.dumps(ds))) for key, ds in lazy.items()}
pickle.dump({key: pickle.dumps(ds) for key, (ds, _) in loaded.items()}, sys.stdout.buffer)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, xr.Dataset]:
    """Every kind, and a range of it, loaded by a process that was sent the lazy Datasets."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with opened(folder) as store:
        given = {name: record(kind, name=name) for name, kind in KINDS.items()}
        lazy = {name: store.retrieve(store.store(ds)) for name, ds in given.items()}
        lazy |= {f"range of {name}": store.range(name) for name in KINDS}
        sent = pickle.dumps(lazy)
    done = subprocess.run(
        [sys.executable, "-c", LOADER], input=sent, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return {key: pickle.loads(raw) for key, raw in pickle.loads(done.stdout).items()}


@pytest.mark.parametrize("kind", list(KINDS.values()), **by_name)
def test_a_lazy_record_can_be_sent_to_another_process(
    kind: Kind, elsewhere: dict[str, xr.Dataset], tmp_path: Path
) -> None:
    ds = record(kind, name=kind.name)
    assert_same(elsewhere[kind.name], ds)
    with opened(tmp_path) as store:
        store.store(ds)
        assert_same(elsewhere[f"range of {kind.name}"], store.range(kind.name))
