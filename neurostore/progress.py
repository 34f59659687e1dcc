"""How long operations say how far they are: by a function, or a bar on a terminal.

Nothing is shown unless it is asked for, and no bar where nobody looks at a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

__all__ = ["Progress", "Report", "reporting"]

#: Takes the number of things that are done, and of all.
Report = Callable[[int, int], object]
#: What operations take: a function, True for a bar, None or False for silence.
Progress: TypeAlias = Report | bool | None


@contextmanager
def reporting(progress: Progress, what: str) -> Iterator[Report]:
    """Give the function to call with what is done and with all there is.

    >>> with reporting(print, "counting") as report:
    ...     report(1, 10)
    1 10
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        with _bar(what) as report:
            yield report


@contextmanager
def _bar(what: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:  # a disabled bar of older rich versions ends with an empty line
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
