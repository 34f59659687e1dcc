"""A sample of what ``python -m tests.byte_flips`` does to the whole file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.byte_flips import ALLOWED, Flip, each_alone

SAMPLE = 32


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


def test_neighbours_flipped_together_are_told_apart() -> None:
    """What is seen is seen of each flip, however many were tried at once."""
    telling = {
        0: "detected",
        41: "detected",
        42: "wrong in silence",
        300: "detected",
        999: "hanging",
    }
    asked = 0

    def judge(group: list[Flip]) -> str:
        nonlocal asked
        asked += 1
        return next((telling[at] for at, _ in group if at in telling), "harmless")

    found = list(each_alone([(at, 1) for at in range(1000)], judge))
    assert found == [telling.get(at, "harmless") for at in range(1000)]
    assert asked < 100
