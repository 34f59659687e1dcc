"""The command line of the benchmarks: choose cases, run them, print or write the tables."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from benchmarks import (
    appends,
    breakdown,
    cleanup,
    compaction,
    dask_cluster,
    encoders,
    growth,
    import_time,
    limits,
    long_series,
    long_train,
    memory,
    open_engine,
    open_tree,
    peers,
    record_bytes,
    remote,
    retrieve_one,
    snapshot,
    sparse,
    stock_append,
    store_one,
    time_range,
)
from benchmarks.report import Table, facts, machine, merged, page, without_goals


class Case(Protocol):
    """A module with a name and one function that measures."""

    NAME: str

    def run(self, folder: Path, *, quick: bool) -> Table:
        """Measure, with files in ``folder``."""


CASES: tuple[Case, ...] = (
    store_one,
    stock_append,
    retrieve_one,
    open_engine,
    breakdown,
    growth,
    time_range,
    long_series,
    record_bytes,
    import_time,
    open_tree,
    snapshot,
    sparse,
    long_train,
    encoders,
    limits,
    memory,
    cleanup,
    compaction,
    peers,
    appends,
    dask_cluster,
    remote,
)


def main() -> None:
    """Run the chosen cases."""
    options = arguments()
    chosen = [case for case in CASES if not options.only or case.NAME in options.only]
    old = ""
    if options.write and options.only and options.write.exists():
        old = options.write.read_text(encoding="utf-8")
    with scratch(options.scratch) as folder:
        print(machine(folder))
        tables = []
        for case in chosen:
            table = case.run(folder, quick=options.quick)
            if options.only:
                table = dated(table, folder)
            tables.append(without_goals(table) if options.quick else table)
            print(tables[-1].markdown(), flush=True)
            if options.write:  # at once: all of them take half an hour
                made = page(tables, folder)
                options.write.write_text(merged(old, made) if old else made, encoding="utf-8")


def dated(table: Table, folder: Path) -> Table:
    """Say below what a table is about when it was made, and with what."""
    known = facts(folder)
    made = f"Made on {known['date']}: {known['versions']}; {known['processor']}; {known['system']}."
    return replace(table, about=f"{table.about.strip()}\n\n{made}")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: only check that it runs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page to this file")
    parser.add_argument(
        "--only", nargs="+", choices=[case.NAME for case in CASES], metavar="NAME", default=[]
    )
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where to put the files")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick measures nothing worth writing; leave out --write or --quick")
    return options


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """A new folder for the files, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=parent) as folder:
        yield Path(folder)


if __name__ == "__main__":
    main()
