"""The file is a promise: its addresses, and that every HDF5 and netCDF tool reads it labelled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import netCDF4  # noqa: F401 (the stock engine; absence is an error, not a skip)
import numpy as np
import pytest
import xarray as xr
from samples import NAME, array, record
from tiers import FULL

import neurostore
from neurostore.schema import KINDS

#: Addresses of design and documentation, by kind; ``{}`` is the id.
TREE = {
    "network_snapshot": [
        "network_states/topology/{}/adjacency",
        "network_states/weights/{}/weights",
        "network_states/neuron_states/{}/states",
    ],
    "spike_train": [
        "spike_trains/raw_data/{}/spike_times",
        "spike_trains/raw_data/{}/neuron_ids",
        "spike_trains/raw_data/{}/spike_amplitudes",
    ],
    "compressed_spike_train": ["spike_trains/compressed/{}/data"],
    "reservoir_states": ["activations/reservoir_states/{}/states"],
    "layer_outputs": [
        "activations/layer_outputs/{}/in%2Fput",
        "activations/layer_outputs/{}/hidden",
        "activations/layer_outputs/{}/%6Cayer",
        "activations/layer_outputs/{}/layer",
    ],
    "attention_maps": ["activations/attention_maps/{}/maps"],
    "plasticity_trace": ["learning_traces/plasticity/{}/changes"],
    "homeostatic_trace": ["learning_traces/homeostatic/{}/changes"],
    "performance_metrics": ["learning_traces/performance/{}/values"],
}
STEMS = {
    "network_snapshot": "snapshot",
    "spike_train": "train",
    "compressed_spike_train": "compressed",
    "layer_outputs": "outputs",
}
EMPTY = "spike_trains/metadata"


@dataclass(frozen=True)
class Filled:
    """A closed file, the ids of its records, and what was stored."""

    path: Path
    records: dict[str, xr.Dataset]
    compacted: bool = False

    def parts(self) -> Iterator[tuple[str, xr.Dataset]]:
        for record_id, ds in self.records.items():
            for part in KINDS[ds.attrs["kind"]].parts:
                yield f"{part.path}/{record_id}", ds


def everything() -> Iterator[xr.Dataset]:
    """Yield every kind in all its dimensions, with labels, scalars, dates and small dtypes."""
    moment = 0
    for kind in KINDS.values():
        for dtype, variant in (("f", 0), ("b", 1), ("V", 2), ("c", 3), ("U", 0), ("M", 1)):
            moment += 1
            ds = record(kind, dtype=dtype, variant=variant, timestamp=moment + 0.25)
            dims = [dim for dim in ds.dims if dim not in ds.coords]
            coords: dict[Any, Any] = {
                "animal": "mouse Ü",
                "depth": np.float16(0.5),
                "begun": np.datetime64("2026-05-01T12:00:00"),
            }
            for number, dim in enumerate(dims):
                labels = np.array([f"{dim} é{n}" for n in range(ds.sizes[dim])])
                coords[dim if number == 0 else f"{dim}_label"] = (dim, labels)
                coords[f"{dim}_at"] = (
                    (dim, "xyz"),
                    array((ds.sizes[dim], 3), np.dtype("f2")),
                    {"units": "mm"},
                )
            yield ds.assign_coords(coords)
    for count in (0, 1, 5, 3_000, 100_000):
        yield neurostore.spike_train(
            np.linspace(0, 1, count),
            720575940622093546 + np.arange(count),
            np.ones(count, "f2"),
            timestamp=100.0 + count,
            metadata={"count": count},
        )
    rng = np.random.default_rng(5)
    yield neurostore.network_snapshot(
        adjacency=rng.random((300, 400)) < 0.1,
        weights=rng.random((300, 400), "f4"),
        states=rng.random((300, 2)).astype("f2"),
        timestamp=1e9,
        coords={"pre": [f"pre {n}" for n in range(300)]},
    )
    for name in ("x" * 10_000, "../a/b", "é" * 5_000, "e\u0301"):
        yield neurostore.reservoir_states(np.ones((2, 3)), name, timestamp=7.0)


def fill(path: Path) -> Filled:
    with neurostore.open(path, durability="process") as store, store.batch():
        return Filled(path, {store.store(ds): ds for ds in everything()})


def fill_with_compact(path: Path) -> Filled:
    """The same records after others beside them were removed and the file was compacted."""
    filled = fill(path)
    with neurostore.open(path, durability="process") as store:
        ids = [store.store(record(kind, timestamp=5e8)) for kind in KINDS.values()]
        again = neurostore.spike_train([0.5], [5], timestamp=1e9 + 1)
        filled.records[store.store(again)] = again
        removed = store.cleanup(0, now=6e8)
        assert set(removed) == set(ids)
        store.compact()
    return replace(filled, compacted=True)


@pytest.fixture(scope="module", params=["stored", "compacted"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    path = tmp_path_factory.mktemp(request.param) / "run.h5"
    return {"stored": fill, "compacted": fill_with_compact}[request.param](path)


def objects(h5file: h5py.File) -> dict[str, Any]:
    """Return every group and dataset of the file by its address, the root included."""
    found: dict[str, Any] = {"/": h5file}
    h5file.visititems(lambda name, found_object: found.setdefault(name, found_object) and None)
    return found


# -- addresses -----------------------------------------------------------------------------------


def test_the_table_of_kinds_is_the_tree_that_was_promised() -> None:
    assert set(TREE) == set(KINDS)
    for name, addresses in TREE.items():
        for part in KINDS[name].parts:
            assert any(address.startswith(f"{part.path}/{{}}/") for address in addresses)


@pytest.mark.parametrize("kind", sorted(TREE))
def test_addresses(tmp_path: Path, kind: str) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        record_id = store.store(record(KINDS[kind], timestamp=1.5, name="main"))
    assert record_id == f"{STEMS.get(kind, 'main')}_1.5"
    with h5py.File(tmp_path / "run.h5") as h5file:
        for address in TREE[kind]:
            assert isinstance(h5file[address.format(record_id)], h5py.Dataset)
        assert isinstance(h5file[EMPTY], h5py.Group)
        assert len(h5file[EMPTY]) == 0
        assert set(h5file) == {
            "network_states", "spike_trains", "activations", "learning_traces", "catalogue"
        }  # fmt: skip
        holders = {part.path for row in KINDS.values() for part in row.parts}
        leaves = {path for path in holders if len(h5file[path])}
        assert leaves == {part.path for part in KINDS[kind].parts}


def test_an_empty_store_has_the_whole_tree(tmp_path: Path) -> None:
    neurostore.open(tmp_path / "run.h5").close()
    with h5py.File(tmp_path / "run.h5") as h5file:
        for row in KINDS.values():
            for part in row.parts:
                assert isinstance(h5file[part.path], h5py.Group)
        assert b"neurostore" in str(h5file.attrs["neurostore"]).encode()


def test_an_escaped_name_and_its_original(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        record_id = store.store(record(KINDS["reservoir_states"], timestamp=1.5))
    assert record_id == "main%2F0 ü_1.5"
    with h5py.File(tmp_path / "run.h5") as h5file:
        kept = h5file[f"activations/reservoir_states/{record_id}"].attrs["reservoir_id"]
        assert (kept.decode() if isinstance(kept, bytes) else kept) == NAME


# -- h5py ----------------------------------------------------------------------------------------


def test_h5py_reads_every_dataset(filled: Filled) -> None:
    with h5py.File(filled.path) as h5file:
        datasets = [o for o in objects(h5file).values() if isinstance(o, h5py.Dataset)]
        for dataset in datasets:
            if dataset.shape is not None:
                assert dataset[()].shape == dataset.shape
        for record_id, ds in filled.records.items():
            if ds.neuro.kind == "spike_train":
                group = h5file[f"spike_trains/raw_data/{record_id}"]
                assert group["spike_times"][()].tolist() == ds["spike_times"].values.tolist()
                ids = group["neuron_ids"]
                assert ids.dims[0][0] == group["spike"]
    assert len(datasets) > 10 * len(KINDS)


def test_no_string_of_varying_length_anywhere(filled: Filled) -> None:
    """HDF5 keeps no checksum over them."""
    with h5py.File(filled.path) as h5file:
        for address, found in objects(h5file).items():
            if isinstance(found, h5py.Dataset):
                assert not found.id.get_type().detect_class(h5py.h5t.STRING) or not (
                    _is_variable(found.id.get_type())
                ), address
            for index in range(h5py.h5a.get_num_attrs(found.id)):
                attribute = h5py.h5a.open(found.id, index=index)
                assert not _is_variable(attribute.get_type()), f"{address} {attribute.name!r}"


def _is_variable(kind: Any) -> bool:
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        return any(_is_variable(kind.get_member_type(n)) for n in range(kind.get_nmembers()))
    return isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())


def test_text_attributes_are_marked_as_utf8(filled: Filled) -> None:
    with h5py.File(filled.path) as h5file:
        for address, _ in filled.parts():
            for found in (h5file[address], *h5file[address].values()):
                for index in range(h5py.h5a.get_num_attrs(found.id)):
                    attribute = h5py.h5a.open(found.id, index=index)
                    kind = attribute.get_type()
                    if isinstance(kind, h5py.h5t.TypeStringID) and attribute.name not in (
                        b"CLASS",
                        b"NAME",
                    ):
                        assert kind.get_cset() == h5py.h5t.CSET_UTF8, (address, attribute.name)


def test_dimension_numbers_are_unique_in_the_file(filled: Filled) -> None:
    numbers: dict[int, str] = {}
    with h5py.File(filled.path) as h5file:
        for address, found in objects(h5file).items():
            if isinstance(found, h5py.Dataset) and "_Netcdf4Dimid" in found.attrs:
                number = int(found.attrs["_Netcdf4Dimid"])
                assert number not in numbers, (address, numbers.get(number))
                numbers[number] = address
        for address, _ in filled.parts():
            for name, found in h5file[address].items():
                if found.is_scale:
                    assert f"{address}/{name}" in numbers.values()
                for number in found.attrs.get("_Netcdf4Coordinates", ()):
                    assert numbers[int(number)].startswith(f"{address}/")


def test_every_dimension_has_a_scale_of_its_own_group(filled: Filled) -> None:
    with h5py.File(filled.path) as h5file:
        for address, _ in filled.parts():
            group = h5file[address]
            for found in group.values():
                if found.is_scale:
                    continue
                for axis in range(found.ndim):
                    (scale,) = found.dims[axis].values()
                    assert scale.parent == group
                    assert scale.shape[0] == found.shape[axis]


def test_every_link_name_fits(filled: Filled) -> None:
    """One of 256 bytes stops netCDF4 from opening the whole file."""
    with h5py.File(filled.path) as h5file:
        for address in objects(h5file):
            for link in address.split("/"):
                assert len(link.encode()) <= 255


def test_chunks_are_compressed_and_checked(filled: Filled) -> None:
    chunked = 0
    with h5py.File(filled.path) as h5file:
        for address, _ in filled.parts():
            for name, found in h5file[address].items():
                if found.chunks is None or found.attrs.get("NAME", b"").startswith(b"This is a"):
                    continue
                assert found.compression == "gzip", f"{address}/{name}"
                assert found.fletcher32, f"{address}/{name}"
                chunked += 1
        assert h5file["network_states/weights/snapshot_1000000000.0/weights"].chunks is not None
    assert chunked > 10


def test_nothing_removed_is_left_after_compaction(filled: Filled) -> None:
    with h5py.File(filled.path) as h5file:
        found = [name for row in KINDS.values() for name in h5file[row.parts[0].path]]
        assert sorted(found) == sorted(filled.records)


# -- stock engines -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_stock_engines_read_every_part_labelled(filled: Filled, engine: str) -> None:
    parts = list(filled.parts())
    step = 1 if engine == "h5netcdf" else 7  # netcdf4 opens the whole file
    if filled.compacted and not FULL:
        step *= 4
    for address, ds in parts[::step]:
        with xr.open_dataset(filled.path, group=address, engine=engine) as part:
            part.load()
        assert set(part.variables) <= set(ds.variables) | {"timestamp"}
        assert not any("phony" in str(dim) for dim in part.dims)
        assert part.attrs["kind"] == ds.attrs["kind"]
        assert float(part["timestamp"]) == float(ds["timestamp"])
        for name, got in part.variables.items():
            _assert_readable(got, ds.variables[name], f"{address}/{name}")
        coords = {name for name in ds.coords if name in part.variables}
        assert coords <= set(part.coords)


def _assert_readable(got: xr.Variable, wanted: xr.Variable, where: str) -> None:
    """Same dims, and values as well as a stock tool can say them."""
    if wanted.dtype.kind == "c":  # netCDF has no complex numbers: their parts, side by side
        assert got.dims[:-1] == wanted.dims, where
        pairs = np.ascontiguousarray(wanted.values)[..., None].view(wanted.values.real.dtype)
        assert np.array_equal(got.values, pairs, equal_nan=True), where
        return
    assert got.dims == wanted.dims, where
    if wanted.dtype.kind in "US":
        have = got.values.astype(str) if got.dtype.kind in "UO" else np.char.decode(got.values)
        want = wanted.values.astype(str)
        assert have.tolist() == want.tolist(), where
    elif wanted.dtype.kind == "M":
        assert (got.values.astype("M8[us]") == wanted.values.astype("M8[us]")).all(), where
    elif wanted.dtype.kind == "V":
        assert np.array_equal(got.values, wanted.values.astype("f4")), where
    else:
        assert np.array_equal(got.values, wanted.values), where


READER = """
import json, sys, netCDF4
def walk(group):
    yield group
    for child in group.groups.values():
        yield from walk(child)
found = {}
with netCDF4.Dataset(sys.argv[1]) as file:
    for group in walk(file):
        for name, variable in group.variables.items():
            variable.set_auto_chartostring(False)
            values = variable[...]
            assert values.shape == variable.shape, (group.path, name)
            found[group.path + "/" + name] = [variable.dimensions, values.shape]
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def by_netcdf4(filled: Filled) -> dict[str, Any]:
    """Everything that netCDF4-python reads of the file, in a process that may crash."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(filled.path)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_netcdf4_reads_every_variable_with_its_dims(
    filled: Filled, by_netcdf4: dict[str, Any]
) -> None:
    assert not [name for name, (dims, _) in by_netcdf4.items() if "phony" in "".join(dims)]
    for address, ds in filled.parts():
        mine = {
            n.rpartition("/")[2]: v
            for n, v in by_netcdf4.items()
            if n.rpartition("/")[0] == f"/{address}"
        }
        assert {"timestamp"} < set(mine)
        for name, (dims, shape) in mine.items():
            if name in ds.variables:
                rank = ds.variables[name].ndim
                assert tuple(dims[:rank]) == ds.variables[name].dims, f"{address}/{name}"
                assert tuple(shape[:rank]) == ds.variables[name].shape, f"{address}/{name}"


@pytest.mark.skipif(shutil.which("ncdump") is None, reason="ncdump is not installed")
def test_ncdump_reads_the_header(filled: Filled) -> None:
    done = subprocess.run(
        ["ncdump", "-h", str(filled.path)], capture_output=True, timeout=120, check=False
    )
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert "phony" not in text
    assert "group: topology" in text
    assert "double spike_times(spike) ;" in text
    assert 'spike_times:units = "s"' in text


@pytest.mark.skipif(shutil.which("ncdump") is None, reason="ncdump is not installed")
def test_ncdump_reads_the_values(filled: Filled) -> None:
    """All of them: a native float16 or a missing dimension number crashes netCDF-C here."""
    done = subprocess.run(
        ["ncdump", str(filled.path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump_reads_it(filled: Filled) -> None:
    done = subprocess.run(
        ["h5dump", "-H", str(filled.path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_neurostore_reads_it_too(filled: Filled) -> None:
    with neurostore.open(filled.path, "r") as store:
        assert sorted(store.ids()) == sorted(filled.records)
        for record_id, ds in filled.records.items():
            back = store.retrieve(record_id)
            assert set(back.variables) == set(ds.variables)
            for name, variable in ds.variables.items():
                got = back.variables[name]
                assert got.dims == variable.dims
                assert got.shape == variable.shape
                if variable.dtype.kind == "U":
                    assert got.values.tolist() == variable.values.tolist()
                else:
                    assert got.dtype == variable.dtype
                    assert got.values.tobytes() == variable.values.tobytes()


def test_a_closed_store_leaves_no_journal(filled: Filled) -> None:
    names = {path.name for path in filled.path.parent.iterdir()}
    assert names <= {"run.h5", "run.h5-lock"}


# -- files of others -----------------------------------------------------------------------------


def test_plain_h5py_files_in_this_tree_are_read(tmp_path: Path) -> None:
    """Bare datasets and groups without scales get the default dimensions of their kind."""
    weights = np.arange(12.0).reshape(3, 4)
    bare = {
        "network_states/weights/snapshot_1.0/weights": weights,
        "spike_trains/raw_data/train_2.0/spike_times": np.array([0.1, 0.2]),
        "spike_trains/raw_data/train_2.0/neuron_ids": np.array([1, 2]),
        "spike_trains/compressed/compressed_3.0": np.arange(5, dtype="u1"),
        "activations/reservoir_states/main_4.0": weights,
        "activations/layer_outputs/outputs_5.0/hidden": weights,
        "activations/attention_maps/enc_6.0": np.ones((2, 3, 3)),
        "learning_traces/plasticity/stdp_7.0": weights,
        "learning_traces/homeostatic/m_8.0": weights[0],
        "learning_traces/performance/task_9.0/values": np.array([0.5, 0.25]),
    }
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as h5file:
        for address, values in bare.items():
            h5file[address] = values
    dims = {
        "snapshot_1.0": ("weights", ("pre", "post")),
        "train_2.0": ("spike_times", ("spike",)),
        "compressed_3.0": ("data", ("value",)),
        "main_4.0": ("states", ("neuron", "time")),
        "outputs_5.0": ("hidden", ("sample", "hidden_unit")),
        "enc_6.0": ("maps", ("head", "query", "key")),
        "stdp_7.0": ("changes", ("pre", "post")),
        "m_8.0": ("changes", ("neuron",)),
        "task_9.0": ("values", ("metric",)),
    }
    with neurostore.open(path, "r") as store:
        assert store.ids() == list(dims)
        for number, (record_id, (name, expected)) in enumerate(dims.items(), 1):
            ds = store.retrieve(record_id)
            assert ds[name].dims == expected
            assert float(ds["timestamp"]) == number
            wanted = next(v for a, v in bare.items() if record_id in a)
            assert np.array_equal(ds[name].values, wanted)
            if not record_id.startswith("train"):
                joined = store.range(ds.attrs["kind"])
                assert np.array_equal(joined[name].values[0], wanted)
    with neurostore.open(path, durability="process") as store:
        added = store.store(neurostore.reservoir_states(weights, "main", timestamp=10.0))
        assert store.ids() == [*dims, added]
        assert store.range("reservoir_states").sizes["record"] == 2


def test_spikes_of_others_without_units_are_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as h5file:
        h5file["spike_trains/raw_data/train_2.0/spike_times"] = np.array([0.1, 0.2])
        h5file["spike_trains/raw_data/train_2.0/neuron_ids"] = np.array([1, 2])
    with neurostore.open(path, durability="process") as store:
        store.store(neurostore.spike_train([0.5], [5], timestamp=10.0))
        joined = store.range("spike_train")
        assert joined["neuron_ids"].values.tolist() == [1, 2, 5]
        assert joined["spike_times"].attrs["units"] == "s"
