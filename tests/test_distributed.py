"""A cluster of processes on this machine: reductions in bounded memory, many workers that store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore.workers import own_file

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed", reason="needs the extra neurostore[distributed]")

MB = 2**20
WORKERS = 4
#: Records of 16 MB that are a few KB on disk: 256 MB, 64 of them to each worker.
RECORDS, SHAPE = 16, (1_024, 2_048)
#: dask has workers give freed memory back at once, and getting it again costs thrice the reading.
ALLOCATION = {"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 32 * MB}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with (
        dask.config.set(ALLOCATION),
        distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=tmp_path_factory.mktemp("cluster"),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(WORKERS)
        yield client


def peak() -> int:
    """Peak of the resident memory of this process, in MB; Linux only."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_reduction_over_a_series_needs_little_memory(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    plane = np.zeros(SHAPE)
    with neurostore.open(path, compression_opts=1, durability="process") as store:
        for first in range(0, RECORDS, 6):
            with store.batch():
                for number in range(first, min(first + 6, RECORDS)):
                    plane[:] = number
                    store.store(neurostore.reservoir_states(plane, "main", timestamp=float(number)))
            store.rotate()
    ds = neurostore.open(path, "r").range("reservoir_states", chunks={})
    assert ds.states.nbytes == RECORDS * 16 * MB
    few = ds.states.isel(record=slice(0, WORKERS)).mean(["neuron", "time"], skipna=False)
    client.compute(few, sync=True)  # all that is imported on the way is
    before = client.run(peak)
    means = client.compute(ds.states.mean(["neuron", "time"], skipna=False), sync=True)
    after = client.run(peak)
    np.testing.assert_array_equal(means, np.arange(RECORDS))
    assert means.timestamp.values.tolist() == list(range(RECORDS))
    grown = {worker: after[worker] - before[worker] for worker in before}
    assert max(grown.values()) < 40, grown


def simulate(folder: str, run: int) -> tuple[str, str]:
    path = own_file(folder)
    with neurostore.open(path, durability="process") as store, store.batch():
        spikes = neurostore.spike_train([0.1 * run, 0.2 * run], [run, run + 1], timestamp=run % 10)
        return path.name, store.store(spikes)


def test_four_workers_store_at_once_and_lose_nothing(client: Any, tmp_path: Path) -> None:
    """Also where records of several workers have the same time, and so the same id."""
    runs = range(60)
    told = client.gather(client.map(simulate, [str(tmp_path)] * len(runs), runs, pure=False))
    assert len({name for name, _ in told}) == WORKERS == len(list(tmp_path.glob("*.h5")))
    assert len(set(told)) == len(runs)
    with neurostore.open(tmp_path / "*.h5", "r") as store:
        assert len(set(store.ids())) == len(runs)
        ds = store.range("spike_train", chunks={})
        ids, times = client.compute([ds.neuron_ids.data, ds.spike_times.data], sync=True)
    assert sorted(ids[::2].tolist()) == list(runs)
    np.testing.assert_array_equal(times[::2], 0.1 * ids[::2])
    assert ds.sizes["record"] == len(runs)


def test_files_open_in_parallel(client: Any, tmp_path: Path) -> None:
    paths = [tmp_path / f"{worker}.h5" for worker in range(3)]
    for worker, path in enumerate(paths):
        states = np.full((2, 3), float(worker))
        neurostore.reservoir_states(states, "main", timestamp=float(worker)).neuro.store(path)
    options = {"engine": "neurostore", "combine": "nested", "concat_dim": "record"}
    whole = xr.open_mfdataset(paths, range="reservoir_states", parallel=True, **options)
    assert whole.states.isel(neuron=0, time=0).values.tolist() == [0.0, 1.0, 2.0]
    table = xr.open_mfdataset(paths, parallel=True, **options)
    assert table.kind.values.tolist() == ["reservoir_states"] * 3


def test_a_path_of_ones_own_outside_a_task(client: Any, tmp_path: Path) -> None:
    assert own_file(tmp_path) == own_file(tmp_path)
    assert own_file(tmp_path) not in client.run(lambda: own_file(tmp_path)).values()
