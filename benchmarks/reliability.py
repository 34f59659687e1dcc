"""What was done to files to lose something, and what came of it: writes `docs/reliability.md`.

`python -m benchmarks.reliability` takes some minutes, `--full` hours; `--quick` only shows that it
runs and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import commit_cost, killing
from benchmarks.__main__ import scratch
from benchmarks.report import Line, Table, machine

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"

#: Kills and power cuts, and how many bytes are flipped (None: all).
TIERS = {
    "quick": (killing.Sizes(kills=2, seeds=1, share=0.01), 5),
    "default": (killing.Sizes(kills=60, seeds=1, share=0.5), 400),
    "full": (killing.Sizes(kills=500, seeds=8, share=1.0), None),
}


def main() -> None:
    """Run one tier and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--full", dest="tier", action="store_const", const="full")
    which.add_argument("--quick", dest="tier", action="store_const", const="quick")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where to put the files")
    options = parser.parse_args()
    tier = options.tier or "default"
    sizes, flips = TIERS[tier]
    with scratch(options.scratch) as folder:
        tables = []
        for make in (
            lambda: killing.run(folder, sizes),
            lambda: killing.mutants(folder, 0.3 if tier == "quick" else 1.0),
            lambda: flipped(flips),
            lambda: commit_cost.run(folder, quick=tier == "quick"),
        ):
            tables.append(make())
            print(tables[-1].markdown(), flush=True)
        if tier != "quick":
            PAGE.write_text(page(tier, tables, folder), encoding="utf-8")


def flipped(sample: int | None) -> Table:
    """Flip bytes of a file with everything in it, each read by a process of its own."""
    command = [sys.executable, "-m", "tests.byte_flips"]
    command += [] if sample is None else ["--sample", str(sample)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    about = (
        f"{told['flips']:,} bytes of a file with every kind of record, flipped one at a time "
        "or, in the full run, with neighbours that nothing reads. "
        "Allowed are the outcomes that give right values or an error that names what is damaged."
    )
    table = Table("Flipped bytes", about, head=("outcome", "flips"))
    table.rows += [Line((name, f"{count:,}")) for name, count in told["counts"].items()]
    return table


def page(tier: str, tables: list[Table], folder: Path) -> str:
    """The page of the documentation, whole."""
    how = {"default": "", "full": " --full"}[tier]
    intro = (
        "# Tested reliability\n\n"
        f"Written by `python -m benchmarks.reliability{how}`; not edited by hand. [Sharing a\n"
        "file](sharing.md) says what is promised; this is what was done to break it.\n"
    )
    return "\n".join([intro, machine(folder), *(table.markdown() for table in tables)])


if __name__ == "__main__":
    main()
