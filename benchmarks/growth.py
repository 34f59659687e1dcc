"""Store one spike train into a small and into a large file: the cost must not grow with it."""

from __future__ import annotations

from pathlib import Path

import neurostore
from benchmarks import trains
from benchmarks.measure import duel
from benchmarks.report import Table, cost

NAME = "growth"


def run(folder: Path, *, quick: bool) -> Table:
    """Alternate between a file of 100 records and one of 20,000."""
    few, many = (100, 400) if quick else (100, 20_000)
    small, large = trains.store_file(folder, few), trains.store_file(folder, many)
    with (
        neurostore.open(large, durability="process") as ours,
        neurostore.open(small, durability="process") as peer,
    ):
        result = duel(
            lambda k: ours.store(trains.labelled(many + k)),
            lambda k: peer.store(trains.labelled(few + k)),
            rounds=2 if quick else 20,
            calls=10,
        )
    table = Table(
        "Store as the file grows",
        f"The same spike trains, durability `process`. Here neurostore is its own peer: the file "
        f"that holds {few} records already, against the one that holds {many:,}.",
    )
    table.rows.append(cost(f"record {many:,} against record {few}", result, 1.3))
    return table
