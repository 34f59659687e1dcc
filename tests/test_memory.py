"""How often a large array is copied: not at all as a whole, whatever its form and origin."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore import records
from neurostore.deferred import Deferred

N = 2_400  # 46 MB of float64
FEW = 14 * 2**20


def trace(changes: Any) -> xr.Dataset:
    attrs = {"kind": "plasticity_trace", "plasticity_type": "stdp"}
    return xr.Dataset({"changes": (("pre", "post"), changes)}, {"timestamp": 1.0}, attrs)


def peak_of(action: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        action()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, N))


def layouts(noise: np.ndarray) -> dict[str, Callable[[], Any]]:
    return {
        "C": lambda: noise,
        "Fortran": lambda: np.asfortranarray(noise),
        "strided": lambda: np.repeat(noise[: N // 2], 2, axis=0)[::-1, ::1],
        "bool": lambda: np.tile(noise > 3, (3, 3)),
        "bfloat16": lambda: np.tile(noise.astype(ml_dtypes.bfloat16), (2, 2)),
        "complex, Fortran": lambda: np.asfortranarray(noise[:, : N // 2] + 1j),
        "jax": lambda: pytest.importorskip("jax").numpy.asarray(np.tile(noise.astype("f4"), 2)),
    }


@pytest.mark.parametrize("form", layouts(np.empty(0)))
def test_storing_and_loading_copy_no_array_as_a_whole(
    tmp_path: Path, noise: np.ndarray, form: str
) -> None:
    array = layouts(noise)[form]()
    with neurostore.open(tmp_path / "run.h5", chunk_size=256, durability="process") as store:
        assert peak_of(lambda: store.store(trace(array))) < FEW
        found = store.retrieve("stdp_1.0").changes
        held: list[np.ndarray] = []
        assert peak_of(lambda: held.append(found.values)) < array.nbytes + 10 * FEW
        assert held[0].dtype == array.dtype
        assert (held[0] == np.asarray(array)).all()


@pytest.mark.parametrize("dtype", ["f8", "i4", "?", "c16"])
def test_a_record_shares_the_memory_of_its_arrays(dtype: str) -> None:
    array = np.zeros((50, 60), dtype)
    values = records.examine(trace(array)).pieces[0].columns[0].values
    assert np.shares_memory(values, array)


@pytest.mark.parametrize("chunks", [(400, 400), (1_000, 2_400), (311, 977)])
def test_dask_arrays_are_stored_piece_by_piece(tmp_path: Path, chunks: tuple[int, int]) -> None:
    array = da.random.default_rng(0).normal(size=(N, N), chunks=chunks)
    with neurostore.open(tmp_path / "run.h5", chunk_size=256, durability="process") as store:
        store.store(trace(da.ones((500, 500), chunks=100)).assign_coords(timestamp=0.0))  # imports
        peak = peak_of(lambda: store.store(trace(array)))
        crossed = 1 if 400 in chunks or 1_000 in chunks else 4  # pieces that one part lies in
        assert peak < (crossed + 1.2) * 8 * np.prod(chunks) + FEW
        found = store.retrieve("stdp_1.0").changes
        assert found.dtype == array.dtype
        assert (found.values == array.compute(scheduler="synchronous")).all()


@pytest.mark.parametrize("options", [{"compression": None}, {"compression": "lzf"}])
def test_dask_arrays_of_any_filter_and_dtype(tmp_path: Path, options: dict[str, Any]) -> None:
    numbers = da.arange(4_000_000, chunks=300_000).reshape(2_000, 2_000)
    with neurostore.open(tmp_path / "run.h5", durability="process", **options) as store:
        for made in (numbers, numbers % 7 + 1j, numbers > 9):
            array = da.tile(made, (2, 1)) if made.dtype.itemsize < 8 else made
            record = store.store(trace(array))
            found = store.retrieve(record).changes
            assert found.dtype == array.dtype
            assert (found.values == array.compute(scheduler="synchronous")).all()


def test_a_graph_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    def broken(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info and block_info[0]["chunk-location"] == (3, 1):
            raise ZeroDivisionError("as told")
        return block

    good = da.zeros((N, N), chunks=(500, 500))
    bad = good.map_blocks(broken, dtype="f8", meta=np.empty((0, 0)))
    lying = good.map_blocks(lambda block: block.astype("f4"), dtype="f8", meta=np.empty((0, 0)))
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        before = (tmp_path / "run.h5").read_bytes()
        with pytest.raises(ZeroDivisionError):
            store.store(trace(bad))
        with pytest.raises(TypeError, match="came out as float32"):
            store.store(trace(lying))
        assert store.ids() == []
    assert len((tmp_path / "run.h5").read_bytes()) == len(before)


def test_what_is_deferred_can_be_had_whole() -> None:
    array = np.arange(12.0, dtype="f2").reshape(3, 4)
    later = Deferred(da.from_array(array, chunks=2))
    assert later.dtype == np.float32
    assert (np.asarray(later) == array).all()
    assert (later.block((slice(1, 3), slice(0, 4))) == array[1:]).all()
