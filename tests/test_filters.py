"""Chunks by hand: h5py reads what we write, we read what h5py writes, and damage never passes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numcodecs.fletcher32 import Fletcher32
from tiers import examples

import neurostore
from neurostore.errors import DamagedError, ValidationError
from neurostore.filters import (
    Pipeline,
    check_options,
    choose,
    chunk_shape,
    length_class,
    read,
    read_many,
    write,
)
from neurostore.filters.checksum import fletcher32
from neurostore.filters.choosing import Choice
from neurostore.filters.encoders import ISAL, RLE, Encoder, libdeflate, zng
from neurostore.filters.planes import _left_by_lz4 as planes_left
from neurostore.filters.planes import shuffled
from neurostore.filters.threads import cores, each

DTYPES = ["?", "i1", "u2", ">i4", "<i8", "u8", "f2", "f4", ">f8", "f8", "c8", "c16", "S1"]
SMALL_CHUNKS = 1


@pytest.fixture
def h5file() -> Iterator[h5py.File]:
    with in_memory() as file:
        yield file


def in_memory() -> h5py.File:
    return h5py.File("memory.h5", "w", driver="core", backing_store=False)


def created(
    h5file: h5py.File,
    array: np.ndarray,
    pipeline: Pipeline,
    name: str = "x",
    capacity: tuple[int, ...] | None = None,
) -> h5py.h5d.DatasetID:
    dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    pipeline.apply(dcpl, array.dtype, array.shape)
    space = h5py.h5s.create_simple(array.shape, capacity) if array.shape else scalar()
    kind = h5py.h5t.py_create(array.dtype, logical=True)
    return h5py.h5d.create(h5file.id, name.encode(), kind, space, dcpl)


def scalar() -> h5py.h5s.SpaceID:
    return h5py.h5s.create(h5py.h5s.SCALAR)


def same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert np.asarray(got, order="C").tobytes() == np.asarray(expected, order="C").tobytes()


class Counting(h5py.h5d.DatasetID):
    """A dataset that notes the chunks which are read from it."""

    offsets: list[tuple[int, ...]]

    @classmethod
    def of(cls, dataset: h5py.h5d.DatasetID) -> Counting:
        h5py.h5i.inc_ref(dataset)
        made = cls(dataset.id)
        made.offsets = []
        return made

    def read_direct_chunk(self, offset: tuple[int, ...]) -> Any:
        self.offsets.append(offset)
        return super().read_direct_chunk(offset)

    def read(self, *args: Any) -> None:
        raise AssertionError("read as a whole")


def arrays(max_side: int = 40) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=max_side)

    def filled(kind: str, shape: tuple[int, ...], seed: int, style: str) -> np.ndarray:
        rng = np.random.default_rng(seed)
        if style == "bytes":
            raw = rng.bytes(int(np.prod(shape)) * np.dtype(kind).itemsize)
            made = np.frombuffer(raw, kind).reshape(shape) if kind != "?" else None
        else:
            made = None
        if made is None:
            made = rng.integers(0, 2, shape).astype(kind)
        return np.asfortranarray(made) if style == "fortran" else made

    return st.builds(
        filled,
        st.sampled_from(DTYPES),
        shapes,
        st.integers(0, 2**32),
        st.sampled_from(["bytes", "few", "fortran"]),
    )


OPTIONS = st.sampled_from(
    [
        (None, None),
        ("lzf", None),
        ("szip", None),
        *(("gzip", n) for n in range(10)),
        *(("zstd", n) for n in (1, 6, 22)),
    ]
)


@settings(max_examples=examples(60), deadline=None)
@given(arrays(), OPTIONS, st.sampled_from([SMALL_CHUNKS, 4, 1024]))
def test_h5py_and_we_read_what_we_write(
    array: np.ndarray, options: tuple[str | None, int | None], chunk_size: int
) -> None:
    with in_memory() as h5file:
        pipeline = choose(array, *options, chunk_size)
        dataset = created(h5file, array, pipeline)
        stored = write(dataset, array, pipeline)
        h5file.flush()
        assert stored == dataset.get_storage_size()
        same(read(dataset), array)
        same(h5file["x"][()] if array.shape else np.asarray(h5file["x"][()], array.dtype), array)


@st.composite
def selections(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice | int, ...]:
    chosen: list[slice | int] = []
    for length in shape[: draw(st.integers(0, len(shape)))]:
        if length and draw(st.booleans()):
            chosen.append(draw(st.integers(-length, length - 1)))
        else:
            start, stop = draw(st.integers(-3, length + 3)), draw(st.integers(-3, length + 3))
            chosen.append(slice(start, stop, draw(st.sampled_from([None, 1, 2, 7, 50]))))
    return tuple(chosen)


@settings(max_examples=examples(60), deadline=None)
@given(arrays(), OPTIONS, st.data())
def test_a_selection_is_what_numpy_selects(
    array: np.ndarray, options: tuple[str | None, int | None], data: st.DataObject
) -> None:
    with in_memory() as h5file:
        pipeline = choose(array, *options, SMALL_CHUNKS)
        dataset = created(h5file, array, pipeline)
        write(dataset, array, pipeline)
        selection = data.draw(selections(array.shape))
        same(read(dataset, selection), np.asarray(array[selection], array.dtype))


@settings(max_examples=examples(40), deadline=None)
@given(
    arrays(max_side=12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "gzip", "lzf", "szip"]),
    st.data(),
)
def test_we_read_what_h5py_writes(
    array: np.ndarray, shuffle: bool, fletcher32: bool, compression: str | None, data: st.DataObject
) -> None:
    options: dict[str, Any] = {}
    if array.size and array.ndim:
        chunks = tuple(data.draw(st.integers(1, max(1, n))) for n in array.shape)
        options = {"chunks": chunks, "shuffle": shuffle, "fletcher32": fletcher32}
        if compression != "szip" or (array.dtype.kind in "iuf" and np.prod(chunks) >= 8):
            options["compression"] = compression
    with in_memory() as h5file:
        dataset = h5file.create_dataset("x", data=array, **options)
        same(read(dataset.id), array)
        selection = data.draw(selections(array.shape))
        same(read(dataset.id, selection), np.asarray(array[selection], array.dtype))


def test_every_order_of_the_filters_is_undone(h5file: h5py.File) -> None:
    z = h5py.h5z
    array = np.arange(1234, dtype="f8")
    orders = [
        (z.FILTER_DEFLATE, z.FILTER_SHUFFLE, z.FILTER_FLETCHER32),
        (z.FILTER_FLETCHER32, z.FILTER_DEFLATE, z.FILTER_SHUFFLE),
        (z.FILTER_FLETCHER32, z.FILTER_SHUFFLE, z.FILTER_DEFLATE),
        (z.FILTER_SHUFFLE, z.FILTER_FLETCHER32, z.FILTER_DEFLATE),
    ]
    for order in orders:
        dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        dcpl.set_chunk((500,))
        for code in order:
            dcpl.set_filter(code, z.FLAG_MANDATORY, (6,) if code == z.FILTER_DEFLATE else ())
        space = h5py.h5s.create_simple(array.shape)
        dataset = h5py.h5d.create(h5file.id, None, h5py.h5t.NATIVE_DOUBLE, space, dcpl)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
        same(read(Counting.of(dataset)), array)


def test_filters_that_a_chunk_skipped_are_not_undone(h5file: h5py.File) -> None:
    array = np.arange(300, dtype="i4")
    dataset = h5file.create_dataset(
        "x", array.shape, "i4", chunks=(100,), shuffle=True, compression="gzip", fletcher32=True
    )
    dataset.id.write_direct_chunk((0,), array[:100].tobytes(), 0b111)
    planes = np.ascontiguousarray(array[100:200].view("u1").reshape(-1, 4).T)
    dataset.id.write_direct_chunk((100,), planes.tobytes(), 0b110)
    dataset.id.write_direct_chunk((200,), zlib.compress(array[200:].tobytes()), 0b101)
    same(read(Counting.of(dataset.id)), array)
    same(dataset[:], array)


def test_a_chunk_that_does_not_shrink_is_deflated_nevertheless(h5file: h5py.File) -> None:
    array = np.frombuffer(np.random.default_rng(0).bytes(5000), "u1")
    pipeline = choose(array, "gzip", 6, 1024)
    dataset = created(h5file, array, pipeline)
    assert write(dataset, array, pipeline) < array.nbytes + 40
    assert dataset.get_chunk_info_by_coord((0,)).filter_mask == 0
    same(h5file["x"][:], array)


def test_what_was_never_written_is_the_fill_value(h5file: h5py.File) -> None:
    dataset = h5file.create_dataset(
        "x", (30, 7), ">f4", chunks=(8, 4), fillvalue=-1.5, compression="gzip"
    )
    dataset[9, 3] = 2
    same(read(dataset.id), dataset[:])
    same(read(dataset.id, (slice(None, None, 3), 3)), dataset[::3, 3])


@pytest.mark.parametrize("n", [0, 1, 5, 1000, 1024, 1025, 70_001])
@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
def test_a_dataset_that_is_longer_inside_shows_its_true_length(
    h5file: h5py.File, n: int, compression: str | None
) -> None:
    array = np.random.default_rng(n).random(n)
    capacity = (length_class(n),)
    pipeline = choose(array, *check_options(compression, None), 1024, shape=capacity)
    dataset = created(h5file, np.empty(0), pipeline, capacity=capacity)
    dataset.set_extent((n,))
    write(dataset, array, pipeline)
    same(read(dataset), array)
    same(h5file["x"][:], array)


@pytest.mark.parametrize("order", ["C", "F", "strided", "reversed", "readonly"])
def test_any_memory_layout_is_written(h5file: h5py.File, order: str) -> None:
    array = np.random.default_rng(0).random((300, 200))
    given = {
        "C": array,
        "F": np.asfortranarray(array),
        "strided": np.repeat(np.repeat(array, 2, 0), 3, 1)[::2, ::3],
        "reversed": array[::-1, ::-1].copy()[::-1, ::-1],
        "readonly": np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    }[order]
    for name, options in {"g": ("gzip", 6), "n": (None, None), "l": ("lzf", None)}.items():
        pipeline = choose(given, *options, 16)
        dataset = created(h5file, given, pipeline, name)
        write(dataset, given, pipeline)
        same(h5file[name][:], array)
        same(read(dataset), array)


def test_a_million_values(h5file: h5py.File) -> None:
    array = np.sort(np.random.default_rng(0).random(1_000_000)) * 100
    pipeline = choose(array, "gzip", 6, 1024)
    dataset = created(h5file, array, pipeline)
    write(dataset, array, pipeline)
    assert dataset.get_num_chunks() == 16
    same(read(dataset), array)
    same(h5file["x"][500_000:500_100], array[500_000:500_100])


def test_a_slice_reads_only_the_chunks_it_touches(h5file: h5py.File) -> None:
    array = np.arange(1_000_000.0).reshape(1000, 1000)
    pipeline = choose(array, "gzip", 1, 1024)
    assert pipeline.chunks == (250, 250)
    dataset = created(h5file, array, pipeline)
    write(dataset, array, pipeline)
    for selection, chunks in [
        ((5, 5), 1),
        ((slice(0, 250), slice(0, 250)), 1),
        ((249,), 4),
        ((slice(249, 251), 3), 2),
        ((slice(None), 999), 4),
        ((slice(0, 1000, 600), slice(1, 2)), 2),
        ((slice(7, 7),), 0),
        (None, 16),
    ]:
        counting = Counting.of(dataset)
        same(read(counting, selection), np.asarray(array[selection or ()]))
        assert len(counting.offsets) == len(set(counting.offsets)) == chunks


def damaged(dataset: h5py.h5d.DatasetID, offset: tuple[int, ...], at: int) -> None:
    mask, data = dataset.read_direct_chunk(offset)
    broken = bytearray(data)
    broken[at] ^= 0x10
    dataset.write_direct_chunk(offset, bytes(broken), mask)


@pytest.mark.parametrize(("compression", "n"), [*product(["gzip", None, "lzf"], [1000, 200_000])])
def test_a_flipped_bit_is_reported_with_its_place(
    h5file: h5py.File, compression: str | None, n: int
) -> None:
    array = np.random.default_rng(0).random(n)
    pipeline = choose(array, *check_options(compression, 6), 1024)
    dataset = created(h5file, array, pipeline, "weights")
    write(dataset, array, pipeline)
    last = (n - 1) // pipeline.chunks[0] * pipeline.chunks[0]
    for at in (0, 7, 3001, -1, -4):
        damaged(dataset, (last,), at)
        with pytest.raises(DamagedError, match="/weights") as caught:
            read(dataset)
        assert compression == "lzf" or f"({last},)" in str(caught.value)
        if n > 100_000:
            same(read(dataset, (slice(0, 10),)), array[:10])
        damaged(dataset, (last,), at)
    same(read(dataset), array)


@settings(max_examples=examples(40), deadline=None)
@given(st.sampled_from([None, "gzip"]), st.booleans(), st.integers(1, 300), st.data())
def test_no_change_of_a_byte_gives_other_values(
    compression: str | None, shuffle: bool, n: int, data: st.DataObject
) -> None:
    array = np.random.default_rng(n).integers(0, 1000, n)
    pipeline = Pipeline(compression, 6, shuffle, chunks=(n,))
    with in_memory() as h5file:
        dataset = created(h5file, array, pipeline)
        size = write(dataset, array, pipeline)
        damaged(dataset, (0,), data.draw(st.integers(0, size - 1)))
        with pytest.raises(DamagedError):
            read(dataset)
        with pytest.raises(OSError, match="filter returned failure"):
            h5file["x"][:]


def test_a_chunk_cut_short_is_damage(h5file: h5py.File) -> None:
    array = np.arange(1000.0)
    pipeline = Pipeline("gzip", 6, shuffle=True, chunks=(1000,))
    dataset = created(h5file, array, pipeline)
    for stored in (b"", b"abc", zlib.compress(b"short"), bytes(9000), bytes(90_000)):
        if stored:
            dataset.write_direct_chunk((0,), stored)
            with pytest.raises(DamagedError, match="chunk at"):
                read(dataset)
        unchecked = h5file.create_dataset(None, (1000,), "f8", chunks=(1000,), compression="gzip")
        if stored:
            unchecked.id.write_direct_chunk((0,), stored)
            with pytest.raises(DamagedError, match="chunk at"):
                read(unchecked.id)


def test_types_that_need_conversion_are_left_to_hdf5(h5file: h5py.File) -> None:
    narrow = h5py.h5t.STD_I16LE.copy()
    narrow.set_precision(12)
    padded = h5py.h5t.C_S1.copy()
    padded.set_strpad(h5py.h5t.STR_SPACEPAD)
    for name, kind in {"narrow": narrow, "padded": padded}.items():
        dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        dcpl.set_chunk((4,))
        space = h5py.h5s.create_simple((4,))
        dataset = h5py.h5d.create(h5file.id, name.encode(), kind, space, dcpl)
        dataset.write_direct_chunk((0,), b"\xff\x0fab \x00 c"[: 4 * kind.get_size()])
        same(read(dataset), h5file[name][:])


def test_wrong_selections_are_refused(h5file: h5py.File) -> None:
    dataset = h5file.create_dataset("x", data=np.arange(10.0), chunks=(5,)).id
    with pytest.raises(ValidationError, match="at most 1"):
        read(dataset, (0, 0))
    with pytest.raises(ValidationError, match="step of 1 or more"):
        read(dataset, (slice(None, None, -1),))
    with pytest.raises(IndexError):
        read(dataset, (10,))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("gzip", 6), ("gzip", 6)),
        (("gzip", None), ("gzip", 4)),
        (("gzip", np.int64(0)), ("gzip", 0)),
        (("lzf", 6), ("lzf", None)),
        (("szip", 6), ("szip", None)),
        ((None, 6), (None, None)),
    ],
)
def test_options(given: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    assert check_options(*given) == expected


@pytest.mark.parametrize(
    "wrong", [("zip", 1), ("gzip", 10), ("gzip", -1), ("gzip", True), (1, 1), ("zstd", 0)]
)
def test_wrong_options_say_what_is_allowed(wrong: tuple[Any, Any]) -> None:
    with pytest.raises(
        ValidationError, match=r"'gzip', 'lzf', 'szip', 'zstd' or None|from [01] .* to "
    ):
        check_options(*wrong)


def test_szip_gives_way_where_it_cannot_encode() -> None:
    assert choose(np.zeros(1000), "szip", None, 1024).codec == "szip"
    assert choose(np.zeros(1000, "c16"), "szip", None, 1024).codec == "gzip"
    assert choose(np.zeros(2000, "S1"), "szip", None, 1024).codec == "gzip"
    assert choose(np.zeros(3), "szip", None, 1024, shape=(3,)).codec == "gzip"


def test_the_filters_stand_in_the_order_of_h5py(h5file: h5py.File) -> None:
    array = np.arange(1000.0)
    ours = created(h5file, array, Pipeline("gzip", 6, shuffle=True, chunks=(1000,)))
    theirs = h5file.create_dataset(
        "y", data=array, chunks=(1000,), shuffle=True, fletcher32=True, compression="gzip"
    ).id
    filters = [
        [dcpl.get_filter(n)[0] for n in range(dcpl.get_nfilters())]
        for dcpl in (ours.get_create_plist(), theirs.get_create_plist())
    ]
    assert filters[0] == filters[1]


def test_tiny_arrays_live_in_the_object_header(h5file: h5py.File) -> None:
    for array, layout in [
        (np.arange(128.0), h5py.h5d.COMPACT),
        (np.array(1.5), h5py.h5d.COMPACT),
        (np.arange(129.0), h5py.h5d.CHUNKED),
        (np.zeros((0, 5)), h5py.h5d.CONTIGUOUS),
    ]:
        dataset = created(h5file, array, choose(array, "gzip", 6, 1024), str(array.size))
        assert dataset.get_create_plist().get_layout() == layout


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=4).map(tuple),
    st.sampled_from([1, 2, 16]),
    st.sampled_from([1, 7, 64, 1024]),
)
def test_chunk_shapes_keep_their_promise(
    shape: tuple[int, ...], itemsize: int, chunk_size: int
) -> None:
    chunks = chunk_shape(shape, itemsize, chunk_size)
    assert all(1 <= chunk <= length for chunk, length in zip(chunks, shape, strict=True))
    assert np.prod(chunks) <= 64 * chunk_size
    for chunk, length in zip(chunks, shape, strict=True):
        assert -(-length // chunk) * chunk - length < -(-length // chunk)
    if np.prod(shape) <= 64 * chunk_size:
        assert chunks == shape


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "1"])
def test_a_wrong_chunk_size_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="chunk_size"):
        choose(np.arange(1000.0), "gzip", 6, wrong)


@given(st.integers(0, 10**9))
def test_length_classes_hold_the_length_with_little_to_spare(n: int) -> None:
    assert n <= length_class(n) <= max(1, n * 1.125)
    assert length_class(length_class(n)) == length_class(n)


def test_equal_settings_are_equal_whatever_the_encoder() -> None:
    choices = Choice(True, ISAL), Choice(True, libdeflate(7))
    one, other = (Pipeline("gzip", 6, True, chunks=(5,), choice=choice) for choice in choices)
    assert one == other
    assert hash(one) == hash(other)


def stored_sizes(array: np.ndarray, level: int) -> tuple[int, int]:
    """Ours, and that of h5py with its default filters: same chunks, no shuffle."""
    with in_memory() as h5file:
        pipeline = choose(array, "gzip", level, 1024)
        ours = write(created(h5file, array, pipeline), array, pipeline)
        theirs = h5file.create_dataset(
            "y",
            data=array,
            chunks=pipeline.chunks,
            compression="gzip",
            compression_opts=level,
            fletcher32=True,
        )
        h5file.flush()
        return ours, theirs.id.get_storage_size()


def synthetic() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    adjacency = rng.random((300, 300)) < 0.1
    return {
        "uniform": rng.random(50_000),
        "normal float32": rng.normal(size=50_000).astype("f4"),
        "normal float16": rng.normal(size=50_000).astype("f2"),
        "sorted times": np.sort(rng.random(50_000)),
        "ids": rng.integers(0, 1000, 50_000),
        "1,000 times": np.sort(rng.random(1000)),
        "1,000 ids": rng.integers(0, 100, 1000),
        "adjacency int64": adjacency.astype("i8"),
        "adjacency bool": adjacency,
        "sparse weights": np.where(adjacency, rng.random((300, 300)), 0),
        "coin": rng.integers(0, 2, (300, 300)),
        "constant": np.full(50_000, 0.1),
        "repeated ids": np.repeat(rng.integers(2**53, 2**60, 500), 100),
        "one of 448 ids": rng.choice(rng.integers(2**53, 2**60, 448), 20_000),
        "grid times": np.arange(50_000) * 1e-4,
        "noise bytes": rng.integers(0, 256, 50_000, dtype="u1"),
    }


@pytest.mark.parametrize("level", [1, 4, 6, 9])
@pytest.mark.parametrize("name", synthetic())
def test_a_level_keeps_its_meaning(name: str, level: int) -> None:
    ours, theirs = stored_sizes(synthetic()[name], level)
    assert ours <= 1.05 * theirs + 16


def recorded(folder: Path) -> dict[str, np.ndarray]:
    brian = np.load(folder / "brian2_cuba_4000.npz")
    spyx = np.load(folder / "spyx_digits_training.npz")
    edges = np.loadtxt(folder / "larva_full_edgelist.csv", delimiter=",", max_rows=60_000)
    neurons = np.unique(edges[:, :2])
    matrix = np.zeros((len(neurons),) * 2)
    matrix[tuple(np.searchsorted(neurons, edges[:, :2]).T)] = edges[:, 2]
    found = {f"brian2 {name}": brian[name][:100_000] for name in brian if brian[name].size > 200}
    found |= {f"spyx {name}": spyx[name][:8] for name in spyx if spyx[name].size > 2000}
    with h5py.File(folder / "sonata_9cells_membrane_potential.h5") as h5file:
        h5file.visititems(
            lambda name, item: (
                found.update({f"sonata {name}": item[:10_000]})
                if isinstance(item, h5py.Dataset) and item.ndim == 2
                else None
            )
        )
    with h5py.File(folder / "bmtk_lgn_spikes.h5") as h5file:
        h5file.visititems(
            lambda name, item: (
                found.update({f"lgn {name}": item[:100_000]})
                if isinstance(item, h5py.Dataset) and item.size > 10_000
                else None
            )
        )
    trains = {f"{name}, 1,000 of it": x[500:1500] for name, x in found.items() if x.ndim == 1}
    connectome = {"larva weights": matrix[:700, :700], "larva edges": matrix[:700, :700] > 0}
    return found | trains | connectome | {"larva pairs": edges[:, :2].astype("i8")}


@pytest.mark.parametrize("level", [1, 6])
def test_a_level_keeps_its_meaning_on_recordings(real_data: Path, level: int) -> None:
    worse = {}
    for name, array in recorded(real_data).items():
        if array.nbytes > 1024:
            ours, theirs = stored_sizes(array, level)
            if ours > 1.05 * theirs + 16:
                worse[name] = ours / theirs
    assert not worse


@pytest.mark.parametrize("level", range(10))
def test_a_record_is_never_larger_than_h5py_makes_it(real_data: Path, level: int) -> None:
    """Beside its own defaults at the level: no shuffle, chunks as it guesses them."""
    found = recorded(real_data)
    records = {
        "spikes": ["brian2 spike_t", "brian2 spike_i"],
        "connectome": ["larva edges", "larva weights"],
        "states": ["brian2 v_mV", "spyx hidden_spikes"],
    }
    for names in records.values():
        ours = theirs = 0
        for array in (
            found[name][:700, :300] if found[name].ndim == 2 else found[name] for name in names
        ):
            with in_memory() as h5file:
                pipeline = choose(array, "gzip", level, 1024)
                mine = write(created(h5file, array, pipeline), array, pipeline)
                other = h5file.create_dataset(
                    "y", data=array, compression="gzip", compression_opts=level, fletcher32=True
                )
                h5file.flush()
                assert mine <= 1.05 * other.id.get_storage_size()
                ours, theirs = ours + mine, theirs + other.id.get_storage_size()
        assert ours <= theirs


def test_a_forked_child_has_threads_of_its_own(h5file: h5py.File) -> None:
    code = """
import os, h5py, numpy as np
from neurostore.filters import choose, read, write
array = np.arange(300_000.0)
def trip():
    with h5py.File("memory.h5", "w", driver="core", backing_store=False) as h5file:
        pipeline = choose(array, "gzip", 1, 1024)
        dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        pipeline.apply(dcpl, array.dtype, array.shape)
        space = h5py.h5s.create_simple(array.shape)
        dataset = h5py.h5d.create(h5file.id, b"x", h5py.h5t.NATIVE_DOUBLE, space, dcpl)
        write(dataset, array, pipeline)
        assert (read(dataset) == array).all()
trip()
import atexit
atexit.register(trip)
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        trip()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


PLANES: dict[str, np.ndarray] = {
    "small integers": np.random.default_rng(0).integers(0, 2, (200, 300)),
    "negative ones": np.random.default_rng(0).integers(-2, 2, (200, 300)),
    "two bytes of eight": np.random.default_rng(0).integers(0, 60_000, (200, 300)),
    "middle bytes": np.random.default_rng(0).integers(0, 256, (200, 300)) << 24,
    "noise": np.random.default_rng(0).random((200, 300)),
    "noise of one power": 1 + np.random.default_rng(0).random((200, 300)),
    "noise float32": np.random.default_rng(0).random((300, 300)).astype("f4"),
    "noise, swapped": np.random.default_rng(0).random((200, 300)).astype(">f8"),
    "integers, swapped": np.random.default_rng(0).integers(0, 2, (200, 300)).astype(">i8"),
    "float16 in float32": np.random.default_rng(0).random((200, 300)).astype("f2").astype("f4"),
    "noise below zeros": np.random.default_rng(0).integers(0, 2**48, (200, 300)),
    "zeros": np.zeros((200, 300)),
    "minus one": np.full((200, 300), -1),
    "one number": np.full((200, 300), np.pi),
    "complex": np.random.default_rng(0).random((200, 300)) + 0j,
    "large planes": np.random.default_rng(0).integers(0, 2**52, 200_000),
}


@pytest.mark.parametrize("encoder", [ISAL, RLE, zng(6), libdeflate(5)], ids=lambda e: e.name)
@pytest.mark.parametrize("name", PLANES)
@pytest.mark.parametrize("edge", [False, True])
def test_planes_are_one_plain_stream(name: str, encoder: Encoder, edge: bool) -> None:
    array = PLANES[name]
    chunks = tuple(n + 3 for n in array.shape) if edge else array.shape
    choice = Choice(True, encoder, noise=6, noise_share=0.9)
    with in_memory() as h5file:
        pipeline = Pipeline("gzip", 6, True, chunks=chunks, choice=choice)
        dataset = created(h5file, array, pipeline, capacity=chunks)
        write(dataset, array, pipeline)
        raw = dataset.read_direct_chunk((0,) * array.ndim)[1]
        planes = zlib.decompress(raw[:-4])
        whole = np.zeros(chunks, array.dtype)
        whole[tuple(map(slice, array.shape))] = array
        assert planes == whole.reshape(-1, 1).view(np.uint8).T.tobytes()
        same(h5file["x"][()], array)
        same(read(dataset), array)
        part = (slice(3, 150, 7), slice(10, 250))[: array.ndim]
        same(read(dataset, part), array[part])


@pytest.mark.parametrize("dtype", ["f8", ">f8", "f4", "u2", "i8"])
def test_planes_that_lz4_leaves_are_those_of_the_shuffle(dtype: str) -> None:
    block = (np.random.default_rng(3).random((300, 200)) * 1e4).astype(dtype)
    for form in (block, np.asfortranarray(block), np.repeat(block, 2, axis=1)[::-1, ::2]):
        left = planes_left(form, form.shape)
        assert bool(left) == (dtype in ("f8", "f4", "i8"))  # noise first, and something to pack
        for found, plane in zip(left, shuffled(form, form.shape), strict=False):
            assert (found == plane.reshape(-1)).all()
    assert not planes_left(block[:7], block.shape)  # an edge is filled up
    assert not planes_left(np.zeros((300, 200), dtype), (300, 200))


@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_dense_weights_are_noise_but_for_their_exponents(h5file: h5py.File, dtype: str) -> None:
    weights = np.random.default_rng(4).normal(size=(500, 250)).astype(dtype)
    pipeline = choose(weights, "gzip", 6, 1024)
    assert pipeline.choice is not None
    assert pipeline.choice.noise >= weights.itemsize - 2
    stored = write(created(h5file, weights, pipeline), weights, pipeline)
    assert stored < 0.97 * len(zlib.compress(weights, 6))


def test_noise_in_the_sample_does_not_bloat_chunks_that_shrink(h5file: h5py.File) -> None:
    noise = np.random.default_rng(0).random((500, 250))
    mixed = np.concatenate([np.arange(125_000.0).reshape(500, 250), noise])
    pipeline = choose(noise, "gzip", 6, 1024)
    assert pipeline.choice is not None
    assert pipeline.choice.noise > 3
    stored = write(created(h5file, mixed, pipeline), mixed, pipeline)
    alone = write(created(h5file, noise, pipeline, "y"), noise, pipeline)
    assert stored - alone < 0.3 * alone


@pytest.mark.parametrize("name", ["small integers", "noise", "noise below zeros"])
def test_planes_that_look_right_and_are_not_are_damage(h5file: h5py.File, name: str) -> None:
    array = PLANES[name]
    pipeline = Pipeline("gzip", 6, True, fletcher32=False, chunks=array.shape)
    choice = Choice(True, ISAL, noise=6, noise_share=0.5)
    pipeline = replace(pipeline, choice=choice)
    dataset = created(h5file, array, pipeline)
    write(dataset, array, pipeline)
    raw = bytearray(dataset.read_direct_chunk((0, 0))[1])
    for place in range(0, len(raw), len(raw) // 40):
        broken = raw.copy()
        broken[place] ^= 0x10
        dataset.write_direct_chunk((0, 0), bytes(broken))
        try:
            found = read(dataset)
        except DamagedError:
            continue
        same(found, array)


@given(st.integers(0, 600_000), st.integers(0, 2**32), st.sampled_from([None, 0, 255]))
@settings(max_examples=examples(30), deadline=None)
def test_the_checksum_is_that_of_hdf5(n: int, seed: int, byte: int | None) -> None:
    data = np.random.default_rng(seed).integers(0, 256, n).astype("u1")
    if byte is not None:
        data[:] = byte
    expected = int.from_bytes(Fletcher32().encode(data)[-4:], "little") if n else 0
    assert fletcher32(data) == expected


def stored_variety(h5file: h5py.File) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "noise": rng.random((300, 400)),
        "ids": rng.integers(0, 9, 100_000),
        "few": np.arange(5.0),
        "scalar": np.array(1.5),
        "short": rng.integers(0, 9, 2_000),
        "none": np.empty((0, 3)),
    }
    for name, array in arrays.items():
        pipeline = choose(array, "gzip", 6, 1024)
        write(created(h5file, array, pipeline, name), array, pipeline)
    h5file.create_dataset("lzf", data=arrays["ids"], compression="lzf")
    return arrays | {"lzf": arrays["ids"]}


def test_many_datasets_are_read_as_one_by_one(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as h5file:
        arrays = stored_variety(h5file)
    keys: list[Any] = [None, (), (slice(1, None, 3),), (-1,), (slice(2, 90), 3)]
    wanted = [(n, key) for n, a in arrays.items() for key in keys if len(key or ()) <= a.ndim]
    wanted = [w for w in wanted if arrays[w[0]].size or not w[1]]
    outs = [np.empty_like(arrays[name][key or ()], order="F") for name, key in wanted]
    outs = [np.asarray(out) for out in outs]
    with h5py.File(tmp_path / "x.h5") as h5file:
        read_many(
            (h5file[name].id, key, out) for (name, key), out in zip(wanted, outs, strict=True)
        )
    for (name, key), out in zip(wanted, outs, strict=True):
        same(out, np.asarray(arrays[name][key or ()]))


def test_what_is_begun_in_vain_is_over_at_the_end() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.001)  # what is not waited for would end after the stream
        ended.append(number)

    with closing(each(work, zip(range(1_000)), 2**30, 1)) as stream:
        next(stream)
    assert sorted(begun) == sorted(ended)
    # Threads may swap neighbours, and one that is given up may lie between two that are not.
    assert len(set(ended)) == len(ended) >= 1
    assert max(ended) <= 8 * cores() + 1


def test_the_caller_does_its_share() -> None:
    here = threading.get_ident()
    who: list[int] = []

    def work(number: int) -> int:
        who.append(threading.get_ident())
        time.sleep(0.001)
        return number

    assert list(each(work, zip(range(100)), 2**30, 1)) == list(range(100))
    assert here in who
    # As many as there are processors, the caller among them: more would be in each other's way.
    assert len(set(who)) <= cores()


def test_what_fails_in_a_thread_is_raised_in_its_turn() -> None:
    def work(number: int) -> int:
        if number == 7:
            raise ValueError("the seventh")
        return number

    done: list[int] = []
    with pytest.raises(ValueError, match="the seventh"):
        done.extend(each(work, zip(range(100)), 2**30, 1))
    stream = each(work, zip(range(100)), 2**30, 1)
    assert [next(stream) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="the seventh"):
        next(stream)


def test_nobody_waits_for_the_end_of_what_another_has_begun() -> None:
    gate = threading.Event()
    begun = threading.Semaphore(0)

    def wait(number: int) -> None:
        begun.release()
        gate.wait()

    other = threading.Thread(target=lambda: list(each(wait, zip(range(50)), 2**30, 1)))
    other.start()
    for _ in range(cores()):
        begun.acquire()
    late = threading.Timer(20, gate.set)
    late.start()
    try:
        assert list(each(lambda n: n, zip(range(5)), 2**30, 1)) == list(range(5))
        assert not gate.is_set()
    finally:
        late.cancel()
        gate.set()
        other.join()


def test_an_interrupt_of_the_caller_is_raised_at_once() -> None:
    here = threading.get_ident()

    def work(number: int) -> int:
        if threading.get_ident() == here and number:
            raise KeyboardInterrupt
        time.sleep(0.001)
        return number

    with pytest.raises(KeyboardInterrupt):
        list(each(work, zip(range(100)), 2**30, 1))


def test_an_array_that_does_not_fit_is_refused(h5file: h5py.File) -> None:
    stored_variety(h5file)
    for wrong in (np.empty(99_999, "i8"), np.empty(100_000, "i4")):
        with pytest.raises(DamagedError, match="ids: int64 of shape"):
            read_many([(h5file["ids"].id, None, wrong)])


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_is_found_past_hdf5(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="v110") as h5file:
        array = stored_variety(h5file)["noise"]
        start = h5file["noise"].id.get_chunk_info(1).byte_offset
        size = h5file["noise"].id.get_chunk_info(1).size
    with h5py.File(path) as h5file:
        same(read(h5file["noise"].id), array)
        with path.open("r+b") as stream:
            if damage == "flip":
                stream.seek(start + size // 2)
                byte = stream.read(1)[0]
                stream.seek(start + size // 2)
                stream.write(bytes([byte ^ 1]))
            else:
                stream.truncate(start + size // 2)
        with pytest.raises(DamagedError, match=r"/noise: chunk at \(.*(checksum|file ends)"):
            read(h5file["noise"].id)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("level", [1, 3, 19])
def test_we_read_zstd_of_others(h5file: h5py.File, shuffle: bool, level: int) -> None:
    array = np.random.default_rng(0).integers(0, 99, (300, 400))
    h5file.create_dataset(
        "x",
        data=array,
        chunks=(77, 100),
        shuffle=shuffle,
        fletcher32=True,
        **hdf5plugin.Zstd(clevel=level),
    )
    same(read(h5file["x"].id), array)
    same(read(h5file["x"].id, (slice(5, 99, 4), 7)), array[5:99:4, 7])


def test_netcdf4_and_h5netcdf_read_zstd(tmp_path: Path) -> None:
    code = """
import sys, netCDF4, numpy as np
with netCDF4.Dataset(sys.argv[1]) as nc:
    assert (nc["learning_traces/plasticity/stdp_1.0/changes"][:].data == np.load(sys.argv[2])).all()
"""
    array = np.random.default_rng(0).normal(size=(300, 300))
    np.save(tmp_path / "x.npy", array)
    with neurostore.HDF5Storage(tmp_path / "x.h5", compression="zstd") as storage:
        storage.store_plasticity_trace(1.0, array, "stdp")
    group = "learning_traces/plasticity/stdp_1.0"
    with xr.open_dataset(tmp_path / "x.h5", group=group, engine="h5netcdf") as ds:
        assert (ds.changes == array).all()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tmp_path / "x.h5", tmp_path / "x.npy"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HDF5_PLUGIN_PATH": hdf5plugin.PLUGINS_PATH},
    )
    assert done.returncode == 0, done.stderr


def test_a_frame_that_promises_too_much_is_damage(h5file: h5py.File) -> None:
    array = np.zeros(1000)
    pipeline = Pipeline("zstd", 3, False, fletcher32=False, chunks=(1000,))
    dataset = created(h5file, array, pipeline)
    for size in (8100, 2**40):
        frame = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"
        dataset.write_direct_chunk((0,), frame)
        with pytest.raises(DamagedError, match="expected at most"):
            read(dataset)
    for frame in (b"", b"noise that is no frame", b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00"):
        dataset.write_direct_chunk((0,), frame or b"\0")
        with pytest.raises(DamagedError, match="frame"):
            read(dataset)


def test_zstd_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["hdf5plugin"] = None
import neurostore
try:
    neurostore.open(sys.argv[1], compression="zstd")
except ImportError as error:
    assert "pip install '.[zstd]'" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tmp_path / "x.h5"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "x.h5").exists()
