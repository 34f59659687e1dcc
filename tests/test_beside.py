"""The state, the rows and the journal of a file, read as docs/beside.md says and no other way."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

import neurostore

SOUND = 0x6E657572


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A file and its journal as a killed writer leaves them after its third commit."""
    with neurostore.open(tmp_path / "run.h5") as store:
        for second in range(3):
            store.store(neurostore.spike_train([0.1, 0.2], [1, 2], timestamp=float(second)))
        for name in ("run.h5", "run.h5-journal"):
            shutil.copy(tmp_path / name, tmp_path / name.replace("run", "copy"))
    return tmp_path / "copy.h5"


def journal_of(path: Path) -> tuple[tuple[int | bytes, ...], list[tuple[int, bytes]]]:
    blob = path.with_name(f"{path.name}-journal").read_bytes()
    magic, length, digest = struct.unpack_from("<8sQ32s", blob)
    body = blob[48 : 48 + length]
    assert magic == b"NSjournl"
    assert hashlib.blake2b(body, digest_size=32, person=b"neurostore").digest() == digest
    head = struct.Struct("<IIQ16sQQQQ")
    fields = head.unpack_from(body)
    extents, at = [], head.size + 12 * fields[1]
    for number in range(fields[1]):
        offset, size = struct.unpack_from("<QI", body, head.size + 12 * number)
        extents.append((offset, body[at : at + size]))
        at += size
    assert at == len(body)
    return fields, extents


def test_the_journal_is_that_of_the_last_commit(crashed: Path) -> None:
    (version, _, place, file_id, old, new, old_end, new_end), extents = journal_of(crashed)
    data = crashed.read_bytes()
    assert (version, new, new_end) == (1, old + 1, len(data))
    assert old_end < new_end
    assert data[place : place + 24] == file_id + struct.pack("<Q", new)
    assert all(data[offset : offset + len(piece)] == piece for offset, piece in extents)


def test_a_commit_that_was_not_applied_is_completed_from_the_journal(crashed: Path) -> None:
    (_, _, place, _, old, *_), extents = journal_of(crashed)
    data = bytearray(crashed.read_bytes())
    whole = bytes(data)
    for offset, piece in extents:
        data[offset : offset + len(piece)] = bytes(len(piece))
    data[place : place + 24] = whole[place : place + 16] + struct.pack("<Q", old)
    crashed.write_bytes(data)
    with neurostore.open(crashed) as store:
        assert store.ids() == ["train_0.0", "train_1.0", "train_2.0"]
    for offset, piece in extents:  # what any other program would do
        data[offset : offset + len(piece)] = piece
    assert bytes(data) == whole


def test_state_and_rows(crashed: Path) -> None:
    fields, _ = journal_of(crashed)
    with h5py.File(crashed) as h5file:
        dataset = h5file["catalogue/state"]
        values = dataset[:]
        state = dict(zip(dataset.attrs["fields"].decode().split(), values.tolist(), strict=False))
        names = h5file["catalogue/names"][:].tobytes()
        rows = h5file["catalogue/spike_train/rows"][: state["rows"]]
        assert dataset.id.get_offset() == fields[2]
    assert np.bitwise_xor.reduce(values) == SOUND
    assert state["texts"] == 1 + names.count(b"\0")
    assert state["texts_crc"] == zlib.crc32(names)
    words = np.bitwise_xor.reduce(rows.view("<u8").reshape(len(rows), -1), axis=1)
    assert ((words ^ (words >> np.uint64(32))).astype("u4") == SOUND).all()
    assert rows["timestamp"].tolist() == [0.0, 1.0, 2.0]
    assert rows["length"].tolist() == [2, 2, 2]
    assert rows["serial"].tolist() == [0, 1, 2]
