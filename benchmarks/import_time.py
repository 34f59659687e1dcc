"""Import the package in a fresh interpreter, beside importing what it stands on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Duel, Spread
from benchmarks.report import Row, Table, cost, seconds

NAME = "import"
SCRIPT = """
import sys, time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start, "jax" in sys.modules)
"""


def run(folder: Path, *, quick: bool) -> Table:
    """Alternate fresh interpreters; the time is taken inside them, around the import alone."""
    times: dict[str, list[float]] = {"neurostore": [], "xarray": [], "numpy": []}
    with_jax = False
    for turn in range(2 if quick else 11):
        for module, measured in times.items():
            elapsed, jax = imported(module)
            with_jax |= jax and module == "neurostore"
            if turn:
                measured.append(elapsed)
    ours = Spread.of(times["neurostore"])
    table = Table(
        "Import the package",
        "`import neurostore` in a fresh interpreter, compiled before. The peers are the imports "
        "of xarray and of NumPy, which it includes.",
    )
    table.rows += [
        cost("against `import xarray`", Duel(times["neurostore"], times["xarray"])),
        cost("against `import numpy`", Duel(times["neurostore"], times["numpy"])),
        Row("on its own", seconds(ours.median), "", "", "≤ 1 s", ours.median <= 1),
        Row("jax loaded", "yes" if with_jax else "no", "", "", "no", not with_jax),
    ]
    return table


def imported(module: str) -> tuple[float, bool]:
    """Seconds to import ``module`` in a new interpreter, and whether jax came with it."""
    command = [sys.executable, "-c", SCRIPT.format(module=module)]
    # What was compiled in the first turn is kept, as it is wherever a package was installed.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=kept).stdout
    elapsed, jax = output.split()
    return float(elapsed), jax == "True"
