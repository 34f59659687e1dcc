"""Headers of records read past HDF5: what HDF5 says, or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from h5py import h5g
from samples import T, record, variants

import neurostore
from neurostore import h5attrs, headers, reading
from neurostore.objectheader import checksum
from neurostore.schema import KINDS, Kind


def stored(path: Path, *datasets: xr.Dataset) -> list[str]:
    """Store records; return the addresses of their groups."""
    with neurostore.open(path) as store:
        found = [store.retrieve(store.store(ds)).encoding["groups"] for ds in datasets]
    return [address for groups in found for address in groups]


def plain(found: tuple[Any, ...] | None) -> Any:
    """Return what was seen of a group without the handles, in a form that compares."""
    if found is None:
        return None
    attrs, items, dims = found
    seen = [(i.link, i.name, i.address, i.is_scale, i.bare, i.shape, i.dtype) for i in items]
    kept = [[(name, type(v), np.asarray(v).tolist()) for name, v in i.attrs.items()] for i in items]
    return [(name, type(v), np.asarray(v).tolist()) for name, v in attrs], seen, kept, dims


def by_hdf5(h5file: h5py.File, address: str, kind: Kind) -> Any:
    group = h5g.open(h5file.id, address.encode())
    return plain((h5attrs.read_all(group), *reading.items_of(h5file.id, group, address, kind)))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", ["f", "i", "b", "c", "U", "V", "M"])
def test_headers_say_what_hdf5_says(tmp_path: Path, kind: Kind, dtype: str) -> None:
    """Of every kind, in all its variants; nothing that is usual is left to HDF5."""
    path = tmp_path / "all.h5"
    made = [record(kind, timestamp=T + n, variant=n, dtype=dtype) for n in range(variants(kind))]
    addresses = stored(path, *made)
    with h5py.File(path) as h5file:
        for address in addresses:
            expected = by_hdf5(h5file, address, kind)
            found = plain(reading._in_headers(h5file.id, address))
            assert found == expected or (found is None and len(expected[1]) > 8)


def test_attributes_are_those_of_hdf5(tmp_path: Path) -> None:
    """Arrays, long texts and many attributes, some of which HDF5 keeps elsewhere."""
    path = tmp_path / "attrs.h5"
    ds = neurostore.spike_train([0.1], [0], timestamp=1.0)
    few = ds.assign_attrs(gain=np.arange(3.0), name="ü" * 900, flag=True, empty="", n=np.int8(3))
    many = ds.assign_attrs({f"a{n}": n for n in range(30)}, long="x" * 70_000)
    long = ds.assign_attrs(long="x" * 5_000)
    records = [few, many.assign_coords(timestamp=2.0), long.assign_coords(timestamp=3.0)]
    first, second, third = stored(path, *records)
    with h5py.File(path) as h5file:

        def attributes(address: str) -> list[tuple[str, Any]] | None:
            where = h5file.id.links.get_info(address.encode()).u
            found = headers.contents(h5file.id.get_vfd_handle(), where)
            return None if found is None else found[0]

        found = attributes(first)
        assert found is not None
        expected = h5attrs.read_all(h5g.open(h5file.id, first.encode()))
        assert [name for name, _ in found] == [name for name, _ in expected]
        gain = dict(found)["gain"]
        np.testing.assert_array_equal(gain, [0.0, 1.0, 2.0])
        gain[0] = 7.0  # the caller's own
        assert dict(attributes(first) or ())["gain"][0] == 0.0
        assert attributes(second) is None
        assert attributes(third) is None
    with neurostore.open(path, "r") as store:
        assert store.retrieve(second.rpartition("/")[2]).attrs["long"] == "x" * 70_000


def header_of(path: Path, address: str) -> tuple[int, int]:
    """Where the header of an object is, and how long its first piece."""
    with h5py.File(path) as h5file:
        info = h5py.h5o.get_info(h5py.h5o.open(h5file.id, address.encode()))
    head = path.read_bytes()[info.addr : info.addr + 34]
    at = 6 + (16 if head[5] & 0x20 else 0) + (4 if head[5] & 0x10 else 0)
    width = 1 << (head[5] & 3)
    return info.addr, at + width + int.from_bytes(head[at : at + width], "little") + 4


def small(tmp_path: Path, name: str) -> tuple[Path, int, int, int]:
    """A file with one train; the address of its group, place and length of a header in it."""
    path = tmp_path / "run.h5"
    (group,) = stored(path, neurostore.spike_train([0.1, 0.2], [0, 1], timestamp=1.0))
    return path, header_of(path, group)[0], *header_of(path, group + name)


@pytest.mark.parametrize("name", ["", "/spike_times", "/spike"])
def test_damage_is_left_to_hdf5(tmp_path: Path, name: str) -> None:
    """Every byte of a header, flipped: nothing is made of it."""
    path, start, where, length = small(tmp_path, name)
    whole = path.read_bytes()
    descriptor = os.open(path, os.O_RDWR)
    assert headers.contents(descriptor, start) is not None
    for at in range(where, where + length):
        os.pwrite(descriptor, bytes([whole[at] ^ 0x10]), at)
        assert headers.contents(descriptor, start) is None, at - where
        os.pwrite(descriptor, whole[at : at + 1], at)
    os.close(descriptor)


@pytest.mark.parametrize("name", ["", "/spike_times", "/spike"])
def test_forged_headers_do_no_harm(tmp_path: Path, name: str) -> None:
    """Any bytes with a checksum that agrees: an answer or none, and no error of another kind."""
    path, start, where, length = small(tmp_path, name)
    whole = path.read_bytes()[where : where + length]
    descriptor = os.open(path, os.O_RDWR)
    rng = np.random.default_rng(0)
    answers = 0
    for _ in range(2_000):
        forged = bytearray(whole[:-4])
        for at in rng.integers(4, len(forged), rng.integers(1, 4)):
            forged[at] = rng.choice([0, 1, 2, 3, 8, 16, 127, 128, 254, 255])
        os.pwrite(descriptor, forged + checksum(forged).to_bytes(4, "little"), where)
        answers += headers.contents(descriptor, start) is not None
    os.close(descriptor)
    assert 0 < answers < 2_000
