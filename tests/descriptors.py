"""What this process has open, as Linux tells it."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

needs_proc = pytest.mark.skipif(
    sys.platform != "linux", reason="looks at what the process has open in /proc"
)


def open_files() -> list[str]:
    """Return the paths behind all descriptors; one that was removed ends in ``(deleted)``."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found
