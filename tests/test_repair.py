"""Repair: what is intact comes over to the bit, what is not is listed, and the old file stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import neurostore
from neurostore.cli import app
from neurostore.errors import DamagedError, StoreExistsError
from neurostore.verify import Repair
from neurostore.verify.helper import Helper
from neurostore.verify.repairing import save
from tests.samples import assert_same
from tests.test_verify import (
    STDP,
    checked,
    edit_an_attribute,
    flip,
    flip_a_chunk,
    flip_a_header,
    helper,
    path,
    remove_a_part,
    repeat_a_number,
    sound,
    swap_two_dimensions,
)

__all__ = ["helper", "path", "sound"]  # fixtures


def repaired(
    helper: Helper, path: Path, *, series_too: bool = True, changed: bool = False
) -> tuple[Repair, Path]:
    target = path.with_name("sound.h5")
    done = save(helper, path, target, series_too, changed, 60.0, None)
    assert checked(helper, target).ok
    helper.ask("forget", 60.0, path=str(path))
    helper.ask("forget", 60.0, path=str(target))
    return done, target


def assert_same_records(helper: Helper, old: Path, new: Path, but: set[str]) -> None:
    with neurostore.open(old, "r") as one, neurostore.open(new, "a") as other:
        ids = one.ids()
        assert [each for each in ids if each not in but] == other.ids()
        for record_id in set(ids) - but:
            assert_same(other.retrieve(record_id), one.retrieve(record_id))
        other.store(neurostore.spike_train([0.1], [1], timestamp=77.0))
    assert checked(helper, new).ok


def damaged(path: Path, damage: Callable[[h5py.File], Callable[[bytearray], None]]) -> None:
    with h5py.File(path) as h5file:
        change = damage(h5file)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def lose_the_catalogue(h5file: h5py.File) -> Callable[[bytearray], None]:
    return flip(h5py.h5o.get_info(h5file["catalogue"].id).addr + 20)


def lose_a_parent(h5file: h5py.File) -> Callable[[bytearray], None]:
    return flip(h5py.h5o.get_info(h5file["learning_traces/plasticity"].id).addr + 20)


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (flip_a_chunk, {"stdp_1.0"}),
        (flip_a_header, {"stdp_1.0"}),
        (swap_two_dimensions, set()),
        (lose_the_catalogue, set()),
    ],
)
def test_damage(
    helper: Helper,
    damage: Callable[[h5py.File], Callable[[bytearray], None]],
    lost: set[str],
    path: Path,
) -> None:
    damaged(path, damage)
    before = path.read_bytes()
    done, target = repaired(helper, path)
    assert {record.id for record in done.lost} == lost
    assert path.read_bytes() == before
    assert_same_records(helper, path, target, lost)
    with neurostore.open(target, "r") as store:
        if "stdp_1.0" not in lost:
            assert store.retrieve("stdp_1.0")["changes"].dims == ("pre", "post")


def test_a_group_of_the_tree(helper: Helper, path: Path) -> None:
    damaged(path, lose_a_parent)
    done, target = repaired(helper, path)
    assert {record.kind for record in done.lost} == {"plasticity_trace"}
    with neurostore.open(target, "r") as store:
        assert len(store.ids()) == 9


def test_a_file_that_was_cut_short(helper: Helper, path: Path) -> None:
    whole = shutil.copy(path, path.with_name("whole.h5"))
    os.truncate(path, path.stat().st_size - 10)
    with (
        neurostore.open(path) as store,
        pytest.raises(DamagedError, match=r"cut short: .* bytes are there; .*neurostore repair"),
    ):
        store.ids()
    assert "cut short" in str(checked(helper, path))
    done, target = repaired(helper, path)
    assert done.copied
    assert_same_records(helper, Path(whole), target, {record.id for record in done.lost})


@pytest.mark.parametrize("edit", [remove_a_part, repeat_a_number])
def test_what_others_did(helper: Helper, edit: Callable[[h5py.File], None], path: Path) -> None:
    with h5py.File(path, "r+") as h5file:
        edit(h5file)
    done, target = repaired(helper, path)
    lost = {"stdp_1.0"} if edit is remove_a_part else set()
    assert {record.id for record in done.lost} == lost
    assert_same_records(helper, path, target, lost)


def test_an_edited_record_is_copied_if_asked_for(helper: Helper, path: Path) -> None:
    with h5py.File(path, "r+") as h5file:
        edit_an_attribute(h5file)
        h5file.create_group("mine")
    done, target = repaired(helper, path)
    assert [record.id for record in done.lost] == ["stdp_1.0"]
    assert done.left_out == ("mine",)
    target.unlink()
    done, target = repaired(helper, path, changed=True)
    assert done.ok
    with neurostore.open(target, "r") as store:
        assert store.retrieve("stdp_1.0")["changes"].attrs["long_name"] == "edited"


def test_a_series_becomes_one_file(helper: Helper, path: Path) -> None:
    with neurostore.open(path, durability="process") as store:
        store.rotate()
        store.store(neurostore.spike_train([0.1], [1], timestamp=9.0))
    done, target = repaired(helper, path)
    assert len(done.copied) == 12
    with neurostore.open(path, "r") as one, neurostore.open(target, "r") as other:
        assert one.ids() == other.ids()
    target.unlink()
    assert repaired(helper, path, series_too=False)[0].copied == ("train_9.0",)


def test_nothing_stands_there_before_or_after_a_failure(helper: Helper, path: Path) -> None:
    with pytest.raises(StoreExistsError):
        save(helper, path, path, True, False, 60.0, None)
    text = path.with_name("text.h5")
    text.write_text("no HDF5")
    with pytest.raises(DamagedError, match=r"text\.h5"):
        save(helper, text, path.with_name("new.h5"), True, False, 60.0, None)
    assert sorted(each.name for each in path.parent.iterdir()) == ["run.h5", "text.h5"]


def test_old_records_stay_what_they_are(helper: Helper, tmp_path: Path) -> None:
    old = shutil.copy(Path(__file__).parent / "files" / "schema_1.h5", tmp_path / "old.h5")
    done, target = repaired(helper, Path(old))
    assert done.ok
    assert_same_records(helper, Path(old), target, set())


def test_the_store_and_the_command(path: Path) -> None:
    damaged(path, flip_a_chunk)
    done = CliRunner().invoke(app, ["repair", str(path), "-o", str(path.with_name("b.h5"))])
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "10 records copied, 1 lost"
    assert f"{STDP}/changes" in done.stdout
    with neurostore.open(path, "r") as store:
        assert len(store.repair(path.with_name("c.h5")).copied) == 10


def test_empty(helper: Helper, tmp_path: Path) -> None:
    neurostore.open(tmp_path / "a.h5").close()
    done, _ = repaired(helper, tmp_path / "a.h5")
    assert done.copied == ()


@pytest.mark.parametrize("grows", [False, True])
def test_references_that_lead_nowhere_cost_no_record(
    helper: Helper, tmp_path: Path, grows: bool
) -> None:
    """HDF5 walks for ever through a collection with an element that takes no room."""
    path = tmp_path / "run.h5"
    made = [neurostore.plasticity_trace(np.eye(3), name, timestamp=2.0) for name in ("a", "b")]
    with neurostore.open(path, durability="process") as store:
        if grows:
            with store.record("reservoir_states", timestamp=2.0, reservoir_id="a") as recorder:
                recorder.append(np.arange(4.0), coords={"time": 0})
                recorder.append(np.arange(4.0), coords={"time": 1})
            given = {str(recorder.id): store.retrieve(str(recorder.id)).load()}
        else:
            given = {store.store(ds): ds for ds in made}
    data = bytearray(path.read_bytes())
    first = data.rindex(b"GCOL") + 16
    data[first : first + 16] = bytes(16)
    path.write_bytes(data)
    found = checked(helper, path)
    checks = {finding.check for one in found.records for finding in one.findings}
    assert "references" in checks
    assert "process" not in checks
    done, new = repaired(helper, path)
    assert done.ok
    with neurostore.open(path, durability="process") as store:
        store.compact()
    assert checked(helper, path).ok
    for whole in (path, new):
        with neurostore.open(whole, "r") as store:
            for record_id, ds in given.items():
                assert_same(store.retrieve(record_id), ds)
