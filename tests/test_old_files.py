"""Files of every schema version stay readable: what was written then is read now, to the bit.

``python tests/test_old_files.py`` writes the file of the present version; it is committed when the
version is new, and never written again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import neurostore
from neurostore.schema import SCHEMA_VERSION

FILES = Path(__file__).parent / "files"


def records() -> list[xr.Dataset]:
    """Values by formula, so that no other file has to be kept."""
    ramp = np.arange(400)
    snapshot = neurostore.network_snapshot(
        adjacency=np.eye(20, dtype="i1"),
        weights=np.outer(ramp[:20], ramp[:20]) / 7,
        states=(ramp[:20] / 3).astype("f2"),
        timestamp=1.5,
        metadata={"who": "ü", "nested": [1, None]},
        coords={"pre": [f"n{i}" for i in range(20)]},
    )
    spikes = neurostore.spike_train(
        ramp[::-1] / 400, 720575940622695448 + ramp % 5, timestamp=2.5, units="ms"
    )
    metrics = neurostore.performance_metrics(
        {"accuracy": 0.5, "loss": np.nan}, "digits/test", timestamp=3.5
    )
    return [snapshot, spikes, metrics]


def the_other_kinds() -> list[xr.Dataset]:
    """What files hold from version 2 on: every kind, and values in chunks of every sort."""
    ramp = np.arange(400)
    words = np.array(["", "ü", "spike"])
    return [
        neurostore.compressed_spike_train(
            words, compression_params={"algorithm": "none"}, timestamp=4.5
        ),
        neurostore.reservoir_states(
            ramp.reshape(4, 100) * (1 + 2j), reservoir_id="main", timestamp=5.5
        ),
        neurostore.layer_outputs({"a/b": ramp.reshape(20, 20) % 2 == 0, "c": ramp}, timestamp=6.5),
        neurostore.attention_maps(ramp[:8].reshape(2, 2, 2) / 8, name="encoder", timestamp=7.5),
        neurostore.plasticity_trace(
            ramp.reshape(20, 20).astype("f4"), plasticity_type="stdp", timestamp=8.5
        ),
        neurostore.homeostatic_trace(np.zeros(400), mechanism="scaling", timestamp=9.5),
    ]


IDS = ["snapshot_1.5", "train_2.5", "digits%2Ftest_3.5"]
OTHER_IDS = [
    "compressed_4.5",
    "main_5.5",
    "outputs_6.5",
    "encoder_7.5",
    "stdp_8.5",
    "scaling_9.5",
]


def held_by(version: int) -> dict[str, xr.Dataset]:
    ids, made = list(IDS), records()
    if version > 1:
        ids, made = ids + OTHER_IDS, made + the_other_kinds()
    return dict(zip(ids, made, strict=True))


@pytest.mark.parametrize("file", sorted(FILES.glob("schema_*.h5")), ids=lambda file: file.stem)
def test_an_old_file_is_read_and_goes_on(file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(file, tmp_path / "old.h5"))
    held = held_by(int(file.stem.removeprefix("schema_")))
    with neurostore.open(path) as store:
        assert store.ids() == list(held)
        for record_id, expected in held.items():
            xr.testing.assert_identical(store.retrieve(record_id).load(), expected)
        assert store.store(records()[1]) == "train_2.5~2"
        store.compact()
        assert len(store.ids()) == len(held) + 1


def test_the_present_version_has_its_file() -> None:
    assert (FILES / f"schema_{SCHEMA_VERSION}.h5").exists()


if __name__ == "__main__":
    with neurostore.open(FILES / f"schema_{SCHEMA_VERSION}.h5", mode="x") as made:
        for record in held_by(SCHEMA_VERSION).values():
            made.store(record)
