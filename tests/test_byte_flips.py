"""A sample of what ``python -m tests.byte_flips`` does to the whole file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.byte_flips import ALLOWED

SAMPLE = 80


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_no_flipped_byte_lies_kills_or_hangs() -> None:
    """In a process without threads, because it forks for every flip."""
    command = [sys.executable, "-m", "tests.byte_flips", "--sample", str(SAMPLE), "--seed", "20"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=500,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert told["bad"] == []
    assert set(told["counts"]) <= set(ALLOWED)
    assert told["flips"] == SAMPLE
    assert told["counts"]["detected"] > SAMPLE // 10  # most bytes of a file are room
