"""What was done to files to lose something, and what came of it: writes `docs/reliability.md`.

`python -m benchmarks.reliability` takes some minutes, `--full` about an hour on two cores;
`--quick` only shows that it runs and writes nothing. Each table is written when it is done and says
when, how and with which versions it was made; with `--only`, those made anew take the place of the
old ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import commit_cost, killing
from benchmarks.__main__ import scratch
from benchmarks.report import Line, Table, facts, merged
from tests import byte_flips

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Tier:
    """How much is tried: kills and power cuts, states of mutants, flipped bytes (None: all)."""

    sizes: killing.Sizes
    mutants: float
    flips: int | None


TIERS = {
    "quick": Tier(killing.Sizes(kills=2, seeds=1, share=0.01), 0.3, 5),
    "default": Tier(killing.Sizes(kills=60, seeds=1, share=0.5), 1.0, 400),
    "full": Tier(killing.Sizes(kills=500, seeds=8, share=1.0, full=True), 1.0, None),
}


def main() -> None:
    """Run one tier and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--full", dest="tier", action="store_const", const="full")
    which.add_argument("--quick", dest="tier", action="store_const", const="quick")
    parser.add_argument("--only", nargs="+", choices=MADE, metavar="NAME", default=[])
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where to put the files")
    options = parser.parse_args()
    name = options.tier or "default"
    old = PAGE.read_text(encoding="utf-8") if options.only else ""
    tables: list[Table] = []
    with scratch(options.scratch) as folder:
        for each in [each for each in MADE if not options.only or each in options.only]:
            began = time.monotonic()
            made = MADE[each](folder, TIERS[name])
            tables.append(stamped(made, each, name, folder, time.monotonic() - began))
            print(tables[-1].markdown(), flush=True)
            if name != "quick":  # at once: all of them take an hour
                new = page(tables)
                PAGE.write_text(merged(old, new) if old else new, encoding="utf-8")


def stamped(table: Table, name: str, tier: str, folder: Path, seconds: float) -> Table:
    """Say below what the table is about who made it when, and with what."""
    known = facts(folder)
    tier = {"default": "", "quick": " --quick", "full": " --full"}[tier]
    took = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
    told = (
        f"Made on {known['date']} in {took} by `python -m benchmarks.reliability{tier}` (alone: "
        f"`--only {name}`): {known['versions']}; {known['processor']}; {known['system']}."
    )
    return replace(table, about=f"{table.about.strip()}\n\n{told}")


def flipped(sample: int | None) -> Table:
    """Flip bytes of a file with everything in it, each read apart from this process."""
    command = [sys.executable, "-m", "tests.byte_flips", "--processes", str(os.cpu_count() or 1)]
    command += [] if sample is None else ["--sample", str(sample)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    told = json.loads(done.stdout)
    file = f"a file of {told['size']:,} bytes with every kind of record and filter"
    if sample is None:
        which = (
            f"{told['flips']:,} bytes of {file}, one bit of each: every byte, but of the "
            f"{told['alike']:,} that are all alike (rows of the catalogue that no record has yet, "
            f"a text of {len(byte_flips.TEXT):,} bytes) one in {byte_flips.STRIDE}. {NEIGHBOURS}"
        )
    else:
        which = f"{told['flips']:,} bytes of {file}, drawn at random, one bit of each."
    about = (
        f"{which} Allowed are the outcomes that give right values or an error that names what is "
        "damaged."
    )
    table = Table("Flipped bytes", about, head=("outcome", "flips"))
    table.rows += [Line((name, f"{count:,}")) for name, count in told["counts"].items()]
    return table


NEIGHBOURS = (
    f"Neighbours are first flipped together, {byte_flips.BLOCK} to {byte_flips.MOST}: where no "
    "answer changes, none of them does anything; where the answers for some records alone "
    "change, those are read for each byte by itself; where what concerns the file as a whole "
    "changes, everything is."
)

MADE: dict[str, Callable[[Path, Tier], Table]] = {
    "kills": lambda folder, tier: killing.run(folder, tier.sizes),
    "broken": lambda folder, tier: killing.mutants(folder, tier.mutants),
    "flips": lambda folder, tier: flipped(tier.flips),
    "costs": lambda folder, tier: commit_cost.run(folder, quick=tier is TIERS["quick"]),
}


def page(tables: list[Table]) -> str:
    """The page of the documentation, whole."""
    intro = (
        "# Tested reliability\n\n"
        "Written by `python -m benchmarks.reliability`; not edited by hand. [Sharing a\n"
        "file](sharing.md) says what is promised; this is what was done to break it.\n"
    )
    return "\n".join([intro, *(table.markdown() for table in tables)])


if __name__ == "__main__":
    main()
