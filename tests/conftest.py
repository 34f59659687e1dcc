"""What many tests share: the folder of real recordings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real recordings: ``NEUROSTORE_DATA``, or ``../shared/data``."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NEUROSTORE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder}; set NEUROSTORE_DATA to their folder")
    return folder
