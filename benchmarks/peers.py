"""The same records by other libraries: write, read, and the bytes of the file.

Each library stores the arrays as its own users would: with compression where it has any, without
neurostore's labels and catalogue. A library that is not installed is left out, and said to be.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xarray as xr

import neurostore
from benchmarks import recordings, snapshot
from benchmarks.measure import duel
from benchmarks.recordings import Arrays
from benchmarks.report import Line, Table, spread

NAME = "peers"


@dataclass(frozen=True)
class Peer:
    """How one library stores a dict of arrays, and reads it back."""

    name: str
    needs: str
    write: Callable[[Path, Arrays], None]
    read: Callable[[Path], object]
    suffix: str


def run(folder: Path, *, quick: bool) -> Table:
    """Every library in turn, alternately with neurostore."""
    table = Table(
        "The same records by other libraries",
        "From opening the file to closing it, without a sync on either side, gzip 6 and checksums "
        "for neurostore. zarr 3 with its default codec (zstd); netCDF4-python and xarray's "
        "`to_netcdf` with zlib 4 and shuffle; PyTables with Blosc 5 and Fletcher-32; "
        "`np.savez_compressed`; pynwb with one gzip `TimeSeries` for each array. How many times "
        "faster neurostore writes and reads, and its size as a fraction of theirs; in bold where "
        "it is behind.",
        head=("record", "library", "write", "read", "size"),
    )
    for what, arrays in records(quick).items():
        for peer in PEERS:
            if find_spec(peer.needs) is None:
                table.rows.append(Line((what, peer.name, "not installed", "", "")))
            else:
                figures = against(folder, arrays, peer, rounds=1 if quick else 5)
                table.rows.append(Line((what, peer.name, *figures)))
    return table


def records(quick: bool) -> dict[str, Arrays]:
    """Random records, and real ones where they are at hand."""
    random = snapshot.network(50 if quick else 1_000)
    random.pop("trace")
    found = {"random snapshot": random, "random spikes": spikes(2_000 if quick else 1_000_000)}
    data = recordings.folder()
    if data is not None and not quick:
        found["connectome"] = recordings.connectome(data)
        found["fly spikes"] = recordings.fly_spikes(data)
    return found


def spikes(count: int) -> Arrays:
    """A train of sorted times with amplitudes."""
    rng = np.random.default_rng(2)
    return {
        "spike_times": np.sort(rng.random(count)) * 100,
        "neuron_ids": rng.integers(0, 1_000, count),
        "spike_amplitudes": rng.normal(1, 0.1, count),
    }


def against(folder: Path, arrays: Arrays, peer: Peer, *, rounds: int) -> tuple[str, str, str]:
    """Write, read and size beside one library; the files are read in the state just written."""
    ours, theirs = folder / "ours.h5", folder / f"theirs{peer.suffix}"
    written = duel(
        lambda _: by_storage(ours, arrays),
        lambda _: peer.write(fresh(theirs), arrays),
        rounds=rounds,
    ).speedup
    read = duel(lambda _: from_storage(ours), lambda _: peer.read(theirs), rounds=rounds).speedup
    smaller = bytes_of(ours) / bytes_of(theirs)
    return (
        marked(spread(written), written.median < 1),
        marked(spread(read), read.median < 1),
        marked(f"{smaller:.2f}x", smaller > 1),
    )


def marked(figure: str, behind: bool) -> str:
    """In bold where neurostore is behind."""
    return f"**{figure}**" if behind else figure


def fresh(path: Path) -> Path:
    """The path, with nothing at it."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


def bytes_of(path: Path) -> float:
    """Size of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return float(sum(file.stat().st_size for file in files if file.is_file()))


def by_storage(path: Path, arrays: Arrays) -> None:
    """The array face, all defaults but the sync."""
    with neurostore.HDF5Storage(fresh(path), durability="process") as storage:
        if "weights" in arrays:
            storage.store_network_snapshot(1.0, *arrays.values())
        else:
            storage.store_spike_train(1.0, *arrays.values())


def from_storage(path: Path) -> object:
    """Whatever stands in the file, all of it in memory."""
    with neurostore.open(path, mode="r") as store:
        return [store.retrieve(record_id).load() for record_id in store.ids()]


def by_zarr(path: Path, arrays: Arrays) -> None:
    """A group with one array for each, default chunks and codec."""
    import zarr

    group = zarr.open_group(path, mode="w")
    for name, data in arrays.items():
        group.create_array(name, data=data)


def from_zarr(path: Path) -> object:
    """Every array."""
    import zarr

    group = zarr.open_group(path, mode="r")
    return [group[name][...] for name in group.array_keys()]


def by_netcdf4(path: Path, arrays: Arrays) -> None:
    """One variable for each, zlib and Fletcher-32."""
    import netCDF4

    with netCDF4.Dataset(path, "w") as nc:
        for name, data in arrays.items():
            dims = []
            for axis, length in enumerate(data.shape):
                nc.createDimension(f"{name}_{axis}", length)
                dims.append(f"{name}_{axis}")
            variable = nc.createVariable(
                name, data.dtype, dims, compression="zlib", fletcher32=True
            )
            variable[...] = data


def from_netcdf4(path: Path) -> object:
    """Every variable."""
    import netCDF4

    with netCDF4.Dataset(path) as nc:
        nc.set_auto_mask(False)
        return [variable[...] for variable in nc.variables.values()]


def by_tables(path: Path, arrays: Arrays) -> None:
    """One chunked array for each, Blosc and Fletcher-32."""
    import tables

    filters = tables.Filters(complevel=5, complib="blosc", fletcher32=True)
    with tables.open_file(path, "w") as h5file:
        for name, data in arrays.items():
            h5file.create_carray("/", name, obj=data, filters=filters)


def from_tables(path: Path) -> object:
    """Every array."""
    import tables

    with tables.open_file(path) as h5file:
        return [node.read() for node in h5file.list_nodes("/")]


def by_numpy(path: Path, arrays: Arrays) -> None:
    """A zip of arrays."""
    np.savez_compressed(path, allow_pickle=False, **arrays)


def from_numpy(path: Path) -> object:
    """Every array."""
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def by_xarray(path: Path, arrays: Arrays) -> None:
    """The labelled Dataset, by xarray's own writer, with zlib."""
    build = neurostore.network_snapshot if "weights" in arrays else neurostore.spike_train
    ds = build(**arrays, timestamp=1.0)
    ds = ds.drop_indexes(list(ds.xindexes)).drop_vars("time")
    ds.to_netcdf(path, encoding={name: {"zlib": True} for name in arrays})


def from_xarray(path: Path) -> object:
    """The Dataset, loaded."""
    with xr.open_dataset(path) as ds:
        return ds.load()


def by_pynwb(path: Path, arrays: Arrays) -> None:
    """One time series for each array, gzip and Fletcher-32."""
    import pynwb

    nwb = pynwb.NWBFile("a benchmark", "one record", datetime(2026, 1, 1, tzinfo=UTC))
    for name, data in arrays.items():
        wrapped = pynwb.H5DataIO(data, compression="gzip", fletcher32=True)
        nwb.add_acquisition(pynwb.TimeSeries(name=name, data=wrapped, unit="1", rate=1.0))
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(nwb)


def from_pynwb(path: Path) -> object:
    """Every series."""
    import pynwb

    with pynwb.NWBHDF5IO(path, "r") as io:
        return [series.data[...] for series in io.read().acquisition.values()]


PEERS = (
    Peer("zarr 3", "zarr", by_zarr, from_zarr, ".zarr"),
    Peer("netCDF4-python", "netCDF4", by_netcdf4, from_netcdf4, ".nc"),
    Peer("PyTables, Blosc", "tables", by_tables, from_tables, ".tables.h5"),
    Peer("np.savez_compressed", "numpy", by_numpy, from_numpy, ".npz"),
    Peer("xarray to_netcdf", "netCDF4", by_xarray, from_xarray, ".xr.nc"),
    Peer("pynwb", "pynwb", by_pynwb, from_pynwb, ".nwb"),
)
