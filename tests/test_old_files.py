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


IDS = ["snapshot_1.5", "train_2.5", "digits%2Ftest_3.5"]


@pytest.mark.parametrize("file", sorted(FILES.glob("schema_*.h5")), ids=lambda file: file.stem)
def test_an_old_file_is_read_and_goes_on(file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(file, tmp_path / "old.h5"))
    with neurostore.open(path) as store:
        assert store.ids() == IDS
        for record_id, expected in zip(IDS, records(), strict=True):
            xr.testing.assert_identical(store.retrieve(record_id).load(), expected)
        assert store.store(records()[1]) == "train_2.5~2"
        store.compact()
        assert len(store.ids()) == 4


def test_the_present_version_has_its_file() -> None:
    assert (FILES / f"schema_{SCHEMA_VERSION}.h5").exists()


if __name__ == "__main__":
    with neurostore.open(FILES / f"schema_{SCHEMA_VERSION}.h5", mode="x") as made:
        for record in records():
            made.store(record)
