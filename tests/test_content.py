"""The content hash: made again by an implementation that follows ``docs/layout.md`` alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import neurostore
from neurostore import content
from neurostore.schema import KINDS, Kind
from tests.samples import record, variants

SKIPPED = {
    *("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"),
    *("_Netcdf4Dimid", "_Netcdf4Coordinates", "content_hash"),
}


def by_the_document(part: h5py.Group) -> str:
    """The hash of a part, with nothing but h5py and the text of the document."""
    items = [attributes("", part)]
    shapes = b"".join(
        b"\0" + name.encode() + b"\0" + comma(part[name].shape) for name in sorted(part)
    )
    items.append(b"sizes" + shapes)
    for name, dataset in part.items():
        link = name.encode()
        items.append(attributes(name, dataset))
        dims = [] if dataset.is_scale else [dim[0].name.rpartition("/")[2] for dim in dataset.dims]
        items.append(b"\0".join([b"variable", link, dataset.dtype.str.encode(), *map(utf8, dims)]))
        if dataset.chunks is None and dataset.id.get_storage_size():
            items.append(b"\0".join([b"values", link, np.asarray(dataset[()]).tobytes()]))
        if dataset.chunks is not None:
            for number in range(dataset.id.get_num_chunks()):
                offset = dataset.id.get_chunk_info(number).chunk_offset
                _, stored = dataset.id.read_direct_chunk(offset)
                items.append(b"\0".join([b"chunk", link, comma(offset), stored[-4:]]))
    digests = [hashlib.blake2b(item, digest_size=16).digest() for item in items]
    return f"{sum(int.from_bytes(d, 'little') for d in digests) % 2**128:032x}"


def utf8(text: str) -> bytes:
    return text.encode()


def comma(numbers: tuple[int, ...]) -> bytes:
    return ",".join(map(str, numbers)).encode()


def attributes(owner: str, item: Any) -> bytes:
    fields = [b"attributes", owner.encode()]
    for name in sorted(set(item.attrs) - SKIPPED):
        value = item.attrs[name]
        if isinstance(value, str | bytes | np.bytes_):
            text = value.encode() if isinstance(value, str) else bytes(value)
            fields += [name.encode(), b"text", text.rstrip(b"\0")]
        else:
            array = np.asarray(value)
            form = f"{array.dtype.str}[{comma(array.shape).decode()}]"
            fields += [name.encode(), form.encode(), array.tobytes()]
    return b"\0".join(fields)


def hashes(path: Path) -> dict[str, tuple[str, str]]:
    """What every part carries, and what it should carry."""
    found: dict[str, tuple[str, str]] = {}

    def look(name: str, item: Any) -> None:
        if "content_hash" in item.attrs:
            kept = item.attrs["content_hash"]
            text = kept if isinstance(kept, str) else kept.decode()
            found[name] = text, by_the_document(item)

    with h5py.File(path) as h5file:
        h5file.visititems(look)
    return found


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_every_part_carries_the_hash_of_the_document(kind: Kind, tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "a.h5", durability="process") as store:
        for variant in range(variants(kind)):
            for dtype in "bfcU":
                store.store(record(kind, variant=variant, dtype=dtype))
        count = len(store.ids())
    before = hashes(tmp_path / "a.h5")
    assert len(before) >= count
    assert all(kept == made for kept, made in before.values())
    with neurostore.open(tmp_path / "a.h5", durability="process") as store:
        store.compact()
    assert hashes(tmp_path / "a.h5") == before


@pytest.mark.parametrize("compression", ["gzip", "lzf", "szip", None])
def test_chunks_count_by_their_checksums(compression: str | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with neurostore.open(tmp_path / "a.h5", compression=compression, chunk_size=2) as store:
        store.store(neurostore.plasticity_trace(rng.random((40, 30)), "stdp", timestamp=1.0))
        for length in (300, 301, 900):
            ids = rng.integers(0, 9, length)
            store.store(neurostore.spike_train(np.arange(length) / 7, ids, timestamp=length))
    found = hashes(tmp_path / "a.h5")
    assert len({kept for kept, _ in found.values()}) == 4
    assert all(kept == made for kept, made in found.values())


def change_value(part: h5py.Group) -> None:
    part["timestamp"][()] = 3.0


def change_chunk(part: h5py.Group) -> None:
    part["changes"][3, 3] = 8.0


def change_attribute(part: h5py.Group) -> None:
    part.attrs["plasticity_type"] = "other"


def change_attribute_of_a_variable(part: h5py.Group) -> None:
    part["changes"].attrs["long_name"] = "other"


def rename_a_dimension(part: h5py.Group) -> None:
    part.move("pre", "before")


def add_a_dataset(part: h5py.Group) -> None:
    part["more"] = 1


@pytest.mark.parametrize(
    "change",
    [
        change_value,
        change_chunk,
        change_attribute,
        change_attribute_of_a_variable,
        rename_a_dimension,
        add_a_dataset,
    ],
    ids=lambda change: change.__name__,
)
def test_any_change_changes_it(change: Any, tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "a.h5", durability="process") as store:
        changes = np.arange(1200.0).reshape(40, 30)
        store.store(neurostore.plasticity_trace(changes, "stdp", timestamp=1.0))
    with h5py.File(tmp_path / "a.h5", "r+") as h5file:
        part = h5file["learning_traces/plasticity/stdp_1.0"]
        assert content.of_group(part.id) == content.read(part.id)
        change(part)
        assert content.of_group(part.id) != content.read(part.id)


def test_a_part_grows_by_taking_items_off_and_adding_others(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "a.h5", durability="process") as store:
        changes = np.arange(1200.0).reshape(40, 30)
        store.store(neurostore.plasticity_trace(changes, "stdp", timestamp=1.0))
    with h5py.File(tmp_path / "a.h5", "r+") as h5file:
        part = h5file["learning_traces/plasticity/stdp_1.0"]
        ((offset, old),) = content.chunks_of(part["changes"].id)
        part["changes"][0, 0] = 5.0
        h5file.flush()
        ((_, new),) = content.chunks_of(part["changes"].id)
        kept = content.read(part.id)
        assert kept is not None
        difference = content.chunk(b"changes", offset, new) - content.chunk(b"changes", offset, old)
        content.fill(part.id, kept + difference)
        assert content.of_group(part.id) == content.read(part.id)
        assert by_the_document(part) == f"{content.read(part.id):032x}"


def test_names_that_look_like_the_text_of_the_hash(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "a.h5", durability="process") as store:
        spikes = neurostore.spike_train(np.arange(400) / 7, np.arange(400), timestamp=1.0)
        store.store(spikes.assign_coords({"-1": ("spike", np.arange(400)), "/": 1.0, ",0": 2.0}))
    assert all(kept == made for kept, made in hashes(tmp_path / "a.h5").values())
