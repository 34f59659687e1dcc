"""The demo: what its model does, and that every kind of record comes out of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from neurostore import demo, schema
from neurostore.demo import network, records, task
from neurostore.demo.experiment import Experiment
from neurostore.errors import StoreExistsError, ValidationError
from neurostore.store import Store

SECONDS = 24.0
SILENT = {"bias": (0.0, 0.0), "noise": 0.0, "input_connectivity": 1.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("demo")
    summary = demo.run(folder / "demo.h5", folder / "demo.png", SECONDS, seed=0, progress=False)
    return folder, summary


def test_every_kind_is_stored(written: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = written
    assert summary["records"].keys() == schema.KINDS.keys()
    assert min(summary["records"].values()) > 0
    assert summary["trials"] == summary["records"]["spike_train"] == 80
    assert summary["bytes"] == (folder / "demo.h5").stat().st_size


def test_it_learns_the_task(written: tuple[Path, dict[str, Any]]) -> None:
    accuracy = written[1]["accuracy"]
    assert accuracy["trained"] > accuracy["first"]
    assert accuracy["held_out"] > 0.5  # four patterns, so chance is a quarter


def test_the_picture_is_there(written: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = written
    assert summary["picture"] == str(folder / "demo.png")
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_range_and_slice_agree_with_the_trials(written: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = written
    asked, part = summary["range"], summary["slice"]
    with Store(folder / "demo.h5", mode="r") as store:
        ids = store.ids("spike_train", asked["start"], asked["end"])
        trains = [store.retrieve(rid).load() for rid in ids]
    assert asked["trials"] == len(trains)
    assert asked["spikes"] == sum(train.sizes["spike"] for train in trains)
    within = [
        (train.spike_times >= 0.05) & (train.spike_times <= 0.1) & (train.neuron_ids <= 9)
        for train in trains
    ]
    assert part["spikes"] == sum(int(mask.sum()) for mask in within)


def test_the_packed_input_unpacks(written: tuple[Path, dict[str, Any]]) -> None:
    with Store(written[0] / "demo.h5", mode="r") as store:
        packed = store.retrieve(store.ids("compressed_spike_train")[0])
        layers = store.retrieve(store.ids("layer_outputs")[0])
        spikes = records.unpack_input(packed)
        assert json.loads(packed.attrs["compression_params"])["shape"] == [300, 40]
        until = float(layers["sample"][-1])
        seen = spikes.sel(spike_times=slice(None, until - 0.0005)).sizes["spike"]
        assert seen == int(layers["input"].sum())


@dataclass
class Short:
    """Two short runs of one seed, and what the first, over an older file, printed."""

    first: Path
    again: Path
    trials: int
    out: str
    err: str


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Short:
    folder = tmp_path_factory.mktemp("short")
    first, again = folder / "first.h5", folder / "again.h5"
    first.write_bytes(b"mine")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        summary = demo.run(first, None, seconds=1.2, seed=0, force=True)
    demo.run(again, None, seconds=1.2, seed=0, progress=False)
    return Short(first, again, summary["trials"], out.getvalue(), err.getvalue())


def test_the_same_seed_stores_the_same_values(short: Short, tmp_path: Path) -> None:
    demo.run(tmp_path / "other.h5", None, 1.2, seed=1, progress=False)
    stores = [Store(path, mode="r") for path in (short.first, short.again, tmp_path / "other.h5")]
    first, again, other = stores
    assert all(first.ids(kind) == again.ids(kind) for kind in schema.KINDS)
    for kind in schema.KINDS:
        for rid in first.ids(kind):
            xr.testing.assert_identical(first.retrieve(rid).load(), again.retrieve(rid).load())
    assert not first.retrieve("train_0.0").identical(other.retrieve("train_0.0"))
    for store in stores:
        store.close()


def test_an_existing_file_is_kept_unless_forced(short: Short, tmp_path: Path) -> None:
    path = tmp_path / "demo.h5"
    path.write_bytes(b"mine")
    with pytest.raises(StoreExistsError, match="--force"):
        demo.run(path, None, seconds=1.2, progress=False)
    assert path.read_bytes() == b"mine"
    assert short.trials == 4


def test_what_it_prints(short: Short) -> None:
    assert "spike_train" in short.out
    assert "held out" in short.out
    assert short.err == ""


def test_without_matplotlib_it_says_how_to_get_the_picture(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from neurostore import demo\n"
        "summary = demo.run('demo.h5', 'demo.png', seconds=1.2)\n"
        "assert summary['picture'] is None\n"
    )
    search = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | search,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install '.[plot]'" in done.stdout
    assert not (tmp_path / "demo.png").exists()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_odd_lengths_are_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ValidationError, match="positive"):
        demo.run(tmp_path / "demo.h5", None, seconds)
    assert not list(tmp_path.iterdir())


def quiet_liquid(**changes: Any) -> network.Liquid:
    """Two excitatory neurons and one inhibitory, without noise; one input channel."""
    sizes = {"excitatory": 2, "inhibitory": 1, "inputs": 1, "connectivity": 1.0}
    return network.build_liquid(network.Parameters(**(sizes | SILENT | changes)), seed=0)


def run_liquid(liquid: network.Liquid, state: network.LiquidState, steps: int = 40) -> Any:
    import jax

    inputs = np.zeros((steps, liquid.parameters.inputs), np.float32)
    return liquid.run(state, inputs, jax.random.key(0), 1.0)


def test_the_membrane_decays_as_the_formula_says() -> None:
    liquid = quiet_liquid()
    start = liquid.start._replace(potential=np.full(3, -55.0, np.float32))
    state, _ = run_liquid(liquid, start)
    np.testing.assert_allclose(state.potential, -65.0 + 10.0 * np.exp(-40.0 / 20.0), rtol=1e-5)


def test_a_spike_resets_rests_and_drives_the_others() -> None:
    liquid = quiet_liquid()
    start = liquid.start._replace(potential=np.array([-40.0, -65.0, -65.0], np.float32))
    state, record = run_liquid(liquid, start, steps=1)
    assert np.asarray(record.spikes)[0].tolist() == [True, False, False]
    assert float(state.potential[0]) == liquid.parameters.reset
    assert float(record.peak[0, 0]) > liquid.parameters.threshold
    np.testing.assert_allclose(state.drive_excitatory, liquid.wiring.weights[0], rtol=1e-6)


def test_pre_before_post_strengthens_and_the_reverse_weakens() -> None:
    liquid = quiet_liquid(weight_excitatory=4.0, target_rate=0.0, homeostasis=0.0)
    forward = int(np.flatnonzero((liquid.wiring.pre == 0) & (liquid.wiring.post == 1))[0])
    # Neuron 0 has just fired when neuron 1 does.
    start = liquid.start._replace(
        potential=np.array([-65.0, -40.0, -65.0], np.float32),
        trace_pre=np.array([1.0, 0.0, 0.0], np.float32),
        trace_post=np.array([1.0, 0.0, 0.0], np.float32),
    )
    state, _ = run_liquid(liquid, start, steps=1)
    change = np.asarray(state.weights) - np.asarray(start.weights)
    p = liquid.parameters
    np.testing.assert_allclose(change[forward], p.potentiation * np.exp(-1 / 20), rtol=1e-3)
    np.testing.assert_allclose(change[1 - forward], -p.depression * np.exp(-1 / 20), rtol=1e-3)


def test_silence_lowers_the_threshold_by_the_target_rate() -> None:
    liquid = quiet_liquid()
    state, _ = run_liquid(liquid, liquid.start, steps=10)
    p = liquid.parameters
    expected = p.threshold - 10 * p.homeostasis * p.target_rate * p.step / 1000.0
    np.testing.assert_allclose(state.threshold, expected, rtol=1e-6)


def test_held_out_trials_change_no_synapse_and_no_threshold() -> None:
    experiment = Experiment(seconds=1.2, seed=0)
    *_, last = experiment.run(experiment.build())
    assert not last.training
    np.testing.assert_array_equal(last.before.weights, last.after.weights)
    np.testing.assert_array_equal(last.before.threshold, last.after.threshold)


def test_a_pattern_and_its_reversal_have_the_same_counts() -> None:
    patterns = task.draw_patterns(np.random.default_rng(0), 40, 250, 20.0, 1.0)
    counts = patterns.sum(axis=1)
    np.testing.assert_array_equal(counts[:2], counts[2:])
    assert not np.array_equal(patterns[0], patterns[2])
