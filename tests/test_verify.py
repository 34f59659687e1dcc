"""Verification: what is sound passes, and whatever is wrong is found, named, and survived."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import neurostore
from neurostore.cli import app
from neurostore.errors import DamagedError, StoreNotFoundError
from neurostore.schema import KINDS
from neurostore.verify import Report, verify
from neurostore.verify.checking import check
from neurostore.verify.helper import Died, Helper
from tests.samples import record

MEMORY = 2 * 1024**3
STDP = "learning_traces/plasticity/stdp_1.0"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with every kind, small ones and one with chunks."""
    path = tmp_path_factory.mktemp("verify") / "sound.h5"
    with neurostore.open(path, durability="process", chunk_size=2) as store, store.batch():
        for kind in KINDS.values():
            store.store(record(kind))
        changes = np.arange(1200.0).reshape(40, 30)
        store.store(neurostore.plasticity_trace(changes, "stdp", timestamp=1.0))
        times = np.arange(400) / 7
        store.store(neurostore.spike_train(times, np.arange(400), timestamp=2.0))
    return path


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    """One process for all tests."""
    with Helper(MEMORY) as made:
        yield made


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound, tmp_path / "run.h5"))


def checked(helper: Any, path: Path, time_limit: float = 60.0) -> Report:
    return check(helper, path, True, time_limit, None)


def found(report: Report) -> set[tuple[str, str]]:
    """Which check found something, about which record."""
    return {(finding.check, finding.record) for finding in report.all_findings()}


def test_a_sound_file(helper: Helper, path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = check(helper, path, True, 60.0, lambda done, total: steps.append((done, total)))
    assert str(report) == "11 records in 1 file: all sound"
    assert report.ok
    assert all(each.hashed for each in report.records)
    assert steps == [(done, 11) for done in range(1, 12)]


def test_every_file_of_a_series(helper: Helper, path: Path) -> None:
    with neurostore.open(path, durability="process") as store:
        store.compact()
        rotated = store.rotate()
        store.store(neurostore.spike_train([0.1], [1], timestamp=9.0))
    report = checked(helper, path)
    assert report.ok
    assert len(report.records) == 12
    assert report.files == (str(rotated), str(path))
    rotated.unlink()
    assert found(checked(helper, path)) == {("file", "")}


def test_no_file(helper: Helper, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        checked(helper, tmp_path / "no.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    assert found(checked(helper, tmp_path / "text.h5")) == {("file", "")}


def flip_a_chunk(h5file: h5py.File) -> Callable[[bytearray], None]:
    info = h5file[f"{STDP}/changes"].id.get_chunk_info(0)
    return flip(info.byte_offset + info.size // 2)


def flip_a_checksum(h5file: h5py.File) -> Callable[[bytearray], None]:
    info = h5file[f"{STDP}/changes"].id.get_chunk_info(0)
    return flip(info.byte_offset + info.size - 1)


def flip_a_header(h5file: h5py.File) -> Callable[[bytearray], None]:
    return flip(h5py.h5o.get_info(h5file[STDP].id).addr + 20)


def flip(position: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[position] ^= 0x10

    return change


def swap_two_dimensions(h5file: h5py.File) -> Callable[[bytearray], None]:
    """Exchange the references in the global heap, which has no checksum."""
    pre, post = (h5py.h5o.get_info(h5file[f"{STDP}/{name}"].id).addr for name in ("pre", "post"))

    def change(data: bytearray) -> None:
        one, other = pre.to_bytes(8, "little"), post.to_bytes(8, "little")
        heap = data.index(b"GCOL")
        first, second = data.index(one, heap), data.index(other, heap)
        data[first : first + 8], data[second : second + 8] = other, one

    return change


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (flip_a_chunk, {("values", "stdp_1.0")}),
        (flip_a_checksum, {("values", "stdp_1.0"), ("content hash", "stdp_1.0")}),
        (flip_a_header, {("structure", "stdp_1.0")}),
        (swap_two_dimensions, {("references", "stdp_1.0"), ("content hash", "stdp_1.0")}),
    ],
)
def test_damage(
    damage: Callable[[h5py.File], Callable[[bytearray], None]],
    expected: set[tuple[str, str]],
    helper: Helper,
    path: Path,
) -> None:
    with h5py.File(path) as h5file:
        change = damage(h5file)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    assert found(checked(helper, path)) == expected
    with neurostore.open(path, "r") as store:
        if damage is swap_two_dimensions:  # the scales know better
            assert store.retrieve("stdp_1.0")["changes"].dims == ("pre", "post")
        else:
            with pytest.raises(DamagedError, match=r"stdp_1\.0"):
                store.retrieve("stdp_1.0").load()


def edit_an_attribute(h5file: h5py.File) -> None:
    h5file[f"{STDP}/changes"].attrs["long_name"] = "edited"


def edit_a_timestamp(h5file: h5py.File) -> None:
    h5file[f"{STDP}/timestamp"][()] = 7.0


def remove_a_part(h5file: h5py.File) -> None:
    del h5file[STDP]


def remove_a_variable(h5file: h5py.File) -> None:
    del h5file[f"{STDP}/changes"]


def repeat_a_number(h5file: h5py.File) -> None:
    numbers = h5file["spike_trains/raw_data/train_2.0/spike"].attrs
    numbers.modify("_Netcdf4Dimid", h5file[f"{STDP}/pre"].attrs["_Netcdf4Dimid"])


def rename_a_record(h5file: h5py.File) -> None:
    h5file.move(STDP, "learning_traces/plasticity/hebb_1.0")


def forget_a_row(h5file: h5py.File) -> None:
    rows = h5file["catalogue/plasticity_trace/rows"]
    rows[0] = rows[-1]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (edit_an_attribute, {("content hash", "stdp_1.0")}),
        (edit_a_timestamp, {("content hash", "stdp_1.0"), ("catalogue", "stdp_1.0")}),
        (remove_a_part, {("catalogue", "stdp_1.0")}),
        (
            remove_a_variable,
            {("content hash", "stdp_1.0"), ("schema", "stdp_1.0"), ("catalogue", "stdp_1.0")},
        ),
        (repeat_a_number, {("numbers", "stdp_1.0")}),
        (rename_a_record, {("catalogue", "stdp_1.0"), ("catalogue", "hebb_1.0")}),
        (forget_a_row, {("catalogue", "")}),
    ],
)
def test_what_others_changed(
    edit: Callable[[h5py.File], None],
    expected: set[tuple[str, str]],
    helper: Helper,
    path: Path,
) -> None:
    with h5py.File(path, "r+") as h5file:
        edit(h5file)
    assert found(checked(helper, path)) == expected


class Fatal:
    """A helper that dies of one record, and of whatever else is named."""

    def __init__(self, helper: Helper, *deadly: str) -> None:
        self._helper, self._deadly = helper, deadly

    def ask(self, operation: str, time_limit: float, **arguments: Any) -> Any:
        names = {operation, arguments.get("row", {}).get("id"), arguments.get("kind")}
        if names & set(self._deadly):
            raise Died("reading it ended the process: SIGSEGV")
        return self._helper.ask(operation, time_limit, **arguments)


def test_a_record_that_kills_is_named_and_the_others_are_read(helper: Helper, path: Path) -> None:
    report = checked(Fatal(helper, "stdp_1.0"), path)
    assert found(report) == {("process", "stdp_1.0")}
    assert "SIGSEGV" in str(report)
    assert len(report.records) == 11


def test_a_catalogue_or_a_folder_that_kills(helper: Helper, path: Path) -> None:
    assert len(checked(Fatal(helper, "contents"), path).records) == 11
    report = checked(Fatal(helper, "contents", "plasticity_trace"), path)
    assert len(report.records) == 9
    assert {finding.check for finding in report.findings} == {"process"}


ABORT = "import sys, os; print(1, flush=True); sys.stdin.readline(); os.abort()"
SLEEP = "import sys, time; print(1, flush=True); time.sleep(600)"
NOTHING = "raise SystemExit(3)"


@pytest.mark.parametrize(("code", "what"), [(ABORT, "SIGABRT"), (SLEEP, "0.2 s")])
def test_a_process_that_dies_or_hangs(code: str, what: str) -> None:
    with Helper(MEMORY, code) as fatal:
        for _ in range(2):
            with pytest.raises(Died, match=what):
                fatal.ask("record", 0.2 if code is SLEEP else 60.0)


def test_a_process_that_does_not_start() -> None:
    with (
        Helper(MEMORY, NOTHING) as fatal,
        pytest.raises(neurostore.HDF5StorageError, match="exit status 3"),
    ):
        fatal.ask("record", 60.0)


def test_memory_is_limited(path: Path) -> None:
    """A chunk may say that it is larger than the machine."""
    with h5py.File(path, "r+") as h5file:
        group = h5file.create_group("learning_traces/plasticity/big_3.0")
        big = group.create_dataset("changes", (2**28,), "f8", chunks=(2**28,), compression="gzip")
        big.id.write_direct_chunk((0,), b"\0" * 64)
    with Helper(2**28) as small:
        report = checked(small, path)
    assert {finding.record for finding in report.all_findings()} == {"big_3.0"}


def test_the_store_and_the_command(path: Path) -> None:
    with neurostore.open(path, "r") as store:
        assert store.verify().ok
    done = CliRunner().invoke(app, ["verify", str(path)])
    assert (done.exit_code, done.stdout) == (0, "11 records in 1 file: all sound\n")
    with h5py.File(path, "r+") as h5file:
        edit_an_attribute(h5file)
    done = CliRunner().invoke(app, ["verify", str(path)])
    assert done.exit_code == 1
    assert "stdp_1.0" in done.stdout
    told = json.loads(CliRunner().invoke(app, ["verify", str(path), "--json"]).stdout)
    assert [each["id"] for each in told["records"] if not each["ok"]] == ["stdp_1.0"]


def test_records_of_version_1_have_no_content_hash(tmp_path: Path) -> None:
    old = Path(__file__).parent / "files" / "schema_1.h5"
    report = verify(shutil.copy(old, tmp_path / "old.h5"))
    assert report.ok
    assert {each.status for each in report.records} == {"ok, no content hash"}
