"""Rows and tables of figures, as text for the terminal and as the page of the documentation.

It measures nothing; it only knows how a figure is written and which machine it belongs to.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import neurostore
from benchmarks.measure import Duel, Spread

PACKAGES = ("numpy", "h5py", "h5netcdf", "xarray")
HEAD = ("what", "neurostore", "peer", "ratio", "goal", "met")


@dataclass(frozen=True)
class Row:
    """One figure: both sides as text, their ratio, and the goal where there is one."""

    what: str
    ours: str
    peer: str
    ratio: str
    goal: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """The row as it is printed."""
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        return self.what, self.ours, self.peer, self.ratio, self.goal, met

    def without_goal(self) -> Row:
        """The same figure, of a size that the goal does not hold for."""
        return replace(self, goal="", met=None)


@dataclass(frozen=True)
class Line:
    """A line of a table with columns of its own."""

    text: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """The line as it is printed."""
        return self.text

    def without_goal(self) -> Line:
        """Itself: it has no goal."""
        return self


@dataclass
class Table:
    """The figures of one case, under a title and a sentence that says who the peer is."""

    title: str
    about: str
    rows: list[Row | Line] = field(default_factory=list)
    head: tuple[str, ...] = HEAD

    def markdown(self) -> str:
        """The table with padded columns, so that it also reads well in a terminal."""
        lines = [self.head, *(row.cells() for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        text = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        return f"## {self.title}\n\n{self.about}\n\n" + "\n".join(text) + "\n"


def cost(what: str, result: Duel, at_most: float | None = None) -> Row:
    """Our time as a multiple of the peer's: smaller is better."""
    ratio = result.ratio
    goal = "" if at_most is None else f"≤ {at_most:g}x the time"
    met = None if at_most is None else ratio.median <= at_most
    ours, peer = (seconds(median(times)) for times in (result.ours, result.peer))
    return Row(what, ours, peer, f"{spread(ratio)} the time", goal, met)


def speedup(what: str, result: Duel, at_least: float | None = None) -> Row:
    """How many times faster than the peer: larger is better."""
    ratio = result.speedup
    goal = "" if at_least is None else f"≥ {at_least:g}x faster"
    met = None if at_least is None else ratio.median >= at_least
    ours, peer = (seconds(median(times)) for times in (result.ours, result.peer))
    return Row(what, ours, peer, f"{spread(ratio)} faster", goal, met)


def without_goals(table: Table) -> Table:
    """Leave out the goals, which hold for the full sizes only."""
    return replace(table, rows=[row.without_goal() for row in table.rows])


def within(what: str, result: Duel, limit: float) -> Row:
    """How many times faster than the peer, where the goal is a time in seconds."""
    row = speedup(what, result)
    met = median(result.ours) <= limit
    return replace(row, goal=f"≤ {seconds(limit)}", met=met)


def size(what: str, ours: float, peer: float, at_most: float, goal: str) -> Row:
    """Bytes of both sides; ``at_most`` is the limit on ours, in bytes."""
    ratio = f"{ours / peer:.2f}x the size"
    return Row(what, f"{ours:,.0f} B", f"{peer:,.0f} B", ratio, goal, ours <= at_most)


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}" if value < 100 else f"{value:.0f} s"
    return f"{value * 1e6:.3g} µs"


def spread(ratio: Spread) -> str:
    """``0.84x (0.80–0.91)``."""
    middle, low, high = (number(x) for x in (ratio.median, ratio.low, ratio.high))
    return f"{middle}x" if low == high else f"{middle}x ({low}–{high})"


def number(value: float) -> str:
    """Two decimals for small ratios, none for large ones."""
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def facts(scratch: Path) -> dict[str, str]:
    """The machine, the file system the files lay on, the versions and the day."""
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}, files on {filesystem(scratch)}",
        "versions": f"neurostore {neurostore.__version__}, Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "date": f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}",
    }


def machine(scratch: Path) -> str:
    """The facts as a table."""
    rows = "\n".join(f"| {name} | {fact} |" for name, fact in facts(scratch).items())
    return f"| run on | |\n|---|---|\n{rows}\n"


def processor() -> str:
    """The model name of the processor, as well as the system tells it."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def filesystem(path: Path) -> str:
    """The type of the file system under ``path``: it decides what a sync costs."""
    listing = Path("/proc/self/mounts")
    if not listing.exists():
        return "an unknown file system"
    mounts = [line.split()[1:3] for line in listing.read_text().splitlines()]
    holding = [(len(at), kind) for at, kind in mounts if path.resolve().is_relative_to(at)]
    return max(holding)[1]


def page(tables: Sequence[Table], scratch: Path) -> str:
    """The page of the documentation, whole."""
    intro = (
        "# Benchmarks\n\n"
        "Written by `python -m benchmarks --write docs/benchmarks.md`; not edited by hand. With\n"
        "`--only`, tables made anew take the place of the old ones and say when they were made.\n\n"
        "Each row pits neurostore against a peer, block after block in the same run. The ratio is\n"
        "the median over the rounds, with the 5 % and 95 % quantiles in brackets. Times of one\n"
        "machine mean little on another; the ratios travel better.\n"
    )
    return "\n".join([intro, machine(scratch), *(table.markdown() for table in tables)])


def merged(old: str, new: str) -> str:
    """Put tables, which say when they were made, in the place of those in another page."""
    _, *tables = re.split(r"^(?=## )", new, flags=re.MULTILINE)
    head, *kept = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    found = {table.partition("\n")[0]: table for table in kept}
    found |= {table.partition("\n")[0]: table for table in tables}
    return "\n".join(part.rstrip("\n") + "\n" for part in (head, *found.values()))
