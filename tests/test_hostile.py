"""Files made to reach other files, to run code, or to fill the memory: refused, by name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import neurostore
from neurostore.errors import (
    DamagedError,
    HDF5StorageError,
    NotAStoreError,
    RecordNotFoundError,
    RefusedError,
    StoreError,
)
from neurostore.verify import verify

STDP = "learning_traces/plasticity/stdp_1.0"
SECRET = np.arange(9.0).reshape(3, 3) + 1e6
ZSTD = 32015
#: One of the numbers for tests: no plugin that another library brings along has it.
NOBODYS = 511


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound record beside a file that is none of anybody's business."""
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        store.store(neurostore.plasticity_trace(np.eye(3), "hebb", timestamp=2.0))
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["changes"] = SECRET
        secret.create_group("group")["changes"] = SECRET
    SECRET.tofile(tmp_path / "secret.bin")
    return tmp_path / "run.h5"


def soft_record(h5file: h5py.File) -> None:
    h5file[STDP] = h5py.SoftLink("/learning_traces/plasticity/hebb_2.0")


def external_record(h5file: h5py.File) -> None:
    h5file[STDP] = h5py.ExternalLink("secret.h5", "/group")


def external_bare_record(h5file: h5py.File) -> None:
    h5file[STDP] = h5py.ExternalLink("secret.h5", "/changes")


def external_variable(h5file: h5py.File) -> None:
    h5file.create_group(STDP)["changes"] = h5py.ExternalLink("secret.h5", "/changes")


def soft_variable(h5file: h5py.File) -> None:
    target = "/learning_traces/plasticity/hebb_2.0/changes"
    h5file.create_group(STDP)["changes"] = h5py.SoftLink(target)


def external_storage(h5file: h5py.File) -> None:
    values = [(str(Path(h5file.filename).with_name("secret.bin")), 0, h5py.h5f.UNLIMITED)]
    h5file.create_group(STDP).create_dataset("changes", (3, 3), "f8", external=values)


def external_timestamp(h5file: h5py.File) -> None:
    group = h5file.create_group(STDP)
    group["changes"] = np.eye(3)
    group["timestamp"] = h5py.ExternalLink("secret.h5", "/changes")


def virtual(h5file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 3), "f8")
    layout[:] = h5py.VirtualSource("secret.h5", "changes", (3, 3))
    h5file.create_group(STDP).create_virtual_dataset("changes", layout)


def foreign_filter(h5file: h5py.File) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((3, 3))
    group = h5file.create_group(STDP)
    # As long as HDF5 may do without it, the filter need not be there when the dataset is made.
    properties.set_filter(NOBODYS, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((3, 3))
    made = h5py.h5d.create(group.id, b"changes", h5py.h5t.IEEE_F64LE, space, properties)
    made.write_direct_chunk((0, 0), b"\0" * 32)


def endless(h5file: h5py.File) -> None:
    group = h5file.create_group(STDP)
    group.create_dataset("changes", (2**20, 2**20), "f8", chunks=(64, 64), fillvalue=7.0)


def one_endless_chunk(h5file: h5py.File) -> None:
    group = h5file.create_group(STDP)
    made = group.create_dataset(
        "changes", (2**14, 2**14), "f8", chunks=(2**14, 2**14), compression="gzip"
    )
    made.id.write_direct_chunk((0, 0), b"\0" * 64)


def by_address(store: neurostore.Store) -> object:
    return store.open_group(STDP).load()


def by_id(store: neurostore.Store) -> object:
    return store.retrieve("stdp_1.0").load()


@pytest.mark.parametrize(
    "trap",
    [
        soft_record,
        external_record,
        external_bare_record,
        external_variable,
        soft_variable,
        external_storage,
        external_timestamp,
        virtual,
        foreign_filter,
        endless,
        one_endless_chunk,
    ],
    ids=lambda trap: trap.__name__,
)
def test_a_trap(trap: Callable[[h5py.File], None], path: Path) -> None:
    with h5py.File(path, "r+") as h5file:
        trap(h5file)
        del h5file["catalogue"]  # so that it is found
    beside = {name: (path.parent / name).read_bytes() for name in ("secret.h5", "secret.bin")}
    with neurostore.open(path, durability="process") as store:
        with pytest.raises(RefusedError, match=STDP if "record" not in trap.__name__ else "stdp_1"):
            by_address(store)
        with pytest.raises((RefusedError, RecordNotFoundError), match=r"stdp_1\.0"):
            by_id(store)
        if "stdp_1.0" in store.ids():
            with pytest.raises(RefusedError, match=f"{STDP}|need more memory than there is"):
                store.range("plasticity_trace", end=1.5)["changes"].load()
        np.testing.assert_array_equal(store.retrieve("hebb_2.0")["changes"], np.eye(3))
        store.store(neurostore.plasticity_trace(np.eye(3), "hebb", timestamp=3.0))
        store.cleanup(0, kind="plasticity_trace", now=2.5, model_time=True)
        store.compact()
    assert {name: (path.parent / name).read_bytes() for name in beside} == beside


def test_verification_names_it_and_reads_nothing_of_it(path: Path) -> None:
    with h5py.File(path, "r+") as h5file:
        external_storage(h5file)
    report = verify(path)
    assert not report.ok
    assert {finding.record for finding in report.all_findings()} == {"stdp_1.0"}


def test_an_endless_variable_is_read_if_that_is_wanted(path: Path) -> None:
    values = np.zeros((300, 300))
    with neurostore.open(path, durability="process") as store:
        store.store(neurostore.plasticity_trace(values, "stdp", timestamp=1.0))
    with neurostore.open(path, "r", max_variable_bytes=10_000) as store:
        with pytest.raises(RefusedError, match=r"720,000 bytes.*max_variable_bytes"):
            store.retrieve("stdp_1.0").load()
        with pytest.raises(RefusedError):
            store.range("plasticity_trace", end=1.5)["changes"].load()
    with neurostore.open(path, "r", max_variable_bytes=10**9) as store:
        assert store.retrieve("stdp_1.0")["changes"].shape == (300, 300)
        np.testing.assert_array_equal(store.retrieve("stdp_1.0")["changes"], values)


@pytest.mark.parametrize("link", [h5py.SoftLink("/elsewhere"), h5py.ExternalLink("other.h5", "/")])
def test_a_folder_of_the_tree_that_is_a_link(link: object, path: Path) -> None:
    """Records would be written to wherever it leads."""
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other.create_group("elsewhere")
    other_bytes = path.with_name("other.h5").read_bytes()
    with h5py.File(path, "r+") as h5file:
        h5file.create_group("elsewhere")
        del h5file["spike_trains/raw_data"]
        h5file["spike_trains/raw_data"] = link
    with neurostore.open(path, durability="process") as store:
        with pytest.raises(RefusedError, match=r"spike_trains/raw_data"):
            store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
        assert store.ids() == ["hebb_2.0"]
        store.store(neurostore.plasticity_trace(np.eye(3), "hebb", timestamp=3.0))
    assert path.with_name("other.h5").read_bytes() == other_bytes


@pytest.mark.parametrize("part", ["", "/state", "/names", "/plasticity_trace/rows"])
def test_a_catalogue_that_is_a_link(part: str, path: Path) -> None:
    """It is a cache: a new one is made of the groups, and the other file is left alone."""
    other = path.with_name("other.h5")
    other.write_bytes(path.read_bytes())
    before = other.read_bytes()
    with h5py.File(path, "r+") as h5file:
        del h5file[f"catalogue{part}"]
        h5file[f"catalogue{part}"] = h5py.ExternalLink("other.h5", f"/catalogue{part}")
    with neurostore.open(path, durability="process") as store:
        assert store.ids() == ["hebb_2.0"]
        store.store(neurostore.plasticity_trace(np.eye(3), "hebb", timestamp=3.0))
        assert store.ids() == ["hebb_2.0", "hebb_3.0"]
    assert other.read_bytes() == before
    assert verify(path).ok


@pytest.mark.parametrize("name", ["../secret.h5", "/etc/passwd", "..", "a\\b.h5", ""])
def test_names_of_older_files_stay_in_the_folder(name: str, path: Path) -> None:
    with neurostore.open(path, durability="process") as store:
        store.rotate()
    with h5py.File(path, "r+") as h5file:
        text = h5file.attrs["neurostore_older_files"]
        text = text.decode() if isinstance(text, bytes) else text
        h5file.attrs["neurostore_older_files"] = text.replace(
            "run.000001.h5", name.replace("\\", "\\\\")
        )
    with pytest.raises(DamagedError, match="neurostore_older_files"):
        neurostore.open(path).ids()


@pytest.mark.parametrize("record_id", ["../secret", "/etc/passwd", "a/../../b", "~/x", "..", "\0"])
def test_ids_never_become_paths(record_id: str, path: Path) -> None:
    before = sorted(each.name for each in path.parent.iterdir())
    with neurostore.open(path, durability="process") as store:
        for ask in (store.retrieve, store.open_group):
            with pytest.raises((HDF5StorageError, ValueError)):
                ask(record_id)
        if "\0" not in record_id:
            made = store.store(neurostore.plasticity_trace(np.eye(3), record_id, timestamp=1.0))
            assert "/" not in made
            assert store.retrieve(made).attrs["plasticity_type"] == record_id
    assert sorted(each.name for each in path.parent.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed here")
@pytest.mark.parametrize("sidecar", ["-journal", "-lock"])
def test_a_sidecar_that_is_a_link_is_not_written_through(sidecar: str, path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    Path(f"{path}{sidecar}").symlink_to(victim)
    with contextlib.suppress(StoreError), neurostore.open(path, durability="process") as store:
        store.store(neurostore.plasticity_trace(np.eye(3), "hebb", timestamp=3.0))
    assert victim.read_bytes() == b"precious"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_no_store(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(NotAStoreError, match="pipe"):
        neurostore.open(tmp_path / "pipe.h5")


def test_a_temporary_file_that_is_a_link_is_not_written_through(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    path.with_name(f".{path.name}-compact").symlink_to(victim)
    with neurostore.open(path, durability="process") as store:
        store.compact()
        assert store.ids() == ["hebb_2.0"]
    assert victim.read_bytes() == b"precious"


def test_groups_that_contain_themselves(path: Path) -> None:
    with h5py.File(path, "r+") as h5file:
        group = h5file.create_group("mine")
        group["self"] = group
        h5file["learning_traces/plasticity/loop_4.0"] = h5file["learning_traces"]
        del h5file["catalogue"]
    with neurostore.open(path, durability="process") as store:
        assert "hebb_2.0" in store.ids()
        store.compact()
        assert "hebb_2.0" in store.ids()
