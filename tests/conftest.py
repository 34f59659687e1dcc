"""What many tests share: the folder of real recordings, and which files begin first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neurostore import osio


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real recordings: ``NEUROSTORE_DATA``, or ``../shared/data``."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NEUROSTORE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder}; set NEUROSTORE_DATA to their folder")
    return folder


#: Where files are dealt to several processes, one of these at the end would keep all but one idle.
SLOWEST = (
    "test_store_crash",
    "test_journal",
    "test_store_model",
    "test_byte_flips",
    "test_on_disk",
    "test_demo",
    "test_series_model",
    "test_compaction",
    "test_series",
    "test_xarray_suite",
    "test_ranges",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A refused write is tried again where space is being freed, by an earlier test for one.
    osio.wait_freed()
