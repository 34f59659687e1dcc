"""How much the tests try: a seeded sample, or, with `NEUROSTORE_TESTS=full`, all of it.

It knows nothing of what is tried.
"""

from __future__ import annotations

import os

FULL = os.environ.get("NEUROSTORE_TESTS") == "full"


def examples(quick: int) -> int:
    """How many examples Hypothesis makes of something, of which a quick run makes ``quick``."""
    return 10 * quick if FULL else quick
