"""The documented examples of the array face run, and do what they say.

The examples come from ``docs/array-face.md`` and, where it lies beside the project, from the
document that the array face was specified in. What they import from elsewhere is replaced by the
smallest stand-in. The examples only define most of their functions; here these are called, too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest

from neurostore import HDF5Storage

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "array-face.md"
DATA = os.environ.get("NEUROSTORE_DATA")
SHARED = Path(DATA).parent if DATA else ROOT.parent / "shared"
SPECIFICATION = SHARED / "array-api.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(path: Path) -> list[tuple[int, str]]:
    """Line and code of every Python block, with this package in place of ``src.storage``."""
    text = path.read_text(encoding="utf-8")
    found = [(text[: m.start(1)].count("\n"), m[1]) for m in BLOCK.finditer(text)]
    return [(line, code.replace("src.storage", "neurostore")) for line, code in found]


class LiquidStateMachine:
    """What the examples need of a network: three arrays and a step."""

    def __init__(self, neurons: int = 4) -> None:
        self.adjacency_matrix = np.eye(neurons, dtype=int)
        self.weight_matrix = np.full((neurons, neurons), 0.5)
        self.neuron_states = np.zeros((neurons, 1))

    def step(self, input_data: float) -> float:
        self.weight_matrix = self.weight_matrix + input_data
        return float(self.weight_matrix.sum())


class Schedule(ModuleType):
    """A scheduler that remembers its jobs, by when they are due."""

    def __init__(self) -> None:
        super().__init__("schedule")
        self.jobs: dict[str, Callable[[], None]] = {}

    def every(self) -> Due:
        return Due(self)


class Due:
    """``every().sunday.at("03:00").do(job)``: any word is taken."""

    def __init__(self, schedule: Schedule, words: str = "") -> None:
        self._schedule, self._words = schedule, words

    def __getattr__(self, word: str) -> Due:
        return Due(self._schedule, f"{self._words} {word}".strip())

    def at(self, _: str) -> Due:
        return self

    def do(self, job: Callable[[], None]) -> None:
        self._schedule.jobs[self._words] = job


def process_spike_batch(events: list[tuple[float, int, float]]) -> dict[str, Any]:
    times, neurons, amplitudes = (np.array(column) for column in zip(*events, strict=True))
    found = {"patterns": ["burst"], "synchrony": 0.25, "burst_rate": 2.0}
    return {"times": times, "neurons": neurons, "amplitudes": amplitudes, **found}


def stand_ins() -> dict[str, ModuleType]:
    """Modules that the examples import from elsewhere."""
    network = ModuleType("src.core.liquid_state_machine")
    network.LiquidStateMachine = LiquidStateMachine  # type: ignore[attr-defined]
    packages = {name: ModuleType(name) for name in ("src", "src.core")}
    return {**packages, network.__name__: network, "schedule": Schedule()}


# What the specification leaves to the reader; the page brings its own.
ASSUMED = {
    "time": time,
    "np": np,
    "Path": Path,
    "logger": logging.getLogger("documented"),
    "dataclass": dataclass,
    "Any": Any,
    "Dict": dict,
    "Optional": Optional,
    "spike_matrix": np.eye(100, dtype=bool),
    "compress_spike_data": lambda matrix: np.packbits(matrix),
}


@dataclass
class Session:
    """A document that was run: its names, what it printed, and the scheduler it met."""

    names: dict[str, Any]
    printed: str
    schedule: Schedule

    @property
    def store(self) -> HDF5Storage:
        store = self.names["hdf5_store"]
        assert isinstance(store, HDF5Storage)
        return store

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


@pytest.fixture(scope="module", params=[PAGE, SPECIFICATION], ids=["page", "specification"])
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """Run a document from top to bottom in an empty folder, and stay in that folder."""
    document: Path = request.param
    if not document.exists():
        pytest.skip(f"no {document.name} beside the project")
    modules = stand_ins()
    names: dict[str, Any] = {"__name__": "documented", "process_spike_batch": process_spike_batch}
    if document == SPECIFICATION:
        names |= ASSUMED
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("documented"))
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        with contextlib.redirect_stdout(printed):
            for line, code in blocks(document):
                # The empty lines make a traceback name the line of the document.
                exec(compile("\n" * line + code, document, "exec", dont_inherit=True), names)
        schedule = modules["schedule"]
        assert isinstance(schedule, Schedule)
        yield Session(names, printed.getvalue(), schedule)
        for value in names.values():
            if isinstance(value, HDF5Storage):
                value.close()


def test_page_has_every_specified_example() -> None:
    if not SPECIFICATION.exists():
        pytest.skip("no specification beside the project")
    ours = {code for _, code in blocks(PAGE)}
    assert [code for _, code in blocks(SPECIFICATION) if code not in ours] == []


def test_document_prints_what_its_examples_say(session: Session) -> None:
    for line in (
        "Adjacency matrix shape: (1000, 1000)",
        "Neuron states shape: (1000, 5)",
        "Found 1 snapshots in time range",
        "Number of spikes: 5",
        "Neuron IDs: [1 2 3]",
        "Amplitude range: 0.80 - 1.50",
        "States shape: (500, 100)",
        "hidden_layer_2: (32, 128)",
        "Plasticity trace (stdp) at",
        "  convergence_time: 45.2",
        "Compression: gzip",
        "File compacted successfully",
        "Removed 0 old data items",
    ):
        assert line in session.printed
    assert "File was rotated due to size limit" not in session.printed
    assert "Failed to initialize" not in session.printed


def test_document_leaves_its_files(session: Session) -> None:
    assert session["success"] is True
    assert session["rotated_path"].exists()
    assert session["rotated"] is False
    assert session["removed_count"] == 0
    assert Path("godly_ai_data.h5").exists()
    assert Path("data/godly_ai_data.h5").exists()
    assert session["snapshot"].metadata["network_type"] == "liquid_state_machine"
    assert next(iter(session["layer_outputs"])) == "input_layer"


def test_example_store_multiple_snapshots(session: Session) -> None:
    small = {"adjacency_matrix": np.eye(3), "weight_matrix": np.eye(3), "neuron_states": np.ones(3)}
    session["store_multiple_snapshots"]([{"timestamp": 100.0 + i, **small} for i in range(3)])
    assert len(session.store.get_network_snapshots_in_range(100.0, 102.0)) == 3


def test_example_verify_file_integrity(session: Session, tmp_path: Path) -> None:
    assert session["verify_file_integrity"]() is True
    damaged = tmp_path / "damaged.h5"
    store = HDF5Storage(damaged)
    store.close()
    damaged.write_bytes(b"no HDF5 at all" * 1000)
    with swapped(session, hdf5_store=store):
        assert session["verify_file_integrity"]() is False


def test_example_verify_file_integrity_warns_of_an_empty_file(
    session: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with HDF5Storage(tmp_path / "empty.h5") as store, swapped(session, hdf5_store=store):
        assert session["verify_file_integrity"]() is True
    assert "appears to be empty" in caplog.text


def test_example_store_experiment_data(session: Session) -> None:
    trials = [
        {
            "network": {"adjacency": np.eye(2), "weights": np.eye(2) * k, "states": np.ones(2)},
            "condition": f"condition {k}",
            "spike_trains": [{"offset": 0.25, "times": np.array([0.5]), "neurons": np.array([k])}],
        }
        for k in range(2)
    ]
    with swapped(session, time=SimpleNamespace(time=lambda: 200.0)):
        session["store_experiment_data"]("e1", trials)
    ids = session.store.get_network_snapshots_in_range(200.0, 201.0)
    assert ids == ["snapshot_200.0", "snapshot_201.0"]
    train = session.store.retrieve_spike_train("train_201.25")
    assert train is not None
    assert train.metadata == {"experiment_id": "e1", "trial_id": 1, "snapshot_id": ids[1]}
    np.testing.assert_array_equal(train.neuron_ids, [1])


def test_example_setup_file_monitoring(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    done, naps, store = threading.Event(), iter([None]), session.store
    rotated: list[Path] = []

    def rotate_file() -> Path:
        rotated.append(store.rotate_file())
        return rotated[-1]

    def sleep(_: float) -> None:
        """Return once; then hold the thread, which nobody waits for."""
        if next(naps, "over") == "over":
            done.set()
            threading.Event().wait()

    full = SimpleNamespace(
        get_file_info=lambda: {**store.get_file_info(), "file_size_mb": 9500.0},
        rotate_file=rotate_file,
    )
    with (
        caplog.at_level(logging.INFO, "documented"),
        swapped(session, hdf5_store=full, time=SimpleNamespace(sleep=sleep)),
    ):
        session["setup_file_monitoring"]()
        assert done.wait(30)
    assert rotated[0].exists()
    assert "HDF5 file size: 9500.0 MB" in caplog.text
    assert f"File rotated to: {rotated[0]}" in caplog.text


def test_example_setup_file_monitoring_sleeps_in_a_daemon(session: Session) -> None:
    before = set(threading.enumerate())
    session["setup_file_monitoring"]()
    (monitor,) = set(threading.enumerate()) - before
    assert monitor.daemon


def test_example_analyze_network_evolution(session: Session) -> None:
    for k in range(4):
        session.store.store_network_snapshot(
            300.0 + k, np.eye(3, dtype=int), np.full((3, 3), float(k)), np.array([0.1, 0.6, 0.9])
        )
    evolution = session["analyze_network_evolution"](300.0, 303.0, sample_interval=2)
    assert [row["timestamp"] for row in evolution] == [300.0, 302.0]
    assert [row["num_connections"] for row in evolution] == [3, 3]
    assert [row["mean_weight"] for row in evolution] == [0.0, 2.0]
    assert [row["active_neurons"] for row in evolution] == [2, 2]


def test_example_implement_data_lifecycle(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    old = session.store.store_homeostatic_trace(1.5e9, np.ones(3), "old")
    new = session.store.store_homeostatic_trace(time.time(), np.ones(3), "new")
    session["implement_data_lifecycle"]()
    assert list(session.schedule.jobs) == ["day", "sunday", "month"]
    with caplog.at_level(logging.INFO, "documented"):
        for job in session.schedule.jobs.values():
            job()
    assert session.store.retrieve_homeostatic_trace(old) is None
    assert session.store.retrieve_homeostatic_trace(new) is not None
    assert re.search(r"Daily cleanup: removed [1-9]\d* old items", caplog.text)
    assert "Weekly compaction: file size now" in caplog.text
    assert "Monthly archival" not in caplog.text


def test_example_persistent_lsm(session: Session) -> None:
    start = time.time()
    network = session["PersistentLSM"](neurons=3)
    for _ in range(250):
        network.step(1.0)
    first, second = network.hdf5_store.get_network_snapshots_in_range(start, time.time())
    assert network.restore_snapshot(first) is True
    assert network.step_count == 100
    np.testing.assert_array_equal(network.weight_matrix, np.full((3, 3), 100.5))
    assert network.restore_snapshot(second) is True
    assert network.step_count == 200
    assert network.restore_snapshot("snapshot_unknown") is False
    network.hdf5_store.close()


def test_example_process_spike_data_pipeline(session: Session) -> None:
    clock = iter([500.0, 501.0, 502.0, 503.0])
    with swapped(session, time=SimpleNamespace(time=lambda: next(clock))):
        session["process_spike_data_pipeline"]((0.001 * k, k % 7, 1.0 + k) for k in range(2500))
    trains = session.store.get_spike_trains_in_range(500.0, 503.0)
    assert trains == ["train_500.0", "train_502.0"]
    second = session.store.retrieve_spike_train(trains[1])
    assert second is not None
    np.testing.assert_array_equal(second.spike_amplitudes, np.arange(1001.0, 2001.0))
    assert second.metadata == {"batch_size": 1000, "processing_version": "1.0"}
    assert session.store.retrieve_performance_metrics("spike_analysis_503.0") == (
        {"pattern_count": 1.0, "synchrony_index": 0.25, "burst_rate": 2.0},
        503.0,
        "spike_analysis",
    )


@contextlib.contextmanager
def swapped(session: Session, **names: Any) -> Iterator[None]:
    """Give the functions of the document other globals for a moment."""
    kept = {name: session.names[name] for name in names}
    session.names.update(names)
    try:
        yield
    finally:
        session.names.update(kept)
