"""xarray's own tests of a backend, run against ``engine="neurostore"``.

What h5netcdf and netCDF4 write into a group of a plain file is opened by our engine; the tests
themselves are xarray's.  `SKIPPED` names every one that is not run, with the reason.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from xarray.testing import assert_identical

import neurostore
from neurostore.errors import ValidationError

suite = pytest.importorskip("xarray.tests.test_backends", reason="xarray without its tests")
xr.set_options(warn_for_unclosed_files=False)  # they set it for every test of this process

ENGINE = "neurostore"
GROUP = "data"

_WRITES = "writes through a data store of its engine; this one is for reading, records are stored"
_DEFAULT = "opens with the engine that xarray guesses, not this one; see test_what_netcdf4_wrote"
_SYNC = "xarray has it skipped for every netCDF engine: loading is not asynchronous"
#: Tests of xarray that are not run here, with the reason.
SKIPPED = {
    "test_write_store": _WRITES,
    "test_load_async": _SYNC,
    "test_roundtrip_character_array": _DEFAULT,
    "test_open_encodings": _DEFAULT,
    "test_dump_and_open_encodings": _DEFAULT,
    "test_mask_and_scale": _DEFAULT,
    "test_0dimensional_variable": _DEFAULT,
    "test_read_variable_len_strings": _DEFAULT,
    "test_encoding_masked_arrays": _DEFAULT,
    "test_byte_attrs": (
        "h5netcdf refuses to write it; of what netCDF4 writes, bytes that are no UTF-8 are kept as "
        "h5netcdf keeps them (surrogateescape), where netCDF4 replaces them"
    ),
    "test_coordinate_variables_after_iris_roundtrip": "needs iris, which is no dependency",
}


def without_skipped(cls: type) -> type:
    for name, reason in SKIPPED.items():
        inherited = getattr(cls, name)

        def skipped(self: object, _reason: str = reason) -> None:
            pytest.skip(_reason)

        skipped.__doc__ = inherited.__doc__
        setattr(cls, name, skipped)
    return cls


@pytest.fixture(params=["s", "ns"])
def time_unit(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["numpy", "dask"])
def use_dask(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Suite(suite.NetCDF4Base):
    def save(self, dataset: xr.Dataset, path: str, **kwargs: Any) -> Any:
        kwargs.setdefault("group", GROUP)
        return dataset.to_netcdf(path, engine=self.engine, **kwargs)

    @contextlib.contextmanager
    def open(self, path: str, **kwargs: Any) -> Iterator[xr.Dataset]:
        kwargs.setdefault("group", GROUP)
        with xr.open_dataset(path, engine=ENGINE, **kwargs) as ds:
            yield ds

    # Those of xarray that name the root of the file, or ask for a package that does not exist.

    def test_roundtrip_example_1_netcdf(self) -> None:
        super().test_roundtrip_example_1_netcdf()

    def test_refresh_from_disk(self, tmp_path: Path) -> None:
        first, second = str(tmp_path / "first.nc"), str(tmp_path / "second.nc")
        self.save(xr.Dataset({"x": ("t", [1, 2])}), first)
        self.save(xr.Dataset({"x": ("t", [3, 4])}), second)
        with self.open(first) as before:
            before.load()
            shutil.copy(second, first)
            with self.open(first) as after:
                assert after.x.values.tolist() == [3, 4]

    @pytest.mark.parametrize("create_default_indexes", [True, False])
    def test_create_default_indexes(self, tmp_path: Path, create_default_indexes: bool) -> None:
        path = str(tmp_path / "tmp.nc")
        self.save(xr.Dataset({"data": ("x", np.arange(3))}, {"x": [-1, 0, 1]}), path)
        with self.open(path, create_default_indexes=create_default_indexes) as ds:
            assert list(ds.xindexes) == ["x"] * create_default_indexes


@without_skipped
class TestWrittenByH5netcdf(Suite):
    engine = "h5netcdf"


@without_skipped
class TestWrittenByNetcdf4(Suite):
    engine = "netcdf4"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with what netCDF4 can say and h5netcdf cannot be made to write."""
    path = tmp_path_factory.mktemp("foreign") / "written.nc"
    with netCDF4.Dataset(path, "w") as root:
        root.createDimension("x", 3)
        outer = root.createGroup("outer")
        outer.createDimension("t", None)
        outer.createVariable("t", "i4", ("t",)).units = "days since 1999-01-01"
        outer["t"][:] = np.arange(4)
        inner = outer.createGroup("inner")
        packed = inner.createVariable("packed", "i2", ("t", "x"), fill_value=-1, zlib=True)
        packed.set_auto_maskandscale(False)
        packed.scale_factor, packed.add_offset = 0.1, 10.0
        packed[:] = np.array([[-1, 0, 1]] * 4)
        inner.createDimension("width", 2)
        inner.createVariable("letters", "S1", ("x", "width"))[:] = np.array([[b"a", b"b"]] * 3)
        inner.createVariable("words", str, ("x",))[:] = np.array(["one", "zwölf", ""], object)
        inner.createVariable("number", "u1")[...] = 7
        kind = inner.createEnumType(np.uint8, "cloud_type", {"clear": 0, "cloudy": 1})
        inner.createVariable("cloud", kind, ("x",))[:] = 1
        inner.setncattr("title", "a title")
        inner.setncattr("some", np.array([1.0, 2.0]))
    return path


@pytest.mark.parametrize("group", ["outer", "outer/inner"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decode_cf": False},
        {"mask_and_scale": False, "drop_variables": "words"},
        {"decode_times": False, "concat_characters": False},
        {"chunks": {}},
    ],
    ids=str,
)
def test_what_netcdf4_wrote(written: Path, group: str, options: dict[str, Any]) -> None:
    with (
        xr.open_dataset(written, engine=ENGINE, group=group, **options) as ours,
        xr.open_dataset(written, engine="h5netcdf", group=group, **options) as theirs,
    ):
        assert_identical(ours.load(), theirs.load())
        assert ours.encoding["unlimited_dims"] == theirs.encoding["unlimited_dims"] & set(ours.dims)
        for name, variable in theirs.variables.items():
            found = ours[name].encoding
            told = {key: value for key, value in variable.encoding.items() if key in found}
            assert {key: found[key] for key in told} == told, name
            assert ours[name].chunks == variable.chunks


def test_open_group_is_what_the_engine_gives_with_its_indexes(written: Path) -> None:
    with (
        neurostore.open(written, "r") as store,
        xr.open_dataset(written, engine=ENGINE, group="outer") as ours,
    ):
        assert list(store.open_group("/outer").xindexes) == ["t"]
        assert_identical(store.open_group("/outer"), ours)


def test_a_group_is_named_by_a_string(written: Path) -> None:
    with pytest.raises(ValidationError, match="must be a string"):
        xr.open_dataset(written, engine=ENGINE, group=(1, 2))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A record whose dtypes netCDF-4 lacks, and the address of its one part."""
    path = tmp_path_factory.mktemp("ours") / "run.h5"
    values = np.array([[0.5, 1.0], [0.25, 0.0]], "f2")
    made = neurostore.attention_maps(values, "name", timestamp=12.5)
    address = f"activations/attention_maps/{made.neuro.store(path)}"
    return path, address


def test_a_record_is_decoded_as_ever_unless_it_is_asked_otherwise(
    record: tuple[Path, str],
) -> None:
    path, address = record
    with neurostore.open(path, "r") as store:
        ours = store.open_group(address)
        stored = store.open_group(address, mask_and_scale=False)
    plain = xr.open_dataset(path, engine=ENGINE, group=address)
    assert_identical(plain, ours)
    assert ours.maps.dtype == np.float16
    for options in ({"decode_cf": False}, {"mask_and_scale": False}):
        asked = xr.open_dataset(path, engine=ENGINE, group=address, **options)
        with xr.open_dataset(path, engine="h5netcdf", group=address, **options) as theirs:
            theirs.attrs.pop("content_hash")
            assert_identical(asked.load(), theirs.load())
    assert_identical(stored, asked)
    tree = xr.open_datatree(path, engine=ENGINE, decode_cf=False)
    assert tree[f"/{address}/maps"].dtype == np.float32


def test_options_that_do_not_exist_are_refused(written: Path) -> None:
    with pytest.raises(TypeError, match="knid"):
        xr.open_datatree(written, engine=ENGINE, knid="spike_train")
    with neurostore.open(written, "r") as store, pytest.raises(TypeError, match="decode_tmes"):
        store.open_group("outer", decode_tmes=False)


def test_a_bare_dataset_is_read_as_it_is(tmp_path: Path) -> None:
    path, address = tmp_path / "plain.h5", "activations/reservoir_states/m_1.0"
    with h5py.File(path, "w") as h5file:
        h5file[address] = np.eye(2)
    with xr.open_dataset(path, engine=ENGINE, group=address, decode_cf=False) as ds:
        assert ds["states"].dims == ("neuron", "time")
        assert ds["timestamp"] == 1.0


def test_the_catalogue_has_nothing_to_decode(record: tuple[Path, str]) -> None:
    path, _ = record
    assert xr.open_dataset(path, engine=ENGINE, decode_cf=False).sizes["record"] == 1
    with pytest.raises(ValidationError, match="by group="):
        xr.open_dataset(path, engine=ENGINE, use_cftime=True)
