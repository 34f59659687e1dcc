"""A table of links written as bytes: HDF5 finds every one, and goes on with it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5g, h5o

from neurostore import moving


@pytest.mark.parametrize("count", [1, 11, 45, 46, 600, 12_001, 20_002])
def test_hdf5_finds_every_link_and_goes_on(tmp_path: Path, count: int) -> None:
    """One block, several, a block of blocks; a leaf, and trees of two to four levels."""
    path = tmp_path / "links.h5"
    by_hdf5 = [f"by hdf5 {n}" for n in range(count % 8)]  # in the header until then
    with h5py.File(path, "w", libver=("v110", "v110")) as h5file:
        group = h5file.create_group("many")
        for name in by_hdf5:
            group[name] = 1
        things = [h5file.create_group(f"thing {n}") for n in range(3)]
        places = [int(h5o.get_info(thing.id).addr) for thing in things]
    names = [f"record_{n * 0.37!r}{'x' * (n % 7)}".encode() for n in range(count)]
    names[-1] = "µ".encode() * 100
    links = {name: (name, places[n % 3], n == count - 1) for n, name in enumerate(names)}
    with h5py.File(path) as h5file:
        targets = moving.targets(h5file, {b"/many": links})
    moving.link(path, {b"/many": links}, targets)
    with h5py.File(path, "r+", libver=("v110", "v110")) as h5file:
        group = h5file["many"].id
        assert len(group) == count + len(by_hdf5)
        assert sorted(group) == sorted([*names, *map(str.encode, by_hdf5)])
        for name in names[:: max(1, count // 500)]:
            assert h5o.get_info(group, name).addr == links[name][1]
        rng = np.random.default_rng(count)
        gone = [names[n] for n in rng.permutation(count)[: min(count, 300)]]
        for n, name in enumerate(gone):
            group.links.move(name, group, f"moved {n}".encode())
            h5g.create(group, f"new {n}".encode())
    with h5py.File(path) as h5file:
        expected = set(names) - set(gone) | {name.encode() for name in by_hdf5}
        expected |= {f"{what} {n}".encode() for n in range(len(gone)) for what in ("moved", "new")}
        assert set(h5file["many"].id) == expected
        found = sorted(expected)[:: max(1, count // 500)]
        assert all(name in h5file["many"].id for name in found)
